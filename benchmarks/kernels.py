"""How close the kernels and the merge built on them come to what the machine allows.

    python -m benchmarks.kernels [--quick] [--json PATH]

The floor is measured in the same run: reading an array (its maximum) and copying one array to another. The fraction of
a kernel is the time that its bytes take at the machine's read and copy speed, over the time it took.
"""

from __future__ import annotations

import argparse
import functools
import hashlib
import json
import os
import statistics
import tempfile
import time
from pathlib import Path
from typing import Final

import numpy as np
from numpy.typing import NDArray

from benchmarks.report import Report, Row
from benchmarks.timing import best_wall_s
from coordinator.aggregation import FedAdam, FedAvg, MergeJob, ServerOptimizer, Update, merge
from kernels.weighted_sum import BLOCK, weighted_sum
from wire import BlobStore

_ROWS: Final = 4
_MERGE_TARGET_S: Final = 0.3


def floor(report: Report, size: int, repeats: int) -> tuple[float, float]:
    """Measure reading and copying ``size`` float32; the speeds in bytes per second (a copy counts both directions)."""
    source = np.ones(size, dtype=np.float32)
    target = np.empty_like(source)
    read = source.nbytes / best_wall_s(source.max, repeats)
    copy = 2 * source.nbytes / best_wall_s(lambda: np.copyto(target, source), repeats)
    case = f"{size / 1e6:g} M float32"
    report.add(Row(case=case, metric="read", value=read / 1e9, unit="GB/s", better="higher"))
    report.add(Row(case=case, metric="copy", value=copy / 1e9, unit="GB/s", better="higher"))
    return read, copy


def sums(report: Report, size: int, repeats: int, read: float, copy: float) -> None:
    """The weighted sum of ``_ROWS`` rows of ``size``, by block size."""
    generator = np.random.default_rng(1)
    rows = [generator.standard_normal(size, dtype=np.float32) for _ in range(_ROWS)]
    weights = np.full(_ROWS, 1 / _ROWS)
    out = np.empty(size)
    # Rows are read; the result is written, which moves its bytes once in and once out of the cache.
    ideal = sum(row.nbytes for row in rows) / read + 2 * out.nbytes / copy
    for block in (4_096, 16_384, 65_536, BLOCK, 1_048_576):
        seconds = best_wall_s(functools.partial(weighted_sum, weights, rows, out, block=block), repeats)
        case = f"weighted_sum {_ROWS} x {size / 1e6:g} M, block {block}"
        report.add(Row(case=case, metric="time", value=1e3 * seconds, unit="ms", better="lower"))
        report.add(Row(case=case, metric="of the floor", value=ideal / seconds, unit="", better="higher"))
    naive = best_wall_s(lambda: _naive(weights, rows), repeats)
    case = f"weighted_sum {_ROWS} x {size / 1e6:g} M, block {BLOCK}"
    ours = best_wall_s(lambda: weighted_sum(weights, rows, out), repeats)
    report.add(
        Row(
            case=case,
            metric="time",
            value=1e3 * ours,
            unit="ms",
            better="lower",
            peer="numpy, whole arrays",
            ratio=naive / ours,
        )
    )


def _naive(weights: NDArray[np.float64], rows: list[NDArray[np.float32]]) -> NDArray[np.float64]:
    total: NDArray[np.float64] = weights[0] * rows[0].astype(np.float64)
    for weight, row in zip(weights[1:], rows[1:], strict=True):
        total += weight * row
    return total


def merges(report: Report, size: int, repeats: int) -> None:
    """Whole merges of ``_ROWS`` updates: reading, arithmetic, hashing, writing and syncing files."""
    with tempfile.TemporaryDirectory(prefix="fedloom-bench-") as name:
        folder = Path(name)
        base, updates = _files(folder, size)
        blobs = BlobStore(folder / "blobs")
        for optimizer in (FedAvg(), FedAvg(momentum=0.9), FedAdam(learning_rate=0.01)):
            _one_merge(report, blobs, base, updates, optimizer, size, repeats)
        content = memoryview(bytearray(4 * size))
        hashing = best_wall_s(lambda: hashlib.sha256(content), repeats)
        writing = statistics.median(_write_s(folder / "probe", content) for _ in range(repeats))
        case = f"{size / 1e6:g} M float32"
        report.add(Row(case=case, metric="SHA-256", value=1e3 * hashing, unit="ms", better="lower"))
        report.add(Row(case=case, metric="write and sync", value=1e3 * writing, unit="ms", better="lower"))


def _one_merge(
    report: Report,
    blobs: BlobStore,
    base: Path,
    updates: tuple[Update, ...],
    optimizer: ServerOptimizer,
    size: int,
    repeats: int,
) -> None:
    first = merge(MergeJob(base=base, updates=updates, optimizer=optimizer), blobs)
    state = tuple(blobs.path(digest) for digest in first.state)
    job = MergeJob(base=base, updates=updates, optimizer=optimizer, state=state)
    started = time.process_time()
    seconds = best_wall_s(lambda: merge(job, blobs), repeats)
    cpu_s = (time.process_time() - started) / (repeats + 1)
    label = type(optimizer).__name__ + (" with momentum" if optimizer.state_names == ("momentum",) else "")
    case = f"merge {len(updates)} x {size / 1e6:g} M, {label}"
    target = _MERGE_TARGET_S if size == 10_000_000 and not optimizer.state_names else None
    report.add(Row(case=case, metric="time", value=seconds, unit="s", better="lower", target=target))
    report.add(Row(case=case, metric="processor time", value=cpu_s, unit="s", better="lower"))


def _files(folder: Path, size: int) -> tuple[Path, tuple[Update, ...]]:
    generator = np.random.default_rng(2)
    header = json.dumps({"w": {"dtype": "F32", "shape": [size], "data_offsets": [0, 4 * size]}}).encode()
    header += b" " * (-len(header) % 8)
    base = folder / "base.safetensors"
    vector = generator.standard_normal(size, dtype=np.float32)
    base.write_bytes(len(header).to_bytes(8, "little") + header + vector.tobytes())
    updates = []
    for index in range(_ROWS):
        path = folder / f"update-{index}"
        (0.01 * generator.standard_normal(size, dtype=np.float32)).astype("<f4").tofile(path)
        updates.append(Update(participant=f"site-{index}", path=path, examples=100 + index))
    return base, tuple(updates)


def _write_s(path: Path, content: memoryview) -> float:
    started = time.perf_counter()
    with path.open("wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
    seconds = time.perf_counter() - started
    path.unlink()
    return seconds


def main() -> None:
    """Measure and report."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.kernels", description=__doc__.partition("\n")[0])
    parser.add_argument("--quick", action="store_true", help="fewer repetitions")
    parser.add_argument("--json", type=Path, metavar="PATH", help="also write the figures there")
    arguments = parser.parse_args()
    repeats = 3 if arguments.quick else 9
    size = 10_000_000
    report = Report("kernels")
    read, copy = floor(report, size, repeats)
    sums(report, size, repeats, read, copy)
    merges(report, size, repeats)
    if not arguments.quick:
        merges(report, 100_000_000, 2)
    report.finish(arguments.json)


if __name__ == "__main__":
    main()
