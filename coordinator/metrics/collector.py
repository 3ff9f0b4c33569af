"""From one status to Prometheus' metrics: what there is, with which labels and units, and how it is filled in."""

from __future__ import annotations

import dataclasses
import datetime
import math
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from typing import Final, Literal

from prometheus_client.core import Metric
from prometheus_client.registry import Collector

from coordinator.merging.report import Verdict
from coordinator.status import PARTICIPANT_STATES, RUN_STATES
from protos import control_pb2 as pb

Kind = Literal["gauge", "counter", "summary", "histogram", "info", "stateset"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Declared:
    """A metric that the endpoint may show.

    Attributes:
        name: Without the suffixes that the exposition format adds (``_total``, ``_info``, ``_sum``, ``_count``).
        kind: Its type in OpenMetrics' words.
        labels: Names of its labels.
        help: What it says.
    """

    name: str
    kind: Kind
    labels: tuple[str, ...] = ()
    help: str


_OF = ("participant",)

_STALENESS: Final = (0, 1, 2, 5, 10, 20, 50)
"""Upper bounds of the buckets, in versions."""

METRICS: Final = (
    Declared(name="fedloom_run", kind="info", labels=("federation", "run"), help="The run; 1."),
    Declared(
        name="fedloom_run_state",
        kind="stateset",
        labels=("fedloom_run_state",),
        help="What the run is doing: 1 for one of " + ", ".join(RUN_STATES) + "; 0 for the others.",
    ),
    Declared(name="fedloom_round", kind="gauge", help="The round in progress; 0 if there is none."),
    Declared(name="fedloom_rounds_planned", kind="gauge", help="Rounds of training that the run has at most."),
    Declared(name="fedloom_round_open_seconds", kind="gauge", help="Age of the round in progress; 0 if there is none."),
    Declared(
        name="fedloom_round_duration_seconds",
        kind="summary",
        help="Closed rounds of this run, from start to commit: how many, and their seconds in all.",
    ),
    Declared(
        name="fedloom_training_loss",
        kind="gauge",
        help="Mean training loss of the last round whose participants told theirs, weighted by examples.",
    ),
    Declared(name="fedloom_buffer_size", kind="gauge", help="Updates to a version, in asynchronous rounds."),
    Declared(name="fedloom_buffer_updates", kind="gauge", help="Updates in the open buffer."),
    Declared(
        name="fedloom_update_staleness_versions",
        kind="histogram",
        help="Updates of this run that are in a version: versions that were made since the base of each.",
    ),
    Declared(name="fedloom_model_version", kind="gauge", help="The last committed version of the model."),
    Declared(name="fedloom_model_size_bytes", kind="gauge", help="Size of its checkpoint."),
    Declared(
        name="fedloom_participants",
        kind="gauge",
        labels=("state",),
        help="Participants of the roster in each state: " + ", ".join(PARTICIPANT_STATES) + ".",
    ),
    Declared(
        name="fedloom_participant_silence_seconds",
        kind="gauge",
        labels=_OF,
        help="Since the coordinator last heard of a participant that has been connected.",
    ),
    Declared(
        name="fedloom_participant_certificate_expiry_timestamp_seconds",
        kind="gauge",
        labels=_OF,
        help="When its certificate ends, in seconds since the epoch.",
    ),
    Declared(
        name="fedloom_refusals",
        kind="counter",
        labels=("code",),
        help="Refusals since the coordinator's state was made, by the code of the error.",
    ),
    Declared(name="fedloom_merge_round", kind="gauge", help="The round of the last merge by a rule, which follows."),
    Declared(
        name="fedloom_merge",
        kind="info",
        labels=("rule",),
        help="The rule of the last merge, in its canonical name; 1.",
    ),
    Declared(
        name="fedloom_merge_updates",
        kind="gauge",
        labels=("verdict",),
        help="Updates of the last merge by verdict: " + ", ".join(Verdict) + ".",
    ),
    Declared(
        name="fedloom_merge_tolerated",
        kind="gauge",
        help="Hostile updates that were declared for the last merge, of all that were handed in.",
    ),
    Declared(
        name="fedloom_merge_remaining", kind="gauge", help="How many of these were left after the gate's rejections."
    ),
    Declared(name="fedloom_merge_warnings", kind="gauge", help="Warnings of the last merge; status shows them."),
    Declared(
        name="fedloom_update_norm",
        kind="gauge",
        labels=_OF,
        help="L2 norm of each update of the last merge, as it was handed in. With sums of groups an update is a "
        "group's mean, and the label has its members' names, joined by +.",
    ),
    Declared(name="fedloom_update_weight", kind="gauge", labels=_OF, help="Its factor in the result."),
    Declared(
        name="fedloom_update_verdict",
        kind="gauge",
        labels=("participant", "verdict"),
        help="What became of it: 1, with the verdict as a label.",
    ),
    Declared(
        name="fedloom_privacy_epsilon_spent",
        kind="gauge",
        labels=("participant", "unit"),
        help="Epsilon that a site's data have spent over all runs, by its last signed receipt, and whose: "
        "a record's, a person's or a participant's.",
    ),
    Declared(
        name="fedloom_privacy_epsilon_left",
        kind="gauge",
        labels=("participant", "unit"),
        help="Epsilon that is left of what the site allows.",
    ),
    Declared(
        name="fedloom_privacy_delta",
        kind="gauge",
        labels=("participant", "unit"),
        help="The delta at which both epsilons hold.",
    ),
)
"""Every metric, in the order of the exposition. Their names and labels are what dashboards and alerts are built on."""


class StatusCollector(Collector):
    """Makes the metrics of one status at each scrape, so that all of a scrape is of one moment.

    Args:
        snapshot: Gives the present status; what it raises, :meth:`collect` raises. Called by the scraping thread.
    """

    def __init__(self, snapshot: Callable[[], pb.Status]) -> None:
        self._snapshot = snapshot

    def describe(self) -> Iterable[Metric]:
        """Names and types without samples: registering asks for no status."""
        return [_family(item) for item in METRICS]

    def collect(self) -> Iterable[Metric]:
        """The metrics of the present status."""
        return metrics_of(self._snapshot())


def metrics_of(status: pb.Status) -> list[Metric]:
    """The metrics of a status, in the order of :data:`METRICS`; those of which it has no sample are left out."""
    families = {item.name: _family(item) for item in METRICS}
    labels = {item.name: item.labels for item in METRICS}
    for sample in (*_of_run(status), *_of_buffer(status), *_of_participants(status), *_of_merge(status)):
        name = f"fedloom_{sample.of}"
        bucket = {"le": sample.bucket} if sample.bucket else {}
        families[name].add_sample(
            name + sample.suffix, dict(zip(labels[name], sample.labels, strict=True)) | bucket, sample.value
        )
    return [family for family in families.values() if family.samples]


def _family(item: Declared) -> Metric:
    return Metric(item.name, item.help, item.kind)


@dataclasses.dataclass(frozen=True)
class _Sample:
    """A value of the metric ``fedloom_<of>``, with the suffix of its type, the values of its labels, and its bucket."""

    of: str
    value: float
    labels: tuple[str, ...] = ()
    suffix: str = ""
    bucket: str = ""


def _of_run(status: pb.Status) -> Iterator[_Sample]:
    yield _Sample("run", 1.0, (status.federation, status.run_id), "_info")
    for state in RUN_STATES:
        yield _Sample("run_state", float(state == status.state), (state,))
    for code, count in sorted(status.refusals.items()):
        yield _Sample("refusals", count, (code,), "_total")
    if not status.run_id:  # no run is open yet: the rest would be zeros that say nothing
        return
    yield _Sample("round", status.round)
    yield _Sample("rounds_planned", status.rounds)
    yield _Sample("model_version", status.version)
    yield _Sample("model_size_bytes", status.model.size)
    yield _Sample("round_duration_seconds", status.closed_rounds, suffix="_count")
    yield _Sample("round_duration_seconds", status.closed_seconds, suffix="_sum")
    yield _Sample("round_open_seconds", sum(item.seconds for item in status.history if item.round == status.round))
    losses = [item.weighted_loss for item in status.history if not math.isnan(item.weighted_loss)]
    if losses:
        yield _Sample("training_loss", losses[-1])


def _of_buffer(status: pb.Status) -> Iterator[_Sample]:
    """Asynchronous rounds; synchronous ones have none of it."""
    if not status.buffer_size:
        return
    yield _Sample("buffer_size", status.buffer_size)
    yield _Sample("buffer_updates", status.buffered)
    ages = status.staleness
    for bound in _STALENESS:
        count = sum(count for age, count in ages.items() if age <= bound)
        yield _Sample("update_staleness_versions", count, suffix="_bucket", bucket=f"{bound:.1f}")
    everyone = sum(ages.values())
    yield _Sample("update_staleness_versions", everyone, suffix="_bucket", bucket="+Inf")
    yield _Sample("update_staleness_versions", everyone, suffix="_count")
    yield _Sample("update_staleness_versions", sum(age * count for age, count in ages.items()), suffix="_sum")


def _of_participants(status: pb.Status) -> Iterator[_Sample]:
    states = Counter(item.state for item in status.participants)
    for state in PARTICIPANT_STATES:
        yield _Sample("participants", states[state], (state,))
    for item in status.participants:
        # Whoever was never connected to this daemon has said nothing to it: no time since.
        if item.silent_s or item.state not in ("invited", "revoked", "away"):
            yield _Sample("participant_silence_seconds", item.silent_s, (item.name,))
        if item.certificate_expires:
            expires = datetime.datetime.fromisoformat(item.certificate_expires)
            yield _Sample("participant_certificate_expiry_timestamp_seconds", expires.timestamp(), (item.name,))
        if item.HasField("budget"):
            whose = (item.name, item.budget.unit)
            yield _Sample("privacy_epsilon_spent", item.budget.spent, whose)
            yield _Sample("privacy_epsilon_left", item.budget.left, whose)
            yield _Sample("privacy_delta", item.budget.delta, whose)


def _of_merge(status: pb.Status) -> Iterator[_Sample]:
    """The last merge by a rule. What has no norm (NaN, of an update without a shape) has no series."""
    last = next((item for item in reversed(status.history) if item.HasField("merge")), None)
    if last is None:
        return
    merge = last.merge
    yield _Sample("merge_round", last.round)
    yield _Sample("merge", 1.0, (merge.rule,), "_info")
    verdicts = Counter(update.verdict for update in merge.updates)
    for verdict in Verdict:
        yield _Sample("merge_updates", verdicts[verdict], (verdict,))
    yield _Sample("merge_tolerated", merge.tolerated)
    yield _Sample("merge_remaining", merge.remaining)
    yield _Sample("merge_warnings", len(merge.warnings))
    for update in merge.updates:
        if not math.isnan(update.norm):
            yield _Sample("update_norm", update.norm, (update.participant,))
        yield _Sample("update_weight", update.weight, (update.participant,))
        yield _Sample("update_verdict", 1.0, (update.participant, update.verdict))
