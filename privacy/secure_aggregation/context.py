"""The context of one attempt at a secure sum, and the hash to which every key and signature of it is bound.

A participant that is shown another model, another roster or another rule than the rest computes another hash: its
signatures don't verify at the others, its masks cancel with nobody's.
"""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Sequence
from typing import Any, Final, Literal, cast

from privacy.secure_aggregation.atoms import whole
from privacy.secure_aggregation.encoding import Encoding
from privacy.secure_aggregation.errors import SecureAggregationError
from privacy.secure_aggregation.statements import PREKEYS, Prekey, Signed
from privacy.secure_aggregation.tail import TailLayout
from privacy.secure_aggregation.thresholds import ALL_KEEP, MAX_COHORT, Thresholds, thresholds
from privacy.transcript import TranscriptError, decode, digest, encode

PROTOCOL: Final = 1
"""Version of the protocol; a context of another one is refused."""

_CONTEXT_LABEL: Final = "fedloom/secure-aggregation/context/1"
_KEEPER_LABEL: Final = "fedloom/secure-aggregation/keeper/1"
_SET_LABEL: Final = "fedloom/secure-aggregation/set/1"


@dataclasses.dataclass(frozen=True)
class Seat:
    """A participant's place in the roster, with the prekey it uses up. ``signature`` is the prekey's."""

    name: str
    index: int
    mask_key: bytes
    share_key: bytes
    beacon_hash: bytes
    expires_s: int
    signature: bytes

    def cells(self) -> tuple[bytes, ...]:
        """The prekey's row of a :data:`PREKEYS` table."""
        index, expires = self.index.to_bytes(8, "big"), self.expires_s.to_bytes(8, "big")
        return index, self.mask_key, self.share_key, self.beacon_hash, expires, self.signature

    @classmethod
    def of(cls, prekey: Prekey, signature: bytes) -> Seat:
        """The seat that uses up this prekey."""
        return cls(
            prekey.name,
            prekey.index,
            prekey.mask_key,
            prekey.share_key,
            prekey.beacon_hash,
            prekey.expires_s,
            signature,
        )

    @classmethod
    def read(cls, name: str, cells: Sequence[bytes]) -> Seat:
        """Back from :meth:`cells`."""
        index, mask_key, share_key, hashed, expires, signature = cells
        return cls(
            name,
            int.from_bytes(index, "big"),
            mask_key,
            share_key,
            hashed,
            int.from_bytes(expires, "big"),
            signature,
        )

    def prekey(self, federation: str) -> Signed:
        """The prekey statement that its owner signed."""
        prekey = Prekey(
            federation, self.name, self.index, self.mask_key, self.share_key, self.beacon_hash, self.expires_s
        )
        return Signed(prekey.body(), self.signature)


@dataclasses.dataclass(frozen=True)
class Base:
    """What a seat's update was trained from, where participants train at their own pace.

    Attributes:
        version: Of the model.
        attempt: Which training of this participant from that version, from 1.
        digest: SHA-256 of the version's checkpoint.
    """

    version: int
    attempt: int
    digest: bytes


