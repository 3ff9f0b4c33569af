"""Random histories of asynchronous rounds: sites of any speed, that crash, leave and return, and a coordinator that
is killed between any two effects. Whatever happens, no update is merged twice, and the run ends once people let it.
"""

from __future__ import annotations

from asynchronous_world import AsynchronousWorld
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from coordinator.rounds.facts import Excuse

NAMES = [f"site-{letter}" for letter in "abcdef"]


class Histories(RuleBasedStateMachine):
    """One run of six sites at most."""

    @initialize(
        size=st.integers(1, 4),
        few=st.integers(1, 2),
        stale=st.integers(0, 3),
        count=st.integers(1, 6),
        every=st.integers(0, 2),
        twice=st.booleans(),
    )
    def begin(self, size: int, few: int, stale: int, count: int, every: int, twice: bool) -> None:
        self.world = AsynchronousWorld(
            buffer_size=max(size, few),
            min_updates=few,
            min_participants=4,
            max_staleness=stale,
            count=count,
            evaluate_every=every,
        )
        self.world.twice = twice
        self.seen: list[tuple[str, str]] = []
        self.world.join(*NAMES[:3])

    def _pick(self, among: set[str], index: int) -> str:
        names = sorted(among)
        return names[index % len(names)]

    @precondition(lambda self: len(self.world.online) < len(NAMES))
    @rule(index=st.integers(0, 5))
    def join(self, index: int) -> None:
        self.world.join(self._pick(set(NAMES) - self.world.online, index))

    @rule(index=st.integers(0, 5))
    def reconnect(self, index: int) -> None:
        if self.world.online:
            self.world.join(self._pick(self.world.online, index))

    @precondition(lambda self: self.world.online)
    @rule(index=st.integers(0, 5), outcome=st.sampled_from(["vanished", "left", "revoked"]))
    def gone(self, index: int, outcome: Excuse) -> None:
        self.world.gone(self._pick(self.world.online, index), outcome)

    @precondition(lambda self: self.world.online)
    @rule(index=st.integers(0, 5), seconds=st.sampled_from([1.0, 500.0]), working=st.booleans())
    def absent(self, index: int, seconds: float, working: bool) -> None:
        self.world.absent(self._pick(self.world.online, index), seconds, working=working)

    @precondition(lambda self: self.world.away)
    @rule(index=st.integers(0, 5))
    def back(self, index: int) -> None:
        self.world.back(self._pick(set(self.world.away), index))

    @precondition(lambda self: self.world.tasks)
    @rule(index=st.integers(0, 5))
    def answer(self, index: int) -> None:
        name = self._pick(set(self.world.tasks), index)
        self._answer(name)

    def _answer(self, name: str) -> None:
        task = self.world.tasks[name]
        self.seen.append((name, task.task_id))
        if task.purpose == "evaluate":
            world = self.world
            world.carry(world.machine.scored(name, task.task_id, 5, {"accuracy": 0.5}, world.now))
        else:
            self.world.submit(name)

    @precondition(lambda self: self.seen)
    @rule(index=st.integers(0, 99))
    def answer_again(self, index: int) -> None:
        """A site that was killed behind its upload says it again, however long ago it was."""
        name, task = self.seen[index % len(self.seen)]
        self.world.submit(name, task)

    @precondition(lambda self: self.world.tasks)
    @rule(index=st.integers(0, 5), outcome=st.sampled_from(["refused", "declined"]))
    def fail(self, index: int, outcome: Excuse) -> None:
        self.world.fail(self._pick(set(self.world.tasks), index), outcome)

    @precondition(lambda self: self.world.waiting)
    @rule()
    def merge(self) -> None:
        self.world.merge()

    @precondition(lambda self: self.world.waiting)
    @rule(index=st.integers(0, 3), everyone=st.booleans())
    def spoil(self, index: int, everyone: bool) -> None:
        """What was accepted can't be merged after all: a file was damaged."""
        names = {item.participant for item in self.world.waiting[0].contributions}
        self.world.spoil("" if everyone else self._pick(names, index))

    @rule(seconds=st.sampled_from([1.0, 60.0, 101.0]))
    def wait(self, seconds: float) -> None:
        self.world.pass_time(seconds)

    @rule(effects=st.integers(0, 6))
    def crash_soon(self, effects: int) -> None:
        """The coordinator dies behind so many effects, whatever they belong to."""
        self.world.crash_after = effects

    @rule()
    def crash(self) -> None:
        self.world.restart()

    @invariant()
    def sound(self) -> None:
        if hasattr(self, "world"):
            self.world.check()

    def teardown(self) -> None:
        """From here on nobody fails: the run must come to its end."""
        if not hasattr(self, "world"):
            return
        world = self.world
        world.crash_after = None
        world.away.clear()
        world.restart()
        world.join(*NAMES)
        for _ in range(400):
            if world.machine.state.finished is not None:
                break
            if world.waiting:
                world.merge()
            elif world.tasks:
                self._answer(sorted(world.tasks)[0])
            else:
                assert world.wakes, f"nothing will ever happen: {world.machine.waiting_for()}"
                world.sleep()
            world.check()
        assert world.machine.state.finished is not None, world.machine.waiting_for()
        assert world.machine.state.version == world.spec.count == len(world.versions)


TestHistories = Histories.TestCase
TestHistories.settings = settings(max_examples=60, stateful_step_count=40, deadline=None)
