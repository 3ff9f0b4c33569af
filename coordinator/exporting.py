"""Bringing a version of the model from the coordinator's disk to a file of the operator's."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

import grpc

from protos import blobs_pb2_grpc
from protos import control_pb2 as pb
from wire import BlobStore, ResourceError, download

if TYPE_CHECKING:
    from protos import control_pb2_grpc


async def export(
    stub: control_pb2_grpc.ControlAsyncStub, channel: grpc.aio.Channel, out: Path, version: int | None
) -> pb.ExportReply:
    """Fetch a version (the last one where ``version`` is None), check its digest, write it and the plan beside it.

    The plan is written to ``out`` with the suffix ``.plan.json``.

    Raises:
        ResourceError: the file can't be written.
        RefusedError: there is no such version.
    """
    reply = await stub.Export(pb.ExportRequest(version=version or 0, initial=version == 0))
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=out.parent, prefix=".export-") as folder:
            blobs = BlobStore(Path(folder))
            await download(blobs_pb2_grpc.BlobsStub(channel), reply.model.digest, reply.model.size, blobs)
            blobs.path(reply.model.digest).replace(out)
        out.with_suffix(".plan.json").write_bytes(reply.plan + b"\n")
    except OSError as error:
        raise ResourceError(f"{out} can't be written: {error.strerror}", "Choose another place.") from error
    return reply
