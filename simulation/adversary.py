"""The hostile institutions of a simulation: honest in the protocol, hostile in what they hand in.

A hostile site trains, masks, signs and uploads by the same machines as the others. Attackers may know everything: the
attack makes a hostile site's update from the honest ones, and it goes its way in place of the one that the site has
trained. In synchronous rounds hostile sites wait until the honest sites of the round have trained. In asynchronous
ones (`simulation.sybils`) they wait for nobody.
"""

from __future__ import annotations

import abc
import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Final, Protocol

import numpy as np

from coordinator.rounds import Round
from core_model import derive
from participant.work import Job, Outcome, Prepared
from privacy.secure_aggregation.atoms import atoms_per_group
from simulation.attacks import Attack, Forgery, Situation, Submission
from simulation.attacks.base import Float32
from simulation.clock import VirtualClock
from simulation.merging import rule_of
from wire import BlobStore, RunPlan, read_header

# Attackers answer so long before a round's deadline, whoever is missing.
_MARGIN_S: Final = 1.0


class Waiting(Protocol):
    """A hostile site whose own training is done."""

    name: str
    blobs: BlobStore

    def hand_in(self, job: Job, outcome: Outcome) -> None:
        """Go on with this result."""


@dataclasses.dataclass
class _Known:
    """What the attackers know of a round."""

    number: int
    updates: dict[str, tuple[Float32, int]] = dataclasses.field(default_factory=dict)
    silent: set[str] = dataclasses.field(default_factory=set)
    waiting: dict[str, tuple[Waiting, Job, Outcome]] = dataclasses.field(default_factory=dict)
    woken: bool = False


@dataclasses.dataclass(frozen=True)
class Surroundings:
    """What attackers see of a federation.

    Attributes:
        hostile: Their names.
        plan: The run.
        clock: The federation's.
        current: The round that is open at the coordinator.
        checkpoint: The file of a version that a site is given.
    """

    hostile: frozenset[str]
    plan: RunPlan
    clock: VirtualClock
    current: Callable[[], Round | None]
    checkpoint: Callable[[Job], Path]


class Adversary(abc.ABC):
    """All hostile institutions of a federation, who work together.

    Args:
        attack: What they do.
        around: The federation.
    """

    def __init__(self, attack: Attack | Forgery, around: Surroundings) -> None:
        self.attack = attack
        self.hostile = around.hostile
        self._plan = around.plan
        self._clock = around.clock
        self._current = around.current
        self._checkpoint = around.checkpoint
        self._base: tuple[bytes, Float32] | None = None
        self._last: Float32 | None = None
        # What each hostile site has trained for its last two rounds, by number.
        self._true: dict[str, dict[int, Submission]] = {}
        self._announced: dict[str, int] = {}

    def announced(self, name: str, prepared: Prepared) -> Prepared:
        """What a site says of itself when it comes."""
        if name not in self.hostile or not isinstance(self.attack, Forgery):
            return prepared
        self._announced[name] = prepared.examples
        return dataclasses.replace(prepared, examples=self.attack.announced(prepared.examples))

    @abc.abstractmethod
    def trained(self, site: Waiting, job: Job, outcome: Outcome) -> bool:
        """A site's training is done.

        Returns:
            Whether the site may go on. A hostile one goes on by :meth:`Waiting.hand_in`.
        """

    @abc.abstractmethod
    def failed(self, name: str, job: Job) -> None:
        """A site has no result of this task."""

    def _remember(self, job: Job) -> None:
        """Every site is given the versions, so what the last round changed is known to it."""
        if not isinstance(self.attack, Attack) or not self.attack.remembers:
            return
        if self._base is not None and self._base[0] == job.base_digest:
            return
        path = self._checkpoint(job)
        vector = np.fromfile(path, "<f4", offset=read_header(path).data_offset)
        self._last = None if self._base is None else vector - self._base[1]
        self._base = (job.base_digest, vector)

    def _forge(self, forgery: Forgery, site: Waiting, job: Job, outcome: Outcome) -> None:
        """Hand in what a forger makes of a true result."""
        true = Submission(
            content=site.blobs.path(outcome.digest).read_bytes(),
            examples=outcome.examples,
            announced=self._announced.get(site.name, outcome.examples),
        )
        kept = self._true.setdefault(site.name, {})
        kept[job.round] = true
        earlier = [number for number in kept if number < job.round]
        self._true[site.name] = {number: kept[number] for number in (*earlier[-1:], job.round)}
        forged = forgery(true, kept[earlier[-1]] if earlier else None)
        hand_in(site, job, dataclasses.replace(outcome, examples=forged.examples), forged.content)


