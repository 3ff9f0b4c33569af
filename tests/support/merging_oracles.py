"""Merging rules as their papers write them, on whole float64 matrices [n, d]: slow, plain, apart from ours."""

from __future__ import annotations

import itertools

import numpy as np

Array = np.ndarray


def trimmed_mean(x: Array, f: int) -> Array:
    ordered = np.sort(x, axis=0)
    return ordered[f : len(x) - f].mean(axis=0)


def median(x: Array) -> Array:
    return np.median(x, axis=0)


def mean_around_median(x: Array, count: int) -> Array:
    """Values nearest the median; of two as near, the smaller."""
    out = np.empty(x.shape[1])
    for k in range(x.shape[1]):
        column = np.sort(x[:, k])
        middle = np.median(column)
        order = np.lexsort((column, np.abs(column - middle)))
        out[k] = column[order[:count]].mean()
    return out


def krum_scores(x: Array, near: int) -> Array:
    scores = []
    for i in range(len(x)):
        distances = sorted(float(((x[i] - x[j]) ** 2).sum()) for j in range(len(x)) if j != i)
        scores.append(sum(distances[:near]))
    return np.array(scores)


def multi_krum(x: Array, f: int, m: int, near: int | None = None) -> Array:
    scores = krum_scores(x, len(x) - f - 2 if near is None else near)
    return x[krum_order(x, scores)[:m]].mean(axis=0)


def krum_order(x: Array, scores: Array) -> list[int]:
    """At equal scores (which rounding may blur) the row nearer to all others comes first."""
    nearness = [((x - row) ** 2).sum() for row in x]
    return sorted(range(len(x)), key=lambda i: (float(f"{scores[i]:.9e}"), nearness[i]))


def bulyan(x: Array, f: int) -> Array:
    left = list(range(len(x)))
    picked = []
    for _ in range(len(x) - 2 * f):
        scores = krum_scores(x[left], max(len(left) - f - 2, 1))
        picked.append(left.pop(krum_order(x[left], scores)[0]))
    return mean_around_median(x[picked], len(picked) - 2 * f)


def geometric_median(x: Array, shares: Array | None = None, steps: int = 20_000) -> Array:
    shares = np.full(len(x), 1 / len(x)) if shares is None else shares
    z = np.median(x, axis=0)
    for _ in range(steps):
        away = np.sqrt(((x - z) ** 2).sum(axis=1)) + 1e-13 * (1 + np.abs(x).max())
        pulls = shares / away
        moved = (pulls @ x) / pulls.sum()
        if np.abs(moved - z).max() <= 1e-14 * (1 + np.abs(z).max()):
            break
        z = moved
    return z


def centered_clipping(x: Array, radius: float, steps: int, start: Array) -> Array:
    v = start.copy()
    for _ in range(steps):
        differences = x - v
        norms = np.sqrt((differences**2).sum(axis=1))
        v = v + (differences * np.minimum(1, radius / np.maximum(norms, 1e-300))[:, None]).mean(axis=0)
    return v


def caf(x: Array, f: int) -> Array:
    c = np.ones(len(x))
    best, least = x.mean(axis=0), np.inf
    while c.sum() > len(x) - 2 * f:
        mu = (c @ x) / c.sum()
        away = x - mu
        values, vectors = np.linalg.eigh((away.T * c) @ away / c.sum())
        if values[-1] < least:
            best, least = mu, values[-1]
        taus = (away @ vectors[:, -1]) ** 2
        highest = taus[c > 0].max()
        if highest == 0:
            break
        c = c * np.maximum(1 - taus / highest, 0)
    return best


def dnc(x: Array, f: int, factor: float = 1.0) -> Array:
    away = x - x.mean(axis=0)
    direction = np.linalg.svd(away, full_matrices=False)[2][0]
    order = np.argsort((away @ direction) ** 2, kind="stable")
    return x[order[: len(x) - int(factor * f)]].mean(axis=0)


def fltrust(x: Array, root: Array) -> Array:
    length = np.linalg.norm(root)
    norms = np.linalg.norm(x, axis=1)
    trust = np.maximum(x @ root / (norms * length), 0)
    return ((trust * length / norms) @ x) / trust.sum()


def nnm(x: Array, f: int) -> Array:
    out = np.empty_like(x)
    for i in range(len(x)):
        distances = ((x - x[i]) ** 2).sum(axis=1)
        out[i] = x[np.argsort(distances, kind="stable")[: len(x) - f]].mean(axis=0)
    return out


def arc(x: Array, f: int) -> Array:
    norms = np.linalg.norm(x, axis=1)
    clipped = 2 * f * (len(x) - f) // len(x)
    limit = np.sort(norms)[len(x) - clipped - 1]
    return x * np.minimum(1, limit / norms)[:, None]


def clip(x: Array, limit: float) -> Array:
    return x * np.minimum(1, limit / np.linalg.norm(x, axis=1))[:, None]


def worst_ratio(x: Array, f: int, result: Array) -> float:
    """The least kappa for which ``result`` is (f, kappa)-robust on x: over all sets of n - f rows."""
    worst = 0.0
    for some in itertools.combinations(range(len(x)), len(x) - f):
        chosen = x[list(some)]
        mean = chosen.mean(axis=0)
        spread = ((chosen - mean) ** 2).sum(axis=1).mean()
        error = ((result - mean) ** 2).sum()
        if spread == 0:
            worst = max(worst, 0.0 if error <= 1e-12 * (mean**2).sum() else np.inf)
        else:
            worst = max(worst, error / spread)
    return worst
