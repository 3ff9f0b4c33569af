"""Norms and weighted sums of per-record gradients that are never written down.

Record i's gradient of a weight [p, d] that is used as a matrix is ``sum over its tokens t of g[i, t] a[i, t]^T``, with
the activation a and the output's gradient g. Its squared norm is the inner product of two Gram matrices,
``<A A^T, G G^T>`` (Goodfellow 2015; Li et al. 2021, arXiv 2110.05679), and a sum over records that is weighted by
clipping factors is one matrix product (Bu et al. 2022, "book-keeping", arXiv 2210.00038). Where a weight is used
several times in one forward pass, the sum runs over the tokens of all uses: the Gram matrices then have a block for
each pair of uses, and nothing is approximated.

Where a record's gradient is smaller than the activations and output gradients behind it (convolutions over many
positions), it is cheaper in time and in memory to have the gradient itself: the mixed rule of Bu et al. 2022 (arXiv
2205.10683).

Gram products lose accuracy where a record's tokens cancel each other. How much shows in the Gram matrices' diagonals;
records with which it could exceed :data:`CANCELLATION` roundings are computed again from their gradient.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence
from typing import Final

import torch
import torch.nn.functional as F

from privacy.mechanisms.errors import PrivacyError

Shape = tuple[int, ...]

CANCELLATION: Final = 32.0
"""Largest ratio of the tokens' own squared norms to that of their sum at which a Gram product is trusted."""

_CHUNK_ELEMENTS: Final = 1 << 19
"""Elements of the temporaries of one chunk of records: what stays in a processor's cache."""


def wide(tensor: torch.Tensor) -> torch.Tensor:
    """The tensor in float32 at least, so that products of half-precision numbers are exact."""
    return tensor if tensor.dtype in (torch.float32, torch.float64) else tensor.float()


