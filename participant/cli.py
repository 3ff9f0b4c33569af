"""``fedloom participant``: take part in a federation with a site's data."""

from __future__ import annotations

import asyncio
import dataclasses
import json
import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from participant.budget_cli import app as budget_app
from participant.privacy_audit.cli import app as privacy_audit_app

if TYPE_CHECKING:
    from participant.actions import Finished
    from participant.site import Site

app = typer.Typer(no_args_is_help=True, help="Take part in a federation with this site's data.", add_completion=False)
app.add_typer(budget_app, name="budget")
app.add_typer(privacy_audit_app)

_DEFAULT_HOME = Path("~/.fedloom/participant")
_Home = Annotated[Path, typer.Option("--home", help="The site's folder: identity, configuration, journal.")]
_Json = Annotated[bool, typer.Option("--json", help="Print JSON, one object a line.")]


@app.command()
def join(
    token: Annotated[str, typer.Argument(help="The token that the operator gave you.")],
    data: Annotated[
        str,
        typer.Option("--data", help="A folder with a manifest, a data set such as emoji:twitter, or module:function."),
    ],
    home: _Home = _DEFAULT_HOME,
    allow: Annotated[
        list[str] | None,
        typer.Option("--allow", help="A Python entry point (module:function) that a plan may name. Repeatable."),
    ] = None,
    root: Annotated[
        str,
        typer.Option("--root", help="The federation root's public key, as the consortium (not the operator) gave it."),
    ] = "",
    replace: Annotated[bool, typer.Option("--replace", help="Join anew, with new keys.")] = False,
    allow_plain: Annotated[
        bool,
        typer.Option(
            "--allow-plain",
            help="Also take part in runs with plain averaging, where the coordinator sees this site's updates.",
        ),
    ] = False,
    as_json: _Json = False,
) -> None:
    """Make this site's keys, have them certified with the token, and write the site's folder."""
    from participant.joining import certified, pinned_by
    from participant.joining import join as enrol
    from privacy.secure_aggregation.identities import key_fingerprint
    from wire import Token, parse_public_key

    told = parse_public_key(root, "--root") if root else None
    folder = home.expanduser()
    place = Path(data).expanduser()
    source = str(place.resolve()) if place.exists() else data
    joining = enrol(
        Token.parse(token),
        folder,
        data=source,
        allow=tuple(allow or ()),
        root=told,
        replace=replace,
        allow_plain=allow_plain,
    )
    site = asyncio.run(joining)
    done = certified(site, pinned_by(site))
    if as_json:
        _print(
            {
                "name": site.name,
                "federation": site.federation,
                "home": str(folder),
                "data": source,
                "root": site.config.root,
                "signing_key": site.signing_key.public.hex(),
                "certified": done,
            }
        )
        return
    typer.echo(f"Joined federation {site.federation} as {site.name}. This site's keys stay in {folder}.")
    typer.echo(f"  federation root   {key_fingerprint(site.root)}")
    typer.echo(f"  this site's key   {key_fingerprint(site.signing_key.public)}")
    typer.echo("Compare both by telephone with the keeper of the root; the operator's word isn't enough.")
    if not done:
        typer.echo("The root hasn't certified this site's key yet; its certificate comes by itself.")
    again = "" if home == _DEFAULT_HOME else f" --home {home}"
    typer.echo(f"Take part with:  fedloom participant run{again}")


@app.command()
def run(
    home: _Home = _DEFAULT_HOME,
    once: Annotated[bool, typer.Option("--once", help="Exit when the present run is over.")] = False,
    verbose: Annotated[bool, typer.Option("--verbose", help="Log more.")] = False,
    as_json: _Json = False,
) -> None:
    """Connect to the coordinator and train when asked, until stopped (Ctrl-C) or, with --once, until the run ends."""
    from participant.site import Site
    from wire import about, hold_folder, set_up_logging

    folder = home.expanduser()
    site = Site.load(folder)
    set_up_logging(level="DEBUG" if verbose else "INFO", json_lines=as_json)
    with hold_folder(folder, "participant"), about(participant=site.name):
        result = asyncio.run(_run(site, once=once))
    if result is not None:
        _print({"run": result.run_id, "version": result.version, "reason": result.reason}) if as_json else typer.echo(
            f"Run {result.run_id} is {result.reason}; version {result.version} is the final model."
        )


async def _run(site: Site, *, once: bool) -> Finished | None:
    from participant.daemon import Daemon
    from participant.ledger import open_ledger
    from participant.site import BLOBS, JOURNAL
    from participant.store import ParticipantStore
    from wire import BlobStore, software, until_stopped

    store = ParticipantStore(site.folder / JOURNAL)
    blobs = BlobStore(site.folder / BLOBS, reserve_bytes=site.config.reserve_mb << 20)
    ledger = open_ledger(site)
    daemon = Daemon(site, store, blobs, ledger, software=software())
    try:
        return await until_stopped(daemon.run(once=once))
    finally:
        await daemon.close()
        ledger.close()
        store.close()


