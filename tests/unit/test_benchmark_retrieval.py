"""The retrieval benchmark: what it averages, what it compares, what it writes."""

import concurrent.futures

import numpy as np
import pytest

from benchmarks import retrieval
from benchmarks.report import Report
from core_model import LearningConfig

EXAMPLES = {"twemoji": 100, "openmoji": 300, "openmoji-line": 100, "noto": 500}


@pytest.fixture
def pool(monkeypatch):
    """Workers in this process, and training whose result is known: each institution pulls towards its own number."""

    def train(config, name, version, number, rounds):
        aim = np.float32(EXAMPLES.get(name, 1000))
        return (aim - version) * np.float32(0.5), EXAMPLES.get(name, 1000)

    def score(config, name, version):
        return {metric: float(version[0]) / 1000 for metric in retrieval.METRICS}

    monkeypatch.setattr(retrieval, "_train", train)
    monkeypatch.setattr(retrieval, "_score", score)
    monkeypatch.setattr(retrieval, "_initial", lambda config: np.zeros(3, np.float32))
    with concurrent.futures.ThreadPoolExecutor(2) as workers:
        yield workers


def test_updates_are_weighted_by_examples(pool):
    version = retrieval.federate(pool, LearningConfig(), np.zeros(3, np.float32), 1)
    expected = sum(count * count / 2 for count in EXAMPLES.values()) / sum(EXAMPLES.values())
    np.testing.assert_allclose(version, expected, rtol=1e-6)
    assert version.dtype == np.float32


def test_three_ways_are_compared(pool):
    report = Report("retrieval")
    retrieval.measure(pool, LearningConfig(), 20, report, pooled=True)
    values = {(row.case, row.metric): row for row in report.rows}
    alone = np.mean(list(EXAMPLES.values())) / 10
    federated = sum(count**2 for count in EXAMPLES.values()) / 1000 / 10
    assert values["alone", "missing_r_at_1"].value == pytest.approx(alone, rel=1e-3)
    assert values["federated", "missing_r_at_1"].value == pytest.approx(federated, rel=1e-3)
    assert values["pooled", "unseen_r_at_10"].value == pytest.approx(100, rel=1e-3)
    assert values["alone, noto", "missing_r_at_1"].value == pytest.approx(50, rel=1e-3)
    ratio = values["federated / alone", "missing_r_at_1"]
    assert ratio.value == pytest.approx(federated / alone, rel=1e-3)
    assert ratio.target == retrieval.TARGET_RATIO and ratio.met is False


def test_a_quick_run_has_no_target_and_no_pooled_model(pool):
    report = Report("retrieval")
    retrieval.measure(pool, LearningConfig(), 2, report, pooled=False)
    assert not [row for row in report.rows if row.case.startswith("pooled")]
    assert report.rows[-1].target is None
