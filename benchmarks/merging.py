"""Merging rules at the speed of memory: each rule's time, its fraction of reading the data once, and other projects'.

    python -m benchmarks.merging [--quick] [--json PATH]

ByzFL and Flower are measured where they are installed: ``make peers`` makes an environment with both, so that
``.venv-peers/bin/python -m benchmarks.merging`` prints the ratios, too. Without ``--quick`` it takes minutes, and 4 GB
in the folder for temporary files.

The floor is measured in the same run: the processor time that one thread takes to read the same updates once. Rules are
timed twice: *whole*, from updates that are all there to result and report (gate, norms and dot products included), and
*after the last update*, when norms and dot products have been formed while updates arrived. Peers see one array in
memory, and no gate. Times are the best of several runs, because such machines are noisy; a peer's is that of one run.
"""

from __future__ import annotations

import argparse
import dataclasses
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Final

# Before numpy and torch are imported: "one thread" must hold for their libraries, too.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")

import numpy as np
from numpy.typing import NDArray

from benchmarks import merging_memory, merging_peers
from benchmarks.report import Report, Row
from benchmarks.timing import best_cpu_s, best_wall_s, load
from coordinator.merging import (
    CAF,
    NNM,
    Bulyan,
    CenteredClipping,
    DnC,
    GeometricMedian,
    Mean,
    Median,
    Merger,
    MultiKrum,
    Recipe,
    Rule,
    TrimmedMean,
    merge,
    robust,
)
from kernels.gram import gram, squared_norms
from kernels.selection import median, trimmed_mean
from kernels.weighted_sum import weighted_sum

Rows = NDArray[np.float32]

RULES: Final[tuple[Rule | Recipe, ...]] = (
    Mean(),
    Median(),
    TrimmedMean(),
    MultiKrum(),
    GeometricMedian(),
    CenteredClipping(radius=10.0),
    CAF(),
    DnC(),
    Bulyan(),
    NNM() >> TrimmedMean(),
    robust(),
)

# What the issue asks for, as ratios to ByzFL's processor time on one thread, by rows.
BYZFL_TARGETS: Final = {
    20: {
        "trimmed-mean": 60.0,
        "median": 60.0,
        "multi-krum": 20.0,
        "geometric-median": 25.0,
        "nnm >> trimmed-mean": 60.0,
    },
    100: {"trimmed-mean": 25.0, "median": 25.0, "multi-krum": 10.0, "geometric-median": 12.0},
}
FLOWER_TARGETS: Final = {20: {"bulyan": 60.0}}
COORDINATE_FLOOR: Final = 0.7
MEAN_FLOOR: Final = 0.8
EXTRA_BYTES: Final = 16 << 20
MAPPED: Final = ("mean", "trimmed-mean", "multi-krum", "recommended recipe")
MAPPED_BYTES: Final = 1 << 30


def updates(n: int, d: int) -> Rows:
    """Updates of honest participants, different for each."""
    return np.random.default_rng(n).standard_normal((n, d), dtype=np.float32)


def label(rule: Rule | Recipe) -> str:
    """Its name; the recommended recipe by that name."""
    if rule == robust():
        return "recommended recipe"
    return rule.name if isinstance(rule, Recipe) else str(rule.name)


def size_of(n: int, d: int) -> str:
    """The size of a case, in words."""
    return f"{n} x {d / 1e6:g} M"


def floor(report: Report, rows: Rows, repeats: int) -> float:
    """The processor seconds in which one thread reads the rows once."""
    from kernels.native import compiled

    @compiled("float32(float32[:, ::1])", reassociate=True)
    def read(rows: Rows) -> float:
        total = np.float32(0)
        for i in range(rows.shape[0]):
            row = rows[i]
            for k in range(row.shape[0]):
                total += row[k]
        return float(total)

    seconds = best_cpu_s(lambda: read(rows), repeats)
    case = size_of(*rows.shape)
    report.add(Row(case=f"{case}: one read", metric="processor time", value=1e3 * seconds, unit="ms", better="lower"))
    speed = rows.nbytes / seconds / 1e9
    report.add(Row(case=f"{case}: one read", metric="bandwidth", value=speed, unit="GB/s", better="higher"))
    return seconds


def kernels(report: Report, rows: Rows, f: int, repeats: int, read_s: float) -> None:
    """The kernels alone."""
    n, d = rows.shape
    out = np.empty(d, dtype=np.float32)
    weights = np.full(n, 1 / n)
    cases: dict[str, tuple[Callable[[int], object], float | None]] = {
        "weighted_sum": (lambda t: weighted_sum(weights, rows, out, threads=t), MEAN_FLOOR),
        "trimmed_mean": (lambda t: trimmed_mean(rows, f, out, threads=t), COORDINATE_FLOOR if n <= 24 else None),
        "median": (lambda t: median(rows, out, threads=t), COORDINATE_FLOOR if n <= 24 else None),
        "gram": (lambda t: gram(rows, threads=t), None),
        "squared_norms": (lambda t: squared_norms(rows, threads=t), None),
    }
    for name, (work, target) in cases.items():
        _times(report, f"{size_of(n, d)}: kernel {name}", work, repeats, read_s, target)


