"""The names for programs: a run, a detector of it, and what it says of images.

::

    import oodcli

    run = oodcli.load_run("my-run")
    detector = run.detector("knn", tpr=0.95)
    scores = detector.score(images)
    found = detector.predict(["a.jpg", "b.png"])
    found.ood, found.classes, found.probability

Results are those of ``ood predict``. What the user can cure is an ``oodcli.errors.OodError``.
"""

import os
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Executor
from dataclasses import dataclass
from functools import cached_property
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

from oodcli.data.incoming import Item, decoded
from oodcli.data.prepare import Resizing
from oodcli.data.readers import printable, rgb_of
from oodcli.errors import InvalidInputError, UnreadableImageError
from oodcli.methods.ensemble import AUTO
from oodcli.models import Network
from oodcli.models.extraction import extract, read_ahead
from oodcli.pools import decoding
from oodcli.progress import Progress
from oodcli.runs import Run, RunFolder, find_run
from oodcli.store import Store
from oodcli.workflows import detectors
from oodcli.workflows.detectors import TPR, Threshold, detector_for
from oodcli.workflows.devices import enough_memory, find_device

__all__ = ["Detector", "LoadedRun", "Predictions", "load_run", "predict"]

OneImage = str | os.PathLike[str] | NDArray[np.uint8] | Image.Image | torch.Tensor
Images = OneImage | Iterable[OneImage]

# Images that go through the network together at most, and pixels of them.
_MOST_ROWS = 1024
_PIXELS = 2**20


@dataclass(frozen=True)
class Predictions:
    """What a detector says of images, a row for each, in their order.

    Parameters
    ----------
    names
        The path of every file, and ``image 0`` and so on for the others.
    classes
        Names of the predicted classes.
    class_indices
        Their numbers, int64, ``(n,)``.
    probability
        Softmax probability of the predicted class, float64, ``(n,)``.
    score
        float64, ``(n,)``, larger for more in-distribution.
    percentile
        Share of ID images with a smaller score, in percent, float64, ``(n,)``.
    ood
        Whether the score is below the threshold, ``(n,)``.
    threshold
        The threshold, and where it comes from.
    """

    names: tuple[str, ...]
    classes: tuple[str, ...]
    class_indices: NDArray[np.int64]
    probability: NDArray[np.float64]
    score: NDArray[np.float64]
    percentile: NDArray[np.float64]
    ood: NDArray[np.bool_]
    threshold: Threshold

    def __len__(self) -> int:
        return len(self.names)


