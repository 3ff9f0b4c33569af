"""Robust merging: from n updates, some of them perhaps hostile, to one vector and a report of what became of each.

    recipe = NormClip(adaptive=True) >> NNM() >> TrimmedMean(f=0.2)
    merged = recipe(updates, names=names, examples=examples)
    merged.value, merged.report

Rules are frozen and hold no state. Everything linear is decided in the Gram plane (`coordinator.merging.plane`).
"""

from coordinator.merging.coordinatewise import Bulyan, Median, TrimmedMean
from coordinator.merging.errors import MergeRefused
from coordinator.merging.linear import CenteredClipping, FLTrust, GeometricMedian, Mean, MultiKrum
from coordinator.merging.merger import Decision, Merged, Merger, merge
from coordinator.merging.preaggregation import NNM, Bucketing, NormClip
from coordinator.merging.recipes import PREAGGREGATORS, RULES, build, careful, robust
from coordinator.merging.report import MergeReport, ParticipantReport, Verdict
from coordinator.merging.rule import Chain, PreAggregator, Recipe, Rule
from coordinator.merging.spectral import CAF, DnC

__all__ = [
    "CAF",
    "NNM",
    "PREAGGREGATORS",
    "RULES",
    "Bucketing",
    "Bulyan",
    "CenteredClipping",
    "Chain",
    "Decision",
    "DnC",
    "FLTrust",
    "GeometricMedian",
    "Mean",
    "Median",
    "MergeRefused",
    "MergeReport",
    "Merged",
    "Merger",
    "MultiKrum",
    "NormClip",
    "ParticipantReport",
    "PreAggregator",
    "Recipe",
    "Rule",
    "TrimmedMean",
    "Verdict",
    "build",
    "careful",
    "merge",
    "robust",
]
