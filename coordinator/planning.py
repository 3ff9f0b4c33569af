"""From a configuration and a first model to a run's plan: one place for the daemon and the simulator."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from pathlib import Path

from coordinator.merging.planning import (
    MIN_GROUPS,
    correctable,
    fewest_updates,
    fitting_buffer,
    fitting_correction,
    fitting_group_size,
    group_count,
    recipe_of,
)
from coordinator.store import Checkpoint, Run
from privacy.secure_aggregation.atoms import smallest_group
from wire import (
    CheckpointHeader,
    ConfigError,
    FederationConfig,
    InitialModel,
    RoundsSpec,
    RunPlan,
    SecureSpec,
    read_header,
    shared_noise,
)

_READ = 1 << 20


def make_plan(config: FederationConfig, run_id: str, initial: Path, metrics: Iterable[str]) -> RunPlan:
    """The plan of a run that starts from the checkpoint file ``initial``.

    Args:
        config: Its learning tables complete.
        run_id: The run's name.
        initial: Version 0.
        metrics: Names of the metrics that the task reports (a secure sum tells their means).

    Raises:
        ConfigError: a secure sum of so many participants as a round needs at least has no room for its values; the
            merging rule can't keep its promise with so few.
        DataError: the file isn't a checkpoint.
    """
    check_merging(config)
    secure = planned_secure(config)
    if secure is not None:
        secure.encoding(max(config.rounds.min_participants, secure.min_cohort))
    header: CheckpointHeader = read_header(initial)
    noise = shared_noise(config, header.dimension)
    digest = hashlib.sha256()
    with initial.open("rb") as file:
        while chunk := file.read(_READ):
            digest.update(chunk)
    return RunPlan(
        federation=config.federation.name,
        run_id=run_id,
        learning=config.learning(),
        rounds=planned_rounds(config),
        aggregation=config.aggregation,
        merging=config.merging,
        secure=secure,
        privacy=config.privacy,
        shared_noise=noise,
        metrics=told(config, metrics),
        initial=InitialModel(
            digest=digest.hexdigest(),
            size=initial.stat().st_size,
            dimension=header.dimension,
            manifest_hash=header.manifest_hash.hex(),
        ),
    )


def planned_secure(config: FederationConfig) -> SecureSpec | None:
    """Secure sums of a run; None for plain averaging. A robust rule gets groups to compare where none are asked for.

    Raises:
        ConfigError: Groups don't go with another setting.
    """
    if config.aggregation.mode == "plain":
        return None
    spec, size = config.secure_aggregation, _group_size(config)
    if size == spec.group_size:
        return spec
    # The configuration's own checks, as if the size had been asked for.
    return config.changed(secure_aggregation={"group_size": size}).secure_aggregation


def _group_size(config: FederationConfig) -> int:
    """Of secure sums: as asked for, or what a robust rule needs; 0 for one sum."""
    size, rounds = config.secure_aggregation.group_size, config.rounds
    if size or not config.merging.robust:
        return size
    return fitting_group_size(rounds.min_participants, rounds.min_updates, config.merging.tolerance)


def check_merging(config: FederationConfig) -> None:
    """Refuse a merging rule that the smallest possible round couldn't be merged by.

    Raises:
        ConfigError: An unknown setting, or more hostile participants than the rule stands, with so few updates, or
            sums of groups, as there may be.
    """
    spec, rounds = config.merging, planned_rounds(config)
    participants = rounds.min_participants if rounds.asynchronous else None
    fewest = fewest_updates(recipe_of(spec, participants=participants))
    if rounds.asynchronous:
        _check_buffer(config, rounds, fewest)
    if config.aggregation.mode == "secure":
        if spec.robust:
            _check_groups(config, _group_size(config), fewest)
        planned_secure(config)
    elif rounds.min_updates < fewest:
        raise ConfigError(
            f'[merging] rule = "{spec.rule}" needs at least {fewest} updates to stand '
            f"{_hostile(spec.tolerance)}, and a round may end with [rounds] min_updates = {rounds.min_updates}",
            f"Set min_updates to {fewest} or more, lower f, or choose another rule.",
        )


def _check_buffer(config: FederationConfig, rounds: RoundsSpec, fewest: int) -> None:
    spec = config.merging
    if rounds.buffer_size > rounds.min_participants:
        raise ConfigError(
            f"[rounds] a buffer of {rounds.buffer_size} updates, as [merging] f = {spec.tolerance} asks for, might "
            f"never be full with min_participants = {rounds.min_participants}: each participant has one place in it",
            f"Set min_participants to {rounds.buffer_size} or more, or lower f.",
        )
    if rounds.buffer_size < fewest:
        raise ConfigError(
            f'[merging] rule = "{spec.rule}" needs at least {fewest} updates to stand f = {spec.tolerance} hostile '
            f"ones of {rounds.min_participants} participants, and a version is made of [rounds] buffer_size = "
            f"{rounds.buffer_size}: the hostile ones may all be in one buffer",
            f"Set buffer_size to {fewest} or more, lower f, or choose another rule.",
        )
    if rounds.correction == "ca2fl" and not correctable(spec):
        raise ConfigError(
            f'[rounds] correction = "ca2fl" corrects a mean, and [merging] rule = "{spec.rule}" makes none',
            'Set correction = "none", or choose [merging] rule = "careful" or "mean", with no step but norm-clip.',
        )


def _check_groups(config: FederationConfig, size: int, fewest: int) -> None:
    spec, rounds = config.merging, config.rounds
    fewest, each = max(fewest, MIN_GROUPS), smallest_group(size)
    others = (
        'or choose [merging] rule = "careful" (one sum; no promise against hostile participants), or [aggregation] '
        'mode = "plain" (the coordinator sees each update)'
    )
    if group_count(rounds.min_participants, size) < fewest:
        raise ConfigError(
            f'[merging] rule = "{spec.rule}" with secure sums compares sums of groups of {each}; to stand '
            f"{_hostile(spec.tolerance)} it needs {fewest} groups, and [rounds] min_participants = "
            f"{rounds.min_participants} makes {group_count(rounds.min_participants, size)}",
            f"Bring {fewest * each} participants together, or lower f; {others}.",
        )
    if rounds.min_updates < fewest * each:
        raise ConfigError(
            f'[merging] rule = "{spec.rule}" with secure sums needs {fewest} groups of {each} to stand '
            f"{_hostile(spec.tolerance)}, and a round may end with [rounds] min_updates = {rounds.min_updates}",
            f"Set min_updates to {fewest * each} or more, or lower f; {others}.",
        )


def _hostile(f: int | float) -> str:
    if isinstance(f, float):
        return f"a share of {f:g} that is hostile"
    return f"{f} hostile participant{'' if f == 1 else 's'}"


def planned_rounds(config: FederationConfig) -> RoundsSpec:
    """The rounds of a run. Where privacy forbids sites to tell scores, none are asked for.

    With asynchronous rounds the size of the buffer and the correction are said here if the configuration leaves them
    open.
    """
    rounds = config.rounds
    changes: dict[str, object] = {}
    if config.privacy.placement != "off" and not config.privacy.scores:
        changes["evaluate_every"] = 0
    if rounds.asynchronous:
        secure = config.secure_aggregation if config.aggregation.mode == "secure" else None
        least = max(secure.min_cohort, 2 * secure.group_size, secure.min_same_base) if secure is not None else 1
        changes["buffer_size"] = rounds.buffer_size or fitting_buffer(rounds, config.merging, least)
        fitting = fitting_correction(rounds, config.merging) if secure is None else "none"
        changes["correction"] = rounds.correction or fitting
    return rounds.model_copy(update=changes)


def told(config: FederationConfig, metrics: Iterable[str]) -> tuple[str, ...]:
    """The metrics whose mean a secure sum tells: in a private run none of training, which no noise protects."""
    private = config.privacy.placement != "off"
    return tuple(sorted(name for name in metrics if not private or (config.privacy.scores and _is_score(name))))


def _is_score(metric: str) -> bool:
    return metric.startswith("evaluation/")


def run_records(plan: RunPlan, now_s: float) -> tuple[Run, Checkpoint]:
    """What :meth:`coordinator.store.Store.create_run` takes for a new run of this plan."""
    run = Run(run_id=plan.run_id, plan=plan.canonical(), plan_hash=plan.hash, created_s=now_s)
    checkpoint = Checkpoint(
        run_id=plan.run_id,
        version=0,
        digest=bytes.fromhex(plan.initial.digest),
        size=plan.initial.size,
        state=(),
        created_s=now_s,
    )
    return run, checkpoint


def next_run_id(federation: str, latest: Run | None) -> str:
    """Runs are numbered within a federation: ``<federation>-1``, ``-2`` and so on."""
    number = 1 if latest is None else int(latest.run_id.rpartition("-")[2]) + 1
    return f"{federation}-{number}"


def same_run(config: FederationConfig, plan: RunPlan) -> list[str]:
    """Which sections of the configuration no longer say what the run's plan says; empty if it is the same run."""
    changed = []
    if planned_rounds(config) != plan.rounds:
        changed.append("rounds")
    if config.aggregation != plan.aggregation:
        changed.append("aggregation")
    if config.merging != plan.merging:
        changed.append("merging")
    if plan.secure is not None and config.aggregation.mode == "secure" and planned_secure(config) != plan.secure:
        changed.append("secure_aggregation")
    if config.privacy != plan.privacy:
        changed.append("privacy")
    mine = config.learning()
    changed += [name for name in sorted(mine) if mine[name] != plan.learning.get(name)]
    return changed
