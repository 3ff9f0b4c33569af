"""Rows that are read where they lie."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from kernels import rows as rows_module
from kernels.gram import gram
from kernels.rows import Rows, Span, over_spans
from kernels.selection import trimmed_mean
from kernels.weighted_sum import weighted_sum


def test_contiguous_rows_are_handed_on_by_address() -> None:
    table = np.arange(12, dtype=np.float32).reshape(3, 4)
    slabs = [(start, count, addresses.tolist()) for start, count, addresses in Rows(table).slabs(1, 4, 2)]
    base = table.ctypes.data
    assert slabs == [(1, 2, [base + 4, base + 20, base + 36]), (3, 1, [base + 12, base + 28, base + 44])]


def test_other_rows_go_through_a_staging_area_of_bounded_size(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rows_module, "STAGING", 4 * 3 * 10)
    monkeypatch.setattr(rows_module, "_PIECE", 5)
    table = np.arange(300, dtype=np.float32).reshape(100, 3)
    widths = [count for _, count, _ in Rows(table.T).slabs(0, 100, 1_000)]
    assert widths == [10] * 10
    many = np.zeros((100, 30), np.float32)
    assert [count for _, count, _ in Rows(many.T).slabs(0, 100, 1_000)] == [5] * 20  # no shorter than a piece
    assert weighted_sum([1.0, 10.0, 100.0], table.T).tolist() == (table @ [1.0, 10.0, 100.0]).tolist()


def test_memory_maps_are_read_and_let_go(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rows_module, "_RESIDENT", 1 << 14)
    table = np.random.default_rng(1).standard_normal((3, 20_000), dtype=np.float32)
    table.tofile(tmp_path / "rows")
    mapped = np.memmap(tmp_path / "rows", np.float32, "r", shape=table.shape)
    weights = [0.5, 0.25, 0.25]
    for rows in (mapped, [mapped[i] for i in range(3)], [table[0], mapped[1], mapped[2]]):
        assert np.array_equal(weighted_sum(weights, rows, block=4_096), weighted_sum(weights, table))


def test_many_memory_maps_are_copied_piece_by_piece(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rows_module, "_MAPPED_ROWS", 4)
    monkeypatch.setattr(rows_module, "STAGING", 4 * 5 * 1_000)
    monkeypatch.setattr(rows_module, "_PIECE", 100)
    table = np.random.default_rng(1).standard_normal((5, 20_500), dtype=np.float32)
    table.tofile(tmp_path / "rows")
    mapped = np.memmap(tmp_path / "rows", np.float32, "r", shape=table.shape)
    let_go = []
    monkeypatch.setattr(rows_module._Map, "let_go", lambda self, start, stop: let_go.append((start, stop)))
    matrix = np.full((5, 5), 0.2)
    assert np.array_equal(trimmed_mean(mapped, 1), trimmed_mean(table, 1))
    assert set(let_go) == {(start, min(start + 1_000, 20_500)) for start in range(0, 20_500, 1_000)}
    assert np.array_equal(trimmed_mean(mapped, 1, mix=matrix), trimmed_mean(table, 1, mix=matrix))
    assert np.array_equal(gram(mapped), gram(table))


def test_a_private_map_keeps_what_was_written_to_it(tmp_path: Path) -> None:
    np.zeros(50_000, np.float32).tofile(tmp_path / "row")
    mapped = np.memmap(tmp_path / "row", np.float32, "c")
    mapped[:] = 2.0
    assert weighted_sum([1.0], [mapped]).tolist() == [2.0] * 50_000
    assert mapped[0] == 2.0


def test_rows_can_be_taken_out() -> None:
    table = np.eye(4, dtype=np.float32)
    assert weighted_sum([1.0, 2.0], Rows(table).take([3, 1])).tolist() == [0.0, 2.0, 0.0, 1.0]


@pytest.mark.parametrize(("size", "threads"), [(0, 2), (1, 2), (100, 1), (100, 3), (33, 2)])
def test_spans_cover_everything_once_on_their_grain(size: int, threads: int) -> None:
    seen: list[Span] = []
    over_spans(size, threads, 16, seen.append)
    spans = sorted(seen, key=lambda span: span.start)
    assert [place for span in spans for place in range(span.start, span.stop)] == list(range(size))
    assert all(span.start % 16 == 0 for span in spans)
    assert len(spans) <= threads


def test_what_goes_wrong_in_a_thread_is_raised() -> None:
    def work(span: Span) -> None:
        raise OSError(f"at {span.start}")

    with pytest.raises(OSError, match="at"):
        over_spans(100, 2, 1, work)


def test_misfits_are_refused() -> None:
    with pytest.raises(TypeError, match="neither an array nor a reader"):
        Rows([[1.0]], 1)  # type: ignore[list-item]
    with pytest.raises(ValueError, match="dimension"):
        Rows([np.zeros((2, 2), np.float32)])
