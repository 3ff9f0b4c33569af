"""Kernels written as Python source for one size: compiled once, source and machine code kept in the user's cache."""

from __future__ import annotations

import atexit
import functools
import hashlib
import importlib.util
import os
import shutil
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

Kernel = Callable[..., None]


def load(text: str, name: str, function: str) -> Kernel:
    """The compiled ``function`` of a module's source, from the cache where it has been compiled before.

    Args:
        text: The source. It imports what it needs.
        name: Of the file, without the digest that is added.
        function: Its name in the source.

    Raises:
        OSError: Neither the cache nor a temporary folder can be written.
    """
    path = _written(text, name, cache_folder) or _written(text, name, _own_folder)
    if path is None:
        raise OSError("no folder to write kernels to: set FEDLOOM_CACHE to one that only this user may write")
    spec = importlib.util.spec_from_file_location(f"fedloom_{path.stem}", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # numba finds the module of a cached function by its name
    spec.loader.exec_module(module)
    found: Kernel = getattr(module, function)
    return found


def cache_folder() -> Path:
    """``$FEDLOOM_CACHE``, or ``fedloom`` in the user's cache folder; in it ``kernels``."""
    named = os.environ.get("FEDLOOM_CACHE")
    if named:
        return Path(named) / "kernels"
    base = os.environ.get("XDG_CACHE_HOME")
    return (Path(base) if base else Path.home() / ".cache") / "fedloom" / "kernels"


@functools.lru_cache(maxsize=1)
def _own_folder() -> Path:
    """One for this process alone, where there is no cache that we could trust; compilers want to read a file."""
    folder = tempfile.mkdtemp(prefix="fedloom-kernels-")
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    return Path(folder)


def _written(text: str, name: str, place: Callable[[], Path]) -> Path | None:
    """The source as a file that only this user can have written; None where there can't be one."""
    try:
        folder = place()
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        status = folder.stat()
        if status.st_uid != os.geteuid() or status.st_mode & 0o022:
            return None  # what others may write, we don't run
        path = folder / f"{name}_{hashlib.sha256(text.encode()).hexdigest()[:16]}.py"
        if not path.exists() or path.read_text() != text:
            descriptor, temporary = tempfile.mkstemp(dir=folder, suffix=".tmp")
            with os.fdopen(descriptor, "w") as file:
                file.write(text)
            Path(temporary).replace(path)
        return path
    except (OSError, RuntimeError):  # the second where nobody knows the user's home
        return None
