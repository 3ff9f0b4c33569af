"""The coordinator's part after the last share: from masked uploads on its disk to the mean update, beside Flower's.

The uploads are noise, all but the last: that one is chosen so that the sum is one that honest participants could have
made, since a sum that isn't is refused. So the whole of ``coordinator.aggregation.reveal`` is timed: reading, adding,
unmasking in as many processes as there are cores, the checks, the hash of the sum, decoding, writing the mean.
"""

from __future__ import annotations

import dataclasses
import math
import os
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Final, Literal

import numpy as np

from benchmarks import secure_peer
from benchmarks.report import Report, Row
from benchmarks.secure_context import EXAMPLES, dummy_seats, room, round_context
from benchmarks.timing import tree_cpu_s
from coordinator.aggregation import reveal
from coordinator.rounds import BeginUnmask
from coordinator.unmasking import unmask_slices
from privacy.secure_aggregation.context import RoundContext
from privacy.secure_aggregation.decisions import GroupSum, Unmask
from privacy.secure_aggregation.masking import streams
from privacy.secure_aggregation.sharing import MaskTerm
from privacy.secure_aggregation.streams import MAIN
from privacy.secure_aggregation.summing import unmask_group
from privacy.secure_aggregation.tail import encode_tail
from wire import BlobStore

Better = Literal["higher", "lower"]

PEER_TARGET: Final = 20.0
PROCESSES_TARGET: Final = 1.8

# The specification's seconds on two 2.5 GHz cores for 100 participants and 10 M parameters: no drop, ten late drops.
_SECONDS: Final = {(32, 0): 0.8, (16, 0): 0.4, (32, 10): 7.5, (16, 10): 3.8}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Size:
    """What is unmasked.

    Attributes:
        participants: In the frozen set.
        drops: So many of them upload nothing.
        dimension: Coordinates.
        trials: Runs, of which the best counts.
        peer_operations: How often each of Flower's operations is timed.
    """

    participants: int
    drops: int
    dimension: int
    trials: int
    peer_operations: int

    @property
    def stated(self) -> bool:
        """Whether this is the size that the specification states seconds for."""
        return (self.participants, self.dimension) == (100, 10_000_000)


def unmasking(report: Report, size: Size, ring_bits: Sequence[int], floor: float) -> None:
    """Unmask with late drops and without, in each ring.

    Args:
        report: Gets the rows.
        size: Of the case.
        ring_bits: 16, 32.
        floor: Bytes of AES-256-CTR a second, of one core.
    """
    operations = None
    name = secure_peer.name()
    if name is not None:
        operations = secure_peer.unmasking(size.dimension, size.peer_operations)
        for metric, seconds in dataclasses.asdict(operations).items():
            report.add(
                Row(
                    case=f"{name}: server, {size.dimension / 1e6:g} M",
                    metric={"upload_s": "add an upload", "mask_s": "take a mask off", "end_s": "dequantize"}[metric],
                    value=1e3 * seconds,
                    unit="ms",
                    better="lower",
                )
            )
    for bits in ring_bits:
        seats = dummy_seats(size.participants)
        context = round_context(size.dimension, bits, seats)
        upload = context.encoding.upload_bytes(context.dimension, context.layout)
        with room((size.participants + 4) * upload, memory=False) as folder:
            if folder is None:
                continue
            blobs = BlobStore(folder)
            noise = _write_noise(blobs, size.participants - 1, upload)
            for drops in (size.drops, 0):
                case = _Case(context, blobs, noise[: size.participants - drops - 1], drops)
                case.measure(size.trials)
                theirs = None if operations is None else operations.whole_s(size.participants - drops, drops)
                _report(report, case, size, floor, theirs)


def scaling(report: Report, participants: int, drops: int, dimension: int, trials: int) -> None:
    """The same sum in one process and in two, by slices of coordinates, in turn."""
    for bits in (32, 16):
        context = round_context(dimension, bits, dummy_seats(participants))
        upload = context.encoding.upload_bytes(context.dimension, context.layout)
        with room((participants + 1) * upload, memory=False) as folder:
            if folder is None:
                continue
            blobs = BlobStore(folder)
            case = _Case(context, blobs, _write_noise(blobs, participants - drops - 1, upload), drops)
            case.measure(trials, whole=False)
        text = f"unmasking by slices, {participants} x {dimension / 1e6:g} M, {drops} late drops, {bits}-bit ring"
        figures: list[tuple[str, float, str, float | None]] = [
            ("one process", case.one_s, "s", None),
            ("two processes", case.two_s, "s", None),
            ("one process / two", case.one_s / case.two_s, "x", PROCESSES_TARGET),
            ("by processor time, half of it each", 2 * case.one_cpu_s / case.two_cpu_s, "x", None),
            ("first start of the processes", case.start_s, "s", None),
        ]
        for metric, value, unit, target in figures:
            better: Better = "higher" if unit == "x" else "lower"
            report.add(Row(case=text, metric=metric, value=value, unit=unit, better=better, target=target))


def _write_noise(blobs: BlobStore, count: int, size: int) -> list[bytes]:
    """Files that no two are alike, under names that are no digests of theirs."""
    block = np.random.default_rng(4).bytes(size)
    names = [index.to_bytes(32, "big") for index in range(1, count + 1)]
    for index, name in enumerate(names):
        with blobs.path(name).open("wb") as file:
            file.write(block[64 * index :])
            file.write(block[: 64 * index])
            file.flush()
            os.fsync(file.fileno())  # or the disk would be busy with it later
    return names


