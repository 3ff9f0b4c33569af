"""What a buffer's mean lacks: the last updates of those who aren't in it.

In asynchronous rounds fast participants are in more buffers than slow ones, and each version would lean to whoever
happened to be in its buffer. Cache-aided correction (CA2FL; Wang et al., ICLR 2024) keeps each participant's last
update h and moves the model by ``mean of all h + mean over the buffer of (update - h)``: with shares p of all and w of
the buffer, ``sum_i w_i x_i + sum_j (p_j - w_j) h_j``. Written like this, what is in the buffer with the share that it
has among all needs no correction at all, and a buffer of everyone gives the synchronous mean, bit for bit.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from coordinator.merging import Decision, Rule, Verdict
from coordinator.merging.gate import capped_shares


@dataclasses.dataclass(frozen=True, kw_only=True)
class Earlier:
    """A participant's last merged update: whose, its file, the examples behind it, and how clipping scaled it."""

    participant: str
    path: Path
    examples: int
    factor: float


def correction_weights(
    decision: Decision, rule: Rule, examples: dict[str, int], earlier: Sequence[Earlier]
) -> list[tuple[Earlier, float]]:
    """The factors of earlier updates that a buffer's mean is corrected by.

    Args:
        decision: On the buffer, by a rule that is a mean.
        rule: Which caps shares.
        examples: Behind each update of the buffer, by participant.
        earlier: At most one for each participant; also of those in the buffer.

    Returns:
        Those whose factor isn't 0, in the order of names.
    """
    shares = {
        item.participant: item.share for item in decision.report.participants if item.verdict is not Verdict.REJECTED
    }
    counts = {item.participant: item.examples for item in earlier} | {name: examples[name] for name in decision.names}
    names = sorted(counts)
    cap = rule.largest_share(len(names), decision.report.remaining)
    among_all = dict(zip(names, capped_shares(np.array([float(counts[name]) for name in names]), cap), strict=True))
    found = [
        (item, (float(among_all[item.participant]) - shares.get(item.participant, 0.0)) * item.factor)
        for item in sorted(earlier, key=lambda item: item.participant)
    ]
    return [(item, factor) for item, factor in found if factor != 0.0]
