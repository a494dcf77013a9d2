"""The data of a run: opened again as they were when it was made, decoded at its size."""

import re
from dataclasses import dataclass, replace
from typing import Any, Literal

from oodcli.data import DATASETS, download, open_dataset
from oodcli.data.benchmarks import Benchmark, benchmark_of
from oodcli.data.class_order import in_order
from oodcli.data.dataset import Dataset
from oodcli.data.prepare import prepare, prepare_some
from oodcli.data.splits import Split, split
from oodcli.errors import InvalidInputError, MissingArtifactError, OodError
from oodcli.images import ImageSet, Part, evenly_spaced
from oodcli.progress import Progress
from oodcli.runs import Preprocess, Run, RunFolder
from oodcli.store import Store

_LARGEST_SIDE = 4096
_RESIZE = re.compile(r"exact|shorter-crop(:[1-9][0-9]{0,4})?")


def find_dataset(
    spec: str, store: Store, *, role: Literal["id", "ood"], val_fraction: float, progress: Progress
) -> Dataset:
    """Open a data set, after downloading it where it is a known one that is not in the store.

    Parameters
    ----------
    spec
        A name, a folder, an ``.npz`` file, or ``NAME=PATH``.
    store
        Holds what was downloaded.
    role
        ``id`` for images with classes, ``ood`` for images to be told from them.
    val_fraction
        Share of the training images to hold out as validation images where there are none.
    progress
        Told of the download.

    Raises
    ------
    OodError
        If there is no such data set, it cannot be had, or it cannot be used.
    """
    known = DATASETS.get(spec)
    if known is not None and not known.is_present(store):
        size = f" {known.download_bytes / 1e6:.0f} MB" if known.download_bytes else ""
        progress.note(f"{spec} is not in the store: downloading{size} to {store.datasets}")
        download(spec, store, progress=progress)
    return open_dataset(spec, store, role=role, val_fraction=val_fraction)


def check_size_options(image_size: int | None, resize: str | None) -> None:
    """Refuse a size of images, or a way to get there, that cannot be.

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
    if resize is not None and not _RESIZE.fullmatch(resize):
        raise InvalidInputError(
            f"--resize must be exact, shorter-crop or shorter-crop:SIDE, not {resize!r}"
        )


def preprocess_for(
    id_name: str, *, mean: tuple[float, float, float], std: tuple[float, float, float]
) -> Preprocess:
    """Return what happens to images of a data set: the size is that of its benchmark.

    Parameters
    ----------
    id_name
        Name of the data set.
    mean, std
        Normalisation of the three channels.
    """
    benchmark = benchmark_of(id_name)
    if benchmark is None:
        return Preprocess(mean=mean, std=std)
    return Preprocess(size=benchmark.size, resize=benchmark.resize, mean=mean, std=std)


def missing_sets(benchmark: Benchmark, store: Store) -> tuple[str, ...]:
    """Return the names of what a benchmark needs beside its ID set and that is not here.

    Parameters
    ----------
    benchmark
        The benchmark.
    store
        Holds what was downloaded.
    """
    groups = (*benchmark.near, *benchmark.far, *benchmark.ood, *benchmark.shifted)
    return tuple(
        name for name in (*benchmark.needs, *groups) if not DATASETS[name].is_present(store)
    )


@dataclass(frozen=True)
class RunData:
    """The ID data set of a run.

    Parameters
    ----------
    store
        Where decoded images are kept.
    dataset
        The data set.
    run
        The run.
    skip_unreadable
        Whether to leave out images that cannot be decoded.
    progress
        Told of decoding.
    as_opened
        The data set with its classes in its own order, which published lists go by; None where that
        is the order of the run.
    decode
        Whether images that are not decoded yet are to be; a dry run only counts them.
    """

    store: Store
    dataset: Dataset
    run: Run
    skip_unreadable: bool
    progress: Progress
    as_opened: Dataset | None = None
    decode: bool = True

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
                run.data, store, role="id", val_fraction=run.val_fraction, progress=progress
            )
        except OodError as error:
            back = "; put the data back, or a link to them" if "/" in run.data else ""
            raise MissingArtifactError(
                f"the data of run {folder.name} cannot be opened: {error}{back}"
            ) from None
        if set(dataset.class_names) != set(run.class_names) or len(dataset.class_names) != len(
            run.class_names
        ):
            raise InvalidInputError(
                f"the data of run {folder.name} at {dataset.location} have other classes than the "
                f"run ({len(dataset.class_names)} against {len(run.class_names)}, or other names); "
                "put back the data it was trained on"
            )
        # A run that was trained without some of its images is scored without them, too.
        skip = skip_unreadable or bool(run.training.get("skip_unreadable"))
        ordered = in_order(dataset, run.class_names, where=f"run {folder.name}")
        return cls(store, ordered, run, skip, progress, dataset)

    def on(self, benchmark: Benchmark) -> tuple["RunData", Split | None]:
        """Return the same data as a benchmark has them: its resizing, validation and test images.

        Parameters
        ----------
        benchmark
            A benchmark for this ID set. Normalisation stays that of the network; so do size and
            resizing, where the network was trained at another size than the benchmark's.

        Returns
        -------
        data
            The data; with the benchmark's own validation images where it has any.
        test
            The list that names the test images, or None.

        Raises
        ------
        OodError
            If the images are not those that the lists are about, or a list cannot be had.
        """
        own = self.run.preprocess
        preprocess = own if own.size != benchmark.size else replace(own, resize=benchmark.resize)
        data = replace(self, run=replace(self.run, preprocess=preprocess))
        if not benchmark.id_test_list:
            return data, None
        opened = self.as_opened or self.dataset
        test = split(opened, benchmark.id_test_list, self.store)
        val = split(opened, benchmark.id_val_list, self.store)
        parts = {**opened.parts, "val": val.part, "test": test.part}
        listed = replace(opened, parts=parts)
        ordered = in_order(listed, self.run.class_names, where=f"benchmark {benchmark.name}")
        return replace(data, dataset=ordered, as_opened=listed), test

    def images(self, part: str, *, limit: int | None = None) -> ImageSet:
        """Return the images of one part: train, val or test; see :meth:`prepared`."""
        name = f"{self.dataset.name} {part}"
        return self.prepared(self.dataset.parts[part], name=name, limit=limit)

    def prepared(self, part: Part, *, name: str, limit: int | None = None) -> ImageSet:
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
        """
        how: dict[str, Any] = {
            "name": name,
            "size": self.run.preprocess.size,
            "resize": self.run.preprocess.resize,
            "progress": self.progress,
            "skip_unreadable": self.skip_unreadable,
            "decode": self.decode,
        }
        if limit is None or limit >= len(part):
            return prepare(part, self.store, **how)
        return prepare_some(part, evenly_spaced(len(part), limit), self.store, **how)

    def train(self, *, limit: int | None = None) -> ImageSet:
        """Return the training images; see :meth:`prepared`.

        Raises
        ------
        InvalidInputError
            If the data set has none.
        """
        if "train" not in self.dataset.parts:
            raise InvalidInputError(
                f"{self.dataset.name} has no training images, which NormRatio and methods that "
                "learn need; name a data set with a train part, or a block: featurenorm:block=N"
            )
        return self.images("train", limit=limit)

    def n_train(self, images: ImageSet) -> int:
        """Return how many training images there are of which ``images`` were taken."""
        return max(len(self.dataset.parts["train"]) - len(images.skipped), len(images))
