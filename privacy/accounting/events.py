"""What a release of data has cost, as events: facts that are stored, not an epsilon that somebody computed.

An event says what was done (how much noise, who was sampled with what probability, how often); any accountant can turn
a list of them into epsilon, today's or a later one. A kind of event, once written into a ledger, is never redefined: a
change of meaning gets a new kind.
"""

from __future__ import annotations

import dataclasses
import enum
import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Final, TypeAlias

from privacy.mechanisms.errors import PrivacyError

if TYPE_CHECKING:
    import dp_accounting

_GAUSSIAN: Final = "gaussian/1"
_FIELDS: Final = frozenset({"kind", "noise_multiplier", "sampling_rate", "count"})
_MOST: Final = 1 << 48


class Unit(enum.StrEnum):
    """Whose presence or absence the promise hides."""

    RECORD = "record"
    PERSON = "person"
    PARTICIPANT = "participant"


class Placement(enum.StrEnum):
    """Where the noise is added, and so whom a unit has to trust."""

    LOCAL = "local"
    SHARED = "shared"
    PARTICIPANT = "participant"


@dataclasses.dataclass(frozen=True, kw_only=True, order=True)
class GaussianEvent:
    """Releases of a Gaussian mechanism, on all units or on a Poisson sample of them.

    Formal Guarantees:
        Each of the ``count`` releases is at most as revealing about one unit (present or absent) as adding normal noise
        of standard deviation ``noise_multiplier`` times the sensitivity to a sum over a sample that every unit enters
        independently with probability ``sampling_rate``.

    Example:
        >>> event = GaussianEvent(noise_multiplier=1.5, sampling_rate=0.01, count=20)
        >>> parse_event(event.plain()) == event
        True

    Args:
        noise_multiplier: Standard deviation relative to the sensitivity, positive.
        sampling_rate: Probability q in (0, 1]; 1.0 where all units take part and nothing is amplified.
        count: Releases, at least 1.

    Raises:
        PrivacyError: "event-invalid".
    """

    noise_multiplier: float
    sampling_rate: float = 1.0
    count: int = 1

    def __post_init__(self) -> None:
        """Refuse what has no meaning."""
        if type(self.noise_multiplier) is not float or not 0 < self.noise_multiplier < math.inf:
            raise _invalid(f"noise_multiplier is {self.noise_multiplier!r}; it must be a positive float")
        if type(self.sampling_rate) is not float or not 0 < self.sampling_rate <= 1:
            raise _invalid(f"sampling_rate is {self.sampling_rate!r}; it must be a float above 0, at most 1")
        if type(self.count) is not int or not 1 <= self.count <= _MOST:
            raise _invalid(f"count is {self.count!r}; it must be a whole number, at least 1")

    def plain(self) -> dict[str, object]:
        """The event as strings and integers, floats in exact hexadecimal; :func:`parse_event` is the strict inverse."""
        return {
            "kind": _GAUSSIAN,
            "noise_multiplier": self.noise_multiplier.hex(),
            "sampling_rate": self.sampling_rate.hex(),
            "count": self.count,
        }


Event: TypeAlias = GaussianEvent


def parse_event(plain: Mapping[str, object]) -> Event:
    """Read an event as :meth:`GaussianEvent.plain` wrote it.

    Raises:
        PrivacyError: "event-invalid", for an unknown kind, missing or further fields, and numbers that are written in
            another way than by ``plain``.
    """
    if plain.get("kind") != _GAUSSIAN:
        raise _invalid(f"there is no kind of event {plain.get('kind')!r}")
    if set(plain) != _FIELDS:
        raise _invalid(f"an event of kind {_GAUSSIAN} has the fields {', '.join(sorted(_FIELDS))}")
    values: dict[str, Any] = {}
    for name in ("noise_multiplier", "sampling_rate"):
        text = plain[name]
        try:
            values[name] = float.fromhex(text) if isinstance(text, str) else None
        except (ValueError, OverflowError):
            raise _invalid(f"{name} is {text!r}, no hexadecimal number") from None
        if values[name] is None or values[name].hex() != text:
            raise _invalid(f"{name} is {text!r}, not written as a float's hex()")
    return GaussianEvent(count=plain["count"], **values)  # type: ignore[arg-type]


def merged(events: Sequence[Event]) -> list[Event]:
    """The same events with equal ones counted together, sorted: composition doesn't depend on order."""
    counts: dict[tuple[float, float], int] = {}
    for event in events:
        key = (event.sampling_rate, event.noise_multiplier)
        counts[key] = counts.get(key, 0) + event.count
    return [
        GaussianEvent(noise_multiplier=sigma, sampling_rate=rate, count=count)
        for (rate, sigma), count in sorted(counts.items())
    ]


def dp_event(events: Sequence[Event]) -> dp_accounting.DpEvent:
    """The events in the vocabulary of dp-accounting, for its accountants and for others that read it."""
    import dp_accounting as dp

    def one(event: Event) -> dp_accounting.DpEvent:
        release: dp_accounting.DpEvent = dp.GaussianDpEvent(event.noise_multiplier)
        if event.sampling_rate < 1.0:
            release = dp.PoissonSampledDpEvent(event.sampling_rate, release)
        return dp.SelfComposedDpEvent(release, event.count)

    return dp.ComposedDpEvent([one(event) for event in merged(events)])


def _invalid(message: str) -> PrivacyError:
    return PrivacyError("event-invalid", f"privacy event: {message}", "Was it written by a newer release of fedloom?")
