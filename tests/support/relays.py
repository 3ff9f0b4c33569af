"""A TCP relay on loopback that listens in and breaks connections in every way that real networks do.

It knows nothing of TLS: what it drops, delays or cuts are the bytes of real connections between real processes. Faults
are set while it runs, or come one after the other from a :class:`Plan`, whose seed makes them repeatable.
"""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import random
import socket
import struct
import threading
import time
from collections.abc import Callable, Iterable, Sequence
from typing import Any, TypeVar

UP = "up"
"""From who connects to the port that the relay stands for."""

DOWN = "down"
"""Back."""

BOTH = (UP, DOWN)

_PIECE_BYTES = 65_536
_QUEUED_PIECES = 64  # read and not passed on yet, of one direction of one connection
_BUFFER_BYTES = 65_536  # of the kernel's, so that who sends notices that nobody reads
_RESET = struct.pack("ii", 1, 0)  # SO_LINGER: on, 0 s; closing sends RST in place of FIN

T = TypeVar("T")


@dataclasses.dataclass
class Weather:
    """What happens to bytes on their way; the default is nothing.

    Attributes:
        delay_s: Each piece arrives so much later.
        jitter_s: And up to so much more, drawn for each piece. Within a connection order holds, as TCP's does; pieces
            of different connections overtake each other.
        bytes_per_s: Each direction of a connection is read no faster: a slow link, or a slow reader. None: no bound.
    """

    delay_s: float = 0.0
    jitter_s: float = 0.0
    bytes_per_s: float | None = None


@dataclasses.dataclass(frozen=True)
class Step:
    """One fault of a plan, for a while.

    Attributes:
        after_bytes: That came to the relay since the end of the step before: so a fault meets traffic, on any machine.
        kind: ``cut``, ``reset``, ``silence``, ``refuse``, ``delay``, ``slow`` or ``truncate``.
        lasts_s: How long it holds; a ``cut`` and a ``reset`` happen at once.
        directions: Of ``silence``: whose bytes are swallowed. Of ``truncate``: the one whose bytes count.
        amount: Seconds of ``delay`` (as much jitter comes on top), bytes a second of ``slow``, bytes of ``truncate``.
    """

    after_bytes: int
    kind: str
    lasts_s: float = 0.0
    directions: tuple[str, ...] = BOTH
    amount: float = 0.0


def plan(seed: int, *, kinds: Sequence[str], every_bytes: int, lasts_s: float) -> Iterable[Step]:
    """Faults without end, drawn from a seed.

    Args:
        seed: Of every draw.
        kinds: To draw from; naming one twice makes it twice as likely.
        every_bytes: Mean traffic between two; each is drawn between half of it and one and a half.
        lasts_s: Longest time that one holds.
    """
    chance = random.Random(seed)
    amounts = {"delay": (0.01, 0.3), "slow": (20_000.0, 200_000.0), "truncate": (1_000.0, 60_000.0)}
    while True:
        kind = chance.choice(kinds)
        yield Step(
            after_bytes=int(every_bytes * chance.uniform(0.5, 1.5)),
            kind=kind,
            lasts_s=chance.uniform(0.2, 1.0) * lasts_s,
            directions=chance.choice((BOTH, (UP,), (DOWN,))) if kind == "silence" else (chance.choice(BOTH),),
            amount=chance.uniform(*amounts.get(kind, (0.0, 0.0))),
        )


class _Link:
    """Two sockets that belong together."""

    def __init__(self, near: socket.socket) -> None:
        self.near = near
        self.far = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
        self.far.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, _BUFFER_BYTES)
        self.silent: set[str] = set()  # directions whose bytes are swallowed for good
        self.ended: set[socket.socket] = set()  # sides that have closed theirs
        self.reset = False
        self.task: asyncio.Task[None] | None = None
        for item in (self.near, self.far):
            item.setblocking(False)
            item.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)

    def cut(self, *, reset: bool) -> None:
        """End it; the sockets are closed once nobody waits on them."""
        self.reset = reset
        if self.task is not None:
            self.task.cancel()

    def close(self) -> None:
        for item in (self.near, self.far):
            with contextlib.suppress(OSError):
                if self.reset:
                    item.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET)
                else:
                    item.shutdown(socket.SHUT_RDWR)
            item.close()


