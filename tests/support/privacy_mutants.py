"""Private training with a bug in it: what the audit has to find.

Each mutant changes one thing in the real code, in a way in which private training has gone wrong elsewhere, and names
a case that shows it.
"""

from __future__ import annotations

import dataclasses
import hashlib
import itertools
import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch

from participant.privacy_audit import cases
from participant.privacy_audit.cases import Case
from participant.training.private import loop
from participant.training.private.engine import RecordGradients
from participant.training.private.loop import PrivateTraining
from participant.training.private.population import Population
from privacy.accounting.events import Placement, Unit
from privacy.mechanisms import lattice
from privacy.mechanisms.lattice import Lattice
from privacy.mechanisms.noise import NoiseKey
from privacy.mechanisms.plan import PrivacyPlan
from privacy.mechanisms.sampling import PoissonSampler

Keys = Callable[[], NoiseKey]


def fixed_keys(seed: int = 0) -> Keys:
    """A new key each time, the same ones in every run of a test."""
    counter = itertools.count()
    return lambda: NoiseKey(hashlib.sha256(f"{seed}-{next(counter)}".encode()).digest())


def one_key() -> NoiseKey:
    """A seed that is used for everything."""
    return NoiseKey(bytes(32))


@dataclasses.dataclass(frozen=True)
class Mutant:
    """A bug, a case that shows it, and the finding that has to be bad then."""

    name: str
    plant: Callable[[pytest.MonkeyPatch], None]
    case: Case
    found_by: str
    keys: Callable[[], Keys] = fixed_keys


def nothing(patch: pytest.MonkeyPatch) -> None:
    """The bug is in the keys."""


def noise_at_half_scale(patch: pytest.MonkeyPatch) -> None:
    right = Lattice.release
    patch.setattr(Lattice, "release", lambda self, total, std, key: right(self, total, std / 2, key))


