"""What one peer may take of the coordinator: calls at a time, and messages a second. Who wants more waits."""

from __future__ import annotations

import asyncio
import contextlib
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from typing import Any, Final

import grpc

from coordinator.services.wrapping import wrapped
from wire import RefusedError, ResourceError, Role, abort, peer_identity

_Context = grpc.aio.ServicerContext[Any, Any]

_BURST_S: Final = 5.0


class Bucket:
    """Slows a stream of messages down to a rate, by waiting (a token bucket).

    A peer that was quiet may send ``_BURST_S`` seconds' worth at once.

    Args:
        rate: Messages a second, over a long time.
    """

    def __init__(self, rate: float) -> None:
        self._rate = rate
        self._full = max(1.0, rate * _BURST_S)
        self._held = self._full
        self._at_s = asyncio.get_running_loop().time()

    async def turn(self) -> bool:
        """Return when another message may be handled; True if it had to wait for that."""
        now_s = asyncio.get_running_loop().time()
        self._held = min(self._full, self._held + (now_s - self._at_s) * self._rate)
        self._at_s = now_s
        self._held -= 1.0
        if self._held >= 0.0:
            return False
        await asyncio.sleep(-self._held / self._rate)
        return True


class PeerLimit(grpc.aio.ServerInterceptor):  # type: ignore[type-arg]  # generic in the stubs only
    """Refuses a call of a peer that has enough in progress; ``quota``, to be tried again later.

    A peer is who its certificate names, whatever number of connections it opens; on the enrolment port, where nobody
    has one, it is an address. The operator isn't limited.

    Args:
        calls: At a time, of one peer.
    """

    def __init__(self, calls: int) -> None:
        self._calls = calls
        self._running: Counter[str] = Counter()

    async def intercept_service(
        self,
        continuation: Callable[[grpc.HandlerCallDetails], Awaitable[grpc.RpcMethodHandler[Any, Any]]],
        handler_call_details: grpc.HandlerCallDetails,
    ) -> grpc.RpcMethodHandler[Any, Any]:
        """Wrap the handler of one call."""
        handler = await continuation(handler_call_details)
        found = wrapped(handler, self._answering, self._streaming, uploads=True)
        return found  # type: ignore[return-value]  # None where there is no such method

    def _answering(self, inner: Callable[[Any, _Context], Awaitable[Any]]) -> Any:
        async def call(request: Any, context: _Context) -> Any:
            with await self._place(context):
                return await inner(request, context)

        return call

    def _streaming(self, inner: Callable[[Any, _Context], AsyncIterator[Any]]) -> Any:
        async def call(request: Any, context: _Context) -> AsyncIterator[Any]:
            with await self._place(context):
                async with contextlib.aclosing(inner(request, context)) as messages:  # type: ignore[type-var]
                    async for message in messages:
                        yield message

        return call

    async def _place(self, context: _Context) -> contextlib.AbstractContextManager[None]:
        """A place among the peer's calls; ends the call if there is none."""
        peer = _peer(context)
        if peer is None:
            return contextlib.nullcontext()
        if self._running[peer] >= self._calls:
            text = f"{peer} has {self._calls} calls in progress already"
            await abort(context, ResourceError(text, "Wait for one to end.", code="quota"))
        return self._taken(peer)

    @contextlib.contextmanager
    def _taken(self, peer: str) -> Iterator[None]:
        self._running[peer] += 1
        try:
            yield
        finally:
            self._running[peer] -= 1
            if not self._running[peer]:
                del self._running[peer]


def _peer(context: _Context) -> str | None:
    """Whose calls are counted together; None for the operator's, which aren't counted."""
    if context.auth_context().get("x509_pem_cert"):
        with contextlib.suppress(RefusedError):  # what is wrong with the certificate, the handler says
            identity = peer_identity(context)
            return None if identity.role is Role.OPERATOR else identity.name
    return str(context.peer()).rpartition(":")[0]
