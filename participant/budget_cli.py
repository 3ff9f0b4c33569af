"""``fedloom participant budget``: what this site's data have paid, to whom, and what is left."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from participant.ledger import BudgetLedger
    from participant.site import Site

app = typer.Typer(help="What this site's data have paid in privacy, and what is left.", add_completion=False)

_DEFAULT_HOME = Path("~/.fedloom/participant")
_Home = Annotated[
    Path | None,
    typer.Option("--home", help=f"The site's folder: identity, configuration, ledger; {_DEFAULT_HOME} if not given."),
]
_Json = Annotated[bool, typer.Option("--json", help="Print JSON.")]


@app.callback(invoke_without_command=True)
def budget(context: typer.Context, home: _Home = None, as_json: _Json = False) -> None:
    """Show spent and left for each data set, and the tasks that it was spent on."""
    if context.invoked_subcommand is not None:
        context.obj = _Before(home, as_json)
        return
    from participant.budget_report import data_row

    _, ledger = _open(home or _DEFAULT_HOME)
    try:
        book = ledger.book()
        rows = [data_row(book, name) for name in sorted(book.data)]
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
def audit(context: typer.Context, home: _Home = None, as_json: _Json = False) -> None:
    """Check every line of the ledger, and recompute epsilon with independent accountants."""
    from participant.budget_audit import recompute

    home, as_json = _given(context, home, as_json)
    site, ledger = _open(home)
    try:
        book = ledger.book()  # reads and checks the whole chain
        rows = [recompute(book, name) for name in sorted(book.data)]
    finally:
        ledger.close()
    if as_json:
        body: dict[str, Any] = {"site": site.name, "lines": book.count, "head": book.head.hex(), "datasets": rows}
        body["clock_went_back_before_lines"] = book.backwards
        typer.echo(json.dumps(body, sort_keys=True))
    else:
        typer.echo(f"The ledger's {book.count} lines follow each other and are signed by {site.name}.")
        if book.backwards:
            where = ", ".join(str(number) for number in book.backwards)
            typer.echo(f"The site's clock went back before line {where}. Nothing is decided by the clock.")
        _print_recomputed(rows)
    _exit_unless_agreed(rows)


@app.command()
def export(
    context: typer.Context,
    path: Annotated[Path, typer.Argument(help="Where to write it.")],
    home: _Home = None,
    as_json: _Json = False,
) -> None:
    """Write the ledger with its events and signatures, for a regulator or another accountant."""
    from participant.budget_report import export as signed_export
    from wire import ConfigError

    home, as_json = _given(context, home, as_json)
    site, ledger = _open(home)
    try:
        book = ledger.book()
        # Lines that were written since then aren't in the figures.
        body = signed_export(book, ledger.entries()[: book.count], site.federation, site.signing_key)
    finally:
        ledger.close()
    try:
        path.write_text(json.dumps(body, indent=1, sort_keys=True), encoding="utf-8")
    except OSError as error:
        raise ConfigError(f"{path} can't be written: {error.strerror}", "Choose another place.") from error
    typer.echo(
        json.dumps({"file": str(path), "lines": book.count}) if as_json else f"Wrote {book.count} lines to {path}."
    )


@app.command()
def check(
    context: typer.Context,
    path: Annotated[Path, typer.Argument(help="An export, of any site.")],
    key: Annotated[str, typer.Option("--key", help="The site's signing key, as known from elsewhere (hex).")] = "",
    as_json: _Json = False,
) -> None:
    """Check an export: its signatures, its chain and its figures, with independent accountants. No site is needed."""
    from participant.budget_audit import recompute
    from participant.budget_report import read_export
    from wire import ConfigError

    _, as_json = _given(context, None, as_json)
    try:
        known = bytes.fromhex(key) if key else None
        body = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError(f"{path} can't be read: {error.strerror}", "Name the file of an export.") from error
    except (ValueError, RecursionError) as error:
        raise ConfigError(f"{path} isn't an export, or --key no hexadecimal key: {error}") from None
    book = read_export(body, key=known)
    rows = [recompute(book, name) for name in sorted(book.data)]
    if as_json:
        facts = {"site": book.site, "key": book.public.hex(), "lines": book.count, "head": book.head.hex()}
        typer.echo(json.dumps({**facts, "datasets": rows}, sort_keys=True))
    else:
        trust = "as you know it" if known is not None else "compare it with what the site told you"
        typer.echo(
            f"{book.count} lines follow each other and are signed by {book.site} with {book.public.hex()} ({trust})."
        )
        _print_recomputed(rows)
    _exit_unless_agreed(rows)


@app.command("set")
def set_budget(
    context: typer.Context,
    epsilon: Annotated[float, typer.Option("--epsilon", help="What each data set may pay in all.")],
    delta: Annotated[float, typer.Option("--delta", help="0 takes a tenth of 1 / records, at most 1e-5.")] = 0.0,
    data: Annotated[str, typer.Option("--data", help="Of this data set only; the site's rule for others stays.")] = "",
    home: _Home = None,
    as_json: _Json = False,
) -> None:
    """Change the budget of this site's data: in its configuration, and as a line of the ledger."""
    from participant.budget_report import data_row
    from participant.site import PrivacyBudget
    from wire import validate

    home, as_json = _given(context, home, as_json)
    site, ledger = _open(home)
    table = {**site.config.privacy.model_dump(), "epsilon": epsilon, "delta": delta}
    wanted = validate(PrivacyBudget, table, "command line")
    changed = dataclasses.replace(site, config=site.config.model_copy(update={"privacy": wanted}))
    try:
        book = ledger.book()
        names = [book.dataset(data).name] if data else sorted(book.data)
        deltas = {name: changed.rules.privacy.delta_for(book.data[name].records) for name in names}
        # Asked of all before any is changed, so that a refusal leaves everything as it was.
        for decide in (book.open_dataset, ledger.open_dataset):
            for name, for_it in deltas.items():
                known = book.data[name]
                decide(name, records=known.records, unit=known.unit, epsilon=epsilon, delta=for_it)
        book = ledger.book()
        rows = [data_row(book, name) for name in names]
    finally:
        ledger.close()
    if not data:
        changed.save()
    if as_json:
        typer.echo(json.dumps({"epsilon": epsilon, "delta": delta, "datasets": rows}, sort_keys=True))
        return
    which = data or "Each data set of this site"
    typer.echo(f"{which} may pay epsilon {epsilon:g}. A running participant takes it up at its restart.")
    _print_rows(rows)


