"""What the explorer of a report knows: the records that the page reads as JSON.

The scripts of the page are checked against these records:
:mod:`oodcli.reporting.explorer.typescript` writes them as TypeScript interfaces. Names are those of
data sets, classes and runs in one printable line; the page shows them as text only. All values are
fractions, and indices start at 0.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from oodcli.reporting.explorer.image_payload import ImagePanels
from oodcli.reporting.explorer.packing import Packed

PAYLOAD_SCHEMA = 1

Rows = tuple[tuple[float | None, ...], ...]
Positive = Literal["id", "ood"]
Spectrum = Literal["plain", "full"]


@dataclass(frozen=True)
class ShownConvention:
    """A definition of FPR95 and AUPR, see :class:`oodcli.metrics.Convention`.

    Parameters
    ----------
    name
        Name on the command line.
    description
        What it means, in one line.
    positive
        Positive class of FPR95 and of the ROC curve.
    """

    name: str
    description: str
    positive: Positive


@dataclass(frozen=True)
class ResultColumn:
    """A data set of the overview, or an average of several.

    Parameters
    ----------
    label
        Name as in the table of the report.
    dataset
        Name of the OOD set; empty for an average.
    group
        ``near``, ``far`` or ``ood``; ``all`` for the average of these.
    spectrum
        Whether the ID images are the test images, or include covariate-shifted ones.
    n_ood
        Number of OOD images.
    """

    label: str
    dataset: str
    group: str
    spectrum: Spectrum
    n_ood: int


@dataclass(frozen=True)
class Rates:
    """The metrics that depend on the convention, by method and column.

    Parameters
    ----------
    fpr95, aupr_in, aupr_out
        One row per method and one value per column; null where the method has no scores.
    """

    fpr95: Rows
    aupr_in: Rows
    aupr_out: Rows


@dataclass(frozen=True)
class ResultTable:
    """The results of one run, or the mean of runs that are averaged.

    Parameters
    ----------
    name
        Name of the run; of several runs, their names joined by ``", "``.
    networks
        Indices of the runs in :attr:`Payload.networks`.
    methods
        Canonical names of the methods.
    labels
        Their names as in the table of the report.
    columns
        The data sets and averages, in the order of the table of the report.
    auroc
        One row per method and one value per column.
    rates
        The other metrics, by name of the convention.
    """

    name: str
    networks: tuple[int, ...]
    methods: tuple[str, ...]
    labels: tuple[str, ...]
    columns: tuple[ResultColumn, ...]
    auroc: Rows
    rates: Mapping[str, Rates]


@dataclass(frozen=True)
class Histogram:
    """Scores of ID and OOD images in bins of equal width.

    Parameters
    ----------
    low, high
        Ends of the axis; scores beyond them are in the outer bins.
    id_counts, ood_counts
        Number of images in each bin.
    """

    low: float
    high: float
    id_counts: Packed
    ood_counts: Packed


@dataclass(frozen=True)
class ClassCounts:
    """Accepted images by class, at some of the thresholds of a method.

    Parameters
    ----------
    places
        Indices of these thresholds, ascending, ``(k,)``.
    id_accepted
        Accepted ID images of every class, ``(k, classes)``; null where classes are not known.
    ood_accepted
        For every OOD set, accepted images that are taken for each class that
        :attr:`EvaluatedSet.classes` lists, ``(k, classes)``; null where they are not known.
    """

    places: Packed
    id_accepted: Packed | None
    ood_accepted: tuple[Packed | None, ...]


@dataclass(frozen=True)
class MethodCurve:
    """What a method accepts at every threshold that the page can show.

    An image is accepted if its score is at or above the threshold.

    Parameters
    ----------
    method
        Canonical name.
    every
        Whether the thresholds are all distinct scores; otherwise some of them.
    thresholds
        Ascending scores of images, ``(t,)``.
    id_accepted
        Number of ID images accepted at each, ``(t,)``.
    correct_accepted
        How many of those are classified correctly, ``(t,)``; null where not known.
    ood_accepted
        Number of images accepted at each, ``(t,)``, by OOD set; null for a set without scores.
    histograms
        By OOD set; null for a set without scores.
    fpr95_at
        Index of the threshold at which FPR95 is measured, by convention and OOD set; it is the
        number of thresholds where no image is accepted.
    classes
        Accepted images by class; null where classes are not known.
    """

    method: str
    every: bool
    thresholds: Packed
    id_accepted: Packed
    correct_accepted: Packed | None
    ood_accepted: tuple[Packed | None, ...]
    histograms: tuple[Histogram | None, ...]
    fpr95_at: Mapping[str, tuple[int | None, ...]]
    classes: ClassCounts | None


@dataclass(frozen=True)
class EvaluatedSet:
    """An OOD set of an evaluation.

    Parameters
    ----------
    name
        Name of the set.
    group
        ``near``, ``far`` or ``ood``.
    n
        Number of images.
    classes
        Indices of the classes that most images are taken for, the most frequent first; null where
        predictions are not known.
    taken
        Number of images that are taken for each of them; null where not known.
    """

    name: str
    group: str
    n: int
    classes: tuple[int, ...] | None
    taken: tuple[int, ...] | None


@dataclass(frozen=True)
class Evaluation:
    """ID images against OOD sets.

    Parameters
    ----------
    spectrum
        Whether the ID images are the test images, or include covariate-shifted ones.
    id_name
        Name of the ID images.
    n_id
        Number of ID images.
    n_correct
        Number of those that are classified correctly; null where not known.
    id_by
        Whether :attr:`id_classes` counts true or predicted classes; null where not known.
    id_classes
        Number of ID images of every class; null where not known.
    sets
        The OOD sets.
    methods
        Methods with scores, in the order of the report.
    """

    spectrum: Spectrum
    id_name: str
    n_id: int
    n_correct: int | None
    id_by: Literal["label", "prediction"] | None
    id_classes: tuple[int, ...] | None
    sets: tuple[EvaluatedSet, ...]
    methods: tuple[MethodCurve, ...]


@dataclass(frozen=True)
class Network:
    """A run, or the network of score files.

    Parameters
    ----------
    name
        Name of the run.
    arch
        Canonical architecture; empty if not known.
    training
        Its training as the literature names it; empty if not known.
    classes
        Names of its classes; empty if not known.
    evaluations
        With ID test images, and with covariate-shifted ones where they were scored.
    """

    name: str
    arch: str
    training: str
    classes: tuple[str, ...]
    evaluations: tuple[Evaluation, ...]


@dataclass(frozen=True)
class Payload:
    """Everything that the explorer of a report knows.

    Parameters
    ----------
    schema
        Version of these records.
    digits
        Digits after the decimal point of a percentage.
    convention
        Name of the convention that is shown first.
    conventions
        All conventions.
    results
        The results of every run, or of runs that are averaged.
    networks
        The runs, each by itself.
    limits
        What the page leaves out, one sentence each.
    images
        Images and features; null for score files, and for a page without pictures.
    """

    schema: int
    digits: int
    convention: str
    conventions: tuple[ShownConvention, ...]
    results: tuple[ResultTable, ...]
    networks: tuple[Network, ...]
    limits: tuple[str, ...]
    images: ImagePanels | None = None
