"""Who is sampled for a step, whose gradients are clipped as one, and what passes through the model together."""

from __future__ import annotations

import math
from collections.abc import Iterator

import numpy as np
import numpy.typing as npt

from core_model.tasks import LearningTask
from privacy.accounting.events import Unit
from privacy.mechanisms.errors import PrivacyError

Index = npt.NDArray[np.int64]


class Population:
    """A site's units and their records.

    A *unit* is what the promise is about, a record or a person with all records, and is sampled as a whole. An *owner*
    is what is clipped as one: a unit, or a group of units whose loss couples them.

    Formal Guarantees:
        With :meth:`records` of independently sampled units, adding or removing one unit changes the records of one
        owner and leaves all other owners' as they were. So a sum over owners, each clipped to C, changes by at most C
        where owners are units (one part appears or vanishes), and by at most 2 C where they are groups (one part
        changes from g to g').

    Args:
        task: The site's side of the task.
        unit: RECORD, or PERSON where the task knows persons.

    Raises:
        PrivacyError: "unit-invalid" if the task doesn't know whose records they are.
    """

    def __init__(self, task: LearningTask, unit: Unit) -> None:
        self._task = task
        self._persons: Index | None = None
        self._members: list[Index] = []
        self.units = task.examples
        if unit is Unit.PERSON:
            if task.persons is None:
                raise PrivacyError(
                    "unit-invalid",
                    "the data don't say whose records they are, so that persons can't be protected",
                    'Give the manifest a column "person", or the data set an attribute persons.',
                )
            self._persons = np.unique(task.persons, return_inverse=True)[1].astype(np.int64)
            order = np.argsort(self._persons, kind="stable")
            self._members = np.split(order, np.flatnonzero(np.diff(self._persons[order])) + 1)
            self.units = len(self._members)

    @property
    def factor(self) -> int:
        """Sensitivity of a sum over clipped owners, in clipping norms."""
        return 1 if self._task.group_count is None else 2

    def expected(self, rate: float) -> float:
        """Owners of a step on average: what sums are divided by. It follows from public numbers.

        A group of which nobody is sampled isn't there: of G groups with n units, G (1 - (1 - rate / G)^n) are.
        """
        count = self._task.group_count
        if count is None:
            return rate * self.units
        return -count * math.expm1(self.units * math.log1p(-rate / count)) if rate < count else 1.0

    def records(self, units: Index) -> Index:
        """All records of the sampled units."""
        if self._persons is None:
            return units
        return np.concatenate([self._members[unit] for unit in units]) if len(units) else units

    def owners(self, records: Index) -> Index | None:
        """Whose gradient each record is part of; None where each record is one owner's only row."""
        if self._task.group_count is not None:
            return self._task.groups(records)
        if self._persons is not None:
            return self._persons[records]
        return records if self._task.views > 1 else None

    def chunks(self, records: Index, rows: int) -> Iterator[tuple[Index, Index | None]]:
        """Parts that pass through the model together, with their owners; an owner is never divided.

        Args:
            records: Of a step.
            rows: Views of records in a part; more only where one owner has more.
        """
        room = max(1, rows // self._task.views)
        keys = self.owners(records) if len(records) else None
        if keys is None:
            for start in range(0, len(records), room):
                yield records[start : start + room], None
            return
        order = np.argsort(keys, kind="stable")
        begin = end = 0
        for following in (*(np.flatnonzero(np.diff(keys[order])) + 1).tolist(), len(records)):
            if following - begin > room and end > begin:
                yield records[order[begin:end]], keys[order[begin:end]]
                begin = end
            end = following
        yield records[order[begin:]], keys[order[begin:]]

    def strangers(self, most: int = 4, size: int = 3) -> list[Index]:
        """Up to ``most`` owners with up to ``size`` records each, for a test that they don't know each other."""
        records = np.arange(min(self._task.examples, 4_096), dtype=np.int64)
        keys = self.owners(records)
        if keys is None:
            return [records[k : k + 1] for k in range(min(most, len(records)))]
        _, first = np.unique(keys, return_index=True)
        return [records[keys == keys[at]][:size] for at in np.sort(first)[:most]]
