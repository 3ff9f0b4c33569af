"""Content-addressed files on disk: a blob exists under its SHA-256 or it doesn't exist."""

from __future__ import annotations

import contextlib
import dataclasses
import errno
import hashlib
import os
import re
import secrets
import shutil
import threading
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from types import TracebackType
from typing import Final, Protocol, Self

from wire.errors import DataError, FedloomError, RefusedError, ResourceError
from wire.files import process_lives
from wire.names import is_name

DIGEST_BYTES: Final = 32
COPY_BYTES: Final = 1 << 20

_DIGEST_NAME: Final = re.compile(rf"[0-9a-f]{{{2 * DIGEST_BYTES}}}")

Buffer = bytes | bytearray | memoryview


class _Hash(Protocol):
    def update(self, data: Buffer, /) -> None: ...

    def digest(self) -> bytes: ...


@dataclasses.dataclass(frozen=True)
class BlobRef:
    """A blob's name and size: ``digest`` is 32 bytes, ``size`` in bytes."""

    digest: bytes
    size: int


@contextlib.contextmanager
def disk_errors(path: Path) -> Iterator[None]:
    """Turn what a full or broken disk raises into an error for the operator.

    Raises:
        ResourceError: ``disk-full``.
        DataError: For other failures of a file.
    """
    try:
        yield
    except OSError as error:
        raise _disk_error(path, error) from error


def _disk_error(path: Path, error: OSError) -> FedloomError:
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return ResourceError(f"{path.parent}: the disk is full", "Make room on this disk.", code="disk-full")
    return DataError(f"{path}: {error.strerror or error}")


def _sync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


