"""Many participants in one process, for `benchmarks.faults`: real certificates, TLS and streams, nothing trained.

    python -m benchmarks.light_clients SPEC.json

Each has a connection of its own with its own certificate, checks in, keeps its lease, fetches the version that a task
names, waits for as long as a training would take, uploads an update of noise and announces it. The parent writes
commands to the standard input, one a line, and reads answers as JSON lines:

- ``connect``: everyone connects and checks in; answers with the seconds that each took.
- ``work SECONDS``: from now on a training takes so long on average, half to one and a half times as long as drawn.
- ``report``: answers with what happened since the last report.
"""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import hashlib
import json
import random
import sys
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any, Final, Self

import grpc
import numpy as np

from protos import blobs_pb2, blobs_pb2_grpc, session_pb2_grpc
from protos import session_pb2 as pb
from wire import PROTOCOL_VERSION, Credentials, RunPlan, client_credentials, connect, error_from

_AT_A_TIME: Final = 64  # connections that one process makes at the same time
_EXAMPLES: Final = 8
_EOF: Final[Any] = vars(grpc.aio)["EOF"]  # which the type stubs don't know


@dataclasses.dataclass
class Crowd:
    """What the participants of this process share, and what they count.

    Attributes:
        address: Of the coordinator's session port.
        federation: Its name.
        members: Entries of the member list that everyone has already.
        train_s: Mean seconds of a training; None before there is any.
    """

    address: str
    federation: str
    members: int
    train_s: float | None = None
    started: asyncio.Event = dataclasses.field(default_factory=asyncio.Event)
    announced: dict[int, list[float]] = dataclasses.field(default_factory=dict)
    receipts_s: list[float] = dataclasses.field(default_factory=list)
    refused: dict[str, int] = dataclasses.field(default_factory=dict)
    broken: int = 0

    def report(self) -> dict[str, Any]:
        """What happened since the last report: when each version was heard of, and how long receipts took."""
        found = {
            "announced": {version: sorted(times) for version, times in self.announced.items()},
            "receipts_s": self.receipts_s,
            "refused": self.refused,
            "broken": self.broken,
        }
        self.announced, self.receipts_s, self.refused = {}, [], {}
        return found


