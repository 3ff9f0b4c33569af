"""The part of unmasking a sum that runs in processes of its own, by slices of coordinates.

It imports little, on purpose: each process begins with this module. The processes are forked from a server that has
imported it once (about a quarter of a second and 40 MB for the life of the coordinator); another one then costs
20 ms. They can't be forked from the coordinator itself, which has threads.
"""

from __future__ import annotations

import multiprocessing
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Final

import numpy as np

from privacy.secure_aggregation.context import RoundContext
from privacy.secure_aggregation.streams import RingVector, Term, slices
from privacy.secure_aggregation.summing import add_slice

_SHARED: Final = Path("/dev/shm")  # memory that looks like a folder, where the system has one


def unmask_slices(context: RoundContext, terms: Sequence[Term], paths: Sequence[Path], processes: int) -> RingVector:
    """Add up uploads and the streams that unmask them, each slice in a process of its own, into shared memory.

    Args:
        context: Of the attempt; its dimension is at least 1.
        terms: Streams of the main vector.
        paths: The uploads' files, of the right size each.
        processes: How many.

    Returns:
        The main vector [d] in the ring; only its low ``wire_bits`` count.
    """
    server = multiprocessing.get_context("forkserver")
    server.set_forkserver_preload([__name__])  # unless it runs already
    # A mapped file rather than SharedMemory: the mapping outlives the file's name, so that nothing has to be copied.
    with tempfile.NamedTemporaryFile(dir=_SHARED if _SHARED.is_dir() else None) as file:
        total: RingVector = np.memmap(file.name, context.encoding.dtype, "w+", shape=(context.dimension,))
        work = []
        for start, stop in slices(context.dimension, processes):
            arguments = (file.name, context.canonical(), terms, paths, start, stop)
            process = server.Process(target=_slice_job, args=arguments, daemon=True)
            process.start()
            work.append((process, start, stop))
        for process, start, stop in work:
            process.join()
            if process.exitcode:  # killed, most likely for want of memory; or this raises what is wrong
                _add(context, total[start:stop].view(np.ndarray), terms, paths, start)
    return total


def _slice_job(total: str, context: bytes, terms: Sequence[Term], paths: Sequence[Path], start: int, stop: int) -> None:
    parsed = RoundContext.parse(context)
    out = np.memmap(total, parsed.encoding.dtype, "r+", shape=(parsed.dimension,))
    _add(parsed, out[start:stop].view(np.ndarray), terms, paths, start)


def _add(context: RoundContext, out: RingVector, terms: Sequence[Term], paths: Sequence[Path], start: int) -> None:
    out.fill(0)
    add_slice(context, out, terms, [np.memmap(path, np.uint8, "r") for path in paths], start)
