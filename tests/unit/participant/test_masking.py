"""A site's masks, masked updates and residuals, on files."""

from __future__ import annotations

import dataclasses
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from participant.actions import ExpandMask, MaskUpdate
from participant.masking import Masking
from participant.store import ParticipantStore, TaskRecord, TaskState
from participant.work import Job
from privacy.secure_aggregation.context import RoundContext, Seat
from privacy.secure_aggregation.encoding import Encoding
from privacy.secure_aggregation.errors import SecureAggregationError
from privacy.secure_aggregation.masking import dither_seed, expand_mask
from privacy.secure_aggregation.sharing import MaskTerm
from privacy.secure_aggregation.streams import MAIN, Stream, add_streams
from privacy.secure_aggregation.tail import decode_tail, encode_tail, split_upload
from wire import BlobStore, DataError

DIMENSION = 501
ENCODING = Encoding(ring_bits=16, wire_bits=16, value_bits=8, clip_norm=100.0, clip_value=1.0, weight_cap=50)
TERMS = (MaskTerm(b"b" * 32, 1), MaskTerm(b"1" * 32, -1), MaskTerm(b"2" * 32, 1))
GONE = (MaskTerm(b"2" * 32, -1),)
EXAMPLES = 30


def context(number: int = 1, *, purpose: Any = "train", encoding: Encoding = ENCODING) -> RoundContext:
    seats = [Seat(f"site-{item}", 1, bytes(32), bytes(32), bytes(32), 2_000_000_000, bytes(64)) for item in range(4)]
    return RoundContext(
        federation="clinics",
        members_count=5,
        members_head=bytes(32),
        run_id="run-1",
        plan_hash=bytes(32),
        purpose=purpose,
        round=number,
        attempt=1,
        task_attempt=1,
        base_version=0,
        base_digest=bytes(32),
        dimension=DIMENSION if purpose == "train" else 0,
        encoding=encoding,
        metrics=("evaluation/accuracy", "loss"),
        group_size=0,
        corrupt_percent=20,
        min_cohort=3,
        roster_change=2,
        freeze=True,
        expires_s=2_000_000_000,
        roster=tuple(seats),
    )


def update(number: int) -> np.ndarray:
    return np.random.default_rng(number).normal(0, 0.1, DIMENSION).astype(np.float32)


class Site:
    """Journal, blobs and masks of one site, which can be killed at any moment."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.store = ParticipantStore(folder / "journal.sqlite")
        self.blobs = BlobStore(folder / "blobs")
        self.masking = Masking(folder / "masks", "site-0", self.store, self.blobs)

    def restart(self) -> None:
        self.masking.close()
        self.store.close()
        self.__init__(self.folder)  # type: ignore[misc]

    def train(self, number: int = 1, *, attempt: int = 1, values: np.ndarray | None = None) -> TaskRecord:
        """A task with its result in the journal."""
        job = Job(
            task_id=f"run-1/{number}.{attempt}/site-0",
            run_id="run-1",
            train=True,
            round=number,
            rounds=9,
            attempt=attempt,
            base_version=number - 1,
            base_digest=bytes(32),
            base_size=100,
            seed=7,
            evaluate=True,
        )
        self.store.accept(job)
        content = (update(number) if values is None else values).astype("<f4").tobytes()
        with self.blobs.writer(len(content)) as writer:
            writer.write(content)
            digest = writer.commit()
        return self.store.trained(
            job.task_id,
            update_digest=digest,
            update_size=len(content),
            examples=EXAMPLES,
            metrics={"loss": 0.5, "private": 3.0},
            evaluation={"accuracy": 0.25, "loss": 9.0},
        )

    def mask(self, record: TaskRecord, of: RoundContext) -> bytes:
        """Expand and mask as the agent asks for it; the upload."""
        self.masking.expand(ExpandMask(of, TERMS))
        digest = self.masking.mask(MaskUpdate(of, GONE, record, record.seed, integers=False))
        return self.blobs.path(digest).read_bytes()

    def clear(self, upload: bytes, of: RoundContext) -> tuple[np.ndarray, np.ndarray]:
        """The upload without its masks: ring elements and tail."""
        packed, tail = split_upload(upload, of.layout)
        main = of.encoding.unpack(packed, of.dimension).copy() if of.dimension else np.zeros(0, "<u2")
        for term in (*TERMS, *GONE):
            add_streams(main, [(Stream(term.seed, MAIN), -term.sign)])
        mask = expand_mask(of, (*TERMS, *GONE))[1]
        return main, tail - mask

    def private_files(self) -> dict[str, int]:
        return {path.name: path.stat().st_mode & 0o777 for path in (self.folder / "masks").iterdir()}


@pytest.fixture
def site(tmp_path: Path) -> Site:
    return Site(tmp_path)


def encoded(number: int, residual: np.ndarray | None = None) -> tuple[np.ndarray, np.ndarray]:
    """What a round's update should be in the ring, and what rounding loses of it."""
    lost = np.empty(DIMENSION, np.float32)
    ring = ENCODING.encode(
        update(number), EXAMPLES, dither_seed(7, number, "site-0"), residual=residual, residual_out=lost
    )
    return ring, lost


