"""Thresholds: the minimum score of in-distribution images, set by a share or directly."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from fractions import Fraction
from numbers import Real
from typing import Any

import numpy as np
from numpy.typing import NDArray

from oodcli.errors import InvalidInputError
from oodcli.records import as_json
from oodcli.screening.conformal import PValueCounts
from oodcli.text import printable

TPR = 0.95
_NAMED = 10


@dataclass(frozen=True)
class ClassThreshold:
    """The threshold of images that the network assigns to some classes.

    Parameters
    ----------
    classes
        Names of the predicted classes; more than one if classes have too few ID images for a
        threshold of their own.
    value
        The minimum score; None if verdicts compare p-values (``--fdr``).
    n
        Number of ID images of these predicted classes.
    below
        Number of them below the threshold.
    """

    classes: tuple[str, ...]
    value: float | None
    n: int
    below: int


@dataclass(frozen=True)
class Threshold:
    """The minimum score of images that count as in-distribution.

    Parameters
    ----------
    value
        The score; NaN (JSON: null) with ``fdr``, whose verdicts compare p-values. With
        ``by_class``, that of all ID images together.
    tpr
        Share of ID images with at least that score.
    n
        Number of ID scores that determine the threshold.
    below
        Number of them below the threshold.
    given
        Whether the threshold was given, not derived from a rate.
    stderr
        Standard error of the score; None for a given one, and with ``fdr``.
    share_stderr
        Standard error of the share of other ID images with at least that score; None for a given
        one, and with ``fdr``.
    false_alarms
        The promised rate of false alarms; None if not asked for.
    fdr
        The promised false discovery rate; None if not asked for.
    p_cutoff
        With ``fdr``, the largest p-value of an OOD image; None as long as not all images are known,
        and if there is no discovery.
    by_class
        The thresholds of the predicted classes; empty without ``--per-class``.
    """

    value: float
    tpr: float
    n: int
    below: int
    given: bool = False
    stderr: float | None = None
    share_stderr: float | None = None
    false_alarms: float | None = None
    fdr: float | None = None
    p_cutoff: float | None = None
    by_class: tuple[ClassThreshold, ...] = ()

    @property
    def text(self) -> str:
        """What it is, what it accepts and what it promises, for tables."""
        if self.fdr is not None:
            return f"a false discovery rate of {100 * self.fdr:.2f} %"
        text = f"{self.value:.6g}, accepts {100 * self.tpr:.2f} % of {self.n:,} ID images"
        if self.false_alarms is not None:
            rate = f"{100 * self.false_alarms:.2f} %"
            text += f"; on average at most {rate} of new ID images are flagged"
        return text if not self.by_class else f"{text}; one for each predicted class"

    def to_json(self) -> dict[str, Any]:
        """Return the fields as a JSON object."""
        fields = {name: getattr(self, name) for name in self.__dataclass_fields__}
        return fields | {
            "value": None if math.isnan(self.value) else self.value,
            "by_class": [as_json(each) for each in self.by_class],
        }

    @classmethod
    def from_json(cls, content: Mapping[str, Any]) -> "Threshold":
        """Return the threshold that :meth:`to_json` wrote; missing fields have their defaults.

        Raises
        ------
        TypeError, KeyError
            If a field is missing or unknown.
        """
        parts = (
            ClassThreshold(**{**each, "classes": tuple(each["classes"])})
            for each in content.get("by_class", ())
        )
        value = math.nan if content["value"] is None else content["value"]
        return cls(**{**content, "value": value, "by_class": tuple(parts)})


@dataclass(frozen=True)
class ThresholdRule:
    """The rule for verdicts: a share of accepted ID images, a fixed score, or a promised rate.

    Parameters
    ----------
    tpr
        Share of ID images to accept, above 0 and at most 1; 0.95 if nothing is given.
    threshold
        The fixed score.
    false_alarms
        Rate of false alarms: images with a conformal p-value of at most this are OOD.
    fdr
        False discovery rate: the Benjamini-Hochberg procedure over all images decides.
    per_class
        Whether ID images of the same predicted class are the reference of an image, not all.

    Raises
    ------
    InvalidInputError
        If more than one is given, one is not a number or out of range, or a fixed score is to
        depend on the class.

    Examples
    --------
    >>> ThresholdRule(tpr=0.75).on(np.array([1.0, 2.0, 3.0, 4.0])).value
    2.0
    >>> ThresholdRule(threshold=2.5).on(np.array([1.0, 2.0, 3.0, 4.0])).tpr
    0.5
    >>> ThresholdRule(false_alarms=0.5).on(np.array([1.0, 2.0, 3.0])).value
    2.0
    """

    tpr: float | None = None
    threshold: float | None = None
    false_alarms: float | None = None
    fdr: float | None = None
    per_class: bool = False

    def __post_init__(self) -> None:
        values = {
            "--tpr": self.tpr, "--threshold": self.threshold,
            "--false-alarms": self.false_alarms, "--fdr": self.fdr,
        }  # fmt: skip
        given = [option for option, value in values.items() if value is not None]
        if len(given) > 1:
            both = "both" if len(given) == 2 else "all"
            named = ", ".join(given[:-1]) + f" and {given[-1]}"
            raise InvalidInputError(f"{named} {both} set the threshold; give one of them")
        for option, value in values.items():
            if not isinstance(value, Real | None):  # callers from Python may give anything
                raise InvalidInputError(f"{option} must be a number, not {value!r}")
        if self.tpr is not None and not 0 < self.tpr <= 1:
            raise InvalidInputError(f"--tpr must be above 0 and at most 1, not {self.tpr:g}")
        for option, rate in (("--false-alarms", self.false_alarms), ("--fdr", self.fdr)):
            if rate is not None and not 0 < rate < 1:
                raise InvalidInputError(f"{option} must be above 0 and below 1, not {rate:g}")
        if self.threshold is not None and not math.isfinite(self.threshold):
            raise InvalidInputError(f"--threshold must be a finite number, not {self.threshold}")
        if self.per_class and self.threshold is not None:
            raise InvalidInputError(
                "--per-class gives every predicted class its own threshold, --threshold the same "
                "to all; give one of them"
            )

    @property
    def needed(self) -> int:
        """Number of ID images from which on an image can be OOD; 1 if a threshold needs none.

        The smallest p-value of ``n`` ID images is ``1 / (n + 1)``.
        """
        if self.false_alarms is None and self.fdr is None and self.threshold is None:
            rate = 1 - Fraction(str(TPR if self.tpr is None else self.tpr))
        else:
            rate = Fraction(str(self.false_alarms or self.fdr or 1))
        return max(1, math.ceil(1 / rate) - 1) if rate else 1

    def on(
        self,
        id_scores: NDArray[np.float64],
        classes: NDArray[np.int64] | None = None,
        names: Sequence[str] = (),
    ) -> Threshold:
        """Return the threshold for a detector.

        Parameters
        ----------
        id_scores
            Scores of ID images, ascending, float64, ``(n,)``, at least one.
        classes
            Index of the predicted class of each, int64 ``(n,)``; needed for ``per_class``.
        names
            Names of the classes, in the order of their indices; needed for ``per_class``.

        Raises
        ------
        InvalidInputError
            If there are too few ID images for the promised rate, or no classes for ``per_class``.

        References
        ----------
        Vovk, Gammerman, Shafer, 2005, and Bates et al., 2023, as in
        :mod:`oodcli.screening.conformal`.

        Notes
        -----
        For a share ``p``, the threshold is the highest score that at least this share of the ID
        images reaches, as in :func:`oodcli.metrics.fpr_at_tpr` with the rule ``first_ge``. The
        number of ``n`` ID scores below the true quantile has the standard deviation
        ``s = sqrt(n p (1 - p))``; the standard error of the threshold is half the difference of the
        scores ``s`` ranks above and below it. The standard error of the share of other ID images is
        ``sqrt(p (1 - p) / n)``.

        For a rate of false alarms ``a``, it is the ``floor(a (n + 1))``-th smallest ID score: a
        score is below it exactly if its conformal p-value is at most ``a``. A new ID image is then
        OOD with a probability of at most ``a``, over the draw of the ID images and of the new one.
        The threshold for the share ``1 - a`` is the next larger ID score in most cases, for which
        this probability is up to ``(floor(a n) + 1) / (n + 1)``, more than ``a``. For given ID
        images the rate is a draw from Beta(k, n + 1 - k), ``k = floor(a (n + 1))``: its standard
        deviation is about ``sqrt(a (1 - a) / n)``.
        """
        if self.threshold is not None:
            return _given(self.threshold, id_scores)
        n = len(id_scores)
        if n < self.needed and (self.false_alarms is not None or self.fdr is not None):
            option = "--fdr" if self.false_alarms is None else "--false-alarms"
            rate = self.fdr if self.false_alarms is None else self.false_alarms
            raise InvalidInputError(
                f"{option} {rate:g} needs {self.needed:,} ID images that the network was not "
                f"trained on, and this detector has {n:,}: no p-value is below 1/{n + 1:,}; give "
                f"at least {option} {_rounded_up(1 / (n + 1))}, or a run with more validation "
                "images"
            )
        whole = self._pooled(id_scores)
        if not self.per_class:
            return whole
        if classes is None or not names or (classes < 0).any():
            raise InvalidInputError(
                "--per-class needs a network with a classifier, whose predicted classes it "
                "distinguishes; leave it out"
            )
        return self._by_class(whole, id_scores, np.asarray(names)[classes], names)

    def _pooled(self, scores: NDArray[np.float64]) -> Threshold:
        n = len(scores)
        if self.fdr is not None:
            return Threshold(math.nan, 1.0, n, 0, fdr=self.fdr)
        if self.false_alarms is None:
            return _reached_by(TPR if self.tpr is None else self.tpr, scores)
        rank = math.floor(Fraction(str(self.false_alarms)) * (n + 1)) - 1
        return _at_rank(rank, 1 - self.false_alarms, scores, false_alarms=self.false_alarms)

    def _by_class(
        self,
        whole: Threshold,
        scores: NDArray[np.float64],
        predicted: NDArray[np.str_],
        names: Sequence[str],
    ) -> Threshold:
        """Return the thresholds of all classes, and of all ID images the numbers below them."""
        parts = []
        for group in categories(predicted, names, self.needed):
            own = scores[np.isin(predicted, group)]
            found = self._pooled(own)
            value = None if math.isnan(found.value) else found.value
            parts.append(ClassThreshold(group, value, found.n, found.below))
        below = sum(each.below for each in parts)
        return replace(whole, below=below, tpr=1 - below / len(scores), by_class=tuple(parts))


DEFAULT_RULE = ThresholdRule()


def joined_classes(threshold: Threshold, rule: ThresholdRule) -> str | None:
    """Return a note on the classes that share a threshold; None if none do.

    Parameters
    ----------
    threshold
        The threshold.
    rule
        The rule that was asked for; not by class, if the threshold is that of a file.
    """
    joined = [each for each in threshold.by_class if len(each.classes) > 1]
    if not joined:
        return None
    (group,) = joined
    promised = ThresholdRule(false_alarms=threshold.false_alarms, fdr=threshold.fdr)
    known = rule if rule.per_class else None if promised == DEFAULT_RULE else promised
    needed = "more" if known is None else f"{known.needed:,}"
    named = ", ".join(map(printable, group.classes[:_NAMED]))
    more = f" and {len(group.classes) - _NAMED:,} more" if len(group.classes) > _NAMED else ""
    return (
        f"a threshold by class needs {needed} ID images of each predicted class; "
        f"{len(group.classes):,} classes with fewer, or joined to these, share one from "
        f"{group.n:,} images: {named}{more}"
    )


def decided(threshold: Threshold, p_values: PValueCounts) -> Threshold:
    """Return a threshold with a false discovery rate, now that all p-values are known."""
    assert threshold.fdr is not None
    n, cutoff = threshold.n, p_values.cutoff(threshold.fdr)
    below = 0 if cutoff is None else math.floor(cutoff * (n + 1) + 1e-6) - 1
    return replace(threshold, tpr=1 - below / n, below=below, p_cutoff=cutoff)


def categories(
    predicted: NDArray[np.str_], names: Sequence[str], needed: int
) -> list[tuple[str, ...]]:
    """Return the classes that share a threshold, every class in one group.

    Parameters
    ----------
    predicted
        Names of the predicted classes of the ID images, ``(n,)``.
    names
        Names of all classes; classes with the same name are one.
    needed
        Number of ID images that a threshold needs.

    References
    ----------
    Vovk, Gammerman, Shafer, 2005, section 4.5: Mondrian conformal prediction, whose categories may
    depend on the image in any way that is fixed before its score is compared; here it is the
    predicted class, since the label of a new image is unknown.

    Notes
    -----
    A class with fewer ID images than ``needed`` has no threshold of its own. All such classes are
    joined, and if these together have too few, so are the next smallest ones. With the threshold
    of all ID images instead, such classes would have more false alarms than promised. The groups
    depend on the numbers of ID images, not on their scores.

    Examples
    --------
    >>> predicted = np.array(["cat"] * 20 + ["dog"] * 30 + ["eel"] * 2)
    >>> categories(predicted, ["cat", "dog", "eel", "fox"], 19)
    [('dog',), ('cat', 'eel', 'fox')]
    """
    order = {name: number for number, name in reversed(list(enumerate(names)))}
    counts = dict.fromkeys(order, 0)
    for name, count in zip(*np.unique(predicted, return_counts=True), strict=True):
        counts[str(name)] = int(count)
    rising = sorted(counts, key=lambda name: (counts[name], -order[name]))
    small, images = 0, 0
    while small < len(rising) and (counts[rising[small]] < needed or 0 < images < needed):
        images += counts[rising[small]]
        small += 1
    if small and not images:  # classes without a single ID image need those of another one
        images, small = images + counts.get(rising[small], 0), small + 1
    groups: list[tuple[str, ...]] = [(name,) for name in rising[small:]]
    if small:
        groups.append(tuple(rising[:small]))
    return sorted(
        (tuple(sorted(group, key=order.__getitem__)) for group in groups),
        key=lambda group: (len(group) > 1, order[group[0]]),
    )


def _given(value: float, scores: NDArray[np.float64]) -> Threshold:
    n = len(scores)
    below = int(np.searchsorted(scores, value, side="left"))
    return Threshold(value, 1 - below / n, n, below, given=True)


def _reached_by(tpr: float, scores: NDArray[np.float64]) -> Threshold:
    n = len(scores)
    return _at_rank(n - math.ceil(Fraction(str(tpr)) * n), tpr, scores)


def _at_rank(
    rank: int, tpr: float, scores: NDArray[np.float64], *, false_alarms: float | None = None
) -> Threshold:
    """Return the threshold at the score of a rank from 0, with its standard errors."""
    n = len(scores)
    spread = math.sqrt(n * tpr * (1 - tpr))
    low, high = max(rank - spread, 0.0), min(rank + spread, n - 1.0)
    stderr = 0.0
    if high > low:
        ends = np.interp([low, high], np.arange(n), scores)
        # If one side has fewer ranks, the difference is extrapolated from the available ranks.
        stderr = float(ends[1] - ends[0]) / (high - low) * spread
    return Threshold(
        float(scores[rank]),
        tpr if false_alarms is None else 1 - rank / n,
        n,
        rank,
        stderr=stderr,
        share_stderr=math.sqrt(tpr * (1 - tpr) / n),
        false_alarms=false_alarms,
    )


def _rounded_up(rate: float) -> str:
    """Return a rate in three decimal digits that is not smaller."""
    digits = 10 ** (2 - math.floor(math.log10(rate)))
    return f"{math.ceil(round(rate * digits, 6)) / digits:g}"
