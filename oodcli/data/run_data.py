"""The data of a run: opened again as they were when it was made, decoded at its size."""

import os
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from oodcli.data import DATASETS, download, open_dataset
from oodcli.data.benchmarks import Benchmark
from oodcli.data.class_order import among, in_order, places_among, with_labels_of
from oodcli.data.dataset import Dataset
from oodcli.data.decoding.kept import KeptPixels
from oodcli.data.decoding.prepare import places_of, prepare, prepare_some
from oodcli.data.decoding.shards import UNDECODED
from oodcli.data.formats.openood import OpenOODTree
from oodcli.data.opening import is_here
from oodcli.data.own_names import FILE, registered
from oodcli.data.splits import Split, split
from oodcli.errors import InvalidInputError, MissingArtifactError, OodError
from oodcli.images import ImageSet, ImageShard, Part, evenly_spaced
from oodcli.progress import Progress
from oodcli.resizing import Resize
from oodcli.store.preprocess import Preprocess
from oodcli.store.runs import Run, RunFolder
from oodcli.store.scores import ResizedAs
from oodcli.store.store import Store
from oodcli.windows import Window, window_of

_LARGEST_SIDE = 4096


def say_which(spec: str, store: Store, progress: Progress) -> None:
    """Note that a name means a data set, if a file or folder here has the same name.

    Parameters
    ----------
    spec
        What a user wrote.
    store
        Holds the names that were registered.
    progress
        Gets the note.
    """
    known = spec in DATASETS
    if not (known or spec in registered(store)) or not os.path.lexists(spec):
        return
    kind = "folder" if Path(spec).is_dir() else "file"
    where = "that ood knows" if known and spec not in registered(store) else f"named in {FILE}"
    progress.note(
        f"{spec} means the data set {where}, not the {kind} {spec} in this folder; "
        f"to use the {kind}: ./{spec}"
    )


# Share of images to test on, where nothing says which ones.
TEST_FRACTION = 0.2


def find_dataset(
    spec: str,
    store: Store,
    *,
    role: Literal["id", "ood"],
    val_fraction: float = 0.0,
    test_fraction: float = 0.0,
    window: Window | None = None,
    progress: Progress,
) -> Dataset:
    """Open a data set, after downloading it where it is a known one that is not in the store.

    Parameters
    ----------
    spec
        A name, a folder, an ``.npz`` file, or ``NAME=PATH``.
    store
        Holds what was downloaded.
    role
        ``id`` for images with classes, ``ood`` for OOD images.
    val_fraction
        Share of the training images to hold out as validation images where there are none.
    test_fraction
        Share of the images to test on where the data set is one whole.
    window
        Which values of medical images are black and white.
    progress
        Reports the download.

    Raises
    ------
    OodError
        If there is no such data set, or it cannot be downloaded or used.
    """
    known = DATASETS.get(spec)
    if known is not None and not is_here(spec, store):
        size = f" {known.download_bytes / 1e6:.0f} MB" if known.download_bytes else ""
        progress.note(f"{spec} is not in the store: downloading{size} to {store.datasets}")
        download(spec, store, progress=progress)
    opened = open_dataset(
        spec,
        store,
        role=role,
        val_fraction=val_fraction,
        test_fraction=test_fraction,
        window=window,
    )
    for note in opened.notes:
        progress.note(note)
    return opened


