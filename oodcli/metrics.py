"""How well scores separate ID from OOD images, in the conventions of the published tables.

Larger scores mean more in-distribution (ID). All values are fractions, computed from one sort of
the merged scores: a :class:`Curve` counts the images accepted at every threshold, and the metrics
use these counts only, so they depend on the order of the scores and not on their scale or spacing.
Published tables define "FPR95" and "AUPR" differently; a :class:`Convention` is one definition.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from fractions import Fraction
from math import ceil
from types import MappingProxyType
from typing import Any, Literal, Self

import numpy as np
from numpy.typing import ArrayLike, NDArray

from oodcli.errors import InvalidInputError, UndefinedMethodError, UnknownNameError
from oodcli.text import counted

Positive = Literal["id", "ood"]
Rule = Literal["first_ge", "nearest", "rank"]
PrecisionArea = Literal["average_precision", "trapezoid_from_one", "trapezoid_from_zero"]

# If more than this share of scores is tied, metrics based on ranks are not informative.
MOSTLY_TIED = 0.5

_METHOD = "unnamed method"
_DATASET = "unnamed data set"
# A classifier that exceeds chance by no more than this share of chance is reported as near chance.
_SMALL_LEAD = 0.25
_STANDARD_ERRORS = 2.58


def near_chance(accuracy: float, labels: NDArray[np.int64]) -> float | None:
    """Return the accuracy of guessing if a classifier is hardly better; otherwise None.

    Parameters
    ----------
    accuracy
        Accuracy of the classifier, a fraction.
    labels
        Class of every image on which the accuracy was measured, ``(n,)``.

    Returns
    -------
    chance
        Share of the most frequent class: the accuracy of always predicting it. A classifier is
        hardly better if it exceeds chance by at most a quarter of ``min(chance, 1 - chance)``, or
        by at most 2.58 standard errors of guessing (99 %). The latter margin is limited to half of
        ``1 - chance``, so that a perfect accuracy on a few images does not count as chance.

    Examples
    --------
    >>> labels = np.array([0, 1] * 50)
    >>> near_chance(0.52, labels), near_chance(0.9, labels)
    (0.5, None)
    """
    n = len(labels)
    if not n:
        return None
    chance = float(np.bincount(labels).max() / n)
    noise = _STANDARD_ERRORS * (chance * (1 - chance) / n) ** 0.5
    margin = max(_SMALL_LEAD * min(chance, 1 - chance), min(noise, (1 - chance) / 2))
    return chance if chance < 1 and accuracy <= chance + margin else None


@dataclass(frozen=True, slots=True)
class Detection:
    """How well scores separate one ID set from one OOD set; all values but sizes are fractions.

    Parameters
    ----------
    fpr95
        False-positive rate at a true-positive rate of 95 %; the convention defines the positive
        class.
    auroc
        Area under the ROC curve: probability that an ID score is above an OOD score, ties counting
        half.
    aupr_in
        Area under the precision-recall curve, ID positive.
    aupr_out
        Area under the precision-recall curve, OOD positive.
    n_id
        Number of ID images; AUPR depends on the ratio of both sizes.
    n_ood
        Number of OOD images; for an average, the sum over its sets.
    """

    fpr95: float
    auroc: float
    aupr_in: float
    aupr_out: float
    n_id: int
    n_ood: int


@dataclass(frozen=True, slots=True)
class Convention:
    """One definition of FPR95 and AUPR. AUROC is the same in all conventions.

    Parameters
    ----------
    name
        Name on the command line and in tables.
    description
        One line for the header of a table.
    positive
        Positive class of FPR95. ``"id"``: the share of OOD images accepted when 95 % of ID images
        are accepted; ``"ood"``: the share of ID images rejected when 95 % of OOD images are.
    rule
        Rule that selects the threshold for 95 %, see :func:`fpr_at_tpr`.
    area
        How AUPR is integrated: as a step sum (average precision), or with the trapezoidal rule from
        a precision of one or zero at zero recall.
    """

    name: str
    description: str
    positive: Positive
    rule: Rule
    area: PrecisionArea


@dataclass(frozen=True, slots=True, eq=False)
class Curve:
    """Numbers of images accepted as positive at every distinct score as the threshold.

    At point 0 no image is accepted, at the last point all; equal scores are accepted together.

    Parameters
    ----------
    true_positives
        Positive images accepted at every point, int64 ``(m + 1,)``, non-decreasing.
    false_positives
        Negative images accepted at every point, int64 ``(m + 1,)``, non-decreasing.
    """

    true_positives: NDArray[np.int64]
    false_positives: NDArray[np.int64]

    @classmethod
    def of(
        cls,
        id_scores: ArrayLike,
        ood_scores: ArrayLike,
        *,
        method: str = _METHOD,
        dataset: str = _DATASET,
    ) -> Self:
        """Build the curve of one ID set and one OOD set, with ID positive.

        Parameters
        ----------
        id_scores
            Scores of ID images, ``(n_id,)``, larger = more ID; of any integer or floating type.
        ood_scores
            Scores of OOD images, ``(n_ood,)``.
        method
            Method that computed the scores, for messages.
        dataset
            Name of the OOD data set, for messages.

        Raises
        ------
        InvalidInputError
            If there are no ID or no OOD scores, or if they are not one-dimensional arrays of finite
            numbers.
        """
        id_array = _checked(id_scores, f"{method} on {dataset}", "ID")
        ood_array = _checked(ood_scores, f"{method} on {dataset}", "OOD")
        merged = np.concatenate([id_array, ood_array])
        order = np.argsort(merged)[::-1]
        descending = merged[order]
        last_of_ties = np.append(descending[1:] != descending[:-1], np.True_)
        accepted = np.flatnonzero(last_of_ties) + 1
        accepted_id = np.cumsum(order < len(id_array), dtype=np.int64)[last_of_ties]
        return cls(
            np.concatenate([[0], accepted_id]), np.concatenate([[0], accepted - accepted_id])
        )

    @property
    def n_positive(self) -> int:
        """Number of positive images."""
        return int(self.true_positives[-1])

    @property
    def n_negative(self) -> int:
        """Number of negative images."""
        return int(self.false_positives[-1])

    @property
    def tied(self) -> float:
        """Share of the images whose score is shared with another image."""
        return _share_of_ties(np.diff(self.true_positives + self.false_positives))

    def flipped(self) -> "Curve":
        """Return the curve of the negated scores, with the other class positive."""
        return Curve(
            self.n_negative - self.false_positives[::-1],
            self.n_positive - self.true_positives[::-1],
        )

    def fpr_at(self, tpr: float, *, rule: Rule) -> float:
        """Return the false-positive rate at a true-positive rate, see :func:`fpr_at_tpr`.

        Raises
        ------
        InvalidInputError
            If ``tpr`` is not above 0 and at most 1.
        UnknownNameError
            If the rule does not exist.
        """
        return float(self.false_positives[self.point_at(tpr, rule=rule)] / self.n_negative)

    def point_at(self, tpr: float, *, rule: Rule) -> int:
        """Return the point that a rule selects for a true-positive rate, see :func:`fpr_at_tpr`.

        Raises
        ------
        InvalidInputError
            If ``tpr`` is not above 0 and at most 1.
        UnknownNameError
            If the rule does not exist.
        """
        if not 0 < tpr <= 1:
            raise InvalidInputError(
                f"a true-positive rate of {tpr} is not possible; give one above 0 and at most 1"
            )
        if rule not in _RULES:
            raise UnknownNameError.among("rule", rule, _RULES)
        # The exact decimal: in floating point, (1 - 0.95) * 10 is above one half.
        return _RULES[rule](self, Fraction(str(tpr)))

    def accepted_at_95(self, convention: "Convention") -> tuple[int, int]:
        """Return how many ID and OOD images are accepted where a convention measures FPR95.

        For a curve with ID positive as from :meth:`of`. With OOD positive, the images that the rule
        does not select as OOD are accepted.
        """
        if convention.positive == "id":
            point = self.point_at(0.95, rule=convention.rule)
        else:
            point = len(self.true_positives) - 1
            point -= self.flipped().point_at(0.95, rule=convention.rule)
        return int(self.true_positives[point]), int(self.false_positives[point])

    def auroc(self) -> float:
        """Return the area under the ROC curve: the share of ordered pairs, ties counting half."""
        # Integers: the sum is exact, independent of the order of the images.
        twice = np.diff(self.false_positives) @ (self.true_positives[1:] + self.true_positives[:-1])
        return float(twice / (2 * self.n_positive * self.n_negative))

    def aupr(self, *, area: PrecisionArea) -> float:
        """Return the area under the precision-recall curve, see :class:`Convention`."""
        precision = self.true_positives[1:] / (self.true_positives[1:] + self.false_positives[1:])
        if area == "average_precision":
            height = precision
        else:
            at_zero_recall = 1.0 if area == "trapezoid_from_one" else 0.0
            height = (precision + np.append(at_zero_recall, precision[:-1])) / 2
        return float(np.sum(np.diff(self.true_positives) * height) / self.n_positive)

    def detection_error(self) -> float:
        """Return the minimum over thresholds of the mean of the miss and false-positive rates.

        References
        ----------
        Liang, Li, Srikant. "Enhancing The Reliability of Out-of-distribution Image Detection in
        Neural Networks". ICLR 2018, arXiv:1706.02690, section 3, with both classes equally likely.
        """
        missed = self.n_positive - self.true_positives
        # In integers, so that the minimum is exact.
        twice = missed * self.n_negative + self.false_positives * self.n_positive
        return float(np.min(twice) / (2 * self.n_positive * self.n_negative))

    def detection(self, convention: Convention) -> Detection:
        """Return all metrics in a convention, for a curve with ID positive as from :meth:`of`."""
        flipped = self.flipped()
        side = self if convention.positive == "id" else flipped
        return Detection(
            fpr95=side.fpr_at(0.95, rule=convention.rule),
            auroc=self.auroc(),
            aupr_in=self.aupr(area=convention.area),
            aupr_out=flipped.aupr(area=convention.area),
            n_id=self.n_positive,
            n_ood=self.n_negative,
        )


def tied_share(scores: ArrayLike) -> float:
    """Return the share of scores ``(n,)`` that occur more than once; 0 for an empty array.

    Examples
    --------
    >>> tied_share([1.0, 1.0, 2.0, 3.0])
    0.5
    """
    return _share_of_ties(np.unique(np.asarray(scores), return_counts=True)[1])


def _share_of_ties(counts: NDArray[np.int64]) -> float:
    """Return the share of tied scores from the counts of all distinct scores."""
    return float(counts[counts > 1].sum() / max(counts.sum(), 1))


def evaluate(
    id_scores: ArrayLike,
    ood_scores: ArrayLike,
    *,
    convention: str | Convention = "neutral",
    method: str = _METHOD,
    dataset: str = _DATASET,
) -> Detection:
    """Compute the metrics of ID and OOD scores.

    To evaluate several conventions with a single sort, use :meth:`Curve.of` and
    :meth:`Curve.detection`.

    Parameters
    ----------
    id_scores
        Scores of ID images, ``(n_id,)``, larger = more ID; of any integer or floating type.
    ood_scores
        Scores of OOD images, ``(n_ood,)``.
    convention
        A convention or its name in :data:`CONVENTIONS`.
    method
        Method that computed the scores, for messages.
    dataset
        Name of the OOD data set, for messages.

    Raises
    ------
    InvalidInputError
        If there are no ID or no OOD scores, or if they are not one-dimensional arrays of finite
        numbers.
    UnknownNameError
        If no convention has this name.

    Examples
    --------
    >>> detection = evaluate([0.9, 0.8, 0.7, 0.4], [0.6, 0.3, 0.2, 0.1])
    >>> detection.auroc, detection.fpr95
    (0.9375, 0.25)
    """
    named = convention if isinstance(convention, Convention) else convention_named(convention)
    return Curve.of(id_scores, ood_scores, method=method, dataset=dataset).detection(named)


def fpr_at_tpr(
    id_scores: ArrayLike,
    ood_scores: ArrayLike,
    *,
    tpr: float = 0.95,
    positive: Positive = "id",
    rule: Rule = "first_ge",
) -> float:
    """Return the false-positive rate at a true-positive rate of ``tpr``.

    Parameters
    ----------
    id_scores
        Scores of ID images, ``(n_id,)``, larger = more ID.
    ood_scores
        Scores of OOD images, ``(n_ood,)``.
    tpr
        True-positive rate, above 0 and at most 1.
    positive
        The positive class; ``"ood"`` uses the negated scores.
    rule
        Rule that selects the threshold for ``tpr``. ``"first_ge"``: the highest threshold with at
        least that recall. ``"nearest"``: the threshold whose recall is nearest to it, above or
        below. ``"rank"``: the positive score at index ``round((1 - tpr) * n)`` in ascending order;
        only negatives strictly above it count.

    Raises
    ------
    InvalidInputError
        If there are no ID or no OOD scores, if they are not one-dimensional arrays of finite
        numbers, or if ``tpr`` is out of range.
    UnknownNameError
        If the rule or the class does not exist.

    Notes
    -----
    With ``"nearest"``, the larger of two equally near recalls is used, and the lowest of all
    thresholds with that recall; for full recall, the highest. With ``"rank"``, halves are rounded
    to the even index, and the index is at most ``n - 1``.

    Examples
    --------
    >>> fpr_at_tpr([4.0, 3.0, 2.0, 1.0], [2.5, 0.5], tpr=0.75)  # the threshold is 2.0
    0.5
    """
    if positive not in ("id", "ood"):
        raise UnknownNameError.among("positive class", positive, ("id", "ood"))
    curve = Curve.of(id_scores, ood_scores)
    return (curve if positive == "id" else curve.flipped()).fpr_at(tpr, rule=rule)


def convention_named(name: str) -> Convention:
    """Return the convention with this name.

    Raises
    ------
    UnknownNameError
        If no convention has this name.

    Examples
    --------
    >>> convention_named("openood").positive
    'ood'
    """
    if name not in CONVENTIONS:
        raise UnknownNameError.among("convention", name, CONVENTIONS)
    return CONVENTIONS[name]


def _checked(scores: ArrayLike, where: str, side: str) -> NDArray[Any]:
    """Return scores as an array with their dtype; raise an error if they cannot be ranked."""
    array = np.asarray(scores)
    if array.ndim != 1 or array.dtype.kind not in "biuf":
        raise InvalidInputError(
            f"{where}: the {side} scores are {array.dtype} of shape {array.shape}; "
            f"give one real number for each image"
        )
    if not len(array):
        raise InvalidInputError(f"{where}: there are no {side} scores; give at least one image")
    finite = np.isfinite(array)
    if not finite.all():
        row = int(np.argmin(finite))
        raise InvalidInputError(
            f"{where}: {np.sum(~finite)} of {len(array)} {side} scores are not finite, the first "
            f"is {array[row]} in row {row}; check the checkpoint and the options of the method"
        )
    return array


def _first_reaching(curve: Curve, tpr: Fraction) -> int:
    """Return the first point with a recall of at least ``tpr``."""
    return int(np.searchsorted(curve.true_positives, ceil(tpr * curve.n_positive)))


def _nearest(curve: Curve, tpr: Fraction) -> int:
    """Return the point with the recall nearest to ``tpr``, searched downwards from full recall."""
    wanted = tpr * curve.n_positive
    reached = _first_reaching(curve, tpr)
    above, below = (int(curve.true_positives[point]) for point in (reached, reached - 1))
    recalled = below if wanted - below < above - wanted else above
    if recalled == curve.n_positive:
        # The search starts at the first point with full recall, not at the last point.
        return int(np.searchsorted(curve.true_positives, recalled))
    return int(np.searchsorted(curve.true_positives, recalled, side="right")) - 1


def _above_rank(curve: Curve, tpr: Fraction) -> int:
    """Return the point that accepts all scores strictly above the positive score of a rank."""
    n = curve.n_positive
    rank = min(round((1 - tpr) * n), n - 1)
    # The score with ascending index r is the first threshold that accepts n - r positives.
    return int(np.searchsorted(curve.true_positives, n - rank)) - 1


_RULES: Mapping[str, Callable[[Curve, Fraction], int]] = MappingProxyType(
    {"first_ge": _first_reaching, "nearest": _nearest, "rank": _above_rank}
)

_CONVENTIONS = (
    Convention(
        "featurenorm",
        "ID positive; FPR95 at the recall nearest to 95 %; AUPR = average precision",
        positive="id",
        rule="nearest",
        area="average_precision",
    ),
    Convention(
        "knn",
        "ID positive; FPR95 strictly above the 5 % rank of ID; AUPR = trapezoid from precision 0",
        positive="id",
        rule="rank",
        area="trapezoid_from_zero",
    ),
    Convention(
        "openood",
        "OOD positive; FPR95 at the first TPR >= 95 %; AUPR = trapezoid from precision 1",
        positive="ood",
        rule="first_ge",
        area="trapezoid_from_one",
    ),
    Convention(
        "neutral",
        "ID positive; FPR95 at the first TPR >= 95 %; AUPR = average precision",
        positive="id",
        rule="first_ge",
        area="average_precision",
    ),
)

CONVENTIONS: Mapping[str, Convention] = MappingProxyType({c.name: c for c in _CONVENTIONS})
"""The conventions by name.

