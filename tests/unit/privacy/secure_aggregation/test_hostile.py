"""Whatever a peer sends, a machine answers with a named reason: it never breaks, nor changes what it has promised."""

from __future__ import annotations

import dataclasses
import functools
import random
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from secure_world import DEADLINE_S, NOW, STEP_S, World

from privacy.secure_aggregation import prekeys
from privacy.secure_aggregation.context import RoundContext
from privacy.secure_aggregation.coordinator import Attempt, Record
from privacy.secure_aggregation.errors import SecureAggregationError
from privacy.secure_aggregation.keys import SigningKey
from privacy.secure_aggregation.memory import Note, Step
from privacy.secure_aggregation.participant import Participant
from privacy.secure_aggregation.signed import MAX_STATEMENT_BYTES
from privacy.secure_aggregation.statements import (
    Accept,
    Complaint,
    Doubt,
    Evidence,
    Excused,
    Freeze,
    Plan,
    Quorum,
    Ready,
    Refused,
    Result,
    Signed,
    Survivors,
    UploadReceipt,
    kind_of,
)
from privacy.transcript import decode, encode

LABEL = b"fedloom/secure-aggregation/statement/1\0"
NAME = "site-001"
DOWN = ("plan", "delivery", "freeze", "survivors", "quorum", "result")
UP = ("accept", "ready", "upload", "survived", "release")


def resigned(body: bytes, key: SigningKey) -> Signed:
    """Bytes of the sender's choice, with a signature that holds."""
    return Signed(body, key.sign(LABEL + body))


def small_world() -> World:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(prekeys, "STOCK", 3)
        patch.setattr(prekeys, "LOW", 1)
        return World(4, dimension=5)


@functools.cache
def before(kind: str) -> tuple[World, list[Note], Signed]:
    """A world in which statements of this kind are still to be heard; a participant's notes; its statement."""
    world = small_world()
    world.hold = {kind}
    world.run()
    if kind == "result":
        world.hold = set()
        return world, list(world.sites[NAME].store.notes), world.result().signed(world.key)
    return world, list(world.sites[NAME].store.notes), next(item for name, item in world.held if name == NAME)


@functools.cache
def until(kind: str) -> tuple[World, list[Record], Signed]:
    """A world in which a participant's statement of this kind hasn't come yet; the records; the statement."""
    world = small_world()
    kept: list[Signed] = []

    def up(name: str, statement: Signed) -> list[Signed]:
        if (name, kind_of(statement.body)) != (NAME, kind):
            return [statement]
        kept.append(statement)
        return []

    world.filter_up = up
    world.run()
    return world, list(world.records), kept[0]


def participant(kind: str) -> tuple[Participant, World, Signed]:
    world, notes, statement = before(kind)
    machine = Participant(NAME, world.sites[NAME].key, world.members, world.policy)
    machine.restore(notes)
    machine.trained(world.assignment())
    return machine, world, statement


def coordinator(kind: str) -> tuple[Attempt, World, Signed]:
    world, records, statement = until(kind)
    context = world.attempt.context if world.attempt else None
    assert context is not None
    attempt = Attempt(context, world.members, world.key, step_s=STEP_S, deadline_s=DEADLINE_S)
    attempt.replay(records)
    for name in world.names:
        attempt.back(name, NOW)
    return attempt, world, statement


def told(machine: Participant, world: World, signed: Signed) -> Step:
    try:
        is_plan = kind_of(signed.body) == "plan"
    except SecureAggregationError:
        is_plan = False
    return machine.plan(signed, world.assignment(), NOW) if is_plan else machine.receive(signed, NOW)


def state_of(machine: Participant) -> str:
    """All that a participant's machine has decided; what it has merely put aside isn't part of it."""
    hand = machine._hand
    kept = {} if hand is None else {key: value for key, value in vars(hand).items() if key not in ("early", "doubted")}
    secrets = (hand.seed, hand.mask_key and hand.mask_key.secret) if hand is not None else None
    return repr((kept, secrets, vars(machine._history), sorted(machine.stock._unused)))


def check_answer(machine: Participant, world: World, signed: Signed) -> Step:
    """Feed it; a refusal is signed, named, and changes nothing."""
    earlier = state_of(machine)
    step = told(machine, world, signed)
    if step.refusal is not None:
        assert (step.changes, step.work) == ([], [])
        (answer,) = step.answers
        refused = Refused.opened(answer, world.sites[NAME].key.public, NAME)
        assert refused.code == step.refusal.code
        assert state_of(machine) == earlier
    return step


