"""Kernels written as Python source for one size: compiled once, source and machine code kept in the user's cache."""

from __future__ import annotations

import hashlib
import importlib.util
import os
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

Kernel = Callable[..., None]


def load(text: str, name: str, function: str) -> Kernel:
    """The compiled ``function`` of a module's source, from the cache where it has been compiled before.

    Args:
        text: The source. It imports what it needs and compiles with ``@compiled``.
        name: Of the file, without the digest that is added.
        function: Its name in the source.
    """
    path = _written(text, name)
    if path is None:  # no folder of our own to write to: compile for this process alone
        names: dict[str, Any] = {"compiled_here": _compiled_here}
        exec(text.replace("@compiled", "@compiled_here"), names)
        kernel: Kernel = names[function]
        return kernel
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


def _written(text: str, name: str) -> Path | None:
    """The source as a file that only this user can have written; None where there can't be one."""
    try:
        folder = cache_folder()
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
    except (OSError, RuntimeError):
        return None


def _compiled_here(signature: str) -> Callable[[Kernel], Kernel]:
    import numba

    wrap: Any = numba.njit([signature], nogil=True, boundscheck=False, error_model="numpy")
    return lambda function: wrap(function)
