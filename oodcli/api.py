"""The names for programs: a run, a detector of it, and what it says of images.

::

    import oodcli

    run = oodcli.load_run("my-run")
    detector = run.detector("knn", tpr=0.95)
    scores = detector.score(images)
    found = detector.predict(["a.jpg", "b.png"])
    found.ood, found.classes, found.probability

Results are those of ``ood predict``. What the user can cure is an ``oodcli.errors.OodError``, which
speaks of arguments where that of the command line speaks of options.
"""

import contextlib
import itertools
import os
import re
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Executor
from dataclasses import dataclass
from functools import cached_property
from itertools import islice
from pathlib import Path
from typing import Any, BinaryIO, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

from oodcli.data.incoming import Item, decoded
from oodcli.data.prepare import Resizing
from oodcli.data.readers import rgb_of
from oodcli.errors import InvalidInputError, OodError, UnreadableImageError
from oodcli.models.extraction import ReadyNetwork, read_ahead
from oodcli.pools import decoding
from oodcli.progress import Progress
from oodcli.runs import Run, RunFolder, find_run, using_run
from oodcli.statistics import surplus_p
from oodcli.store import Store
from oodcli.workflows import detectors
from oodcli.workflows.detectors import Threshold, check_threshold, detector_for
from oodcli.workflows.devices import enough_memory, find_device

__all__ = ["Detector", "LoadedRun", "Predictions", "load_run", "predict"]

OneImage = (
    str
    | os.PathLike[str]
    | bytes
    | bytearray
    | memoryview
    | BinaryIO
    | NDArray[np.uint8]
    | Image.Image
    | torch.Tensor
)
Images = OneImage | Iterable[OneImage]
# Of these some can be iterated, but not over images in the sense of a list of them.
_ONE = (str, os.PathLike, bytes, bytearray, memoryview, np.ndarray, Image.Image, torch.Tensor)

