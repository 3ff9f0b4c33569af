"""The member list as this site has pinned it: it only grows, and only by the federation root's word."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from typing import Self

from participant.store import ParticipantStore
from privacy.secure_aggregation.errors import SecureAggregationError
from privacy.secure_aggregation.identities import key_fingerprint
from privacy.secure_aggregation.members import End, MemberEntry, MemberList
from wire import DataError, as_refusal

_log = logging.getLogger("fedloom.participant")


class PinnedMembers:
    """The pinned list.

    Formal Guarantees:
        Whatever :attr:`list` shows has been verified against the root, and is kept before it is shown: a site that is
        killed never goes back behind a list that it has acted on.

    Args:
        members: The list so far, verified.
        keep: Makes new entries durable before it returns.
    """

    def __init__(self, members: MemberList, keep: Callable[[Sequence[MemberEntry]], None]) -> None:
        self._members = members
        self._keep = keep

    @classmethod
    def load(cls, store: ParticipantStore, federation: str, root: bytes) -> Self:
        """The list in a site's journal.

        Raises:
            DataError: If it isn't the root's.
        """
        try:
            members = MemberList.verify(federation, root, store.pinned_members())
        except SecureAggregationError as error:
            raise DataError(
                f"the member list in this site's journal isn't that of the root in participant.toml: {error.message}",
                "Put the right root back into the file, or join from an empty folder with a new token.",
            ) from error
        return cls(members, store.extend_members)

    @property
    def list(self) -> MemberList:
        """The present list."""
        return self._members

    def shown(self, entries: Sequence[MemberEntry], end: End | None) -> None:
        """The coordinator has shown entries, and where its list ends (None if it didn't say): verify, keep, use.

        Raises:
            RefusedError: As ``MemberList.extend``; nothing is kept then.
        """
        with as_refusal():
            longer = self._members.extend(entries, end)
        new = longer.entries[self._members.count :]
        if not new:
            return
        self._keep(new)
        self._members = longer
        for entry in new:
            text = "member list: entry %d, %s %s, key %s"
            _log.info(text, entry.index, entry.action, entry.name, key_fingerprint(entry.public_key))
