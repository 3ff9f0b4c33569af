"""``fedloom coordinator``: run the federation."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Protocol, TypeVar

import typer

if TYPE_CHECKING:
    import grpc

    from coordinator.member_exchange import Fetched
    from coordinator.serving import Coordinator
    from protos import control_pb2, control_pb2_grpc
    from wire import FederationConfig

_T = TypeVar("_T")

app = typer.Typer(no_args_is_help=True, help="Run the federation.", add_completion=False)

_DEFAULT_CONFIG = Path("federation.toml")
_Config = Annotated[Path, typer.Option("--config", "-c", help="The federation's configuration.")]
_State = Annotated[
    Path | None, typer.Option("--state", help="The coordinator's folder, instead of the configured one.")
]
_Json = Annotated[bool, typer.Option("--json", help="Print JSON, one object a line.")]


class Learning(Protocol):
    """What the front door lends: the coordinator itself knows nothing of models (see ``fedloom.py``)."""

    def check(self, config: FederationConfig, source: str) -> FederationConfig:
        """The configuration with its learning tables validated and completed with defaults."""

    def metrics(self, config: FederationConfig) -> tuple[str, ...]:
        """Names of the metrics that the task reports."""

    def make_initial(self, config: FederationConfig, path: Path) -> Path:
        """Have version 0 of the model made, in another process, and return its file."""


@app.command()
def start(
    context: typer.Context,
    config: _Config = _DEFAULT_CONFIG,
    state: _State = None,
    new_run: Annotated[bool, typer.Option("--new-run", help="Begin a new run instead of going on.")] = False,
    once: Annotated[bool, typer.Option("--once", help="Exit when the run is over.")] = False,
    verbose: Annotated[bool, typer.Option("--verbose", help="Log more.")] = False,
    as_json: _Json = False,
) -> None:
    """Listen for participants and run the rounds, until stopped (Ctrl-C). The first start makes keys and state."""
    from wire import hold_folder, set_up_logging

    learning: Learning = context.find_root().obj
    settings = learning.check(_load(config), str(config))
    folder = state.expanduser() if state is not None else settings.coordinator.state
    set_up_logging(level="DEBUG" if verbose else "INFO", json_lines=as_json)
    with hold_folder(folder, "coordinator"):
        asyncio.run(_start(settings, folder, learning, new_run=new_run, once=once, as_json=as_json))


async def _start(
    settings: FederationConfig, folder: Path, learning: Learning, *, new_run: bool, once: bool, as_json: bool
) -> None:
    from coordinator.planning import check_merging
    from coordinator.serving import coordinator, open_run
    from wire import until_stopped

    check_merging(settings)  # before anyone is invited to a federation that can't begin

    async def work() -> None:
        async with coordinator(settings, folder) as running:
            _announce(running, folder, as_json=as_json)
            plan = await open_run(
                running,
                folder,
                lambda path: learning.make_initial(settings, path),
                metrics=learning.metrics(settings),
                new_run=new_run,
            )
            if as_json:
                _print({"event": "run", "run": plan.run_id, "plan_hash": plan.hash.hex()})
            failing = asyncio.ensure_future(running.daemon.failed())
            ending = asyncio.ensure_future(_run_over(running, once=once))
            await asyncio.wait({failing, ending}, return_when=asyncio.FIRST_COMPLETED)
            failing.cancel()
            ending.cancel()
            if failing.done() and not failing.cancelled():
                failing.result()

    await until_stopped(work())


async def _run_over(running: Coordinator, *, once: bool) -> None:
    """Return when the run is over and everyone had a moment to hear it; never if the daemon is to stay."""
    hub = await running.daemon.opened()
    while not once or hub.machine.state.finished is None:
        await running.daemon.wait_changed(60.0)
    await asyncio.sleep(1.0)


def _announce(running: Coordinator, folder: Path, *, as_json: bool) -> None:
    name = running.config.federation.name
    if as_json:
        _print(
            {
                "event": "listening",
                "federation": name,
                "session": running.session.address,
                "enrolment": running.enrolment.address,
                "state": str(folder),
                "metrics": running.metrics.url if running.metrics is not None else None,
                "root": running.membership.members.root.hex(),
                "root_here": running.membership.root_here,
            }
        )
        return
    if running.first_run:
        typer.echo(f"Made the keys of federation {name} in {folder}. Back this folder up.")
    typer.echo(f"Federation {name}: sessions on {running.session.address}, enrolment on {running.enrolment.address}")
    if running.metrics is not None:
        typer.echo(f"Metrics on {running.metrics.url}, for this machine only.")
    typer.echo(running.membership.describe())
    typer.echo("Invite sites from another terminal:  fedloom coordinator invite NAME [NAME ...]")


@app.command()
def invite(
    names: Annotated[list[str], typer.Argument(help="Names of the sites: letters, digits and dashes.")],
    config: _Config = _DEFAULT_CONFIG,
    state: _State = None,
    ttl_s: Annotated[float, typer.Option("--ttl", help="Seconds that a token is valid.")] = 0.0,
    as_json: _Json = False,
) -> None:
    """Print a one-time token for each site. Send it over a channel you trust; it works once."""
    from protos import control_pb2 as pb

    async def ask(stub: control_pb2_grpc.ControlAsyncStub) -> control_pb2.InviteReply:
        return await stub.Invite(pb.InviteRequest(names=names, ttl_s=ttl_s))

    reply = _call(config, state, ask)
    for item in reply.invitations:
        if as_json:
            _print({"name": item.name, "token": item.token, "expires": item.expires})
        else:
            typer.echo(f"{item.name} (until {item.expires}):\n  fedloom participant join {item.token} --data PATH")


@app.command()
def status(config: _Config = _DEFAULT_CONFIG, state: _State = None, as_json: _Json = False) -> None:
    """Show the run, the round, and each participant."""
    from protos import control_pb2 as pb

    async def ask(stub: control_pb2_grpc.ControlAsyncStub) -> control_pb2.Status:
        return await stub.GetStatus(pb.StatusRequest())

    from coordinator import display

    reply = _call(config, state, ask)
    if as_json:
        _print(display.as_dict(reply))
    else:
        display.show(reply)


@app.command()
def watch(config: _Config = _DEFAULT_CONFIG, state: _State = None, as_json: _Json = False) -> None:
    """Follow the run until it is over, or Ctrl-C."""
    from coordinator import display
    from protos import control_pb2 as pb

    async def follow(stub: control_pb2_grpc.ControlAsyncStub) -> None:
        with display.Follower(as_json=as_json) as follower:
            async for reply in stub.Watch(pb.StatusRequest()):
                follower.update(reply)
                if reply.state == "finished":
                    return

    _call(config, state, follow)


@app.command()
def revoke(
    name: Annotated[str, typer.Argument(help="The participant to shut out.")],
    reason: Annotated[str, typer.Option("--reason", help="Why; the participant is told.")] = "",
    config: _Config = _DEFAULT_CONFIG,
    state: _State = None,
    as_json: _Json = False,
) -> None:
    """Shut a participant out, at once. Invite it again to let it back in, with a new key."""
    from protos import control_pb2 as pb

    async def ask(stub: control_pb2_grpc.ControlAsyncStub) -> control_pb2.RevokeReply:
        return await stub.Revoke(pb.RevokeRequest(name=name, reason=reason))

    reply = _call(config, state, ask)
    if as_json:
        _print({"name": reply.name, "was_connected": reply.was_connected})
    else:
        typer.echo(f"{reply.name} is revoked{' and its stream closed' if reply.was_connected else ''}.")


@app.command()
def members(
    pending: Annotated[bool, typer.Option("--pending", help="Only who waits for the root's signature.")] = False,
    out: Annotated[
        Path | None,
        typer.Option("--out", help="Write a file: the member list, or with --pending the requests for the root."),
    ] = None,
    signed: Annotated[
        Path | None, typer.Option("--import", help="Take over the member list that the root's keeper has signed.")
    ] = None,
    config: _Config = _DEFAULT_CONFIG,
    state: _State = None,
    as_json: _Json = False,
) -> None:
    """Show whom the federation root has certified, and carry files to and from a root that is kept apart."""
    from coordinator import member_exchange
    from wire import ConfigError, read_members, write_members, write_requests

    if signed is not None:
        if pending or out is not None:
            raise ConfigError("--import goes with neither --pending nor --out", "Give one command for each.")
        chain = read_members(signed)
        reply = _call(config, state, lambda stub: member_exchange.send(stub, chain))
        _say_imported(reply, as_json=as_json)
        return
    fetched = _call(config, state, member_exchange.fetch)
    if out is not None and pending and fetched.requests.requests:
        write_requests(out, fetched.requests)
    elif out is not None and not pending:
        write_members(out, fetched.members)
    _show_members(fetched, out, pending=pending, as_json=as_json)


def _say_imported(reply: control_pb2.ImportMembersReply, *, as_json: bool) -> None:
    if as_json:
        _print({"added": reply.added, "total": reply.total, "pending": list(reply.pending)})
        return
    typer.echo(f"New entries: {reply.added}; in the member list: {reply.total}. Connected sites are told.")
    if reply.pending:
        typer.echo(f"Still not certified: {', '.join(reply.pending)}.")


def _show_members(fetched: Fetched, out: Path | None, *, pending: bool, as_json: bool) -> None:
    from coordinator.federation_cli import echo_member, member_row

    chain, waiting = fetched.members, fetched.requests.requests
    asking = [member_row(item.name, item.role, item.public_key) for item in waiting]
    written = str(out) if out is not None and (waiting or not pending) else None
    listed = [
        {**member_row(item.name, item.role, item.public_key), "valid_until": item.valid_until}
        for item in sorted(chain.members().values(), key=lambda item: item.name)
    ]
    if as_json:
        body = {
            "federation": chain.federation,
            "root": chain.root.hex(),
            "root_here": fetched.root_here,
            "total": chain.count,
            "head": chain.head.hex(),
            "pending": asking,
            "file": written,
        }
        _print(body if pending else {**body, "members": listed})
        return
    for row in () if pending else listed:
        echo_member(row, until=row["valid_until"])
    for row in asking:
        echo_member(row, after="  pending")
    if pending and not asking:
        typer.echo("Nobody waits for the root's signature.")
    if written is not None:
        typer.echo(f"Written to {written}.")
    if written is not None and pending:
        typer.echo(f"The root's keeper signs it with:  fedloom federation certify {out} --root DIR")


@app.command()
def stop(config: _Config = _DEFAULT_CONFIG, state: _State = None, as_json: _Json = False) -> None:
    """End the run now. Committed versions stay, the daemon goes on; a new run begins with: start --new-run."""
    from protos import control_pb2 as pb

    async def ask(stub: control_pb2_grpc.ControlAsyncStub) -> control_pb2.StopReply:
        return await stub.Stop(pb.StopRequest())

    reply = _call(config, state, ask)
    if as_json:
        _print({"run": reply.run_id, "version": reply.version})
    else:
        typer.echo(f"Run {reply.run_id} is stopped; version {reply.version} is final.")


@app.command()
def export(
    out: Annotated[Path, typer.Argument(help="The file to write, in safetensors format.")],
    version: Annotated[int | None, typer.Option("--version", min=0, help="Which; the last if not given.")] = None,
    config: _Config = _DEFAULT_CONFIG,
    state: _State = None,
    as_json: _Json = False,
) -> None:
    """Write a version of the global model to a file, with the run's plan beside it."""
    from coordinator import exporting

    async def fetch(stub: control_pb2_grpc.ControlAsyncStub, channel: grpc.aio.Channel) -> control_pb2.ExportReply:
        return await exporting.export(stub, channel, out, version)

    reply = _call_channel(config, state, fetch)
    result = {"run": reply.run_id, "version": reply.version, "file": str(out), "sha256": reply.model.digest.hex()}
    if as_json:
        _print(result)
    else:
        typer.echo(f"Version {reply.version} of run {reply.run_id} is in {out} (sha256 {result['sha256']}).")