def mutated(value: Any, chance: random.Random, depth: int = 0) -> Any:
    """A value that differs from a statement's in one place."""
    if isinstance(value, tuple) and value and chance.random() < 0.9:
        at = chance.randrange(len(value))
        how = chance.randrange(12) if depth else 11
        if how == 0:
            return value[:at] + value[at + 1 :]
        if how == 1:
            return (*value, value[at])
        if how == 2:
            swapped = list(value)
            other = chance.randrange(len(value))
            swapped[at], swapped[other] = swapped[other], swapped[at]
            return tuple(swapped)
        return (*value[:at], mutated(value[at], chance, depth + 1), *value[at + 1 :])
    if isinstance(value, bytes) and value and chance.random() < 0.8:
        at = chance.randrange(len(value))
        how = chance.randrange(4)
        if how == 0:
            return value[:at]
        if how == 1:
            return value + value[: at + 1]
        if how == 2:
            # A nested statement (a plan's context) is changed inside.
            try:
                return encode(mutated(decode(value), chance, depth + 1))
            except ValueError:
                pass
        return value[:at] + bytes([value[at] ^ (1 << chance.randrange(8))]) + value[at + 1 :]
    if isinstance(value, bool) or value is None:
        return chance.choice([True, False, None, 0, 1])
    if isinstance(value, int) and chance.random() < 0.8:
        return chance.choice([value + 1, value - 1, -value, value << 64, 10**5000, 0, 1 << 62, float(value % 2**53)])
    if isinstance(value, str) and chance.random() < 0.8:
        return chance.choice([value + "x", value[:-1], value.upper(), "\x1b[2J", "é" * 300, value[:9] * 2000, ""])
    return chance.choice(
        [None, True, 0, -1, 10**5000, 1.5, float("inf"), "", "x" * 5000, b"", b"\0" * 70, (), ((),), {}]
    )


# ---- a coordinator against a participant -----------------------------------------------------------------------------


@given(kind=st.sampled_from(DOWN), seed=st.integers(0, 2**64))
@settings(max_examples=300)
def test_a_participant_answers_any_change_of_a_valid_statement(kind: str, seed: int) -> None:
    machine, world, statement = participant(kind)
    chance = random.Random(seed)
    value = mutated(decode(statement.body), chance)
    while chance.random() < 0.3:
        value = mutated(value, chance)
    body = encode(value)
    step = check_answer(machine, world, resigned(body, world.key))
    if body != statement.body and kind in ("survivors", "quorum", "freeze"):
        assert step.refusal is not None or step.answers == []


@given(kind=st.sampled_from(DOWN), body=st.binary(max_size=400), signature=st.binary(max_size=80))
def test_a_participant_answers_any_bytes(kind: str, body: bytes, signature: bytes) -> None:
    machine, world, _ = participant(kind)
    step = check_answer(machine, world, Signed(body, signature))
    assert step.refusal is not None


