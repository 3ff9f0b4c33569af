"""Plain averaging with hostile sites over real TLS: bad updates are refused by name, and the run goes on to its end.

Coordinator and participants are the real daemons; only training is replaced. The attacks are the simulator's own.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from coordinator.merging.planning import recipe_of
from participant.work import Job, Outcome, Prepared
from protos import session_pb2 as pb
from simulation.attacks import ATTACKS, Attack, ForgedCount, Forgery, Situation, Submission, attack, forgery
from simulation.merging import rule_of
from tests.adversarial.liars import LiveSite
from tests.adversarial.puppets import DIMENSION, Stage, stage, update
from wire import BlobStore, RunPlan

HONEST = ("site-0", "site-1", "site-2")
HOSTILE = "site-3"
EXAMPLES = 100
ROUNDS = 2


def trained(name: str, number: int) -> NDArray[np.float32]:
    """What an honest site's training gives in a round."""
    seed = hashlib.sha256(f"{name}/{number}".encode()).digest()
    return np.random.default_rng(list(seed)).normal(0.1, 0.1, DIMENSION).astype("<f4")


class Work:
    """Stands for ``participant.work.Workbench``: honest, or with an attack."""

    def __init__(self, name: str, plan: RunPlan, behaviour: Attack | Forgery | None = None) -> None:
        self._name = name
        self._manifest_hash = bytes.fromhex(plan.initial.manifest_hash)
        self._behaviour = behaviour
        self._plan = plan

    def prepare(self, learning: dict[str, Any], run: RunPlan | None = None) -> Prepared:
        forger = self._behaviour if isinstance(self._behaviour, Forgery) else None
        return Prepared(
            manifest_hash=self._manifest_hash, examples=forger.announced(EXAMPLES) if forger is not None else EXAMPLES
        )

    def perform(
        self,
        job: Job,
        base: Path,
        blobs: BlobStore,
        progress: Callable[[int, int], None],
        cancelled: Callable[[], bool],
    ) -> Outcome:
        made = self._made(job.round)
        with blobs.writer(len(made.content)) as writer:
            writer.write(made.content)
            digest = writer.commit(sync=False)
        return Outcome(digest=digest, size=len(made.content), examples=made.examples, metrics={}, evaluation={})

    def _made(self, number: int) -> Submission:
        true, before = (
            Submission(content=trained(self._name, at).tobytes(), examples=EXAMPLES, announced=EXAMPLES)
            for at in (number, number - 1)
        )
        if isinstance(self._behaviour, Forgery):
            return self._behaviour(true, before if number > 1 else None)
        if self._behaviour is None:
            return true
        situation = Situation(
            honest=np.stack([trained(name, number) for name in HONEST]),
            attackers=1,
            own=trained(self._name, number)[None],
            rule=rule_of(self._plan, [EXAMPLES] * (len(HONEST) + 1)),
        )
        content = self._behaviour(situation)[0].astype("<f4").tobytes()
        return Submission(content=content, examples=EXAMPLES, announced=EXAMPLES)


@contextlib.asynccontextmanager
async def finished(
    folder: Path, behaviour: Attack | Forgery, merging: dict[str, object] | None = None
) -> AsyncIterator[tuple[Stage, Any]]:
    """A run of two rounds with three honest daemons and a hostile one, when it is over; with its status."""
    rounds = {"count": ROUNDS, "min_participants": 4, "min_updates": 3, "deadline_s": 60.0}
    async with contextlib.AsyncExitStack() as stack:
        live = await stack.enter_async_context(stage(folder, merging=merging, **rounds))
        admitted = [await live.site(name) for name in (*HONEST, HOSTILE)]
        sites = []
        for site in admitted:
            sites.append(LiveSite(site, live.plan))
            work = Work(site.name, live.plan, behaviour if site.name == HOSTILE else None)
            sites[-1].daemon._bench = work  # type: ignore[assignment]
            stack.push_async_callback(sites[-1].close)
        async with asyncio.timeout(30):
            while (status := await live.status()).state != "finished":
                await asyncio.sleep(0.05)
        yield live, status


def outcomes(status: Any) -> list[dict[str, str]]:
    return [{seat.name: seat.outcome for seat in item.participants} for item in status.history]


def model(live: Stage) -> NDArray[np.float64]:
    hub = live.running.daemon.hub
    assert hub is not None
    content = live.running.daemon.blobs.path(bytes.fromhex(hub.machine.state.digest)).read_bytes()
    return np.frombuffer(content[-4 * DIMENSION :], "<f4").astype(np.float64)


def honest_model() -> NDArray[np.float64]:
    """What the honest sites alone make in all rounds."""
    return np.sum(
        [np.mean([trained(name, number) for name in HONEST], axis=0) for number in range(1, ROUNDS + 1)], axis=0
    ).astype(np.float64)


