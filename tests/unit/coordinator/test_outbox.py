"""What waits on one participant's stream."""

from __future__ import annotations

from coordinator.daemon import _OUTBOX, Outbox
from protos import session_pb2 as pb


async def test_a_peer_that_does_not_read_is_told_no_more_than_its_outbox_holds() -> None:
    outbox = Outbox(1 << 20)
    message = pb.FromCoordinator(cancel=pb.Cancel(task_id="t"))
    assert all(outbox.put(message) for _ in range(_OUTBOX))
    assert not outbox.put(message)
    outbox.end()
    # The stream is on its way to its end: what comes later isn't said, and isn't complained of either.
    assert outbox.put(message)
    assert [await outbox.get() for _ in range(_OUTBOX)] == [message] * _OUTBOX
    assert await outbox.get() is None
