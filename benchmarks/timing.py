"""Clocks for machines that others use too: processor time, of this process or of all that it started."""

from __future__ import annotations

import os
import resource
import time
from collections.abc import Callable
from pathlib import Path


def best_cpu_s(work: Callable[[], object], repeats: int, before: Callable[[], object] | None = None) -> float:
    """The least processor time of several runs in seconds, after one that doesn't count.

    Args:
        work: What is timed.
        repeats: How many runs count.
        before: Is done before each run and doesn't count.
    """
    times = []
    for _ in range(repeats + 1):
        if before is not None:
            before()
        started = time.process_time()
        work()
        times.append(time.process_time() - started)
    return min(times[1:])


def best_wall_s(work: Callable[[], object], repeats: int) -> float:
    """The shortest of several runs in seconds, after one that doesn't count: what the machine allows, not its load."""
    work()
    times = []
    for _ in range(repeats):
        started = time.perf_counter()
        work()
        times.append(time.perf_counter() - started)
    return min(times)


def tree_cpu_s() -> float:
    """Processor seconds so far of this process, its children and theirs; to 10 ms for those that live.

    A process that has ended counts once its parent has waited for it.
    """
    ended = resource.getrusage(resource.RUSAGE_CHILDREN)
    ticks = 0
    for path in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = path.read_text().rpartition(")")[2].split()
        except OSError:
            continue  # it has just ended
        if int(fields[1]) == os.getpid():
            ticks += sum(int(field) for field in fields[11:15])  # its own, and its ended children's
    return time.process_time() + ended.ru_utime + ended.ru_stime + ticks / os.sysconf("SC_CLK_TCK")


def load() -> float:
    """How many processes wanted a processor over the last minute, ours among them."""
    return os.getloadavg()[0]
