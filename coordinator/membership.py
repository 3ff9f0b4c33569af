"""The coordinator's side of the member list: it carries the root's word, and signs only where the root is its own.

Two ways to certify. By default the root's key is in the coordinator's state folder and every enrolling institution is
certified at once; that is convenient on one machine and lets the operator add members of its own, which is why it is
said wherever the state is shown. With ``[federation] root`` in the configuration the coordinator knows the root's
public key only: who has enrolled is *pending* until the root's keeper has signed.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Final

from coordinator.rounds.waiting import listed
from coordinator.store import Member, MemberState, Store
from privacy.secure_aggregation.errors import SecureAggregationError
from privacy.secure_aggregation.identities import (
    COORDINATOR_NAME,
    HASH_BYTES,
    MemberRequest,
    Role,
    check_public_key,
    key_fingerprint,
)
from privacy.secure_aggregation.keys import SigningKey
from privacy.secure_aggregation.members import End, FederationRoot, MemberEntry, MemberList
from wire import (
    ConfigError,
    DataError,
    FederationConfig,
    RefusedError,
    as_refusal,
    load_root,
    load_signing_key,
    make_root,
    save_signing_key,
    write_members,
)
from wire.pki import write_public
from wire.root import MEMBERS, ROOT_KEY, SIGNING_KEY

_log = logging.getLogger("fedloom.coordinator")

ROOT: Final = "root"
SIGNING: Final = "signing"
ROOT_PUBLIC: Final = "root.pub"

ROOT_HERE: Final = (
    "The federation root is on this machine: the operator could add members of its own. "
    "For a root apart: fedloom federation init."
)


class Membership:
    """The member list, the coordinator's own signing key, and the root where it is here.

    Args:
        store: Where the list and the roster are.
        members: The list, as it is in the store.
        signing_key: The coordinator's own.
        root: The federation root, if it is on this machine.
        root_folder: The folder of a root's key on this machine. A copy of the list is kept in it, so that the folder
            can be moved away whole. Given without ``root``, it was not moved away though the configuration says so.
    """

    def __init__(
        self,
        store: Store,
        members: MemberList,
        signing_key: SigningKey,
        root: FederationRoot | None = None,
        root_folder: Path | None = None,
    ) -> None:
        self.store = store
        self.members = members
        self.signing_key = signing_key
        self.on_growth: Callable[[], None] = lambda: None
        self._root = root
        self._root_folder = root_folder

    @property
    def root_here(self) -> bool:
        """Whether the root's private key is on this machine."""
        return self._root is not None

    def check_newcomer(self, request: MemberRequest) -> None:
        """Check that a newcomer holds the signing key that it brings, and that nobody else has brought it.

        Raises:
            RefusedError: "member-proof", "member-key-invalid" or "member-duplicate".
        """
        with as_refusal():
            request.check()
        taken = request.public_key == self.signing_key.public
        for member in self.store.members():
            taken = taken or (member.signing_key == request.public_key and member.name != request.name)
        if taken:
            raise RefusedError(
                "member-duplicate",
                f"the signing key of {request.name} belongs to another member already",
                "Every site makes its own key: join from an empty folder instead of a copied one.",
            )

    def pending(self) -> list[MemberRequest]:
        """Who is admitted and not certified with its present key: the coordinator first, then by name."""
        found = []
        own = self.members.coordinator
        if own is None or own.public_key != self.signing_key.public:
            federation = self.members.federation
            found.append(
                MemberRequest.make(
                    self.signing_key, federation=federation, role=Role.COORDINATOR, name=COORDINATOR_NAME
                )
            )
        for member in self.store.members():
            certified = self.members.participant(member.name)
            if member.state is not MemberState.ENROLLED or not member.signing_key:
                continue
            if certified is None or certified.public_key != member.signing_key:
                found.append(self._request(member))
        return found

    def revoked(self) -> list[str]:
        """Participants that the list still has though the roster has revoked them, by name."""
        revoked = {item.name for item in self.store.members() if item.state is MemberState.REVOKED}
        return sorted(name for name in revoked if self.members.participant(name) is not None)

    def settle(self) -> None:
        """Where the root is here: certify who is pending, remove who is revoked. Calling it again changes nothing.

        Called after every change of the roster and at the start, so that a crash between the two is made good.
        """
        if self._root is None:
            return
        grown = self.members
        for name in self.revoked():
            grown = grown.extend([self._root.remove(grown, name)])
        for request in self.pending():
            try:
                if request.name in grown.members():
                    grown = grown.extend([self._root.remove(grown, request.name)])
                entry = self._root.add(grown, request.role, request.name, request.public_key)
            except SecureAggregationError as error:
                _log.error("%s can't be certified: %s: %s", request.name, error.code, error.message)
                continue
            grown = grown.extend([entry])
        self._adopt(grown)

    def adopt(self, entries: Sequence[MemberEntry], end: End) -> int:
        """Take over what the root has signed elsewhere; returns how many entries were new.

        Args:
            entries: In order; what is known already may stand in front.
            end: Where the list that they come from ends.

        Raises:
            RefusedError: As ``MemberList.extend``.
        """
        with as_refusal():
            grown = self.members.extend(entries, end)
        added = grown.count - self.members.count
        for entry in grown.entries[-added:] if added else ():
            member = self.store.member(entry.name)
            if entry.role is Role.PARTICIPANT and (member is None or member.signing_key != entry.public_key):
                text = "the root's entry %d (%s %s) is about a key that nobody has enrolled with here"
                _log.warning(text, entry.index, entry.action, entry.name)
        self._adopt(grown)
        return added

    def describe(self) -> str:
        """Where the root is and who waits for it, for a person."""
        if self._root is not None:
            return ROOT_HERE
        parts = [f"The federation root is kept apart; its fingerprint is {key_fingerprint(self.members.root)}."]
        if self._root_folder is not None:
            parts.append(f"But a root's key is still on this machine, in {self._root_folder}: move it away.")
        waiting = [request.name for request in self.pending()]
        if waiting:
            parts.append(
                f"Not certified yet: {listed(waiting)}. "
                "For its keeper: fedloom coordinator members --pending --out FILE."
            )
        revoked = self.revoked()
        if revoked:
            parts.append(
                f"Revoked, but still in the member list: {listed(revoked)}. Its keeper removes them with: "
                "fedloom federation remove NAME."
            )
        return " ".join(parts)

    def _adopt(self, grown: MemberList) -> None:
        new = grown.entries[self.members.count :]
        self.store.append_member_entries(new)
        self.members = grown
        for entry in new:
            _log.info("member list: entry %d, %s %s", entry.index, entry.action, entry.name)
        if new:
            self.on_growth()
        if self._root is not None and self._root_folder is not None:
            try:
                write_members(self._root_folder / MEMBERS, grown)
            except ConfigError as error:
                # Only a copy: the list itself is in the store, and the next start writes the copy again.
                _log.error("%s", error.message)

    def _request(self, member: Member) -> MemberRequest:
        return MemberRequest(
            federation=self.members.federation,
            role=Role.PARTICIPANT,
            name=member.name,
            public_key=member.signing_key,
            binding=member.signing_proof[:HASH_BYTES],
            signature=member.signing_proof[HASH_BYTES:],
        )


