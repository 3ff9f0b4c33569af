"""The hostile institutions of a simulation with asynchronous rounds.

Nobody waits for anybody in a buffer, and neither do attackers: an institution that waited would be stale, and might
wait for ever. A hostile site hands in as soon as it has trained, so that fast ones are in every buffer. Its update is
made from the honest ones that there are at that moment: those in the open buffer, and as many of the newest earlier
ones as a buffer has honest places. That is all that an attacker can know who acts at that moment, since what is still
in training at the honest sites isn't there yet.
"""

from __future__ import annotations

import dataclasses
import functools

import numpy as np

from core_model import derive
from participant.work import Job, Outcome
from simulation.adversary import Adversary, Surroundings, Waiting, hand_in
from simulation.attacks import Attack, Forgery, Situation
from simulation.attacks.base import Float32
from simulation.merging import rule_of


@dataclasses.dataclass(frozen=True)
class _Trained:
    """The newest update of a site [d], and the examples behind it."""

    update: Float32
    examples: int


class BufferAdversary(Adversary):
    """Hostile institutions in asynchronous rounds, which wait for nobody.

    All of them are reckoned with in each buffer: an attack makes a row for each, and who hands in takes its own. Until
    there is an honest update, they hand in what they have trained.
    """

    def __init__(self, attack: Attack | Forgery, around: Surroundings) -> None:
        super().__init__(attack, around)
        self._honest: dict[str, _Trained] = {}  # the newest last
        self._own: dict[str, _Trained] = {}

    def trained(self, site: Waiting, job: Job, outcome: Outcome) -> bool:
        """See the base class."""
        if not job.train:
            return True
        self._remember(job)
        found = _Trained(np.fromfile(site.blobs.path(outcome.digest), "<f4"), outcome.examples)
        if site.name not in self.hostile:
            self._honest.pop(site.name, None)
            self._honest[site.name] = found
            return True
        self._own[site.name] = found
        # Honest sites that are ready at this very moment come first.
        self._clock.after(0.0, functools.partial(self._hand_in, site, job, outcome))
        return False

    def failed(self, name: str, job: Job) -> None:
        """See the base class. Nobody waits for it."""

    def _hand_in(self, site: Waiting, job: Job, outcome: Outcome) -> None:
        if isinstance(self.attack, Forgery):
            self._forge(self.attack, site, job, outcome)
            return
        known = self._known()
        if not known:  # nobody to attack
            site.hand_in(job, outcome)
            return
        row = self._rows(self.attack, known, job)[sorted(self.hostile).index(site.name)]
        hand_in(site, job, outcome, row.astype("<f4", copy=False).tobytes())

    def _known(self) -> list[_Trained]:
        """Honest updates of the open buffer, and earlier ones up to the honest places of a buffer, by name."""
        current = self._current()
        merged = current.done() if current is not None else []
        names = [name for name in merged if name in self._honest]
        places = max(self._plan.rounds.buffer_size - len(self.hostile), 2)
        earlier = [name for name in reversed(self._honest) if name not in names]
        chosen = sorted(names + earlier[: max(places - len(names), 0)])
        return [self._honest[name] for name in chosen]

    def _rows(self, attack: Attack, known: list[_Trained], job: Job) -> Float32:
        """[f, d] A row for each hostile site, in the order of their names."""
        nothing = _Trained(np.zeros_like(known[0].update), 0)
        own = [self._own.get(name, nothing) for name in sorted(self.hostile)]
        theirs, ours = ([max(item.examples, 1) for item in side] for side in (known, own))
        return attack(
            Situation(
                honest=np.stack([item.update for item in known]),
                attackers=len(own),
                own=np.stack([item.update for item in own]),
                last=self._last,
                rule=rule_of(self._plan, [*theirs, *ours]),
                boost=(sum(theirs) + sum(ours)) / sum(ours) / self._plan.aggregation.learning_rate,
                seed=derive(self._plan.rounds.seed, "attack", job.round),
            )
        )
