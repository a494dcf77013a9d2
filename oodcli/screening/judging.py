"""The screening pass: judges a stream of images with a detector, in order.

Images are decoded and resized in threads, ahead of the network; memory does not depend on the
number of images.
"""

import contextlib
import itertools
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from numpy.typing import NDArray

from oodcli.data.decoding.scaling import Resizing
from oodcli.data.incoming import Item, decoded
from oodcli.errors import InvalidInputError, UnreadableImageError
from oodcli.metrics import check_finite
from oodcli.pools import open_pools, read_ahead
from oodcli.screening.conformal import PValueCounts
from oodcli.screening.findings import surplus_of
from oodcli.screening.thresholds import Threshold, decided
from oodcli.screening.verdict_file import Counts

if TYPE_CHECKING:
    from oodcli.screening.base import BaseDetector, Outputs

# Pixels of a batch, and of the first batch if first results are wanted soon.
_PIXELS = 2**20
_FIRST_PIXELS = 2**16
_MAX_ROWS = 1024


@dataclass(frozen=True)
class Judged:
    """The results of a batch of images, in their order.

    Parameters
    ----------
    items
        The ``n`` images; those from an array have their pixels only with ``keep_pixels``.
    errors
        Why an image cannot be read; None for readable images.
    classes
        Index of the predicted class, int64 ``(n,)``; -1 for unreadable images, and without a
        classifier.
    probability
        Softmax probability of that class, float64 ``(n,)``; NaN without a classifier and, as are
        the next three, for unreadable images.
    score
        Score, float64 ``(n,)``; larger = more in-distribution.
    percentile
        Share of ID images with a smaller score, in percent, float64 ``(n,)``.
    p_value
        Conformal p-value, float64 ``(n,)``.
    ood
        Whether the image is OOD, ``(n,)``: its score is below the threshold, or it is unreadable.
        With a false discovery rate, False for readable images: the decision needs all of them.
    features
        Input of the last layer, float32 ``(n, d)``, NaN for unreadable images; None unless asked
        for.
    """

    items: tuple[Item, ...]
    errors: tuple[str | None, ...]
    classes: NDArray[np.int64]
    probability: NDArray[np.float64]
    score: NDArray[np.float64]
    percentile: NDArray[np.float64]
    p_value: NDArray[np.float64]
    ood: NDArray[np.bool_]
    features: NDArray[np.float32] | None = None

    def __len__(self) -> int:
        return len(self.items)


@dataclass(frozen=True)
class Predictions:
    """The results of a detector, one row per image, in their order.

    Parameters
    ----------
    names
        The path of every file, and ``image 0`` and so on for images without a file.
    classes
        Names of the predicted classes; None for unreadable images, and without a classifier.
    class_indices
        Indices of the predicted classes, int64 ``(n,)``; -1 where there is no name.
    probability
        Softmax probability of the predicted class, float64 ``(n,)``; NaN without a classifier and,
        as are the next three, for unreadable images.
    score
        Score, float64 ``(n,)``; larger = more in-distribution.
    percentile
        Share of ID images with a smaller score, in percent, float64 ``(n,)``.
    p_value
        Conformal p-value, float64 ``(n,)``: probability that an ID image has a score this small or
        smaller; see :func:`oodcli.screening.conformal.conformal_p_values`.
    ood
        Whether the image is OOD, ``(n,)``: its score is below the threshold, or it is unreadable.
    threshold
        The threshold and its origin.
    errors
        Why an image cannot be read; None for readable images.
    """

    names: tuple[str, ...]
    classes: tuple[str | None, ...]
    class_indices: NDArray[np.int64]
    probability: NDArray[np.float64]
    score: NDArray[np.float64]
    percentile: NDArray[np.float64]
    p_value: NDArray[np.float64]
    ood: NDArray[np.bool_]
    threshold: Threshold
    errors: tuple[str | None, ...]

    def __len__(self) -> int:
        return len(self.names)

    @classmethod
    def of(
        cls, blocks: Sequence[Judged], classes: Sequence[str], threshold: Threshold
    ) -> "Predictions":
        """Concatenate the results of batches; ``classes`` are the class names.

        With a false discovery rate, decide over all of them.
        """
        p_value = _joined([each.p_value for each in blocks], np.float64)
        ood = _joined([each.ood for each in blocks], np.bool_)
        if threshold.fdr is not None:
            counts = PValueCounts()
            counts.add(p_value)
            threshold = decided(threshold, counts)
            if threshold.p_cutoff is not None:
                ood |= p_value <= threshold.p_cutoff
        indices = _joined([each.classes for each in blocks], np.int64)
        return cls(
            names=tuple(item.name for each in blocks for item in each.items),
            classes=tuple(None if index < 0 else classes[index] for index in indices),
            class_indices=indices,
            probability=_joined([each.probability for each in blocks], np.float64),
            score=_joined([each.score for each in blocks], np.float64),
            percentile=_joined([each.percentile for each in blocks], np.float64),
            p_value=p_value,
            ood=ood,
            threshold=threshold,
            errors=tuple(why for each in blocks for why in each.errors),
        )

    @property
    def p(self) -> float:
        """Probability of at least this many OOD verdicts if all readable images are ID.

        See :func:`oodcli.screening.findings.surplus_of`; with a false discovery rate, the p-value
        of Simes. 1 if no image is readable.
        """
        if self.threshold.fdr is not None:
            p_values = PValueCounts()
            p_values.add(self.p_value)
            return p_values.simes
        counts = Counts()
        for name, ood, why in zip(self.classes, self.ood.tolist(), self.errors, strict=True):
            if why is None:
                counts.count("ood" if ood else "id", name)
        return surplus_of(counts, self.threshold)