def find_divided(
    spec: str,
    store: Store,
    *,
    val: float,
    test: float | None,
    usual_test: float,
    window: str | None = None,
    progress: Progress,
) -> Dataset:
    """Open the data set of a new run, and divide it as was asked for.

    Parameters
    ----------
    spec, store, progress
        As for :func:`find_dataset`.
    val, test
        Shares to hold out.
    usual_test
        Share to test on if ``test`` is None; with 0 a whole stays one, all of which is tested on.
    window
        Which values of medical images are black and white, as ``--window`` has it.

    Raises
    ------
    OodError
        As :func:`find_dataset`; or if a share is out of range or does not fit.
    """
    _check_share("--val-fraction", val, zero="none are held out")
    _check_share(
        "--test-fraction",
        test,
        zero="no image is held out of training" if usual_test else "all images are test images",
    )
    values = window_of(window)
    say_which(spec, store, progress)
    dataset = find_dataset(spec, store, role="id", window=values, progress=progress)
    if test is not None and not dataset.takes_test:
        progress.note(f"{dataset.name} has test images, so --test-fraction has no effect")
    if val > 0 and not dataset.takes_val:
        progress.note(f"{dataset.name} has validation images, so --val-fraction has no effect")
    share = (usual_test if test is None else test) if dataset.takes_test else 0.0
    divided = dataset.with_test(share)
    if share > 0:
        n = len(divided.parts["test"])
        progress.note(
            f"{dataset.name} has no test images: {n:,} of {n + len(divided.parts['train']):,}, the "
            "same share of every class, are held out of training for testing (--test-fraction "
            f"{share:g})"
        )
    elif dataset.takes_test and not dataset.is_whole:
        progress.note(
            f"{dataset.name} has no test images and none are held out, so that the run cannot be "
            f"scored; to hold some out: --test-fraction {TEST_FRACTION:g}"
        )
    elif dataset.takes_test and usual_test:
        raise InvalidInputError(
            f"--test-fraction 0 takes all {len(dataset.id_test):,} images of {dataset.name} for "
            "testing and leaves none to train on; give the share to test on, such as "
            f"{usual_test:g}"
        )
    elif dataset.takes_test:
        progress.note(
            f"all {len(dataset.id_test):,} images of {dataset.name} are test images; methods that "
            f"learn need training images; to hold some out: --test-fraction {TEST_FRACTION:g}"
        )
    return divided.holding_out(val)


def _check_share(option: str, value: float | None, *, zero: str) -> None:
    """Refuse a share that cannot be held out, before the data are opened."""
    if value is not None and not 0 <= value < 1:  # nan neither
        raise InvalidInputError(f"{option} must be from 0 ({zero}) to below 1, not {value:g}")


def check_division(dataset: Dataset, division: str, *, run: str) -> None:
    """Refuse data that would be divided otherwise than for a run: it may have trained on any image.

    Parameters
    ----------
    dataset
        The data, divided by the shares of the run.
    division
        That of the run.
    run
        Its name.

    Raises
    ------
    InvalidInputError
        If they are not divided alike.
    """
    if dataset.division != division:
        raise InvalidInputError(
            f"{dataset.name} at {dataset.location} has different images than when run {run} was "
            "made; dividing them anew would put training images into the test set; restore the "
            "images, or train again"
        )


def check_size_options(image_size: int | None, resize: str | None) -> None:
    """Refuse an image size or a way of resizing that is not possible.

    Parameters
    ----------
    image_size, resize
        The options; None where they are not given.

    Raises
    ------
    InvalidInputError
        If one is out of range or unknown.
    """
    if image_size is not None and not 1 <= image_size <= _LARGEST_SIDE:
        raise InvalidInputError(f"--image-size must be from 1 to {_LARGEST_SIDE}, not {image_size}")
    if resize is not None:
        Resize.of(resize)


def missing_sets(benchmark: Benchmark, store: Store) -> tuple[str, ...]:
    """Return the names of the missing data sets of a benchmark, its ID set aside.

    What a list names in OpenOOD's folder is not missing.

    Parameters
    ----------
    benchmark
        The benchmark.
    store
        Holds what was downloaded.
    """
    groups = (*benchmark.near, *benchmark.far, *benchmark.ood, *benchmark.shifted)
    tree = OpenOODTree.of(store)

    def is_listed(name: str) -> bool:
        if name in benchmark.needs:
            return tree is not None and tree.has_lists
        return tree is not None and name in benchmark.lists and tree.has(benchmark.lists[name])

    return tuple(
        name
        for name in (*benchmark.needs, *groups)
        if not DATASETS[name].is_present(store) and not is_listed(name)
    )


def preprocess_on(benchmark: Benchmark, run: Run, asked: ResizedAs | None = None) -> Preprocess:
    """Return the preprocessing of a run on a benchmark: resized as this has it, or as the run.

    Parameters
    ----------
    benchmark
        The benchmark.
    run
        The run; its normalisation stays.
    asked
        Whose resizing to take; if None, that of the published numbers of the benchmark, which for
        some is that of published weights. A run of another size keeps its own.

    Raises
    ------
    InvalidInputError
        If the resizing of the benchmark is asked for, and the network takes another size.
    """
    own = run.preprocess
    if own.size != benchmark.size:
        if asked == "benchmark":
            (height, width), (high, wide) = benchmark.size, own.size
            raise InvalidInputError(
                f"--resize benchmark brings images to {height} x {width} on {benchmark.name}, and "
                f"the network takes {high} x {wide}; leave it out"
            )
        return own
    as_published = benchmark.as_weights and run.imported.get("as_published", False)
    if asked == "network" or (asked is None and as_published):
        return own
    return replace(own, resize=benchmark.resize)


