"""A live coordinator in this process, over real TLS on loopback, and puppets that say whatever a test wants."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
from collections.abc import AsyncIterator, Mapping
from pathlib import Path
from typing import Any

import grpc
import numpy as np
from safetensors.numpy import save_file

from coordinator.serving import Coordinator, coordinator, open_run, operator_credentials
from participant.joining import join
from participant.site import Site
from protos import blobs_pb2, blobs_pb2_grpc, control_pb2, control_pb2_grpc, session_pb2_grpc
from protos import session_pb2 as pb
from wire import PROTOCOL_VERSION, FederationConfig, RunPlan, Token, client_credentials, connect
from wire.transfer import GO_KEY

DIMENSION = 50_000


def settings(
    folder: Path,
    root: str | None = None,
    mode: str = "plain",
    merging: Mapping[str, object] | None = None,
    metrics_port: int | None = None,
    port: int = 0,
    asynchronous: bool = False,
    limits: Mapping[str, object] | None = None,
    **rounds: object,
) -> FederationConfig:
    """A federation of two on free ports; with the public key of a root, that root is apart. Limits are for peers."""
    if asynchronous:
        rounds["mode"] = "asynchronous"
    ports = {"port": port, "enrolment_port": 0, "metrics_port": metrics_port}
    limits = limits or {}
    table = {
        "federation": {"name": "stage", "root": root},
        "coordinator": {**ports, "state": folder / "state", "lease_s": 10.0, "reserve_mb": 0, **limits},
        "aggregation": {"mode": mode},
        "merging": merging or {},
        "rounds": {"count": 1, "min_participants": 2, "min_updates": 2, "evaluate_every": 0, **rounds},
    }
    return FederationConfig.model_validate(table)


class Stage:
    """The coordinator, its run, and the operator."""

    def __init__(self, folder: Path, running: Coordinator, plan: RunPlan) -> None:
        self.folder = folder
        self.running = running
        self.plan = plan
        self.state = running.config.coordinator.state

    async def invite(self, name: str, ttl_s: float = 0.0) -> Token:
        async with self.operator() as control:
            reply = await control.Invite(control_pb2.InviteRequest(names=[name], ttl_s=ttl_s))
        return Token.parse(reply.invitations[0].token)

    async def site(self, name: str) -> Site:
        """A joined site."""
        return await join(await self.invite(name), self.folder / name, data="nothing", allow_plain=True)

    @contextlib.asynccontextmanager
    async def operator(self) -> AsyncIterator[Any]:
        address, own = operator_credentials(self.state)
        async with connect(address, client_credentials(own), "stage") as channel:
            yield control_pb2_grpc.ControlStub(channel)

    async def status(self) -> control_pb2.Status:
        async with self.operator() as control:
            return await control.GetStatus(control_pb2.StatusRequest())

    @contextlib.asynccontextmanager
    async def puppet(self, site: Site) -> AsyncIterator[Puppet]:
        """A connection of this site, driven by hand."""
        credentials = client_credentials(site.credentials)
        async with connect(site.config.session_address, credentials, site.federation) as channel:
            puppet = Puppet(site.name, self.plan, channel)
            try:
                yield puppet
            finally:
                puppet.stream.cancel()


class Puppet:
    """A participant that does what it is told."""

    def __init__(self, name: str, plan: RunPlan, channel: grpc.aio.Channel) -> None:
        self.name = name
        self.plan = plan
        attach: Any = session_pb2_grpc.SessionStub(channel).Attach
        self.stream = attach()
        self.blobs: Any = blobs_pb2_grpc.BlobsStub(channel)

    async def say(self, **body: object) -> None:
        await self.stream.write(pb.FromParticipant(**body))

    async def hear(self, kind: str, timeout_s: float = 10.0) -> Any:
        """The next message of this kind; others are passed over."""
        async with asyncio.timeout(timeout_s):
            while True:
                message = await self.stream.read()
                if message is vars(grpc.aio)["EOF"]:
                    raise AssertionError(f"the stream ended before a {kind}")
                if message.WhichOneof("body") == kind:
                    return getattr(message, kind)

    async def ready(self, examples: int = 100) -> None:
        await self.say(check_in=pb.CheckIn(protocol_version=PROTOCOL_VERSION, software="puppet"))
        await self.hear("welcome")
        manifest = bytes.fromhex(self.plan.initial.manifest_hash)
        await self.say(ready=pb.Ready(plan_hash=self.plan.hash, manifest_hash=manifest, examples=examples))

    async def upload(self, content: bytes, *, digest: bytes | None = None, size: int | None = None) -> Any:
        """Upload as a client would, with a header that may lie."""
        name = digest if digest is not None else hashlib.sha256(content).digest()
        header = blobs_pb2.BlobHeader(digest=name, size=len(content) if size is None else size)

        call = self.blobs.Upload()
        await call.write(blobs_pb2.BlobUpload(header=header))
        if GO_KEY in dict(await call.initial_metadata() or ()):
            for start in range(0, len(content), 1 << 16):
                await call.write(blobs_pb2.BlobUpload(chunk=content[start : start + (1 << 16)]))
            await call.done_writing()
        return await call

    async def announce(self, task_id: str, content: bytes, examples: int = 10) -> None:
        blob = pb.Blob(digest=hashlib.sha256(content).digest(), size=len(content))
        await self.say(update_ready=pb.UpdateReady(task_id=task_id, update=blob, examples=examples))

    async def deliver(self, content: bytes) -> Any:
        """Take the next task and answer it with this update; the receipt."""
        task = await self.hear("task")
        await self.upload(content)
        await self.announce(task.task_id, content)
        return await self.hear("receipt")


def update(value: float = 0.5) -> bytes:
    return np.full(DIMENSION, value, "<f4").tobytes()


@contextlib.asynccontextmanager
async def stage(folder: Path, root: str | None = None, mode: str = "plain", **changes: Any) -> AsyncIterator[Stage]:
    """A coordinator with a run open: the last one of this folder, if it has one. ``changes`` as for `settings`."""
    config = settings(folder, root, mode, **changes)

    def initial(path: Path) -> Path:
        save_file({"w": np.zeros(DIMENSION, np.float32)}, path)
        return path

    state = config.coordinator.state
    async with coordinator(config, state) as running:
        plan = await open_run(running, state, initial)
        yield Stage(folder, running, plan)
