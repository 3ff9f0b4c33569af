"""Who belongs to a federation: a hash chain of entries that only the federation's root can sign.

The root is an Ed25519 key that the consortium keeps apart from the coordinator. Each entry adds a member (its name, its
role, its own Ed25519 signing key) or removes one, and names the hash of the entry before it. Every participant pins the
chain it has seen, so the coordinator, which only carries the entries, can neither add a member of its own making (a
Sybil: Douceur 2002) nor take back what it has shown. All it can do is withhold the newest entries; since a round is
bound to one list, participants that were shown different ones don't go on together.

Nothing here reads a clock or a file: the lists that both daemons keep, and the files on the root's machine, are in
``wire.root``, ``coordinator.store`` and ``participant.store``.
"""

from __future__ import annotations

import dataclasses
import enum
import functools
from collections.abc import Iterable, Mapping, Sequence
from types import MappingProxyType
from typing import Any, Final, Self

from privacy import transcript
from privacy.secure_aggregation.errors import SecureAggregationError
from privacy.secure_aggregation.identities import (
    COORDINATOR_NAME,
    HASH_BYTES,
    ORIGIN,
    Role,
    check_member_name,
    check_public_key,
    key_fingerprint,
    malformed,
)
from privacy.secure_aggregation.keys import SigningKey, verify
from privacy.transcript import TranscriptError

MAX_BODY_BYTES: Final = 4_096
"""An entry's body is at most this long; a real one has about 400 bytes."""

_ENTRY: Final = "fedloom/member-entry/1"

_MAX_TIME: Final = 1 << 62


class Action(enum.StrEnum):
    """What an entry does to the list."""

    ADD = "add"
    REMOVE = "remove"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Member:
    """An active member.

    Attributes:
        name: Unique among the active ones.
        role: What it is.
        public_key: Its Ed25519 key, 32 bytes; unique among the active ones.
        valid_until: Seconds since the epoch, UTC; 0 for no end.
    """

    name: str
    role: Role
    public_key: bytes
    valid_until: int

    def valid_at(self, now_s: float) -> bool:
        """Whether the root's word for this member still holds at ``now_s`` (seconds since the epoch)."""
        return self.valid_until == 0 or now_s < self.valid_until


@dataclasses.dataclass(frozen=True)
class End:
    """Where a list ends: enough to say which list is meant.

    Attributes:
        count: How many entries it has.
        head: Hash of the last one, 32 bytes; zeros for an empty list.
    """

    count: int
    head: bytes


