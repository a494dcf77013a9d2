"""What ``ood explain`` says about one image: records for JSON, and the pixels of its picture."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from oodcli.records import as_json

Box = tuple[float, float, float, float]
Pixels = NDArray[np.uint8]


@dataclass(frozen=True)
class MethodView:
    """One method's opinion of an image.

    Parameters
    ----------
    method
        Canonical name of the method.
    kind
        What it looks at: ``chosen`` for the method of the verdict, or ``softmax``, ``logits``,
        ``neighbours``, ``subspace``, ``block norm``, ``class means`` or ``density``.
    score
        Score; larger = more in-distribution.
    threshold
        The minimum score of in-distribution images.
    percentile
        Share of the method's ID scores below the score, in percent.
    p_value
        Conformal p-value: ``(1 + number of ID scores at or below the score) / (1 + number of ID
        scores)``.
    verdict
        ``id`` or ``ood``.
    id_images
        Number of ID scores.
    threshold_percentile
        Share of the ID scores below the threshold, in percent.
    """

    method: str
    kind: str
    score: float
    threshold: float
    percentile: float
    p_value: float
    verdict: Literal["id", "ood"]
    id_images: int
    threshold_percentile: float


@dataclass(frozen=True)
class Neighbour:
    """A training image near an image, or with a region near one of its regions.

    Parameters
    ----------
    name
        File or number of the training image.
    label
        Name of its class; None if the data of the run cannot be opened, or has no classes.
    distance
        Squared distance between unit vectors, from 0 to 4.
    row
        Row number among the training images, from 0.
    region
        Name of its region, such as ``top left``; None for the whole image by its feature.
    box
        Left, top, right and bottom of the region in pixels of the network's input; None for the
        whole image by its feature.
    """

    name: str
    label: str | None
    distance: float
    row: int
    region: str | None = None
    box: Box | None = None


@dataclass(frozen=True)
class RegionMatch:
    """The region of an image that comes nearest to the regions of the training images.

    Parameters
    ----------
    region
        Name of the region, such as ``top left``.
    box
        Left, top, right and bottom in pixels of the network's input.
    neighbours
        The nearest regions of training images, nearest first.
    """

    region: str
    box: Box
    neighbours: tuple[Neighbour, ...]


@dataclass(frozen=True)
class BlockView:
    """Energy of a block, at each position of its map: the L2 norm over channels of the ReLU.

    Parameters
    ----------
    block
        Index of the block, from 0.
    name
        Name of the block.
    selected_by
        ``method`` if the method of the verdict reads this block, ``normratio`` if NormRatio selects
        it, ``last`` if neither is known and it is the last block.
    energy
        Energies of the image, rows of the map from the top.
    id_energy
        Mean energies over ID images, likewise.
    id_images
        Number of these ID images.
    """

    block: int
    name: str
    selected_by: Literal["method", "normratio", "last"]
    energy: tuple[tuple[float, ...], ...]
    id_energy: tuple[tuple[float, ...], ...]
    id_images: int


@dataclass(frozen=True)
class TypicalImage:
    """The ID image of median score among those that the image is compared with.

    Parameters
    ----------
    name
        File or number of the image.
    label
        Name of its class; None without classes.
    score
        Its score by the method of the verdict.
    percentile
        Share of the ID scores below it, in percent.
    among
        Number of ID images that it is the median of.
    """

    name: str
    label: str | None
    score: float
    percentile: float
    among: int


@dataclass(frozen=True)
class Explanation:
    """Why one image is or is not out of distribution.

    Parameters
    ----------
    path
        Path as given, or ``FILE.npz[ROW]``.
    predicted
        Name of the predicted class; None without a classifier and, like all fields except ``path``
        and ``error``, if the image cannot be read.
    probability
        Softmax probability of that class; None without one.
    verdict
        ``id`` or ``ood``, by the method of ``--method``.
    methods
        The method of the verdict, then methods of other kinds.
    flagged
        Number of these methods whose verdict is ``ood``.
    compared_with
        Name of the class of the ID images that block and typical image come from; None for ID
        images of all classes.
    neighbours
        The nearest training images by their features, nearest first.
    region
        The nearest region, by ``csd``; None without regions.
    block
        Energies of a block; None for a network without blocks.
    typical
        The typical ID image.
    missing
        Parts that could not be made, with the reason.
    file
        Name of its picture or page in the output folder; None without one.
    error
        Why the image cannot be read; None if it could be.
    """

    path: str
    predicted: str | None = None
    probability: float | None = None
    verdict: Literal["id", "ood"] | None = None
    methods: tuple[MethodView, ...] = ()
    flagged: int | None = None
    compared_with: str | None = None
    neighbours: tuple[Neighbour, ...] = ()
    region: RegionMatch | None = None
    block: BlockView | None = None
    typical: TypicalImage | None = None
    missing: tuple[str, ...] = ()
    file: str | None = None
    error: str | None = None

    @property
    def main(self) -> MethodView:
        """The method of the verdict; only for an image that could be read."""
        return self.methods[0]

    @property
    def agreement(self) -> str | None:
        """Whether the methods agree, in a sentence; None for an unreadable image.

        Examples
        --------
        >>> view = MethodView("msp", "softmax", 0.4, 0.5, 2.0, 0.02, "ood", 100, 5.0)
        >>> Explanation("a.png", verdict="ood", methods=(view,), flagged=1).agreement
        'msp says ood; no other method is defined'
        """
        if self.flagged is None:
            return None
        count, verdict = len(self.methods), self.main.verdict
        if count == 1:
            return f"{self.main.method} says {verdict}; no other method is defined"
        if self.flagged in (0, count):
            return f"all {count} methods agree: {verdict}"
        named = [each.method for each in self.methods if each.verdict == "ood"]
        return f"the methods disagree: {self.flagged} of {count} say ood ({', '.join(named)})"

    def to_json(self) -> dict[str, Any]:
        """Return the JSON object of the image; the predicted class is called ``class``."""
        content = {
            "class" if name == "predicted" else name: value for name, value in _fields(self).items()
        }
        return {**content, "agreement": self.agreement}


def _fields(explanation: Explanation) -> dict[str, Any]:
    found = {name: getattr(explanation, name) for name in Explanation.__dataclass_fields__}
    return {name: _plain(value) for name, value in found.items()}


def _plain(value: Any) -> Any:  # noqa: ANN401 - whatever a record holds
    if isinstance(value, tuple):
        return [_plain(each) for each in value]
    if isinstance(value, Neighbour):
        content = as_json(value)
        return {"class" if name == "label" else name: each for name, each in content.items()}
    if isinstance(value, RegionMatch):
        return {**as_json(value), "neighbours": _plain(value.neighbours)}
    if isinstance(value, TypicalImage):
        content = as_json(value)
        return {"class" if name == "label" else name: each for name, each in content.items()}
    return as_json(value) if hasattr(value, "__dataclass_fields__") else value


@dataclass(frozen=True, eq=False)
class ExplanationPixels:
    """The pixels of the picture of an explanation.

    Parameters
    ----------
    image
        The image as the network sees it, uint8 ``(h, w, 3)``.
    neighbours, region_neighbours
        Pixels of the neighbours, in their order; None for one that cannot be read.
    energy, id_energy, typical_energy
        Energies of the block: of the image, the mean of ID images, and of the typical ID image,
        float ``(rows, columns)``; None without blocks or without ID images.
    typical
        The typical ID image, uint8 ``(h, w, 3)``; None if there is none.
    """

    image: Pixels
    neighbours: Sequence[Pixels | None] = ()
    region_neighbours: Sequence[Pixels | None] = ()
    energy: NDArray[np.float32] | None = None
    id_energy: NDArray[np.float32] | None = None
    typical_energy: NDArray[np.float32] | None = None
    typical: Pixels | None = None