def open_membership(config: FederationConfig, state: Path, store: Store) -> Membership:
    """The federation's member list as this state folder has it; keys that aren't there yet are made.

    Raises:
        ConfigError: The root is another one than this federation began with, or its key is gone.
        DataError: The stored list isn't the root's.
    """
    federation = config.federation.name
    signing_key = _own_key(state / SIGNING)
    root = _own_root(config, state) if config.federation.root is None else None
    if root is not None:
        public = root.public
    else:
        public = bytes.fromhex(config.federation.root or "")
        try:
            check_public_key(public, "[federation] root")
        except SecureAggregationError as error:
            raise ConfigError(error.message, "Copy the key that fedloom federation init printed.") from error
    _keep_root(state / ROOT_PUBLIC, public)
    try:
        members = MemberList.verify(federation, public, store.member_entries())
    except SecureAggregationError as error:
        raise DataError(f"the member list in {state}: {error.message}", "Restore the folder from a backup.") from error
    folder = state / ROOT if (state / ROOT / ROOT_KEY).exists() else None
    membership = Membership(store, members, signing_key, root, folder)
    membership.settle()
    return membership


def _own_key(folder: Path) -> SigningKey:
    if (folder / SIGNING_KEY).exists():
        return load_signing_key(folder)
    key = SigningKey.generate()
    save_signing_key(folder, key)
    return key


def _own_root(config: FederationConfig, state: Path) -> FederationRoot:
    federation = config.federation.name
    if (state / ROOT / ROOT_KEY).exists():
        return load_root(state / ROOT, federation)
    if (state / ROOT_PUBLIC).exists():
        known = (state / ROOT_PUBLIC).read_text(encoding="ascii").strip()
        raise ConfigError(
            f"the key of the federation root is not in {state / ROOT} any more",
            f'If it is kept apart now, say so in the configuration: [federation] root = "{known}". Else put it back.',
        )
    return make_root(state / ROOT, federation)


def _keep_root(path: Path, public: bytes) -> None:
    """Remember the root, or refuse another one than sites have pinned."""
    if not path.exists():
        write_public(path, public.hex().encode() + b"\n")
        return
    known = path.read_text(encoding="ascii").strip()
    if known != public.hex():
        raise ConfigError(
            f"this federation's root is {known[:16]}..., and the configuration now gives {public.hex()[:16]}...",
            "Sites have pinned the first one. Put it back into [federation] root, or take that line out if the root is "
            "in the state folder. Another root needs an empty [coordinator] state folder, and all sites to join again.",
        )