def test_an_upload_is_the_encoded_update_and_the_tail_under_the_masks(site: Site) -> None:
    of = context()
    upload = site.mask(site.train(), of)
    assert len(upload) == of.encoding.upload_bytes(DIMENSION, of.layout)
    main, tail = site.clear(upload, of)
    assert main.tolist() == encoded(1)[0].tolist()
    assert tail.tolist() == encode_tail(of.layout, EXAMPLES, {"loss": 0.5, "evaluation/accuracy": 0.25}).tolist()
    said = decode_tail(of.layout, tail, participants=1)
    # What the plan doesn't name stays at the institution.
    assert said.means == {"evaluation/accuracy": 0.25, "loss": 0.5}


def test_a_round_of_scoring_sends_a_tail_alone_and_leaves_no_residual(site: Site) -> None:
    of = context(purpose="evaluate")
    upload = site.mask(site.train(), of)
    assert len(upload) == of.layout.wire_bytes
    assert decode_tail(of.layout, site.clear(upload, of)[1], participants=1).weight == EXAMPLES
    assert set(site.private_files()) == {f"{of.hash.hex()}.mask"}


def test_masks_and_residuals_are_for_the_owners_eyes_and_masks_go_when_told(site: Site) -> None:
    of = context()
    site.mask(site.train(), of)
    files = site.private_files()
    assert files[f"{of.hash.hex()}.mask"] == 0o600
    assert files["run-1.residual-new"] == 0o600
    assert (site.folder / "masks").stat().st_mode & 0o777 == 0o700
    site.masking.drop(of.hash)
    site.masking.drop(of.hash)
    assert not any(name.endswith(".mask") for name in site.private_files())


def test_a_restart_removes_masks_and_keeps_residuals(site: Site) -> None:
    site.mask(site.train(), context())
    (site.folder / "masks" / "half.mask-part").write_bytes(b"half")
    site.restart()
    assert set(site.private_files()) == {"run-1.residual-new", "run-1.residual-task"}


@pytest.mark.parametrize("killed", [False, True])
def test_asked_again_it_makes_the_same_bytes(site: Site, killed: bool) -> None:
    of = context()
    first = site.mask(site.train(), of)
    if killed:
        site.restart()
    record = site.store.get("run-1/1.1/site-0")
    assert record is not None
    assert site.mask(record, of) == first


