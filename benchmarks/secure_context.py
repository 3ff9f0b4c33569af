"""Round contexts and rooms for files, as the benchmarks of secure aggregation need them."""

from __future__ import annotations

import contextlib
import shutil
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Final

from privacy.secure_aggregation.context import RoundContext, Seat
from privacy.secure_aggregation.encoding import Encoding, largest_value_bits

FEDERATION: Final = "bench"
METRICS: Final = ("loss",)
EXAMPLES: Final = 100
"""Of each participant, and the cap."""
NOW_S: Final = 1_000_000.0

_SPARE: Final = 1.25


def encoding(wire_bits: int, participants: int) -> Encoding:
    """The finest encoding of this width for so many participants."""
    return Encoding(
        ring_bits=16 if wire_bits == 16 else 32,
        wire_bits=wire_bits,
        value_bits=largest_value_bits(wire_bits, participants),
        clip_norm=100.0,
        clip_value=0.05,
        weight_cap=EXAMPLES,
    )


def round_context(dimension: int, wire_bits: int, seats: Sequence[Seat], **changes: Any) -> RoundContext:
    """A training round of these seats."""
    values: dict[str, Any] = {
        "federation": FEDERATION,
        "members_count": len(seats) + 1,
        "members_head": bytes(32),
        "run_id": "run-1",
        "plan_hash": bytes(32),
        "purpose": "train",
        "round": 1,
        "attempt": 1,
        "task_attempt": 1,
        "base_version": 0,
        "base_digest": bytes(32),
        "dimension": dimension,
        "encoding": encoding(wire_bits, len(seats)),
        "metrics": METRICS,
        "group_size": 0,
        "corrupt_percent": 20,
        "min_cohort": 3,
        "roster_change": 2,
        "freeze": True,
        "expires_s": int(NOW_S) + 3_600,
        "roster": tuple(seats),
    }
    return RoundContext(**{**values, **changes})


def dummy_seats(count: int) -> list[Seat]:
    """Seats without keys, where only numbers are worked on."""
    return [Seat(f"site-{index:03}", 1, bytes(32), bytes(32), bytes(32), 0, bytes(64)) for index in range(count)]


@contextlib.contextmanager
def room(needed: int, *, memory: bool) -> Iterator[Path | None]:
    """A folder for so many bytes, removed at the end; None, with the reason printed, where there is no room.

    Args:
        needed: Bytes.
        memory: Rather in memory than on a disk, where the system has such a folder and it is large enough.
    """
    shared = Path("/dev/shm")
    places = [shared] if memory and shared.is_dir() else []
    places.append(Path(tempfile.gettempdir()))
    for place in places:
        if shutil.disk_usage(place).free >= _SPARE * needed:
            with tempfile.TemporaryDirectory(prefix="fedloom-bench-", dir=place) as name:
                yield Path(name)
            return
    print(f"no room for {needed / 1e9:.1f} GB in {places[-1]}: left out")
    yield None
