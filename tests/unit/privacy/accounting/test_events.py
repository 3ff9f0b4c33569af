"""Events are facts: they survive being written down, and nothing else can be read as one."""

from __future__ import annotations

import math
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from privacy.accounting import GaussianEvent, merged, parse_event
from privacy.mechanisms.errors import PrivacyError

EVENTS = st.builds(
    GaussianEvent,
    noise_multiplier=st.floats(1e-6, 1e6),
    sampling_rate=st.floats(1e-9, 1.0),
    count=st.integers(1, 1 << 40),
)


@given(event=EVENTS)
def test_what_is_written_is_read(event: GaussianEvent) -> None:
    assert parse_event(event.plain()) == event


@given(events=st.lists(EVENTS, max_size=6), order=st.randoms())
def test_merging_keeps_every_release(events: list[GaussianEvent], order: Any) -> None:
    shuffled = list(events)
    order.shuffle(shuffled)
    assert merged(shuffled) == merged(events)
    assert sum(event.count for event in merged(events)) == sum(event.count for event in events)


@pytest.mark.parametrize(
    "fields",
    [
        {"noise_multiplier": 0.0},
        {"noise_multiplier": -1.0},
        {"noise_multiplier": math.inf},
        {"noise_multiplier": math.nan},
        {"noise_multiplier": 1},
        {"noise_multiplier": 1.0, "sampling_rate": 0.0},
        {"noise_multiplier": 1.0, "sampling_rate": 1.5},
        {"noise_multiplier": 1.0, "sampling_rate": math.nan},
        {"noise_multiplier": 1.0, "count": 0},
        {"noise_multiplier": 1.0, "count": True},
    ],
)
def test_what_means_nothing_is_no_event(fields: dict[str, Any]) -> None:
    with pytest.raises(PrivacyError) as caught:
        GaussianEvent(**fields)
    assert caught.value.code == "event-invalid"


GOOD = GaussianEvent(noise_multiplier=1.5, sampling_rate=0.25, count=3).plain()


@pytest.mark.parametrize(
    "changes",
    [
        {"kind": "gaussian/2"},
        {"kind": None},
        {"more": 1},
        {"noise_multiplier": "1.5"},
        {"noise_multiplier": 1.5},
        {"noise_multiplier": "0x1.8p0 "},
        {"noise_multiplier": "nonsense"},
        {"sampling_rate": "0x0.4p+0"},
        {"sampling_rate": "0x1p9999"},
        {"count": 3.0},
        {"count": "3"},
    ],
)
def test_anything_else_is_refused(changes: dict[str, object]) -> None:
    with pytest.raises(PrivacyError):
        parse_event({**GOOD, **changes})


def test_a_missing_field_is_refused() -> None:
    for name in GOOD:
        with pytest.raises(PrivacyError):
            parse_event({key: value for key, value in GOOD.items() if key != name})
