"""The HTTP server of the metrics: on loopback, in a few threads of its own, and never in the daemon's way."""

from __future__ import annotations

import asyncio
import concurrent.futures
import contextlib
import logging
import socket
import sys
import threading
import time
from collections.abc import AsyncIterator, Callable
from http.server import ThreadingHTTPServer
from typing import Any, Final

from prometheus_client import CollectorRegistry, MetricsHandler

from coordinator.metrics.collector import StatusCollector
from protos import control_pb2 as pb
from wire import bind_error

_log = logging.getLogger("fedloom.coordinator")

HOST: Final = "127.0.0.1"
PATH: Final = "/metrics"

# Connections at a time; more are closed at once. Prometheus needs one.
_MOST: Final = 8

# Seconds that a connection may last, whatever it does, and that a scrape waits for the daemon's event loop.
_LONGEST_S: Final = 10.0
_SNAPSHOT_S: Final = 5.0

# Every so often the server looks for connections that have lasted too long, and whether it is to end.
_POLL_S: Final = 0.2


class MetricsEndpoint:
    """A running endpoint: ``GET http://127.0.0.1:<port>/metrics``.

    Formal Guarantees:
        At most 8 connections are served at a time, each in a thread of its own and for at most 10 seconds, however
        slowly the peer writes or reads; further ones are closed unread. The daemon's event loop makes one status at a
        time for them, and does nothing else for a scrape.
    """

    def __init__(self, server: _Server) -> None:
        self._server = server
        self._thread = threading.Thread(
            target=server.serve_forever, kwargs={"poll_interval": _POLL_S}, name="fedloom-metrics"
        )
        self._thread.start()

    @property
    def port(self) -> int:
        """The port that it really has."""
        return int(self._server.server_address[1])

    @property
    def url(self) -> str:
        """Where Prometheus finds it, from this machine."""
        return f"http://{HOST}:{self.port}{PATH}"

    def close(self) -> None:
        """Stop listening, end all connections, and wait for their threads. Not to be called in the event loop."""
        self._server.shutdown()
        self._server.end_connections()
        self._server.server_close()
        self._thread.join()


@contextlib.asynccontextmanager
async def serve_metrics(port: int, present: Callable[[], pb.Status]) -> AsyncIterator[MetricsEndpoint]:
    """Show the metrics of ``present()`` until leaving; then no thread of it is left and the port is free.

    Args:
        port: On 127.0.0.1; 0 for any free one.
        present: Gives the present status. It is called in the event loop that enters this.

    Raises:
        ResourceError: "port-in-use", or "port" if the port can't be had for another reason.
    """
    loop = asyncio.get_running_loop()
    one_at_a_time = threading.Lock()

    async def take() -> pb.Status:
        return present()

    def snapshot() -> pb.Status:
        end = time.monotonic() + _SNAPSHOT_S
        if not one_at_a_time.acquire(timeout=_SNAPSHOT_S):
            raise _UnavailableError("The coordinator is busy. Ask again.")
        future = asyncio.run_coroutine_threadsafe(take(), loop)
        try:
            return future.result(max(0.0, end - time.monotonic()))
        except TimeoutError:
            future.cancel()
            raise _UnavailableError("The coordinator is busy. Ask again.") from None
        except concurrent.futures.CancelledError:
            raise _UnavailableError("The coordinator is ending.") from None
        finally:
            one_at_a_time.release()

    registry = CollectorRegistry()
    registry.register(StatusCollector(snapshot))
    try:
        server = _Server((HOST, port), _Handler.factory(registry))
    except OSError as error:
        raise bind_error(HOST, port, error) from error
    endpoint = MetricsEndpoint(server)
    try:
        yield endpoint
    finally:
        # In a thread: a scrape that is being served may wait for this loop.
        await asyncio.to_thread(endpoint.close)


class _UnavailableError(Exception):
    """No status can be had now; the text says why."""


class _Handler(MetricsHandler):
    """Answers ``GET /metrics``, and anything else with an error."""

    timeout = _LONGEST_S
    server_version = "fedloom"
    sys_version = ""
    error_message_format = "%(code)d %(message)s. %(explain)s\n"
    error_content_type = "text/plain; charset=utf-8"

    def do_GET(self) -> None:
        """The metrics, or why there are none."""
        if self.path.partition("?")[0] != PATH:
            self.send_error(404, explain=f"The metrics are at {PATH}.")
            return
        try:
            super().do_GET()
        except _UnavailableError as error:
            self.send_error(503, explain=str(error))


class _Server(ThreadingHTTPServer):
    """Threads that are counted, timed, and waited for at the end."""

    daemon_threads = False  # so that server_close() waits for them
    allow_reuse_port = False
    request_queue_size = _MOST

    def __init__(self, address: tuple[str, int], handler: type) -> None:
        self._free = threading.BoundedSemaphore(_MOST)
        self._since: dict[socket.socket, float] = {}
        self._lock = threading.Lock()
        super().__init__(address, handler)

    def server_bind(self) -> None:
        """Bind without asking the name service who 127.0.0.1 is."""
        self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        self.socket.bind(self.server_address)
        self.server_address = self.socket.getsockname()

    def process_request(self, request: Any, client_address: Any) -> None:
        """Serve a connection in a thread, if one is free."""
        if not self._free.acquire(blocking=False):
            self.shutdown_request(request)
            return
        with self._lock:
            self._since[request] = time.monotonic()
        try:
            super().process_request(request, client_address)
        except BaseException:  # this machine has no thread for it
            self._forget(request)
            raise

    def process_request_thread(self, request: Any, client_address: Any) -> None:
        """One connection, from its first byte to its end."""
        try:
            super().process_request_thread(request, client_address)
        finally:
            self._forget(request)

    def _forget(self, request: Any) -> None:
        with self._lock:
            del self._since[request]
        self._free.release()

    def service_actions(self) -> None:
        """End who has been connected for too long: timeouts of single reads don't bound their sum."""
        super().service_actions()
        self.end_connections(before=time.monotonic() - _LONGEST_S)

    def end_connections(self, before: float = float("inf")) -> None:
        """End the connections that began before this time; their threads' reads and writes fail at once."""
        with self._lock:
            for request, since in self._since.items():
                if since < before:
                    with contextlib.suppress(OSError):
                        request.shutdown(socket.SHUT_RDWR)

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A peer that is gone or was ended is no error of ours; anything else is logged with its stack."""
        if isinstance(sys.exception(), OSError):
            _log.debug("a scrape of the metrics ended early", exc_info=True)
        else:
            _log.error("a scrape of the metrics failed", exc_info=True)
