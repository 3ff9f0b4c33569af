"""Checkpoint files: safetensors whose data section is the flat vector itself.

Any safetensors reader opens them; ours checks the header byte for byte against the manifest, so that a vector is never
loaded into a model it wasn't made for.
"""

from __future__ import annotations

import hashlib
import os
from pathlib import Path

import numpy as np

from core_model.errors import ManifestError
from core_model.manifest import MAX_HEADER_BYTES, Manifest, Vector


def write_checkpoint(path: Path, manifest: Manifest, vector: Vector) -> bytes:
    """Write the file atomically (synced, then renamed into place) and return its SHA-256: the blob's name.

    Raises:
        ManifestError: If the vector isn't float32 [manifest.dimension].
    """
    manifest.check(vector)
    header = manifest.header()
    data = np.ascontiguousarray(vector, dtype="<f4").data
    digest = hashlib.sha256(header)
    digest.update(data)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        with temporary.open("wb") as file:
            file.write(header)
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)
    return digest.digest()


def read_manifest(path: Path) -> Manifest:
    """Read and validate the header alone.

    Raises:
        ManifestError: If the file isn't one of ours, or is shorter or longer than its header says.
    """
    with path.open("rb") as file:
        prefix = file.read(8)
        length = int.from_bytes(prefix, "little")
        if len(prefix) < 8 or length > MAX_HEADER_BYTES:
            raise ManifestError(f"{path}: not a checkpoint file.")
        text = file.read(length)
    try:
        manifest = Manifest.parse(prefix + text)
    except ManifestError as error:
        raise ManifestError(f"{path}: {error.message}", error.hint) from None
    _check_size(path, manifest)
    return manifest


def read_vector(path: Path, manifest: Manifest) -> Vector:
    """Read the flat vector float32 [d], after checking the header against the manifest.

    Raises:
        ManifestError: If the header isn't the manifest's, or the file is truncated or too long.
    """
    header = manifest.header()
    with path.open("rb") as file:
        if file.read(len(header)) != header:
            raise ManifestError(
                f"{path}: its tensors aren't those of this model.",
                "The file was made with other [model] settings; `fedloom model show` prints what it holds.",
            )
        _check_size(path, manifest)
        return np.fromfile(file, dtype="<f4", count=manifest.dimension)


def _check_size(path: Path, manifest: Manifest) -> None:
    expected = len(manifest.header()) + 4 * manifest.dimension
    actual = path.stat().st_size
    if actual != expected:
        raise ManifestError(f"{path}: {actual} bytes where its header promises {expected}.", "Fetch the file again.")
