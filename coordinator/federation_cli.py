"""``fedloom federation``: the root of a federation, kept apart from the coordinator. These commands need no network."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from privacy.secure_aggregation.identities import MemberRequest
    from privacy.secure_aggregation.members import FederationRoot, MemberEntry, MemberList
    from wire import Requests

app = typer.Typer(
    no_args_is_help=True,
    help="Keep the federation root apart from the coordinator: only its holder can add members. Needs no network.",
    add_completion=False,
)

_Root = Annotated[Path, typer.Option("--root", help="The root's folder, made by: fedloom federation init.")]
_Yes = Annotated[bool, typer.Option("--yes", "-y", help="Ask nothing: the fingerprints were compared before.")]
_Json = Annotated[bool, typer.Option("--json", help="Print JSON, one object a line.")]

_DAY_S = 86_400.0


@app.command()
def init(
    out: Annotated[Path, typer.Option("--out", help="The folder to make, on a machine that isn't the coordinator's.")],
    name: Annotated[str, typer.Option("--name", help="The federation's name, as in its federation.toml.")],
    as_json: _Json = False,
) -> None:
    """Make a federation's root key. Do it before the coordinator's first start: sites pin the root when they join."""
    from privacy.secure_aggregation.identities import key_fingerprint
    from wire import check_name, make_root

    root = make_root(out.expanduser(), check_name(name, "federation"))
    public = root.public.hex()
    if as_json:
        _print({"federation": name, "root": public, "fingerprint": key_fingerprint(root.public), "folder": str(out)})
        return
    typer.echo(f"Made the root of federation {name} in {out}. Keep that folder offline, and back it up:")
    typer.echo("whoever has it can add members, and without it nobody can.\n")
    typer.echo(f"  public key    {public}")
    typer.echo(f"  fingerprint   {key_fingerprint(root.public)}\n")
    typer.echo("Put the public key into the coordinator's federation.toml, before its first start:\n")
    typer.echo(f'  [federation]\n  name = "{name}"\n  root = "{public}"\n')
    typer.echo("and give it to each site over a channel that isn't the operator's:\n")
    typer.echo(f"  fedloom participant join TOKEN --data PATH --root {public}")


@app.command()
def certify(
    requests: Annotated[Path, typer.Argument(help="From: fedloom coordinator members --pending --out FILE.")],
    root: _Root,
    only: Annotated[
        list[str] | None, typer.Option("--only", help="Certify this name and no other. Repeatable.")
    ] = None,
    days: Annotated[
        float, typer.Option("--days", min=0.0, help="How long the certificates are valid; 0 for no end.")
    ] = 0.0,
    yes: _Yes = False,
    as_json: _Json = False,
) -> None:
    """Sign who asks to be a member. Compare each fingerprint with the site, by telephone, before you say yes."""
    from wire import read_requests, write_members
    from wire.root import MEMBERS

    _no_questions_in_json(yes=yes, as_json=as_json)
    folder = root.expanduser()
    key, chain = _open(folder)
    asked = read_requests(requests)
    _check_requests(asked, chain, folder)
    wanted = _chosen(asked, only or [])
    valid_until = int(time.time() + days * _DAY_S) if days else 0
    grown, certified = chain, list[str]()
    for request in wanted:
        known = grown.members().get(request.name)
        if known is not None and known.public_key == request.public_key and known.valid_until == valid_until:
            if not as_json:
                typer.echo(f"{request.name} is certified already.")
            continue
        if not as_json:
            _show_request(request, grown)
        if not yes and not typer.confirm(f"Certify {request.name}?"):
            continue
        for entry in _entries(key, grown, request, valid_until):
            grown = grown.extend([entry])
        certified.append(request.name)
    if certified:
        write_members(folder / MEMBERS, grown)
    _say_result("certified", certified, grown, folder / MEMBERS, as_json=as_json)


@app.command()
def remove(
    name: Annotated[str, typer.Argument(help="Who is to be a member no longer.")],
    root: _Root,
    yes: _Yes = False,
    as_json: _Json = False,
) -> None:
    """Sign that somebody is a member no longer. To shut it out at once, revoke it at the coordinator as well."""
    from privacy.secure_aggregation.identities import key_fingerprint
    from wire import as_refusal, write_members
    from wire.root import MEMBERS

    _no_questions_in_json(yes=yes, as_json=as_json)
    folder = root.expanduser()
    key, chain = _open(folder)
    with as_refusal():
        entry = key.remove(chain, name)
    if not yes:
        typer.echo(f"{name} ({entry.role})   key {key_fingerprint(entry.public_key)}")
        if not typer.confirm(f"Remove {name}?"):
            _say_result("removed", [], chain, folder / MEMBERS, as_json=as_json)
            return
    grown = chain.extend([entry])
    write_members(folder / MEMBERS, grown)
    _say_result("removed", [name], grown, folder / MEMBERS, as_json=as_json)


@app.command()
def show(
    file: Annotated[Path, typer.Argument(help="A member list, a file of requests, or a root's folder.")],
    root: Annotated[str, typer.Option("--root", help="The public key that the root must have.")] = "",
    history: Annotated[bool, typer.Option("--history", help="Every entry, and not just who is a member now.")] = False,
    as_json: _Json = False,
) -> None:
    """Check a file that travels between coordinator and root, and show what it says."""
    from wire import Requests, parse_public_key, read_members_or_requests
    from wire.root import MEMBERS

    path = file.expanduser()
    content = read_members_or_requests(path / MEMBERS if path.is_dir() else path)
    if root:
        _check_root(content.root, parse_public_key(root, "--root"), str(file))
    if isinstance(content, Requests):
        _show_requests(content, as_json=as_json)
    else:
        _show_members(content, history=history, as_json=as_json)


def _open(folder: Path) -> tuple[FederationRoot, MemberList]:
    """The root's key, and the list that it has signed so far."""
    from wire import load_root, read_members
    from wire.root import MEMBERS

    chain = read_members(folder / MEMBERS)
    key = load_root(folder, chain.federation)
    _check_root(chain.root, key.public, str(folder / MEMBERS))
    return key, chain


