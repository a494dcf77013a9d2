"""Activations of a forward pass, and the reference data that methods are fitted on.

A detector never sees a network or an image. It is fitted on a :class:`Reference` (the last layer
and the activations of in-distribution images) and scores :class:`Activations`.
"""

from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any, Literal, TypeVar

import torch
from torch import Tensor

from oodcli.errors import InvalidInputError
from oodcli.probes import Learner, Probe

# Rows per chunk given to detectors: large enough for efficient matrix products, and small enough
# that a chunk of 2,048 features takes 32 MB.
CHUNK_ROWS = 4096

# Names of the linear heads that objectives leave in the weights; see :attr:`Head.kept`.
ROTATION, CONFIDENCE, DIVISOR = "rotation", "confidence", "divisor"
BACKGROUND = "background"

CORE = ("logits", "features", "block_norms", "predictions")

_T = TypeVar("_T")


def _once(made: dict[Hashable, Any], key: Hashable, make: Callable[[], _T]) -> _T:
    if key not in made:
        made[key] = make()
    return made[key]


@dataclass(frozen=True, slots=True)
class Activations:
    """Activations of ``n`` images, aligned by row; treated as read-only.

    Parameters
    ----------
    logits
        Output of the last layer for the features, ``(n, k)``; ``k`` is 0 without a classifier.
    features
        Input of the last layer, ``(n, d)``.
    block_norms
        FeatureNorm of every block, ``(n, b)``.
    predictions
        Class that the classifier predicts for every image, int64 ``(n,)``; -1 without a classifier.
    extra
        Further arrays of ``n`` rows, by name.

    Raises
    ------
    ValueError
        If the arrays do not have the same number of rows.
    """

    logits: Tensor
    features: Tensor
    block_norms: Tensor
    predictions: Tensor
    extra: Mapping[str, Tensor] = field(default_factory=dict)
    _made: dict[Hashable, Any] = field(default_factory=dict, init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        rows = {name: len(values) for name, values in self.arrays().items()}
        if len(set(rows.values())) != 1:
            raise ValueError(f"activations of different lengths: {rows}")

    def __len__(self) -> int:
        return len(self.logits)

    def arrays(self) -> dict[str, Tensor]:
        """Return all arrays by name."""
        return {
            "logits": self.logits,
            "features": self.features,
            "block_norms": self.block_norms,
            "predictions": self.predictions,
            **self.extra,
        }

    @classmethod
    def of(cls, arrays: Mapping[str, Tensor]) -> "Activations":
        """Build activations from arrays by name; the inverse of :meth:`arrays`.

        Raises
        ------
        KeyError
            If one of the arrays in ``CORE`` is missing.
        """
        extra = {name: values for name, values in arrays.items() if name not in CORE}
        logits, features, block_norms, predictions = (arrays[name] for name in CORE)
        return cls(logits, features, block_norms, predictions, extra=extra)

    def once(self, key: Hashable, make: Callable[[], _T]) -> _T:
        """Return the cached result of ``make`` for these rows, shared by all detectors.

        Parameters
        ----------
        key
            Identifies the result and its parameters.
        make
            Computes the result on the first call; the result is treated as read-only.
        """
        return _once(self._made, key, make)

    def map(self, change: Callable[[Tensor], Tensor]) -> "Activations":
        """Return activations with ``change`` applied to every array."""
        return Activations(
            change(self.logits),
            change(self.features),
            change(self.block_norms),
            change(self.predictions),
            extra={name: change(values) for name, values in self.extra.items()},
        )


@dataclass(frozen=True)
class ActivationShard:
    """Activations of one shard of images, read on demand.

    Parameters
    ----------
    rows
        Number of images.
    load
        Function that reads the activations.
    """

    rows: int
    load: Callable[[], Activations]


class ActivationSet:
    """Activations of a whole image set, read shard by shard.

    Use :meth:`chunks` in general: a million rows need no more memory than one shard. A property
    such as :attr:`features` reads one array for all rows.

    Parameters
    ----------
    shards
        The shards in row order.
    device
        Device on which the activations are returned.
    """

    def __init__(
        self, shards: Sequence[ActivationShard], device: torch.device | str = "cpu"
    ) -> None:
        self._shards = tuple(shards)
        self._device = torch.device(device)

    def __len__(self) -> int:
        return sum(shard.rows for shard in self._shards)

    @property
    def device(self) -> torch.device:
        """Device on which the activations are returned."""
        return self._device

    def chunks(self, rows: int = CHUNK_ROWS) -> Iterator[Activations]:
        """Yield the activations in row order, in chunks of whole shards.

        Parameters
        ----------
        rows
            Shards are joined into chunks of at most this many rows; a larger shard is one chunk.
        """
        waiting: list[Activations] = []
        for shard in self._shards:
            if waiting and sum(map(len, waiting)) + shard.rows > rows:
                yield _joined(waiting, self._device)
                waiting = []
            waiting.append(shard.load())
        if waiting:
            yield _joined(waiting, self._device)

    def column(self, name: str) -> Tensor:
        """Return one array for all rows, by its name in :class:`Activations`."""
        return torch.cat([shard.load().arrays()[name].to(self._device) for shard in self._shards])

    @cached_property
    def logits(self) -> Tensor:
        """Logits of all rows, ``(n, k)``."""
        return self.column("logits")

    @cached_property
    def features(self) -> Tensor:
        """Features of all rows, ``(n, d)``."""
        return self.column("features")

    @cached_property
    def block_norms(self) -> Tensor:
        """Block norms of all rows, ``(n, b)``."""
        return self.column("block_norms")

    @cached_property
    def predictions(self) -> Tensor:
        """Predicted classes of all rows, ``(n,)``."""
        return self.column("predictions")

    @classmethod
    def joined(
        cls,
        sets: Sequence["ActivationSet"],
        join: Callable[[Sequence[Activations]], Activations],
    ) -> "ActivationSet":
        """Return a set whose shards are made of the same shard of several sets, when read.

        Parameters
        ----------
        sets
            Activations of the same images, by several networks; at least one.
        join
            Makes one shard of those of the sets.

        Raises
        ------
        ValueError
            If their shards do not have the same numbers of rows.
        """
        rows = [[shard.rows for shard in each._shards] for each in sets]  # noqa: SLF001 - own class
        if any(counts != rows[0] for counts in rows):
            raise ValueError(f"shards of different lengths: {rows}")

        def loader(shards: Sequence[ActivationShard]) -> ActivationShard:
            return ActivationShard(shards[0].rows, lambda: join([shard.load() for shard in shards]))

        every = zip(*(each._shards for each in sets), strict=True)  # noqa: SLF001 - own class
        return cls([loader(shards) for shards in every], sets[0].device)

    @classmethod
    def of(cls, activations: Activations, device: torch.device | str = "cpu") -> "ActivationSet":
        """Wrap activations that are already in memory."""
        return cls([ActivationShard(len(activations), lambda: activations)], device)


def _joined(parts: Sequence[Activations], device: torch.device) -> Activations:
    arrays = [part.arrays() for part in parts]
    joined = {
        name: (arrays[0][name] if len(arrays) == 1 else torch.cat([a[name] for a in arrays])).to(
            device
        )
        for name in arrays[0]
    }
    return Activations.of(joined)


@dataclass(frozen=True, slots=True)
class Head:
    """The last linear layer: ``logits = features @ weight.T + bias``.

    Parameters
    ----------
    weight
        ``(k, d)``; no rows of a network without a classifier.
    bias
        ``(k,)``.
    tau
        Temperature that divides the features before this layer; ``weight`` already includes the
        division. It is 1 unless the classifier was trained on normalised features (T2FNorm).
    scale
        Logit scale of a zero-shot classifier: features are unit vectors, and the rows of ``weight``
        are unit text embeddings times this number. None for a layer that was trained.
    kept
        Weight ``(o, d)`` and bias ``(o,)`` of further linear heads on the features that an
        objective has left in the weights, by name; see :mod:`oodcli.models.heads`.
    """

    weight: Tensor
    bias: Tensor
    tau: float = 1.0
    scale: float | None = None
    kept: Mapping[str, tuple[Tensor, Tensor]] = field(default_factory=dict)

    def __call__(self, features: Tensor) -> Tensor:
        """Return the logits ``(n, k)`` of features ``(n, d)``."""
        return features @ self.weight.T + self.bias

    def to(self, device: torch.device | str) -> "Head":
        """Return the same layer on ``device``."""
        kept = {name: (w.to(device), b.to(device)) for name, (w, b) in self.kept.items()}
        return replace(self, weight=self.weight.to(device), bias=self.bias.to(device), kept=kept)

    @property
    def texts(self) -> Tensor:
        """Text embeddings of the classes of a zero-shot classifier, unit vectors ``(k, d)``.

        Raises
        ------
        ValueError
            If the layer was trained.
        """
        if self.scale is None:
            raise ValueError("a trained layer has no text embeddings")
        return self.weight / self.scale

    def cosines(self, logits: Tensor) -> Tensor:
        """Return the cosines between features and text embeddings, ``(n, k)``, float64.

        Parameters
        ----------
        logits
            Of a zero-shot classifier, ``(n, k)``.

        Raises
        ------
        ValueError
            If the layer was trained.
        """
        if self.scale is None:
            raise ValueError("a trained layer has no text embeddings")
        return (logits.double() - self.bias.double()) / self.scale


@dataclass(frozen=True)
class Words:
    """Text embeddings of words that name no class of a zero-shot classifier.

    Parameters
    ----------
    embeddings
        Unit vectors, ``(m, d)``, list after list.
    counts
        How many words each list has.
    """

    embeddings: Tensor
    counts: tuple[int, ...]

    def to(self, device: torch.device | str) -> "Words":
        """Return the same embeddings on ``device``."""
        return replace(self, embeddings=self.embeddings.to(device))


def predicted(logits: Tensor) -> Tensor:
    """Return the class of the largest logit, int64 ``(n,)``; -1 of a network without a classifier.

    Parameters
    ----------
    logits
        ``(n, k)``.

    Examples
    --------
    >>> predicted(torch.tensor([[0.0, 2.0]])), predicted(torch.zeros(1, 0))
    (tensor([1]), tensor([-1]))
    """
    if logits.shape[1] == 0:
        return logits.new_full(logits.shape[:1], -1, dtype=torch.int64)
    return logits.argmax(dim=1)


Part = Literal["train", "calibration"]


def _unavailable(what: str) -> Callable[..., Any]:
    def load(*_: object) -> Any:  # noqa: ANN401 - stands in for loaders of several types
        raise InvalidInputError(f"this method needs {what}, and there are none here")

    return load


@dataclass(frozen=True)
class Reference:
    """Everything that a detector may be fitted on; each part is loaded on first access.

    It contains no OOD data: a detector cannot be fitted on the data it is tested on.

    Parameters
    ----------
    head
        The last layer, on the device of the activations.
    load_train
        Returns the activations of the ID training images, without augmentation.
    load_labels
        Returns the class of every training image, ``(n,)``.
    load_jigsaw
        Returns the block norms of jigsaw puzzles of the same images, in the same order.
    load_jigsaw_features
        Returns the activations of the same puzzles, with features.
    load_calibration
        Returns the activations of the ID images that thresholds are calibrated on.
    load_calibration_labels
        Returns the class of every calibration image, ``(n,)``.
    load_probed
        Returns the activations of a part with the array of a probe in their ``extra``, for all rows
        or for the given ones.
    load_state
        Returns the state of a learner over all training images, or over the given rows.
    load_words
        Returns the negative words of a zero-shot classifier; None where there are none.
    load_block_widths
        Returns the number of channels of every block, in forward order.
    n_blocks
        Number of blocks of the network.
    """

    head: Head
    load_train: Callable[[], ActivationSet] = field(
        default_factory=lambda: _unavailable("training images")
    )
    load_labels: Callable[[], Tensor] = field(
        default_factory=lambda: _unavailable("labels of training images")
    )
    load_jigsaw: Callable[[], ActivationSet] = field(
        default_factory=lambda: _unavailable("jigsaw puzzles of training images")
    )
    load_jigsaw_features: Callable[[], ActivationSet] = field(
        default_factory=lambda: _unavailable("features of jigsaw puzzles of training images")
    )
    load_calibration: Callable[[], ActivationSet] = field(
        default_factory=lambda: _unavailable("calibration images")
    )
    load_calibration_labels: Callable[[], Tensor] = field(
        default_factory=lambda: _unavailable("labels of calibration images")
    )
    load_probed: Callable[[Part, Probe, Tensor | None], ActivationSet] = field(
        default_factory=lambda: _unavailable("the network itself and images")
    )
    load_state: Callable[[Learner, Tensor | None], Mapping[str, Tensor]] = field(
        default_factory=lambda: _unavailable("the network itself and training images")
    )
    load_words: Callable[[], Words | None] = lambda: None
    load_block_widths: Callable[[], tuple[int, ...]] = field(
        default_factory=lambda: _unavailable("the network itself")
    )
    n_blocks: int = 0
    _made: dict[Hashable, Any] = field(default_factory=dict, init=False, repr=False, compare=False)

    @cached_property
    def train(self) -> ActivationSet:
        """Activations of the ID training images."""
        return self.load_train()

    @cached_property
    def labels(self) -> Tensor:
        """Class of every training image, ``(n,)``."""
        return self.load_labels()

    @cached_property
    def classes(self) -> int:
        """Number of classes: those of the last layer, or without a classifier of the labels."""
        return len(self.head.weight) or 1 + max(self.labels.tolist(), default=-1)

    @cached_property
    def jigsaw(self) -> ActivationSet:
        """Block norms of jigsaw puzzles of the training images."""
        return self.load_jigsaw()

    @cached_property
    def jigsaw_features(self) -> ActivationSet:
        """Activations of jigsaw puzzles of the training images, with features."""
        return self.load_jigsaw_features()

    @cached_property
    def block_widths(self) -> tuple[int, ...]:
        """Number of channels of every block, in forward order."""
        return self.load_block_widths()

    @cached_property
    def calibration(self) -> ActivationSet:
        """Activations of the ID images that thresholds are calibrated on."""
        return self.load_calibration()

    @cached_property
    def calibration_labels(self) -> Tensor:
        """Class of every calibration image, ``(n,)``."""
        return self.load_calibration_labels()

    @cached_property
    def words(self) -> Words | None:
        """Negative words of a zero-shot classifier; None where there are none."""
        return self.load_words()

    def probed(self, part: Part, probe: Probe, *, rows: Tensor | None = None) -> ActivationSet:
        """Return the activations of a part with the array of a probe in their ``extra``.

        Parameters
        ----------
        part
            ``train`` or ``calibration``.
        probe
            The probe.
        rows
            Row numbers of the images, ``(m,)``; all if None.
        """
        return self.load_probed(part, probe, rows)

    def learned(self, learner: Learner, *, rows: Tensor | None = None) -> Mapping[str, Tensor]:
        """Return the state that a learner computes from the training images.

        Parameters
        ----------
        learner
            The learner.
        rows
            Row numbers of the images, ``(m,)``; all if None.
        """
        return self.load_state(learner, rows)

    def once(self, key: Hashable, make: Callable[[], _T]) -> _T:
        """Return the cached result of ``make`` for this reference, shared by all detectors.

        Parameters
        ----------
        key
            Identifies the result and its parameters.
        make
            Computes the result on the first call; the result is treated as read-only.
        """
        return _once(self._made, key, make)
