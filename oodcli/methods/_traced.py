"""Fitted methods as graphs of tensor operations, without branches that depend on data.

The ``score`` of the method itself is traced, so that each formula exists once. Only shared
operations with data-dependent branches are replaced: sorted features, distances to Gaussians,
search for neighbours, and search for ranks.
"""

from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass, fields, is_dataclass, replace
from typing import Any, TypeVar, cast

import torch
from torch import Tensor

from oodcli.activations import Activations
from oodcli.errors import UndefinedMethodError
from oodcli.methods import METHODS
from oodcli.methods._bank import Bank
from oodcli.methods._descending import ORDERED, Descending
from oodcli.methods.base import Combined, MethodSpec, Scorer
from oodcli.methods.ensemble import RankEnsemble, RankScale
from oodcli.methods.mahalanobis import NEAREST, Gaussians

_T = TypeVar("_T")


def check_traceable(spec: MethodSpec, *, what: str) -> None:
    """Raise an error if a method cannot be traced.

    Parameters
    ----------
    spec
        The method.
    what
        Target of the export, for the message.

    Raises
    ------
    UndefinedMethodError
        If it has data-dependent operations or needs more than one forward pass.
    """
    for part in spec.parts:
        if not part.method.exportable:
            exportable = sorted(name for name, method in METHODS.items() if method.exportable)
            raise UndefinedMethodError(
                f"{part.name} cannot be exported as {what}; these can: {', '.join(exportable)}"
            )


class TracedBatch:
    """Activations during tracing, with an unknown number of images.

    Parameters
    ----------
    logits, features, block_norms, predictions
        As in :class:`~oodcli.activations.Activations`.
    """

    def __init__(
        self, logits: Tensor, features: Tensor, block_norms: Tensor, predictions: Tensor
    ) -> None:
        self.logits = logits
        self.features = features
        self.block_norms = block_norms
        self.predictions = predictions
        self.extra: Mapping[str, Tensor] = {}
        self._made: dict[Hashable, Any] = {}

    def once(self, key: Hashable, make: Callable[[], _T]) -> _T:
        """Return the cached result of ``make``, or of its replacement without branches."""
        if key not in self._made:
            match key:
                case str() if key == ORDERED:
                    self._made[key] = _descending(self.features)
                case (str() as name, Gaussians() as gaussians) if name == NEAREST:
                    self._made[key] = gaussians.least(self.features.double())
                case _:
                    self._made[key] = make()
        return cast("_T", self._made[key])


@dataclass(frozen=True, slots=True)
class _TracedDescending(Descending):
    """Features of every image in descending order; ties are in the order of the graph's TopK."""

    order: Tensor

    def largest(self, features: Tensor, count: int) -> Tensor:
        """Return a mask of the ``count`` largest features of every row.

        Among equal values, TopK of ONNX selects the first, as :class:`Descending` does.
        """
        chosen = torch.zeros_like(features).scatter(1, self.order[:, :count], 1.0)
        return chosen > 0.5


def _descending(features: Tensor) -> Descending:
    values, order = features.topk(features.shape[1], dim=1)
    return _TracedDescending(values, values.clamp(min=0).cumsum(dim=1), 0.0, order)


@dataclass(frozen=True, slots=True, eq=False)
class _TracedBank:
    """A bank in one tensor, searched by one matrix product.

    Parameters
    ----------
    vectors
        ``(size, d)``.
    empty
        1/2 for vectors of length zero, else 0, ``(size,)``.
    """

    vectors: Tensor
    empty: Tensor

    @property
    def size(self) -> int:
        """Number of vectors."""
        return len(self.vectors)

    @property
    def width(self) -> int:
        """Length of a vector."""
        return self.vectors.shape[1]

    def largest(self, queries: Tensor, k: int) -> Tensor:
        """Return the ``k`` largest inner products, ``(n, k)``, descending."""
        return (queries @ self.vectors.T).topk(min(k, self.size), dim=1).values

    def nearest(self, units: Tensor, k: int) -> Tensor:
        """Return squared distances to the ``k`` nearest vectors, ``(n, k)``, ascending.

        The last one is computed from differences, the others from products.
        """
        found = (units @ self.vectors.T + self.empty).topk(min(k, self.size), dim=1)
        squares = (units.norm(dim=1, keepdim=True) > 0.5).float()
        distances = (squares + 1 - 2 * found.values).clamp(min=0)
        last = (units - self.vectors[found.indices[:, -1]]).square().sum(dim=1, keepdim=True)
        return torch.cat([distances[:, :-1], last], dim=1)


@dataclass(frozen=True, slots=True)
class _TracedScale(RankScale):
    """A scale that compares a score with every calibration score."""

    def _less(self, values: Tensor) -> Tensor:
        return (self.scores < values[:, None]).sum(dim=1)


def traced(scorer: Scorer) -> Callable[[TracedBatch], Tensor]:
    """Return the score of a fitted method as a function that can be traced.

    Parameters
    ----------
    scorer
        The method, checked by :func:`check_traceable`.
    """
    traceable = _traceable(scorer)
    return lambda batch: traceable.score(cast("Activations", batch))


def _traceable(scorer: Scorer) -> Scorer:
    if isinstance(scorer, Combined):
        return replace(scorer, shaper=_with_banks(scorer.shaper))
    if isinstance(scorer, RankEnsemble):
        scales = (
            _TracedScale(each.scores, each.shares, each.below, each.above, each.count)
            for each in scorer.scales
        )
        return RankEnsemble(tuple(map(_traceable, scorer.members)), tuple(scales))
    return _with_banks(scorer)


def bank_bytes(scorer: Scorer) -> int:
    """Return the size of the banks of a fitted method, in bytes."""
    if isinstance(scorer, RankEnsemble):
        return sum(map(bank_bytes, scorer.members))
    return sum(4 * bank.size * bank.width for _, bank in _banks(scorer))


def _banks(fitted: object) -> Sequence[tuple[str, Bank]]:
    if not is_dataclass(fitted):
        return ()
    values = [(field.name, getattr(fitted, field.name)) for field in fields(fitted)]
    return [(name, value) for name, value in values if isinstance(value, Bank)]


def _with_banks(fitted: _T) -> _T:
    """Return a fitted method with its banks replaced."""
    banks = {name: _traced_bank(bank) for name, bank in _banks(fitted)}
    return cast("_T", replace(cast("Any", fitted), **banks)) if banks else fitted


def _traced_bank(bank: Bank) -> _TracedBank:
    vectors = torch.cat([block.clone() for _, block in bank.blocks()])
    return _TracedBank(vectors, 0.5 * (vectors.norm(dim=1) < 0.5))
