"""Exact search for the largest inner products: bounds for all pairs, exact values of a few.

A search has three steps. A table gives, for each pair of a query and a vector, a number that its
product cannot exceed. The products of the pairs with the largest numbers are computed exactly; the
smallest of them is a lower bound of the k-th largest product. All other pairs whose number reaches
that bound are then computed too, and the largest products of all are the result.

Each product is computed by itself, as the sum over one pair, and not as part of a product of
matrices. The result therefore depends neither on the table, nor on blocks of queries or vectors.
"""

import warnings
from abc import ABC, abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Self

import torch
from torch import Tensor

from oodcli.compute.products import product
from oodcli.methods._percentiles import ascending

# Columns of a table that are reduced to their largest number first.
_GROUP = 8
# A coarse table is slower than float32 if it leaves more groups than this share of all pairs: 16 %
# of the groups.
_SHARE = 1 / 50
# Pairs that are looked at together, at most.
_PAIRS = 2**22
# Numbers in a float32 table (64 MB) and in a bfloat16 table (256 MB), and queries, at most.
_NUMBERS, _COARSE_NUMBERS, _QUERIES = 2**24, 2**27, 512
# Largest relative rounding error of float32; that of bfloat16 is 2^-9.
_UNIT = 2.0**-24
# More than a bound can lose when it is rounded to float32 and to bfloat16.
_UP = 1 + 2.0**-7
# Less than any product.
_NEVER = -(2.0**120)

# Vectors per centre, most centres, and steps and vectors of the search for them.
_PER_CENTRE, _CENTRES, _STEPS, _SAMPLE = 6000, 64, 8, 8192
# Vectors that the k-th largest product is estimated from.
_FEW = 4096
# Columns beside the residual: two for its rounding, three for each of two further terms.
_MORE = 8


class Table(ABC):
    """Bounds of the products of queries with vectors.

    Parameters
    ----------
    vectors
        float32, finite, ``(size, d)``.
    silent
        Rows that are not searched.
    rows
        The vector of each column; None if they are in order.
    columns
        Columns of the table, a multiple of 64; those beyond the vectors are never reached.
    dtype
        Type of the bounds.
    queries
        How many queries it takes at a time.
    share
        Groups of columns that it may leave, as a share of all pairs.
    """

    vectors: Tensor
    silent: Tensor
    columns: int
    dtype: torch.dtype
    queries: int
    rows: Tensor | None = None
    share = 1.0

    @abstractmethod
    def fill(self, bounds: Tensor, queries: Tensor, k: int) -> Tensor:
        """Write bounds of all products, and return the offset of each query, float32, ``(n,)``.

        Parameters
        ----------
        bounds
            Where they are written, ``(n, columns)``. A pair whose product, as computed by itself,
            is at least ``t`` gets at least ``t - offset``, rounded to ``dtype``.
        queries
            float32, finite, ``(n, d)``.
        k
            Number of products that are searched.
        """


