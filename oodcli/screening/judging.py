"""The one screening pass: images in, what a detector says of each of them out, in order.

Images are decoded and resized ahead of the network, in threads; memory does not grow with the
number of images.
"""

import contextlib
import itertools
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from numpy.typing import NDArray

from oodcli.activations import Activations
from oodcli.compute.devices import explain_out_of_memory
from oodcli.data.decoding.scaling import Resizing
from oodcli.data.incoming import Item, decoded
from oodcli.errors import UnreadableImageError
from oodcli.models.extraction import read_ahead
from oodcli.pools import open_pools
from oodcli.reporting.statistics import surplus_p
from oodcli.scoring.fitting import check_finite
from oodcli.screening.thresholds import Threshold

if TYPE_CHECKING:
    from oodcli.screening.detector import Detector

# Pixels of images that are on their way together, and of the first ones where verdicts come soon.
_PIXELS = 2**20
_FIRST_PIXELS = 2**16
_MAX_ROWS = 1024


@dataclass(frozen=True)
class Judged:
    """What a detector says of images that went through the network together, in their order.

    Parameters
    ----------
    items
        The ``n`` images; those out of an array have their pixels only with ``keep_pixels``.
    errors
        Why an image cannot be read; None for all others.
    classes
        Index of the predicted class, int64, ``(n,)``; -1 where the image cannot be read.
    probability
        Softmax probability of that class, float64, ``(n,)``; NaN, as are the next two, where the
        image cannot be read.
    score
        float64, ``(n,)``, larger for more in-distribution.
    percentile
        Share of ID images with a smaller score, in percent, float64, ``(n,)``.
    ood
        Whether the image should not be trusted, ``(n,)``: its score is below the threshold, or it
        cannot be read.
    """

    items: tuple[Item, ...]
    errors: tuple[str | None, ...]
    classes: NDArray[np.int64]
    probability: NDArray[np.float64]
    score: NDArray[np.float64]
    percentile: NDArray[np.float64]
    ood: NDArray[np.bool_]

    def __len__(self) -> int:
        return len(self.items)


@dataclass(frozen=True)
class Predictions:
    """What a detector says of images, one row per image, in their order.

    Parameters
    ----------
    names
        The path of every file, and ``image 0`` and so on for the others.
    classes
        Names of the predicted classes; None where the image cannot be read.
    class_indices
        Their numbers, int64, ``(n,)``; -1 where the image cannot be read.
    probability
        Softmax probability of the predicted class, float64, ``(n,)``; NaN, as are the next two,
        where the image cannot be read.
    score
        float64, ``(n,)``, larger for more in-distribution.
    percentile
        Share of ID images with a smaller score, in percent, float64, ``(n,)``.
    ood
        Whether the image should not be trusted, ``(n,)``: its score is below the threshold, or it
        cannot be read.
    threshold
        The threshold, and where it comes from.
    errors
        Why an image cannot be read; None for all others.
    """

    names: tuple[str, ...]
    classes: tuple[str | None, ...]
    class_indices: NDArray[np.int64]
    probability: NDArray[np.float64]
    score: NDArray[np.float64]
    percentile: NDArray[np.float64]
    ood: NDArray[np.bool_]
    threshold: Threshold
    errors: tuple[str | None, ...]

    def __len__(self) -> int:
        return len(self.names)

    @classmethod
    def of(
        cls, blocks: Sequence[Judged], classes: Sequence[str], threshold: Threshold
    ) -> "Predictions":
        """Join what was said of images, whose classes have these names."""
        indices = _joined([each.classes for each in blocks], np.int64)
        return cls(
            names=tuple(item.name for each in blocks for item in each.items),
            classes=tuple(None if index < 0 else classes[index] for index in indices),
            class_indices=indices,
            probability=_joined([each.probability for each in blocks], np.float64),
            score=_joined([each.score for each in blocks], np.float64),
            percentile=_joined([each.percentile for each in blocks], np.float64),
            ood=_joined([each.ood for each in blocks], np.bool_),
            threshold=threshold,
            errors=tuple(why for each in blocks for why in each.errors),
        )

    @property
    def p(self) -> float:
        """Probability of at least so many OOD images if all that can be read are ID.

        See :func:`oodcli.reporting.statistics.surplus_p`; 1 where none can be read.
        """
        read = np.array([why is None for why in self.errors], dtype=np.bool_)
        return surplus_p(
            int(self.ood[read].sum()), int(read.sum()),
            below=self.threshold.below, of=self.threshold.n,
        )  # fmt: skip


def _joined(parts: Sequence[NDArray[Any]], kind: type[np.generic]) -> NDArray[Any]:
    return np.concatenate([np.empty(0, kind), *parts]).astype(kind)