def _as_outputs(dataset: Dataset, run: Run, *, where: str) -> Dataset:
    """Return a data set with its classes in the order of a run's logits."""
    if run.imported.get("logits", {}).get("kept") == "all":
        return among(dataset, run.class_names)
    return in_order(dataset, run.class_names, where=where)


@dataclass(frozen=True)
class RunData:
    """The ID data set of a run.

    Parameters
    ----------
    store
        Where decoded images are stored.
    dataset
        The data set.
    run
        The run.
    skip_unreadable
        Whether to skip images that cannot be decoded.
    progress
        Reports decoding.
    as_opened
        The data set with its classes in its own order, which published lists go by; None where that
        is the order of the run.
    decode
        Whether images that are not decoded yet are to be; a dry run only counts them.
    kept
        Keeps the pixels of sets that are too large for the store as long as the run is open.
    """

    store: Store
    dataset: Dataset
    run: Run
    skip_unreadable: bool
    progress: Progress
    as_opened: Dataset | None = None
    decode: bool = True
    kept: KeptPixels = field(default_factory=KeptPixels, compare=False, repr=False)

    @classmethod
    def of(
        cls,
        store: Store,
        folder: RunFolder,
        run: Run,
        *,
        skip_unreadable: bool,
        progress: Progress,
    ) -> "RunData":
        """Open the data set of a run again.

        Raises
        ------
        MissingArtifactError
            If it is no longer where it was.
        InvalidInputError
            If it has other classes now.
        """
        try:
            dataset = find_dataset(
                run.data,
                store,
                role="id",
                val_fraction=run.job.val_fraction,
                test_fraction=run.job.test_fraction,
                window=run.preprocess.medical,
                progress=progress,
            )
        except OodError as error:
            back = "; restore the data, or a link to them" if "/" in run.data else ""
            raise MissingArtifactError(
                f"the data of run {folder.name} cannot be opened: {error}{back}"
            ) from None
        whole = run.imported.get("logits", {}).get("kept") != "all"
        known, count = set(run.class_names), len(run.class_names)
        same = set(dataset.class_names) == known and len(dataset.class_names) == count
        if not (same if whole else places_among(dataset, run.class_names)):
            raise InvalidInputError(
                f"the data of run {folder.name} at {dataset.location} have different classes from "
                f"the run ({len(dataset.class_names)} against {len(run.class_names)}, or "
                "different names); restore the data it was trained on"
            )
        check_division(dataset, run.job.division, run=folder.name)
        # A run that was made without some of its images is scored without them, too.
        skip = skip_unreadable or run.job.skip_unreadable
        ordered = _as_outputs(dataset, run, where=f"run {folder.name}")
        return cls(store, ordered, run, skip, progress, dataset)

    def on(
        self, benchmark: Benchmark, resize: ResizedAs | None = None
    ) -> tuple["RunData", Split | None]:
        """Return the same data as a benchmark has them: its resizing, validation and test images.

        Parameters
        ----------
        benchmark
            A benchmark for this ID set.
        resize
            Whose resizing to take, as for :func:`preprocess_on`.

        Returns
        -------
        data
            The data; with the benchmark's own validation images where it has any.
        test
            The list that names the test images, or None.

        Raises
        ------
        OodError
            If the images are not those that the lists are about, or a list is missing.
        """
        preprocess = preprocess_on(benchmark, self.run, resize)
        data = replace(self, run=self.run.with_preprocess(preprocess))
        if not benchmark.id_test_list:
            return data, None
        opened = self.as_opened or self.dataset
        test = split(opened, benchmark.id_test_list, self.store)
        val = split(opened, benchmark.id_val_list, self.store)
        parts = {**opened.parts, "val": val.part, "test": test.part}
        listed = replace(opened, parts=parts)
        ordered = _as_outputs(listed, self.run, where=f"benchmark {benchmark.name}")
        return replace(data, dataset=ordered, as_opened=listed), test

    def shifted(self, spec: str, window: Window | None = None) -> Dataset:
        """Open a covariate-shifted ID set: images of the run's classes, with labels.

        Parameters
        ----------
        spec
            As :func:`find_dataset` takes it; classes are matched by their names.
        window
            Which values of medical images are black and white.

        Raises
        ------
        InvalidInputError
            If it has no labels, or a class that the run does not have.
        OodError
            If it cannot be opened.
        """
        found = find_dataset(spec, self.store, role="id", window=window, progress=self.progress)
        if found.ood_part.labels is None:
            raise InvalidInputError(
                f"{found.name} has no labels, which a covariate-shifted ID set needs for the "
                "accuracy; add them, or score it as OOD"
            )
        numbered = (self.as_opened or self.dataset).class_names
        return with_labels_of(found, self.run.class_names, numbered=numbered)

    def images(
        self,
        part: str,
        *,
        limit: int | None = None,
        seen: Callable[[ImageShard], None] | None = None,
    ) -> ImageSet:
        """Return the images of one part: train, val or test; see :meth:`prepared`."""
        name = f"{self.dataset.name} {part}"
        return self.prepared(self.dataset.parts[part], name=name, limit=limit, seen=seen)

    def prepared(
        self,
        part: Part,
        *,
        name: str,
        limit: int | None = None,
        seen: Callable[[ImageShard], None] | None = None,
    ) -> ImageSet:
        """Return the images of one part of any data set at the size of the run.

        Parameters
        ----------
        part
            The part.
        name
            How to call its images.
        limit
            Take that many images, spread evenly over the part, and decode no others; all if None,
            or if there are no more.
        seen
            As for :func:`oodcli.data.decoding.prepare.prepare`.
        """
        how = self._how(name)
        if limit is None or limit >= len(part):
            return prepare(part, self.store, seen=seen, **how)
        rows = evenly_spaced(len(part), limit)
        return prepare_some(part, rows, self.store, seen=seen, **how)

    def chosen(
        self,
        part: str,
        rows: NDArray[np.int64],
        *,
        seen: Callable[[ImageShard], None] | None = None,
    ) -> ImageSet:
        """Return some images of one part; the others are not decoded for them.

        Parameters
        ----------
        part
            ``train``, ``val`` or ``test``.
        rows
            Ascending row numbers of the part, ``(m,)``. Rows of images that are skipped are not
            among those that are returned.
        seen
            As for :func:`oodcli.data.decoding.prepare.prepare`.
        """
        whole = self.dataset.parts[part]
        every = len(rows) == len(whole)
        images = replace(self, decode=self.decode and every).images(part, seen=seen)
        if not every and images.shards[0].known_digest == UNDECODED:
            how = self._how(f"{self.dataset.name} {part}")
            return prepare_some(whole, rows, self.store, seen=seen, **how)
        return images.take(places_of(images, rows))

    def apart(self, part: str, rows: NDArray[np.int64]) -> ImageSet:
        """Return some images of one part, prepared and stored on their own.

        Reading one of them reads no other image of the part.

        Parameters
        ----------
        part, rows
            As for :meth:`chosen`.
        """
        how = self._how(f"{self.dataset.name} {part}")
        return prepare_some(self.dataset.parts[part], rows, self.store, **how)

    def _how(self, name: str) -> dict[str, Any]:
        return {
            "name": name,
            "size": self.run.preprocess.size,
            "resize": self.run.preprocess.resize,
            "progress": self.progress,
            "skip_unreadable": self.skip_unreadable,
            "decode": self.decode,
            "kept": self.kept,
        }

    def train(
        self, *, limit: int | None = None, seen: Callable[[ImageShard], None] | None = None
    ) -> ImageSet:
        """Return the training images; see :meth:`prepared`.

        Raises
        ------
        InvalidInputError
            If the data set has none.
        """
        if "train" not in self.dataset.parts:
            raise InvalidInputError(
                f"{self.dataset.name} has no training images, which NormRatio and methods that "
                "learn need; hold some out of its images (ood import --test-fraction 0.2), name a "
                "data set with a train part, or a block: featurenorm:block=N"
            )
        return self.images("train", limit=limit, seen=seen)

    def n_train(self, images: ImageSet) -> int:
        """Return how many training images there are of which ``images`` were taken."""
        return max(len(self.dataset.parts["train"]) - len(images.skipped), len(images))
