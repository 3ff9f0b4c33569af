"""The main job on one machine: simulate a federation, compare it with each institution alone, write the report."""

from __future__ import annotations

import base64
import dataclasses
import datetime
import math
import os
import platform
import shutil
import statistics
import tempfile
import time
from collections.abc import Callable, Iterable
from concurrent.futures import Future
from importlib import metadata
from pathlib import Path
from typing import Any, Final, cast

from coordinator.planning import check_merging
from coordinator.rounds import Round, RunState
from coordinator.status import outcome
from core_model import GalleryRow
from core_model.config import LearningConfig
from participant.work import Workbench
from simulation import report
from simulation import workers as work
from simulation.attacks import Attack, Forgery, behaviour, description
from simulation.federation import Event, Federation
from wire import ConfigError, FederationConfig, RunPlan, software, validate

REPORT: Final = "report.html"
RECORD: Final = "result.json"
MODEL: Final = "model.safetensors"

_GALLERY: Final = 4
_PACKAGES: Final = ("torch", "numpy", "grpcio", "protobuf", "cryptography")

Watch = Callable[[Event], None]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Result:
    """What a simulation produced. ``folder`` holds the report, the record and the final model."""

    folder: Path
    record: report.RunRecord
    digest: str
    plan: RunPlan


def simulate(
    config: FederationConfig,
    out: Path,
    watch: Watch,
    *,
    command: str,
    allow: frozenset[str] = frozenset(),
    in_process: bool = False,
) -> Result:
    """Simulate the federation that the configuration describes.

    Args:
        config: Its learning tables are completed here.
        out: Folder for the results; made if missing.
        watch: Told of progress.
        command: What the user typed, for the report.
        allow: Entry points that the simulated sites let a plan name.
        in_process: Train here, one institution after the other, in place of ``[simulation] workers``; for those who
            run several simulations side by side. The result is the same.

    Raises:
        FedloomError: the configuration, the data or a participant makes it impossible; nothing is left half-written.
    """
    started = time.time()
    learning = validate(LearningConfig, config.learning(), "the configuration")
    config = config.with_learning(learning.model_dump(mode="json"))
    institutions = config.simulation.institutions
    if len(institutions) < config.rounds.min_participants:
        raise ConfigError(
            f"[simulation] names {len(institutions)} institutions, but [rounds] min_participants is "
            f"{config.rounds.min_participants}",
            "Add institutions, or lower min_participants.",
        )
    check_merging(config)
    chosen = _attack(config)
    out.mkdir(parents=True, exist_ok=True)
    crews = [
        work.Crew(
            name=item.name,
            data=item.data,
            allow=allow,
            poison=chosen.poison if chosen is not None and item.name in config.simulation.hostile else "",
        )
        for item in institutions
    ]
    workers = work.Workers(crews, 0 if in_process else _processes(config.simulation.workers))
    try:
        with tempfile.TemporaryDirectory(prefix="fedloom-") as temporary:
            folder = Path(temporary)
            initial = workers.submit(
                institutions[0].name, _initial, learning, config.rounds.seed, folder / "initial.safetensors"
            ).result()
            federation = Federation(config, initial, folder, workers, watch)
            try:
                state = federation.run()
                model = federation.blobs.path(bytes.fromhex(state.digest))
                alone = _alone(federation, initial, folder, config, watch) if _compared(config) else {}
                gallery = _gallery(workers, [crew.name for crew in crews], model)
                shutil.copyfile(model, out / MODEL)
                record = _record(federation, state, started=started, command=command, alone=alone, gallery=gallery)
                if chosen is not None:
                    success = _success(workers, config, model) if chosen.poison == "backdoor" else math.nan
                    record = _attacked(record, config, chosen, success)
            finally:
                federation.close()
    finally:
        workers.close()
    (out / RECORD).write_text(record.to_json(), encoding="utf-8")
    report.write_report(record, out / REPORT)
    return Result(folder=out, record=record, digest=state.digest, plan=federation.plan)