@dataclasses.dataclass(frozen=True, kw_only=True)
class MemberEntry:
    """One line of the member list.

    The checks of its form are made here; whether it continues a chain is for :class:`MemberList` to say.

    Attributes:
        index: From 0.
        previous: Hash of the entry before; 32 zero bytes for the first.
        federation: The federation's name.
        action: Add or remove.
        role: Of the member.
        name: Of the member.
        public_key: The member's Ed25519 key, 32 bytes.
        valid_until: Seconds since the epoch, UTC; 0 for no end.
        signature: The root's Ed25519 signature, 64 bytes.

    Raises:
        SecureAggregationError: "members-malformed".
    """

    index: int
    previous: bytes
    federation: str
    action: Action
    role: Role
    name: str
    public_key: bytes
    valid_until: int
    signature: bytes = b""

    def __post_init__(self) -> None:
        """Check the form."""
        what = f"entry {self.index} of the member list"
        _check_integer(self.index, what, "index")
        _check_integer(self.valid_until, what, "valid_until")
        for field, value in (("federation", self.federation), ("name", self.name)):
            check_member_name(value, f"{what}: {field}")
        if len(self.previous) != HASH_BYTES:
            raise malformed(f"{what}: previous has {len(self.previous)} bytes, not {HASH_BYTES}")
        if (self.role is Role.COORDINATOR) != (self.name == COORDINATOR_NAME):
            raise malformed(f"{what}: a {self.role} can't be called {self.name!r}")
        check_public_key(self.public_key, f"{what}: the key of {self.name}")

    @functools.cached_property
    def body(self) -> bytes:
        """The canonical encoding of everything but the signature."""
        return transcript.encode(self._fields())

    @functools.cached_property
    def hash(self) -> bytes:
        """What the next entry names, 32 bytes. The signature is not part of it: it adds nothing to what is said."""
        return transcript.digest(_ENTRY, self._fields())

    def _fields(self) -> dict[str, object]:
        fields: dict[str, object] = {
            field.name: getattr(self, field.name) for field in dataclasses.fields(self) if field.name != "signature"
        }
        fields["action"], fields["role"] = str(self.action), str(self.role)
        return fields

    @property
    def member(self) -> Member:
        """Whom it is about."""
        return Member(name=self.name, role=self.role, public_key=self.public_key, valid_until=self.valid_until)

    @classmethod
    def decode(cls, body: bytes, signature: bytes) -> Self:
        """Read an entry from its canonical body and its signature.

        Formal Guarantees:
            ``decode(body, signature).body == body`` for every body that is accepted, so an entry has one form on the
            wire, on disk and under the signature.

        Args:
            body: At most ``MAX_BODY_BYTES``.
            signature: 64 bytes. It is checked by :class:`MemberList`, which knows the root.

        Raises:
            SecureAggregationError: "members-malformed" if the body isn't a canonical encoding of exactly these fields.
        """
        if len(body) > MAX_BODY_BYTES:
            raise malformed(f"an entry of the member list has {len(body)} bytes; at most {MAX_BODY_BYTES} are read")
        try:
            value = transcript.decode(body)
        except TranscriptError as error:
            raise malformed(f"an entry of the member list can't be read: {error.message}") from error
        if not isinstance(value, Mapping):
            raise malformed("an entry of the member list is not a set of fields")
        return cls.from_fields(value, signature)

    @classmethod
    def from_fields(cls, fields: Mapping[Any, Any], signature: bytes) -> Self:
        """Make an entry from named fields of unknown origin, each of the very type that :attr:`body` has.

        Raises:
            SecureAggregationError: "members-malformed" if a field is missing, unknown, or of another type.
        """
        if set(fields) != set(_TYPES):
            raise malformed("an entry of the member list has other fields than an entry has")
        for name, kind in _TYPES.items():
            if type(fields[name]) is not kind:
                raise malformed(f"an entry of the member list has a {name} that isn't of type {kind.__name__}")
        try:
            known = {"action": Action(fields["action"]), "role": Role(fields["role"])}
        except ValueError as error:
            raise malformed(f"an entry of the member list holds an unknown word: {error}") from error
        return cls(**{**fields, **known}, signature=signature)


_TYPES: Final[dict[str, type]] = {
    "index": int,
    "previous": bytes,
    "federation": str,
    "action": str,
    "role": str,
    "name": str,
    "public_key": bytes,
    "valid_until": int,
}


class _Active:
    """The active members, by name and by key, while a chain is gone through."""

    def __init__(self, members: Mapping[str, Member]) -> None:
        self.members = dict(members)
        self._holders = {member.public_key: name for name, member in members.items()}

    def apply(self, entry: MemberEntry) -> None:
        """Do what an entry says, if it can be done."""
        present = self.members.get(entry.name)
        if entry.action is Action.REMOVE:
            if present is None or present != entry.member:
                raise _unknown(f"{_named(entry)} removes a member that isn't active as it says")
            del self.members[entry.name], self._holders[entry.public_key]
            return
        if present is not None:
            raise _duplicate(f"{_named(entry)} adds a name that is active already", "Remove the member first.")
        if entry.public_key in self._holders:
            raise _duplicate(
                f"{_named(entry)} has the signing key of {self._holders[entry.public_key]}",
                "Every member makes a key of its own.",
            )
        self.members[entry.name] = entry.member
        self._holders[entry.public_key] = entry.name