def _check_root(found: bytes, expected: bytes, source: str) -> None:
    from privacy.secure_aggregation.identities import key_fingerprint
    from wire import RefusedError

    if found != expected:
        raise RefusedError(
            "root-mismatch",
            f"{source} is for the federation root {key_fingerprint(found)}, not for {key_fingerprint(expected)}",
            "Is this the right file, and the right root?",
        )


def _check_requests(asked: Requests, chain: MemberList, folder: Path) -> None:
    """Whether the requests come from a coordinator whose list is the beginning of this root's."""
    from wire import RefusedError
    from wire.root import MEMBERS

    _check_root(asked.root, chain.root, "the file of requests")
    if asked.federation != chain.federation:
        raise RefusedError(
            "members-federation",
            f"the requests are for federation {asked.federation!r}, and this is the root of {chain.federation!r}",
        )
    end = asked.end
    if end.count > chain.count or (end.count and chain.entries[end.count - 1].hash != end.head):
        raise RefusedError(
            "members-fork",
            f"the coordinator's list ({end.count} entries) is not the beginning of {folder / MEMBERS} "
            f"({chain.count} entries)",
            "A root that signs two histories splits the federation. Is this the folder's newest copy? If so, put the "
            "coordinator's list in its place: fedloom coordinator members --out members.json.",
        )


def _chosen(asked: Requests, only: list[str]) -> list[MemberRequest]:
    from wire import ConfigError

    missing = sorted(set(only) - {request.name for request in asked.requests})
    if missing:
        raise ConfigError(
            f"nobody called {', '.join(missing)} asks in this file",
            f"In it are: {', '.join(request.name for request in asked.requests) or 'none'}.",
        )
    return [request for request in asked.requests if not only or request.name in only]


def _entries(key: FederationRoot, chain: MemberList, request: MemberRequest, valid_until: int) -> list[MemberEntry]:
    """What makes this request's key the member's: an entry that adds, and before it one that removes an older key."""
    from wire import as_refusal

    found = []
    with as_refusal():
        if request.name in chain.members():
            found.append(key.remove(chain, request.name))
            chain = chain.extend(found)
        found.append(key.add(chain, request.role, request.name, request.public_key, valid_until))
    return found


