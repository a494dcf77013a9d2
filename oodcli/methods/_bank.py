"""The bank of training vectors for exact neighbour search, in memory or streamed."""

from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import chain
from typing import Any, Self

import torch
from torch import Tensor

from oodcli.activations import CHUNK_ROWS, Activations, ActivationSet, Reference
from oodcli.compute.memory import free_memory
from oodcli.errors import UndefinedMethodError
from oodcli.methods._class_means import directions
from oodcli.methods._nearest import Coarse, Products, Table, has_fast_bfloat16, k_largest
from oodcli.methods._stored import Rows

# Numbers in one block of the bank, and in one block of products: 64 MB each, so that a search
# needs less than 512 MB in addition to the bank and the queries, and to a copy of the bank in
# bfloat16 where there are instructions for it.
_NUMBERS = 2**24
_ROWS = 2**16
# Maximum number of pairs of a query and a neighbour at a time.
_PAIRS = 2**23
# A copy of the bank in bfloat16 pays from so many queries and vectors on.
_MANY_QUERIES, _MANY_VECTORS = 512, 4096
# With fewer vectors for each neighbour, too many of the pairs are left.
_MANY_PER_NEIGHBOUR = 32
# Numbers of the differences that are made at a time: 2 MB, which stay in a cache.
_DIFFERENCES = 2**19
# Squared distances below this are computed from differences: 2 - 2c is wrong by up to 6e-7 where
# the cosine c comes from a float32 product, which is 4e-5 of this.
_NEAR = 2.0**-6