class MemberList:
    """A verified chain of entries, and the members that it leaves active. Immutable.

    Formal Guarantees:
        Every list that exists has been checked entry by entry: signed by ``root``, of this federation, without a gap,
        each naming the hash of the one before, no active name or key twice, removals only of active members. So two
        lists of one root with equal :attr:`head` say the same, unless SHA-256 is broken; nobody but the holder of the
        root's key can lengthen a list, unless Ed25519 is broken; and whatever :meth:`extend` leads to begins with the
        list that it was called on.

    Make one with :meth:`verify`, or with :meth:`empty` and :meth:`extend`.
    """

    __slots__ = ("_active", "_entries", "_head", "federation", "root")

    def __init__(
        self, federation: str, root: bytes, entries: tuple[MemberEntry, ...], active: Mapping[str, Member]
    ) -> None:
        self.federation = federation
        self.root = root
        self._entries = entries
        self._head = entries[-1].hash if entries else ORIGIN
        self._active = MappingProxyType(dict(active))

    @classmethod
    def empty(cls, federation: str, root: bytes) -> MemberList:
        """The list before its first entry.

        Raises:
            SecureAggregationError: "members-malformed" or "member-key-invalid" for what can't be a name or a root.
        """
        check_member_name(federation, "federation")
        check_public_key(root, "the federation root")
        return cls(federation, root, (), {})

    @classmethod
    def verify(cls, federation: str, root_public: bytes, entries: Iterable[MemberEntry]) -> MemberList:
        """Check a whole chain from its first entry on.

        Args:
            federation: The federation's name.
            root_public: The root's Ed25519 key, 32 bytes, from a source that is trusted.
            entries: In order.

        Raises:
            SecureAggregationError: As :meth:`extend`.
        """
        return cls.empty(federation, root_public).extend(entries)

    def extend(self, new_entries: Iterable[MemberEntry], end: End | None = None) -> MemberList:
        """The list with these entries behind it.

        Args:
            new_entries: In order. Entries that this list has already may stand in front; they must be the same.
            end: Where the sender says that its own list ends, which may be behind the last entry given here.

        Returns:
            The longer list; this one stays as it is.

        Raises:
            SecureAggregationError: "members-fork" if the sender's list is shorter than this one, differs from it in an
                entry, or names another hash; "members-gap" if an index is missing or out of order;
                "members-federation"; "members-signature" if the root didn't sign it; "member-duplicate" or
                "member-unknown" if it can't be done to the list. The message names the entry.
        """
        if end is not None and end.count < self.count:
            raise _fork(
                f"the member list of {self.federation} was shown with {end.count} entries, "
                f"after it had {self.count}: a list never becomes shorter"
            )
        entries, active = list(self._entries), _Active(self._active)
        for entry in new_entries:
            if entry.index < len(entries):
                if entry.hash != entries[entry.index].hash:
                    raise _fork(f"{_named(entry)} differs from the one already known")
                continue
            self._check_place(entry, entries)
            if not verify(self.root, entry.signature, signed_message(entry)):
                raise SecureAggregationError(
                    "members-signature",
                    f"{_named(entry)} isn't signed by the federation root {key_fingerprint(self.root)}",
                    "Only the root can name members. If the consortium has a new root, every site must join again.",
                )
            active.apply(entry)
            entries.append(entry)
        if end is not None and 0 < end.count <= len(entries) and entries[end.count - 1].hash != end.head:
            raise _fork(f"entry {end.count - 1} of the member list has another hash than the sender says")
        return MemberList(self.federation, self.root, tuple(entries), active.members)

    def _check_place(self, entry: MemberEntry, entries: Sequence[MemberEntry]) -> None:
        if entry.federation != self.federation:
            raise SecureAggregationError(
                "members-federation",
                f"{_named(entry)} belongs to federation {entry.federation!r}, not to {self.federation!r}",
            )
        if entry.index != len(entries):
            raise SecureAggregationError(
                "members-gap", f"{_named(entry)} came where entry {len(entries)} was expected", "Send the list whole."
            )
        if entry.previous != (entries[-1].hash if entries else ORIGIN):
            raise _fork(f"{_named(entry)} doesn't continue this list: it names another entry before it")

    @property
    def entries(self) -> tuple[MemberEntry, ...]:
        """All entries in order."""
        return self._entries

    @property
    def count(self) -> int:
        """How many entries there are."""
        return len(self._entries)

    @property
    def head(self) -> bytes:
        """Hash of the last entry, 32 bytes; zeros for an empty list."""
        return self._head

    @property
    def end(self) -> End:
        """Count and head together."""
        return End(self.count, self.head)

    def members(self) -> Mapping[str, Member]:
        """The active members by name, the coordinator among them. Whether they are valid *now* is not looked at."""
        return self._active

    @property
    def coordinator(self) -> Member | None:
        """The active member of role coordinator, if there is one."""
        return self._active.get(COORDINATOR_NAME)

    def participant(self, name: str) -> Member | None:
        """The active participant of that name, if there is one."""
        member = self._active.get(name)
        return member if member is not None and member.role is Role.PARTICIPANT else None

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, MemberList):
            return NotImplemented
        return (self.federation, self.root, self.end) == (other.federation, other.root, other.end)

    def __hash__(self) -> int:
        return hash((self.federation, self.root, self.end))

    def __repr__(self) -> str:
        return (
            f"MemberList({self.federation!r}, {len(self._active)} active, {self.count} entries, "
            f"head {self.head.hex()[:12]})"
        )