def _attack(config: FederationConfig) -> Attack | Forgery | None:
    """What the hostile institutions do, if there are any.

    Raises:
        ConfigError: There is no such attack, its settings don't fit, or it can't be simulated in such a run.
    """
    name = config.simulation.attack
    if name is None:
        return None
    if config.privacy.distributed:
        raise ConfigError(
            f'[simulation] attack = "{name}" with [privacy] placement = "{config.privacy.placement}": what a site '
            "hands in there is a share of a noise on a lattice, for which attacks aren't simulated",
            'Choose placement = "local" or "off", or leave the attack out.',
        )
    return behaviour(name, config.simulation.attack_settings)


def _processes(wanted: int) -> int:
    """0 in the configuration means: as many as there are cores."""
    return wanted or len(os.sched_getaffinity(0))


def _initial(bench: Workbench, learning: LearningConfig, seed: int, path: Path) -> Path:
    from core_model import initial_checkpoint

    initial_checkpoint(learning, seed, path, data=bench.data, allow=bench.allow)
    return path


def _compared(config: FederationConfig) -> bool:
    """Whether each institution is also trained alone. Shared noise has no meaning for one that is alone."""
    return config.simulation.compare_local and not config.privacy.distributed


def _alone(
    federation: Federation, initial: Path, folder: Path, config: FederationConfig, watch: Watch
) -> dict[str, dict[str, float]]:
    """Each institution's scores after the same number of rounds on its own data."""
    rounds = config.rounds.count
    futures: dict[str, Future[dict[str, float]]] = {}
    for number in range(1, rounds + 1):
        futures = {
            item.name: federation.workers.submit(
                item.name, work.train_alone, folder, initial, config.rounds.seed, number, rounds
            )
            for item in config.simulation.institutions
            if item.name not in config.simulation.hostile
        }
        for name, future in futures.items():
            future.result()
            watch(Event("alone", name))
    return {name: future.result() for name, future in futures.items()}


def _gallery(workers: work.Workers, names: Iterable[str], model: Path) -> list[report.Retrieval]:
    found: list[report.Retrieval] = []
    for name in names:
        for row in workers.submit(name, _rows, model).result():
            pictures = tuple(
                report.Picture(
                    png=base64.b64encode(picture.png).decode(), caption=picture.caption, correct=picture.correct
                )
                for picture in row.pictures
            )
            found.append(report.Retrieval(institution=name, query=row.query, rank=row.rank, pictures=pictures))
    return found


def _rows(bench: Workbench, model: Path) -> list[GalleryRow]:
    return bench.gallery(model, _GALLERY)


def _record(
    federation: Federation,
    state: RunState,
    *,
    started: float,
    command: str,
    alone: dict[str, dict[str, float]],
    gallery: list[report.Retrieval],
) -> report.RunRecord:
    plan = federation.plan
    rounds = [federation.shown(item) for item in state.rounds]
    final = rounds[-1]
    metrics = _reported(alone, final)
    return report.RunRecord(
        title=f"Federation {plan.federation}",
        federation=plan.federation,
        started=datetime.datetime.fromtimestamp(started, datetime.UTC).isoformat(timespec="seconds"),
        wall_seconds=time.time() - started,
        virtual_seconds=(state.finished.finished_s if state.finished else 0.0) - state.rounds[0].opened_s,
        command=command,
        versions=_versions(),
        config=plan.model_dump(mode="json"),
        plan_hash=plan.hash.hex(),
        model=report.Model(digest=state.digest, parameters=plan.initial.dimension, version=state.version),
        institutions=tuple(
            report.Institution(
                name=name,
                data=federation.workers.data(name),
                examples=site.examples,
            )
            for name, site in federation.participants.items()
        ),
        rounds=tuple(_round(item) for item in rounds if item.purpose == "train"),
        final={name: seat.evaluation for name, seat in final.seats.items() if seat.evaluation}
        if final.purpose == "evaluate"
        else {},
        local_only=alone,
        headline_metric=metrics[0],
        other_metrics=tuple(metrics[1:]),
        gallery=tuple(gallery),
        visibility=plan.visibility,
        guarantee=federation.hub.guarantee,
        budgets=tuple(
            report.Budget(
                name=name,
                unit=str(receipt.unit),
                spent=receipt.spent,
                left=receipt.left,
                budget=receipt.budget,
                delta=receipt.delta,
                records=receipt.records,
            )
            for name, receipt in sorted(federation.hub.budgets().items())
        ),
    )


