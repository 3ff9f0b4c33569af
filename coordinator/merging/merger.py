"""From updates to one vector and a report: gate, Gram plane, plan, one pass.

A merge has two halves. `Merger.decide` needs the dot products, which form while updates arrive, and ends in a
`Decision`: who counts for how much, and why. `Decision.write` carries it out on any slice of the coordinates, so the
caller may hold the updates in memory or read them from files slice by slice.

Formal Guarantees:
    Updates are taken in the order of their names: decision, result and report are a function of the set of
    (name, update, example count), the same bits in whatever order they come. Updates are never written to. Beside the
    result at most 16 MiB are held for up to 100 participants and two threads; above, n x n numbers come to count, and
    16 KiB a thread for each row that isn't in memory.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from coordinator.merging.errors import MergeRefused
from coordinator.merging.explaining import Facts, explain
from coordinator.merging.gate import (
    LARGEST,
    common_dimension,
    count_fault,
    discounted_shares,
    form_fault,
    norm_fault,
)
from coordinator.merging.plane import Floats, Plane, Reference
from coordinator.merging.report import MergeReport
from coordinator.merging.rule import Combination, Plan, Recipe, Rule
from coordinator.merging.tolerance import Tolerance, bad_count
from kernels.gram import GramBuilder, squared_norm, squared_norms
from kernels.rows import RowReader, Rows
from kernels.selection import around_median, trimmed_mean
from kernels.weighted_sum import weighted_sum

_SAMPLE: Final = (8, 128)  # windows, and coordinates in each, of which the fraction kept is told


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class Decision:
    """What to write, and why.

    Attributes:
        names: [n] Whose updates passed the gate, in the order in which `write` takes them.
        plan: In terms of the plane's rows.
        mixing: [m, n] The plane's rows as combinations of the updates; None where they are the updates.
        weights: [n] Factors of the updates, for a linear rule; else None.
        reference_weight: Factor of the coordinator's own vector.
        report: For people.
    """

    names: tuple[str, ...]
    plan: Plan
    mixing: Floats | None
    weights: Floats | None
    reference_weight: float
    report: MergeReport

    def write(
        self,
        rows: Any,
        out: NDArray[Any] | None = None,
        *,
        reference: NDArray[np.float32] | RowReader | None = None,
        threads: int = 1,
    ) -> NDArray[Any]:
        """Write the result, or a slice of it.

        Args:
            rows: The updates of ``names`` [n, k], all cut to the same k coordinates.
            out: [k] float32, or float64 for a linear rule, whose sum is then not rounded once more. float32 where None.
            reference: [k] The coordinator's own vector, where the plan uses it.
            threads: That work side by side.

        Returns:
            ``out``.
        """
        table = rows if isinstance(rows, Rows) else Rows(rows)
        if len(table) != len(self.names):
            raise ValueError(f"{len(table)} rows for a decision on {len(self.names)}")
        if self.weights is not None:
            return self._combine(table, out, reference, threads)
        plan = self.plan
        assert not isinstance(plan, Combination)
        mix = self.mixing
        if plan.rows is not None:
            if mix is None:
                table = table.take([int(row) for row in plan.rows])
            else:
                mix = mix[plan.rows]
        if plan.around:
            return around_median(table, plan.around, out, mix=mix, threads=threads)
        return trimmed_mean(table, plan.trim, out, mix=mix, threads=threads)

    def _combine(self, table: Rows, out: NDArray[Any] | None, reference: Any, threads: int) -> NDArray[Any]:
        assert self.weights is not None
        used = [int(index) for index in np.flatnonzero(self.weights)]
        parts = [table.parts[index] for index in used]
        factors = [float(self.weights[index]) for index in used]
        if self.reference_weight:
            if reference is None:
                raise ValueError("this decision gives weight to the coordinator's own vector: pass `reference`")
            parts.append(reference)
            factors.append(self.reference_weight)
        if out is None:
            out = np.empty(table.dimension, dtype=np.float32)
        if not parts:
            out.fill(0.0)
            return out
        return weighted_sum(factors, Rows(parts, table.dimension), out, threads=threads)


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class Merged:
    """A merged vector.

    Attributes:
        value: [d] float32.
        decision: How it came about.
    """

    value: NDArray[np.float32]
    decision: Decision

    @property
    def report(self) -> MergeReport:
        """What became of each participant's update."""
        return self.decision.report

    @property
    def weights(self) -> Mapping[str, float] | None:
        """The factor of each accepted participant's update; None for rules that select at each coordinate."""
        weights = self.decision.weights
        if weights is None:
            return None
        return dict(zip(self.decision.names, weights.tolist(), strict=True))


