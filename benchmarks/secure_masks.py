"""What one participant, or one core, needs: mask streams beside raw AES, masking beside Flower's, encoding, secrets."""

from __future__ import annotations

import functools
import hashlib
import math
import os
import time
from collections.abc import Callable
from typing import Any, Final

import numpy as np
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes
from numpy.typing import NDArray

from benchmarks import secure_peer
from benchmarks.report import Report, Row
from benchmarks.secure_context import EXAMPLES, dummy_seats, round_context
from benchmarks.timing import best_cpu_s
from privacy.secure_aggregation.context import RoundContext
from privacy.secure_aggregation.field import combine, split
from privacy.secure_aggregation.keys import AgreementKey, SigningKey, verify
from privacy.secure_aggregation.masking import expand_mask, masked_upload, streams
from privacy.secure_aggregation.sharing import MaskTerm
from privacy.secure_aggregation.streams import MAIN, RingVector, add_streams, dtype_of
from privacy.secure_aggregation.tail import encode_tail
from privacy.secure_aggregation.thresholds import thresholds

FUSED_TARGET: Final = 0.80
PEER_TARGET: Final = 8.0
ONLINE_TARGET_MS: Final = 60.0

# Larger chunks aren't faster, and smaller ones pay for the call.
_CHUNKS: Final = (128 << 10, 256 << 10)
_FLOOR_BYTES: Final = 1 << 28


def terms(count: int) -> list[MaskTerm]:
    """Mask streams of random seeds, with alternating signs."""
    return [MaskTerm(os.urandom(32), 1 if index % 2 == 0 else -1) for index in range(count)]


