"""Who may store and read which blobs: the hub and the roster decide."""

from __future__ import annotations

import time

from coordinator.daemon import Daemon
from coordinator.store import MemberState
from wire import Identity, RefusedError, Role, UnreachableError


class HubPolicy:
    """Answers for ``wire.BlobService``: updates of open rounds come in, versions of the model go out, nothing else."""

    def __init__(self, daemon: Daemon) -> None:
        self._daemon = daemon

    def may_upload(self, identity: Identity, digest: bytes, size: int) -> None:
        """Raise :class:`RefusedError` unless this peer owes an update of this size."""
        self._admit(identity)
        self._hub_ready()
        assert self._daemon.hub is not None
        self._daemon.hub.may_upload(identity.name, digest, size)

    def may_download(self, identity: Identity, digest: bytes) -> None:
        """Raise :class:`RefusedError` unless it is a version of the model, asked for by a member or the operator."""
        if identity.role is not Role.OPERATOR:
            self._admit(identity)
        self._hub_ready()
        assert self._daemon.hub is not None
        self._daemon.hub.may_download(identity.name, digest)

    def progressed(self, identity: Identity) -> None:
        """A chunk on its way renews the lease, as a message does: behind it messages may have to wait."""
        if self._daemon.hub is not None:
            self._daemon.hub.heard(identity.name, time.time())

    def refused(self, identity: Identity, error: RefusedError) -> None:
        """Count a refusal of the service's own (a wrong digest, too many bytes)."""
        self._daemon.store.count_refusal(error.code, identity.name)

    def _admit(self, identity: Identity) -> None:
        member = self._daemon.store.member(identity.name)
        if identity.role is not Role.PARTICIPANT or member is None or member.state is not MemberState.ENROLLED:
            raise RefusedError("participant-revoked", f"{identity.name} may not transfer blobs")

    def _hub_ready(self) -> None:
        if self._daemon.hub is None:
            # No refusal: a site that goes on with a transfer right after a restart only has to try again.
            raise UnreachableError("the run isn't open yet", "Try again in a moment.")
