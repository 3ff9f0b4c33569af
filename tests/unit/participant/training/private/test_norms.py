"""Norms and weighted sums against gradients that are written down, for any numbers of records, tokens and uses."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from participant.training.private import norms
from participant.training.private.norms import Lookup, Part, Product, Units, gram_norms, lookup_norms
from privacy.mechanisms.errors import PrivacyError

ROWS, COLUMNS = 11, 9


def floats(seed: int, *shape: int) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def products(records: int, tokens: list[int], seed: int = 0) -> list[Product]:
    return [
        Product(floats(seed + 2 * use, records, count, ROWS), floats(seed + 2 * use + 1, records, count, COLUMNS))
        for use, count in enumerate(tokens)
    ]


def lookups(records: int, reads: list[int], seed: int = 0) -> list[Lookup]:
    """Tables of which each record reads some rows, with rows twice, and padding."""
    generator = torch.Generator().manual_seed(seed)
    found = []
    for use, count in enumerate(reads):
        keys = torch.randint(-1, ROWS, (records * count,), generator=generator)
        found.append(Lookup(keys, torch.arange(records * count), floats(seed + use, records * count, COLUMNS)))
    return found


def dense(part: Part, records: int) -> torch.Tensor:
    """The per-record gradients [B, p, d] in float64, by the definitions."""
    total = torch.zeros(records, ROWS, COLUMNS, dtype=torch.float64)
    for product in part.products:
        total += torch.einsum("btp,btd->bpd", product.left.double(), product.right.double())
    if part.factor is not None:
        total *= part.factor.double()
    for lookup in part.lookups:
        for position, key in enumerate(lookup.keys.tolist()):
            if key >= 0:
                share = 1.0 if lookup.shares is None else float(lookup.shares[position])
                bag = int(lookup.bags[position])
                record = bag // (len(lookup.gradients) // records)
                total[record, key] += share * lookup.gradients[bag].double()
    return total


def folded(gradients: torch.Tensor, owners: torch.Tensor | None) -> torch.Tensor:
    if owners is None:
        return gradients
    return torch.stack([gradients[owners == owner].sum(0) for owner in owners.unique()])


def part_of(uses: list[Product], tables: list[Lookup], factor: torch.Tensor | None = None) -> Part:
    part = Part((ROWS, COLUMNS))
    for use in uses:
        part.add_product(use, factor)
    part.lookups += tables
    return part


# --- who is clipped as one --------------------------------------------------------------------------------------------


def test_records_by_themselves() -> None:
    units = Units(3)
    values = torch.arange(6.0).view(3, 2)
    assert units.count == 3
    assert units.fold(values) is values
    assert units.spread(values[:, 0]).tolist() == [0, 2, 4]
    assert units.members(2).tolist() == [2]


def test_records_of_owners() -> None:
    units = Units(5, torch.tensor([7, -3, 7, 2, -3]))
    assert units.count == 3
    assert units.fold(torch.arange(5.0)).tolist() == [1 + 4, 3, 0 + 2]
    assert units.spread(torch.tensor([10.0, 20.0, 30.0])).tolist() == [30, 10, 30, 20, 10]
    assert [units.members(unit).tolist() for unit in range(3)] == [[1, 4], [3], [0, 2]]


@given(
    owners=st.none() | st.lists(st.integers(-3, 3), min_size=1, max_size=12),
    records=st.integers(1, 12),
    elements=st.integers(1, 1 << 20),
)
def test_chunks_have_every_record_once(owners: list[int] | None, records: int, elements: int) -> None:
    units = Units(records) if owners is None else Units(len(owners), torch.tensor(owners))
    seen: list[int] = []
    for chunk, members in units.chunks(elements):
        rows, of = torch.arange(units.records)[members], torch.arange(units.count)[chunk]
        for unit, found in zip(of.tolist(), rows.view(len(of), -1).tolist(), strict=True):
            assert sorted(found) == units.members(unit).tolist()
            seen += found
    assert sorted(seen) == list(range(units.records))


# --- norms and sums ---------------------------------------------------------------------------------------------------

MANY = st.lists(st.integers(1, 7), max_size=3)
OWNERS = st.none() | st.lists(st.integers(0, 3), min_size=5, max_size=5)


@settings(max_examples=80, deadline=None)
@given(tokens=MANY, reads=MANY, factor=st.booleans(), owners=OWNERS, chunk=st.sampled_from([1, 200, 1 << 19]))
def test_any_mixture_of_uses(
    tokens: list[int], reads: list[int], factor: bool, owners: list[int] | None, chunk: int
) -> None:
    """Weights as matrices and as tables, quantized or not, whole records or owners, in chunks of any size."""
    if not tokens and not reads:
        return
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(norms, "_CHUNK_ELEMENTS", chunk)
        slope = floats(99, ROWS, COLUMNS) if factor and tokens else None
        part = part_of(products(5, tokens), lookups(5, reads), slope)
        who = None if owners is None else torch.tensor(owners)
        units = Units(5, who)
        exact = folded(dense(part, 5), who)
        found = part.squared_norms(units)
        size = exact.flatten(1).square().sum(1)
        assert torch.allclose(found.double(), size, rtol=1e-5, atol=1e-7)
        factors = floats(5, units.count).abs()
        total = part.weighted_sum(units.spread(factors))
        wanted = torch.einsum("u,upd->pd", factors.double(), exact)
        assert (total - wanted).norm() <= 1e-5 * wanted.norm() + 1e-7
        assert not part.used


def test_gram_and_its_diagonal() -> None:
    uses = products(4, [3, 5])
    squared, own = gram_norms(uses, Units(4))
    exact = dense(part_of(uses, []), 4).flatten(1).square().sum(1)
    assert torch.allclose(squared.double(), exact, rtol=1e-5)
    tokens = sum((use.left.square().sum(2) * use.right.square().sum(2)).sum(1) for use in uses)
    assert torch.allclose(own, tokens, rtol=1e-5)


def test_rows_that_are_read_often_are_added_first() -> None:
    keys = torch.tensor([2, 2, 5, -1, 2, 5])
    table = Lookup(keys, torch.arange(6), torch.ones(6, COLUMNS))
    assert lookup_norms([table], Units(2)).tolist() == [COLUMNS * (4 + 1), COLUMNS * (1 + 1)]
    assert lookup_norms([table, table], Units(2)).tolist() == [COLUMNS * (16 + 4), COLUMNS * (4 + 4)]
    assert lookup_norms([table], Units(2, torch.tensor([4, 4]))).tolist() == [COLUMNS * (9 + 4)]


def test_a_table_of_which_only_padding_was_read() -> None:
    part = part_of([], [Lookup(torch.full((4,), -1), torch.arange(4), torch.ones(4, COLUMNS))])
    assert part.squared_norms(Units(2)).tolist() == [0, 0]
    assert not part.weighted_sum(torch.ones(2)).any()


def test_bags_share_their_gradient() -> None:
    table = Lookup(
        torch.tensor([1, 2, 2, 3]), torch.tensor([0, 0, 1, 1]), torch.ones(2, COLUMNS), torch.full((4,), 0.5)
    )
    part = part_of([], [table])
    exact = dense(part, 2)
    assert torch.allclose(part.squared_norms(Units(2)).double(), exact.flatten(1).square().sum(1))
    assert torch.allclose(part.weighted_sum(torch.tensor([2.0, 4.0])).double(), 2 * exact[0] + 4 * exact[1])


@pytest.mark.parametrize(("tokens", "written"), [(1, False), (4, False), (5, True), (50, True)])
def test_gradients_smaller_than_what_they_are_made_of_are_written_down(tokens: int, written: bool) -> None:
    """11 x 9 numbers a record against tokens x (11 + 9)."""
    part = part_of(products(2, [tokens]), [])
    part.squared_norms(Units(2))
    assert (part.direct is not None) is written
    assert bool(part.products) is not written


def test_tied_uses_that_cancel_are_computed_again() -> None:
    """Table and head of the same rows with opposite gradients: the formula's three terms are equal and large."""
    records, tokens = 3, 2
    left = torch.zeros(records, tokens, ROWS)
    keys = torch.tensor([[1, 4], [4, 4], [0, 7]])
    left.scatter_(2, keys.unsqueeze(2), 1.0)
    right = floats(0, records, tokens, COLUMNS)
    part = part_of([Product(left, right)], [Lookup(keys.flatten(), torch.arange(6), -(1 - 1e-4) * right.flatten(0, 1))])
    exact = dense(part, records).flatten(1).square().sum(1)
    found = part.squared_norms(Units(records))
    assert torch.allclose(found.double(), exact, rtol=1e-2)  # of float32 inputs that cancel to 1e-4
    assert (exact < 1e-6 * (left.square().sum() * right.square().sum())).all()