@app.command()
def audit(
    round_number: Annotated[int, typer.Argument(metavar="ROUND", min=1, help="The round to recompute, from 1.")],
    run: Annotated[str, typer.Option("--run", help="The run; the latest if not given.")] = "",
    home: _Home = _DEFAULT_HOME,
    as_json: _Json = False,
) -> None:
    """Recompute a round's secure sum from what the coordinator publishes, bit for bit."""
    from participant.auditing import audit as recompute
    from participant.site import JOURNAL, Site
    from participant.store import ParticipantStore

    site = Site.load(home.expanduser())
    store = ParticipantStore(site.folder / JOURNAL)
    try:
        found = asyncio.run(recompute(site, store, round_number, run))
    finally:
        store.close()
    if as_json:
        _print(dataclasses.asdict(found))
        return
    over = f"sums of {len(found.groups)} groups are" if found.groups else f"sum over {', '.join(found.participants)} is"
    typer.echo(f"{found.run_id} round {found.round}: the {over} right, bit for bit.")
    for group in found.groups:
        came = f"left out: {group.left_out}" if group.left_out else f"weight {group.weight}, mean {group.mean[:16]}…"
        typer.echo(f"  {'+'.join(group.participants)}: {came}")
    typer.echo(f"This site's update is {'in it' if found.mine else 'not in it'}.")
    typer.echo(f"The log was verified up to line {found.line}; sum {found.sum_hash[:16]}…, model {found.model[:16]}…")


@app.command()
def status(
    home: _Home = _DEFAULT_HOME,
    limit: Annotated[int, typer.Option("--limit", min=1, help="How many past tasks to show.")] = 10,
    as_json: _Json = False,
) -> None:
    """Who this site is in the federation, and what its data were used for."""
    from participant.joining import certified, pinned_by
    from participant.schedule import Schedule
    from participant.site import JOURNAL, Site
    from participant.store import ParticipantStore
    from privacy.secure_aggregation.identities import key_fingerprint

    site = Site.load(home.expanduser())
    store = ParticipantStore(site.folder / JOURNAL)
    try:
        tasks = store.history(limit)
        today = Schedule(site.rules.schedule, store, time.time).today()
    finally:
        store.close()
    members = pinned_by(site)
    expires = site.credentials.identity.expires.isoformat(timespec="seconds")
    rows: list[dict[str, Any]] = [
        {
            "task": record.task_id,
            "kind": record.kind,
            "round": record.round,
            "state": str(record.state),
            "examples": record.examples,
            "metrics": record.metrics,
            "evaluation": record.evaluation,
        }
        for record in tasks
    ]
    if as_json:
        identity = {
            "name": site.name,
            "federation": site.federation,
            "certificate_expires": expires,
            "root": site.config.root,
            "signing_key": site.signing_key.public.hex(),
            "certified": certified(site, members),
            "members": sorted(members.members()),
            "members_total": members.count,
            "members_head": members.head.hex(),
        }
        identity["today"] = today
        _print({**identity, "coordinator": site.config.session_address, "data": site.config.data, "tasks": rows})
        return
    typer.echo(f"{site.name} in federation {site.federation}; certificate valid until {expires}")
    typer.echo(f"coordinator  {site.config.session_address}")
    typer.echo(f"data         {site.config.data}")
    allowed = "secure sums and plain averaging" if site.config.allow_plain else "secure sums only"
    typer.echo(f"takes part   in runs with {allowed}")
    typer.echo(f"today        {_today(today)}")
    typer.echo(f"root         {key_fingerprint(site.root)}")
    typer.echo(f"members      {len(members.members())} in {members.count} entries; head {members.head.hex()}")
    state = "certified" if certified(site, members) else "not certified yet"
    typer.echo(f"own key      {key_fingerprint(site.signing_key.public)}; {state}")
    if not rows:
        typer.echo("No task was done yet.")
    for row in rows:
        numbers = {**row["metrics"], **row["evaluation"]}
        text = "  ".join(f"{name} {value:.4g}" for name, value in sorted(numbers.items()))
        typer.echo(
            f"  round {row['round']:<4} {row['kind']:<9} {row['state']:<10} {row['examples']:>8} examples  {text}"
        )


def _today(today: dict[str, Any]) -> str:
    """When the site takes tasks, and what is left of its day."""
    if today["away_until"]:
        why = {"hours": "", "rounds": ": the day's rounds are done", "bytes": ": the day's bytes are used up"}
        parts = [f"takes no tasks until {today['away_until']}{why[today['away_reason']]}"]
    else:
        parts = [f"takes tasks until {today['open_until']}" if today["open_until"] else "takes tasks"]
    if today["rounds"] is not None:
        parts.append(f"{today['rounds_left']} of {today['rounds'] + today['rounds_left']} rounds left")
    if today["bytes"] is not None:
        parts.append(f"{today['bytes_left'] / 1e6:.1f} of {(today['bytes'] + today['bytes_left']) / 1e6:.1f} MB left")
    zone = f" ({today['time_zone']})" if today["away_until"] or today["open_until"] or len(parts) > 1 else ""
    return "; ".join(parts) + zone


def _print(body: dict[str, Any]) -> None:
    typer.echo(json.dumps(body, sort_keys=True))