def _times(
    report: Report, case: str, work: Callable[[int], object], repeats: int, read_s: float, target: float | None = None
) -> float:
    one = best_cpu_s(lambda: work(1), repeats)
    two = best_wall_s(lambda: work(2), repeats)
    report.add(Row(case=case, metric="processor time, 1 thread", value=1e3 * one, unit="ms", better="lower"))
    report.add(Row(case=case, metric="wall time, 2 threads", value=1e3 * two, unit="ms", better="lower"))
    report.add(Row(case=case, metric="of one read", value=read_s / one, unit="", better="higher", target=target))
    return one


def rules(report: Report, rows: Rows, f: int, repeats: int, read_s: float, *, peers: bool) -> None:
    """Every rule, and its counterparts elsewhere."""
    n, d = rows.shape
    out = np.empty(d, dtype=np.float32)
    byzfl = merging_peers.byzfl(f) if peers else {}
    flower = merging_peers.flower(f) if peers else {}
    for rule in RULES:
        name = label(rule)
        case = f"{size_of(n, d)}: {name}"

        def whole(threads: int, rule: Rule | Recipe = rule) -> object:
            return merge(rule, rows, f=f, threads=threads, out=out)

        ours = _times(report, case, whole, repeats, read_s)
        merger = Merger(rule, d)
        merger.add_all([(f"{index:03}", row, 1.0) for index, row in enumerate(rows)])

        def after(merger: Merger = merger) -> None:
            decision = merger.decide(f=f)
            decision.write(merger.rows(decision.names), out)

        left = best_cpu_s(after, repeats)
        metric = "processor time after the last update"
        report.add(Row(case=case, metric=metric, value=1e3 * left, unit="ms", better="lower"))
        for distribution, theirs, targets in (
            ("byzfl", byzfl, BYZFL_TARGETS),
            ("flwr", flower, FLOWER_TARGETS),
        ):
            if name in theirs and _fits(n, d, name):
                seconds = _once(theirs[name], rows)
                _ratio(report, case, distribution, seconds / ours, targets.get(n, {}).get(name), seconds)


def _once(theirs: merging_peers.Merge, rows: Rows) -> float:
    """The processor time of one merge: a peer may take ten seconds, and what loads first, loads with its mean."""
    started = time.process_time()
    theirs(rows)
    return time.process_time() - started


def _fits(n: int, d: int, name: str) -> bool:
    """Whether a peer can do it here: ByzFL's NNM holds n (n - f) d numbers, Flower's Bulyan runs Krum n - 2 f times."""
    if "nnm" in name:
        return 4 * n * n * d < 4e9
    return name != "bulyan" or n <= 24


def _ratio(report: Report, case: str, peer: str, ratio: float, target: float | None, seconds: float) -> None:
    report.add(
        Row(
            case=case,
            metric=f"times faster than {peer} ({1e3 * seconds:.0f} ms)",
            value=ratio,
            unit="x",
            better="higher",
            target=target,
            peer=merging_peers.version(peer),
            ratio=ratio,
        )
    )


def memory(report: Report, n: int, d: int) -> None:
    """Resident memory above the updates and the result, for each rule in a process of its own."""
    for rule in RULES:
        name = label(rule)
        report.add(
            Row(
                case=f"{size_of(n, d)}: {name}",
                metric="memory above input and result",
                value=merging_memory.extra_bytes(name, n, d) / 2**20,
                unit="MiB",
                better="lower",
                target=EXTRA_BYTES / 2**20,
            )
        )


def maps(report: Report, n: int, d: int) -> None:
    """Updates that are mapped from a file: the most memory that a process of its own has resident, and its time."""
    try:
        with merging_memory.updates_on_disk(n, d) as path:
            for name in MAPPED:
                peak, seconds = merging_memory.from_maps(name, path, n, d)
                case = f"{size_of(n, d)} from memory maps: {name}"
                row = Row(case=case, metric="most resident", value=peak / 2**20, unit="MiB", better="lower")
                report.add(dataclasses.replace(row, target=MAPPED_BYTES / 2**20))
                report.add(Row(case=case, metric="wall time, 2 threads", value=seconds, unit="s", better="lower"))
    except OSError as error:
        print(f"merging: no updates on disk: {error}", file=sys.stderr)


def main() -> None:
    """Measure and report."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.merging", description=__doc__.partition("\n")[0])
    parser.add_argument("--quick", action="store_true", help="fewer repetitions, and peers for 20 rows only")
    parser.add_argument("--json", type=Path, metavar="PATH", help="also write the figures there")
    arguments = parser.parse_args()
    report = Report("merging")
    report.add(Row(case="load", metric="processes that want a core", value=load(), unit="", better="lower"))
    sizes = (
        [(20, 4, 1_000_000, 5), (100, 20, 1_000_000, 1)]
        if arguments.quick
        else [
            (20, 4, 1_000_000, 9),
            (100, 20, 1_000_000, 3),
            (20, 4, 10_000_000, 3),
        ]
    )
    for n, f, d, repeats in sizes:
        rows = updates(n, d)
        read_s = floor(report, rows, max(repeats, 5))
        kernels(report, rows, f, repeats, read_s)
        rules(report, rows, f, repeats, read_s, peers=not arguments.quick or n <= 24)
        del rows
    if not arguments.quick:
        memory(report, 20, 1_000_000)
        memory(report, 100, 1_000_000)
        maps(report, 1_000, 1_000_000)
    report.finish(arguments.json)


if __name__ == "__main__":
    main()
