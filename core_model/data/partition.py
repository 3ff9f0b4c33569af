"""Splitting one data set among institutions, seeded and without overlap."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from core_model.errors import DataError

Indices = npt.NDArray[np.int64]


def iid(count: int, parts: int, seed: int) -> list[Indices]:
    """Shuffle ``count`` examples and cut them into ``parts`` of nearly equal size."""
    order = np.random.default_rng(seed).permutation(count)
    return [np.sort(part) for part in np.array_split(order, parts)]


def dirichlet(labels: Indices, parts: int, alpha: float, seed: int) -> list[Indices]:
    """Label skew: each class is divided among the parts by a draw from Dirichlet(alpha).

    Small ``alpha`` gives each part few classes. Every part gets at least one example: the largest parts give one away.
    """
    generator = np.random.default_rng(seed)
    owners: list[list[int]] = [[] for _ in range(parts)]
    for label in np.unique(labels):
        members = generator.permutation(np.flatnonzero(labels == label))
        shares = generator.dirichlet(np.full(parts, alpha))
        cuts = np.round(np.cumsum(shares)[:-1] * len(members)).astype(np.int64)
        for owner, part in zip(owners, np.split(members, cuts), strict=True):
            owner.extend(part.tolist())
    for owner in owners:
        if not owner:
            owner.append(max(owners, key=len).pop())
    return [np.sort(np.asarray(owner, np.int64)) for owner in owners]


def shards(labels: Indices, parts: int, per_part: int, seed: int) -> list[Indices]:
    """Label shards (McMahan 2017): sort by label, cut into parts x per_part shards, deal ``per_part`` to each part."""
    generator = np.random.default_rng(seed)
    order = generator.permutation(len(labels))
    order = order[np.argsort(labels[order], kind="stable")]
    pieces = np.array_split(order, parts * per_part)
    dealt = generator.permutation(parts * per_part).reshape(parts, per_part)
    return [np.sort(np.concatenate([pieces[i] for i in row])) for row in dealt]


def partition(labels: Indices, part: int, parts: int, options: dict[str, str], source: str) -> Indices:
    """Indices of part ``part`` (from 1) of ``parts``, as the options ``split``, ``alpha``, ``shards``, ``seed`` ask.

    Raises:
        DataError: If an option is unknown or out of range; the message names it and the source.
    """
    known = {"split", "alpha", "shards", "seed"}
    unknown = sorted(set(options) - known)
    if unknown:
        hint = f"Options: {', '.join(sorted(known))}."
        raise DataError(f'Data source "{source}": unknown option "{unknown[0]}".', hint)
    if not 1 <= part <= parts <= len(labels):
        raise DataError(f'Data source "{source}": part {part} of {parts} is out of range.', "Write k/n.")
    split = options.get("split", "iid")
    seed = int(_number(options, "seed", "0", source, low=0))
    if split == "iid":
        return iid(len(labels), parts, seed)[part - 1]
    if split == "dirichlet":
        return dirichlet(labels, parts, _number(options, "alpha", "0.5", source, low=1e-3), seed)[part - 1]
    if split == "shards":
        per_part = int(_number(options, "shards", "2", source, low=1))
        if parts * per_part > len(labels):
            raise DataError(f'Data source "{source}": {parts} parts x {per_part} shards exceed {len(labels)} examples.')
        return shards(labels, parts, per_part, seed)[part - 1]
    raise DataError(f'Data source "{source}": unknown split "{split}".', "Splits: iid, dirichlet, shards.")


def _number(options: dict[str, str], key: str, default: str, source: str, *, low: float) -> float:
    text = options.get(key, default)
    try:
        value = float(text)
    except ValueError:
        value = float("nan")
    if not low <= value < 2**53:
        raise DataError(f'Data source "{source}": {key} = {text} is not a number of at least {low:g}.')
    return value