@given(kind=st.sampled_from(DOWN), bit=st.integers(0, 2**20))
def test_no_bit_of_a_signed_statement_can_be_flipped_on_its_way(kind: str, bit: int) -> None:
    machine, world, statement = participant(kind)
    joined = bytearray(statement.body + statement.signature)
    joined[bit // 8 % len(joined)] ^= 1 << (bit % 8)
    end = len(statement.body)
    step = check_answer(machine, world, Signed(bytes(joined[:end]), bytes(joined[end:])))
    assert step.refusal is not None
    assert step.refusal.code in ("signature-invalid", "statement-malformed", "statement-unknown")


@given(stage=st.sampled_from(DOWN), kinds=st.lists(st.sampled_from(DOWN), max_size=8), seed=st.integers(0, 999))
@settings(max_examples=60)
def test_valid_statements_in_any_order_and_number_break_nothing(stage: str, kinds: list[str], seed: int) -> None:
    machine, world, _ = participant(stage)
    for kind in kinds:
        check_answer(machine, world, before(kind)[2])  # of other attempts, for all kinds but one
        if kind in DOWN[DOWN.index(stage) :]:
            check_answer(machine, world, before(stage)[2])


@pytest.mark.parametrize("stage", DOWN)
def test_every_kind_of_statement_is_answered_at_every_stage(stage: str) -> None:
    h = bytes(32)
    for with_own_context in (False, True):
        for make in (
            lambda h: Freeze(h, b""),
            lambda h: Survivors(h, b""),
            lambda h: Quorum(h, b""),
            lambda h: Evidence(h, 0, b"", bytes(64)),
            lambda h: Evidence(h, 10**6, before("plan")[2].body, bytes(64)),
            lambda h: UploadReceipt(h, 10**6, h),
            lambda h: Result(0, h, h, b"", h, h, h, h),
            lambda h: Refused(h, "stopped", "", ""),
            lambda h: Ready(h),
            lambda h: Excused(h, 0, "none"),
            lambda h: Complaint(h, 0, h),
            lambda h: Doubt(h, 0),
        ):
            machine, world, _ = participant(stage)
            context = world.attempt.context.hash if with_own_context and world.attempt else h
            check_answer(machine, world, make(context).signed(world.key))


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"\0" * 100,
        bytes(MAX_STATEMENT_BYTES + 1),
        encode("freeze"),
        encode(()),
        encode((1, 2)),
        encode(("freeze",)),
        encode(("freeze", bytes(32), b"\0\1\0\1")),
        encode(("freeze", bytes(32), b"\0\2\0\1")),
        encode(("freeze", bytes(32), b"\0")),
        encode(("plan", encode(10**5000))),
        encode(("plan", encode((1, *range(20))))),
        encode(("plan", encode((10**5000, *range(21))))),
        encode(("result", 10**5000, *[bytes(32)] * 7)),
        encode(("x" * 1_000_000,)),
        encode(functools.reduce(lambda value, _: (value,), range(60), ())),
        b"L\0\0\0\0\0\0\0\x09" * 2000,
        encode(("delivery", bytes(32), b"", ((10**5000, ()),), b"")),
    ],
    ids=range(18),
)
def test_odd_bodies_with_a_good_signature_are_refused(body: bytes) -> None:
    for stage in ("plan", "freeze"):
        machine, world, _ = participant(stage)
        assert check_answer(machine, world, resigned(body, world.key)).refusal is not None


def test_a_statement_is_of_bounded_size_before_it_is_read() -> None:
    machine, world, _ = participant("plan")
    huge = Signed(b"L" + (MAX_STATEMENT_BYTES * 8).to_bytes(8, "big") + bytes(MAX_STATEMENT_BYTES * 8), bytes(64))
    step = check_answer(machine, world, huge)
    assert step.refusal is not None and step.refusal.code == "statement-malformed"


def test_what_came_before_its_turn_is_kept_once_for_each_kind() -> None:
    machine, world, _ = participant("delivery")
    assert world.attempt is not None and machine._hand is not None
    h = world.attempt.context.hash
    for number in range(50):
        rows = number.to_bytes(2, "big")
        for statement in (Freeze(h, rows), Survivors(h, b""), Quorum(h, b"")):
            step = machine.receive(statement.signed(world.key), NOW)
            assert (step.refusal, step.answers, step.changes, step.work) == (None, [], [], [])
    assert len(machine._hand.early) == 3
    # Once their turn has come they are read like any other.
    step = machine.receive(before("delivery")[2], NOW)
    assert step.refusal is not None and step.refusal.code == "freeze-foreign"
    assert machine._hand.frozen is None and machine._hand.delivery is not None


def test_a_refusal_shows_no_control_characters_of_a_foreign_name() -> None:
    machine, world, statement = participant("plan")
    context = RoundContext.parse(Plan.parse(statement.body).context)
    first = dataclasses.replace(context.roster[0], name="\x1b[31mhack\n" + "x" * 100)
    changed = dataclasses.replace(context, roster=(first, *context.roster[1:]))
    step = check_answer(machine, world, Plan(changed.canonical()).signed(world.key))
    assert step.refusal is not None and step.refusal.code == "member-unknown"
    assert Refused.parse(step.answers[0].body).message.isprintable()


# ---- a participant against the coordinator ---------------------------------------------------------------------------


def check_taken(attempt: Attempt, world: World, signed: Signed, name: str = NAME) -> None:
    """Feed it; it raises nothing but the documented error, and then nothing has changed. The attempt still ends."""
    book = attempt._book
    earlier = repr({key: value for key, value in vars(book).items() if key != "context"})
    try:
        attempt.receive(name, signed, NOW)
    except SecureAggregationError as error:
        assert error.code and error.message
        assert repr({key: value for key, value in vars(book).items() if key != "context"}) == earlier
    for wait_s in (DEADLINE_S, DEADLINE_S, DEADLINE_S, DEADLINE_S, DEADLINE_S, 9_999):
        attempt.tick(NOW + wait_s)
    assert attempt.phase in ("unmasking", "ended")


