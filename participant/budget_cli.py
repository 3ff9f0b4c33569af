"""``fedloom participant budget``: what this site's data have paid, to whom, and what is left."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from participant.ledger import BudgetLedger
    from participant.site import Site
    from privacy.ledger import Book

app = typer.Typer(help="What this site's data have paid in privacy, and what is left.", add_completion=False)

_DEFAULT_HOME = Path("~/.fedloom/participant")
_Home = Annotated[Path, typer.Option("--home", help="The site's folder: identity, configuration, ledger.")]
_Json = Annotated[bool, typer.Option("--json", help="Print JSON.")]


@app.callback(invoke_without_command=True)
def budget(context: typer.Context, home: _Home = _DEFAULT_HOME, as_json: _Json = False) -> None:
    """Show spent and left for each data set, and the tasks that it was spent on."""
    if context.invoked_subcommand is not None:
        return
    _, ledger = _open(home)
    try:
        book = ledger.book()
        rows = [_row(book, name) for name in sorted(book.data)]
    finally:
        ledger.close()
    if as_json:
        typer.echo(json.dumps({"datasets": rows}, sort_keys=True))
        return
    if not rows:
        typer.echo("No private run has used this site's data yet.")
        return
    _print_rows(rows)


@app.command()
def audit(home: _Home = _DEFAULT_HOME, as_json: _Json = False) -> None:
    """Check every line of the ledger, and recompute epsilon with independent accountants."""
    from participant.budget_audit import recompute

    site, ledger = _open(home)
    try:
        book = ledger.book()  # reads and checks the whole chain
        rows = [recompute(book, name) for name in sorted(book.data)]
    finally:
        ledger.close()
    if as_json:
        body = {"site": site.name, "lines": book.count, "head": book.head.hex(), "datasets": rows}
        typer.echo(json.dumps(body, sort_keys=True))
    else:
        typer.echo(f"The ledger's {book.count} lines follow each other and are signed by {site.name}.")
        for row in rows:
            second = "" if row["prv"] is None else f", PRV {row['prv']:.4g}"
            verdict = "they agree" if row["agree"] else "THEY DISAGREE"
            typer.echo(
                f"{row['dataset']}: epsilon at delta {row['delta']:.3g} by PLD {row['pld']:.4g}, by dp-accounting "
                f"{row['reference']:.4g}, RDP {row['rdp']:.4g}{second}; {verdict}"
            )
    if not all(row["agree"] for row in rows):
        raise typer.Exit(6)


@app.command()
def export(
    path: Annotated[Path, typer.Argument(help="Where to write it.")],
    home: _Home = _DEFAULT_HOME,
    as_json: _Json = False,
) -> None:
    """Write the ledger with its events and signatures, for a regulator or another accountant."""
    from wire import ConfigError

    site, ledger = _open(home)
    try:
        book = ledger.book()
        body: dict[str, Any] = {
            "format": "fedloom/ledger-export/1",
            "site": site.name,
            "federation": site.federation,
            "signing_key": book.public.hex(),
            "statement": _STATEMENT,
            "head": book.head.hex(),
            "datasets": [_row(book, name) for name in sorted(book.data)],
            "lines": [{"body": item.body.hex(), "signature": item.signature.hex()} for item in ledger.entries()],
        }
    finally:
        ledger.close()
    try:
        path.write_text(json.dumps(body, indent=1, sort_keys=True), encoding="utf-8")
    except OSError as error:
        raise ConfigError(f"{path} can't be written: {error.strerror}", "Choose another place.") from error
    typer.echo(
        json.dumps({"file": str(path), "lines": book.count}) if as_json else f"Wrote {book.count} lines to {path}."
    )


@app.command("set")
def set_budget(
    epsilon: Annotated[float, typer.Option("--epsilon", help="What each data set may pay in all.")],
    delta: Annotated[float, typer.Option("--delta", help="0 takes a tenth of 1 / records, at most 1e-5.")] = 0.0,
    home: _Home = _DEFAULT_HOME,
    as_json: _Json = False,
) -> None:
    """Change the budget of this site's data: in its configuration, and as a line of the ledger."""
    import dataclasses

    from participant.site import PrivacyBudget
    from wire import validate

    site, ledger = _open(home)
    table = {**site.config.privacy.model_dump(), "epsilon": epsilon, "delta": delta}
    wanted = validate(PrivacyBudget, table, "command line")
    changed = dataclasses.replace(site, config=site.config.model_copy(update={"privacy": wanted}))
    try:
        for name, data in sorted(ledger.book().data.items()):
            for_it = changed.rules.privacy.delta_for(data.records)
            ledger.open_dataset(name, records=data.records, unit=data.unit, epsilon=epsilon, delta=for_it)
        rows = [_row(ledger.book(), name) for name in sorted(ledger.book().data)]
    finally:
        ledger.close()
    changed.save()
    if as_json:
        typer.echo(json.dumps({"epsilon": epsilon, "delta": delta, "datasets": rows}, sort_keys=True))
        return
    typer.echo(
        f"Each data set of this site may pay epsilon {epsilon:g}. A running participant takes it up at its restart."
    )
    _print_rows(rows)


_STATEMENT = (
    "Each event is a release of a Gaussian mechanism to whoever sees the model: normal noise of noise_multiplier times "
    "the sensitivity, added to a sum over a Poisson sample with probability sampling_rate. The figures bound the loss "
    "of one unit that is added or removed, over all runs of all coordinators. The number of records counts as public."
)


def _open(home: Path) -> tuple[Site, BudgetLedger]:
    from participant.ledger import BudgetLedger
    from participant.site import LEDGER, Site

    site = Site.load(home.expanduser())
    return site, BudgetLedger(site.folder / LEDGER, site.signing_key, site=site.name)


def _row(book: Book, name: str) -> dict[str, Any]:
    balance = book.balance(name)
    tasks = [task for task in book.tasks.values() if task.dataset == name]
    runs: dict[str, int] = {}
    for task in tasks:
        if str(task.phase) != "given back":
            runs[task.job.run_id] = runs.get(task.job.run_id, 0) + 1
    return {
        "dataset": name,
        "unit": str(balance.unit),
        "records": balance.records,
        "epsilon": balance.epsilon,
        "delta": balance.delta,
        "spent": balance.spent,
        "reserved": balance.committed - balance.spent,
        "left": balance.left,
        "rounds_by_run": runs,
        "events": [event.plain() for event in balance.events],
    }


def _print_rows(rows: list[dict[str, Any]]) -> None:
    from rich.console import Console
    from rich.table import Table

    table = Table(box=None, pad_edge=False, header_style="dim")
    for name in ("data set", "protects one", "spent", "reserved", "left", "of epsilon", "at delta", "runs"):
        table.add_column(name, justify="left" if name in ("data set", "protects one", "runs") else "right")
    for row in rows:
        table.add_row(
            row["dataset"],
            row["unit"],
            *(f"{row[name]:.3g}" for name in ("spent", "reserved", "left", "epsilon", "delta")),
            ", ".join(f"{run} ({count} rounds)" for run, count in sorted(row["rounds_by_run"].items())),
        )
    Console().print(table)
