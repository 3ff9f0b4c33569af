"""A federation's signing keys in memory: its root, its coordinator, its participants, and the list that they are in."""

from __future__ import annotations

import hashlib

from privacy.secure_aggregation.identities import COORDINATOR_NAME, Role
from privacy.secure_aggregation.keys import SigningKey
from privacy.secure_aggregation.members import FederationRoot, MemberList


class Federation:
    """What a hub needs to know of its members, as ``coordinator.membership`` tells it; the list starts empty.

    Keys follow from names, so that a test that starts again finds the same federation.
    """

    def __init__(self, name: str = "bench") -> None:
        self.root = FederationRoot(name, _key(f"{name}/root"))
        self.signing_key = _key(f"{name}/coordinator")
        self.members: MemberList = self.root.empty()

    @classmethod
    def of(cls, name: str, *participants: str) -> Federation:
        """One in which the coordinator and these participants are certified."""
        made = cls(name)
        made.certify_coordinator()
        made.certify(*participants)
        return made

    def key(self, participant: str) -> SigningKey:
        """A participant's own, whether it is certified or not."""
        return _key(f"{self.members.federation}/participant/{participant}")

    def certify_coordinator(self) -> None:
        entry = self.root.add(self.members, Role.COORDINATOR, COORDINATOR_NAME, self.signing_key.public)
        self.members = self.members.extend([entry])

    def certify(self, *participants: str) -> None:
        for name in participants:
            entry = self.root.add(self.members, Role.PARTICIPANT, name, self.key(name).public)
            self.members = self.members.extend([entry])

    def remove(self, participant: str) -> None:
        self.members = self.members.extend([self.root.remove(self.members, participant)])


def _key(label: str) -> SigningKey:
    return SigningKey(hashlib.sha256(label.encode()).digest())
