"""What a handler raises reaches the peer by name: one interceptor instead of a try in every method."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any, NoReturn

import grpc

from coordinator.services.wrapping import wrapped
from coordinator.store import Store
from wire import FedloomError, RefusedError, abort

_Context = grpc.aio.ServicerContext[Any, Any]


class NamedErrors(grpc.aio.ServerInterceptor):  # type: ignore[type-arg]  # generic in the stubs only
    """Ends a call with the :class:`FedloomError` that its handler raised; refusals are counted.

    Uploads (stream to unary) pass through: ``wire.BlobService`` names its own errors.

    Args:
        store: Where refusals are counted.
    """

    def __init__(self, store: Store) -> None:
        self._store = store

    async def intercept_service(
        self,
        continuation: Callable[[grpc.HandlerCallDetails], Awaitable[grpc.RpcMethodHandler[Any, Any]]],
        handler_call_details: grpc.HandlerCallDetails,
    ) -> grpc.RpcMethodHandler[Any, Any]:
        """Wrap the handler of one call."""
        handler = await continuation(handler_call_details)
        found = wrapped(handler, self._answering, self._streaming, uploads=False)
        return found  # type: ignore[return-value]  # None where there is no such method

    def _answering(self, inner: Callable[[Any, _Context], Awaitable[Any]]) -> Any:
        async def call(request: Any, context: _Context) -> Any:
            try:
                return await inner(request, context)
            except FedloomError as error:
                await self._end(context, error)

        return call

    def _streaming(self, inner: Callable[[Any, _Context], AsyncIterator[Any]]) -> Any:
        async def call(request: Any, context: _Context) -> AsyncIterator[Any]:
            try:
                async for message in inner(request, context):
                    yield message
            except FedloomError as error:
                await self._end(context, error)

        return call

    async def _end(self, context: _Context, error: FedloomError) -> NoReturn:
        if isinstance(error, RefusedError):
            self._store.count_refusal(error.code, _peer_name(context))
        await abort(context, error)


def _peer_name(context: _Context) -> str:
    """The name in the peer's certificate; newcomers have none."""
    names = context.auth_context().get("x509_common_name", ())
    return next((name.decode("utf-8", "replace")[:63] for name in names), "newcomer")
