"""Starting a coordinator: state folder, certificates, ports, and the run that the configuration asks for."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import functools
import logging
import time
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Final

import grpc

from coordinator import status
from coordinator.daemon import Daemon
from coordinator.hub import Hub
from coordinator.membership import Membership, open_membership
from coordinator.metrics import MetricsEndpoint, serve_metrics
from coordinator.planning import make_plan, next_run_id, run_records, same_run
from coordinator.services import ControlService, EnrolmentService, NamedErrors, PeerLimit, SessionService
from coordinator.services.blob_policy import HubPolicy
from coordinator.store import Run, open_store
from protos import blobs_pb2_grpc, control_pb2, control_pb2_grpc, enrolment_pb2_grpc, session_pb2_grpc
from wire import (
    BlobService,
    BlobStore,
    ConfigError,
    Credentials,
    FederationCA,
    FederationConfig,
    Listener,
    Role,
    RunPlan,
    enrolment_credentials,
    join_address,
    serve,
    server_credentials,
)

_log = logging.getLogger("fedloom.coordinator")

DATABASE: Final = "coordinator.sqlite"
BLOBS: Final = "blobs"
CA: Final = "ca"
OPERATOR: Final = "operator"
ADDRESS: Final = "address"

_OPERATOR_DAYS: Final = 3650.0
_GRACE_S: Final = 0.5


@dataclasses.dataclass(frozen=True)
class Coordinator:
    """A listening coordinator."""

    daemon: Daemon
    config: FederationConfig
    membership: Membership
    session: Listener
    enrolment: Listener
    first_run: bool
    metrics: MetricsEndpoint | None = None


@contextlib.asynccontextmanager
async def coordinator(config: FederationConfig, state: Path) -> AsyncIterator[Coordinator]:
    """Open (or make) the state folder and listen on all ports; stop on leaving.

    The run isn't open yet: see :func:`open_run`. Participants that connect before wait for it.

    Raises:
        FedloomError: the folder, its contents or a port can't be used.
    """
    ca, first_run = _authority(config.federation.name, state)
    store = open_store(state / DATABASE)
    blobs = BlobStore(state / BLOBS, reserve_bytes=config.coordinator.reserve_mb << 20)
    settings = config.coordinator
    daemon = Daemon(store, blobs, lease_s=settings.lease_s, outbox_bytes=settings.peer_outbox_mb << 20)
    own = ca.issue_server([settings.host, settings.public_host])
    async with contextlib.AsyncExitStack() as stack:
        stack.callback(store.close)
        stack.push_async_callback(daemon.close)
        membership = open_membership(config, state, store)
        membership.on_growth = functools.partial(_announce_members, daemon)

        session_address: asyncio.Future[str] = asyncio.get_running_loop().create_future()
        days = settings.certificate_days
        newcomers = EnrolmentService(store, ca, membership, session_address=session_address, certificate_days=days)
        enrolment = await serve(
            settings.host,
            settings.enrolment_port,
            enrolment_credentials(own),
            lambda server: enrolment_pb2_grpc.add_EnrolmentServicer_to_server(newcomers, server),
            interceptors=[PeerLimit(settings.peer_calls), NamedErrors(store)],
            max_calls=settings.max_calls,
        )
        stack.push_async_callback(enrolment.stop, _GRACE_S)
        control = ControlService(
            daemon,
            ca,
            membership,
            enrolment_address=join_address(settings.public_host, enrolment.port),
            invitation_ttl_s=settings.invitation_ttl_s,
        )

        def register(server: grpc.aio.Server) -> None:
            sessions = SessionService(daemon, ca, certificate_days=days, messages_per_s=settings.peer_messages_per_s)
            session_pb2_grpc.add_SessionServicer_to_server(sessions, server)
            transfers = BlobService(
                blobs,
                HubPolicy(daemon),
                quota_bytes=settings.peer_upload_mb << 20,
                max_transfers=settings.peer_transfers,
            )
            blobs_pb2_grpc.add_BlobsServicer_to_server(transfers, server)
            control_pb2_grpc.add_ControlServicer_to_server(control, server)

        session = await serve(
            settings.host,
            settings.port,
            server_credentials(own),
            register,
            interceptors=[PeerLimit(settings.peer_calls), NamedErrors(store)],
            max_calls=settings.max_calls,
        )
        stack.push_async_callback(session.stop, _GRACE_S)
        session_address.set_result(join_address(settings.public_host, session.port))
        (state / ADDRESS).write_text(join_address(_reachable(settings.host), session.port) + "\n", encoding="utf-8")
        metrics = None
        if settings.metrics_port is not None:
            present = functools.partial(_present, daemon, membership)
            metrics = await stack.enter_async_context(serve_metrics(settings.metrics_port, present))
        yield Coordinator(daemon, config, membership, session, enrolment, first_run, metrics)


def _present(daemon: Daemon, membership: Membership) -> control_pb2.Status:
    return status.present(daemon, membership, time.time())


def _announce_members(daemon: Daemon) -> None:
    """The member list has grown: tell everyone who is connected."""
    if daemon.hub is not None:
        daemon.perform(daemon.hub.members_grew())


async def open_run(
    running: Coordinator,
    state: Path,
    make_initial: Callable[[Path], Path],
    *,
    metrics: tuple[str, ...] = (),
    new_run: bool = False,
) -> RunPlan:
    """Go on with the latest run, or begin the one that the configuration describes.

    Args:
        running: The listening coordinator.
        state: Its folder.
        make_initial: Given a path to write to, returns the checkpoint file of version 0. Called in a worker thread,
        and only
            for a new run.
        metrics: Names of the metrics that the task reports.
        new_run: Begin a new run although the latest one isn't over or would do.

    Raises:
        ConfigError: the configuration has changed since the latest run began.
    """
    store, blobs, config = running.daemon.store, running.daemon.blobs, running.config
    runs = store.runs()
    latest = runs[-1] if runs else None
    if latest is not None and not new_run:
        plan = _latest_plan(latest, config)
    else:
        run_id = next_run_id(config.federation.name, latest)
        path = await asyncio.to_thread(make_initial, state / "initial.safetensors")
        plan = await asyncio.to_thread(make_plan, config, run_id, path, metrics)
        await asyncio.to_thread(blobs.put_file, path)
        store.create_run(*run_records(plan, time.time()))
    lease_s = config.coordinator.lease_s
    hub = Hub(store, plan, running.membership, lease_s=lease_s, now_s=time.time())
    for text in (plan.visibility, hub.guarantee):
        _log.info("%s", text, extra={"run": plan.run_id})
    running.daemon.open(hub)
    return plan


def _latest_plan(latest: Run, config: FederationConfig) -> RunPlan:
    plan = RunPlan.parse(latest.plan)
    changed = same_run(config, plan)
    if changed:
        raise ConfigError(
            f"the configuration no longer describes run {latest.run_id}: [{'], ['.join(changed)}] changed",
            "A run's plan never changes. Put the old values back, or begin a new run with --new-run.",
        )
    return plan


def _authority(federation: str, state: Path) -> tuple[FederationCA, bool]:
    """The federation's CA and the operator's certificate, made on the first start."""
    folder = state / CA
    if (folder / "ca.pem").exists():
        ca = FederationCA.load(folder)
        if ca.federation != federation:
            raise ConfigError(
                f"the state folder {state} belongs to federation {ca.federation!r}, not to {federation!r}",
                "Set [federation] name back, or give the new federation another [coordinator] state folder.",
            )
        return ca, False
    ca = FederationCA.create(federation)
    ca.issue_client("operator", Role.OPERATOR, _OPERATOR_DAYS).save(state / OPERATOR)
    ca.save(folder)
    return ca, True


def operator_credentials(state: Path) -> tuple[str, Credentials]:
    """The address of the coordinator that runs from this state folder, and the operator's credentials.

    Raises:
        ConfigError: no coordinator was ever started from it.
    """
    try:
        address = (state / ADDRESS).read_text(encoding="utf-8").strip()
    except OSError:
        raise ConfigError(
            f"no coordinator was started from {state} yet",
            "Start it (fedloom coordinator start), or name its folder with --state or --config.",
        ) from None
    return address, Credentials.load(state / OPERATOR)


def _reachable(host: str) -> str:
    """Where the operator on this machine finds a server that listens on ``host``."""
    return {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(host, host)
