"""The package's public face, and that its examples hold."""

from __future__ import annotations

import doctest
from types import ModuleType

import pytest

import coordinator.merging
from coordinator.merging import gate, recipes, tolerance


@pytest.mark.parametrize("module", [gate, recipes, tolerance])
def test_examples_in_docstrings_hold(module: ModuleType) -> None:
    failed, tried = doctest.testmod(module)
    assert (failed, tried > 0) == (0, True)


def test_everything_listed_is_there_and_told() -> None:
    for name in coordinator.merging.__all__:
        assert getattr(coordinator.merging, name).__doc__ or name.isupper()