@pytest.mark.parametrize("owners", [None, torch.tensor([1, 0, 1])])
def test_cancelling_records_are_found_one_by_one(owners: torch.Tensor | None) -> None:
    left, right = floats(0, 3, 4, ROWS), floats(1, 3, 4, COLUMNS)
    left[1, 2:], right[1, 2:] = -left[1, :2] * (1 + 1e-4), right[1, :2]
    part = part_of([Product(left, right)], [])
    exact = folded(dense(part, 3), owners).flatten(1).square().sum(1)
    assert torch.allclose(part.squared_norms(Units(3, owners)).double(), exact, rtol=5e-3)


def test_half_precision_is_multiplied_in_full() -> None:
    left, right = floats(0, 2, 3, ROWS).bfloat16(), floats(1, 2, 3, COLUMNS).bfloat16()
    part = part_of([Product(left, right)], [Lookup(torch.tensor([1, 2]), torch.arange(2), floats(2, 2, 9).half())])
    exact = dense(part, 2)
    assert torch.allclose(part.squared_norms(Units(2)).double(), exact.flatten(1).square().sum(1), rtol=1e-6)
    total = part.weighted_sum(torch.tensor([0.5, 2.0]))
    assert total.dtype == torch.float32
    assert torch.allclose(total.double(), 0.5 * exact[0] + 2 * exact[1], rtol=1e-5, atol=1e-6)


