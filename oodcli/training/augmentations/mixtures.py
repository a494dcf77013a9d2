"""Images of a batch mixed with each other, together with their labels: mixup, CutMix, RegMixup.

The partner of an image is the one before it in the batch, as in torchvision: the order of a batch
is random, so its pairs are random, and an image is its own partner only in a batch of one. Weights
and boxes are drawn once per batch and view on the CPU, so that no step waits for a GPU, and every
process draws the same ones.

Pixels are mixed before normalisation, as floats from 0 to 255 that are not rounded. All mixtures
are linear with weights that sum to 1, and so equal to mixtures after normalisation.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from math import sqrt

import numpy as np
import torch
from torch import Tensor

from oodcli.errors import InvalidInputError
from oodcli.training.augmentations.words import MIXTURES
from oodcli.training.objectives.base import Objective
from oodcli.training.recipes import Recipe


@dataclass(frozen=True, slots=True)
class View:
    """One augmented view of the images of a batch, with their labels.

    Parameters
    ----------
    pixels
        From 0 to 255, uint8 or float32 ``(n, 3, h, w)``.
    labels
        Class of every image, int64 ``(n,)``; of a mixture, the class with the larger weight.
    partners
        Class of the other image of a mixture, ``(n,)``; None if images are not mixed.
    share
        Weight of ``labels``, from 0.5 to 1; the weight of ``partners`` is the rest.
    """

    pixels: Tensor
    labels: Tensor
    partners: Tensor | None = None
    share: float = 1.0

    def at(self, rows: Tensor) -> "View":
        """Return the view of some images, given by their positions in the batch ``(m,)``."""
        partners = None if self.partners is None else self.partners[rows]
        return View(self.pixels[rows], self.labels[rows], partners, self.share)


@dataclass(frozen=True, slots=True)
class Labels:
    """The labels of the views of a training step, one view after the other.

    Parameters
    ----------
    main
        Class of every image, int64 ``(m,)``; of a mixture, the class with the larger weight.
    partners
        Class of the other image of a mixture, ``(m,)``; None if no image is mixed.
    shares
        Weight of ``main``, ``(m,)``; None if no image is mixed.
    """

    main: Tensor
    partners: Tensor | None = None
    shares: Tensor | None = None

    @classmethod
    def of(cls, views: Sequence[View], *, copies: int = 1) -> "Labels":
        """Concatenate the labels of views, and repeat all of them for copies of the views."""
        main = torch.cat([view.labels for view in views]).repeat(copies)
        if all(view.partners is None for view in views):
            return cls(main)
        partners = [view.labels if view.partners is None else view.partners for view in views]
        shares = [torch.full(view.labels.shape, view.share, device=main.device) for view in views]
        return cls(main, torch.cat(partners).repeat(copies), torch.cat(shares).repeat(copies))

    def targets(self, classes: int) -> Tensor:
        """Return labels as a loss takes them.

        Parameters
        ----------
        classes
            Number of outputs ``k`` of the network.

        Returns
        -------
        Tensor
            int64 ``(m,)``; if any image is mixed, probabilities of the classes, float32 ``(m, k)``.
        """
        if self.partners is None or self.shares is None:
            return self.main
        nothing = torch.zeros(len(self.main), classes, device=self.main.device)
        shares = self.shares[:, None]
        own = nothing.scatter(1, self.main[:, None], shares)
        return own + nothing.scatter(1, self.partners[:, None], 1 - shares)


def check_combination(recipe: Recipe, name: str, objective: Objective) -> None:
    """Refuse augmentations that an objective cannot be combined with.

    Parameters
    ----------
    recipe
        The recipe.
    name
        The objective as text.
    objective
        The objective.

    Raises
    ------
    InvalidInputError
        If images are mixed and the objective needs one class per image, or if predictions for
        views are compared and the objective has several views or makes no predictions.
    """
    step = mixture_of(recipe)
    if recipe.compares_views and (objective.views > 1 or not objective.trains_last_layer):
        raise InvalidInputError(
            f"augmix compares the predictions for several views of an image, but objective {name} "
            "has views of its own or makes no predictions; omit that loss: --set jsd_weight=0"
        )
    if step is None:
        return
    if not objective.accepts_soft_labels or (
        step == "regmixup" and objective.views * objective.copies > 1
    ):
        raise InvalidInputError(
            f"{step} mixes the labels of images, but objective {name} needs one class per image; "
            f"remove {step} from the augmentation of the recipe: --set augmentation="
            + ",".join(each for each in recipe.augmentation if each != step)
        )


def mixture_of(recipe: Recipe) -> str | None:
    """Return the word of a recipe that mixes images together with their labels, or None."""
    return next((step for step in recipe.augmentation if step in MIXTURES), None)


def mixes(recipe: Recipe) -> bool:
    """Return whether a recipe mixes images together with their labels."""
    return mixture_of(recipe) is not None


def mixed(view: View, drawn: np.random.Generator, recipe: Recipe) -> list[View]:
    """Mix the images of a batch with each other, as a recipe says.

    Parameters
    ----------
    view
        The augmented images of the whole batch.
    drawn
        Random generator of weights and boxes; equal in all processes.
    recipe
        Recipe with at most one step that mixes.

    Returns
    -------
    list of View
        The mixed images; for RegMixup the images themselves, then the mixed ones; the view itself
        if the recipe does not mix, or if CutMix leaves the batch as it is.
    """
    step = mixture_of(recipe)
    if step == "mixup":
        return [mixup(view, _beta(recipe.mixup_alpha, drawn))]
    if step == "regmixup":
        return [view, mixup(view, _beta(recipe.regmixup_alpha, drawn))]
    if step == "cutmix":
        if drawn.random() >= recipe.cutmix_chance:
            return [view]
        height, width = view.pixels.shape[2:]
        share = _beta(recipe.cutmix_alpha, drawn)
        centre = int(drawn.integers(height)), int(drawn.integers(width))
        return [cutmix(view, box_of(share, centre, (height, width)))]
    return [view]


def _beta(alpha: float, drawn: np.random.Generator) -> float:
    """Return a number from the distribution Beta(alpha, alpha)."""
    return float(drawn.beta(alpha, alpha))


def mixup(view: View, share: float) -> View:
    """Return ``share x + (1 - share) x'`` with the image ``x'`` before each image ``x``.

    Parameters
    ----------
    view
        The images.
    share
        Weight of an image and its label, from 0 to 1.

    References
    ----------
    Zhang, Cisse, Dauphin, Lopez-Paz. "mixup: Beyond Empirical Risk Minimization". ICLR 2018,
    arXiv:1710.09412. RegMixup: Pinto, Yang, Lim, Torr, Dokania. "RegMixup: Mixup as a Regularizer
    Can Surprisingly Improve Accuracy and Out Distribution Robustness". NeurIPS 2022,
    arXiv:2206.14502, which trains on images and their mixtures together.
    """
    own = view.pixels.float()
    return _labelled(view, torch.lerp(own.roll(1, 0), own, share), share)


def cutmix(view: View, box: tuple[int, int, int, int]) -> View:
    """Replace a box of every image by the same box of the image before it.

    Parameters
    ----------
    view
        The images.
    box
        First row, first column, and the row and the column after the last.

    Notes
    -----
    The weight of a label is the exact part of the image that remains, as in the code of the
    authors and in torchvision.

    References
    ----------
    Yun, Han, Oh, Chun, Choe, Yoo. "CutMix: Regularization Strategy to Train Strong Classifiers with
    Localizable Features". ICCV 2019, arXiv:1905.04899.
    """
    top, left, bottom, right = box
    height, width = view.pixels.shape[2:]
    pixels = view.pixels.clone()
    pixels[:, :, top:bottom, left:right] = view.pixels.roll(1, 0)[:, :, top:bottom, left:right]
    share = 1 - (bottom - top) * (right - left) / (height * width)
    return _labelled(view, pixels, share)


def box_of(
    share: float, centre: tuple[int, int], size: tuple[int, int]
) -> tuple[int, int, int, int]:
    """Return the box of CutMix.

    Parameters
    ----------
    share
        Part of the image that remains if the box is within it, from 0 to 1.
    centre
        Row and column of the centre of the box.
    size
        Height and width of the image.

    Returns
    -------
    tuple
        First row, first column, and the row and the column after the last; clipped to the image.
    """
    half = 0.5 * sqrt(1 - share)
    reach = tuple(int(half * side) for side in size)
    (y, x), (height, width) = centre, size
    return (
        max(y - reach[0], 0),
        max(x - reach[1], 0),
        min(y + reach[0], height),
        min(x + reach[1], width),
    )


def _labelled(view: View, pixels: Tensor, share: float) -> View:
    """Return mixed pixels with the labels of both images, the one with the larger weight first."""
    before = view.labels.roll(1, 0)
    if share >= 0.5:
        return View(pixels, view.labels, before, share)
    return View(pixels, before, view.labels, 1 - share)