def test_a_long_mask_is_expanded_by_another_process_to_the_same(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    of = context()
    path = site.folder / "masks" / f"{of.hash.hex()}.mask"
    site.masking.expand(ExpandMask(of, TERMS))
    here = path.read_bytes()
    path.unlink()
    monkeypatch.setattr(sys.modules["participant.masking"], "_HERE", 0)
    site.masking.expand(ExpandMask(of, TERMS))
    assert path.read_bytes() == here
    site.masking.close()


# ---- error feedback -------------------------------------------------------------------------------------------------


def settle(site: Site, task_id: str, accepted: bool) -> None:
    state = site.store.settled(task_id, accepted, "" if accepted else "task-closed").state
    assert state is (TaskState.RECEIPTED if accepted else TaskState.DROPPED)


def ring(site: Site, number: int, attempt: int = 1) -> list[int]:
    of = dataclasses.replace(context(number), attempt=attempt)
    return list(site.clear(site.mask(site.train(number, attempt=attempt), of), of)[0].tolist())


def test_what_rounding_lost_of_a_receipted_update_is_added_to_the_next_one(site: Site) -> None:
    _, lost = encoded(1)
    assert np.abs(lost).max() > 0
    ring(site, 1)
    settle(site, "run-1/1.1/site-0", True)
    site.restart()
    assert ring(site, 2) == encoded(2, lost)[0].tolist()
    assert encoded(2, lost)[0].tolist() != encoded(2)[0].tolist()


def test_what_rounding_lost_of_an_update_that_was_not_taken_is_forgotten(site: Site) -> None:
    ring(site, 1)
    settle(site, "run-1/1.1/site-0", False)
    assert ring(site, 2) == encoded(2)[0].tolist()
    # Neither is that of one whose fate isn't known.
    assert ring(site, 3) == encoded(3)[0].tolist()


def test_what_is_owed_stays_owed_until_an_update_that_holds_it_is_taken(site: Site) -> None:
    _, first = encoded(1)
    ring(site, 1)
    settle(site, "run-1/1.1/site-0", True)
    assert ring(site, 2) == encoded(2, first)[0].tolist()
    settle(site, "run-1/2.1/site-0", False)
    assert ring(site, 3) == encoded(3, first)[0].tolist()
    settle(site, "run-1/3.1/site-0", True)
    _, third = encoded(3, first)
    assert ring(site, 4) == encoded(4, third)[0].tolist()


def test_a_repeated_attempt_gets_the_residual_that_the_first_one_got(site: Site) -> None:
    _, first = encoded(1)
    ring(site, 1)
    settle(site, "run-1/1.1/site-0", True)
    for attempt in (1, 2, 3):
        of = dataclasses.replace(context(2), attempt=attempt)
        record = site.store.get("run-1/2.1/site-0") or site.train(2)
        assert site.clear(site.mask(record, of), of)[0].tolist() == encoded(2, first)[0].tolist()
        site.restart()


def test_over_many_rounds_the_sum_of_what_was_sent_follows_the_sum_of_the_updates(site: Site) -> None:
    rounds = 8
    sent = np.zeros(DIMENSION)
    for number in range(1, rounds + 1):
        of = context(number)
        main, _ = site.clear(site.mask(site.train(number), of), of)
        sent += of.encoding.decode(main, EXAMPLES)
        settle(site, f"run-1/{number}.1/site-0", True)
    wanted = sum(update(number).astype(float) for number in range(1, rounds + 1))
    # Only the last round's loss is outstanding: the error doesn't grow with the rounds.
    assert np.abs(sent - wanted).max() <= ENCODING.error_bound(1, EXAMPLES)


def test_a_residual_of_another_dimension_or_run_is_not_used(site: Site) -> None:
    ring(site, 1)
    settle(site, "run-1/1.1/site-0", True)
    (site.folder / "masks" / "run-1.residual-new").write_bytes(b"\0" * 8)
    assert ring(site, 2) == encoded(2)[0].tolist()


# ---- what goes wrong ------------------------------------------------------------------------------------------------


def test_an_update_that_is_not_finite_never_leaves_the_site(site: Site) -> None:
    values = update(1)
    values[17] = np.nan
    of = context()
    with pytest.raises(SecureAggregationError, match="coordinate 17") as refusal:
        site.mask(site.train(values=values), of)
    assert refusal.value.code == "update-not-finite"
    assert "run-1.residual-new" not in site.private_files()


def test_a_mask_or_an_update_that_is_gone_is_named(site: Site) -> None:
    of, record = context(), site.train()
    with pytest.raises(DataError, match="the mask of round 1 is gone"):
        site.masking.mask(MaskUpdate(of, GONE, record, record.seed, integers=False))
    site.masking.expand(ExpandMask(of, TERMS))
    site.blobs.path(record.update_digest).unlink()
    with pytest.raises(DataError, match=r"the trained update .* is gone"):
        site.masking.mask(MaskUpdate(of, GONE, record, record.seed, integers=False))


@pytest.mark.parametrize(
    ("changes", "text"),
    [({"clip_norm": 0.5}, "was scaled by"), ({"clip_value": 0.01}, "were cut to 0.01")],
)
def test_clipping_that_bites_is_said_in_the_sites_log(
    site: Site, caplog: pytest.LogCaptureFixture, changes: dict[str, float], text: str
) -> None:
    of = context(encoding=dataclasses.replace(ENCODING, **changes))  # type: ignore[arg-type]
    site.mask(site.train(), of)
    assert text in caplog.text
    caplog.clear()
    site.mask(site.train(2), context(2))
    assert caplog.text == ""