class PartWriter:
    """Receives one blob whose digest and size are known, into a partial file that survives interruption.

    Blocking and safe to call from any one thread at a time. Made by :meth:`BlobStore.open_writer`.
    """

    def __init__(self, store: BlobStore, expected: BlobRef, part: Path) -> None:
        self._store = store
        self._expected = expected
        self._part = part
        self._lock = threading.Lock()
        self._replaced = False
        self._before: PartWriter | None = None
        self._descriptor: int | None = None
        self._hash: _Hash = hashlib.sha256()
        self.digest = expected.digest
        self.received = 0

    def _open(self, offset: int) -> None:
        """Stop the writer before, open the partial file and hash what it holds."""
        with self._lock:
            self._stop_before()
            if self._replaced:
                raise _replaced()
            try:
                with disk_errors(self._part):
                    self._descriptor = os.open(self._part, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
                    self._resume(self._descriptor, offset)
            except BaseException:
                self._close()
                raise

    def _resume(self, descriptor: int, offset: int) -> None:
        held = os.fstat(descriptor).st_size
        if offset not in (0, held) or offset > self._expected.size:
            if not held:
                self._part.unlink(missing_ok=True)
            raise RefusedError(
                "blob-offset",
                f"the transfer starts at byte {offset}; {held} bytes are here",
                "Ask Stat, then go on there.",
            )
        os.ftruncate(descriptor, offset)
        for start in range(0, offset, COPY_BYTES):
            self._hash.update(os.pread(descriptor, min(COPY_BYTES, offset - start), start))
        os.lseek(descriptor, offset, os.SEEK_SET)
        self.received = offset

    def write(self, chunks: Iterable[Buffer]) -> None:
        """Append chunks.

        Raises:
            RefusedError: ``blob-size`` if there is more than the agreed size, ``replaced`` if a newer transfer of the
                same blob by the same owner has taken over.
            ResourceError: ``disk-full``; what was written before is kept.
        """
        with self._lock:
            descriptor = self._check_open()
            for chunk in chunks:
                length = len(chunk)
                if self.received + length > self._expected.size:
                    self._discard()
                    raise RefusedError(
                        "blob-size",
                        f"the blob has more than the {self._expected.size} bytes that were agreed",
                        "The sender's file and its announcement don't belong together.",
                    )
                self._hash.update(chunk)
                self._write_all(descriptor, chunk, length)
                self.received += length

    def _write_all(self, descriptor: int, chunk: Buffer, length: int) -> None:
        view = memoryview(chunk)
        try:
            written = 0
            while written < length:
                written += os.write(descriptor, view[written:])
        except OSError as error:
            # The hash has run ahead of the file: this writer is of no more use, but the whole chunks before are.
            with contextlib.suppress(OSError):
                os.ftruncate(descriptor, self.received)
            self._close()
            raise _disk_error(self._part, error) from error

    def commit(self, *, sync: bool = False) -> Path:
        """Check size and digest; from now on the blob exists.

        Args:
            sync: Return only when the blob is on the disk.

        Returns:
            The blob's path.

        Raises:
            RefusedError: ``blob-truncated`` (the partial file is kept), ``blob-digest`` (it is removed).
        """
        with self._lock:
            descriptor = self._check_open()
            if self.received < self._expected.size:
                self._close()
                raise RefusedError(
                    "blob-truncated",
                    f"the blob ends after {self.received} of {self._expected.size} bytes",
                    "Send the rest: what has arrived is kept.",
                )
            if self._hash.digest() != self._expected.digest:
                self._discard()
                raise RefusedError(
                    "blob-digest",
                    f"the blob's content doesn't have the announced digest {self.digest.hex()[:16]}...",
                    "Send it again from the beginning; if it happens again, look at the sender's disk.",
                )
            try:
                with disk_errors(self._part):
                    if sync:
                        os.fsync(descriptor)
                    return self._store._adopt(self._part, self.digest, sync)
            finally:
                # Only now: as long as this writer is registered, no other one opens the file that becomes the blob.
                self._close()

    def close(self) -> None:
        """Stop writing and keep the partial file. Calling it twice is allowed."""
        with self._lock:
            self._close()

    def replace(self) -> None:
        """Stop writing since a newer transfer takes over; a later :meth:`write` raises ``replaced``."""
        with self._lock:
            self._replaced = True
            self._stop_before()
            self._close()

    def _stop_before(self) -> None:
        # Also by a writer that is replaced before it opens: who replaces it relies on all earlier ones having let go.
        if self._before is not None:
            self._before.replace()
            self._before = None

    def _discard(self) -> None:
        self._part.unlink(missing_ok=True)
        self._close()

    def _close(self) -> None:
        if self._descriptor is not None:
            os.close(self._descriptor)
            self._descriptor = None
        self._store._forget(self._part, self)

    def _check_open(self) -> int:
        if self._replaced:
            raise _replaced()
        if self._descriptor is None:
            raise ValueError("the writer is closed")
        return self._descriptor


def _replaced() -> RefusedError:
    return RefusedError("replaced", "a newer transfer of the same blob has taken over")


class BlobWriter:
    """Writes a blob whose digest isn't known yet, hashing on the way. Made by :meth:`BlobStore.writer`.

    A context manager: leaving it without :meth:`commit` removes the file.
    """

    def __init__(self, store: BlobStore, part: Path) -> None:
        self._store = store
        self._part = part
        self._hash: _Hash = hashlib.sha256()
        self._size = 0
        with disk_errors(part):
            self._file = part.open("xb", buffering=0)

    def __enter__(self) -> Self:
        """Nothing to prepare."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Remove what wasn't committed."""
        if not self._file.closed:
            self._file.close()
            self._part.unlink(missing_ok=True)

    def write(self, data: Buffer) -> None:
        """Append.

        Raises:
            ResourceError: ``disk-full``.
        """
        view = memoryview(data).cast("B")
        self._hash.update(view)
        with disk_errors(self._part):
            written = 0
            while written < view.nbytes:
                written += self._file.write(view[written:]) or 0
        self._size += view.nbytes

    def commit(self, *, sync: bool = True) -> bytes:
        """The blob exists from now on.

        Args:
            sync: Return only when it is on the disk. False is for what can be made again.

        Returns:
            The blob's digest, 32 bytes.
        """
        digest = self._hash.digest()
        with disk_errors(self._part):
            if sync:
                os.fsync(self._file.fileno())
            self._file.close()
            self._store._adopt(self._part, digest, sync)
        return digest


class BlobStore:
    """A folder of content-addressed files. All methods are blocking and safe to call from any thread.

    A complete blob is ``<digest>``, a partial one ``<digest>.<owner>.part``, one being made ``local-<process>-*.part``.
    Several processes may make and read blobs in one folder; only one of them may receive and collect garbage.

    Args:
        folder: Is created if missing.
        reserve_bytes: Room to leave free on the disk; a blob that would need it is refused before its first byte.
    """

    def __init__(self, folder: Path, reserve_bytes: int = 0) -> None:
        self.folder = folder
        self._reserve_bytes = reserve_bytes
        self._lock = threading.Lock()
        self._writers: dict[Path, PartWriter] = {}
        with disk_errors(folder):
            folder.mkdir(parents=True, exist_ok=True, mode=0o700)
            for path in folder.glob("local-*.part"):
                if not process_lives(path.name.split("-")[1]):
                    path.unlink(missing_ok=True)

    def path(self, digest: bytes) -> Path:
        """Where the blob of that name is, or would be. A name is 32 bytes, so no path leads out of the folder.

        Raises:
            RefusedError: ``blob-unknown`` if ``digest`` can't be a digest.
        """
        return self.folder / _name(digest)

    def has(self, digest: bytes) -> bool:
        """Whether the blob is complete."""
        return self.path(digest).is_file()

    def size(self, digest: bytes) -> int:
        """Bytes of a complete blob.

        Raises:
            RefusedError: ``blob-unknown``.
        """
        try:
            return self.path(digest).stat().st_size
        except FileNotFoundError:
            raise unknown(digest) from None

    def received(self, digest: bytes, owner: str = "") -> int:
        """Bytes of the partial file that ``owner`` has left, 0 if there is none."""
        try:
            return self._part(digest, owner).stat().st_size
        except FileNotFoundError:
            return 0

    def writing(self, digest: bytes, owner: str = "") -> bool:
        """Whether a transfer of this blob by ``owner`` is in progress."""
        with self._lock:
            return self._part(digest, owner) in self._writers

    def open_writer(self, digest: bytes, size: int, offset: int = 0, owner: str = "") -> PartWriter:
        """Receive a blob.

        An earlier writer of the same blob and owner is replaced: after a broken connection the new one counts.

        Args:
            digest: 32 bytes.
            size: Of the complete blob, bytes.
            offset: Where to go on; 0 starts again, else exactly what :meth:`received` says.
            owner: Whose partial file; owners can't touch each other's.

        Raises:
            RefusedError: ``blob-offset``, ``blob-unknown``, ``replaced`` if a still newer transfer came at once.
            ResourceError: ``disk-full``.
        """
        part = self._part(digest, owner)
        self.check_room(size - offset)
        writer = PartWriter(self, BlobRef(digest, size), part)
        # Registered first, opened when all writers before have let go: no two ever have the file open, so that what was
        # checked at the end is what was written.
        with self._lock:
            writer._before = self._writers.get(part)
            self._writers[part] = writer
        writer._open(offset)
        return writer

    def writer(self, size: int = 0) -> BlobWriter:
        """For a blob made here, whose digest is known only when it is written.

        Args:
            size: Bytes that it will have, to find out before the first one whether there is room; 0 where unknown.

        Raises:
            ResourceError: ``disk-full``.
        """
        self.check_room(size)
        return BlobWriter(self, self.folder / f"local-{os.getpid()}-{secrets.token_hex(8)}.part")

    def put_file(self, path: Path, *, sync: bool = True) -> BlobRef:
        """Copy a file into the store.

        Raises:
            DataError: If it can't be read.
            ResourceError: ``disk-full``.
        """
        with disk_errors(path):
            source = path.open("rb", buffering=0)
            expected = path.stat().st_size
        size = 0
        with source, self.writer(expected) as target:
            buffer = memoryview(bytearray(COPY_BYTES))
            while True:
                with disk_errors(path):
                    count = source.readinto(buffer)
                if not count:
                    return BlobRef(target.commit(sync=sync), size)
                target.write(buffer[:count])
                size += count

    def remove(self, digest: bytes) -> None:
        """Remove a blob; that it isn't there is no error."""
        with disk_errors(self.folder):
            self.path(digest).unlink(missing_ok=True)

    def discard_part(self, digest: bytes, owner: str) -> None:
        """Remove the partial file that ``owner`` has left, if any, and end its writer."""
        part = self._part(digest, owner)
        with self._lock:
            writer = self._writers.get(part)
        if writer is not None:
            writer.replace()
        part.unlink(missing_ok=True)

    def parts(self) -> dict[str, dict[bytes, int]]:
        """Partial files that owners have left: by owner, the digest and the bytes of each."""
        found: dict[str, dict[bytes, int]] = {}
        with disk_errors(self.folder):
            for path in self.folder.glob("*.*.part"):
                digest, owner, _ = path.name.split(".")
                found.setdefault(owner, {})[bytes.fromhex(digest)] = path.stat().st_size
        return found

    def keep_only(self, digests: Iterable[bytes], owed: Callable[[str], bool] = lambda _: False) -> int:
        """Remove every other complete blob, and every partial file that nobody will go on with.

        Those of the blobs named are kept, those that somebody writes at, and those of owners who still owe a blob.

        Args:
            digests: Of the blobs to keep, 32 bytes each.
            owed: Whether an owner of partial files may go on with them.

        Returns:
            The number of files removed.
        """
        keep = {_name(digest) for digest in digests}
        removed = 0
        with disk_errors(self.folder):
            for name in os.listdir(self.folder):
                digest, *owner = name.removesuffix(".part").split(".")
                if not _DIGEST_NAME.fullmatch(digest) or digest in keep or any(map(owed, owner)):
                    continue
                path = self.folder / name
                with self._lock:  # a transfer that begins at this moment is registered before it opens its file
                    if path in self._writers:
                        continue
                    path.unlink(missing_ok=True)
                removed += 1
        return removed

    def check_room(self, needed: int) -> None:
        """Make sure that ``needed`` bytes fit and the reserve stays free.

        Raises:
            ResourceError: ``disk-full``.
        """
        with disk_errors(self.folder):
            free = shutil.disk_usage(self.folder).free
        if free - needed < self._reserve_bytes:
            raise ResourceError(
                f"{self.folder}: {needed} bytes don't fit: {free} are free and {self._reserve_bytes} stay in reserve",
                "Make room on this disk.",
                code="disk-full",
            )

    def _part(self, digest: bytes, owner: str) -> Path:
        if owner and not is_name(owner):
            raise ValueError(f"{owner!r} is not a name")
        return self.folder / (f"{_name(digest)}.{owner}.part" if owner else f"{_name(digest)}.part")

    def _adopt(self, part: Path, digest: bytes, sync: bool) -> Path:
        path = self.path(digest)
        os.replace(part, path)
        if sync:
            _sync_folder(self.folder)
        return path

    def _forget(self, part: Path, writer: PartWriter) -> None:
        with self._lock:
            if self._writers.get(part) is writer:
                del self._writers[part]


def unknown(digest: bytes) -> RefusedError:
    """The refusal for a blob that isn't here."""
    return RefusedError(
        "blob-unknown", f"there is no blob {digest[:8].hex()}...", "It may have been removed; check in again."
    )


def _name(digest: bytes) -> str:
    if len(digest) != DIGEST_BYTES:
        raise RefusedError("blob-unknown", f"a blob's name has 32 bytes, not {len(digest)}")
    return bytes(digest).hex()
