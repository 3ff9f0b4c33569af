"""The process that a part of a cohort lives in: see ``secure_federation``."""

from __future__ import annotations

import dataclasses
import hashlib
import time
from collections.abc import Iterable
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Final

import numpy as np

from benchmarks.secure_context import EXAMPLES, FEDERATION, NOW_S
from privacy.secure_aggregation.context import RoundContext
from privacy.secure_aggregation.keys import SigningKey
from privacy.secure_aggregation.masking import mask_bytes, masked_upload, split_mask
from privacy.secure_aggregation.members import MemberEntry, MemberList
from privacy.secure_aggregation.memory import Assignment, Deliver, Expand, Mask, Step
from privacy.secure_aggregation.participant import Participant
from privacy.secure_aggregation.policy import SitePolicy
from privacy.secure_aggregation.sharing import MaskTerm
from privacy.secure_aggregation.statements import Plan, Signed, kind_of
from privacy.secure_aggregation.streams import MAIN, TAIL, Pair, Stream, add_pairs
from privacy.secure_aggregation.tail import encode_tail
from wire import BlobStore

UPDATE: Final = "update"
"""The trained update's file; everyone's."""

Message = tuple[str, Signed]
"""A participant, and a statement from it or for it."""

Row = tuple[bytes, int, int | None]
"""The seed of a mask stream, the position that adds it, the position that subtracts it."""


@dataclasses.dataclass
class Answer:
    """What a part of the cohort has to say, and the masks that it has to expand."""

    messages: list[Message] = dataclasses.field(default_factory=list)
    expansions: dict[str, tuple[MaskTerm, ...]] = dataclasses.field(default_factory=dict)


def mask_path(folder: Path, name: str) -> Path:
    """Where a participant's mask is, and then its upload, until that has a digest."""
    return folder / f"{name}.mask"


class Host:
    """A part of a cohort.

    Args:
        secrets: Signing key of each of its participants by name.
        entries: The federation's member list.
        root: Public key of the root.
        folder: Shared by all processes.
    """

    def __init__(self, secrets: dict[str, bytes], entries: Iterable[MemberEntry], root: bytes, folder: Path) -> None:
        members = MemberList.verify(FEDERATION, root, entries)
        self._machines = {
            name: Participant(name, SigningKey(secret), members, SitePolicy()) for name, secret in secrets.items()
        }
        self._folder = folder
        self._blobs = BlobStore(folder)
        self._update = np.fromfile(folder / UPDATE, "<f4")
        self._lost = np.empty_like(self._update)

    def offer(self) -> Answer:
        """Everyone's prekeys."""
        answer = Answer()
        for name, machine in self._machines.items():
            self._take(answer, name, machine.offer(NOW_S))
        return answer

    def hear(self, messages: list[Message], task: Assignment) -> Answer:
        """Statements of the coordinator, in order."""
        answer = Answer()
        for name, signed in messages:
            machine = self._machines[name]
            plan = kind_of(signed.body) == Plan.KIND
            self._take(answer, name, machine.plan(signed, task, NOW_S) if plan else machine.receive(signed, NOW_S))
        return answer

    def trained(self, task: Assignment) -> Answer:
        """Everyone has trained."""
        answer = Answer()
        for name, machine in self._machines.items():
            self._take(answer, name, machine.trained(task))
        return answer

    def expand(self, context: bytes, rows: list[Row], start: int, stop: int) -> None:
        """Expand a slice of all participants' masks, and their tails too if it is the first."""
        parsed = RoundContext.parse(context)
        buffers = [
            np.memmap(mask_path(self._folder, name), np.uint8, "r+", shape=mask_bytes(parsed)) for name in parsed.names
        ]
        main: list[Pair] = [(Stream(seed, MAIN), plus, minus) for seed, plus, minus in rows]
        add_pairs([split_mask(parsed, buffer)[0][start:stop] for buffer in buffers], main, start=start)
        if start == 0:
            tail: list[Pair] = [(Stream(seed, TAIL), plus, minus) for seed, plus, minus in rows]
            masks = [np.zeros(parsed.layout.size, "<u8") for _ in buffers]
            add_pairs(masks, tail)
            for buffer, mask in zip(buffers, masks, strict=True):
                buffer[-mask.nbytes :] = mask.view(np.uint8)

    def expanded(self, context: bytes) -> Answer:
        """Everyone's mask is there."""
        answer = Answer()
        for name, machine in self._machines.items():
            self._take(answer, name, machine.expanded(context))
        return answer

    def cpu_s(self) -> float:
        """Processor seconds of this process so far."""
        return time.process_time()

    def _take(self, answer: Answer, name: str, step: Step) -> None:
        if step.refusal is not None:
            raise step.refusal
        answer.messages += [(name, statement) for statement in step.answers]
        for work in step.work:
            if isinstance(work, Expand):
                answer.expansions[name] = work.terms
            elif isinstance(work, Mask):
                digest = self._mask(name, work)
                self._take(answer, name, self._machines[name].masked(work.context.hash, digest))
            elif isinstance(work, Deliver):
                mask_path(self._folder, name).rename(self._blobs.path(work.digest))
                self._take(answer, name, self._machines[name].delivered(work.context.hash))

    def _mask(self, name: str, work: Mask) -> bytes:
        """Make the upload where the mask lies; its digest."""
        context = work.context
        buffer = np.memmap(mask_path(self._folder, name), np.uint8, "r+")
        dither = hashlib.sha256(name.encode()).digest()
        encoder = context.encoding.encoder(self._update, EXAMPLES, dither)
        tail = encode_tail(context.layout, context.encoding.weight(EXAMPLES), {"loss": 1.0})
        packed, end = masked_upload(context, encoder, tail, split_mask(context, buffer), work.terms, self._lost)
        buffer[packed.nbytes :] = np.frombuffer(end, np.uint8)
        return hashlib.sha256(buffer.data).digest()


def serve(
    connection: Connection, secrets: dict[str, bytes], entries: list[MemberEntry], root: bytes, folder: Path
) -> None:
    """Do what is asked for until the other side goes away."""
    host = Host(secrets, entries, root, folder)
    while True:
        try:
            method, arguments = connection.recv()
        except EOFError:
            return
        connection.send(getattr(host, method)(*arguments))
