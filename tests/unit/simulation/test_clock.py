"""Virtual time."""

from __future__ import annotations

from simulation.clock import EPOCH_S, VirtualClock


def test_things_happen_in_the_order_of_their_times_and_ties_in_the_order_of_asking() -> None:
    clock, seen = VirtualClock(), []
    clock.after(2.0, lambda: seen.append(("late", clock.now_s)))
    clock.after(1.0, lambda: seen.append(("first", clock.now_s)))
    clock.after(1.0, lambda: seen.append(("second", clock.now_s)))
    clock.run(lambda: False)
    assert seen == [("first", EPOCH_S + 1), ("second", EPOCH_S + 1), ("late", EPOCH_S + 2)]


def test_what_is_asked_for_the_past_happens_now_and_time_never_goes_back() -> None:
    clock, seen = VirtualClock(), []
    clock.after(5.0, lambda: clock.at(EPOCH_S, lambda: seen.append(clock.now_s)))
    clock.run(lambda: False)
    assert seen == [EPOCH_S + 5]


def test_it_stops_when_it_is_done() -> None:
    clock, seen = VirtualClock(), []
    for delay in range(5):
        clock.after(float(delay), lambda: seen.append(clock.now_s))
    clock.run(lambda: len(seen) == 2)
    assert len(seen) == 2
