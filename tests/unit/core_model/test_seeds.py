"""Derived seeds: fixed for ever, and one for each name."""

from hypothesis import given
from hypothesis import strategies as st

from core_model import derive


def test_known_values_do_not_change():
    assert derive(0) == 5388081969136077054
    assert derive(7, "round", 3, "participant", "a") == 2983727030705120555


@given(
    st.lists(st.one_of(st.integers(), st.text()), max_size=4), st.lists(st.one_of(st.integers(), st.text()), max_size=4)
)
def test_different_parts_give_different_seeds(first, second):
    assert 0 <= derive(*first) < 2**63
    assert (derive(*first) == derive(*second)) == ([(type(x), x) for x in first] == [(type(x), x) for x in second])
