"""``fedloom participant audit-privacy``: what private training on this machine really tells of a record."""

from __future__ import annotations

import dataclasses
import json
import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from participant.privacy_audit.audit import TrainingAudit
    from participant.privacy_audit.verdicts import Finding

app = typer.Typer(add_completion=False)

_DEFAULT_HOME = Path("~/.fedloom/participant")
_FAULTY = 6


@app.command("audit-privacy")
def audit_privacy(
    config: Annotated[
        Path | None,
        typer.Option(
            "--config", help="A federation.toml, whose model, loss and noise are audited on this site's data."
        ),
    ] = None,
    data: Annotated[str, typer.Option("--data", help="A data source, in place of the site's own.")] = "",
    home: Annotated[
        Path, typer.Option("--home", help="The site's folder: its data, and what it allows.")
    ] = _DEFAULT_HOME,
    canaries: Annotated[
        int, typer.Option("--canaries", min=16, max=1_000_000, help="Records made to be found, half of them put in.")
    ] = 1_000,
    steps: Annotated[int, typer.Option("--steps", min=1, help="Noisy steps to watch, at most those of the run.")] = 100,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Audit private training on this machine; with --config, that of a run. Nothing leaves it and nothing is spent.

    Without --config every way of private training that is installed here is tried on made-up data, in about half a
    minute. With it, the run's model is trained on this site's data and canaries, and thrown away: the audit's lower
    bound of epsilon stands beside the accountant's upper bound. Exit code 6 if releases tell more than they may.
    """
    started = time.monotonic()
    if config is None:
        from participant.privacy_audit.verdicts import faults

        rows = _software(as_json=as_json)
        good = not any(faults(findings) for _, findings in rows)
        body: dict[str, Any] = {
            "good": good,
            "cases": [{"case": name, "findings": [dataclasses.asdict(item) for item in items]} for name, items in rows],
        }
    else:
        audit = _training(config, data, home, canaries, steps, quiet=as_json)
        good, body = audit.good, {**dataclasses.asdict(audit), "good": audit.good}
        if not as_json:
            _print_training(audit)
    if as_json:
        typer.echo(json.dumps(body, sort_keys=True))
    else:
        verdict = "No fault was found." if good else "FAULT: releases tell more than they may. Don't train with this."
        typer.echo(f"{verdict} ({time.monotonic() - started:.0f} s)")
    if not good:
        raise typer.Exit(_FAULTY)


def _software(*, as_json: bool) -> list[tuple[str, list[Finding]]]:
    """Audit every kind of case on made-up data."""
    import torch

    from participant.privacy_audit.cases import check_seeds, run_case, short_cases
    from participant.privacy_audit.verdicts import ERROR

    torch.set_num_threads(1)
    rows: list[tuple[str, list[Finding]]] = [("seeds", [check_seeds()])]
    if not as_json:
        _print_case(*rows[-1])
    chosen = list(short_cases())
    for case in chosen:
        rows.append((str(case), run_case(case, error=ERROR / len(chosen))))
        if not as_json:
            _print_case(*rows[-1])
    return rows


def _training(config: Path, data: str, home: Path, canaries: int, steps: int, *, quiet: bool) -> TrainingAudit:
    """Audit the training of a run."""
    import torch

    from core_model import LearningConfig, Manifest, make_task
    from participant.privacy_audit.audit import audit_training
    from participant.privacy_audit.plans import run_plan
    from participant.site import Site
    from wire import ConfigError, load_federation, validate

    settings = load_federation(config)
    if settings.privacy.placement == "off":
        raise ConfigError(
            f"{config} adds no noise: there is nothing to audit",
            'Set [privacy] placement, for example to "local".',
        )
    learning = validate(LearningConfig, settings.learning(), str(config))
    settings = settings.with_learning(learning.model_dump(mode="json"))
    # Whoever types this command runs their own configuration: what it names is what they asked for.
    allow = learning.entry_points()
    if not data:
        site = Site.load(home.expanduser())
        data, allow = site.config.data, allow | frozenset(site.config.allow)
    else:
        allow = allow | {data}
    torch.set_num_threads(learning.training.threads)
    task = make_task(learning, data, allow=allow)
    run = run_plan(settings, Manifest.of(task.build_model(0)).dimension)

    def progress(done: int, total: int) -> None:
        if not quiet and (done == total or done % max(1, total // 10) == 0):
            typer.echo(f"  step {done} of {total}", err=True)

    return audit_training(run, learning, task, canaries=canaries, steps=steps, progress=progress)


def _print_training(audit: TrainingAudit) -> None:
    lower = audit.lower
    typer.echo(audit.statement)
    typer.echo(f"After {audit.steps} steps, at delta {lower.delta:.3g}:")
    typer.echo(f"  epsilon at least  {lower.epsilon:.3f}   by the audit, with {lower.confidence:.0%} confidence")
    typer.echo(f"  epsilon at most   {audit.upper:.3f}   by the accountant")
    typer.echo(
        f"  ({lower.right} of {lower.guesses} guesses about {lower.canaries} canaries were right; half are by chance)"
    )
    for item in audit.findings:
        typer.echo(f"{_mark([item])} {item.name}: {item.words}")


def _print_case(name: str, findings: list[Finding]) -> None:
    typer.echo(f"{_mark(findings)} {name}")
    for item in findings:
        if not item.good:
            typer.echo(f"      {item.name}: {item.words}")


def _mark(findings: list[Finding]) -> str:
    from participant.privacy_audit.verdicts import faults

    if faults(findings):
        return "FAULT"
    return "ok   " if all(item.good for item in findings) else "note "
