"""What a merge holds beside the updates and the result, measured in a process of its own."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from benchmarks.merging import EXTRA_BYTES, RULES, extra_bytes, label

pytestmark = [pytest.mark.slow, pytest.mark.timeout(300)]


@pytest.mark.parametrize("name", [label(rule) for rule in RULES])
def test_a_merge_holds_at_most_16_mib_beside_input_and_result(name: str, repository: Path) -> None:
    assert extra_bytes(name, 20, 1_000_000) <= EXTRA_BYTES


_MAPPED = """
import sys, psutil, threading, time
import numpy as np
from coordinator.merging import Merger, MultiKrum, NNM, TrimmedMean, merge
n, d = 1_000, 250_000
rows = np.memmap(sys.argv[1], np.float32, "r", shape=(n, d))
rule = {"trimmed-mean": TrimmedMean(), "multi-krum": MultiKrum()}[sys.argv[2]]
merge(rule, np.ones((9, 1000), np.float32), f=2)
me = psutil.Process()
peak, done = 0, False
def watch():
    global peak
    while not done:
        peak = max(peak, me.memory_info().rss)
        time.sleep(0.002)
thread = threading.Thread(target=watch); thread.start()
value = merge(rule, [rows[i] for i in range(n)], f=200).value
done = True; thread.join()
assert np.isfinite(value).all()
print(peak)
"""


@pytest.mark.parametrize("rule", ["trimmed-mean", "multi-krum"])
def test_a_thousand_mapped_rows_stay_on_disk(rule: str, tmp_path: Path, repository: Path) -> None:
    """1 GB of rows, of which a part is resident at a time; the same part of 4 GB."""
    generator = np.random.default_rng(1)
    with (tmp_path / "rows").open("wb") as file:
        for _ in range(1_000):
            generator.standard_normal(250_000, dtype=np.float32).tofile(file)
    done = subprocess.run(
        [sys.executable, "-c", _MAPPED, str(tmp_path / "rows"), rule],
        capture_output=True, text=True, cwd=repository, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    # The system maps up to half a megabyte of each row at a touch, whatever is asked for: that alone is 500 MB here.
    assert int(done.stdout) < 900e6