REFUSED: dict[str, tuple[Attack | Forgery, str, str]] = {
    "a NaN in one coordinate": (attack("nan"), "update-not-finite", "refused"),
    "infinity everywhere": (attack("inf"), "update-not-finite", "refused"),
    "a count it never announced": (ForgedCount(consistent=False), "examples-invalid", "refused"),
    "one parameter too many": (forgery("wrong-size"), "blob-size", "declined"),
    "one parameter too few": (forgery("wrong-size", parameters=-1), "blob-size", "declined"),
    "float64": (forgery("wrong-type"), "blob-size", "declined"),
    "float16": (forgery("wrong-type", dtype="<f2"), "blob-size", "declined"),
}


@pytest.mark.parametrize("what", REFUSED)
async def test_a_bad_update_is_refused_by_name_and_the_model_is_that_of_the_others(tmp_path: Path, what: str) -> None:
    behaviour, code, outcome = REFUSED[what]
    async with finished(tmp_path, behaviour) as (live, status):
        expected = {**dict.fromkeys(HONEST, "merged"), HOSTILE: f"{outcome}: {code}"}
        assert outcomes(status) == [expected] * ROUNDS
        assert status.version == ROUNDS
        counted = live.running.daemon.store.refusals()
        assert {(known, peer) for known, peer in counted if known == code} == {(code, HOSTILE)}
        np.testing.assert_allclose(model(live), honest_model(), atol=1e-6)


async def test_a_negative_count_is_refused_however_it_reads_on_the_wire(tmp_path: Path) -> None:
    forged = ForgedCount(examples=-1)(Submission(content=update(), examples=10, announced=100))
    async with stage(tmp_path) as live:
        a, b = await live.site("a"), await live.site("b")
        async with live.puppet(a) as one, live.puppet(b) as two:
            await one.ready()
            await two.ready()
            task = await two.hear("task")
            await two.upload(forged.content)
            await two.announce(task.task_id, forged.content, forged.examples)
            receipt = await two.hear("receipt")
            assert (receipt.accepted, receipt.code) == (False, "examples-invalid")
            assert "announced 100" in receipt.message
            assert (await one.deliver(update())).accepted


async def test_the_last_rounds_answer_said_again_is_refused_and_the_round_waits_for_the_true_one(
    tmp_path: Path,
) -> None:
    async with stage(tmp_path, count=2) as live:
        a, b = await live.site("a"), await live.site("b")
        async with live.puppet(a) as one, live.puppet(b) as two:
            await one.ready()
            await two.ready()
            task = await two.hear("task")
            await two.upload(update(3.0))
            await two.announce(task.task_id, update(3.0))
            assert (await one.deliver(update(1.0))).accepted
            assert (await two.hear("receipt")).accepted
            second = await two.hear("task")
            assert second.task_id != task.task_id
            # Word for word what was said in round 1: known, and not counted twice.
            await two.announce(task.task_id, update(3.0))
            assert (await two.hear("receipt")).task_id == task.task_id
            # Another update under the old task's name is turned away.
            await two.announce(task.task_id, update(9.0))
            receipt = await two.hear("receipt")
            assert (receipt.accepted, receipt.code) == (False, "task-closed")
            await two.upload(update(5.0))
            await two.announce(second.task_id, update(5.0))
            assert (await two.hear("receipt")).accepted
            assert (await one.deliver(update(1.0))).accepted
            assert (await one.hear("run_finished")).reason == "completed"
        np.testing.assert_allclose(model(live), 2.0 + 3.0)


async def test_an_old_update_handed_in_for_a_new_task_counts_as_any_other(tmp_path: Path) -> None:
    """A coordinator can't tell work that wasn't done from work whose result is the same: it weighs no more than it."""
    async with finished(tmp_path, forgery("replay")) as (live, status):
        assert outcomes(status) == [dict.fromkeys((*HONEST, HOSTILE), "merged")] * ROUNDS
        names = (*HONEST, HOSTILE)
        expected = np.mean([trained(name, 1) for name in names], axis=0) + np.mean(
            [trained(name, 2 if name in HONEST else 1) for name in names], axis=0
        )
        np.testing.assert_allclose(model(live), expected, atol=1e-6)


async def test_an_attack_within_the_protocol_gets_in_where_averaging_is_plain(tmp_path: Path) -> None:
    async with finished(tmp_path, attack("ipm-optimised")) as (live, status):
        assert outcomes(status) == [dict.fromkeys((*HONEST, HOSTILE), "merged")] * ROUNDS
        assert float(model(live) @ honest_model()) < 0.0


ROBUST: dict[str, Attack | Forgery] = {
    name: attack(name) if name in ATTACKS else forgery(name)
    for name in (
        "sign-flip",
        "ipm-optimised",
        "alie-optimised",
        "min-max",
        "gaussian",
        "huge",
        "norm-overflow",
        "denormal",
        "forged-count",
    )
}