def _success(workers: work.Workers, config: FederationConfig, model: Path) -> float:
    """The attack success rate of a backdoor in the last version, over the honest institutions' held-out pictures."""
    honest = [item.name for item in config.simulation.institutions if item.name not in config.simulation.hostile]
    futures = [workers.submit(name, work.backdoor_success, config.learning(), model) for name in honest]
    found = [future.result() for future in futures]
    total = sum(count for _, count in found)
    return sum(rate * count for rate, count in found) / total if total else math.nan


def _attacked(
    record: report.RunRecord, config: FederationConfig, chosen: Attack | Forgery, success: float
) -> report.RunRecord:
    """The record with what is to be said of the hostile institutions."""
    hostile, metric = config.simulation.hostile, record.headline_metric.name
    scores = [table[metric] for name, table in record.final.items() if name not in hostile and metric in table]
    found = report.Hostility(
        attack=config.simulation.attack or "",
        description=description(chosen),
        settings=dataclasses.asdict(cast(Any, chosen)),
        knows=chosen.knows,
        institutions=hostile,
        score=statistics.fmean(scores) if scores else math.nan,
        success=success,
    )
    institutions = tuple(
        dataclasses.replace(item, description=f"Hostile: {found.attack}.") if item.name in hostile else item
        for item in record.institutions
    )
    return dataclasses.replace(record, hostility=(found,), institutions=institutions)


def _round(item: Round) -> report.Round:
    # With sums of groups the report is about groups, which are called by their members' names.
    said = {name: update for update in item.report.get("participants", ()) for name in update["participant"].split("+")}
    verdicts = {name: {key: update[key] for key in ("verdict", "reason", "weight")} for name, update in said.items()}
    return report.Round(
        number=item.number,
        version=item.version or 0,
        digest=item.digest,
        seconds=(item.closed_s or item.opened_s) - item.opened_s,
        participants=tuple(
            report.Participation(
                name=name,
                outcome=outcome(item, seat),
                examples=seat.examples,
                metrics=seat.metrics,
                evaluation=seat.evaluation,
                staleness=item.staleness(name),
                **verdicts.get(name, {}),
            )
            for name, seat in sorted(item.seats.items())
        ),
        warnings=tuple(item.report.get("warnings", ())),
    )


# The first of these that a task reports is what its report is about; the others are shown below it.
_METRICS: Final = (
    report.Metric(name="missing_r_at_1", label="recall at 1 on pairs only the others have"),
    report.Metric(name="accuracy", label="accuracy"),
    report.Metric(name="missing_r_at_10", label="recall at 10 on these"),
    report.Metric(name="unseen_r_at_1", label="recall at 1 on concepts nobody has"),
    report.Metric(name="unseen_r_at_10", label="recall at 10 on these"),
    report.Metric(name="loss", label="loss", better="lower", unit=""),
)


def _reported(alone: dict[str, dict[str, float]], final: Round) -> list[report.Metric]:
    """What this task reports, the most telling first; a task of the user's own has its loss at least."""
    names: set[str] = set().union(*alone.values(), *(seat.evaluation for seat in final.seats.values()))
    known = [metric for metric in _METRICS if metric.name in names]
    others = sorted(names - {metric.name for metric in known})
    return [*known, *(report.Metric(name=name, label=name, unit="") for name in others)] or [_METRICS[-1]]


def _versions() -> dict[str, str]:
    found: dict[str, Any] = {"python": platform.python_version(), "fedloom": software().partition(" ")[2]}
    for package in _PACKAGES:
        found[package] = metadata.version(package)
    return found