class Products(Table):
    """The float32 products themselves, whose error is known.

    Parameters
    ----------
    vectors
        float32, finite, ``(size, d)``.
    lengths
        Their lengths, ``(size,)``.
    silent
        Rows that are not searched.
    """

    dtype = torch.float32

    def __init__(self, vectors: Tensor, lengths: Tensor, silent: Tensor) -> None:
        self.vectors = vectors
        self.columns = _whole_groups(len(vectors))
        self.queries = min(_QUERIES, max(1, _NUMBERS // self.columns))
        self.silent, self._longest = silent, float(lengths.amax())

    def fill(self, bounds: Tensor, queries: Tensor, k: int) -> Tensor:  # noqa: ARG002
        """Write the products, and return twice their error: of a product here, and by itself."""
        product(queries, self.vectors, out=bounds[:, : len(self.vectors)])
        bounds[:, len(self.vectors) :] = _NEVER
        bounds[:, self.silent] = _NEVER
        return 2 * _error(queries, self._longest)


class Coarse(Table):
    """Bounds by bfloat16 products, for CPUs with instructions for them.

    For a vector ``v``, a query ``q`` and a centre ``m``, with ``r = v - m`` and ``s = q - m``,
    ``q·v = q·m + m·r + s·r``. The first two terms are computed in float64. In place of the third
    there is ``ŝ·r̂``, with ``ŝ`` and ``r̂`` rounded to bfloat16, which is wrong by at most
    ``|ŝ| |r - r̂| + |s - ŝ| |r|`` (Cauchy-Schwarz). All of it is one product of matrices, in which
    these lengths and the first two terms are further columns. As ``m`` is the centre of the vectors
    around ``v``, ``r`` is short, and so is ``s`` for the queries that matter.

    Products of bfloat16 numbers are exact in float32. Their sum is rounded ``d + 8`` times, each
    time by at most two units in the last place, which the columns account for. The bounds are
    rounded to bfloat16, which keeps their order. An estimate of the k-th largest product is
    subtracted before, so that bounds near it are small and lose nothing.

    Parameters
    ----------
    vectors, lengths, silent
        As for :class:`Products`.
    """

    dtype = torch.bfloat16
    share = _SHARE

    def __init__(self, vectors: Tensor, lengths: Tensor, silent: Tensor) -> None:
        self.vectors, self.silent = vectors, silent
        size, width = vectors.shape
        self.columns = _whole_groups(size)
        self.queries = min(_QUERIES, max(1, _COARSE_NUMBERS // self.columns))
        self._longest, self._centres = float(lengths.amax()), _centres(vectors)
        nearest = torch.cat([_nearest(part, self._centres) for part in vectors.split(_SAMPLE)])
        nearest[silent] = len(self._centres)  # behind all others
        self._counts = torch.bincount(nearest, minlength=len(self._centres))[: len(self._centres)]
        self.rows = torch.zeros(self.columns, dtype=torch.int64)
        self.rows[:size] = nearest.argsort(stable=True)
        self._packed = torch.zeros(self.columns, width + _MORE, dtype=torch.bfloat16)
        self._packed[:, width + 5 :] = 1
        first = 0
        for centre, count in zip(self._centres, self._counts.tolist(), strict=True):
            for rows in self.rows[first : first + count].split(_SAMPLE):
                _pack(vectors[rows], centre, self._packed[first : first + len(rows)])
                first += len(rows)
        self._packed[first:, width + 2] = _NEVER
        self._counts[-1] += self.columns - first
        self._sample = vectors[:: max(1, size // _FEW)].bfloat16()

    def fill(self, bounds: Tensor, queries: Tensor, k: int) -> Tensor:
        """Write the bounds less an estimate of the k-th largest product, and return that."""
        width = queries.shape[1]
        # One in so many of the sample is expected to be among the k nearest.
        step = max(1, round(k * len(self._sample) / len(self.vectors)))
        guess = (queries.bfloat16() @ self._sample[::step].T).amax(dim=1).float()
        offsets = queries.double() @ self._centres.double().T - guess[:, None]  # (n, c)
        packed = torch.empty(len(queries), width + _MORE, dtype=torch.bfloat16)
        packed[:, width + 2 : width + 5] = 1
        first = 0
        for centre, offset, count in zip(
            self._centres, offsets.T, self._counts.tolist(), strict=True
        ):
            residual = queries - centre
            packed[:, :width] = residual
            rounded = packed[:, :width].float()
            packed[:, width] = rounded.norm(dim=1) * _UP
            packed[:, width + 1] = residual.sub_(rounded).norm(dim=1) * _UP
            packed[:, width + 5 :] = _in_three(offset, width)
            part = slice(first, first + count)
            torch.mm(packed, self._packed[part].T, out=bounds[:, part])
            first += count
        return guess + _error(queries, self._longest) + 4 * _UNIT * guess.abs()


def k_largest(
    queries: Tensor, table: Table, k: int, least: Tensor | None = None
) -> tuple[Tensor, Tensor, Tensor]:
    """Return the ``k`` largest products of each query, and where they are.

    Parameters
    ----------
    queries
        float32, finite, ``(n, d)``.
    table
        Bounds of the products.
    k
        Number of products, at most the number of vectors that are searched.
    least
        What products must reach, ``(n,)``, as others do; None if there are no others yet.

    Returns
    -------
    products
        ``(n, k)``, descending; minus infinity where there are fewer, or queries are left.
    rows
        Row of the vector of each product, int64 ``(n, k)``; among equal ones in ascending order.
    left
        Queries for which the table leaves too many pairs, int64.
    """
    products = queries.new_full((len(queries), k), -torch.inf)
    rows = torch.zeros(len(queries), k, dtype=torch.int64)
    if k == 0:
        return products, rows, rows.new_empty(0)
    buffer = torch.empty(min(len(queries), table.queries), table.columns, dtype=table.dtype)
    for first in range(0, len(queries), table.queries):
        few = queries[first : first + table.queries]
        bounds = buffer[: len(few)]
        offset = table.fill(bounds, few, k)
        groups = _Groups.of(bounds, k)
        if least is None:
            columns = groups.highest(k)
            reached = _products_of(few, table, columns).amin(dim=1)
            # A group of columns that are not searched is among the highest if there are few others.
            searched = bounds.gather(1, columns).amin(dim=1) > _NEVER / 2
            reached = torch.where(searched, reached, -torch.inf)
        else:
            reached = least[first : first + len(few)]
        # Nothing is known of products beyond the range of float32, so that all are computed.
        threshold = (reached - offset).nan_to_num(nan=-torch.inf).to(table.dtype)
        threshold = threshold.clamp(min=_NEVER / 2)[:, None]
        of, chosen = groups.reaching(threshold)
        if len(of) > table.share * bounds.numel():
            # The other queries are most likely as crowded.
            return products, rows, torch.arange(first, len(queries))
        for part, pairs in _parts(of, len(few), _PAIRS // len(groups.members)):
            at, columns = _reaching_members(
                bounds[part], of[pairs] - part.start, chosen[pairs], groups.members, threshold[part]
            )
            into = slice(first + part.start, first + part.stop)
            products[into], rows[into] = _largest(few[part], table, at, columns, k)
    return products, rows, rows.new_empty(0)


def has_fast_bfloat16() -> bool:
    """Return whether the CPU has instructions for bfloat16 products, and torch uses them."""
    find = getattr(torch.cpu, "get_capabilities", None)  # not in older releases
    if find is None or not torch.backends.mkldnn.is_available():
        return False
    found = find()
    return any(found.get(name, False) for name in ("avx512_bf16", "amx_bf16"))


@dataclass(frozen=True, slots=True)
class _Groups:
    """Columns of a table in groups, and groups of these, with the largest bound of each.

    Parameters
    ----------
    bounds
        The table, ``(n, m)``.
    peaks
        Largest bound of each group, ``(n, groups)``.
    members
        Columns of the first group, ``(members,)``; those of each further group are one more.
    tops
        Largest peak of each group of groups.
    top_members
        Groups of the first of these.
    """

    bounds: Tensor
    peaks: Tensor
    members: Tensor
    tops: Tensor
    top_members: Tensor

    @classmethod
    def of(cls, bounds: Tensor, k: int) -> Self:
        """Group the columns, each by itself where fewer than ``4 k`` groups would be left."""
        peaks, members = _grouped(bounds, k)
        return cls(bounds, peaks, members, *_grouped(peaks, k))

    def highest(self, k: int) -> Tensor:
        """Return ``k`` columns of large bounds, ``(n, k)``: the largest of groups of groups."""
        tops = self.tops.topk(k, dim=1).indices
        groups = _largest_member(self.peaks, tops, self.top_members)
        return _largest_member(self.bounds, groups, self.members)

    def reaching(self, threshold: Tensor) -> tuple[Tensor, Tensor]:
        """Return query and group of each group that reaches a threshold, ``(n, 1)``, by queries."""
        of, tops = (self.tops >= threshold).nonzero(as_tuple=True)
        return _reaching_members(self.peaks, of, tops, self.top_members, threshold)


def _grouped(bounds: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """Return the largest bound of each group of columns, and the columns of the first group."""
    groups = bounds.shape[1] // _GROUP
    if groups < 4 * k or bounds.shape[1] % _GROUP:
        return bounds, torch.zeros(1, dtype=torch.int64)
    return bounds.view(len(bounds), _GROUP, groups).amax(dim=1), torch.arange(_GROUP) * groups


def _largest_member(bounds: Tensor, groups: Tensor, members: Tensor) -> Tensor:
    """Return the column of the largest bound of each of some groups, ``(n, k)``."""
    if len(members) == 1:
        return groups
    columns = groups[:, :, None] + members  # (n, k, members)
    found = bounds.gather(1, columns.flatten(1)).view(columns.shape)
    return columns.gather(2, found.argmax(dim=2, keepdim=True))[:, :, 0]


def _reaching_members(
    bounds: Tensor, of: Tensor, groups: Tensor, members: Tensor, threshold: Tensor
) -> tuple[Tensor, Tensor]:
    """Return query and column of the members of groups that reach a threshold, ``(p,)``.

    Parameters
    ----------
    bounds
        ``(n, m)``.
    of, groups
        Query and group of each pair, by queries.
    members
        Columns of the first group.
    threshold
        ``(n, 1)``.
    """
    columns = groups[:, None] + members  # (pairs, members)
    found = bounds[of[:, None], columns] >= threshold[of]
    pair, member = found.nonzero(as_tuple=True)
    return of[pair], columns[pair, member]


def _products_of(queries: Tensor, table: Table, columns: Tensor) -> Tensor:
    """Return the products with ``k`` columns of each query, ``(n, k)``, in any order."""
    last = len(table.vectors) - 1  # columns beyond are of groups that are not searched
    rows = columns.clamp(max=last) if table.rows is None else table.rows[columns]
    of = torch.arange(len(queries)).repeat_interleave(columns.shape[1])
    return _products(queries, table.vectors, of, rows.flatten()).view(columns.shape)


def _parts(of: Tensor, queries: int, most: int) -> Iterator[tuple[slice, slice]]:
    """Cut queries into runs, and yield each with its slice of the pairs.

    Parameters
    ----------
    of
        The query of each pair, ascending.
    queries
        Number of queries.
    most
        Largest number of queries of a run times pairs of any of them, unless it is one query.
    """
    start = before = after = widest = 0
    for index, count in enumerate(torch.bincount(of, minlength=queries).tolist()):
        if index > start and max(widest, count) * (index + 1 - start) > most:
            yield slice(start, index), slice(before, after)
            start, before, widest = index, after, 0
        widest, after = max(widest, count), after + count
    yield slice(start, queries), slice(before, after)


def _largest(
    queries: Tensor, table: Table, of: Tensor, columns: Tensor, k: int
) -> tuple[Tensor, Tensor]:
    """Return the ``k`` largest products among pairs, and their rows, ``(n, k)``."""
    size = len(table.vectors)
    rows = columns if table.rows is None else table.rows[columns]
    pairs = ascending(of * size + rows)  # of equal products, the first row comes first
    of, rows = pairs // size, pairs % size
    counts = torch.bincount(of, minlength=len(queries))
    place = torch.arange(len(of)) - (counts.cumsum(0) - counts)[of]
    most = max(k, int(counts.max()))
    products = queries.new_full((len(queries), most), -torch.inf)
    products[of, place] = _products(queries, table.vectors, of, rows)
    every = torch.zeros(len(queries), most, dtype=torch.int64)
    every[of, place] = rows
    products, order = products.sort(dim=1, descending=True, stable=True)
    return products[:, :k], every.gather(1, order[:, :k])


def _products(queries: Tensor, vectors: Tensor, of: Tensor, rows: Tensor) -> Tensor:
    """Return the product of each pair, summed by itself, ``(p,)``; pairs are sorted by query."""
    ends = torch.bincount(of, minlength=len(queries)).cumsum(0)
    starts = torch.cat([ends.new_zeros(1), ends])
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Sparse CSR tensor support")
        wanted = torch.sparse_csr_tensor(
            starts,
            rows,
            queries.new_zeros(len(rows)),
            size=(len(queries), len(vectors)),
            check_invariants=False,
        )
        return torch.sparse.sampled_addmm(wanted, queries, vectors.T, beta=0.0).values()


def _error(queries: Tensor, longest: float) -> Tensor:
    """Return the largest error of a float32 product with a vector, in any order, ``(n,)``."""
    return _UP * (queries.shape[1] + 8) * _UNIT * longest * queries.norm(dim=1)


def _whole_groups(columns: int) -> int:
    return columns + -columns % _GROUP**2


def _centres(vectors: Tensor) -> Tensor:
    """Return centres of the vectors, ``(c, d)``, by some steps of Lloyd's algorithm on a sample."""
    count = min(_CENTRES, max(1, len(vectors) // _PER_CENTRE))
    sample = vectors[:: -(-len(vectors) // _SAMPLE)]
    centres = sample[:: len(sample) // count][:count].clone()
    for _ in range(_STEPS):
        nearest = _nearest(sample, centres)
        sums = torch.zeros_like(centres).index_add_(0, nearest, sample)
        counts = torch.bincount(nearest, minlength=count)[:, None]
        centres = torch.where(counts > 0, sums / counts.clamp(min=1), centres)
    return centres


def _nearest(vectors: Tensor, centres: Tensor) -> Tensor:
    """Return the nearest centre of each vector, ``(n,)``."""
    return (vectors @ centres.T - centres.square().sum(dim=1) / 2).argmax(dim=1)


def _pack(vectors: Tensor, centre: Tensor, into: Tensor) -> None:
    """Write the columns of vectors around a centre."""
    width = vectors.shape[1]
    residual = vectors - centre
    into[:, :width] = residual
    rounded = into[:, :width].float()
    length = residual.norm(dim=1) * _UP
    lost = (residual - rounded).norm(dim=1) * _UP
    # Each of the additions of a sum of this many terms may lose two units.
    into[:, width] = (lost + 2 * (width + _MORE) * _UNIT * length) * _UP
    into[:, width + 1] = length * _UP
    wide = centre.double()
    into[:, width + 2 : width + 5] = _in_three(vectors.double() @ wide - wide @ wide, width)


def _in_three(values: Tensor, width: int) -> Tensor:
    """Return float64 values as sums of three bfloat16 numbers, ``(n, 3)``, not smaller.

    They are larger by what a sum of ``width + 8`` terms may lose of them.
    """
    values = values + 2 * (width + _MORE) * _UNIT * values.abs()
    parts = []
    for _ in range(3):
        parts.append(values.bfloat16())
        values = values - parts[-1].double()
    return torch.stack(parts, dim=1)
