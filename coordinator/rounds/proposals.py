"""What the coordinator proposes for an attempt at a secure sum: whom, with which prekeys, under which context."""

from __future__ import annotations

import collections
import math
from collections.abc import Iterable
from typing import Final

from coordinator.rounds.roster import choose_atoms, choose_buffer, choose_roster, whole_atoms
from coordinator.rounds.state import Round, RunState
from privacy.secure_aggregation.atoms import atoms_per_group, draw_atoms
from privacy.secure_aggregation.context import Base, RoundContext, Seat
from privacy.secure_aggregation.identities import COORDINATOR_NAME
from privacy.secure_aggregation.members import MemberList
from privacy.secure_aggregation.prekeys import check_offered, offered
from privacy.secure_aggregation.signed import Signed
from privacy.secure_aggregation.statements import PrekeyBatch
from wire import RefusedError, RunPlan, as_refusal

_CLOCKS_S: Final = 60.0  # by which a participant's clock may be ahead of ours
_BLAMING: Final = ("parcel-unreadable", "dealer-inconsistent")  # ends of attempts that are somebody's fault


class Proposals:
    """Makes the contexts of one run's attempts.

    Args:
        plan: The run's plan, which asks for secure sums.
        members: The federation's member list; replace the attribute when it grows.
        step_s: Seconds that a quick answer of a participant is waited for.
    """

    def __init__(self, plan: RunPlan, members: MemberList, *, step_s: float) -> None:
        if plan.secure is None:
            raise ValueError(f"the plan of run {plan.run_id} asks for plain averaging")
        floor = max(plan.secure.min_cohort, plan.rounds.min_updates)
        self.members = members
        self.settings = plan.secure.model_copy(update={"min_cohort": floor})
        self._plan = plan
        # The longest that an attempt may take: training and uploads, and the quick steps around them.
        self._length_s = 2 * plan.rounds.deadline_s + 4 * step_s + _CLOCKS_S
        self._prekeys: dict[str, list[Seat]] = {}

    def offer(self, name: str, signed: Signed) -> None:
        """A participant's unused prekeys.

        Raises:
            RefusedError: the sender isn't a certified member, a signature doesn't hold, or a key can't be used.
        """
        member = self.members.participant(name)
        if member is None:
            raise RefusedError(
                "participant-uncertified",
                f"the federation's root hasn't certified {name} yet",
                "Certify it (fedloom federation certify), then import the member list.",
            )
        # A prekey that a site won't take would make all of them refuse the plan that holds it.
        with as_refusal():
            batch = PrekeyBatch.opened(signed, member.public_key, name)
            self._prekeys[name] = check_offered(offered(batch, name), self.members.federation, member.public_key)

    def roster(
        self, state: RunState, current: Round | None, cohort: frozenset[str], there: frozenset[str], now_s: float
    ) -> tuple[str, ...]:
        """Whom the next attempt is proposed to; empty where no roster is possible now.

        Args:
            state: The run's, with all earlier rosters.
            current: The open round, whose earlier attempts may have found somebody at fault.
            cohort: Whom the round would like to have.
            there: Who can answer now.
            now_s: Seconds since the epoch.
        """
        certified = {name for name, member in self.members.members().items() if member.valid_at(now_s)}
        certified.discard(COORDINATOR_NAME)
        out = left_out(current) if current is not None else set()
        if self.settings.group_size:
            wanted = frozenset(self._seats(state, (cohort - out) & certified, now_s))
            return choose_atoms(
                wanted=wanted,
                there=there - out,
                atoms=self._placed(state, wanted),
                settings=self.settings,
                encoding=self._plan.encoding,
            )
        return choose_roster(
            wanted=cohort - out,
            possible=frozenset(self._seats(state, certified, now_s)),
            certified=frozenset(certified),
            there=there - out,
            earlier=[frozenset(attempt.opened.roster) for item in state.rounds for attempt in item.attempts],
            settings=self.settings,
            encoding=self._plan.encoding,
        )

    def buffer(
        self, state: RunState, current: Round, trained: frozenset[str], least: int, now_s: float
    ) -> tuple[str, ...]:
        """Whom of those who have trained, and are there, the next sum of asynchronous rounds is proposed to.

        Args:
            state: The run's; its pace says from which version each has trained.
            current: The open buffer.
            trained: Those who can answer now.
            least: So many at least.
            now_s: Seconds since the epoch.

        Returns:
            Names, sorted; empty where no sum is possible now.
        """
        certified = {name for name, member in self.members.members().items() if member.valid_at(now_s)}
        possible = frozenset(self._seats(state, trained & certified, now_s))
        # Who couldn't be in the last attempt is asked again only if nothing can be done without it.
        for out in (left_out_now(current), cheats(current)):
            wanted = self._together(state, possible - out)
            if self.settings.group_size:
                wanted -= self._held_back(state, wanted, frozenset(certified))
                atoms = self._placed(state, wanted)
                wanted = whole_atoms(wanted, atoms)
                settings = self.settings.model_copy(update={"min_cohort": least})
                found = choose_atoms(
                    wanted=wanted, there=wanted, atoms=atoms, settings=settings, encoding=self._plan.encoding
                )
            else:
                found = choose_buffer(
                    trained=wanted,
                    least=least,
                    age={name: state.pace.trained[name].base_version for name in wanted},
                    earlier=[
                        frozenset(attempt.opened.roster) & certified
                        for item in state.rounds
                        for attempt in item.attempts
                    ],
                    settings=self.settings,
                    encoding=self._plan.encoding,
                )
            if found:
                return found
        return ()

    def _held_back(self, state: RunState, trained: frozenset[str], certified: frozenset[str]) -> frozenset[str]:
        """Newcomers that wait for those still in training, who would else be too few for an atom of their own."""
        placed, pace = state.atoms.keys(), state.pace
        new = trained - placed
        slow = (certified & (pace.tasks.keys() | pace.trained.keys())) - placed - new
        missing = atoms_per_group(self.settings.group_size)[1] - len(slow)
        if not slow or missing <= 0:
            return frozenset()
        return frozenset(sorted(new, key=lambda name: (pace.trained[name].base_version, name))[-missing:])

    def _together(self, state: RunState, names: frozenset[str]) -> frozenset[str]:
        """Those of whom enough have trained from the same version."""
        base = {name: state.pace.trained[name].base_version for name in names}
        count = collections.Counter(base.values())
        return frozenset(name for name in names if count[base[name]] >= self.settings.min_same_base)

    def context(self, state: RunState, current: Round, roster: tuple[str, ...], now_s: float) -> RoundContext:
        """The context of the open round's next attempt with these participants."""
        if current.base_version != state.version:
            raise ValueError(f"round {current.number} starts from version {current.base_version}, which isn't the last")
        settings, plan = self.settings, self._plan
        seats = self._seats(state, roster, now_s)
        atoms = self._placed(state, roster) if settings.group_size else {}
        paced = plan.rounds.asynchronous and current.purpose == "train"
        return RoundContext(
            federation=plan.federation,
            members_count=self.members.count,
            members_head=self.members.head,
            run_id=plan.run_id,
            plan_hash=plan.hash,
            purpose=current.purpose,
            round=current.number,
            attempt=len(current.attempts) + 1,
            task_attempt=1 if paced else task_attempt(current),
            base_version=current.base_version,
            base_digest=bytes.fromhex(state.digest),
            dimension=plan.initial.dimension if current.purpose == "train" else 0,
            encoding=plan.encoding(len(roster)),
            metrics=plan.metrics,
            group_size=settings.group_size,
            corrupt_percent=settings.corrupt_percent,
            min_cohort=settings.min_cohort,
            roster_change=settings.min_roster_change,
            freeze=True,
            expires_s=math.ceil(now_s + self._length_s),
            roster=tuple(seats[name] for name in roster),
            atoms=tuple(atoms[name] for name in roster if atoms),
            bases=tuple(self._base(state, name) for name in roster) if paced else (),
            same_base=settings.min_same_base if paced else 1,
        )

    def _base(self, state: RunState, name: str) -> Base:
        """What a participant's update was trained from."""
        task = state.pace.trained[name]
        version = task.base_version
        digest = state.rounds[version - 1].digest if version else self._plan.initial.digest
        return Base(version, task.attempt, bytes.fromhex(digest))

    def sitting_out(self, state: RunState, there: frozenset[str]) -> str:
        """Who is there and in no sum of groups, and what they wait for; for a person. Empty where there are none."""
        if not self.settings.group_size:
            return ""
        placed = self._placed(state, there)
        said = []
        newcomers = sorted(there - placed.keys())
        if newcomers:
            missing = atoms_per_group(self.settings.group_size)[1] - len(newcomers)
            said.append(f"{', '.join(newcomers)} would be in a sum with {missing} more newcomers.")
        members = self.members.members().keys()
        for atom in sorted({placed[name] for name in there & placed.keys()}):
            mates = {name for name, other in placed.items() if other == atom}
            away, gone = sorted((mates - there) & members), sorted(mates - members)
            names = ", ".join(sorted(mates & there))
            if gone:
                said.append(
                    f"{names} can be in no sum of this run any more: {', '.join(gone)} of their atom left for good."
                )
            elif away:
                said.append(f"{names} sit out until {', '.join(away)} of their atom is back.")
        return " ".join(said)

    def _placed(self, state: RunState, names: Iterable[str]) -> dict[str, int]:
        """The run's atoms, and new ones of those newcomers among the names, as soon as they are enough for one."""
        new = draw_atoms(
            set(names) - state.atoms.keys(),
            self.settings.group_size,
            self._plan.run_id,
            max(state.atoms.values(), default=0) + 1,
        )
        return {**state.atoms, **new}

    def _seats(self, state: RunState, names: Iterable[str], now_s: float) -> dict[str, Seat]:
        """The next unused prekey of each that has one.

        Who was away for a whole round (and has no seat in it) never saw the plan: its prekey is as good as new, so that
        a member that stays away doesn't run out of them.
        """
        used: dict[str, int] = {}
        for item in state.rounds:
            for attempt in item.attempts:
                for name, index in zip(attempt.opened.roster, attempt.opened.prekeys, strict=True):
                    if name in item.seats:
                        used[name] = max(used.get(name, 0), index)
        found = {}
        for name in names:
            for seat in self._prekeys.get(name, ()):
                if seat.index > used.get(name, 0) and seat.expires_s > now_s + self._length_s:
                    found[name] = seat
                    break
        return found


def left_out(current: Round) -> set[str]:
    """Participants that the round goes on without.

    Whoever cheated stays out. Whoever could or would not take part is asked again once the training begins anew: by
    then the reason may be gone.
    """
    failed = [item.failed for item in current.attempts if item.failed is not None]
    last_spent = max((index for index, item in enumerate(failed, start=1) if item.spent), default=0)
    return cheats(current).union(*(item.excluded for item in failed[last_spent:]))


def cheats(current: Round) -> set[str]:
    """Whoever was found to cheat in an attempt of the round."""
    failed = [item.failed for item in current.attempts if item.failed is not None]
    return {name for item in failed if item.code in _BLAMING for name in item.excluded}


def left_out_now(current: Round) -> set[str]:
    """Whoever cheated, and who couldn't be in the last attempt."""
    failed = [item.failed for item in current.attempts if item.failed is not None]
    return cheats(current).union(failed[-1].excluded if failed else ())


def task_attempt(current: Round) -> int:
    """Which training of the round is summed: a new one after each attempt whose updates may be known."""
    return 1 + sum(1 for item in current.attempts if item.failed is not None and item.failed.spent)
