"""A TCP relay on loopback that listens in and can be cut."""

from __future__ import annotations

import contextlib
import socket
import threading


class Relay:
    """Copies bytes between a free loopback port and another one.

    Args:
        port: Where to.
        seen: Gets every byte of both directions.
        cut_after: Bytes in both directions after which the connections are cut, once.

    Attributes:
        cuts: How often it has cut.
        passed: Bytes that came to it, in both directions.
    """

    def __init__(self, port: int, seen: bytearray | None = None, *, cut_after: int | None = None) -> None:
        self._port = port
        self._seen = seen
        self._left = cut_after
        self._lock = threading.Lock()
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.address = f"127.0.0.1:{self._listener.getsockname()[1]}"
        self.cuts = 0
        self.passed = 0
        self._sockets: list[socket.socket] = []
        self._threads = [threading.Thread(target=self._accept, daemon=True)]
        self._threads[0].start()

    def cut_after(self, count: int) -> None:
        """Cut again after so many more bytes."""
        with self._lock:
            self._left = count

    def _accept(self) -> None:
        while True:
            try:
                near, _ = self._listener.accept()
            except OSError:
                return
            try:
                far = socket.create_connection(("127.0.0.1", self._port))
            except OSError:
                near.close()
                continue
            with self._lock:
                self._sockets += [near, far]
            for source, target in ((near, far), (far, near)):
                thread = threading.Thread(target=self._copy, args=(source, target), daemon=True)
                self._threads.append(thread)
                thread.start()

    def _copy(self, source: socket.socket, target: socket.socket) -> None:
        try:
            while data := source.recv(65_536):
                if self._seen is not None:
                    self._seen.extend(data)
                if self._count(len(data)):
                    self.cut()
                    return
                target.sendall(data)
            target.shutdown(socket.SHUT_WR)
        except OSError:
            return

    def _count(self, length: int) -> bool:
        with self._lock:
            self.passed += length
            if self._left is None:
                return False
            self._left -= length
            if self._left > 0:
                return False
            self._left = None
            self.cuts += 1
            return True

    def cut(self) -> None:
        """Break every connection now."""
        with self._lock:
            sockets, self._sockets = self._sockets, []
        for item in sockets:
            with contextlib.suppress(OSError):
                item.shutdown(socket.SHUT_RDWR)
            item.close()

    def close(self) -> None:
        """Stop for good."""
        self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        self.cut()
        for thread in self._threads:
            thread.join(5)