class LightClient:
    """One participant.

    Args:
        crowd: What it shares with the others.
        credentials: Its own.
    """

    def __init__(self, crowd: Crowd, credentials: Credentials) -> None:
        self._crowd = crowd
        self._channel = connect(crowd.address, client_credentials(credentials), crowd.federation)
        self._blobs = blobs_pb2_grpc.BlobsStub(self._channel)
        self._stream: Any = None
        self._random = random.Random(credentials.identity.name)
        self._noise = np.random.default_rng(self._random.getrandbits(64))
        self._plan: RunPlan | None = None
        self._lease_s = 10.0
        self._said: dict[str, float] = {}  # when each update was announced
        self._work: asyncio.Task[None] | None = None
        self._base = b""
        self._saying = asyncio.Lock()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._channel.close(None)

    async def check_in(self) -> float:
        """Connect and check in; returns the seconds until the welcome."""
        started = time.perf_counter()
        attach: Any = session_pb2_grpc.SessionStub(self._channel).Attach
        self._stream = attach()
        check_in = pb.CheckIn(protocol_version=PROTOCOL_VERSION, software="light", members=self._crowd.members)
        await self._stream.write(pb.FromParticipant(check_in=check_in))
        while True:
            message = await self._stream.read()
            if message is _EOF:
                raise RuntimeError(f"the stream ended: {await self._stream.code()} {await self._stream.details()}")
            if message.WhichOneof("body") == "welcome":
                self._plan, self._lease_s = RunPlan.parse(message.welcome.plan), message.welcome.lease_s
                return time.perf_counter() - started

    async def live(self) -> None:
        """Take part until the stream ends."""
        beating = asyncio.create_task(self._beat())
        try:
            reading = asyncio.create_task(self._read())
            await self._crowd.started.wait()
            assert self._plan is not None
            ready = pb.Ready(
                plan_hash=self._plan.hash,
                manifest_hash=bytes.fromhex(self._plan.initial.manifest_hash),
                examples=_EXAMPLES,
            )
            await self._say(pb.FromParticipant(ready=ready))
            await reading
        except Exception as error:
            print(f"{type(error).__name__}: {error}", file=sys.stderr)
        finally:
            beating.cancel()
            if self._work is not None:
                self._work.cancel()
            self._crowd.broken += 1

    async def _say(self, message: pb.FromParticipant) -> None:
        async with self._saying:  # a stream takes one message at a time
            await self._stream.write(message)

    async def _beat(self) -> None:
        await asyncio.sleep(self._random.uniform(0.0, self._lease_s / 4))
        while True:
            await self._say(pb.FromParticipant(progress=pb.Progress(stage="training")))
            await asyncio.sleep(self._lease_s / 4)

    async def _read(self) -> None:
        while (message := await self._stream.read()) is not _EOF:
            body = message.WhichOneof("body")
            if body == "task":
                if self._work is not None:
                    self._work.cancel()
                self._work = asyncio.create_task(self._train(message.task))
            elif body == "committed":
                self._crowd.announced.setdefault(message.committed.version, []).append(time.time())
            elif body == "receipt":
                self._receipt(message.receipt)
            elif body == "rejection":
                self._count(message.rejection.code)

    def _receipt(self, receipt: pb.Receipt) -> None:
        said = self._said.pop(receipt.task_id, None)
        if said is not None:
            self._crowd.receipts_s.append(time.perf_counter() - said)
        if not receipt.accepted:
            self._count(receipt.code)

    def _count(self, code: str) -> None:
        self._crowd.refused[code] = self._crowd.refused.get(code, 0) + 1

    async def _train(self, task: pb.Task) -> None:
        assert self._plan is not None and self._crowd.train_s is not None
        if task.base.digest != self._base:
            request = blobs_pb2.BlobDownloadRequest(digest=task.base.digest)
            received = b"".join([chunk.data async for chunk in self._blobs.Download(request)])
            if hashlib.sha256(received).digest() != task.base.digest:
                raise RuntimeError("the version isn't what its name says")
            self._base = task.base.digest
        await asyncio.sleep(self._random.uniform(0.5, 1.5) * self._crowd.train_s)
        update = self._noise.standard_normal(self._plan.initial.dimension, np.float32).tobytes()
        digest = hashlib.sha256(update).digest()
        try:
            await self._blobs.Upload(_upload(digest, update))
        except grpc.aio.AioRpcError as error:
            self._count(error_from(error).code)
            return
        self._said[task.task_id] = time.perf_counter()
        blob = pb.Blob(digest=digest, size=len(update))
        ready = pb.UpdateReady(task_id=task.task_id, update=blob, examples=_EXAMPLES)
        await self._say(pb.FromParticipant(update_ready=ready))


async def _upload(digest: bytes, content: bytes) -> AsyncIterator[blobs_pb2.BlobUpload]:
    yield blobs_pb2.BlobUpload(header=blobs_pb2.BlobHeader(digest=digest, size=len(content)))
    yield blobs_pb2.BlobUpload(chunk=content)


async def run(spec: dict[str, Any]) -> None:
    """Follow the parent's commands until the standard input ends."""
    crowd = Crowd(spec["address"], spec["federation"], spec["members"])
    ca_pem = spec["ca"].encode()
    clients = [
        LightClient(
            crowd,
            Credentials(ca_pem=ca_pem, certificate_pem=item["certificate"].encode(), key_pem=item["key"].encode()),
        )
        for item in spec["sites"]
    ]
    lives: list[asyncio.Task[None]] = []
    lines = asyncio.StreamReader()
    await asyncio.get_running_loop().connect_read_pipe(lambda: asyncio.StreamReaderProtocol(lines), sys.stdin)
    _answer({"ready": len(clients)})
    while command := (await lines.readline()).decode().split():
        if command[0] == "connect":
            _answer({"check_in_s": await _connect(clients)})
            lives = [asyncio.create_task(client.live()) for client in clients]
        elif command[0] == "work":
            crowd.train_s = float(command[1])
            crowd.started.set()
            _answer({"training_s": crowd.train_s})
        else:
            _answer(crowd.report())
    for life in lives:
        life.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await asyncio.gather(*lives, return_exceptions=True)


async def _connect(clients: list[LightClient]) -> list[float]:
    gate = asyncio.Semaphore(_AT_A_TIME)

    async def one(client: LightClient) -> float:
        async with gate:
            return await client.check_in()

    return list(await asyncio.gather(*(one(client) for client in clients)))


def _answer(values: dict[str, Any]) -> None:
    sys.stdout.write(json.dumps(values) + "\n")
    sys.stdout.flush()


def main() -> None:
    """Run the participants of a specification."""
    asyncio.run(run(json.loads(Path(sys.argv[1]).read_text())))


if __name__ == "__main__":
    main()