@given(kind=st.sampled_from(UP), seed=st.integers(0, 2**64))
@settings(max_examples=300)
def test_the_coordinator_takes_any_change_of_a_valid_statement(kind: str, seed: int) -> None:
    attempt, world, statement = coordinator(kind)
    chance = random.Random(seed)
    value = mutated(decode(statement.body), chance)
    while chance.random() < 0.3:
        value = mutated(value, chance)
    check_taken(attempt, world, resigned(encode(value), world.sites[NAME].key))


@given(kind=st.sampled_from(UP), body=st.binary(max_size=400), signature=st.binary(max_size=80))
@settings(max_examples=50)
def test_the_coordinator_takes_any_bytes(kind: str, body: bytes, signature: bytes) -> None:
    attempt, world, _ = coordinator(kind)
    check_taken(attempt, world, Signed(body, signature))


@pytest.mark.parametrize("stage", UP)
def test_the_coordinator_takes_every_kind_of_statement_at_every_stage(stage: str) -> None:
    for offender in (0, 1, 3, 4, 2**62):
        for make in (
            lambda h, o: Doubt(h, o),
            lambda h, o: Complaint(h, o, bytes(32)),
            lambda h, o: Refused(h, "roster-change", "", "no"),
            lambda h, o: Ready(h),
            lambda h, o: Excused(h, o, "none"),
            lambda h, o: Freeze(h, b"\0\1"),
            lambda h, o: Quorum(h, b""),
        ):
            attempt, world, _ = coordinator(stage)
            check_taken(attempt, world, make(attempt.context.hash, offender).signed(world.sites[NAME].key))


def test_a_statement_in_another_participants_name_is_refused() -> None:
    for kind in UP:
        attempt, _, statement = coordinator(kind)
        with pytest.raises(SecureAggregationError) as caught:
            attempt.receive("site-002", statement, NOW)
        assert caught.value.code == "signature-invalid"
        with pytest.raises(SecureAggregationError) as caught:
            attempt.receive("nobody", statement, NOW)
        assert caught.value.code == "roster-foreign"


def test_doubts_without_end_are_cut_off() -> None:
    attempt, world, _ = coordinator("ready")
    doubt = Doubt(attempt.context.hash, 0).signed(world.sites[NAME].key)
    for _ in range(16):
        (answer,) = attempt.receive(NAME, doubt, NOW).effects
        assert isinstance(Evidence.parse(answer.statement.body), Evidence)  # type: ignore[union-attr]
    with pytest.raises(SecureAggregationError) as caught:
        attempt.receive(NAME, doubt, NOW)
    assert caught.value.code == "doubt-repeated"


def test_a_refusal_of_another_attempt_puts_nobody_out() -> None:
    attempt, world, _ = coordinator("ready")
    key = world.sites[NAME].key
    for context in (bytes(32), b"x" * 32):
        assert attempt.receive(NAME, Refused(context, "expired", "", "late").signed(key), NOW).records == []
    taken = attempt.receive(NAME, Refused(attempt.context.hash, "no", "", "no").signed(key), NOW)
    assert taken.records[0].sender == NAME


def test_a_plan_that_could_not_be_read_is_refused_in_no_attempts_name() -> None:
    attempt, world, _ = coordinator("accept")
    key = world.sites[NAME].key
    unread = Refused(bytes(32), "statement-malformed", "", "another release").signed(key)
    assert attempt.receive(NAME, unread, NOW).records[0].sender == NAME
    assert NAME not in attempt.waiting_for()


def test_an_accept_with_too_many_retired_attempts_is_refused() -> None:
    attempt, world, statement = coordinator("accept")
    kind, *fields = decode(statement.body)  # type: ignore[misc]
    fields[4] = tuple(bytes([item]) * 32 for item in range(65))
    with pytest.raises(SecureAggregationError) as caught:
        attempt.receive(NAME, resigned(encode((kind, *fields)), world.sites[NAME].key), NOW)
    assert caught.value.code == "statement-malformed"
    assert isinstance(Accept.parse(statement.body), Accept)