class Relay:
    """Copies bytes between a free loopback port and another one. All methods may be called from any thread.

    Args:
        port: Where to.
        seen: Gets every byte of both directions.
        seed: Of the jitter.

    Attributes:
        address: Where to connect to.
        cuts: How often connections were cut or reset.
        up, down: Bytes that came to it from either side.
        said: The steps of plans that were carried out, with the seconds since the relay was made.
    """

    def __init__(self, port: int, seen: bytearray | None = None, *, seed: int = 0) -> None:
        self._port = port
        self._seen = seen
        self._left: int | None = None  # bytes until a cut
        self._counted = BOTH
        self._chance = random.Random(seed)
        self._weather = Weather()
        self._mark = 0  # of `passed`, at which the next step of a plan is due
        self._reached = asyncio.Event()
        self._silence: set[str] = set()
        self._links: set[_Link] = set()
        self._tasks: set[asyncio.Task[Any]] = set()
        self._began_s = time.monotonic()
        self.cuts = 0
        self.up = 0
        self.down = 0
        self.said: list[tuple[float, Step]] = []
        self._listener: socket.socket | None = _listener(0)
        self._own_port = self._listener.getsockname()[1]
        self.address = f"127.0.0.1:{self._own_port}"
        self._loop = asyncio.new_event_loop()
        self._accepting: asyncio.Task[None] | None = None
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)
        self._thread.start()
        self._do(self._listen)

    @property
    def passed(self) -> int:
        """Bytes that came to it, in both directions."""
        return self.up + self.down

    # ---- faults -----------------------------------------------------------------------------------------------------

    def cut(self, *, reset: bool = False) -> None:
        """End every connection now, with FIN or with RST."""
        self._do(lambda: self._cut(reset))

    def cut_after(self, count: int, direction: str | None = None) -> None:
        """Cut again after so many more bytes, of one direction or of both: in the middle of whatever is sent then."""

        def work() -> None:
            self._left, self._counted = count, (direction,) if direction else BOTH

        self._do(work)

    def silence(self, *directions: str) -> None:
        """Swallow every byte of these directions, also of new connections, and say nothing: no FIN, no RST.

        A connection that has lost bytes stays dead in that direction when the silence ends: it is half-open.
        """
        self._do(lambda: self._hush(directions))

    def speak(self) -> None:
        """End a silence, for new connections."""
        self._do(self._silence.clear)

    def refuse(self) -> None:
        """Refuse new connections (the port is closed) and reset those that are there."""
        self._do(self._refuse)

    def accept(self) -> None:
        """End a refusal."""
        self._do(self._listen)

    def weather(self, weather: Weather) -> None:
        """From now on."""

        def work() -> None:
            self._weather = weather

        self._do(work)

    def follow(self, steps: Iterable[Step]) -> Callable[[], None]:
        """Carry out a plan, step by step; what is returned ends it, and whatever of it holds."""
        task = self._do(lambda: self._spawn(self._follow(iter(steps))))

        def end() -> None:
            self._do(task.cancel)
            self._do(self._calm)

        return end

    def close(self) -> None:
        """Stop for good."""

        async def last() -> None:
            tasks = list(self._tasks)
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

        asyncio.run_coroutine_threadsafe(last(), self._loop).result(10)
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(10)
        self._loop.close()

    # ---- inside the loop --------------------------------------------------------------------------------------------

    def _do(self, work: Callable[[], T]) -> T:
        async def wrapped() -> T:
            return work()

        return asyncio.run_coroutine_threadsafe(wrapped(), self._loop).result(10)

    def _spawn(self, work: Any) -> asyncio.Task[Any]:
        task = self._loop.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task

    def _listen(self) -> None:
        if self._listener is None:
            self._listener = _listener(self._own_port)
        if self._accepting is None:
            self._accepting = self._spawn(self._accept(self._listener))

    def _refuse(self) -> None:
        if self._listener is not None and self._accepting is not None:
            self._accepting.cancel()
            self._accepting = self._listener = None
        self._cut(True)

    def _cut(self, reset: bool) -> None:
        self.cuts += bool(self._links)
        for link in self._links:
            link.cut(reset=reset)

    def _hush(self, directions: Iterable[str]) -> None:
        self._silence.update(directions)
        for link in self._links:
            link.silent.update(directions)

    def _calm(self) -> None:
        self._weather = Weather()
        self._silence.clear()
        self._left = None
        self._listen()

    async def _follow(self, steps: Iterable[Step]) -> None:
        for step in steps:
            self._mark = self.passed + step.after_bytes
            self._reached.clear()
            await self._reached.wait()
            self.said.append((round(time.monotonic() - self._began_s, 2), step))
            if step.kind in ("cut", "reset"):
                self._cut(step.kind == "reset")
                continue
            if step.kind == "silence":
                self._hush(step.directions)
            elif step.kind == "refuse":
                self._refuse()
            elif step.kind == "delay":
                self._weather = Weather(delay_s=step.amount, jitter_s=step.amount)
            elif step.kind == "slow":
                self._weather = Weather(bytes_per_s=step.amount)
            elif step.kind == "truncate":
                self._left, self._counted = int(step.amount), step.directions
            else:
                raise ValueError(f"{step.kind} is no fault")
            await asyncio.sleep(step.lasts_s)
            self._calm()

    async def _accept(self, listener: socket.socket) -> None:
        with listener:
            while True:
                near, _ = await self._loop.sock_accept(listener)
                link = _Link(near)
                link.silent.update(self._silence)
                self._links.add(link)
                link.task = self._spawn(self._carry(link))

    async def _carry(self, link: _Link) -> None:
        """One connection, to its end."""
        try:
            # If nobody listens there, whoever connected is reset: it hears of it as if there were no relay.
            await self._loop.sock_connect(link.far, ("127.0.0.1", self._port))
            async with asyncio.TaskGroup() as group:
                for source, target, direction in ((link.near, link.far, UP), (link.far, link.near, DOWN)):
                    queue: asyncio.Queue[tuple[float, bytes]] = asyncio.Queue(_QUEUED_PIECES)
                    group.create_task(self._read(link, source, queue, direction))
                    group.create_task(self._pass_on(link, queue, target))
        except* OSError:
            link.reset = True
        finally:
            self._links.discard(link)
            link.close()

    async def _read(
        self, link: _Link, source: socket.socket, queue: asyncio.Queue[tuple[float, bytes]], direction: str
    ) -> None:
        """What comes from one side, due when the weather lets it arrive."""
        try:
            while data := await self._loop.sock_recv(source, self._piece(direction)):
                self._count(len(data), direction)
                if self._seen is not None:
                    self._seen.extend(data)
                if self._due(len(data), direction):
                    self._cut(False)
                    return
                weather = self._weather
                if weather.bytes_per_s:
                    await asyncio.sleep(len(data) / weather.bytes_per_s)
                if direction not in link.silent:
                    later = weather.delay_s + weather.jitter_s * self._chance.random()
                    await queue.put((self._loop.time() + later, data))
        except OSError:
            await self._half(link, source)
            raise
        await self._half(link, source)
        await queue.put((0.0, b""))

    async def _pass_on(self, link: _Link, queue: asyncio.Queue[tuple[float, bytes]], target: socket.socket) -> None:
        try:
            while True:
                due, data = await queue.get()
                await asyncio.sleep(max(0.0, due - self._loop.time()))
                if not data:
                    target.shutdown(socket.SHUT_WR)
                    return
                await self._loop.sock_sendall(target, data)
        except OSError:
            await self._half(link, target)
            raise

    async def _half(self, link: _Link, side: socket.socket) -> None:
        """One side has ended a connection that lost bytes: the other side never hears of it, until it ends its own."""
        if link.silent:
            link.ended.add(side)
            if len(link.ended) < len(BOTH):
                await asyncio.Event().wait()
            link.cut(reset=False)

    def _piece(self, direction: str) -> int:
        """Bytes to read at a time: on a slow link a twentieth of a second's, and none behind a cut that is due."""
        rate, left = self._weather.bytes_per_s, self._left
        most = _PIECE_BYTES if not rate else min(_PIECE_BYTES, int(rate / 20))
        return max(1, most if left is None or direction not in self._counted else min(most, left))

    def _count(self, length: int, direction: str) -> None:
        if direction == UP:
            self.up += length
        else:
            self.down += length
        if self.passed >= self._mark:
            self._reached.set()

    def _due(self, length: int, direction: str) -> bool:
        if self._left is None or direction not in self._counted:
            return False
        self._left -= length
        if self._left > 0:
            return False
        self._left = None
        return True


def _listener(port: int) -> socket.socket:
    made = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
    made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    made.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, _BUFFER_BYTES)  # connections inherit it
    made.bind(("127.0.0.1", port))
    made.listen(128)
    made.setblocking(False)
    return made
