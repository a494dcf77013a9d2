"""CFOOD: how many neighbours training images must look at to find an image among them."""

from dataclasses import dataclass
from typing import Self

import numpy as np
import torch
from torch import Tensor

from oodcli.activations import Activations, Reference
from oodcli.errors import InvalidInputError
from oodcli.methods._class_means import directions, feature_rows
from oodcli.methods._needs import Arguments, Need
from oodcli.methods.base import at_least

# Rows of distances that are sorted, or searched, at a time.
_NUMBERS = 2**22


@dataclass(frozen=True, slots=True)
class CFOOD:
    """Least neighbourhood in which enough training images have the image among their neighbours.

    ``-κ``, where ``κ`` is the smallest share of the bank such that at least ``k`` of its images are
    not farther from this one than from their own neighbour of that rank. Features are divided by
    their lengths; ``κ`` is one of 230 shares from 0.001 to 0.99, or 1.

    Parameters
    ----------
    units
        Features of the bank divided by their lengths, ``(n, d)``.
    radii
        Squared distance of every image of the bank to its own neighbours of those ranks,
        ascending, ``(n, m)``.
    shares
        The share of the bank that each rank is, and 1, float64, ``(m + 1,)``.
    k
        Share of the bank that must have the image among its neighbours.
    images
        Number of images in the bank.

    References
    ----------
    ``cfood_postprocessor.py`` of OpenOOD (pull request 302), written by the authors.

    Notes
    -----
    The formula is that of the code, which draws a tenth of the training images as its bank
    (``alpha`` 0.1, 5,000 of CIFAR's 50,000); here the bank has ``images`` of them, evenly spread
    over the training images, or all if there are fewer. Radii of all pairs cost ``images²``, and
    scoring compares with every image of the bank: this method is scored on request, or with
    ``--method all``. Scores take at most 231 values, so that many images tie, as published. The
    grid of ``k`` is that of the code.
    """

    units: Tensor
    radii: Tensor
    shares: Tensor
    k: float
    images: int

    @classmethod
    def fit(cls, reference: Reference, *, k: float = 0.01, images: int = 5000) -> Self:
        """Measure how far the images of the bank are from one another.

        Parameters
        ----------
        reference
            The training images.
        k
            Share of the bank that must have an image among its neighbours.
        images
            Number of training images in the bank.

        Raises
        ------
        InvalidInputError
            If ``k`` is not above 0 and below 1.
        """
        if not 0 < k < 1:
            raise InvalidInputError(f"cfood:k must be more than 0 and less than 1, not {k:g}")
        at_least("cfood:images", images, 2)
        units = reference.once(("cfood bank", images), lambda: _bank(reference, images))
        shares, ranks = _ranks(len(units))
        radii = reference.once(("cfood radii", images), lambda: _radii(units, ranks))
        return cls(units, radii, shares.to(units.device), k, len(units))

    def score(self, batch: Activations) -> Tensor:
        """Return minus the share, float64, ``(n,)``."""
        units = feature_rows(batch, normalised=True)
        enough = max(1, int(np.ceil(self.k * self.images - 1e-9)))
        rows = max(1, _NUMBERS // self.images)
        found = []
        for few in units.split(rows):
            distances = _distances(self.units, few)  # (n, m)
            # The first rank at which each image of the bank has the image among its neighbours.
            first = torch.searchsorted(self.radii, distances)
            found.append(first.kthvalue(enough, dim=0).values)
        unknown = units.isnan().any(dim=1)
        return (-self.shares[torch.cat(found)]).masked_fill(unknown, torch.nan)


def _too_few(reference: Reference, arguments: Arguments) -> str | None:
    k, images = arguments["k"], arguments["images"]
    assert isinstance(k, float)
    assert isinstance(images, int)
    number = min(len(reference.train), images)
    return None if k <= 0 or number * k >= 1 else f"there are {number:,} for k {k:g}"


ONE_OF_A_SHARE = Need(
    "so many training images that the share k of them is one at least",
    _too_few,
    "choose a larger share, as in cfood:k=0.1, or use knn",
)


def _bank(reference: Reference, images: int) -> Tensor:
    """Return normalised features of training images that are evenly spread, ``(n, d)``."""
    total = len(reference.train)
    count = min(total, images)
    chosen = torch.arange(count) * total // count
    parts, first = [], 0
    for chunk in reference.train.chunks():
        rows = chosen[(chosen >= first) & (chosen < first + len(chunk))] - first
        first += len(chunk)
        parts.append(directions(chunk.features[rows.to(chunk.features.device)]))
    return torch.cat(parts)


def _ranks(count: int) -> tuple[Tensor, Tensor]:
    """Return the shares with a 1 at the end, ``(m + 1,)``, and the ranks they stand for, ``(m,)``.

    Ranks count the neighbours of an image of the bank, itself excluded, from 0.
    """
    shares = np.concatenate(
        [np.linspace(0.001, 0.1, 100), np.linspace(0.105, 0.5, 81), np.linspace(0.51, 0.99, 49)]
    )
    ranks = (shares * count - 1).astype(np.int64)
    new = np.concatenate([[True], ranks[:-1] < ranks[1:]])
    return torch.from_numpy(np.append(shares[new], 1.0)), torch.from_numpy(ranks[new])


def _radii(units: Tensor, ranks: Tensor) -> Tensor:
    ranks = (ranks + 1).to(units.device)  # the image itself comes first, at distance 0
    rows = max(1, _NUMBERS // len(units))
    parts = [_distances(few, units).sort(dim=1).values[:, ranks] for few in units.split(rows)]
    return torch.cat(parts).contiguous()


def _distances(left: Tensor, right: Tensor) -> Tensor:
    """Return the squared distances between rows of unit length, or zero, ``(n, m)``."""
    lengths = left.square().sum(dim=1, keepdim=True)
    products = torch.addmm(right.square().sum(dim=1), left, right.T, alpha=-2)
    return (products + lengths).clamp_(min=0).contiguous()
