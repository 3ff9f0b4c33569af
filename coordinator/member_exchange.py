"""The operator's side of the member list: fetch it from the running coordinator, bring it what the root has signed."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING

from privacy.secure_aggregation.identities import MemberRequest, Role
from privacy.secure_aggregation.members import MemberList
from protos import control_pb2 as pb
from wire import Requests, as_refusal, pack_members, unpack_members
from wire.root import MAX_ENTRIES

if TYPE_CHECKING:
    from protos import control_pb2_grpc


@dataclasses.dataclass(frozen=True)
class Fetched:
    """What the coordinator has.

    Attributes:
        members: Its list, verified against the root that it names.
        requests: Who waits for the root's signature.
        root_here: Whether the root's private key is in its state folder.
    """

    members: MemberList
    requests: Requests
    root_here: bool


async def fetch(stub: control_pb2_grpc.ControlAsyncStub) -> Fetched:
    """Ask for the whole list and for who is pending.

    Raises:
        RefusedError: The list doesn't verify.
    """
    reply = await stub.GetMembers(pb.MembersRequest())
    entries = unpack_members(reply.entries)
    while len(entries) < reply.total:
        more = await stub.GetMembers(pb.MembersRequest(after=len(entries)))
        entries += unpack_members(more.entries)
    with as_refusal():
        members = MemberList.verify(reply.federation, reply.root, entries)
    pending = tuple(
        MemberRequest(
            federation=reply.federation,
            role=Role(item.role),
            name=item.name,
            public_key=item.public_key,
            binding=item.binding,
            signature=item.signature,
        )
        for item in reply.pending
    )
    requests = Requests(federation=reply.federation, root=reply.root, end=members.end, requests=pending)
    return Fetched(members, requests, reply.root_here)


async def send(stub: control_pb2_grpc.ControlAsyncStub, members: MemberList) -> pb.ImportMembersReply:
    """Bring the coordinator a longer list; the reply counts all entries that were new."""
    added = 0
    for start in range(0, max(1, members.count), MAX_ENTRIES):
        part = pack_members(members.entries[start : start + MAX_ENTRIES])
        reply = await stub.ImportMembers(pb.ImportMembersRequest(entries=part, total=members.count, head=members.head))
        added += reply.added
    reply.added = added
    return reply
