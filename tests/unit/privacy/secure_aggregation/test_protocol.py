"""Whole attempts in memory: every sum exact, whoever drops whenever."""

from __future__ import annotations

import itertools

import pytest

from secure_world import World


@pytest.mark.parametrize("count", [3, 4, 5, 6])
def test_the_sum_is_exact(count: int) -> None:
    world = World(count)
    world.run()
    world.assert_exact(world.names)
    assert world.refused == []