def no_clipping(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(RecordGradients, "factors", lambda self, norms, clip: torch.ones_like(norms))


def losses_that_broadcast(patch: pytest.MonkeyPatch) -> None:
    """Factors [B] times losses [B, 1] are [B, B]: every record is weighted with the sum of all factors."""
    right = RecordGradients.factors

    def factors(self: RecordGradients, norms: torch.Tensor, clip: float) -> torch.Tensor:
        found = right(self, norms, clip)
        return found.sum().expand_as(found)

    patch.setattr(RecordGradients, "factors", factors)


def clip_after_the_sum(patch: pytest.MonkeyPatch) -> None:
    right = PrivateTraining._clipped

    def clipped(self: PrivateTraining, units: Any, norm: float) -> Any:
        found = right(self, units, 1e12)
        size = float(np.linalg.norm(found.total))
        return dataclasses.replace(found, total=found.total * min(1.0, norm / max(size, 1e-30)))

    patch.setattr(PrivateTraining, "_clipped", clipped)


def _remember_the_batch(patch: pytest.MonkeyPatch) -> None:
    right = PrivateTraining._clipped

    def clipped(self: PrivateTraining, units: Any, norm: float) -> Any:
        self.drawn = len(units)  # type: ignore[attr-defined]
        return right(self, units, norm)

    patch.setattr(PrivateTraining, "_clipped", clipped)


def true_batch_size(patch: pytest.MonkeyPatch) -> None:
    """Sum and noise are divided by the number of records that were drawn, which is private."""
    right = PrivateTraining._assign
    _remember_the_batch(patch)

    def divided(self: PrivateTraining, gradient: Any) -> None:
        expected = self._population.expected(self._plan.sampling_rate)
        right(self, gradient * expected / max(1, self.drawn))  # type: ignore[attr-defined]

    patch.setattr(PrivateTraining, "_assign", divided)


def empty_batches_left_out(patch: pytest.MonkeyPatch) -> None:
    """Nobody was drawn, so nothing is released: which tells that nobody was."""
    right = PrivateTraining._assign
    _remember_the_batch(patch)

    def skipped(self: PrivateTraining, gradient: Any) -> None:
        if self.drawn:  # type: ignore[attr-defined]
            right(self, gradient)

    patch.setattr(PrivateTraining, "_assign", skipped)


def noise_of_the_first_norm(patch: pytest.MonkeyPatch) -> None:
    """The clipping norm changes, and the noise doesn't."""
    right = PrivacyPlan.sensitivity
    patch.setattr(PrivacyPlan, "sensitivity", lambda self, norm: right(self, self.clip_norm))


def schedule_that_is_only_accounted(patch: pytest.MonkeyPatch) -> None:
    right = PrivacyPlan.step

    def step(self: PrivacyPlan, number: int) -> Any:
        return dataclasses.replace(right(self, number), gradient_multiplier=self.multiplier)

    patch.setattr(PrivacyPlan, "step", step)


def noise_that_follows_unaccounted(patch: pytest.MonkeyPatch) -> None:
    """The noise falls as the control says; the event stays what was planned."""
    right = PrivacyPlan.controlled_step

    def controlled(self: PrivacyPlan, number: int, control: Any) -> Any:
        found = right(self, number, control)
        return None if found is None else dataclasses.replace(found, event=self.step(number).event)

    patch.setattr(PrivacyPlan, "controlled_step", controlled)


def norm_of_each_chunk(patch: pytest.MonkeyPatch) -> None:
    """The norm follows the data within a batch, chunk by chunk; the noise is that of the first."""
    right = RecordGradients.clipped_sum
    seen = itertools.count()

    def clipped_sum(self: RecordGradients, losses: Any, clip: Any, *, owners: Any = None) -> Any:
        return right(self, losses, clip * 1.3 ** (next(seen) % 3), owners=owners)

    patch.setattr(RecordGradients, "clipped_sum", clipped_sum)


def count_without_noise(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(loop, "gaussian_integers", lambda key, count, std: np.zeros(count, np.int64))


def count_for_nothing(patch: pytest.MonkeyPatch) -> None:
    """The gradient's noise is what is accounted for both, as if the count cost nothing."""
    right = PrivacyPlan.step

    def step(self: PrivacyPlan, number: int) -> Any:
        found = right(self, number)
        return dataclasses.replace(found, gradient_multiplier=found.noise_multiplier)

    patch.setattr(PrivacyPlan, "step", step)


def groups_counted_as_records(patch: pytest.MonkeyPatch) -> None:
    """A contrastive loss whose sensitivity is taken for that of a loss of each record."""
    right = cases.solve
    patch.setattr(Population, "factor", property(lambda self: 1))
    patch.setattr(cases, "solve", lambda **settings: right(**{**settings, "group_factor": 1}))


def shuffled_passes(patch: pytest.MonkeyPatch) -> None:
    """Passes over a shuffled order, in batches of fixed size, reported as Poisson samples."""

    def sample(self: PoissonSampler) -> Any:
        size = max(1, round(self._records * self._threshold / 2**64))
        left = getattr(self, "left", np.empty(0, np.int64))
        if len(left) < size:
            left = np.random.default_rng(int(self._key.uniform(1, self._drawn)[0])).permutation(self._records)
            self._drawn += 1
        self.left = left[size:]  # type: ignore[attr-defined]
        return np.sort(left[:size])

    patch.setattr(PoissonSampler, "sample", sample)


def more_records_than_claimed(patch: pytest.MonkeyPatch) -> None:
    right = PoissonSampler.__init__

    def more(self: PoissonSampler, records: int, rate: float, key: NoiseKey | None = None) -> None:
        right(self, records, min(1.0, 1.1 * rate), key)

    patch.setattr(PoissonSampler, "__init__", more)


def floating_point_noise(patch: pytest.MonkeyPatch) -> None:
    generator = np.random.default_rng(1)

    def release(self: Lattice, total: Any, std: float, key: NoiseKey) -> Any:
        return (total + generator.normal(0, std, len(total))).astype(np.float32) / self.grid

    patch.setattr(Lattice, "release", release)


def part_without_noise(patch: pytest.MonkeyPatch) -> None:
    """The first tenth of the parameters gets none."""
    right = Lattice.release

    def release(self: Lattice, total: Any, std: float, key: NoiseKey) -> Any:
        found = right(self, total, std, key)
        first = len(total) // 10
        found[:first] = self._rounded(total)[:first]
        return found

    patch.setattr(Lattice, "release", release)


def whole_norm_for_each_layer(patch: pytest.MonkeyPatch) -> None:
    right = RecordGradients.factors

    def factors(self: RecordGradients, norms: torch.Tensor, clip: float) -> torch.Tensor:
        return right(self, norms, clip / self.rule.shares[-1])

    patch.setattr(RecordGradients, "factors", factors)


def records_clipped_one_by_one(patch: pytest.MonkeyPatch) -> None:
    """Of a person's records, or a record's views, each is clipped by itself."""
    patch.setattr(PrivateTraining, "_rows", lambda self, keys: None)


def share_by_number_of_sites(patch: pytest.MonkeyPatch) -> None:
    """Each of n sites adds a noise of std / n, where std / sqrt(n) is needed."""
    right, root = Lattice.share, math.sqrt(3)
    patch.setattr(Lattice, "share", lambda self, total, std, key, limit: right(self, total, std / root, key, limit))


def cut_after_the_noise(patch: pytest.MonkeyPatch) -> None:
    """A site's share is cut to a narrow range when it has its noise: the noise of its tails is gone."""

    def share(self: Lattice, total: Any, std: float, key: NoiseKey, limit: int) -> Any:
        units = std / self.grid
        found = self._rounded(total) + lattice.gaussian_integers(key, self.dimension, units)
        return np.clip(found, -int(1.5 * units), int(1.5 * units)).astype("<i4")

    patch.setattr(Lattice, "share", share)


def update_without_clipping(patch: pytest.MonkeyPatch) -> None:
    def share(update: Any, plan: PrivacyPlan, limit: int, keys: Keys) -> Any:
        assert plan.share is not None
        return Lattice(plan.share.grid, plan.dimension).share(update, plan.share.std, keys(), limit)

    patch.setattr(cases, "participant_share", share)


LOCAL, SHARED = Case(), Case(placement=Placement.SHARED)
WHOLE_SITE, PERSON = Case(placement=Placement.PARTICIPANT), Case(unit=Unit.PERSON)
ADAPTIVE, LONE = Case(adaptive=True), Case(alone=True)

MUTANTS = [
    Mutant("noise at half scale", noise_at_half_scale, LOCAL, "noise"),
    Mutant("no clipping", no_clipping, LOCAL, "separation"),
    Mutant("clip after the sum", clip_after_the_sum, LONE, "separation"),
    Mutant("division by the true batch size", true_batch_size, Case(alone=True, rate=0.5), "sum"),
    Mutant("noise seed used again", nothing, LOCAL, "fresh", lambda: one_key),
    Mutant("loss of shape (B, 1)", losses_that_broadcast, LOCAL, "separation"),
    Mutant("norm changes and noise doesn't", noise_of_the_first_norm, ADAPTIVE, "noise"),
    Mutant("schedule only accounted", schedule_that_is_only_accounted, Case(schedule="linear"), "noise"),
    Mutant("noise follows unaccounted", noise_that_follows_unaccounted, Case(following=True), "noise"),
    Mutant("norm follows chunks", norm_of_each_chunk, Case(adaptive=True, virtual=True), "separation"),
    Mutant("count without noise", count_without_noise, ADAPTIVE, "count"),
    Mutant("count for nothing", count_for_nothing, ADAPTIVE, "noise"),
    Mutant("contrastive loss without its factor", groups_counted_as_records, Case(loss="contrastive"), "separation"),
    Mutant("shuffling reported as Poisson", shuffled_passes, Case(rate=0.2), "sampling"),
    Mutant("higher sampling rate than claimed", more_records_than_claimed, Case(rate=0.2), "sampling"),
    Mutant("floating-point noise", floating_point_noise, LOCAL, "lattice"),
    Mutant("parameters without noise", part_without_noise, LOCAL, "fresh"),
    Mutant("empty batches left out", empty_batches_left_out, Case(rate=0.05), "fresh"),
    Mutant("whole norm for each layer", whole_norm_for_each_layer, Case(rule="layers"), "separation"),
    Mutant("person's records clipped one by one", records_clipped_one_by_one, PERSON, "separation"),
    Mutant("views clipped one by one", records_clipped_one_by_one, Case(views=3), "separation"),
    Mutant("share by the number of sites", share_by_number_of_sites, SHARED, "noise"),
    Mutant("share cut after its noise", cut_after_the_noise, SHARED, "sum"),
    Mutant("update without clipping", update_without_clipping, WHOLE_SITE, "separation"),
]
