"""What all detectors have in common, whatever runs their network: thresholds and verdicts.

This module and all that it imports work without torch, so that screening in ONNX Runtime starts
soon.
"""

from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from functools import cached_property
from typing import TYPE_CHECKING, Any, Literal, Protocol, Self

import numpy as np
from numpy.typing import ArrayLike, NDArray

from oodcli.arguments import naming_arguments
from oodcli.data.incoming import framed
from oodcli.errors import InvalidInputError
from oodcli.screening.conformal import conformal_p_values
from oodcli.screening.given import Images, items_of
from oodcli.screening.judging import Predictions, judge
from oodcli.screening.thresholds import Threshold, ThresholdRule
from oodcli.store.preprocess import Preprocess

_PENDING = "_pending"


@dataclass(frozen=True)
class IdScores:
    """Scores of ID images that the network was not trained on.

    Parameters
    ----------
    values
        The scores in ascending order, float64 ``(n,)``.
    part
        Part of the run's data: ``val`` if it exists, else ``test``.
    data
        Name of the run's data.
    digest
        Digest of the pixels of these images.
    classes
        Index of the class that the network predicts for each of them, int64 ``(n,)``; -1 without a
        classifier.
    features
        Features of a random sample of up to 1,000 of them, float32 ``(k, d)``.
    """

    values: NDArray[np.float64]
    part: str
    data: str
    digest: str
    classes: NDArray[np.int64]
    features: NDArray[np.float32]


@dataclass(frozen=True)
class About:
    """Which network and method a detector consists of.

    Parameters
    ----------
    run
        Name of the run.
    network
        Digest of architecture and weights.
    method
        Canonical name of the method, such as ``knn:k=10``.
    params
        Used value of every parameter, and values determined by fitting.
    precision
        Floating-point type of the forward pass.
    created
        Time of fitting, UTC.
    classes
        Names of the classes, in the order of the logits.
    preprocess
        Preprocessing of images before the network.
    """

    run: str
    network: str
    method: str
    params: Mapping[str, Any]
    precision: str
    created: str
    classes: tuple[str, ...]
    preprocess: Preprocess


@dataclass(frozen=True)
class Outputs:
    """What an engine computes for a batch of images, in their order.

    Parameters
    ----------
    classes
        Index of the predicted class, int64 ``(n,)``; -1 without a classifier.
    probability
        Softmax probability of that class, float64 ``(n,)``; NaN without a classifier.
    score
        Score, float64 ``(n,)``; larger = more in-distribution.
    features
        Input of the last layer, float32 ``(n, d)``; None if the engine does not return it.
    """

    classes: NDArray[np.int64]
    probability: NDArray[np.float64]
    score: NDArray[np.float64]
    features: NDArray[np.float32] | None = None


class Reference(Protocol):
    """How another process finds a detector; it can be pickled, and is small."""

    def load(self) -> "BaseDetector":
        """Load the detector.

        Raises
        ------
        OodError
            If the file or run does not exist any more, or has changed.
        """


