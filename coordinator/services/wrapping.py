"""Interceptors that put something around the handler of a call, whatever kind of call it is."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import grpc


def wrapped(
    handler: Any,
    answering: Callable[[Any], Any],
    streaming: Callable[[Any], Any],
    *,
    uploads: bool,
) -> grpc.RpcMethodHandler[Any, Any] | None:
    """A handler with something around it.

    Args:
        handler: What the call would be given to; None where there is no such method, which gRPC answers itself.
        answering: Makes the function of a call with one answer from the one inside.
        streaming: Makes that of a call with a stream of answers.
        uploads: Whether calls with a stream of requests and one answer are wrapped, too.
    """
    if handler is None:
        return None
    codec = {
        "request_deserializer": handler.request_deserializer,
        "response_serializer": handler.response_serializer,
    }
    if handler.unary_unary:
        return grpc.unary_unary_rpc_method_handler(answering(handler.unary_unary), **codec)
    if handler.unary_stream:
        return grpc.unary_stream_rpc_method_handler(streaming(handler.unary_stream), **codec)
    if handler.stream_stream:
        return grpc.stream_stream_rpc_method_handler(streaming(handler.stream_stream), **codec)
    if uploads:
        return grpc.stream_unary_rpc_method_handler(answering(handler.stream_unary), **codec)
    passed: grpc.RpcMethodHandler[Any, Any] = handler
    return passed