@dataclasses.dataclass(frozen=True, kw_only=True)
class RoundContext:
    """Everything that the parties of one attempt agree on before it begins.

    Attributes:
        federation: Its name.
        members_count: Length of the member list that the roster was taken from.
        members_head: Hash of its last entry.
        run_id: The run.
        plan_hash: Of the run's plan: what is learnt and how, hence the task that runs at the sites.
        purpose: Whether updates are summed, or only metrics.
        round: From 1.
        attempt: From 1 within the round; every attempt has fresh masks.
        task_attempt: Which training of the round the updates come from.
        base_version: The version of the model that is trained from or scored; with ``bases``, the one that the sum
            changes.
        base_digest: SHA-256 of its checkpoint.
        dimension: Coordinates d of an update; 0 for scoring.
        encoding: From updates to ring elements.
        metrics: Names of the metrics in the tail, sorted.
        group_size: 0 for one sum (or the cliques of a large cohort); s for sums of groups of at least s.
        corrupt_percent: See ``thresholds``.
        min_cohort: The floor that the plan asks for.
        roster_change: A roster differs from an earlier one by no member or at least so many.
        freeze: Whether masks are cut down to those who finished training before anything is uploaded.
        expires_s: Seconds since the epoch; no participant answers later.
        roster: Sorted by name; a position in it is a participant's number in the round.
        atoms: The atom of each seat, in the order of the roster (see ``atoms``); empty for one sum.
        bases: What each seat's update was trained from, in the order of the roster, where that isn't the same for all
            (asynchronous rounds); else empty.
        same_base: With ``bases``: of those of one version, at least so many are in a sum, or none; 1 for any.

    Formal Guarantees:
        :attr:`hash` is injective in all of these fields, unless SHA-256 is broken; :meth:`parse` gives the context
        whose :meth:`canonical` bytes it read, or raises.
    """

    federation: str
    members_count: int
    members_head: bytes
    run_id: str
    plan_hash: bytes
    purpose: Literal["train", "evaluate"]
    round: int
    attempt: int
    task_attempt: int
    base_version: int
    base_digest: bytes
    dimension: int
    encoding: Encoding
    metrics: tuple[str, ...]
    group_size: int
    corrupt_percent: int
    min_cohort: int
    roster_change: int
    freeze: bool
    expires_s: int
    roster: tuple[Seat, ...]
    atoms: tuple[int, ...] = ()
    bases: tuple[Base, ...] = ()
    same_base: int = 1

    def canonical(self) -> bytes:
        """The canonical bytes, as a ``Plan`` carries them."""
        return self._canonical

    @functools.cached_property
    def _canonical(self) -> bytes:
        values = [getattr(self, name) for name in _FIELDS]
        plain = [_row(value) if isinstance(value, Encoding) else value for value in values]
        grouped = (self.atoms,) if self.group_size else ()
        rows = tuple(dataclasses.astuple(base) for base in self.bases)
        based = ((self.same_base, rows),) if self.bases else ()
        # The seats as a table: with a hundred of them their keys would weigh less than their lengths and tags.
        return encode(
            (PROTOCOL, *plain, *grouped, *based, self.names, PREKEYS.write(seat.cells() for seat in self.roster))
        )

    @functools.cached_property
    def hash(self) -> bytes:
        """H_R, 32 bytes."""
        return digest(_CONTEXT_LABEL, self.canonical())

    @classmethod
    def parse(cls, data: bytes) -> RoundContext:
        """Read canonical bytes.

        Raises:
            SecureAggregationError: "context-malformed", or the code of a part that is out of range.
        """
        try:
            value = decode(data)
            version, *values, names, seats = cast(tuple[Any, ...], value)
        except (TranscriptError, TypeError, ValueError) as error:
            raise _malformed(str(error)) from None
        if type(version) is not int or version != PROTOCOL:
            raise _malformed(f"it doesn't speak protocol {PROTOCOL}, which this release does")
        if len(values) < len(_FIELDS):
            raise _malformed("it has another number of fields")
        table = dict(zip(_FIELDS, values, strict=False))
        for name, item in table.items():
            if not _FIELDS[name](item):
                raise _malformed(f"{name} is out of range")
        table["encoding"] = Encoding(**dict(zip(_ENCODING, table["encoding"], strict=True)))
        roster = _seats(names, seats)
        rest = values[len(_FIELDS) :]
        atoms = _atoms(rest, table["group_size"], len(roster))
        same_base, bases = _bases(rest[1:] if table["group_size"] else rest, table["base_version"], len(roster))
        if atoms and not table["freeze"]:
            raise _malformed("sums of groups need a freeze: before it nobody knows which atoms are whole")
        context = cls(**table, roster=roster, atoms=atoms, bases=bases, same_base=same_base)
        context.layout.check(len(context.roster))
        return context

    @functools.cached_property
    def layout(self) -> TailLayout:
        """Of the tail block."""
        return TailLayout(self.metrics)

    @functools.cached_property
    def numbers(self) -> Thresholds:
        """Quorum, threshold and floor."""
        return thresholds(len(self.roster), self.corrupt_percent, self.min_cohort)

    @functools.cached_property
    def floor(self) -> int:
        """The fewest participants whose updates are summed, in all groups together.

        One sum needs ``numbers.floor``. Sums of groups make no promise as a whole: each has a floor of its own
        (``graph``), and sites without a group sign and keep shares all the same.
        """
        return max(self.min_cohort, self.group_size) if self.group_size else self.numbers.floor

    @functools.cached_property
    def atom_members(self) -> tuple[frozenset[int], ...]:
        """Positions of each atom's members, by the atom's number; empty for one sum."""
        found: dict[int, set[int]] = {}
        for position, atom in enumerate(self.atoms):
            found.setdefault(atom, set()).add(position)
        return tuple(frozenset(found[atom]) for atom in sorted(found))

    def together(self, positions: frozenset[int]) -> frozenset[int]:
        """Those whose updates can be summed if only these take part: whole atoms, or for one sum all of them."""
        return whole(self.atom_members, positions) if self.group_size else positions

    def agrees(self, accepted: frozenset[int]) -> bool:
        """Whether an attempt can go on with these: enough keep shares, and enough of them can be summed."""
        return len(accepted) >= self.numbers.floor and len(self.together(accepted)) >= self.floor

    @functools.cached_property
    def names(self) -> tuple[str, ...]:
        """Of the roster, by position."""
        return tuple(seat.name for seat in self.roster)

    def task_of(self, position: int) -> tuple[int, int, bytes]:
        """The round and the attempt of the training whose update a seat brings, and the digest of its base."""
        if not self.bases:
            return self.round, self.task_attempt, self.base_digest
        base = self.bases[position]
        return base.version + 1, base.attempt, base.digest

    def counted(self, position: int, examples: int) -> int:
        """The examples that a seat's update counts for: fewer where newer versions were made since its base.

        They are those of :func:`discounted`.
        """
        staleness = self.base_version - self.bases[position].version if self.bases else 0
        return discounted(self.encoding.weight(examples), staleness) if staleness else examples

    def position(self, name: str) -> int | None:
        """A participant's place in the roster."""
        return self.names.index(name) if name in self.names else None

    @functools.cached_property
    def keepers(self) -> tuple[int, ...]:
        """Positions of those that hold shares, ascending: everyone, or 100 of a large roster.

        The draw is keyed by the context itself. A coordinator could try several contexts until it likes the draw; the
        bound on corrupt keepers has 2^-44 to spend on that.
        """
        count = len(self.roster)
        if count <= ALL_KEEP:
            return tuple(range(count))
        ranked = sorted(range(count), key=lambda item: digest(_KEEPER_LABEL, (self.hash, item)))
        return tuple(sorted(ranked[:ALL_KEEP]))

    def set_hash(self, positions: frozenset[int] | tuple[int, ...]) -> bytes:
        """Hash of a set of positions, 32 bytes."""
        return digest(_SET_LABEL, (self.hash, tuple(sorted(positions))))