@dataclass(frozen=True, eq=False)
class BaseDetector(ABC):
    """A fitted method with a threshold, for judging new images.

    Parameters
    ----------
    about
        Network and method.
    id
        Scores of ID images, for thresholds and percentiles.
    threshold
        Images with at least this score count as in-distribution.
    """

    about: About
    id: IdScores
    threshold: Threshold

    @abstractmethod
    def outputs(
        self, shards: Iterable[NDArray[np.uint8]]
    ) -> AbstractContextManager[Iterator[Outputs]]:
        """Run network and method while the context lasts.

        Parameters
        ----------
        shards
            Batches of images at the size of the network, uint8 ``(n, 3, h, w)``.

        Returns
        -------
        AbstractContextManager
            Gives the results of the batches, in order.

        Raises
        ------
        InvalidInputError
            If activations are not finite, or the device has too little memory.
        """

    @property
    @abstractmethod
    def engine(self) -> str:
        """What runs network and method: ``torch`` or ``onnx``."""

    @property
    def margin(self) -> float:
        """How far from the threshold a score can have another verdict than in torch."""
        return 0.0

    @abstractmethod
    def reference(self) -> Reference:
        """Return how another process finds this detector.

        Raises
        ------
        InvalidInputError
            If it cannot be found there.
        """

    def __reduce__(self) -> tuple[Any, ...]:
        """Pickle the reference; the detector is loaded when it is first used."""
        pending = self.__dict__.get(_PENDING)
        return _pending, (type(self), self.reference() if pending is None else pending)

    if not TYPE_CHECKING:  # a type checker would accept any attribute

        def __getattr__(self, name: str) -> Any:  # noqa: ANN401
            """Load a detector that was unpickled, for its first missing attribute."""
            pending = self.__dict__.get(_PENDING)
            if pending is None or name.startswith("__"):
                raise AttributeError(f"{type(self).__name__} has no attribute {name!r}")
            self.__dict__.update(pending.load().__dict__)
            self.__dict__.pop(_PENDING, None)  # another thread may have loaded it as well
            return getattr(self, name)

    @property
    def method(self) -> str:
        """Canonical name of the method, such as ``knn:k=10``."""
        return self.about.method

    @property
    def classes(self) -> tuple[str, ...]:
        """Names of the classes, in the order of the logits."""
        return self.about.classes

    def score(self, images: Images) -> NDArray[np.float64]:
        """Return one score per image, float64 ``(n,)``; larger = more in-distribution.

        Parameters
        ----------
        images
            As for :meth:`predict`.

        Raises
        ------
        OodError
            As for :meth:`predict`.
        """
        return self.predict(images).score

    def predict(self, images: Images, *, errors: Literal["raise", "row"] = "raise") -> Predictions:
        """Return the predicted class, the score and the OOD verdict of every image.

        Parameters
        ----------
        images
            A path of an image file, the bytes of one, a binary file object, an array, a Pillow
            image or a tensor, or an iterable of these. Images may differ in size; they are resized
            as by the run. A file object is read from its current position to its end. Arrays are
            uint8, one image ``(h, w, 3)`` or several ``(n, h, w, 3)``; if the length of the last
            axis is not 3, ``(3, h, w)`` or ``(n, 3, h, w)``. Tensors are channels first,
            ``(3, h, w)`` or ``(n, 3, h, w)``, uint8, or floating-point from 0 to 1, which is
            rounded to 8 bits. Images must not be normalised. A batch of Ray, Spark or Hugging Face
            is a dictionary with one of the columns ``image``, ``images``, ``img``, ``bytes`` or
            ``content``, and ``path`` for their names, if there are any.
        errors
            What to do if a file, bytes or a Pillow image cannot be read: ``raise`` an error, or
            return a ``row`` with the reason.

        Raises
        ------
        UnreadableImageError
            If an image cannot be read, and ``errors`` is ``raise``.
        InvalidInputError
            If an array, a tensor or another object is not an image, or a score is not finite.
        """
        with naming_arguments():
            if errors not in ("raise", "row"):
                raise InvalidInputError(f"errors must be 'raise' or 'row', not {errors!r}")
            wanted = framed(items_of(images), self.about.preprocess.medical)
            with judge(self, wanted, unreadable=errors) as blocks:
                return Predictions.of(list(blocks), self.classes, self.threshold)

    def near(self, scores: NDArray[np.float64], classes: NDArray[np.int64]) -> int:
        """Return how many scores are so near to their threshold that torch can judge otherwise.

        Parameters
        ----------
        scores, classes
            As for :meth:`p_value`.
        """
        if not self.margin:
            return 0
        return int((np.abs(scores - self.thresholds(classes)) <= self.margin).sum())

    def percentile(self, scores: ArrayLike) -> NDArray[np.float64]:
        """Return the share of ID scores below each score, in percent, ``(n,)``."""
        below = np.searchsorted(self.id.values, np.asarray(scores, dtype=np.float64), side="left")
        return 100 * below / len(self.id.values)

    def p_value(
        self, scores: ArrayLike, classes: NDArray[np.int64] | None = None
    ) -> NDArray[np.float64]:
        """Return the conformal p-value of every score, ``(n,)``; small = unlike ID images.

        See :func:`oodcli.screening.conformal.conformal_p_values`.

        Parameters
        ----------
        scores
            ``(n,)``.
        classes
            Index of the predicted class of every image, ``(n,)``; needed for thresholds by class,
            whose p-values compare with ID images of the same group of classes.
        """
        array = np.asarray(scores, dtype=np.float64)
        if not self.threshold.by_class:
            return conformal_p_values(self.id.values, array)
        groups = self._group_of[self._needed(classes)]
        found = np.empty(len(array))
        own = self._group_of[self.id.classes]
        for group in np.unique(groups):
            mine = groups == group
            found[mine] = conformal_p_values(self.id.values[own == group], array[mine])
        return found

    def thresholds(self, classes: NDArray[np.int64]) -> NDArray[np.float64]:
        """Return the threshold of images by their predicted class, ``(n,)``.

        NaN with a false discovery rate, whose verdicts compare p-values.
        """
        threshold = self.threshold
        if threshold.fdr is not None or not threshold.by_class:
            return np.full(len(classes), threshold.value)
        values = np.array([each.value for each in threshold.by_class], dtype=np.float64)
        return values[self._group_of[classes]]

    def accepts(
        self, scores: ArrayLike, classes: NDArray[np.int64] | None = None
    ) -> NDArray[np.bool_]:
        """Return whether each score counts as in-distribution, ``(n,)``.

        With a false discovery rate, all do until all images are known.

        Parameters
        ----------
        scores, classes
            As for :meth:`p_value`.
        """
        array = np.asarray(scores, dtype=np.float64)
        if self.threshold.fdr is not None:
            return np.ones(len(array), dtype=np.bool_)
        if not self.threshold.by_class:
            return array >= self.threshold.value
        return array >= self.thresholds(self._needed(classes))

    def with_rule(self, rule: ThresholdRule) -> Self:
        """Return the same detector with another threshold.

        Raises
        ------
        InvalidInputError
            If the rule needs more ID images, or a classifier.
        """
        found = rule.on(self.id.values, self.id.classes, self.classes)
        return replace(self, threshold=found)

    @cached_property
    def _group_of(self) -> NDArray[np.int64]:
        """Group of thresholds of every class, ``(k,)``."""
        group = {
            name: number
            for number, each in enumerate(self.threshold.by_class)
            for name in each.classes
        }
        return np.array([group[name] for name in self.classes], dtype=np.int64)

    @staticmethod
    def _needed(classes: NDArray[np.int64] | None) -> NDArray[np.int64]:
        if classes is None:
            raise ValueError("thresholds by class need the predicted classes")
        return classes

    def origin(self) -> dict[str, Any]:
        """Return the origin of a threshold, to be stored with it: method, data and time."""
        about = self.about
        return {
            "run": about.run,
            "network": about.network,
            "method": about.method,
            "params": dict(about.params),
            "precision": about.precision,
            "id_data": self.id.data,
            "id_part": self.id.part,
            "id_images": len(self.id.values),
            "id_digest": self.id.digest,
            "created": about.created,
        }


def _pending(kind: type[BaseDetector], reference: Reference) -> BaseDetector:
    """Return a detector that is loaded when its first attribute is read."""
    made = kind.__new__(kind)
    made.__dict__[_PENDING] = reference
    return made