def test_norms_are_never_negative() -> None:
    left = floats(0, 40, 4, ROWS)
    left[:, 2:] = -left[:, :2]
    right = floats(1, 40, 2, COLUMNS).repeat(1, 2, 1)
    assert (part_of([Product(left, right)], []).squared_norms(Units(40)) >= 0).all()


@pytest.mark.parametrize("tokens", [2, 20])
def test_what_is_dropped_does_not_count(tokens: int) -> None:
    part = part_of(products(3, [tokens]), lookups(3, [2]))
    part.products[0].left[1, 0, 0] = torch.inf
    part.lookups[0].gradients[2:4] = torch.nan
    kept = part_of(products(3, [tokens]), lookups(3, [2]))
    before = [use.left.clone() for use in part.products]
    weights = torch.tensor([1.0, 0.0, 2.0])
    part.squared_norms(Units(3))
    kept.squared_norms(Units(3))
    part.drop(weights == 0)
    assert torch.allclose(part.weighted_sum(weights), kept.weighted_sum(weights), atol=1e-6)
    assert all(use.isinf().any() for use in before)  # what belongs to the model isn't written to


# --- uses that don't go together --------------------------------------------------------------------------------------


def test_products_with_different_factors_are_refused() -> None:
    use = products(2, [1])[0]
    part = Part((ROWS, COLUMNS))
    part.add_product(use, torch.ones(ROWS, COLUMNS))
    part.add_product(use, torch.ones(ROWS, COLUMNS))  # the same layer again
    for other in (None, torch.zeros(ROWS, COLUMNS)):
        with pytest.raises(PrivacyError) as error:
            part.add_product(use, other)
        assert error.value.code == "layer-shared"
    assert len(part.products) == 2
    plain = Part((ROWS, COLUMNS))
    plain.add_product(use)
    with pytest.raises(PrivacyError, match="quantize"):
        plain.add_product(use, torch.ones(ROWS, COLUMNS))


def test_vectors_are_collected_in_one_place() -> None:
    part = Part((3,))
    part.room = torch.full((2, 3), 9.0)
    part.add_direct(torch.ones(2, 3))
    part.add_direct(torch.ones(2, 3).bfloat16())
    assert part.direct is not None and part.direct.data_ptr() == part.room.data_ptr()
    assert part.squared_norms(Units(2)).tolist() == [12, 12]
    assert part.weighted_sum(torch.tensor([1.0, 0.5])).tolist() == [3, 3, 3]
    assert part.room is None