@contextlib.contextmanager
def judge(
    detector: "Detector",
    images: Iterable[Item],
    *,
    soon: bool = False,
    keep_pixels: bool = False,
    unreadable: Literal["row", "raise"] = "row",
) -> Iterator[Iterator[Judged]]:
    """Judge images, a bounded number at a time; they are read ahead as long as the context.

    Parameters
    ----------
    detector
        What judges them.
    images
        The images; read ahead in a thread.
    soon
        Whether to begin with small groups of images, so that the first verdicts come soon.
    keep_pixels
        Whether the items that come back have the pixels of images out of arrays.
    unreadable
        If an image cannot be read: ``row`` for a row with the reason, or ``raise``.

    Yields
    ------
    Iterator of Judged
        Images that went through the network together, in order.

    Raises
    ------
    UnreadableImageError
        If an image cannot be read, and ``unreadable`` is ``raise``.
    InvalidInputError
        If activations or scores are not finite, or the device has too little memory.
    """
    pre = detector.record.preprocess
    under_way: deque[_Batch] = deque()
    with contextlib.ExitStack() as stack:
        pools = stack.enter_context(open_pools())
        stack.enter_context(
            explain_out_of_memory(
                detector.compute.device, "use fewer images per forward pass: --score-batch-size N"
            )
        )
        done = decoded(images, Resizing(pre.size, pre.resize).apply, pools.threads())
        batches = _batched(_checked(done, unreadable), pre.size, soon=soon)

        def shards(some: Iterable[_Batch]) -> Iterator[NDArray[np.uint8]]:
            for batch in some:
                pixels = batch.pixels(pre.size)
                under_way.append(batch.seen(keep_pixels=keep_pixels))
                yield pixels

        first = next(batches, None)
        if first is None:
            yield iter(())
            return
        ready = shards([first] if first.last else itertools.chain([first], batches))
        if not first.last:  # else none is left to be read ahead, and no thread is worth its start
            ready = stack.enter_context(read_ahead(ready))
        passes = detector.ready.extract(
            ready,
            mean=pre.mean,
            std=pre.std,
            batch_size=detector.compute.batch_size,
            probes=detector.fitted.probes,
            to=detector.compute.device,
        )
        yield (_judged(detector, under_way.popleft(), activations) for activations in passes)


@dataclass
class _Batch:
    """Images that go through the network together, between those that cannot be read.

    ``last`` says that images have come to an end before it was full.
    """

    rows: list[tuple[Item, str | None]] = field(default_factory=list)
    images: list[NDArray[np.uint8]] = field(default_factory=list)
    last: bool = False

    def add(self, item: Item, image: NDArray[np.uint8] | str) -> None:
        """Add an image, or the reason why there is none."""
        if isinstance(image, str):
            self.rows.append((item, image))
        else:
            self.rows.append((item, None))
            self.images.append(image)

    def seen(self, *, keep_pixels: bool) -> "_Batch":
        """Return the rows without the pixels that nobody will ask for again."""
        return _Batch(
            [
                (item if keep_pixels and why is None else _without_content(item), why)
                for item, why in self.rows
            ]
        )

    def pixels(self, size: tuple[int, int]) -> NDArray[np.uint8]:
        """Return the pixels, ``(n, 3, h, w)``; a black image if there are none."""
        if not self.images:
            # Something has to go through the network for the rows to come out in order.
            return np.zeros((1, 3, *size), dtype=np.uint8)
        return np.ascontiguousarray(np.stack(self.images).transpose(0, 3, 1, 2))


def _without_content(item: Item) -> Item:
    if item.pixels is None and item.data is None:
        return item
    return replace(item, pixels=None, data=None)


def _checked(
    images: Iterable[tuple[Item, NDArray[np.uint8] | str]], unreadable: Literal["row", "raise"]
) -> Iterator[tuple[Item, NDArray[np.uint8] | str]]:
    """Yield the same images; raise the error of the first that cannot be read if asked to."""
    for item, image in images:
        if isinstance(image, str) and unreadable == "raise":
            raise UnreadableImageError(
                item.name,
                image,
                cure='replace it, or return it as a row with the reason: errors="row"',
            )
        yield item, image


def _batched(
    images: Iterable[tuple[Item, NDArray[np.uint8] | str]], size: tuple[int, int], *, soon: bool
) -> Iterator[_Batch]:
    """Gather images into groups of bounded size, the first of which are small if wanted soon."""
    each = size[0] * size[1]
    largest = max(1, min(_MAX_ROWS, _PIXELS // each))
    rows = max(1, min(_MAX_ROWS, _FIRST_PIXELS // each)) if soon else largest
    batch = _Batch()
    for item, image in images:
        batch.add(item, image)
        if len(batch.rows) >= rows:
            yield batch
            batch, rows = _Batch(), min(2 * rows, largest)
    if batch.rows:
        batch.last = True
        yield batch


def _judged(detector: "Detector", batch: _Batch, activations: Activations) -> Judged:
    """Return what a detector says of images that went through the network together."""
    read = np.array([why is None for _, why in batch.rows], dtype=np.bool_)
    some = slice(0, int(read.sum()))  # of a batch without images there is one more, of no row
    score = detector.scores_of(activations)[some]
    check_finite(detector.method, score)
    logits, predicted = activations.logits.cpu(), activations.predictions.cpu()
    chances = logits.double().softmax(dim=1).gather(1, predicted[:, None])[:, 0]

    def rows(values: NDArray[Any], missing: object) -> NDArray[Any]:
        every = np.full(len(read), missing, dtype=values.dtype)
        every[read] = values
        return every

    return Judged(
        items=tuple(item for item, _ in batch.rows),
        errors=tuple(why for _, why in batch.rows),
        classes=rows(predicted.numpy()[some], -1),
        probability=rows(chances.numpy()[some], np.nan),
        score=rows(score, np.nan),
        percentile=rows(detector.percentile(score), np.nan),
        ood=rows(~detector.accepts(score), missing=True),
    )
