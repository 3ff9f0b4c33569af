"""Was this record trained on? The likelihood-ratio attack (Carlini et al. 2022, arXiv 2112.03570), offline and online.

Each record was in the training data of some models and not in that of others. Its losses under the models that are
known give two normal laws; the loss under the attacked model is likelier under one of them.
"""

from __future__ import annotations

from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from privacy.auditing.bounds import largest_rate, smallest_rate

_SMALLEST: Final = 1e-3


def likelihood_scores(losses: NDArray[np.float64], included: NDArray[np.bool_]) -> NDArray[np.float64]:
    """Score each record under each model by all other models.

    Formal Guarantees:
        A model's own losses aren't used for its scores' laws, so scores are as an attacker would have them who trained
        the other models.

    Args:
        losses: [M, N] Of N records under M models, in a scale in which they are about normal (log p - log(1 - p)).
        included: [M, N] Whether a record was in a model's training data.

    Returns:
        [M, N] Logarithms of likelihood ratios; the larger, the likelier included.

    Raises:
        ValueError: A record is in all models but one, or out of all but one: nothing is left to learn from.
    """
    models, _ = losses.shape
    if min(included.sum(0).min(), (~included).sum(0).min()) < 2:
        raise ValueError("each record must be in two models at least, and out of two")
    scores = np.empty(losses.shape)
    for model in range(models):
        others = np.arange(models) != model
        inside, outside = (
            _law(np.ma.array(losses[others], mask=mask)) for mask in (~included[others], included[others])
        )
        scores[model] = _log_density(losses[model], *inside) - _log_density(losses[model], *outside)
    return scores


def true_positives(
    scores: NDArray[np.float64], included: NDArray[np.bool_], false_positives: float, confidence: float = 0.95
) -> tuple[float, float, float]:
    """The rate at which included records are found, where so few others are taken for included.

    Returns:
        The rate at the largest threshold range that keeps false positives to ``false_positives``, and its bounds, each
        with half of the confidence's error.
    """
    out, inside = scores[~included], scores[included]
    allowed = int(false_positives * len(out))
    threshold = np.sort(out)[len(out) - 1 - allowed]
    hits, each = int((inside > threshold).sum()), 1 - (1 - confidence) / 2
    return (
        hits / len(inside),
        smallest_rate(hits, len(inside), each),
        largest_rate(hits, len(inside), each),
    )


def _law(values: np.ma.MaskedArray[Any, Any]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Means of the records, and one deviation for all: a few models know no record's own."""
    means = values.mean(axis=0)
    variance = float((values - means).compressed().var())
    return np.asarray(means), np.full(len(means), max(_SMALLEST, np.sqrt(variance)))


def _log_density(
    values: NDArray[np.float64], means: NDArray[np.float64], deviations: NDArray[np.float64]
) -> NDArray[np.float64]:
    found: NDArray[np.float64] = -0.5 * np.square((values - means) / deviations) - np.log(deviations)
    return found