@app.command("verify-log")
def verify_log(config: _Config = _DEFAULT_CONFIG, state: _State = None, as_json: _Json = False) -> None:
    """Verify the log of secure sums on this disk, and recompute the sums whose masked updates are still kept."""
    from coordinator.auditing import verify_log as verify

    folder = state.expanduser() if state is not None else _load(config).coordinator.state
    found = verify(folder)
    if as_json:
        rounds = [
            {"run": run, "round": number, "participants": sorted(sum(groups, ())), "groups": groups}
            for run, number, groups in found.recomputed
        ]
        _print({"lines": found.lines, "head": found.head, "recomputed": rounds, "not_kept": found.not_kept})
        return
    typer.echo(f"The log has {found.lines} lines; every signature holds and each line names the one before it.")
    for run, number, groups in found.recomputed:
        if len(groups) == 1:
            typer.echo(f"  {run} round {number}: the sum over {', '.join(groups[0])} is right, bit for bit.")
        else:
            shown = ", ".join("+".join(names) for names in groups)
            typer.echo(f"  {run} round {number}: the {len(groups)} sums over {shown} are right, bit for bit.")
    if found.not_kept:
        typer.echo(f"  {found.not_kept} older rounds can't be recomputed any more: their uploads aren't kept.")


def _load(config: Path) -> FederationConfig:
    from wire import ConfigError, load_federation

    if not config.exists():
        raise ConfigError(
            f"there is no {config} here", "Write one with: fedloom init   (or name yours with --config PATH)"
        )
    return load_federation(config)


def _call(config: Path, state: Path | None, work: Callable[[control_pb2_grpc.ControlAsyncStub], Awaitable[_T]]) -> _T:
    """Ask the running coordinator one thing, as the operator."""

    async def on_channel(stub: control_pb2_grpc.ControlAsyncStub, _: grpc.aio.Channel) -> _T:
        return await work(stub)

    return _call_channel(config, state, on_channel)


def _call_channel(
    config: Path,
    state: Path | None,
    work: Callable[[control_pb2_grpc.ControlAsyncStub, grpc.aio.Channel], Awaitable[_T]],
) -> _T:
    import grpc

    from coordinator.serving import operator_credentials
    from protos import control_pb2_grpc as stubs
    from wire import client_credentials, connect, error_from

    folder = state.expanduser() if state is not None else _load(config).coordinator.state
    address, credentials = operator_credentials(folder)

    async def call() -> _T:
        async with connect(address, client_credentials(credentials), credentials.identity.federation) as channel:
            try:
                return await work(stubs.ControlStub(channel), channel)
            except grpc.aio.AioRpcError as error:
                raise error_from(error) from None

    return asyncio.run(call())


def _print(body: dict[str, Any]) -> None:
    typer.echo(json.dumps(body, sort_keys=True))