class Detector:
    """A fitted method of a run with a threshold; made by :meth:`LoadedRun.detector`.

    Parameters
    ----------
    fitted
        The method, with the ID scores that thresholds come from.
    folder
        Of the run.
    threshold
        From which score on an image counts as in-distribution.
    device
        Where to compute.
    """

    def __init__(
        self,
        fitted: detectors.Detector,
        folder: RunFolder,
        threshold: Threshold,
        device: torch.device,
    ) -> None:
        self._fitted = fitted
        self._folder = folder
        self._device = device
        self.threshold = threshold

    @property
    def method(self) -> str:
        """Canonical name of the method, such as ``knn:k=10``."""
        return self._fitted.method

    @property
    def classes(self) -> tuple[str, ...]:
        """Names of the classes, in the order of the logits."""
        return self._fitted.record.class_names

    def score(self, images: Images) -> NDArray[np.float64]:
        """Return one score per image, float64, ``(n,)``, larger for more in-distribution.

        Parameters
        ----------
        images
            As for :meth:`predict`.
        """
        return self.predict(images).score

    def predict(self, images: Images) -> Predictions:
        """Say of every image which class it is predicted as, and whether to trust that.

        Parameters
        ----------
        images
            A path of an image file, an array, a Pillow image or a tensor, or any number of these;
            they may differ in size, and are resized as the run resizes them. Arrays are uint8, one
            image ``(h, w, 3)`` or several ``(n, h, w, 3)``; where the last axis is not 3 long,
            ``(3, h, w)`` or ``(n, 3, h, w)``. Tensors are channels first, ``(3, h, w)`` or
            ``(n, 3, h, w)``, uint8 or floating-point from 0 to 1, which is rounded to 8 bits.
            Nothing is normalised before: the run knows its constants.

        Raises
        ------
        UnreadableImageError
            If a file cannot be decoded.
        InvalidInputError
            If an array or a tensor is no image, or a score is not finite.
        """
        pre = self._fitted.record.preprocess
        names: list[str] = []
        rows = max(1, min(_MOST_ROWS, _PIXELS // (pre.size[0] * pre.size[1])))
        resize = Resizing(pre.size, pre.resize).apply

        def shards(pool: Executor) -> Iterator[NDArray[np.uint8]]:
            ready = decoded(_items(images), resize, pool)
            while some := list(islice(ready, rows)):
                for item, pixels in some:
                    if isinstance(pixels, str):
                        raise UnreadableImageError(printable(item.name), pixels)
                    names.append(printable(item.name))
                stacked = np.stack([pixels for _, pixels in some if not isinstance(pixels, str)])
                yield np.ascontiguousarray(stacked.transpose(0, 3, 1, 2))

        scores, predicted, chances = [], [], []
        with (
            decoding() as pools,
            read_ahead(shards(pools.threads())) as ready,
            enough_memory(self._device, 'take another: run.detector(..., device="cpu")'),
        ):
            for batch in extract(
                self._network, ready, mean=pre.mean, std=pre.std, device=self._device,
                precision=self._fitted.precision, probes=self._fitted.fitted.probes,
            ):  # fmt: skip
                scores.append(self._fitted.score(batch.map(lambda v: v.to(self._device))))
                predicted.append(batch.predictions.numpy())
                share = batch.logits.double().softmax(dim=1)
                chances.append(share.gather(1, batch.predictions[:, None])[:, 0].numpy())
        score = _joined(scores, np.float64)
        if not np.isfinite(score).all():
            raise InvalidInputError(
                f"{self.method} gives {int((~np.isfinite(score)).sum())} scores that are not "
                "finite; check its parameters and the weights of the run"
            )
        indices = _joined(predicted, np.int64)
        return Predictions(
            names=tuple(names),
            classes=tuple(self.classes[index] for index in indices),
            class_indices=indices,
            probability=_joined(chances, np.float64),
            score=score,
            percentile=self._fitted.percentile(score),
            ood=~self._fitted.verdicts(score, self.threshold),
            threshold=self.threshold,
        )

    @cached_property
    def _network(self) -> Network:
        return self._fitted.network(self._folder)


class LoadedRun:
    """A finished run; made by :func:`load_run`.

    Parameters
    ----------
    store
        Where it is.
    folder
        Its folder.
    """

    def __init__(self, store: Store, folder: RunFolder) -> None:
        self._store = store
        self._folder = folder
        self.record: Run = folder.read()

    @property
    def name(self) -> str:
        """Name of the run."""
        return self._folder.name

    @property
    def classes(self) -> tuple[str, ...]:
        """Names of the classes, in the order of the logits."""
        return self.record.class_names

    def detector(
        self,
        method: str = AUTO,
        *,
        tpr: float = TPR,
        threshold: float | None = None,
        device: str = "auto",
        progress: Progress | None = None,
    ) -> Detector:
        """Return a detector: the stored one, or one that is fitted and stored now.

        Parameters
        ----------
        method
            As on the command line: ``knn``, ``react:percentile=85+energy``; ``auto`` for the
            recommended one, which is chosen now if it was not yet.
        tpr
            Share of ID images that the threshold lets pass.
        threshold
            The threshold itself, instead.
        device
            ``auto``, ``cpu``, ``cuda``, ``cuda:N`` or ``mps``.
        progress
            Told of fitting.

        Raises
        ------
        OodError
            If the method, the threshold or the device cannot be used, or the method has to be
            fitted and the data of the run cannot be opened.
        """
        place = find_device(device)
        fitted = detector_for(self._store, self._folder, method, device=place, progress=progress)
        chosen = fitted.threshold(tpr) if threshold is None else fitted.given_threshold(threshold)
        return Detector(fitted, self._folder, chosen, place)


def load_run(name: str | None = None, *, store: str | os.PathLike[str] | None = None) -> LoadedRun:
    """Open a finished run.

    Parameters
    ----------
    name
        Its name; the one created last if None.
    store
        The folder in which everything is kept; that of the command line if None.

    Raises
    ------
    OodError
        If there is no such run, or it is not finished.
    """
    kept = Store.at(None if store is None else Path(store))
    return LoadedRun(kept, find_run(kept, name))


def predict(
    images: Images,
    method: str = AUTO,
    *,
    run: str | None = None,
    tpr: float = TPR,
    threshold: float | None = None,
    device: str = "auto",
    store: str | os.PathLike[str] | None = None,
) -> Predictions:
    """Judge images once; to judge more of them, keep a detector.

    Parameters
    ----------
    images
        As for :meth:`Detector.predict`.
    method, tpr, threshold, device
        As for :meth:`LoadedRun.detector`.
    run, store
        As for :func:`load_run`.

    Raises
    ------
    OodError
        If the run, the method or an image cannot be used.
    """
    detector = load_run(run, store=store).detector(
        method, tpr=tpr, threshold=threshold, device=device
    )
    return detector.predict(images)


def _joined(parts: Sequence[NDArray[Any]], kind: type[np.generic]) -> NDArray[Any]:
    return np.concatenate([np.empty(0, kind), *parts]).astype(kind)


def _items(images: Images) -> Iterator[Item]:
    """Yield every image, numbered if it has no name."""
    several = isinstance(images, Iterable) and not isinstance(images, (str, bytes, os.PathLike))
    whole = isinstance(images, (np.ndarray, torch.Tensor, Image.Image)) or not several
    number = 0
    for each in [images] if whole else images:  # type: ignore[union-attr]
        if isinstance(each, (str, os.PathLike)):
            yield Item(os.fspath(each), os.fspath(each), "")
            number += 1
            continue
        for pixels in _pixels(each):
            yield Item(f"image {number}", "", "", pixels=pixels)
            number += 1


def _pixels(image: object) -> Iterator[NDArray[np.uint8]]:
    """Yield the pixels ``(h, w, 3)`` of what is an image or several.

    Raises
    ------
    InvalidInputError
        If it is none.
    """
    if isinstance(image, Image.Image):
        yield rgb_of(image)
    elif isinstance(image, torch.Tensor):
        yield from _of_tensor(image)
    elif isinstance(image, np.ndarray):
        yield from _of_array(image)
    else:
        raise InvalidInputError(
            f"a {type(image).__name__} is no image; give a path, a uint8 array, a Pillow image or "
            "a tensor"
        )


def _of_array(array: NDArray[Any]) -> Iterator[NDArray[np.uint8]]:
    if array.dtype != np.uint8:
        raise InvalidInputError(
            f"an array of images is uint8 with pixels from 0 to 255, not {array.dtype}; convert it"
        )
    _check_size(array.shape)
    if array.ndim in (3, 4) and array.shape[-1] == 3:
        yield from array if array.ndim == 4 else array[None]
    elif array.ndim in (3, 4) and array.shape[-3] == 3:
        yield from np.moveaxis(array if array.ndim == 4 else array[None], 1, 3)
    else:
        raise InvalidInputError(
            f"an array of images is (n, h, w, 3) or (n, 3, h, w), not {array.shape}; "
            "repeat grey pixels for all three channels"
        )


def _of_tensor(tensor: torch.Tensor) -> Iterator[NDArray[np.uint8]]:
    if tensor.ndim not in (3, 4) or tensor.shape[-3] != 3:
        raise InvalidInputError(
            f"a tensor of images is (n, 3, h, w) or (3, h, w), not {tuple(tensor.shape)}"
        )
    _check_size(tensor.shape)
    values = tensor.detach().cpu()
    if values.is_floating_point():
        low, high = (float(f(values)) for f in (torch.amin, torch.amax)) if len(values) else (0, 0)
        if not (low >= 0 and high <= 1):
            raise InvalidInputError(
                f"a floating-point tensor of images has pixels from 0 to 1, not from {low:g} to "
                f"{high:g}; do not normalise it"
            )
        values = (values.double() * 255).round().to(torch.uint8)
    if values.dtype != torch.uint8:
        raise InvalidInputError(
            f"a tensor of images is uint8, or floating-point from 0 to 1, not {tensor.dtype}"
        )
    yield from (values if values.ndim == 4 else values[None]).permute(0, 2, 3, 1).numpy()


def _check_size(shape: Sequence[int]) -> None:
    """Refuse images without pixels; that there are no images at all is no fault."""
    if 0 in shape[-3:]:
        raise InvalidInputError(f"images of shape {tuple(shape)} have no pixels; leave them out")