def aes_bytes_per_s(size: int, repeats: int) -> float:
    """The floor: what one core makes of AES-256-CTR keystream in one small buffer, in the better chunk size."""
    found = []
    for chunk in _CHUNKS:
        zeros, buffer = memoryview(bytes(chunk)), np.empty(chunk, np.uint8)
        rounds = max(1, size // chunk)

        def work(zeros: memoryview = zeros, target: Any = buffer.data, rounds: int = rounds) -> None:
            generate = Cipher(algorithms.AES(os.urandom(32)), modes.CTR(bytes(16))).encryptor().update_into
            for _ in range(rounds):
                generate(zeros, target)

        found.append(rounds * chunk / best_cpu_s(work, repeats))
    return max(found)


def floor(report: Report, repeats: int) -> float:
    """What one core makes of raw AES-256-CTR, in bytes per second."""
    rate = aes_bytes_per_s(_FLOOR_BYTES, 2 * repeats)
    report.add(Row(case="raw AES-256-CTR, one core", metric="rate", value=rate / 1e9, unit="GB/s", better="higher"))
    return rate


def expansion(report: Report, dimension: int, few: int, repeats: int) -> None:
    """The mask streams of a participant with 100, of ``dimension`` coordinates; and 1 and 3 streams of ``few``."""
    for bits in (32, 16):
        for count, length in ((100, dimension), (3, few), (1, few)):
            out: RingVector = np.zeros(length, dtype_of(bits))
            added = streams(terms(count), MAIN)
            size = count * out.nbytes
            work = functools.partial(add_streams, out, added, overwrite=count == 100)
            # One behind the other, several times: another's load then weighs on both.
            pairs = [(aes_bytes_per_s(min(size, _FLOOR_BYTES), 2), size / best_cpu_s(work, 2)) for _ in range(repeats)]
            raw, rate = max(pair[0] for pair in pairs), max(pair[1] for pair in pairs)
            # With few streams the vector's own way through memory counts, too.
            target = FUSED_TARGET if count == 100 else None
            case = f"{count} stream{'s' * (count > 1)} x {length / 1e6:g} M, {bits}-bit ring, one core"
            report.add(Row(case=case, metric="rate", value=rate / 1e9, unit="GB/s", better="higher"))
            metric = "of raw AES-256-CTR"
            report.add(Row(case=case, metric=metric, value=rate / raw, unit="", better="higher", target=target))


def masking(report: Report, dimension: int, peers: int, measured: int, repeats: int) -> None:
    """A participant's mask, expanded and added, beside Flower's; ``measured`` of Flower's masks are timed."""
    context = round_context(dimension, 32, dummy_seats(peers + 1))
    added = terms(peers + 1)
    vector: RingVector = np.ones(dimension, context.encoding.dtype)

    def work() -> None:
        main, _ = expand_mask(context, added)
        np.add(vector, main, out=main)

    ours = best_cpu_s(work, repeats)
    name = secure_peer.name()
    theirs = secure_peer.masking_s(dimension, peers, measured) if name is not None else None
    case = f"participant's masks, {dimension / 1e6:g} M, {peers} peers, 32-bit ring"
    report.add(
        Row(
            case=case,
            metric="processor time",
            value=ours,
            unit="s",
            better="lower",
            peer=name,
            ratio=None if theirs is None else theirs / ours,
        )
    )
    if theirs is None:
        return
    how = "" if measured > peers else f" ({measured} of {peers + 1} masks timed, scaled)"
    report.add(Row(case=f"{name}: {case}{how}", metric="processor time", value=theirs, unit="s", better="lower"))
    report.add(
        Row(
            case=case,
            metric=f"{name} / ours",
            value=theirs / ours,
            unit="x",
            better="higher",
            target=PEER_TARGET,
            peer=name,
            ratio=theirs / ours,
        )
    )


def online(report: Report, dimension: int, participants: int, repeats: int) -> None:
    """What is left to do when the model is trained and the masks are there."""
    update = np.random.default_rng(3).standard_normal(dimension, dtype=np.float32)
    np.multiply(update, np.float32(1e-3), out=update)
    for bits in (32, 16):
        context = round_context(dimension, bits, dummy_seats(participants))
        case = f"participant after training, {dimension / 1e6:g} M, {bits}-bit ring"
        residual = np.zeros(dimension, np.float32)
        figures = [
            (
                "encode and mask, with error feedback",
                ONLINE_TARGET_MS,
                _online_s(context, update, residual, 0, repeats),
            ),
            ("the same, one dead peer's mask taken out", None, _online_s(context, update, residual, 1, repeats)),
            ("encode and mask, first round", None, _online_s(context, update, None, 0, repeats)),
            ("SHA-256 of the upload", None, _hash_s(context.encoding.wire_bytes(dimension), repeats)),
        ]
        for metric, target, seconds in figures:
            report.add(Row(case=case, metric=metric, value=1e3 * seconds, unit="ms", better="lower", target=target))


def _online_s(
    context: RoundContext, update: NDArray[np.float32], residual: NDArray[np.float32] | None, dead: int, repeats: int
) -> float:
    mask: RingVector = np.ones(context.dimension, context.encoding.dtype)
    tail = encode_tail(context.layout, EXAMPLES, {"loss": 1.0})
    lost = np.zeros(context.dimension, np.float32)
    gone = terms(dead)

    def work() -> None:
        encoder = context.encoding.encoder(update, EXAMPLES, bytes(32), residual)
        masked_upload(context, encoder, tail, (mask, np.zeros_like(tail)), gone, lost)

    return best_cpu_s(work, repeats)


def _hash_s(size: int, repeats: int) -> float:
    content = memoryview(bytearray(size))
    return best_cpu_s(lambda: hashlib.sha256(content), repeats)


def secrets(report: Report, participants: int, repeats: int) -> None:
    """Shares, signatures and key agreements: each, and as many as one participant has."""
    numbers = thresholds(participants, 20, 3)
    points = list(range(1, participants + 1))
    shares = [split(os.urandom(32), threshold=numbers.threshold, points=points) for _ in range(participants)]
    key, peer, message = SigningKey.generate(), AgreementKey.generate(), os.urandom(200)
    agreement, signature, public = AgreementKey.generate(), key.sign(message), key.public
    # Its peers' prekeys, acceptances and uploads, the quorum, and what the coordinator says.
    checks = 3 * participants + numbers.quorum + 7
    size = f"({participants}, {numbers.threshold})"

    def rebuild() -> None:
        # The points come in another order each time, as they do in a round, so that no weights are left from before.
        order = np.random.default_rng(time.perf_counter_ns()).permutation(participants).tolist()
        for each in shares:
            combine([(points[index], each[index]) for index in order], threshold=numbers.threshold)

    def dealt() -> None:
        split(shares[0][0][1:], threshold=numbers.threshold, points=points)

    figures: list[tuple[str, str, Callable[[], object], int]] = [
        (f"Shamir {size}", "split one secret", dealt, 1),
        (f"Shamir {size}", f"rebuild {participants} secrets", rebuild, 1),
        (
            f"a participant of {participants}",
            f"{checks} Ed25519 checks",
            lambda: verify(public, signature, message),
            checks,
        ),
        (
            f"a participant of {participants}",
            f"{2 * participants} X25519 agreements",
            lambda: agreement.agree(peer.public),
            2 * participants,
        ),
    ]
    for case, metric, work, count in figures:
        seconds = count * _each_s(work, repeats)
        report.add(Row(case=case, metric=metric, value=1e3 * seconds, unit="ms", better="lower"))


def _each_s(work: Callable[[], object], repeats: int) -> float:
    """Processor time of one call: as many in a row as the clock needs."""
    count = max(1, math.ceil(0.01 / max(best_cpu_s(work, 1), 1e-6)))

    def several() -> None:
        for _ in range(count):
            work()

    return best_cpu_s(several, repeats) / count
