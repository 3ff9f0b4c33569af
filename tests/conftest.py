"""What every test shares: where the repository is, repeatable arithmetic, and when a GPU test may run."""

from __future__ import annotations

import importlib.util
import os
from pathlib import Path

import hypothesis
import pytest

# Before numpy or torch is imported: the number of threads changes the order of sums, and two cores are often shared.
os.environ.setdefault("OMP_NUM_THREADS", "1")
# gRPC honours a proxy even for this machine's own addresses.
os.environ.setdefault("NO_PROXY", "localhost,127.0.0.1,::1")

# No deadline: a busy machine is no failure. Under CI the examples are the same each time, so that a red build repeats.
hypothesis.settings.register_profile("local", deadline=None)
hypothesis.settings.register_profile("ci", deadline=None, derandomize=True, print_blob=True)
hypothesis.settings.load_profile("ci" if os.environ.get("CI") else "local")


@pytest.fixture(scope="session")
def repository() -> Path:
    """The root of the working copy."""
    return Path(__file__).resolve().parent.parent


def pytest_configure(config: pytest.Config) -> None:
    """Let Triton interpret its kernels, except in a run for a device; it asks once, when it is imported."""
    if "not gpu" in (config.option.markexpr or ""):
        os.environ.setdefault("TRITON_INTERPRET", "1")


def _why_no_gpu() -> str:
    if importlib.util.find_spec("torch") is None:
        return "torch isn't installed"
    import torch

    return "" if torch.cuda.is_available() else "no CUDA device"


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Skip GPU tests where there is no device. torch is imported only if such a test was asked for."""
    chosen = [item for item in items if item.get_closest_marker("gpu")]
    if not chosen or "not gpu" in (config.option.markexpr or ""):
        return
    if reason := _why_no_gpu():
        for item in chosen:
            item.add_marker(pytest.mark.skip(reason=reason))