def _joined(parts: Sequence[NDArray[Any]], kind: type[np.generic]) -> NDArray[Any]:
    return np.concatenate([np.empty(0, kind), *parts]).astype(kind)


@contextlib.contextmanager
def judge(
    detector: "BaseDetector",
    images: Iterable[Item],
    *,
    soon: bool = False,
    keep_pixels: bool = False,
    keep_features: bool = False,
    unreadable: Literal["row", "raise"] = "row",
    several: Callable[[int], None] = lambda _: None,
) -> Iterator[Iterator[Judged]]:
    """Judge images in batches; images are read ahead while the context lasts.

    Parameters
    ----------
    detector
        The detector.
    images
        The images; read ahead in a thread.
    soon
        Whether to start with small batches, so that the first verdicts are available soon.
    keep_pixels
        Whether the returned items contain the pixels of images from arrays.
    keep_features
        Whether the results contain the features of the images.
    unreadable
        What to do with an unreadable image: ``row`` for a row with the reason, or ``raise``.
    several
        Called with numbers of files that have several frames or pages, whose first was used.

    Yields
    ------
    Iterator of Judged
        The results of the batches, in order.

    Raises
    ------
    UnreadableImageError
        If an image cannot be read, and ``unreadable`` is ``raise``.
    InvalidInputError
        If activations or scores are not finite, or the device has too little memory.
    """
    pre = detector.about.preprocess
    under_way: deque[_Batch] = deque()
    with contextlib.ExitStack() as stack:
        pools = stack.enter_context(open_pools())
        resizing = Resizing(pre.size, pre.resize)
        done = decoded(images, resizing, pools.threads(), pre.medical, several=several)
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
        if not first.last:  # a single batch needs no thread for reading ahead
            ready = stack.enter_context(read_ahead(ready))
        passes = stack.enter_context(detector.outputs(ready))
        yield (
            _judged(detector, under_way.popleft(), outputs, keep_features=keep_features)
            for outputs in passes
        )


@dataclass
class _Batch:
    """A batch of images, with the unreadable ones between them.

    ``last`` is True if the images ended before the batch was full.
    """

    rows: list[tuple[Item, str | None]] = field(default_factory=list)
    images: list[NDArray[np.uint8]] = field(default_factory=list)
    last: bool = False

    def add(self, item: Item, image: NDArray[np.uint8] | str) -> None:
        """Add an image, or the reason why it is unreadable."""
        if isinstance(image, str):
            self.rows.append((item, image))
        else:
            self.rows.append((item, None))
            self.images.append(image)

    def seen(self, *, keep_pixels: bool) -> "_Batch":
        """Return the rows without pixels that are no longer needed."""
        return _Batch(
            [
                (item if keep_pixels and why is None else _without_content(item), why)
                for item, why in self.rows
            ]
        )

    def pixels(self, size: tuple[int, int]) -> NDArray[np.uint8]:
        """Return the pixels, ``(n, 3, h, w)``; a black image if there are none."""
        if not self.images:
            # The network needs at least one image for the rows to be returned in order.
            return np.zeros((1, 3, *size), dtype=np.uint8)
        return np.ascontiguousarray(np.stack(self.images).transpose(0, 3, 1, 2))


def _without_content(item: Item) -> Item:
    if item.pixels is None and item.data is None:
        return item
    return replace(item, pixels=None, data=None)


def _checked(
    images: Iterable[tuple[Item, NDArray[np.uint8] | str]], unreadable: Literal["row", "raise"]
) -> Iterator[tuple[Item, NDArray[np.uint8] | str]]:
    """Yield the same images; with ``raise``, raise the error of the first unreadable one."""
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
    """Collect images into batches of bounded size, with small first batches if ``soon``."""
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


def _judged(
    detector: "BaseDetector", batch: _Batch, outputs: "Outputs", *, keep_features: bool
) -> Judged:
    """Return the results of a batch from what the engine computed."""
    read = np.array([why is None for _, why in batch.rows], dtype=np.bool_)
    some = slice(0, int(read.sum()))  # a batch without readable images has one black image
    score = outputs.score[some]
    check_finite(detector.method, score)
    if keep_features and outputs.features is None:
        raise InvalidInputError(
            f"the engine {detector.engine} gives no features; leave out --features, or use "
            "--engine torch"
        )

    def rows(values: NDArray[Any], missing: object) -> NDArray[Any]:
        every = np.full((len(read), *values.shape[1:]), missing, dtype=values.dtype)
        every[read] = values
        return every

    return Judged(
        items=tuple(item for item, _ in batch.rows),
        errors=tuple(why for _, why in batch.rows),
        classes=rows(outputs.classes[some], -1),
        probability=rows(outputs.probability[some], np.nan),
        score=rows(score, np.nan),
        percentile=rows(detector.percentile(score), np.nan),
        p_value=rows(detector.p_value(score, outputs.classes[some]), np.nan),
        ood=rows(~detector.accepts(score, outputs.classes[some]), missing=True),
        features=rows(outputs.features[some], np.nan)
        if keep_features and outputs.features is not None
        else None,
    )
