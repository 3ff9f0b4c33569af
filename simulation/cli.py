"""``fedloom simulate`` and ``fedloom init``."""

from __future__ import annotations

import dataclasses
import json
import math
import shlex
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from coordinator.rounds import Round
    from simulation.federation import Event
    from wire import FederationConfig

simulate_app = typer.Typer(add_completion=False)
init_app = typer.Typer(add_completion=False)


@simulate_app.command()
def simulate(
    config: Annotated[
        Path | None, typer.Option("--config", "-c", help="A federation.toml; the emoji demo if not given.")
    ] = None,
    out: Annotated[Path, typer.Option("--out", "-o", help="Folder for report, record and model.")] = Path(
        "fedloom-report"
    ),
    rounds: Annotated[int | None, typer.Option("--rounds", min=1, help="Instead of [rounds] count.")] = None,
    seed: Annotated[int | None, typer.Option("--seed", min=0, help="Instead of [rounds] seed.")] = None,
    workers: Annotated[int | None, typer.Option("--workers", min=0, help="Worker processes; 0: one a core.")] = None,
    compare: Annotated[
        bool | None, typer.Option("--compare/--no-compare", help="Also train each institution alone.")
    ] = None,
    allow: Annotated[
        list[str] | None, typer.Option("--allow", help="A Python entry point (module:function) sites may import.")
    ] = None,
    epsilon: Annotated[
        float | None,
        typer.Option("--epsilon", help="Protect each record with noise, within this privacy budget for the run."),
    ] = None,
    attack: Annotated[
        str | None, typer.Option("--attack", help="Make the last institutions hostile, such as alie, ipm, label-flip.")
    ] = None,
    attack_setting: Annotated[
        list[str] | None,
        typer.Option("--attack-setting", help="One of the attack's settings, such as scale=3.0; may be repeated."),
    ] = None,
    attackers: Annotated[int | None, typer.Option("--attackers", min=0, help="How many of them are hostile.")] = None,
    rule: Annotated[
        str | None, typer.Option("--rule", help="How updates are merged, such as robust; see [merging].")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON, one object a line.")] = False,
) -> None:
    """Run a whole federation on this machine and write a report.

    Without a configuration: four institutions, each with the emoji of one drawing style, learn to find pictures by
    text.
    """
    from simulation.run import REPORT
    from simulation.run import simulate as run
    from wire import FederationConfig, load_federation

    settings = load_federation(config) if config is not None else FederationConfig()
    settings = settings.changed(
        rounds={"count": rounds, "seed": seed},
        merging={"rule": rule},
        simulation={
            "workers": workers,
            "compare_local": compare,
            "attack": attack,
            "attack_settings": _attack_settings(settings, attack, attack_setting or []),
            "attackers": attackers,
        },
    )
    if epsilon is not None:
        settings = _private(settings, epsilon)
    command = "fedloom " + shlex.join(sys.argv[1:] or ["simulate"])
    with _progress(settings, as_json=as_json) as watch:
        result = run(settings, out, watch, command=command, allow=frozenset(allow or ()))
    record = result.record
    if as_json:
        _print(
            {
                "event": "finished",
                "digest": result.digest,
                "plan_hash": record.plan_hash,
                "final": record.final,
                "local_only": record.local_only,
                "budgets": [dataclasses.asdict(item) for item in record.budgets],
                "guarantee": record.guarantee,
                "hostility": json.loads(record.to_json())["hostility"],
                "report": str(out / REPORT),
                "seconds": round(record.wall_seconds, 1),
            }
        )
        return
    _summary(record, out / REPORT)


@init_app.command()
def init(
    path: Annotated[Path, typer.Argument(help="Where to write it.")] = Path("federation.toml"),
    force: Annotated[bool, typer.Option("--force", help="Overwrite a file that is there.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Write a federation.toml with every setting, its default and what it means."""
    from core_model.config import LearningConfig
    from wire import ConfigError, FederationConfig, commented_toml

    if path.exists() and not force:
        raise ConfigError(f"{path} exists already", "Give another path, or --force to overwrite it.")
    learning = LearningConfig()
    text = commented_toml(FederationConfig(), {name: getattr(learning, name) for name in type(learning).model_fields})
    try:
        path.write_text(text, encoding="utf-8")
    except OSError as error:
        raise ConfigError(f"{path} can't be written: {error.strerror}", "Choose another place.") from error
    if as_json:
        _print({"file": str(path)})
    else:
        typer.echo(f"Wrote {path}. Try it with:  fedloom simulate --config {path}")


def _attack_settings(settings: FederationConfig, attack: str | None, given: list[str]) -> dict[str, Any]:
    """Those of the configuration, unless they are of another attack, and on top of them what was typed."""
    section = settings.simulation
    kept = section.attack_settings if attack in (None, section.attack) else {}
    return {**kept, **dict(_attack_setting(text) for text in given)}


def _attack_setting(text: str) -> tuple[str, Any]:
    """``scale=3.0`` as a name and a number, else a truth value, else a text."""
    from wire import ConfigError

    name, equals, value = (part.strip() for part in text.partition("="))
    if not name or not equals:
        raise ConfigError(f"--attack-setting {text!r} isn't of the form NAME=VALUE", "For example: scale=3.0.")
    if value in ("true", "false"):
        return name, value == "true"
    for number in (int, float):
        try:
            return name, number(value)
        except ValueError:
            continue
    return name, value


def _private(settings: FederationConfig, epsilon: float) -> FederationConfig:
    """The same federation with a privacy budget: the configuration's placement, or noise at each site.

    Scores are told all the same, for the report: on one machine nobody is hidden from.
    """
    placement = settings.privacy.placement if settings.privacy.placement != "off" else "local"
    task = settings.task
    if task.get("kind", "retrieval") == "retrieval" and task.get("negatives", "batch") == "batch":
        # A loss that compares the records of a batch can't be private; public captions take their place.
        task = {**task, "negatives": "bank"}
    return settings.changed(privacy={"placement": placement, "epsilon": epsilon, "scores": True}, task=task)


def _summary(record: Any, page: Path) -> None:
    from rich.console import Console
    from rich.table import Table

    metric = record.headline_metric
    table = Table(box=None, pad_edge=False, header_style="dim")
    for column in ("institution", "federation", "alone"):
        table.add_column(column, justify="left" if column == "institution" else "right")
    for institution in record.institutions:
        table.add_row(
            institution.name,
            _number(record.final.get(institution.name, {}).get(metric.name), metric.unit),
            _number(record.local_only.get(institution.name, {}).get(metric.name), metric.unit),
        )
    console = Console()
    console.print(f"\n{metric.label[0].upper()}{metric.label[1:]}:", highlight=False)
    console.print(table)
    for item in record.hostility:
        success = "" if math.isnan(item.success) else f"; the backdoor opens for {100 * item.success:.1f} %"
        console.print(
            f"Hostile ({item.attack}): {', '.join(item.institutions)}. The honest institutions' mean is "
            f"{_number(item.score, metric.unit)}{success}.",
            highlight=False,
        )
    for text in (record.visibility, record.guarantee):
        console.print(text, highlight=False, style="dim")
    if record.budgets:
        console.print(_budgets(record))
    console.print(
        f"Final model {record.model.digest[:16]}…, version {record.model.version}, "
        f"{record.wall_seconds:.0f} s. Report: {page}",
        highlight=False,
    )


def _budgets(record: Any) -> Any:
    from rich.table import Table

    table = Table(box=None, pad_edge=False, header_style="dim")
    for column in ("institution", "epsilon spent", "left", "at delta", "protects one of"):
        table.add_column(column, justify="left" if column == "institution" else "right")
    for item in record.budgets:
        protected = f"{item.records} {item.unit}s"
        table.add_row(item.name, f"{item.spent:.3g}", f"{item.left:.3g}", f"{item.delta:.1g}", protected)
    return table


def _number(value: float | None, unit: str) -> str:
    if value is None or math.isnan(value):
        return "-"
    return f"{100 * value:.1f} %" if unit == "fraction" else f"{value:.4g}"


@contextmanager
def _progress(settings: FederationConfig, *, as_json: bool) -> Iterator[Callable[[Event], None]]:
    """A live bar on a terminal, a line a round elsewhere, JSON lines on request."""
    if as_json or not sys.stdout.isatty():
        yield _lines(as_json=as_json)
        return
    from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

    columns = (TextColumn("{task.description}"), BarColumn(), TextColumn("{task.fields[note]}"))
    count, sites = settings.rounds.count, len(settings.simulation.institutions)
    with Progress(*columns, TimeElapsedColumn(), TimeRemainingColumn()) as progress:
        together = progress.add_task("federation", total=count * (sites + 1), note="preparing data")
        alone = (
            progress.add_task("each alone", total=count * sites, note="") if settings.simulation.compare_local else None
        )

        def watch(event: Event) -> None:
            if event.kind == "alone" and alone is not None:
                progress.advance(alone)
            elif event.kind == "trained":
                progress.advance(together)
            elif event.round is not None:
                progress.update(together, advance=1, note=f"round {event.round.number} of {count}")
                progress.console.print(_round_line(event.round), highlight=False)

        yield watch


def _lines(*, as_json: bool) -> Callable[[Event], None]:
    def watch(event: Event) -> None:
        if event.round is None:
            return
        if as_json:
            _print(_round_dict(event.round))
        else:
            typer.echo(_round_line(event.round))

    return watch


def _round_dict(item: Round) -> dict[str, Any]:
    seats = {
        name: {"outcome": seat.outcome, "metrics": seat.metrics, "evaluation": seat.evaluation}
        for name, seat in item.seats.items()
    }
    return {
        "event": "round",
        "round": item.number,
        "version": item.version,
        "digest": item.digest,
        "participants": seats,
    }


def _round_line(item: Round) -> str:
    cells = []
    for name, seat in sorted(item.seats.items()):
        shown = next((key for key in ("missing_r_at_1", "accuracy") if key in seat.evaluation), None)
        cells.append(f"{name} {100 * seat.evaluation[shown]:.1f} %" if shown else f"{name} {_loss(seat.metrics)}")
    return f"round {item.number:>3}  version {item.version:>3}  " + "  ".join(cells)


def _loss(metrics: dict[str, float]) -> str:
    return f"loss {metrics['loss']:.3f}" if "loss" in metrics else "done"


def _print(body: dict[str, Any]) -> None:
    typer.echo(json.dumps(body, sort_keys=True))
