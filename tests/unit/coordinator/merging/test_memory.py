"""What a merge holds beside the updates and the result, measured in a process of its own."""

from __future__ import annotations

import shutil
import types

import pytest

from benchmarks.merging import EXTRA_BYTES, RULES, label
from benchmarks.merging_memory import extra_bytes, from_maps, updates_on_disk

pytestmark = [pytest.mark.slow, pytest.mark.timeout(300)]


@pytest.mark.parametrize("name", [label(rule) for rule in RULES])
def test_a_merge_holds_at_most_16_mib_beside_input_and_result(name: str) -> None:
    assert extra_bytes(name, 20, 1_000_000) <= EXTRA_BYTES


@pytest.mark.parametrize("name", ["trimmed-mean", "multi-krum"])
def test_a_thousand_mapped_rows_stay_on_disk(name: str) -> None:
    """1 GB of rows, of which a part is resident at a time; the same part of 4 GB."""
    with updates_on_disk(1_000, 250_000) as path:
        peak, _ = from_maps(name, path, 1_000, 250_000)
    # The system maps up to half a megabyte of each row at a touch, whatever is asked for: that alone is 500 MB here.
    assert peak < 900e6


def test_updates_that_the_disk_has_no_room_for_are_not_written(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda folder: types.SimpleNamespace(free=2 << 30))
    with pytest.raises(OSError, match=r"has 2\.1 GB free, and the updates take 4\.0 GB: set TMPDIR"), \
            updates_on_disk(1_000, 1_000_000):  # fmt: skip
        raise AssertionError("written all the same")