# Images that go through the network together at most, and pixels of them.
_MOST_ROWS = 1024
_PIXELS = 2**20
# What messages call the options of the command line, with what stands for their value.
_ARGUMENTS = {
    "--tpr": "tpr",
    "--threshold": "threshold",
    "--method": "method",
    "--device cpu": 'device="cpu"',
    "--store DIR": "store=DIR",
    "--store": "store",
    "--skip-unreadable": "skip_unreadable=True",
    "--score-batch-size N": "batch_size=N",
}
_OPTION = re.compile("|".join(rf"(?<![\w-]){re.escape(each)}(?![\w-])" for each in _ARGUMENTS))
_COMMAND = re.compile(r"ood [a-z]+( [^;,:()]*)?")


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

    @property
    def p(self) -> float:
        """How likely so many OOD images are, or more, if all that can be read are ID.

        See :func:`oodcli.statistics.surplus_p`; 1 where none can be read.
        """
        read = np.array([why is None for why in self.errors], dtype=np.bool_)
        return surplus_p(
            int(self.ood[read].sum()), int(read.sum()),
            below=self.threshold.below, of=self.threshold.n,
        )  # fmt: skip


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
    batch_size
        Images at a time; None for what suits the device.

    Notes
    -----
    The network is loaded at the first image and stays. A detector may be used from several threads.
    """

    def __init__(
        self,
        fitted: detectors.Detector,
        folder: RunFolder,
        threshold: Threshold,
        device: torch.device,
        batch_size: int | None = None,
    ) -> None:
        self._fitted = fitted
        self._folder = folder
        self._device = device
        self._batch_size = batch_size
        pre = fitted.record.preprocess
        self._resize = Resizing(pre.size, pre.resize).apply
        self._rows = max(1, min(_MOST_ROWS, _PIXELS // (pre.size[0] * pre.size[1])))
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

        Raises
        ------
        OodError
            As for :meth:`predict`.
        """
        return self.predict(images).score

    def predict(self, images: Images, *, errors: Literal["raise", "row"] = "raise") -> Predictions:
        """Say of every image which class it is predicted as, and whether to trust that.

        Parameters
        ----------
        images
            A path of an image file, the bytes of one, a binary file object, an array, a Pillow
            image or a tensor, or any number of these; they may differ in size, and are resized as
            the run resizes them. A file object is read from where it stands to its end. Arrays are
            uint8, one image ``(h, w, 3)`` or several ``(n, h, w, 3)``; where the last axis is not
            3 long, ``(3, h, w)`` or ``(n, 3, h, w)``. Tensors are channels first, ``(3, h, w)`` or
            ``(n, 3, h, w)``, uint8 or floating-point from 0 to 1, which is rounded to 8 bits.
            Nothing is normalised before: the run knows its constants.
        errors
            What happens where a file, bytes or a Pillow image cannot be read: ``raise``, or ``row``
            for a row with the reason.

        Raises
        ------
        UnreadableImageError
            If an image cannot be read, and ``errors`` is ``raise``.
        InvalidInputError
            If an array, a tensor or any other object is no image, or a score is not finite.
        """
        with speaking_of_arguments():
            if errors not in ("raise", "row"):
                raise InvalidInputError(f"errors must be 'raise' or 'row', not {errors!r}")
            return self._predicted(images, strict=errors == "raise")

    def _predicted(self, images: Images, *, strict: bool) -> Predictions:
        names: list[str] = []
        reasons: list[str | None] = []
        scores, predicted, chances = [], [], []
        pre = self._fitted.record.preprocess
        with contextlib.ExitStack() as stack:
            pools = stack.enter_context(decoding())
            stack.enter_context(
                enough_memory(self._device, 'take another: run.detector(..., device="cpu")')
            )
            shards = self._shards(images, pools.threads(), names, reasons, strict=strict)
            first = list(islice(shards, 1))
            ready: Iterable[NDArray[np.uint8]] = first
            # Of fewer images none is left to be read ahead, and no thread is worth its start.
            if first and len(first[0]) == self._rows:
                ready = stack.enter_context(read_ahead(itertools.chain(first, shards)))
            for batch in self._ready.extract(
                ready, mean=pre.mean, std=pre.std, batch_size=self._batch_size,
                probes=self._fitted.fitted.probes,
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
        read = np.array([why is None for why in reasons], dtype=np.bool_)

        def rows(values: NDArray[Any], missing: object) -> NDArray[Any]:
            every = np.full(len(read), missing, dtype=values.dtype)
            every[read] = values
            return every

        indices = rows(_joined(predicted, np.int64), -1)
        return Predictions(
            names=tuple(names),
            classes=tuple(None if index < 0 else self.classes[index] for index in indices),
            class_indices=indices,
            probability=rows(_joined(chances, np.float64), np.nan),
            score=rows(score, np.nan),
            percentile=rows(self._fitted.percentile(score), np.nan),
            ood=rows(~self._fitted.verdicts(score, self.threshold), missing=True),
            threshold=self.threshold,
            errors=tuple(reasons),
        )

    def _shards(
        self,
        images: Images,
        pool: Executor,
        names: list[str],
        reasons: list[str | None],
        *,
        strict: bool,
    ) -> Iterator[NDArray[np.uint8]]:
        """Yield the images that can be read, ``(n, 3, h, w)``, noting names and reasons of all.

        Every shard but the last has ``self._rows`` images.
        """
        group: list[NDArray[np.uint8]] = []
        for item, pixels in decoded(_items(images), self._resize, pool):
            name, why = item.name, pixels if isinstance(pixels, str) else None
            if why is not None and strict:
                raise UnreadableImageError(
                    name, why, cure='replace it, or take it as a row with the reason: errors="row"'
                )
            names.append(name)
            reasons.append(why)
            if not isinstance(pixels, str):
                group.append(pixels)
            if len(group) == self._rows:
                yield _stacked(group)
                group = []
        if group:
            yield _stacked(group)

    @cached_property
    def _ready(self) -> ReadyNetwork:
        return ReadyNetwork(
            self._fitted.network(self._folder),
            device=self._device,
            precision=self._fitted.precision,
        )


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
        method: str | None = None,
        *,
        tpr: float | None = None,
        threshold: float | None = None,
        device: str = "auto",
        batch_size: int | None = None,
        skip_unreadable: bool = False,
        progress: Progress | None = None,
    ) -> Detector:
        """Return a detector: the stored one, or one that is fitted and stored now.

        Parameters
        ----------
        method
            As on the command line: ``knn``, ``react:percentile=85+energy``; ``auto`` for the
            recommended one, which is chosen now if it was not yet; the recommended one if None and
            it was chosen, else ``msp``.
        tpr
            Share of ID images that the threshold lets pass; 0.95 if None.
        threshold
            The threshold itself, instead.
        device
            ``auto``, ``cpu``, ``cuda``, ``cuda:N`` or ``mps``.
        batch_size
            Images that go through the network at a time; None for what suits the device.
        skip_unreadable
            Whether to leave out images of the run's own data that cannot be read.
        progress
            Told of fitting.

        Raises
        ------
        OodError
            If the method, the threshold or the device cannot be used, or the method has to be
            fitted and the data of the run cannot be opened.
        """
        with speaking_of_arguments():
            check_threshold(tpr, threshold)
            place = find_device(device)
            with using_run(self._store, self.name) as folder:
                fitted = detector_for(
                    self._store, folder, method, device=place, batch_size=batch_size,
                    skip_unreadable=skip_unreadable, progress=progress,
                )  # fmt: skip
            return Detector(fitted, folder, fitted.chosen(tpr, threshold), place, batch_size)


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
    with speaking_of_arguments():
        kept = Store.at(None if store is None else Path(store))
        return LoadedRun(kept, find_run(kept, name))