def _no_questions_in_json(*, yes: bool, as_json: bool) -> None:
    from wire import ConfigError

    if as_json and not yes:
        raise ConfigError(
            "with --json nothing can be asked",
            "Compare the fingerprints (fedloom federation show FILE), then add --yes.",
        )


def _show_request(request: MemberRequest, chain: MemberList) -> None:
    from privacy.secure_aggregation.identities import key_fingerprint

    typer.echo(f"{request.name} ({request.role})   key {key_fingerprint(request.public_key)}")
    known = chain.members().get(request.name)
    if known is not None and known.public_key == request.public_key:
        typer.echo("  is a member already; its certificate gets another end")
    elif known is not None:
        typer.echo(f"  takes the place of key {key_fingerprint(known.public_key)}")


def _say_result(what: str, names: list[str], chain: MemberList, path: Path, *, as_json: bool) -> None:
    if as_json:
        _print({what: names, "total": chain.count, "head": chain.head.hex(), "file": str(path)})
        return
    if not names:
        typer.echo("Nothing was signed.")
        return
    typer.echo(f"{what.capitalize()}: {', '.join(names)}. Entries in the member list: {chain.count}.")
    typer.echo(f"Bring a copy of {path} to the coordinator:  fedloom coordinator members --import {path.name}")


def _show_requests(asked: Requests, *, as_json: bool) -> None:
    rows = [member_row(request.name, request.role, request.public_key) for request in asked.requests]
    if as_json:
        _print(
            {
                "federation": asked.federation,
                "root": asked.root.hex(),
                "total": asked.end.count,
                "head": asked.end.head.hex(),
                "requests": rows,
            }
        )
        return
    _headline(asked.federation, asked.root, f"asking to be certified: {len(rows)}")
    for row in rows:
        echo_member(row)


def _show_members(chain: MemberList, *, history: bool, as_json: bool) -> None:
    rows = [
        {**member_row(item.name, item.role, item.public_key), "valid_until": item.valid_until}
        for item in sorted(chain.members().values(), key=lambda item: item.name)
    ]
    entries = [
        {
            "index": item.index,
            "action": str(item.action),
            **member_row(item.name, item.role, item.public_key),
            "valid_until": item.valid_until,
        }
        for item in chain.entries
    ]
    if as_json:
        body = {
            "federation": chain.federation,
            "root": chain.root.hex(),
            "total": chain.count,
            "head": chain.head.hex(),
            "members": rows,
        }
        _print({**body, "entries": entries} if history else body)
        return
    _headline(chain.federation, chain.root, f"members: {len(rows)}, entries: {chain.count}")
    typer.echo(f"head          {chain.head.hex()}")
    for entry in entries if history else ():
        echo_member(entry, f"{entry['index']:>6}  {entry['action']:<7}")
    for row in () if history else rows:
        echo_member(row, until=row["valid_until"])


def _headline(federation: str, root: bytes, text: str) -> None:
    from privacy.secure_aggregation.identities import key_fingerprint

    typer.echo(f"Federation {federation}: {text}")
    typer.echo(f"root          {root.hex()}")
    typer.echo(f"fingerprint   {key_fingerprint(root)}")


def member_row(name: str, role: str, public_key: bytes) -> dict[str, Any]:
    """A member for ``--json``."""
    from privacy.secure_aggregation.identities import key_fingerprint

    return {
        "name": name,
        "role": str(role),
        "public_key": public_key.hex(),
        "fingerprint": key_fingerprint(public_key),
    }


def echo_member(row: Mapping[str, Any], before: str = " ", until: int = 0, after: str = "") -> None:
    """A member as a line for a person."""
    from coordinator.status import rfc3339

    end = f"  until {rfc3339(until)}" if until else ""
    typer.echo(f"{before} {row['name']:<24} {row['role']:<12} {row['fingerprint']}{end}{after}")


def _print(body: dict[str, Any]) -> None:
    typer.echo(json.dumps(body, sort_keys=True))