Notes
-----
``featurenorm``: code of Yu et al., CVPR 2023, arXiv:2212.02295. It reports no AUPR with OOD
positive; here this is average precision, too. The published code compares distances from a recall
of 0.95 in floating point, so that a rounding error may decide between two equally near recalls;
here the larger one is used.

``knn``: code of Sun et al., "Out-of-Distribution Detection with Deep Nearest Neighbors", ICML 2022,
arXiv:2204.06507, also used by MODE. There, AUPR is called AUIN and AUOUT.

``openood``: Zhang et al., "OpenOOD v1.5", arXiv:2306.09301. Its ROC function drops points that lie
on a straight line between others. That changes the first point with TPR >= 95 % only where adjacent
thresholds accept the same numbers of tied ID and OOD scores; here all points are used. For the
scores published with SCALE, FPR95 is the same in both cases.

``neutral``: the default of this package. FPR95 is the share of OOD scores at or above the ID score
with ascending index ``floor(0.05 n)``.
"""


def check_finite(method: str, scores: NDArray[np.float64], dataset: str | None = None) -> None:
    """Raise an error if scores are not finite.

    Parameters
    ----------
    method
        Canonical name of the method.
    scores
        Scores, ``(n,)``.
    dataset
        Name of the scored set, if it has one.

    Raises
    ------
    UndefinedMethodError
        If a score is NaN or infinite.
    """
    bad = int((~np.isfinite(scores)).sum())
    if bad:
        of = "" if dataset is None else f" on {dataset}"
        raise UndefinedMethodError(
            f"{method} gives {counted(bad, 'score')}{of} that {'is' if bad == 1 else 'are'} "
            "not finite; check its parameters and the weights of the run"
        )
