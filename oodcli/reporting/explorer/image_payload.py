"""The images that the explorer of a report shows: records that the page reads as JSON.

They belong to :mod:`oodcli.reporting.explorer.payload`, and the same holds for them. A percentile
is the share of the ID test images whose score is below.
"""

from dataclasses import dataclass
from typing import Literal

from oodcli.reporting.explorer.packing import Packed


@dataclass(frozen=True)
class ImageSource:
    """A data set whose images are shown.

    Parameters
    ----------
    name
        Name of the set.
    group
        ``id``, ``near``, ``far`` or ``ood``.
    n
        Number of scored images.
    """

    name: str
    group: str
    n: int


@dataclass(frozen=True)
class Sheets:
    """Pictures of one size, side by side in the rows of sheets.

    Parameters
    ----------
    files
        WebP files in base64; all but the last have ``per_sheet`` pictures.
    width, height
        Size of a picture in pixels.
    columns
        Number of pictures in a row of a sheet; a sheet of fewer pictures has one row.
    per_sheet
        Number of pictures of a full sheet.
    count
        Number of pictures.
    """

    files: tuple[str, ...]
    width: int
    height: int
    columns: int
    per_sheet: int
    count: int


@dataclass(frozen=True)
class ListedImages:
    """Images in the order in which the other records number them, from 0.

    Parameters
    ----------
    sets
        Index of the set of each image, ``(n,)``.
    rows
        Its row among the scored images of the set, ``(n,)``.
    names
        Its file, or its number, in one printable line.
    labels
        Index of its class plus 1; 0 where it has none, ``(n,)``.
    pictures
        Their pictures in this order; of the last images there may be none.
    """

    sets: Packed
    rows: Packed
    names: tuple[str, ...]
    labels: Packed
    pictures: Sheets


@dataclass(frozen=True)
class TrainingImages:
    """Training images that are near some images.

    Parameters
    ----------
    n
        Number of training images among which they are the nearest.
    names
        File or number of each.
    labels
        Index of its class plus 1; 0 where it has none, ``(t,)``.
    pictures
        Their pictures in this order; of the last images there may be none.
    nearest
        For every image of the strip, indices of the nearest in this record, nearest first,
        ``(n, k)``.
    distances
        Squared distances between unit vectors, ``(n, k)``.
    """

    n: int
    names: tuple[str, ...]
    labels: Packed
    pictures: Sheets
    nearest: Packed
    distances: Packed


@dataclass(frozen=True)
class ImageStrip:
    """The images of a network that methods judge most wrongly.

    Parameters
    ----------
    network
        Index in :attr:`Payload.networks`.
    methods
        Canonical names of the methods with scores of ID images.
    thresholds
        The highest score that at least 95 % of the ID images reach, by method, ``(m,)``.
    sets
        The sets whose images were found, ID test images first.
    images
        The images.
    predicted
        Index of the predicted class of each image, ``(n,)``; null where not known.
    scores
        Score of each image by each method, ``(n, m)``; NaN where there is none.
    percentiles
        Percentile in units of 0.01 %, ``(n, m)``.
    id_images
        By method, the ID images of lowest score, lowest first.
    ood_images
        By method and OOD set (:attr:`sets` from the second on), the images of highest score,
        highest first.
    odd
        The ID images that most methods reject at these thresholds, most rejected first.
    rejected_by
        Number of methods that reject each of those.
    n_odd
        Number of ID images that at least half of the methods reject.
    training
        The nearest training images; null where their features are not stored.
    """

    network: int
    methods: tuple[str, ...]
    thresholds: Packed
    sets: tuple[ImageSource, ...]
    images: ListedImages
    predicted: Packed | None
    scores: Packed
    percentiles: Packed
    id_images: tuple[Packed, ...]
    ood_images: tuple[tuple[Packed, ...], ...]
    odd: Packed
    rejected_by: Packed
    n_odd: int
    training: TrainingImages | None


@dataclass(frozen=True)
class Projection:
    """Images in two dimensions.

    Parameters
    ----------
    kind
        ``pca`` or ``tsne``.
    points
        Coordinates as parts of 65,535 of the square that encloses the map, ``(n, 2)``; both axes
        have one scale.
    shares
        Share of the variance along each axis of ``pca``; empty for ``tsne``, whose axes have no
        meaning.
    """

    kind: Literal["pca", "tsne"]
    points: Packed
    shares: tuple[float, ...]


@dataclass(frozen=True)
class MapView:
    """A map of the features of one network.

    Parameters
    ----------
    network
        Index in :attr:`Payload.networks`.
    projections
        The maps.
    predicted
        Index of the predicted class of each image, ``(n,)``; null where not known.
    methods
        Canonical names of methods, those of the highest mean AUROC.
    percentiles
        Percentile of each image by each of them in units of 0.5 %, ``(n, m)``; 255 where there is
        no score.
    """

    network: int
    projections: tuple[Projection, ...]
    predicted: Packed | None
    methods: tuple[str, ...]
    percentiles: Packed


@dataclass(frozen=True)
class FeatureMap:
    """The same images by the features of one network, or of two.

    Parameters
    ----------
    sets
        The sets, ID test images first.
    images
        The images.
    views
        One map per network.
    """

    sets: tuple[ImageSource, ...]
    images: ListedImages
    views: tuple[MapView, ...]


@dataclass(frozen=True)
class NormsOfSet:
    """L2 norms of the features of a data set, the input of the last layer.

    Parameters
    ----------
    name
        Name of the set.
    mean
        Their mean.
    auroc
        How well the norm separates ID images from those of the set, larger norms being ID; null for
        the ID set.
    counts
        Number of images in each bin.
    """

    name: str
    mean: float
    auroc: float | None
    counts: Packed


@dataclass(frozen=True)
class FeatureNorms:
    """L2 norms of the features of one network.

    Parameters
    ----------
    network
        Index in :attr:`Payload.networks`.
    high
        End of the axis, which starts at 0; larger norms are in the last bin.
    sets
        The sets, ID test images first.
    """

    network: int
    high: float
    sets: tuple[NormsOfSet, ...]


@dataclass(frozen=True)
class ImagePanels:
    """What the page shows of images and of features.

    Parameters
    ----------
    strips
        Of every network whose images were found.
    map
        Null where no features are stored.
    norms
        Of every network whose features are stored.
    """

    strips: tuple[ImageStrip, ...]
    map: FeatureMap | None
    norms: tuple[FeatureNorms, ...]