class Merger:
    """Takes updates as they arrive and decides at the end.

    Args:
        rule: A recipe or a bare rule.
        dimension: d.
        max_norm: Updates longer than it are rejected. None for the most that float32 can add up.
        threads: That work side by side.
    """

    def __init__(self, rule: Recipe | Rule, dimension: int, *, max_norm: float | None = None, threads: int = 1) -> None:
        self._recipe = rule if isinstance(rule, Recipe) else Recipe(rule=rule)
        self._dimension = dimension
        self._max_norm = max_norm
        self._threads = threads
        self._gram = GramBuilder(dimension, threads=threads) if self._recipe.needs_gram else None
        self._rows: dict[str, Any] = {}  # what has the right form
        self._norms: dict[str, float] = {}
        self._examples: dict[str, float] = {}
        self._faults: dict[str, str] = {}

    def add(self, name: str, row: Any, examples: float = 1.0) -> str:
        """Take a participant's update; it is kept, not copied, and must stay as it is.

        Args:
            name: Of the participant.
            row: [d] float32, or a reader.
            examples: Behind the update.

        Returns:
            Why it is rejected; empty if it isn't.

        Raises:
            ValueError: A second update of one participant.
        """
        fault, norm = self._offered(name, row, examples)
        if fault:
            self.reject(name, fault)
            self._norms[name] = norm
        return fault

    def offer(self, name: str, row: Any, examples: float = 1.0) -> str:
        """As `add`, but a rejected update leaves no trace."""
        return self._offered(name, row, examples)[0]

    def _offered(self, name: str, row: Any, examples: float) -> tuple[str, float]:
        """Take an update unless it is rejected: why it is, and its norm (NaN where it has no form)."""
        self._new(name)
        form = form_fault(row, self._dimension)
        if form:
            return form, float("nan")
        norm = float(np.sqrt(squared_norm(row, self._dimension)))
        fault = count_fault(examples) or norm_fault(norm, self._max_norm or LARGEST)
        if not fault:
            self._examples[name], self._norms[name], self._rows[name] = examples, norm, row
            if self._gram is not None:
                self._gram.add(row)
        return fault, norm

    def reject(self, name: str, reason: str) -> None:
        """A participant's update was turned away before it came here: it counts as bad.

        Raises:
            ValueError: It is here already.
        """
        self._new(name)
        self._examples[name], self._norms[name], self._faults[name] = 0.0, float("nan"), reason

    def add_all(self, updates: Sequence[tuple[str, Any, float]]) -> None:
        """Take many at once: one pass over them instead of one for each."""
        for name, row, examples in updates:
            self._take(name, row, examples)
        fresh = [name for name, _, _ in updates if name in self._rows]
        if self._gram is not None:
            before = len(self._gram)
            self._gram.add_all([self._rows[name] for name in fresh])
            squares = np.diagonal(self._gram.finish())[before:] if fresh else np.zeros(0)
        else:
            rows = [self._rows[name] for name in fresh]
            squares = squared_norms(Rows(rows, self._dimension), threads=self._threads) if rows else np.zeros(0)
        for name, square in zip(fresh, squares, strict=True):
            self._norms[name] = float(np.sqrt(square))
            self._judge(name)

    def decide(
        self,
        *,
        f: Tolerance | None = None,
        reference: Any = None,
        seed: int = 0,
        discounts: Mapping[str, float] | None = None,
    ) -> Decision:
        """Decide on what has arrived.

        Args:
            f: How many may be bad; None for what the rule says.
            reference: [d] The coordinator's own vector.
            seed: Of the round, for rules that shuffle.
            discounts: By which an update's share is lowered, in (0, 1]; 1 where a name is missing. Shares are capped
                before and after, so that the age of the others lets nobody count for more than the cap. Only rules that
                weigh updates look at shares.

        Raises:
            MergeRefused: "merge-tolerance", "merge-empty", "merge-reference".
            ValueError: Nobody says f.
        """
        tolerance = self._recipe.rule.f if f is None else f
        if tolerance is None:
            raise ValueError("how many participants may be bad? Set the rule's f, or pass it")
        sent = len(self._examples)
        names = self._accepted(sent)
        declared = bad_count(tolerance, sent)
        bad = max(declared - (sent - len(names)), 0)
        self._recipe.require(len(names), bad, reference=reference is not None)
        # The gate's rejections count against f; for the cap they are as good as bad participants.
        examples = np.array([self._examples[name] for name in names])
        shares = discounted_shares(
            examples,
            np.array([(discounts or {}).get(name, 1.0) for name in names]),
            self._recipe.rule.largest_share(len(names), bad),
        )
        gram = self._plane_gram(names)
        plane = Plane(
            gram=gram,
            lengths=None if gram is not None else np.array([self._norms[name] for name in names]),
            bad=bad,
            shares=shares,
            home=np.arange(len(names)),
            factors=np.ones(len(names)),
            reference=self._reference(names, reference),
            seed=seed,
        )
        plan, mixed = self._recipe.plan(plane)
        weights = mixed.in_updates(plan.weights) if isinstance(plan, Combination) else None
        facts = Facts(
            recipe=self._recipe,
            tolerated=declared,
            fraction=tolerance if isinstance(tolerance, float) else None,
            names=names,
            faults=self._faults,
            norms=self._norms,
            before=plane,
            after=mixed,
            plan=plan,
            weights=weights,
            sample=self._sample(names),
        )
        return Decision(
            names=names,
            plan=plan,
            mixing=mixed.mixing,
            weights=weights,
            reference_weight=plan.reference_weight if isinstance(plan, Combination) else 0.0,
            report=explain(facts),
        )

    def rows(self, names: Sequence[str]) -> Rows:
        """The updates of these participants."""
        return Rows([self._rows[name] for name in names], self._dimension)

    def _new(self, name: str) -> None:
        if name in self._examples:
            raise ValueError(f"two updates of {name} in one merge")

    def _take(self, name: str, row: Any, examples: float) -> None:
        self._new(name)
        self._examples[name] = examples
        fault = count_fault(examples)
        form = form_fault(row, self._dimension)
        if form:
            self._norms[name] = float("nan")
        else:
            self._rows[name] = row
        if form or fault:
            self._faults[name] = form or fault

    def _judge(self, name: str) -> None:
        # Without a limit of the operator's: what n participants add up to must stay in float32's range. n isn't known
        # yet, so `_accepted` looks again.
        fault = norm_fault(self._norms[name], self._max_norm or LARGEST)
        if fault and name not in self._faults:
            self._faults[name] = fault

    def _accepted(self, sent: int) -> tuple[str, ...]:
        for name, norm in self._norms.items():
            fault = norm_fault(norm, min(self._max_norm or LARGEST, LARGEST / sent)) if name not in self._faults else ""
            if fault:
                self._faults[name] = fault
        names = tuple(sorted(name for name in self._rows if name not in self._faults))
        if not names:
            reasons = "; ".join(f"{name}: {fault}" for name, fault in sorted(self._faults.items()))
            raise MergeRefused(
                "merge-empty",
                f"None of {sent} updates can be merged. {reasons}".rstrip(),
                "Training diverged everywhere, or the participants train another model.",
            )
        return names

    def _plane_gram(self, names: Sequence[str]) -> Floats | None:
        if self._gram is None:
            return None
        place = {name: index for index, name in enumerate(self._rows)}
        chosen = [place[name] for name in names]
        found: Floats = self._gram.finish()[np.ix_(chosen, chosen)]
        # One way to round, whether updates came one by one or all at once.
        self._norms.update(zip(names, np.sqrt(np.diagonal(found)).tolist(), strict=True))
        return found

    def _reference(self, names: Sequence[str], reference: Any) -> Reference | None:
        if reference is None:
            return None
        fault = form_fault(reference, self._dimension)
        square = squared_norm(reference, self._dimension) if not fault else 0.0
        fault = fault or norm_fault(float(np.sqrt(square)), LARGEST)
        if fault:
            raise ValueError(f"the coordinator's own vector: {fault}")
        dots = np.empty(len(names))
        for start in range(0, len(names), 3):  # three and the reference fill one block of four
            some = names[start : start + 3]
            builder = GramBuilder(self._dimension, threads=self._threads)
            for name in some:
                builder.add(self._rows[name])
            builder.add(reference)
            dots[start : start + len(some)] = builder.finish()[-1, :-1]
        return Reference(dots=dots, square=square)

    def _sample(self, names: Sequence[str]) -> NDArray[np.float32]:
        """Some coordinates of every accepted update [n, s]: windows spread evenly."""
        windows, width = _SAMPLE
        width = min(width, self._dimension)
        starts = sorted({(self._dimension - width) * index // max(windows - 1, 1) for index in range(windows)})
        table = self.rows(names)
        found = np.empty((len(starts), len(names), width), dtype=np.float32)
        for start, window in zip(starts, found, strict=True):
            table.window(start, window)
        return found.transpose(1, 0, 2).reshape(len(names), -1)


def merge(
    rule: Recipe | Rule,
    updates: Any,
    *,
    names: Sequence[str] | None = None,
    examples: Sequence[float] | NDArray[np.float64] | None = None,
    f: Tolerance | None = None,
    reference: Any = None,
    dimension: int | None = None,
    max_norm: float | None = None,
    seed: int = 0,
    threads: int = 1,
    out: NDArray[np.float32] | None = None,
) -> Merged:
    """Merge updates that are all there.

    Args:
        rule: A recipe or a bare rule.
        updates: [n, d] float32: one array, a list of rows, memory maps, or readers.
        names: [n] Of the participants. None for their places, as "0", "1", ...
        examples: [n] Behind each update. None for as many each.
        f: How many may be bad: a count, or a fraction. None for what the rule says.
        reference: [d] The coordinator's own vector.
        dimension: d. None for the length that most rows have.
        max_norm: Updates longer than it are rejected.
        seed: Of the round.
        threads: That work side by side.
        out: [d] float32 for the result. Allocated where None.

    Raises:
        MergeRefused: As `Merger.decide`.
        ValueError: Misfitting arguments.
    """
    rows = list(updates)
    size = dimension if dimension is not None else common_dimension(rows)
    digits = len(str(len(rows)))
    called = list(names) if names is not None else [str(index).zfill(digits) for index in range(len(rows))]
    counts = [float(count) for count in examples] if examples is not None else [1.0] * len(rows)
    merger = Merger(rule, size, max_norm=max_norm, threads=threads)
    # In the order of names from the start: the matrix is then formed in the order in which it is used.
    merger.add_all(sorted(zip(called, rows, counts, strict=True), key=lambda item: item[0]))
    decision = merger.decide(f=f, reference=reference, seed=seed)
    value = decision.write(merger.rows(decision.names), out, reference=reference, threads=threads)
    return Merged(value=value, decision=decision)
