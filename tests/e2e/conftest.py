"""What tests of real processes share: processes that start quickly, and the runs theirs are compared with."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.e2e.killing import Nursery
from tests.e2e.stages import Stages


@pytest.fixture(scope="session")
def nursery() -> Iterator[Nursery]:
    made = Nursery()
    yield made
    made.close()


@pytest.fixture(scope="session")
def stages(nursery: Nursery, tmp_path_factory: pytest.TempPathFactory) -> Stages:
    return Stages(tmp_path_factory.mktemp("stages"), nursery)
