"""How much memory a merge takes, in a process of its own: above updates that it holds, and from memory maps."""

from __future__ import annotations

import contextlib
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import numpy as np

_SPARE: Final = 1 << 30  # bytes of disk to leave alone

_ABOVE: Final = """
import sys, threading, time
import numpy as np, psutil
from benchmarks.merging import RULES, label, updates
from coordinator.merging import merge
name, n, d = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
rule = next(rule for rule in RULES if label(rule) == name)
f = n // 5
rows, out = updates(n, d), np.zeros(d, np.float32)
merge(rule, rows[:, : d // 4].copy(), f=f, out=out[: d // 4], threads=2)
me = psutil.Process()
before = peak = me.memory_info().rss
done = False
def watch():
    global peak
    while not done:
        peak = max(peak, me.memory_info().rss)
        time.sleep(0.0005)
thread = threading.Thread(target=watch)
thread.start()
for _ in range(3):
    merge(rule, rows, f=f, out=out, threads=2)
done = True
thread.join()
print(peak - before)
"""

_MAPPED: Final = """
import sys, time
import numpy as np
from benchmarks.merging import RULES, label
from coordinator.merging import merge
name, path, n, d = sys.argv[1], sys.argv[2], int(sys.argv[3]), int(sys.argv[4])
rule = next(rule for rule in RULES if label(rule) == name)
rows = np.memmap(path, np.float32, "r", shape=(n, d))
started = time.perf_counter()
merged = merge(rule, [rows[i] for i in range(n)], f=n // 5, threads=2)
seconds = time.perf_counter() - started
assert np.isfinite(merged.value).all()
peak = next(line.split()[1] for line in open("/proc/self/status") if line.startswith("VmHWM"))
print(1024 * int(peak), seconds)
"""


def extra_bytes(name: str, n: int, d: int) -> int:
    """The most resident memory that a merge adds to a process that holds updates and result."""
    return int(_run(_ABOVE, name, n, d))


@contextlib.contextmanager
def updates_on_disk(n: int, d: int) -> Iterator[Path]:
    """A file with updates [n, d] of float32 in the folder for temporary files, and no longer.

    Raises:
        OSError: It would leave less than 1 GiB free.
    """
    size = 4 * n * d
    with tempfile.TemporaryDirectory(prefix="fedloom-bench-") as folder:
        free = shutil.disk_usage(folder).free
        if free < size + _SPARE:
            raise OSError(
                f"{folder} has {free / 1e9:.1f} GB free, and the updates take {size / 1e9:.1f} GB: set TMPDIR"
            )
        path = Path(folder) / "updates"
        generator = np.random.default_rng(n)
        with path.open("wb") as file:
            for _ in range(n):
                generator.standard_normal(d, dtype=np.float32).tofile(file)
        yield path


def from_maps(name: str, path: Path, n: int, d: int) -> tuple[int, float]:
    """The most resident memory of a process that merges the updates of a file, in bytes, and the seconds it takes.

    Everything counts: the interpreter, the libraries, the pages of the file that are mapped in, the result.
    """
    peak, seconds = _run(_MAPPED, name, path, n, d).split()
    return int(peak), float(seconds)


def _run(code: str, *arguments: object) -> str:
    done = subprocess.run(
        [sys.executable, "-c", code, *map(str, arguments)], capture_output=True, text=True, check=False
    )
    if done.returncode:
        raise RuntimeError(f"the process that was to measure memory failed:\n{done.stderr}")
    return done.stdout