@dataclasses.dataclass(frozen=True)
class _Before:
    """What was given before the subcommand: it counts where the subcommand isn't told otherwise."""

    home: Path | None
    as_json: bool


def _given(context: typer.Context, home: Path | None, as_json: bool) -> tuple[Path, bool]:
    before = context.obj if isinstance(context.obj, _Before) else _Before(None, False)
    return home or before.home or _DEFAULT_HOME, as_json or before.as_json


def _open(home: Path) -> tuple[Site, BudgetLedger]:
    from participant.ledger import open_ledger
    from participant.site import Site

    site = Site.load(home.expanduser())
    return site, open_ledger(site)


def _print_recomputed(rows: list[dict[str, Any]]) -> None:
    for row in rows:
        second = "" if row["prv"] is None else f", PRV {row['prv']:.4g}"
        verdict = "they agree" if row["agree"] else "THEY DISAGREE"
        typer.echo(
            f"{row['dataset']}: epsilon at delta {row['delta']:.3g} by PLD {row['pld']:.4g}, by dp-accounting "
            f"{row['reference']:.4g}, RDP {row['rdp']:.4g}{second}; {verdict}"
        )


def _exit_unless_agreed(rows: list[dict[str, Any]]) -> None:
    if not all(row["agree"] for row in rows):
        raise typer.Exit(6)


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
            "\n".join(f"{run['run']}: {run['rounds']} rounds, {run['epsilon_alone']:.3g} alone" for run in row["runs"]),
        )
    Console().print(table)