class Units:
    """Who is clipped as one: each record by itself, or the records of one owner together.

    Args:
        records: Records B of the chunk.
        owners: For each record any integer that tells owners apart, [B]; None for records.
    """

    def __init__(self, records: int, owners: torch.Tensor | None = None) -> None:
        self.records = records
        self.of_record: torch.Tensor | None = None
        self.count = records
        self._groups: list[tuple[torch.Tensor, torch.Tensor]] = []
        if owners is None:
            return
        _, self.of_record, sizes = torch.unique(owners, return_inverse=True, return_counts=True)
        self.count = len(sizes)
        order, ends = torch.argsort(self.of_record, stable=True), sizes.cumsum(0)
        for size in torch.unique(sizes).tolist():
            units = (sizes == size).nonzero().squeeze(1)
            members = (ends[units] - size).unsqueeze(1) + torch.arange(size, device=units.device)
            self._groups.append((units, order[members]))

    def fold(self, per_record: torch.Tensor) -> torch.Tensor:
        """Sum [B, ...] over each unit's records to [U, ...]."""
        if self.of_record is None:
            return per_record
        return per_record.new_zeros((self.count, *per_record.shape[1:])).index_add_(0, self.of_record, per_record)

    def spread(self, per_unit: torch.Tensor) -> torch.Tensor:
        """Each record's value of its unit: [U] to [B]."""
        return per_unit if self.of_record is None else per_unit[self.of_record]

    def members(self, unit: int) -> torch.Tensor:
        """The numbers of a unit's records, int64 [r]."""
        if self.of_record is None:
            return torch.tensor([unit])
        return (self.of_record == unit).nonzero().squeeze(1)

    def chunks(self, elements: int) -> Iterator[tuple[torch.Tensor | slice, torch.Tensor | slice]]:
        """Yield (units [n], their records [n, r]) with r equal within a chunk and about ``_CHUNK_ELEMENTS`` in it.

        Args:
            elements: Elements that the work on one unit of one record needs.
        """
        step = max(1, _CHUNK_ELEMENTS // max(1, elements))
        if self.of_record is None:
            for start in range(0, self.records, step):
                part = slice(start, min(start + step, self.records))
                yield part, part
            return
        for units, members in self._groups:
            step = max(1, _CHUNK_ELEMENTS // max(1, elements * members.shape[1]))
            for start in range(0, len(units), step):
                yield units[start : start + step], members[start : start + step]


def tokens_of(tensor: torch.Tensor, records: torch.Tensor | slice) -> torch.Tensor:
    """The rows of [B, T, w] that belong to a chunk of units, as float [n, r T, w]."""
    rows = tensor[records]
    return wide(rows if rows.dim() == 3 else rows.flatten(1, 2))


class Product:
    """One use of a weight [p, d] as a matrix: the record's gradient is ``left^T right`` over the tokens.

    Args:
        left: Gradient of the output, [B, T, p].
        right: Input, [B, T, d].
    """

    def __init__(self, left: torch.Tensor, right: torch.Tensor) -> None:
        self.left = left
        self.right = right

    @property
    def tokens(self) -> int:
        """Tokens of a record, T."""
        return self.left.shape[1]

    def lefts(self, records: torch.Tensor | slice) -> torch.Tensor:
        """The output's gradients of a chunk of units, [n, r T, p]."""
        return tokens_of(self.left, records)

    def rights(self, records: torch.Tensor | slice) -> torch.Tensor:
        """The inputs of a chunk of units, [n, r T, d]."""
        return tokens_of(self.right, records)

    def drop(self, lost: torch.Tensor) -> None:
        """Make the gradients of some records, bool [B], zero."""
        self.left, self.right = self.left.clone(), self.right.clone()
        self.left[lost], self.right[lost] = 0, 0

    def add_weighted(self, weights: torch.Tensor, out: torch.Tensor) -> None:
        """Add the records' gradients, weighted [B], to ``out`` [p, d]."""
        left, right = wide(self.left), wide(self.right)
        factors = weights.to(left.dtype).view(-1, 1, 1)
        if left.shape[2] <= right.shape[2]:  # The narrower of the two is scaled.
            left = left * factors
        else:
            right = right * factors
        out.addmm_(left.flatten(0, 1).T, right.flatten(0, 1))


@dataclasses.dataclass(frozen=True)
class Lookup:
    """One use of a weight [v, d] as a table.

    Attributes:
        keys: Rows that were read, int64 [n]; -1 for one that has no gradient.
        bags: For each of them the row of ``gradients`` that it has a part in, [n].
        gradients: Of the output, [m, d], records one after the other, as many for each.
        shares: Factor of each key, [n]; None for 1.
    """

    keys: torch.Tensor
    bags: torch.Tensor
    gradients: torch.Tensor
    shares: torch.Tensor | None = None

    def record_of(self, records: int) -> torch.Tensor:
        """The record to which each key belongs, [n]."""
        return self.bags // max(1, self.gradients.shape[0] // records)

    def of(self, records: torch.Tensor, count: int) -> tuple[torch.Tensor, torch.Tensor]:
        """What some of ``count`` records read: the table's rows [m] and their gradients [m, d], not yet added up."""
        mine = torch.isin(self.record_of(count), records) & (self.keys >= 0)
        rows = wide(self.gradients[self.bags[mine]])
        return self.keys[mine], rows if self.shares is None else rows * self.shares[mine].unsqueeze(1)

    def without(self, lost: torch.Tensor) -> Lookup:
        """The same without the gradients of some records, bool [B]."""
        gone = lost.repeat_interleave(self.gradients.shape[0] // len(lost)).unsqueeze(1)
        return dataclasses.replace(self, gradients=self.gradients.masked_fill(gone, 0))


class Part:
    """What one pass knows of the per-record gradients of a parameter, or of some of its rows.

    Args:
        shape: Of the parameter, or of these rows of it.
    """

    def __init__(self, shape: Shape) -> None:
        self.shape = shape
        self.direct: torch.Tensor | None = None
        self.products: list[Product] = []
        self.lookups: list[Lookup] = []
        self.factor: torch.Tensor | None = None
        self.room: torch.Tensor | None = None

    @property
    def used(self) -> bool:
        """Whether any gradient has arrived."""
        return self.direct is not None or bool(self.products) or bool(self.lookups)

    def add_product(self, product: Product, factor: torch.Tensor | None = None) -> None:
        """Add a use as a matrix.

        Args:
            product: The use.
            factor: What the product is multiplied by, element by element, like the parameter; None for 1.

        Raises:
            PrivacyError: "layer-shared".
        """
        same = factor is self.factor
        if not same and factor is not None and self.factor is not None:
            same = torch.equal(factor, self.factor)
        if self.products and not same:
            raise PrivacyError(
                "layer-shared",
                "a weight is used by two layers that quantize it differently, or by one that does and one that doesn't",
                "Share the quantized layer itself, or give each its own weight.",
            )
        self.factor = factor
        self.products.append(product)

    def add_direct(self, gradients: torch.Tensor) -> None:
        """Add gradients that are written down, [B, *shape]."""
        gradients = wide(gradients)
        if self.direct is not None:
            self.direct += gradients
        elif self.room is not None:
            self.direct = self.room.view(gradients.shape).copy_(gradients)
        else:
            self.direct = gradients

    def drop(self, lost: torch.Tensor) -> None:
        """Forget the gradients of some records, bool [B]: of those with which no sum would be finite."""
        if self.direct is not None:
            self.direct = self.direct.clone()
            self.direct[lost] = 0
        for product in self.products:
            product.drop(lost)
        self.lookups = [lookup.without(lost) for lookup in self.lookups]

    def squared_norms(self, units: Units) -> torch.Tensor:
        """Squared norms of the units' gradients, [U]; what :meth:`weighted_sum` needs is kept, the rest freed."""
        self._settle(units.records)
        if self.direct is not None:
            return units.fold(self.direct).unsqueeze(-1).flatten(1).square().sum(1)
        if self.factor is not None:
            return self._explicit_norms(units)
        if not self.products:
            return lookup_norms(self.lookups, units)
        return self._gram_norms(units).clamp_(min=0)

    def weighted_sum(self, weights: torch.Tensor) -> torch.Tensor:
        """The records' gradients added with weights [B]; the part is empty afterwards."""
        if self.direct is not None:
            total = (weights.to(self.direct.dtype) @ self.direct.unsqueeze(-1).flatten(1)).reshape(self.shape)
        else:
            total = self._sum_of_uses(weights)
        self.direct, self.room, self.products, self.lookups = None, None, [], []
        return total

    def _sum_of_uses(self, weights: torch.Tensor) -> torch.Tensor:
        first = self.products[0].left if self.products else self.lookups[0].gradients
        total = torch.zeros(self.shape, dtype=wide(first[:0]).dtype, device=first.device)
        matrix = total.flatten(1)
        while self.products:
            self.products.pop().add_weighted(weights, matrix)
        if self.factor is not None:
            total *= self.factor
        for lookup in self.lookups:
            factors = weights[lookup.record_of(len(weights))]
            keys, sums = _sums_by_key(lookup.keys, lookup, factors)
            total.index_add_(0, keys, sums)
        return total

    def _settle(self, records: int) -> None:
        """Write gradients down where that is cheaper, or where kinds of use are mixed that have no formula."""
        if not self.products and not self.lookups:
            return
        rows, columns = self.shape[0], _size(self.shape[1:])
        tokens = sum(product.tokens for product in self.products)
        small = not self.lookups and rows * columns <= tokens * (rows + columns)
        if not small and self.direct is None and (self.factor is None or not self.lookups):
            return
        total = self._explicit(slice(0, records)) if self.products else None
        if self.factor is not None and total is not None:
            total *= self.factor.flatten(1)
        for lookup in self.lookups:
            table = _explicit_lookup(lookup, records, rows)
            total = table if total is None else total.add_(table)
        assert total is not None
        self.products, self.lookups = [], []
        self.add_direct(total.reshape(records, *self.shape))

    def _explicit(self, records: torch.Tensor | slice) -> torch.Tensor:
        """The gradients [n, p, d] of a chunk of units by products, without the factor."""
        found: torch.Tensor | None = None
        for product in self.products:
            left, right = product.lefts(records), product.rights(records)
            part = left.transpose(1, 2) @ right
            found = part if found is None else found.add_(part)
        assert found is not None
        return found

    def _explicit_norms(self, units: Units) -> torch.Tensor:
        squared = torch.empty(units.count, dtype=wide(self.products[0].left[:0]).dtype)
        squared = squared.to(self.products[0].left.device)
        for chunk, records in units.chunks(_size(self.shape)):
            gradients = self._explicit(records)
            if self.factor is not None:
                gradients *= self.factor.flatten(1)
            squared[chunk] = gradients.flatten(1).square().sum(1)
        return squared

    def _gram_norms(self, units: Units) -> torch.Tensor:
        squared, own = gram_norms(self.products, units)
        if self.lookups:
            table = lookup_norms(self.lookups, units)
            squared += table + 2 * cross_terms(self.products, self.lookups, units)
            own += table
        # Written so that a norm which isn't finite is looked at again, too: what overflowed may be a part of it only.
        doubtful = (~(own <= CANCELLATION * squared)).nonzero().squeeze(1)
        for unit in doubtful.tolist():
            records = units.members(unit).to(squared.device)
            gradient = self._explicit(records.unsqueeze(0))[0]
            for lookup in self.lookups:
                gradient.index_add_(0, *lookup.of(records, units.records))
            squared[unit] = gradient.square().sum()
        return squared


def gram_norms(products: Sequence[Product], units: Units) -> tuple[torch.Tensor, torch.Tensor]:
    """Squared norms [U] of gradients ``sum of left^T right``, and the sum of their tokens' own squared norms [U]."""
    first = products[0].left
    squared = torch.empty(units.count, dtype=wide(first[:0]).dtype, device=first.device)
    own = torch.empty_like(squared)
    tokens = max(product.tokens for product in products)
    for chunk, records in units.chunks(tokens * (2 * tokens + first.shape[2])):
        lefts = [product.lefts(records) for product in products]
        rights = [product.rights(records) for product in products]
        norms, diagonal = lefts[0].new_zeros(len(lefts[0])), lefts[0].new_zeros(len(lefts[0]))
        for u, (left, right) in enumerate(zip(lefts, rights, strict=True)):
            _add_own(left, right, norms, diagonal)
            for v in range(u + 1, len(lefts)):
                gram = left @ lefts[v].transpose(1, 2)
                gram *= right @ rights[v].transpose(1, 2)
                norms += gram.flatten(1).sum(1).mul_(2)
        squared[chunk], own[chunk] = norms, diagonal
    return squared, own


def _add_own(left: torch.Tensor, right: torch.Tensor, norms: torch.Tensor, diagonal: torch.Tensor) -> None:
    """Add ``<L L^T, R R^T>`` of [n, T, p] and [n, T, d] to norms [n], and the terms on the diagonal to another [n].

    Both matrices are symmetric: the quarter below left is that above right.
    """
    half = left.shape[1] // 2
    upper = left[:, :half] @ left.transpose(1, 2)
    upper *= right[:, :half] @ right.transpose(1, 2)
    lower = left[:, half:] @ left[:, half:].transpose(1, 2)
    lower *= right[:, half:] @ right[:, half:].transpose(1, 2)
    norms += upper[:, :, :half].sum((1, 2)) + upper[:, :, half:].sum((1, 2)).mul_(2) + lower.sum((1, 2))
    diagonal += upper.diagonal(dim1=1, dim2=2).sum(1) + lower.diagonal(dim1=1, dim2=2).sum(1)


def lookup_norms(lookups: Sequence[Lookup], units: Units) -> torch.Tensor:
    """Squared norms [U] of gradients of a table: the rows that a unit read several times are added first."""
    span = 1 + max(int(lookup.keys.max()) if len(lookup.keys) else 0 for lookup in lookups)
    sums, keys = [], []
    for lookup in lookups:
        unit = lookup.record_of(units.records)
        if units.of_record is not None:
            unit = units.of_record[unit]
        found, rows = _sums_by_key(torch.where(lookup.keys < 0, -1, unit * span + lookup.keys), lookup, None)
        keys.append(found)
        sums.append(rows)
    if len(lookups) > 1:
        unique, inverse = torch.unique(torch.cat(keys), return_inverse=True)
        table = sums[0].new_zeros((len(unique), sums[0].shape[1])).index_add_(0, inverse, torch.cat(sums))
    else:
        unique, table = keys[0], sums[0]
    return table.new_zeros(units.count).index_add_(0, unique // span, table.square().sum(1))


def cross_terms(products: Sequence[Product], lookups: Sequence[Lookup], units: Units) -> torch.Tensor:
    """Inner products [U] of a weight's gradient as a matrix with its gradient as a table (tied embedding and head)."""
    first = lookups[0].gradients
    found = torch.zeros(units.count, dtype=wide(first[:0]).dtype, device=first.device)
    for unit in range(units.count):
        records = units.members(unit).to(first.device)
        for lookup in lookups:
            keys, rows = lookup.of(records, units.records)
            for product in products:
                left, right = product.lefts(records).flatten(0, 1), product.rights(records).flatten(0, 1)
                found[unit] += (left[:, keys] * (right @ rows.T)).sum()
    return found


def _sums_by_key(keys: torch.Tensor, lookup: Lookup, factors: torch.Tensor | None) -> tuple[torch.Tensor, torch.Tensor]:
    """Distinct keys that aren't negative, and for each the sum [n, d] of the gradients with it."""
    order = torch.argsort(keys)
    order = order[int((keys < 0).sum()) :]
    unique, counts = torch.unique_consecutive(keys[order], return_counts=True)
    shares = lookup.shares
    if factors is not None:
        shares = factors if shares is None else shares * factors
    gradients = wide(lookup.gradients)
    if len(unique) == 0:
        return unique, gradients[:0]
    sums = F.embedding_bag(
        lookup.bags[order],
        gradients,
        counts.cumsum(0) - counts,
        mode="sum",
        per_sample_weights=None if shares is None else shares[order].to(gradients.dtype),
    )
    return unique, sums


def _explicit_lookup(lookup: Lookup, records: int, rows: int) -> torch.Tensor:
    """The gradients [B, v, d] of a table, written down."""
    keys = torch.where(lookup.keys < 0, -1, lookup.record_of(records) * rows + lookup.keys)
    unique, sums = _sums_by_key(keys, lookup, None)
    return sums.new_zeros((records * rows, sums.shape[1])).index_copy_(0, unique, sums).view(records, rows, -1)


def _size(shape: Sequence[int]) -> int:
    size = 1
    for length in shape:
        size *= length
    return size