@dataclass(frozen=True, slots=True, eq=False)
class Bank:
    """Vectors of training images, for exact search of nearest neighbours.

    The bank is in memory if it fits into half of the free memory; otherwise it is read again for
    every search. In both cases it is processed in the same blocks, so that results are identical.

    Parameters
    ----------
    source
        The training images.
    read
        Function that returns the vectors of a chunk of images in row order, ``(m, d)``; an image
        may have several vectors, or none.
    size
        Total number of vectors.
    width
        Length ``d`` of a vector.
    held
        All vectors in memory, ``(size, d)``; None if they are streamed.
    """

    source: ActivationSet
    read: Callable[[Activations], Tensor]
    size: int
    width: int
    held: Tensor | None = None
    _made: dict[Hashable, Any] = field(default_factory=dict, init=False, repr=False)

    @classmethod
    def of(cls, source: ActivationSet, read: Callable[[Activations], Tensor], *, size: int) -> Self:
        """Build a bank, in memory if it fits.

        Raises
        ------
        UndefinedMethodError
            If it would be empty.
        """
        if size == 0:
            raise UndefinedMethodError("there are no training images to find neighbours among")
        pieces = _short_chunks(source)
        first = read(next(pieces))
        streamed = cls(source, read, size, first.shape[1])
        if not _fits(size, streamed.width, source.device):
            return streamed
        held = torch.empty(size, streamed.width, device=source.device)
        filled = 0
        for vectors in chain([first], map(read, pieces)):
            held[filled : filled + len(vectors)] = vectors
            filled += len(vectors)
        assert filled == size
        return replace(streamed, held=held)

    def to_stored(self) -> Mapping[str, object]:
        """Return the vectors, the only part of a fitted method's bank that is stored."""
        if self.held is not None:
            return {"vectors": self.held}
        return {"vectors": Rows((self.size, self.width), lambda: (b for _, b in self.blocks()))}

    @staticmethod
    def from_stored(fields: Mapping[str, object], device: torch.device) -> "Bank":
        """Return the bank of stored vectors; memory-mapped if they do not fit on ``device``."""
        vectors = fields["vectors"]
        if not isinstance(vectors, Tensor) or vectors.dim() != 2:
            raise TypeError("the vectors of a bank")
        size, width = vectors.shape
        if _fits(size, width, device):
            vectors = vectors.to(device)
        return Bank(ActivationSet([], device), _no_source, size, width, held=vectors)

    def blocks(self, rows: int | None = None) -> Iterator[tuple[int, Tensor]]:
        """Yield the index of the first vector of a block and its vectors, ``(m, d)``.

        A block may be overwritten when the next block is requested.

        Parameters
        ----------
        rows
            Number of vectors per block, except the last; None for blocks of 64 MB.
        """
        if rows is None:
            rows = min(_ROWS, max(1, _NUMBERS // self.width))
        if self.held is not None:
            for first in range(0, self.size, rows):
                # A stored bank that does not fit on the device is read from disk.
                yield first, self.held[first : first + rows].to(self.source.device)
            return
        block = torch.empty(min(rows, self.size), self.width, device=self.source.device)
        first = filled = 0
        for vectors in map(self.read, _short_chunks(self.source)):
            start = 0
            while start < len(vectors):
                taken = vectors[start : start + len(block) - filled]
                block[filled : filled + len(taken)] = taken
                filled += len(taken)
                start += len(taken)
                if filled == len(block):
                    yield first, block
                    first += filled
                    filled = 0
        if filled:
            yield first, block[:filled]

    def largest(self, queries: Tensor, k: int) -> Tensor:
        """Return the ``k`` largest inner products with the bank, ``(n, k)``, descending.

        Parameters
        ----------
        queries
            ``(n, d)``.
        k
            Number of products; all if the bank has fewer vectors.
        """
        return self._search(queries, k)[0]

    def nearest(self, units: Tensor, k: int) -> Tensor:
        """Return squared distances to the ``k`` nearest vectors, ``(n, k)``, ascending.

        Parameters
        ----------
        units, k
            As for :meth:`neighbours`.
        """
        return self.neighbours(units, k)[0]

    def neighbours(self, units: Tensor, k: int) -> tuple[Tensor, Tensor]:
        """Return squared distances to the ``k`` nearest vectors, ascending, and their rows.

        Parameters
        ----------
        units
            Queries, ``(n, d)``. Like the vectors of the bank they have length 1 or 0; a zero vector
            has distance 1 to every unit vector and distance 0 to a zero vector.
        k
            Number of neighbours; all if the bank has fewer vectors.

        Returns
        -------
        distances
            ``(n, k)``.
        rows
            Row of every neighbour in the bank, int64 ``(n, k)``.
        """
        # |u - v|² = |u|² + |v|² - 2uv. To rank as distances do, a zero v must count as uv = 1/2.
        products, rows = self._search(units, k, of_units=True)
        squares = (units.norm(dim=1, keepdim=True) > 0.5).float()  # (n, 1)
        distances = (squares + 1 - 2 * products).clamp_(min=0)
        near = distances < _NEAR
        if near.any():
            distances[near] = self.distances(units, near.nonzero()[:, 0], rows[near])
            distances, order = distances.sort(dim=1)
            rows = rows.gather(1, order)
        return distances, rows

    def distances(self, units: Tensor, queries: Tensor, rows: Tensor) -> Tensor:
        """Return squared distances between pairs of a query and a vector of the bank, ``(m,)``.

        Parameters
        ----------
        units
            Queries, ``(n, d)``.
        queries, rows
            Row of the query and of the vector of every pair, int64 ``(m,)``.
        """
        rows, order = rows.sort()
        queries = queries[order]
        found = torch.empty(len(rows), device=units.device)
        step = max(1, _DIFFERENCES // self.width)
        for first, vectors in self.blocks():
            ends = torch.tensor([first, first + len(vectors)], device=rows.device)
            start, stop = torch.searchsorted(rows, ends).tolist()
            for index in range(start, stop, step):
                part = slice(index, min(index + step, stop))
                difference = units[queries[part]].sub_(vectors[rows[part] - first])
                found[order[part]] = difference.square_().sum(dim=1)
        return found

    def _search(self, queries: Tensor, k: int, *, of_units: bool = False) -> tuple[Tensor, Tensor]:
        """Return the ``k`` largest products, descending, and their rows in the bank, ``(n, k)``.

        Parameters
        ----------
        queries
            ``(n, d)``.
        k
            Number of products.
        of_units
            Whether products with a vector of length zero count as 1/2.
        """
        k, queries = min(k, self.size), queries.detach()
        sound = queries.isfinite().all(dim=1)
        if not bool(sound.all()):
            products = queries.new_full((len(queries), k), torch.nan)
            rows = torch.zeros(products.shape, dtype=torch.int64, device=queries.device)
            if bool(sound.any()):
                products[sound], rows[sound] = self._search(queries[sound], k, of_units=of_units)
            return products, rows
        silent = (queries == 0).all(dim=1)
        if int(silent.sum()) > 1:
            # All vectors are as near to a silent query, which is searched once.
            kept = ~silent
            kept[silent.nonzero()[0]] = True
            place = kept.cumsum(0) - 1
            place[silent] = place[silent][0].clone()
            products, rows = self._search(queries[kept], k, of_units=of_units)
            return products[place], rows[place]
        few = max(1, _PAIRS // k)
        parts = [self._search_few(part, k, of_units=of_units) for part in queries.split(few)]
        return torch.cat([part[0] for part in parts]), torch.cat([part[1] for part in parts])

    def _search_few(self, queries: Tensor, k: int, *, of_units: bool) -> tuple[Tensor, Tensor]:
        coarse = self._coarse(len(queries), k, of_units=of_units)
        if coarse is None:
            return self._search_blocks(queries, k, of_units=of_units)
        products, rows, left = _among(queries, coarse, k)
        if len(left):
            products[left], rows[left] = self._search_blocks(queries[left], k, of_units=of_units)
        return products, rows

    def _search_blocks(self, queries: Tensor, k: int, *, of_units: bool) -> tuple[Tensor, Tensor]:
        best: tuple[Tensor, Tensor] | None = None
        # Where nothing has to be copied, larger blocks leave fewer results to merge.
        in_place = self.held is not None and self.held.device == self.source.device
        for first, vectors in self.blocks(_ROWS if in_place else None):
            lengths = self._lengths(first, vectors)
            full = best is not None and best[0].shape[1] == k
            least = best[0][:, -1] if best is not None and full else None
            products, at = _in_block(queries, vectors, lengths, k, least, of_units=of_units)
            found = products, at + first
            best = found if best is None else _merged(*best, *found, k)
        assert best is not None  # a bank is not empty
        return best

    def _lengths(self, first: int, vectors: Tensor) -> Tensor:
        """Return the lengths of a block of vectors, computed once if the bank is in memory."""
        if self.held is None:
            return vectors.norm(dim=1)
        key = "lengths", first, len(vectors)
        if key not in self._made:
            self._made[key] = vectors.norm(dim=1)
        return self._made[key]

    def _coarse(self, queries: int, k: int, *, of_units: bool) -> Coarse | None:
        """Return bounds of all products in bfloat16 where they pay, made once."""
        if (
            self.held is None
            or self.held.device.type != "cpu"
            or self.source.device.type != "cpu"
            or queries < _MANY_QUERIES
            or self.size < max(_MANY_VECTORS, _MANY_PER_NEIGHBOUR * k)
            or not has_fast_bfloat16()
        ):
            return None
        key = "coarse", of_units
        # Half as many bytes, and as many again while they are made.
        if key not in self._made and _fits(self.size, self.width, self.held.device):
            lengths, made = self.held.norm(dim=1), None
            if bool(lengths.isfinite().all()):
                made = Coarse(self.held, lengths, _silent(lengths, of_units=of_units))
            self._made[key] = made
        return self._made.get(key)


def unit_features(reference: Reference) -> Bank:
    """Return the bank of all training features divided by their lengths, computed once.

    Raises
    ------
    UndefinedMethodError
        If there are no training images.
    """
    return reference.once(
        "unit features",
        lambda: Bank.of(
            reference.train,
            lambda images: directions(images.features),
            size=len(reference.train),
        ),
    )


def _fits(size: int, width: int, device: torch.device) -> bool:
    """Return whether vectors fit into half of the free memory of a device."""
    free = free_memory(device)
    return free is None or 4 * size * width <= free // 2


def _no_source(_images: Activations) -> Tensor:
    raise AssertionError("a stored bank has no source")  # its vectors are always available


def _short_chunks(source: ActivationSet) -> Iterator[Activations]:
    """Split chunks, which are whole shards, into chunks of at most ``CHUNK_ROWS`` rows."""
    for chunk in source.chunks():
        for first in range(0, len(chunk), CHUNK_ROWS):
            yield _rows(chunk, slice(first, first + CHUNK_ROWS))


def _rows(images: Activations, part: slice) -> Activations:
    return images.map(lambda values: values[part])


def _silent(lengths: Tensor, *, of_units: bool) -> Tensor:
    """Return the rows of vectors of length zero, among unit vectors."""
    return (lengths < (0.5 if of_units else -1.0)).nonzero()[:, 0]


def _in_block(
    queries: Tensor,
    vectors: Tensor,
    lengths: Tensor,
    k: int,
    least: Tensor | None,
    *,
    of_units: bool,
) -> tuple[Tensor, Tensor]:
    """Return the ``k`` largest products with a block, or as many as it has, and their rows.

    Those below ``least``, ``(n,)``, may be missing, and are minus infinity then.
    """
    k = min(k, len(vectors))
    silent = _silent(lengths, of_units=of_units)
    if vectors.device.type == "cpu" and bool(lengths.isfinite().all()):
        products, rows, _ = _among(queries, Products(vectors, lengths, silent), k, least)
        return products, rows
    products = queries.new_empty(len(queries), k)
    rows = torch.empty(products.shape, dtype=torch.int64, device=queries.device)
    few = max(1, min(len(queries), _NUMBERS // len(vectors)))
    buffer = queries.new_empty(few, len(vectors))
    for first in range(0, len(queries), few):
        part = slice(first, first + few)
        every = torch.mm(queries[part], vectors.T, out=buffer[: len(queries[part])])
        every[:, silent] = 0.5
        products[part], rows[part] = every.topk(k, dim=1)
    return products, rows


def _among(
    queries: Tensor, table: Table, k: int, least: Tensor | None = None
) -> tuple[Tensor, Tensor, Tensor]:
    """Return what :func:`k_largest` does, with 1/2 for products with silent vectors."""
    searched = len(table.vectors) - len(table.silent)
    products, rows, left = k_largest(queries, table, min(k, searched), least)
    if len(table.silent):
        some = table.silent[:k].expand(len(queries), -1)
        products, rows = _merged(products, rows, torch.full(some.shape, 0.5), some, k)
    return products, rows, left


def _merged(
    products: Tensor, rows: Tensor, others: Tensor, at: Tensor, k: int
) -> tuple[Tensor, Tensor]:
    """Return the ``k`` largest of two lots of products, or all, and their rows."""
    products, order = torch.cat([products, others], dim=1).sort(dim=1, descending=True, stable=True)
    rows = torch.cat([rows, at], dim=1).gather(1, order)
    return products[:, :k], rows[:, :k]


def by_bank(
    detectors: Sequence[tuple[Bank, int]], search: Callable[[Bank, Sequence[int]], Sequence[Tensor]]
) -> list[Tensor]:
    """Return the scores of detectors that may share a bank, ``(n,)`` each, in their order.

    Parameters
    ----------
    detectors
        Bank and ``k`` of each.
    search
        Function that returns the scores of one bank for several values of ``k``.
    """
    scores: dict[tuple[Bank, int], Tensor] = {}
    for bank in dict.fromkeys(bank for bank, _ in detectors):
        ks = [k for each, k in detectors if each is bank]
        scores.update(zip([(bank, k) for k in ks], search(bank, ks), strict=True))
    return [scores[each] for each in detectors]