class _Case:
    """One sum to unmask.

    Args:
        context: Of the round.
        blobs: Where the uploads are.
        noise: The uploads but the last.
        drops: Participants whose masks are in the uploads and who have uploaded nothing.
    """

    def __init__(self, context: RoundContext, blobs: BlobStore, noise: Sequence[bytes], drops: int) -> None:
        self.context = context
        self.blobs = blobs
        self.drops = drops
        self.survivors = len(noise) + 1
        self._last = (1 << 64 | drops).to_bytes(32, "big")
        terms = [MaskTerm(os.urandom(32), -1) for _ in range(self.survivors)]
        terms += [MaskTerm(os.urandom(32), 1 if index % 2 else -1) for index in range(drops * self.survivors)]
        self.group = GroupSum(tuple(range(self.survivors)), (*noise, self._last), tuple(terms))
        self.one_s = self.two_s = self.whole_s = math.inf
        self.one_cpu_s = self.two_cpu_s = self.whole_cpu_s = math.inf
        self.start_s = 0.0

    @property
    def paths(self) -> list[Path]:
        """Of the uploads."""
        return [self.blobs.path(digest) for digest in self.group.digests]

    def measure(self, trials: int, *, whole: bool = True) -> None:
        """Time one process, two, and, with ``whole``, all that is done, several times in turn."""
        size = self.context.encoding.upload_bytes(self.context.dimension, self.context.layout)
        self.blobs.path(self._last).write_bytes(bytes(size))
        terms = streams(self.group.terms, MAIN)
        for trial in range(trials):
            started, cpu = time.perf_counter(), time.process_time()
            main, tail = unmask_group(self.context, self.group, [np.memmap(path, np.uint8, "r") for path in self.paths])
            self.one_s = min(self.one_s, time.perf_counter() - started)
            self.one_cpu_s = min(self.one_cpu_s, time.process_time() - cpu)
            if trial == 0:
                # What is missing to a sum of the survivors' weights and of coordinates that are all zero.
                one = encode_tail(self.context.layout, EXAMPLES, {"loss": 1.0}) * np.uint64(self.survivors)
                content = (np.zeros_like(main) - main).tobytes() + (one - tail).tobytes()
                self.blobs.path(self._last).write_bytes(content)
                first = time.perf_counter()
                unmask_slices(self.context, terms, self.paths, 2)
                self.start_s = time.perf_counter() - first
            started, cpu = time.perf_counter(), tree_cpu_s()
            main = unmask_slices(self.context, terms, self.paths, 2)
            self.two_s = min(self.two_s, time.perf_counter() - started)
            self.two_cpu_s = min(self.two_cpu_s, tree_cpu_s() - cpu)
            if main.any():
                raise AssertionError("two processes found another sum")
            if whole:
                self._reveal()
        self.start_s -= self.two_s

    def _reveal(self) -> None:
        order = BeginUnmask(round=1, attempt=1, order=Unmask(self.context, (self.group,)), record=())
        started, cpu = time.perf_counter(), tree_cpu_s()
        revealed = reveal(self.blobs, order)
        seconds = time.perf_counter() - started
        self.whole_s = min(self.whole_s, seconds)
        self.whole_cpu_s = min(self.whole_cpu_s, tree_cpu_s() - cpu)
        if revealed.weight != self.survivors * EXAMPLES:
            raise AssertionError("the sum isn't that of the survivors")


def _report(report: Report, case: _Case, size: Size, floor: float, theirs: float | None) -> None:
    bits, cores = case.context.encoding.ring_bits, len(os.sched_getaffinity(0))
    name = secure_peer.name()
    drops = f"{case.drops} late drops" if case.drops else "no drop"
    text = f"server, {size.participants} x {size.dimension / 1e6:g} M, {drops}, {bits}-bit ring"
    keystream = len(case.group.terms) * case.context.dimension * bits // 8
    ratio = None if theirs is None else theirs / case.whole_s

    def add(
        metric: str, value: float, unit: str, better: Better, target: float | None = None, against: bool = False
    ) -> None:
        report.add(
            Row(
                case=text,
                metric=metric,
                value=value,
                unit=unit,
                better=better,
                target=target,
                peer=name if against else None,
                ratio=ratio if against else None,
            )
        )

    stated = _SECONDS[bits, case.drops] if size.stated and (bits, case.drops) in _SECONDS else None
    add("uploads to mean update", case.whole_s, "s", "lower", stated, against=True)
    add("the same, processor time", case.whole_cpu_s, "s", "lower")
    add(f"of the AES floor of {cores} cores", keystream / floor / cores / case.whole_s, "", "higher")
    add("adding and unmasking alone, one process", case.one_s, "s", "lower")
    add("adding and unmasking alone, two processes", case.two_s, "s", "lower")
    if theirs is not None and ratio is not None:
        how = "operations x count" if case.drops else "operations x count, no drop"
        report.add(Row(case=f"{name}: {text}", metric=how, value=theirs, unit="s", better="lower"))
        add(f"{name} / ours", ratio, "x", "higher", PEER_TARGET if case.drops and size.stated else None, against=True)