@pytest.mark.parametrize("name", ROBUST)
@pytest.mark.parametrize("rule", ["robust", "caf"])
async def test_a_robust_rule_stands_what_plain_averaging_lets_in(tmp_path: Path, name: str, rule: str) -> None:
    """The model is where the rule's theorem puts it, and the status tells each update's weight."""
    async with finished(tmp_path, ROBUST[name], {"rule": rule, "f": 1}) as (live, status):
        assert status.version == ROUNDS
        recipe = recipe_of(live.plan.merging)
        assert recipe.name in status.guarantee
        spreads, kappa = [], recipe.kappa(4, 1)
        for number in range(1, ROUNDS + 1):
            honest = np.stack([trained(site, number) for site in HONEST]).astype(np.float64)
            spreads.append(np.sqrt(np.mean(np.sum((honest - honest.mean(axis=0)) ** 2, axis=1))))
        # Where no bound is published, the honest updates' own spread is taken.
        bound = np.sqrt(kappa if kappa is not None else 1.0) * sum(spreads)
        assert np.linalg.norm(model(live) - honest_model()) <= bound
        assert float(model(live) @ honest_model()) > 0.5 * float(honest_model() @ honest_model())
        for item in status.history:
            assert item.merge.tolerated == 1
            assert {update.participant for update in item.merge.updates} == {*HONEST, HOSTILE}
            assert all(update.weight < 0.5 for update in item.merge.updates)


@pytest.mark.parametrize("name", ["huge", "norm-overflow", "forged-count"])
async def test_without_a_robust_rule_one_update_still_cant_take_all(tmp_path: Path, name: str) -> None:
    """The default is careful: mishaps of any size are cut down to three median norms and three equal weights."""
    behaviour = attack(name) if name in ATTACKS else forgery(name)
    async with finished(tmp_path, behaviour) as (live, _):
        strayed = np.linalg.norm(model(live) - honest_model())
        assert strayed < 3.0 * np.linalg.norm(honest_model())


@pytest.mark.parametrize("name", ["nan", "wrong-size"])
async def test_what_is_turned_away_counts_against_f(tmp_path: Path, name: str) -> None:
    behaviour = attack(name) if name in ATTACKS else forgery(name)
    async with finished(tmp_path, behaviour, {"rule": "trimmed-mean", "f": 1}) as (live, status):
        if name == "nan":  # the bad one is found, so that of the others nothing is trimmed
            np.testing.assert_allclose(model(live), honest_model(), atol=1e-6)
        for item in status.history:
            # The blob of a wrong size never came: nothing was handed in.
            gone = [update for update in item.merge.updates if update.verdict == "rejected"]
            assert [update.participant for update in gone] == ([HOSTILE] if name == "nan" else [])
            assert item.merge.remaining == (0 if name == "nan" else 1)


async def test_an_update_that_is_lost_on_the_coordinators_disk_costs_its_sender_the_round_and_nobody_the_run(
    tmp_path: Path,
) -> None:
    async with stage(tmp_path, min_participants=3, min_updates=2) as live:
        a, b, c = [await live.site(name) for name in "abc"]
        async with live.puppet(a) as one, live.puppet(b) as two, live.puppet(c) as three:
            for puppet in (one, two, three):
                await puppet.ready()
            assert (await one.deliver(update(1.0))).accepted
            assert (await two.deliver(update(2.0))).accepted
            hub, blobs = live.running.daemon.hub, live.running.daemon.blobs
            assert hub is not None
            blobs.path(hashlib.sha256(update(2.0)).digest()).unlink()
            assert (await three.deliver(update(5.0))).accepted
            assert (await one.hear("run_finished")).reason == "completed"
        np.testing.assert_allclose(model(live), 3.0)
        (seat,) = (seat for seat in hub.machine.state.rounds[0].seats.items() if seat[0] == "b")
        assert (seat[1].outcome, seat[1].code) == ("refused", "update-missing")
        assert live.running.daemon.store.refusals() == {("update-missing", "b"): 1}


async def test_an_update_over_the_largest_norm_is_refused_by_name(tmp_path: Path) -> None:
    async with finished(tmp_path, attack("gaussian"), {"max_norm": 100.0}) as (live, status):
        expected = {**dict.fromkeys(HONEST, "merged"), HOSTILE: "refused: update-norm"}
        assert outcomes(status) == [expected] * ROUNDS
        np.testing.assert_allclose(model(live), honest_model(), atol=1e-6)


def test_the_wire_has_no_sign_for_a_count() -> None:
    with pytest.raises(ValueError, match="out of range"):
        pb.UpdateReady(examples=-1)