@dataclasses.dataclass(frozen=True)
class FederationRoot:
    """The root of a federation: whoever holds its key decides who is a member.

    Formal Guarantees:
        It signs only entries that continue the chain it is given and that every verifier accepts. Two entries for one
        index can come from it only if it is given two chains: keep one, with the key.

    Args:
        federation: The federation's name.
        key: The root's private key.
    """

    federation: str
    key: SigningKey

    @property
    def public(self) -> bytes:
        """What participants pin, 32 bytes."""
        return self.key.public

    def empty(self) -> MemberList:
        """The list before this root has signed anything."""
        return MemberList.empty(self.federation, self.public)

    def add(self, chain: MemberList, role: Role, name: str, public_key: bytes, valid_until: int = 0) -> MemberEntry:
        """Sign the entry that adds a member.

        Args:
            chain: The list as it is; extend it with what is returned.
            role: What the member is.
            name: What it is called.
            public_key: Its Ed25519 key, 32 bytes.
            valid_until: Seconds since the epoch, UTC; 0 for no end.

        Raises:
            SecureAggregationError: "member-duplicate" if the name or the key is active; "members-malformed",
                "member-key-invalid"; "members-signature" if the chain is another root's.
        """
        member = Member(name=name, role=role, public_key=public_key, valid_until=valid_until)
        return self._sign(chain, Action.ADD, member)

    def remove(self, chain: MemberList, name: str) -> MemberEntry:
        """Sign the entry that removes an active member.

        Raises:
            SecureAggregationError: "member-unknown"; "members-signature" if the chain is another root's.
        """
        member = chain.members().get(name)
        if member is None:
            raise _unknown(f"{name!r} is not an active member of {chain.federation}")
        return self._sign(chain, Action.REMOVE, member)

    def _sign(self, chain: MemberList, action: Action, member: Member) -> MemberEntry:
        unsigned = MemberEntry(
            index=chain.count,
            previous=chain.head,
            federation=self.federation,
            action=action,
            role=member.role,
            name=member.name,
            public_key=member.public_key,
            valid_until=member.valid_until,
        )
        _Active(chain.members()).apply(unsigned)  # what no verifier would take is never signed
        entry = dataclasses.replace(unsigned, signature=self.key.sign(signed_message(unsigned)))
        chain.extend([entry])
        return entry


def signed_message(entry: MemberEntry) -> bytes:
    """What the root signs for an entry: a label and the body, both in the prefix-free encoding."""
    return transcript.encode(_ENTRY) + entry.body


def _named(entry: MemberEntry) -> str:
    return f"entry {entry.index} of the member list ({entry.action} {entry.name})"


def _check_integer(value: int, what: str, field: str) -> None:
    if not 0 <= value < _MAX_TIME:
        raise malformed(f"{what}: {field} is {value}")


def _fork(message: str) -> SecureAggregationError:
    return SecureAggregationError(
        "members-fork",
        message,
        "Two histories of one federation exist. Compare the head of the list with other sites (fedloom participant "
        "status) and with the keeper of the root (fedloom federation show) before going on.",
    )


def _duplicate(message: str, hint: str) -> SecureAggregationError:
    return SecureAggregationError("member-duplicate", message, hint)


def _unknown(message: str) -> SecureAggregationError:
    return SecureAggregationError("member-unknown", message, "See the members with: fedloom federation show FILE.")
