"""What one forward pass leaves behind, and what a detector may learn from.

A detector never sees a network or an image. It is fitted on a :class:`Reference` (the last layer
and activations of in-distribution images) and scores :class:`Activations`.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property

import torch
from torch import Tensor

from oodcli.errors import InvalidInputError


@dataclass(frozen=True, slots=True)
class Activations:
    """Activations of ``n`` images, aligned by row; never written to.

    Parameters
    ----------
    logits
        Output of the last layer for the features, ``(n, k)``.
    features
        Input of the last layer, ``(n, d)``.
    block_norms
        FeatureNorm of every block, ``(n, b)``.
    predictions
        Predicted class of every image by the classifier's own forward pass, ``(n,)``.
    extra
        Further arrays of ``n`` rows by name.

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

    def __post_init__(self) -> None:
        rows = {name: len(values) for name, values in self.arrays().items()}
        if len(set(rows.values())) != 1:
            raise ValueError(f"activations of different lengths: {rows}")

    def __len__(self) -> int:
        return len(self.logits)

    def arrays(self) -> dict[str, Tensor]:
        """Return every array under its name."""
        return {
            "logits": self.logits,
            "features": self.features,
            "block_norms": self.block_norms,
            "predictions": self.predictions,
            **self.extra,
        }

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
    """Activations of one shard of images, read when asked for.

    Parameters
    ----------
    rows
        Number of images.
    load
        Reads the activations.
    """

    rows: int
    load: Callable[[], Activations]


class ActivationSet:
    """Activations of a whole image set, read shard by shard.

    :meth:`chunks` is the ordinary way in: a million rows cost no more memory than one shard. A
    property such as :attr:`features` reads one array of all rows.

    Parameters
    ----------
    shards
        The shards in row order.
    """

    def __init__(self, shards: Sequence[ActivationShard]) -> None:
        self._shards = tuple(shards)

    def __len__(self) -> int:
        return sum(shard.rows for shard in self._shards)

    def chunks(self, device: torch.device | str = "cpu") -> Iterator[Activations]:
        """Yield the activations in row order, on ``device``."""
        for shard in self._shards:
            yield shard.load().map(lambda values: values.to(device))

    def column(self, name: str) -> Tensor:
        """Return one array of all rows, by the name it has in :class:`Activations`."""
        return torch.cat([chunk.arrays()[name] for chunk in self.chunks()])

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
    def of(cls, activations: Activations) -> "ActivationSet":
        """Wrap activations that are in memory already."""
        return cls([ActivationShard(len(activations), lambda: activations)])


@dataclass(frozen=True, slots=True)
class Head:
    """The last linear layer: ``logits = features @ weight.T + bias``.

    Parameters
    ----------
    weight
        ``(k, d)``.
    bias
        ``(k,)``.
    """

    weight: Tensor
    bias: Tensor

    def __call__(self, features: Tensor) -> Tensor:
        """Return the logits ``(n, k)`` of features ``(n, d)``."""
        return features @ self.weight.T + self.bias

    def to(self, device: torch.device | str) -> "Head":
        """Return the same layer on ``device``."""
        return Head(self.weight.to(device), self.bias.to(device))


def _absent(what: str) -> Callable[[], ActivationSet]:
    def load() -> ActivationSet:
        raise InvalidInputError(f"this method needs {what}, and this data set has none")

    return load


@dataclass(frozen=True)
class Reference:
    """All that a detector may learn from; each part is made when it is first touched.

    It holds no OOD data: a detector cannot be fitted on what it will be tested on.

    Parameters
    ----------
    head
        The last layer.
    load_train
        Makes the activations of the ID training images, without augmentation.
    load_jigsaw
        Makes the activations of jigsaw puzzles of the same images, in the same order.
    load_calibration
        Makes the activations of the ID images that thresholds are set on.
    labels
        Class of every training image, ``(n,)``.
    n_blocks
        Number of blocks of the network.
    """

    head: Head
    load_train: Callable[[], ActivationSet] = field(
        default_factory=lambda: _absent("training images")
    )
    load_jigsaw: Callable[[], ActivationSet] = field(
        default_factory=lambda: _absent("jigsaw puzzles of training images")
    )
    load_calibration: Callable[[], ActivationSet] = field(
        default_factory=lambda: _absent("calibration images")
    )
    labels: Tensor | None = None
    n_blocks: int = 0

    @cached_property
    def train(self) -> ActivationSet:
        """Activations of the ID training images."""
        return self.load_train()

    @cached_property
    def jigsaw(self) -> ActivationSet:
        """Activations of jigsaw puzzles of the training images."""
        return self.load_jigsaw()

    @cached_property
    def calibration(self) -> ActivationSet:
        """Activations of the ID images that thresholds are set on."""
        return self.load_calibration()