class RoundAdversary(Adversary):
    """Hostile institutions in synchronous rounds, which wait for the honest ones of the round."""

    def __init__(self, attack: Attack | Forgery, around: Surroundings) -> None:
        super().__init__(attack, around)
        self._known = _Known(0)

    def trained(self, site: Waiting, job: Job, outcome: Outcome) -> bool:
        """See the base class."""
        if not job.train:
            return True
        known = self._of(job)
        if site.name in self.hostile:
            known.waiting[site.name] = (site, job, outcome)
            self._wake(known)
        else:
            known.updates[site.name] = (np.fromfile(site.blobs.path(outcome.digest), "<f4"), outcome.examples)
            known.silent.discard(site.name)
        # What else happens at this moment may tell more of who takes part.
        self._clock.after(0.0, self._look)
        return site.name not in self.hostile

    def failed(self, name: str, job: Job) -> None:
        """See the base class."""
        known = self._of(job)
        known.silent.add(name)
        known.waiting.pop(name, None)
        self._clock.after(0.0, self._look)

    def _of(self, job: Job) -> _Known:
        """What is known of the job's round; the first word of a round ends the one before."""
        if job.round > self._known.number:
            self._known = _Known(job.round)
            self._remember(job)
        return self._known if job.round == self._known.number else _Known(job.round)

    def _wake(self, known: _Known) -> None:
        """Don't wait past the deadline."""
        current = self._current()
        if known.woken or current is None:
            return
        known.woken = True
        margin = min(_MARGIN_S, 0.01 * self._plan.rounds.deadline_s)

        def late() -> None:
            known.woken = False
            still = self._current()
            if known is not self._known or still is None or still.number != known.number:
                return
            if self._clock.now_s >= still.closes_s - margin:
                self._go()
            elif known.waiting:
                self._wake(known)  # the round was given more time

        self._clock.at(current.closes_s - margin, late)

    def _look(self) -> None:
        """Go on if every honest site that takes part has spoken."""
        current, known = self._current(), self._known
        if current is None or current.number != known.number:
            return
        heard = known.updates.keys() | known.silent
        missing = [
            name
            for name, seat in current.seats.items()
            if name not in self.hostile and name not in heard and seat.outcome == "pending"
        ]
        if not missing:
            self._go()

    def _go(self) -> None:
        """Make the attackers' updates and hand them in."""
        known, current = self._known, self._current()
        waiting = [known.waiting.pop(name) for name in sorted(known.waiting)]
        if not waiting or current is None:
            return
        if isinstance(self.attack, Forgery):
            for site, job, outcome in waiting:
                self._forge(self.attack, site, job, outcome)
        elif known.updates:
            rows = self._updates(self.attack, known, waiting)
            for (site, job, outcome), row in zip(waiting, rows, strict=True):
                hand_in(site, job, outcome, row.astype("<f4", copy=False).tobytes())
        else:  # nobody to attack: what they trained is all there is
            for site, job, outcome in waiting:
                site.hand_in(job, outcome)

    def _updates(self, attack: Attack, known: _Known, waiting: list[tuple[Waiting, Job, Outcome]]) -> Float32:
        honest = [known.updates[name] for name in sorted(known.updates)]
        counts = [examples for _, examples in honest]
        own_counts = [outcome.examples for _, _, outcome in waiting]
        attackers = [site.name for site, _, _ in waiting]
        situation = Situation(
            honest=np.stack([vector for vector, _ in honest]),
            attackers=len(waiting),
            own=np.stack([np.fromfile(site.blobs.path(outcome.digest), "<f4") for site, _, outcome in waiting]),
            last=self._last,
            rule=rule_of(self._plan, [*counts, *own_counts], self._groups([*sorted(known.updates), *attackers])),
            boost=(sum(counts) + sum(own_counts)) / sum(own_counts) / self._plan.aggregation.learning_rate,
            seed=derive(self._plan.rounds.seed, "attack", known.number),
        )
        return attack(situation)

    def _groups(self, names: list[str]) -> list[list[int]]:
        """With sums of groups: who is summed with whom, as places in ``names``; whoever's atom isn't whole is out.

        How atoms are united to larger groups is known only when everyone has accepted; neighbours are taken.
        """
        current, secure = self._current(), self._plan.secure
        if current is None or secure is None or not secure.group_size or not current.attempts:
            return []
        opened = current.attempts[-1].opened
        atoms: dict[int, list[str]] = {}
        for name, atom in zip(opened.roster, opened.atoms, strict=True):
            atoms.setdefault(atom, []).append(name)
        places = {name: place for place, name in enumerate(names)}
        whole = [[places[name] for name in atom] for atom in atoms.values() if places.keys() >= set(atom)]
        per_group = atoms_per_group(secure.group_size)[0]
        parts = max(len(whole) // per_group, 1)
        return [
            [place for atom in whole[len(whole) * part // parts : len(whole) * (part + 1) // parts] for place in atom]
            for part in range(parts)
        ]


def hand_in(site: Waiting, job: Job, outcome: Outcome, content: bytes) -> None:
    """Let a hostile site go on with this content in place of what it has trained."""
    with site.blobs.writer(len(content)) as writer:
        writer.write(content)
        digest = writer.commit(sync=False)
    site.hand_in(job, dataclasses.replace(outcome, digest=digest, size=len(content)))
