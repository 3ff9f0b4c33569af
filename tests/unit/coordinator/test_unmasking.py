"""Unmasking by slices in processes of their own gives what one process gives, also when one of them is killed."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest

from coordinator import unmasking
from privacy.secure_aggregation.context import RoundContext, Seat
from privacy.secure_aggregation.decisions import GroupSum
from privacy.secure_aggregation.encoding import Encoding
from privacy.secure_aggregation.masking import streams
from privacy.secure_aggregation.sharing import MaskTerm
from privacy.secure_aggregation.streams import MAIN
from privacy.secure_aggregation.summing import unmask_group

DIMENSION = 300_001
COUNT = 4


def context(wire_bits: int) -> RoundContext:
    seats = [Seat(f"site-{index}", 1, bytes(32), bytes(32), bytes(32), 2_000_000_000, bytes(64)) for index in range(4)]
    return RoundContext(
        federation="clinics",
        members_count=5,
        members_head=bytes(32),
        run_id="run-1",
        plan_hash=bytes(32),
        purpose="train",
        round=1,
        attempt=1,
        task_attempt=1,
        base_version=0,
        base_digest=bytes(32),
        dimension=DIMENSION,
        encoding=Encoding(
            ring_bits=16 if wire_bits == 16 else 32,
            wire_bits=wire_bits,
            value_bits=12,
            clip_norm=1.0,
            clip_value=1.0,
            weight_cap=10,
        ),
        metrics=(),
        group_size=0,
        corrupt_percent=20,
        min_cohort=3,
        roster_change=2,
        freeze=True,
        expires_s=2_000_000_000,
        roster=tuple(seats),
    )


@pytest.fixture
def uploads(tmp_path: Path) -> list[Path]:
    return [tmp_path / str(index) for index in range(COUNT)]


def write(paths: list[Path], of: RoundContext) -> None:
    size = of.encoding.upload_bytes(of.dimension, of.layout)
    for index, path in enumerate(paths):
        path.write_bytes(np.random.default_rng(index).bytes(size))


@pytest.fixture
def terms() -> list[MaskTerm]:
    return [MaskTerm(bytes([index] * 32), -1 if index % 3 else 1) for index in range(5)]


@pytest.mark.parametrize("wire_bits", [16, 20, 32])
@pytest.mark.parametrize("processes", [1, 2, 3])
def test_processes_give_the_same(uploads: list[Path], terms: list[MaskTerm], wire_bits: int, processes: int) -> None:
    of = context(wire_bits)
    write(uploads, of)
    group = GroupSum(tuple(range(COUNT)), (bytes(32),) * COUNT, tuple(terms))
    right, _ = unmask_group(of, group, [np.memmap(path, np.uint8, "r") for path in uploads])
    found = unmasking.unmask_slices(of, streams(terms, MAIN), uploads, processes)
    assert found.dtype == right.dtype and (found == right).all()


def ended(*arguments: object) -> None:
    os._exit(9)


def test_a_slice_whose_process_was_killed_is_done_here(
    uploads: list[Path], terms: list[MaskTerm], monkeypatch: pytest.MonkeyPatch
) -> None:
    of = context(16)
    write(uploads, of)
    right = unmasking.unmask_slices(of, streams(terms, MAIN), uploads, 2)
    monkeypatch.setattr(unmasking, "_slice_job", ended)
    assert (unmasking.unmask_slices(of, streams(terms, MAIN), uploads, 2) == right).all()


def test_a_file_that_is_gone_is_an_error(uploads: list[Path], terms: list[MaskTerm]) -> None:
    of = context(16)
    write(uploads, of)
    uploads[2].unlink()
    with pytest.raises(FileNotFoundError):
        unmasking.unmask_slices(of, streams(terms, MAIN), uploads, 2)
