"""What an opened data set is, and how its images are divided."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from oodcli.errors import InvalidInputError, UnreadableImageError
from oodcli.images import ImageSource, Part, digest_of, image_name
from oodcli.store.store import digest_of_json

CALIBRATION_ROWS = 5000
CALIBRATION_SEED = 0
HOLD_OUT_SEED = 1
TEST_SEED = 2
_SHARES = {"val": "validation", "test": "test"}


@dataclass(frozen=True)
class Dataset:
    """A data set that was found and understood, before its images are decoded.

    Parameters
    ----------
    name
        How it is called in messages and tables.
    parts
        Its parts, among ``train``, ``val`` and ``test``; a plain OOD set has only ``test``.
    class_names
        Name of every class, in the order of the labels; empty for images without classes.
    location
        Its location, for display.
    spec
        What to give `open_dataset` to open it again, from any folder.
    is_whole
        Whether all images are one part, because it is not known which are for training.
    test_fraction
        Share of the images that :meth:`with_test` made the test part of; 0 if it did not.
    division
        Digest of what parts were divided by: shares, labels, and names of files. Equal divisions
        put the same images into the same parts. Empty if nothing was divided.
    notes
        What opening it had to decide and the user must know, in sentences.
    layout
        How its files lie on the disk, for display; empty where there is only one way.
    """

    name: str
    parts: Mapping[str, Part]
    class_names: tuple[str, ...]
    location: str
    spec: str
    is_whole: bool = False
    test_fraction: float = 0.0
    division: str = ""
    notes: tuple[str, ...] = ()
    layout: str = ""

    @property
    def test_name(self) -> str:
        """Name of the test part: ``test``, else ``val``.

        Raises
        ------
        InvalidInputError
            If there is neither.
        """
        for name in ("test", "val"):
            if name in self.parts:
                return name
        raise InvalidInputError(f"data set {self.name!r} has no test part; add one to be scored")

    @property
    def id_test(self) -> Part:
        """In-distribution images to score: the test part, else the val part."""
        return self.parts[self.test_name]

    @property
    def ood_part(self) -> Part:
        """Images to score when the set is out of distribution: the test part, else the only one."""
        if len(self.parts) == 1:
            return next(iter(self.parts.values()))
        return self.id_test

    def calibration(self, max_rows: int = CALIBRATION_ROWS) -> tuple[str, NDArray[np.int64]]:
        """Choose the images that methods may be calibrated on.

        Parameters
        ----------
        max_rows
            The most images to choose.

        Returns
        -------
        part
            ``val`` if it is not used for testing, else ``train``.
        rows
            Ascending rows of that part, ``(m,)``: all of ``val``, or a fixed tenth of ``train``,
            both with every class in proportion.

        Raises
        ------
        InvalidInputError
            If the set has only test images.
        """
        if "val" in self.parts and "test" in self.parts:
            name, wanted = "val", len(self.parts["val"])
        elif "train" in self.parts:
            name, wanted = "train", max(1, round(len(self.parts["train"]) / 10))
        else:
            raise InvalidInputError(
                f"data set {self.name!r} has no train or val part to calibrate on; "
                "test images are never used"
            )
        part = self.parts[name]
        rows = stratified(_classes(part), min(wanted, max_rows), seed=CALIBRATION_SEED)
        return name, rows

    @property
    def takes_val(self) -> bool:
        """Whether :meth:`holding_out` changes anything: there are no validation images to use.

        A ``val`` part without a ``test`` part is used for testing.
        """
        return not {"val", "test"} <= self.parts.keys()

    def holding_out(self, fraction: float) -> "Dataset":
        """Hold a fixed share of the train part out as ``val``, every class in proportion.

        Parameters
        ----------
        fraction
            Share of the train part, between 0 and 1; 0 changes nothing.

        Returns
        -------
        dataset
            The same set where it has parts ``val`` and ``test`` of its own. A ``val`` part that is
            tested on, for want of another, becomes ``test``.

        Raises
        ------
        InvalidInputError
            If the share is out of range or leaves a part without images, or there is no train part.
        """
        _check_share("validation", fraction)
        if fraction == 0 or not self.takes_val:
            return self
        if "train" not in self.parts:
            raise InvalidInputError(f"data set {self.name!r} has no train part to hold out from")
        tested = {} if self.parts.keys() == {"train"} else {"test": self.id_test}
        return self._divided("train", "val", fraction, seed=HOLD_OUT_SEED, others=tested)

    @property
    def takes_test(self) -> bool:
        """Whether :meth:`with_test` changes anything: all images are one part, and have classes."""
        (part, *others) = self.parts.values()
        one = not others and (self.is_whole or "train" in self.parts)
        return one and part.labels is not None

    def with_test(self, fraction: float) -> "Dataset":
        """Divide a set that is one part into ``train`` and ``test``, every class in proportion.

        Parameters
        ----------
        fraction
            Share of the images to test on, between 0 and 1; 0 changes nothing.

        Returns
        -------
        dataset
            The same set where it is divided already.

        Raises
        ------
        InvalidInputError
            If the share is out of range or leaves a part without images.
        """
        _check_share("test", fraction)
        if fraction == 0 or not self.takes_test:
            return self
        (part,) = self.parts
        divided = self._divided(part, "test", fraction, seed=TEST_SEED, others={})
        return replace(divided, test_fraction=fraction)

    def _divided(
        self, part: str, target: str, fraction: float, *, seed: int, others: Mapping[str, Part]
    ) -> "Dataset":
        """Divide a part into ``train`` and a target, which gets the share."""
        whole = self.parts[part]
        what = _SHARES[target]
        held = stratified(_classes(whole), round(fraction * len(whole)), seed=seed)
        if not 0 < len(held) < len(whole):
            images = "train images" if part == "train" else "images"
            raise InvalidInputError(
                f"a {what} share of {fraction} of {len(whole)} {images} leaves a part "
                "without images; give another share"
            )
        kept = np.setdiff1d(np.arange(len(whole), dtype=np.int64), held)
        parts = {"train": take(whole, kept), target: take(whole, held), **others}
        names = list(whole.source.files) if isinstance(whole.source, Named) else []
        labels = digest_of(_classes(whole))
        division = digest_of_json([self.division, what, fraction, seed, labels, names])
        return replace(self, parts=parts, is_whole=False, division=division)


def _check_share(what: str, fraction: float) -> None:
    if not 0 <= fraction < 1:
        raise InvalidInputError(
            f"a {what} share of {fraction} is out of range; give 0 or more, below 1"
        )


def stratified(labels: NDArray[np.int64], count: int, *, seed: int) -> NDArray[np.int64]:
    """Choose rows at random with every class in proportion.

    Parameters
    ----------
    labels
        Class of every row, ``(n,)``.
    count
        How many rows to choose, at most ``n``.
    seed
        Equal seeds choose equal rows.

    Returns
    -------
    rows
        Ascending row numbers, ``(count,)``.

    Notes
    -----
    The images of a class are put in random order and spread evenly over the interval (0, 1); the
    rows chosen are those nearest to 0. No class is off its share by more than one image.
    """
    # Sorting uniform numbers depends on less of the generator than a permutation does.
    chance = np.random.default_rng(seed).random(len(labels))
    order = np.lexsort((chance, labels))
    _, starts, sizes = np.unique(labels[order], return_index=True, return_counts=True)
    rank = np.arange(len(labels)) - np.repeat(starts, sizes)
    place = np.empty(len(labels))
    place[order] = (rank + 0.5) / np.repeat(sizes, sizes)
    return np.sort(np.lexsort((chance, place))[:count]).astype(np.int64)


def _classes(part: Part) -> NDArray[np.int64]:
    return np.zeros(len(part), dtype=np.int64) if part.labels is None else part.labels


@runtime_checkable
class Named(Protocol):
    """A source whose images have names."""

    @property
    def files(self) -> Sequence[str]:
        """Names of the images, in order."""


@runtime_checkable
class RandomAccess(Protocol):
    """A source of which any images are read as fast as the first ones."""

    def take(self, rows: NDArray[np.int64], /) -> ImageSource:
        """Return a source of chosen images."""


def take(part: Part, rows: NDArray[np.int64]) -> Part:
    """Return chosen images of a part.

    Parameters
    ----------
    part
        The part to choose from.
    rows
        Ascending row numbers, ``(m,)``.
    """
    source = part.source
    chosen = source.take(rows) if isinstance(source, RandomAccess) else Rows(source, rows)
    return Part(chosen, None if part.labels is None else part.labels[rows])


@dataclass(frozen=True)
class Rows:
    """Chosen rows of a source that is read from front to back.

    Parameters
    ----------
    source
        The source to choose from.
    rows
        Ascending row numbers, ``(m,)``.
    """

    source: ImageSource
    rows: NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.rows)

    @cached_property
    def fingerprint(self) -> str:
        """Digest of the source's fingerprint and of the rows."""
        return digest_of_json([self.source.fingerprint, digest_of(self.rows)])

    def name_of(self, row: int) -> str:
        """Return what an image is called in the source."""
        return image_name(self.source, int(self.rows[row]))

    def read(self, start: int, stop: int, /) -> Iterator[NDArray[np.uint8] | UnreadableImageError]:
        """Yield images ``start`` to ``stop - 1``.

        Parameters
        ----------
        start, stop
            First row, and the row after the last.
        """
        wanted = self.rows[start:stop]
        if not len(wanted):
            return
        first, last = int(wanted[0]), int(wanted[-1])
        chosen = np.zeros(last + 1 - first, dtype=bool)
        chosen[wanted - first] = True
        for image, keep in zip(self.source.read(first, last + 1), chosen, strict=True):
            if keep:
                yield image


