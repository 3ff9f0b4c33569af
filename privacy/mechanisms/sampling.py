"""Poisson sampling: each record enters a step by a draw of its own, and the number of records is itself random.

Amplification by sampling is claimed for this sampler and no other: shuffling and fixed batch sizes protect less than
the same formula says (Chua et al. 2024, arXiv 2403.17673).
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from privacy.mechanisms.errors import PrivacyError
from privacy.mechanisms.noise import NoiseKey


class PoissonSampler:
    """Draws the records of each step.

    Formal Guarantees:
        Every record is in every sample independently with probability floor(rate * 2^64) / 2^64, never more than
        ``rate``, if AES-256 is a pseudorandom permutation. Samples may be empty.

    Example:
        >>> sampler = PoissonSampler(1_000, 0.1, NoiseKey(bytes(32)))
        >>> len(sampler.sample()) != len(sampler.sample())
        True

    Args:
        records: N.
        rate: q in (0, 1].
        key: Of all samples together; a fresh one from the operating system without it.

    Raises:
        PrivacyError: "sampling-invalid".
    """

    def __init__(self, records: int, rate: float, key: NoiseKey | None = None) -> None:
        if records < 0 or not 0 < rate <= 1:
            raise PrivacyError("sampling-invalid", f"{records} records can't be sampled with a rate of {rate}")
        self._records = records
        self._threshold = min(int(rate * 2.0**64), 1 << 64)
        self._key = NoiseKey.fresh() if key is None else key
        self._drawn = 0

    def sample(self) -> NDArray[np.int64]:
        """The next sample: indices, ascending; often of another length, sometimes none."""
        draws = self._key.uniform(self._records, self._drawn)
        self._drawn += self._records
        if self._threshold == 1 << 64:
            return np.arange(self._records)
        return np.flatnonzero(draws < np.uint64(self._threshold))