def discounted(weight: int, staleness: int) -> int:
    """A weight after so many versions: weight / sqrt(1 + staleness), to the nearest integer and 1 at least.

    FedBuff's polynomial discount (Nguyen et al., AISTATS 2022), in the whole numbers that weights are.

    >>> [discounted(100, staleness) for staleness in (0, 1, 3, 99)]
    [100, 71, 50, 10]
    """
    return max(1, round(weight / math.sqrt(1.0 + staleness)))


def _row(value: Encoding) -> tuple[object, ...]:
    return tuple(getattr(value, field.name) for field in dataclasses.fields(value))


def _malformed(what: str) -> SecureAggregationError:
    return SecureAggregationError(
        "context-malformed",
        f"the coordinator's plan of a round can't be read: {what}",
        "Both sides must run the same release of fedloom.",
    )


def _seats(names: Any, seats: Any) -> tuple[Seat, ...]:
    if not isinstance(names, tuple) or len(names) > MAX_COHORT or not all(_name(name) for name in names):
        raise _malformed(f"roster doesn't name at most {MAX_COHORT} participants")
    rows = PREKEYS.read(seats) if PREKEYS.check(seats) else []
    if len(rows) != len(names):
        raise _malformed("the seats of the roster have another form")
    found = tuple(Seat.read(name, cells) for name, cells in zip(names, rows, strict=True))
    if not all(_natural(seat.index) and _natural(seat.expires_s) for seat in found):
        raise _malformed("the seats of the roster have another form")
    return found


def _atoms(rest: list[Any], group_size: int, seats: int) -> tuple[int, ...]:
    """The atom of each seat: there where sums are made of groups, and only there."""
    atoms = (rest[0] if rest else None) if group_size else ()
    if not isinstance(atoms, tuple) or len(atoms) != (seats if group_size else 0) or not all(map(_natural, atoms)):
        raise _malformed("atoms doesn't name an atom for each seat")
    return atoms


def _bases(rest: list[Any], newest: int, seats: int) -> tuple[int, tuple[Base, ...]]:
    """What each seat's update was trained from, and how many of one version: the last field, where there is one."""
    if not rest:
        return 1, ()
    if len(rest) > 1 or not isinstance(rest[0], tuple) or len(rest[0]) != 2:
        raise _malformed("it has another number of fields")
    least, rows = rest[0]
    if not (_natural(least) and least > 0 and isinstance(rows, tuple) and len(rows) == seats > 0):
        raise _malformed("bases doesn't name one for each seat")
    found = []
    for row in rows:
        if not isinstance(row, tuple) or len(row) != 3:
            raise _malformed("a base of the roster has another form")
        version, attempt, digested = row
        if not (_natural(version) and version <= newest and _natural(attempt) and attempt > 0 and _hash(digested)):
            raise _malformed("a base of the roster is out of range")
        found.append(Base(version, attempt, digested))
    return least, tuple(found)


def _natural(value: Any) -> bool:
    return type(value) is int and 0 <= value < 1 << 53


def _name(value: Any) -> bool:
    return isinstance(value, str) and 0 < len(value) <= 255


def _hash(value: Any) -> bool:
    return isinstance(value, bytes) and len(value) == 32


def _texts(value: Any) -> bool:
    return isinstance(value, tuple) and all(isinstance(item, str) for item in value)


def _encoding(value: Any) -> bool:
    return (
        isinstance(value, tuple)
        and len(value) == len(_ENCODING)
        and all(type(item) is float or _natural(item) for item in value)
    )


_ENCODING: Final = tuple(field.name for field in dataclasses.fields(Encoding))

_FIELDS: Final = {
    "federation": _name,
    "members_count": _natural,
    "members_head": _hash,
    "run_id": _name,
    "plan_hash": _hash,
    "purpose": lambda value: value in ("train", "evaluate"),
    "round": _natural,
    "attempt": _natural,
    "task_attempt": _natural,
    "base_version": _natural,
    "base_digest": _hash,
    "dimension": _natural,
    "encoding": _encoding,
    "metrics": _texts,
    "group_size": _natural,
    "corrupt_percent": _natural,
    "min_cohort": _natural,
    "roster_change": _natural,
    "freeze": lambda value: isinstance(value, bool),
    "expires_s": _natural,
}