def joined(first: Part, second: Part) -> Part:
    """Return two parts as one.

    Parameters
    ----------
    first, second
        Their images are concatenated; labels exist if both have them.
    """
    labels = None
    if first.labels is not None and second.labels is not None:
        labels = np.concatenate([first.labels, second.labels])
    return Part(Joined(first.source, second.source), labels)


@dataclass(frozen=True)
class Joined:
    """Two sources, concatenated.

    Parameters
    ----------
    first, second
        The sources.
    """

    first: ImageSource
    second: ImageSource

    def __len__(self) -> int:
        return len(self.first) + len(self.second)

    @cached_property
    def fingerprint(self) -> str:
        """Digest of both fingerprints."""
        return digest_of_json([self.first.fingerprint, self.second.fingerprint])

    def name_of(self, row: int) -> str:
        """Return what an image is called in its source."""
        border = len(self.first)
        return (
            image_name(self.first, row) if row < border else image_name(self.second, row - border)
        )

    def read(self, start: int, stop: int, /) -> Iterator[NDArray[np.uint8] | UnreadableImageError]:
        """Yield images ``start`` to ``stop - 1``.

        Parameters
        ----------
        start, stop
            First row, and the row after the last.
        """
        border = len(self.first)
        if start < border:
            yield from self.first.read(start, min(stop, border))
        if stop > border:
            yield from self.second.read(max(start, border) - border, stop - border)