def predict(
    images: Images,
    method: str | None = None,
    *,
    run: str | None = None,
    tpr: float | None = None,
    threshold: float | None = None,
    device: str = "auto",
    store: str | os.PathLike[str] | None = None,
    errors: Literal["raise", "row"] = "raise",
) -> Predictions:
    """Judge images once; to judge more of them, keep a detector.

    Parameters
    ----------
    images, errors
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
    return detector.predict(images, errors=errors)


@contextlib.contextmanager
def speaking_of_arguments() -> Iterator[None]:
    """Let errors name the arguments of this module, and not the options of the command line.

    Commands that a message names stay as they are.
    """
    try:
        yield
    except OodError as error:
        error.args = (_of_arguments(str(error)),)
        raise


def _of_arguments(text: str) -> str:
    pieces, at = [], 0
    for command in _COMMAND.finditer(text):
        pieces += [_OPTION.sub(_argument, text[at : command.start()]), command.group()]
        at = command.end()
    return "".join([*pieces, _OPTION.sub(_argument, text[at:])])


def _argument(option: re.Match[str]) -> str:
    return _ARGUMENTS[option.group()]


def _joined(parts: Sequence[NDArray[Any]], kind: type[np.generic]) -> NDArray[Any]:
    return np.concatenate([np.empty(0, kind), *parts]).astype(kind)


def _stacked(images: Sequence[NDArray[np.uint8]]) -> NDArray[np.uint8]:
    return np.ascontiguousarray(np.stack(images).transpose(0, 3, 1, 2))


def _items(images: Images) -> Iterator[Item]:
    """Yield every image, numbered if it has no name."""
    whole = isinstance(images, _ONE) or hasattr(images, "read") or not isinstance(images, Iterable)
    number = 0
    for each in [images] if whole else images:  # type: ignore[union-attr]
        for item in _items_of(each, number):
            yield item
            number += 1


def _items_of(image: object, number: int) -> Iterator[Item]:
    """Yield the images of one object, the first of which has this number."""
    name = f"image {number}"
    if isinstance(image, (str, os.PathLike)):
        path = os.fsdecode(image)
        yield Item(path, path, "")
    elif isinstance(image, (bytes, bytearray, memoryview)):
        yield Item(name, "", "", data=bytes(image))
    elif hasattr(image, "read") and not isinstance(image, Image.Image):
        yield _read(image, name)
    elif isinstance(image, Image.Image):
        try:
            yield Item(name, "", "", pixels=rgb_of(image))
        except InvalidInputError as error:
            yield Item(name, "", "", error=str(error))
    else:
        for row, pixels in enumerate(_pixels(image)):
            yield Item(f"image {number + row}", "", "", pixels=pixels)


def _read(file: Any, name: str) -> Item:  # noqa: ANN401 - whatever can be read
    """Read a file object to its end; it is called by the name of its file if it has one."""
    named = getattr(file, "name", None)
    name = named if isinstance(named, str) else name
    try:
        data = file.read()
    except (OSError, ValueError) as error:
        return Item(name, "", "", error=f"the file object gives no bytes: {error}")
    if not isinstance(data, bytes):
        raise InvalidInputError(
            f"the file object {name} gives {type(data).__name__}, not bytes; open it in binary "
            'mode: "rb"'
        )
    return Item(name, "", "", data=data)


def _pixels(image: object) -> Iterator[NDArray[np.uint8]]:
    """Yield the pixels ``(h, w, 3)`` of what is an image or several.

    Raises
    ------
    InvalidInputError
        If it is none.
    """
    if isinstance(image, torch.Tensor):
        yield from _of_tensor(image)
    elif isinstance(image, np.ndarray):
        yield from _of_array(image)
    else:
        raise InvalidInputError(
            f"{type(image).__name__} is no type of an image; give a path, bytes, a binary file "
            "object, a uint8 array, a Pillow image or a tensor"
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
