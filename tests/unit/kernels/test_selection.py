"""Selection in memory, beyond what every back end is checked for: any values, straight lines, networks, the cache."""

from __future__ import annotations

import os
import stat
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from kernel_checks import VALUES, make, same_bits

import kernels.selection as selection
from kernels.selection import around_median, median, reference, straight, trimmed_mean
from kernels.selection.network import network

ANY = st.floats(width=32, allow_subnormal=True)


@pytest.mark.parametrize("case", VALUES)
def test_the_straight_line_gives_the_bits_of_the_table(
    case: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("FEDLOOM_CACHE", str(tmp_path))  # only the first case compiles
    rows = VALUES[case](make(9, 1_003))
    table, nearest = trimmed_mean(rows, 2), around_median(rows, 4)
    monkeypatch.setattr(selection, "STRAIGHT_WORK", 0)
    assert same_bits(trimmed_mean(rows, 2), table)
    assert same_bits(trimmed_mean(list(rows), 2, threads=2), table)
    assert same_bits(around_median(rows, 4), nearest)


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 7).flatmap(lambda n: hnp.arrays(np.float32, (n, 5), elements=ANY)), st.randoms())
def test_any_values_in_any_order(rows: np.ndarray, random: np.random.Generator) -> None:
    order = list(range(len(rows)))
    random.shuffle(order)  # type: ignore[arg-type]
    trim = (len(rows) - 1) // 2
    for pick in (lambda x: trimmed_mean(x, trim), median, lambda x: around_median(x, len(rows) - trim)):
        assert pick(rows[order]).tobytes() == pick(rows).tobytes()
    assert same_bits(trimmed_mean(rows, trim), reference.ranks_mean(rows, trim, len(rows) - trim))


def test_mixing_is_the_same_from_a_list_and_by_two_threads() -> None:
    rows = make(26, 9_000)
    matrix = np.random.default_rng(2).random((30, 26)) / 26
    found = trimmed_mean(rows, 9, mix=matrix)
    assert same_bits(trimmed_mean(list(rows), 9, mix=matrix, threads=2), found)


def test_slicing_the_coordinates_changes_no_bit() -> None:
    rows = make(26, 500)
    whole = trimmed_mean(rows, 5)
    pieces = np.concatenate([trimmed_mean(rows[:, a:b], 5) for a, b in ((0, 7), (7, 200), (200, 500))])
    assert same_bits(pieces, whole)
    assert same_bits(trimmed_mean(rows, 5, threads=2), whole)


# --- networks ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("size", "first", "last", "comparators"),
    [(20, 4, 16, 95), (20, 9, 11, 81), (100, 20, 80, 1027), (100, 49, 51, 889)],
)
def test_networks_have_the_known_number_of_comparators(size: int, first: int, last: int, comparators: int) -> None:
    assert len(network(size, first, last)) == comparators


@pytest.mark.parametrize("size", range(1, 11))
def test_networks_select_every_pattern_of_zeros_and_ones(size: int) -> None:
    """By the zero-one principle that is a proof."""
    patterns = (np.arange(1 << size)[:, None] >> np.arange(size)) & 1
    for first in range(size):
        for last in range(first + 1, size + 1):
            values = patterns.copy()
            for low, high, keep_low, keep_high in network(size, first, last):
                small = np.minimum(values[:, low], values[:, high])
                large = np.maximum(values[:, low], values[:, high])
                if keep_low:
                    values[:, low] = small
                if keep_high:
                    values[:, high] = large
            assert np.array_equal(values[:, first:last], np.sort(patterns, axis=1)[:, first:last])


# --- the generated code and its cache ---------------------------------------------------------------------------------


@pytest.fixture
def fresh(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    monkeypatch.setenv("FEDLOOM_CACHE", str(tmp_path / "cache"))
    straight.straight_line.cache_clear()
    return tmp_path / "cache" / "kernels"


def run(kernel: Callable[..., None], rows: np.ndarray) -> np.ndarray:
    out = np.empty(rows.shape[1], np.float32)
    addresses = rows.ctypes.data + np.arange(len(rows), dtype=np.int64) * rows.strides[0]
    kernel(addresses, rows.shape[1] // 16, np.inf, out)
    return out


def test_generated_code_is_kept_and_used_again(fresh: Path) -> None:
    rows = make(3, 96)
    expected = reference.ranks_mean(rows, 1, 2)
    assert same_bits(run(straight.straight_line(3, 1, 2), rows), expected)
    (file,) = fresh.glob("*.py")
    assert stat.S_IMODE(fresh.stat().st_mode) == 0o700
    assert list((fresh / "__pycache__").glob("*.nbc"))
    file.write_text("raise SystemExit('not ours')")  # damaged: written anew
    straight.straight_line.cache_clear()
    assert same_bits(run(straight.straight_line(3, 1, 2), rows), expected)
    assert "not ours" not in file.read_text()


def test_a_folder_that_others_may_write_is_not_trusted(fresh: Path) -> None:
    fresh.mkdir(parents=True)
    os.chmod(fresh, 0o777)
    rows = make(3, 96)
    assert same_bits(run(straight.straight_line(3, 1, 2), rows), reference.ranks_mean(rows, 1, 2))
    assert not list(fresh.iterdir())


def test_without_a_folder_it_is_compiled_for_the_process(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("FEDLOOM_CACHE", str(tmp_path / "file"))
    straight.straight_line.cache_clear()
    rows = make(2, 48)
    assert same_bits(run(straight.straight_line(2, 0, 2), rows), reference.ranks_mean(rows, 0, 2))


# --- safety -----------------------------------------------------------------------------------------------------------


def test_a_nan_is_trimmed_like_a_largest_value_and_stays_at_its_coordinate() -> None:
    rows = make(5, 70)
    clean = trimmed_mean(rows, 1)
    rows[2, 31] = np.nan
    found = trimmed_mean(rows, 1)
    assert np.isfinite(found).all()
    assert same_bits(np.delete(found, 31), np.delete(clean, 31))
    assert around_median(rows, 3)[31] == reference.around_median(rows, 3)[31]


@pytest.mark.slow
def test_denormals_take_no_longer() -> None:
    plain = make(26, 200_000)
    tiny = (plain * 1e-40).astype(np.float32)
    matrix = np.full((26, 26), 1 / 26)

    def seconds(rows: np.ndarray) -> float:
        times = []
        for _ in range(5):
            started = time.process_time()
            trimmed_mean(rows, 5, mix=matrix)
            times.append(time.process_time() - started)
        return min(times)

    seconds(plain)
    assert seconds(tiny) < 3 * seconds(plain)


@pytest.mark.parametrize(
    ("call", "says"),
    [
        (lambda x: trimmed_mean(x, 2), "leaves nothing"),
        (lambda x: trimmed_mean(x, -1), "leaves nothing"),
        (lambda x: around_median(x, 5), "from 1 to 4"),
        (lambda x: median(x, mix=np.ones((2, 3))), "can't mix 4 rows"),
        (lambda x: median(x, np.zeros(5, np.float32)), "out has shape"),
    ],
)
def test_misfits_are_refused(call: Callable[[np.ndarray], object], says: str) -> None:
    with pytest.raises(ValueError, match=says):
        call(make(4, 6))
    with pytest.raises(TypeError, match="out is float64"):
        median(make(4, 6), np.zeros(6))  # type: ignore[arg-type]
