"""A run that is open: its record, its images, and the activations of its network on any images."""

import contextlib
import functools
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Self

import torch

from oodcli.activations import ActivationSet, Part, Reference, Words
from oodcli.compute.compute import Compute
from oodcli.data.benchmarks import Benchmark
from oodcli.data.run_data import RunData, preprocess_on
from oodcli.data.splits import Split
from oodcli.data.views import View
from oodcli.images import ImageSet, ImageShard
from oodcli.images import Part as ImagePart
from oodcli.models import load_head
from oodcli.models.words import load_words
from oodcli.probes import Learner, Probe
from oodcli.progress import SILENT, Progress
from oodcli.scoring.activate import Activator
from oodcli.store.runs import Run, RunFolder, locked_run
from oodcli.store.scores import ResizedAs
from oodcli.store.store import Store


@dataclass(frozen=True)
class OpenRun:
    """A run, and everything that is made of it; made by :meth:`open` or :meth:`of`.

    Neither its data nor its network is opened before it is needed, so that a run whose data are
    gone can still be read, and a fitted detector of it still be used.

    Parameters
    ----------
    store
        Where it is.
    folder
        Its folder.
    record
        Its record; on a benchmark, with the resizing of the benchmark.
    compute
        Where and how its network computes.
    opened
        Opens its data, once.
    progress
        Reports long work.
    benchmark
        The benchmark whose validation and test images it takes, if any.
    resize
        Whose resizing it takes there, if that was asked for.
    limit
        Take that many training and test images only, spread evenly over all; all if None.
    decode
        Whether images are decoded where they are not stored; a dry run decodes none.
    """

    store: Store
    folder: RunFolder
    record: Run
    compute: Compute
    opened: Callable[[], RunData]
    progress: Progress = SILENT
    benchmark: Benchmark | None = None
    resize: ResizedAs | None = None
    limit: int | None = None
    decode: bool = True

    @classmethod
    @contextlib.contextmanager
    def open(
        cls,
        store: Store,
        name: str | None,
        compute: Compute,
        *,
        benchmark: Benchmark | None = None,
        limit: int | None = None,
        skip_unreadable: bool = False,
        progress: Progress = SILENT,
    ) -> Iterator[Self]:
        """Open a finished run, which no other process removes for as long as the context lasts.

        Parameters
        ----------
        store
            Where it is.
        name
            Its name; the one created last if None.
        compute
            Where and how its network computes.
        benchmark
            As for :meth:`on`; None for the data as they were trained on.
        limit
            Take that many training and test images only, spread evenly over all; all if None.
        skip_unreadable
            Whether to skip images that cannot be decoded.
        progress
            Reports long work.

        Raises
        ------
        MissingArtifactError
            If there is no such run, or it is not finished.
        CorruptArtifactError
            If its record is damaged.
        """
        with locked_run(store, name, progress=progress) as folder:
            run = cls.of(
                store, folder, compute,
                limit=limit, skip_unreadable=skip_unreadable, progress=progress,
            )  # fmt: skip
            yield run if benchmark is None else run.on(benchmark)

    @classmethod
    def of(
        cls,
        store: Store,
        folder: RunFolder,
        compute: Compute,
        *,
        record: Run | None = None,
        limit: int | None = None,
        skip_unreadable: bool = False,
        progress: Progress = SILENT,
    ) -> Self:
        """Return a run whose folder is known already.

        Parameters
        ----------
        store, compute, limit, skip_unreadable, progress
            As for :meth:`open`.
        folder
            Its folder.
        record
            Its record; read from the folder if None.

        Raises
        ------
        CorruptArtifactError
            If its record is damaged.
        """
        known = folder.read() if record is None else record

        @functools.cache
        def opened() -> RunData:
            return RunData.of(
                store, folder, known, skip_unreadable=skip_unreadable, progress=progress
            )

        return cls(store, folder, known, compute, opened, progress, limit=limit)

    def on(self, benchmark: Benchmark, resize: ResizedAs | None = None) -> Self:
        """Return the same run with the resizing, validation and test images of a benchmark.

        See :meth:`oodcli.data.run_data.RunData.on`, which is called when data are needed.
        """
        record = self.record.with_preprocess(preprocess_on(benchmark, self.record, resize))
        return replace(self, benchmark=benchmark, resize=resize, record=record)

    @property
    def resized_as(self) -> ResizedAs | None:
        """Whose resizing images get, where the benchmark and the network differ in that."""
        own, benchmark = self.opened().run.preprocess, self.benchmark
        if benchmark is None or (own.size, own.resize) == (benchmark.size, benchmark.resize):
            return None
        return "network" if self.record.preprocess == own else "benchmark"

    def without_decoding(self) -> Self:
        """Return the same run for a dry run, which decodes no images."""
        return replace(self, decode=False)

    @property
    def name(self) -> str:
        """Name of the run."""
        return self.folder.name

    @cached_property
    def _opened_on(self) -> tuple[RunData, Split | None]:
        data = replace(self.opened(), decode=self.decode)
        return (data, None) if self.benchmark is None else data.on(self.benchmark, self.resize)

    @property
    def data(self) -> RunData:
        """Its data, opened when first needed.

        Raises
        ------
        OodError
            If they are no longer where they were, or are not those that the run was trained on, or
            not those that the benchmark is about.
        """
        return self._opened_on[0]

    @property
    def test_split(self) -> Split | None:
        """The list of the benchmark that names the test images, or None."""
        return self._opened_on[1]

    @cached_property
    def activator(self) -> Activator:
        """Gives the activations of its network on any images.

        Raises
        ------
        CorruptArtifactError
            If the weights of the run are not what was written.
        """
        return Activator(self.store, self.folder, self.record, self.compute, progress=self.progress)

    @property
    def data_name(self) -> str:
        """Name of its data set."""
        return self.data.dataset.name

    @property
    def calibration_part(self) -> str:
        """``val``, or ``train`` where there are no validation images."""
        return self.data.dataset.calibration()[0]

    def train(self, seen: Callable[[ImageShard], None] | None = None) -> ImageSet:
        """Return the training images; see :meth:`oodcli.data.run_data.RunData.prepared`."""
        return self.data.train(limit=self.limit, seen=seen)

    def calibration(self, seen: Callable[[ImageShard], None] | None = None) -> ImageSet:
        """Return the images that thresholds are set on; no limit applies to them.

        ``seen`` is as for :meth:`oodcli.data.run_data.RunData.chosen`.
        """
        return self.data.chosen(*self.data.dataset.calibration(), seen=seen)

    def test(self, seen: Callable[[ImageShard], None] | None = None) -> ImageSet:
        """Return the test images; see :meth:`limited`."""
        return self.limited(self.data.dataset.id_test, name=self.data_name, seen=seen)

    def limited(
        self, part: ImagePart, *, name: str, seen: Callable[[ImageShard], None] | None = None
    ) -> ImageSet:
        """Return the images of one part of any data set, as many as the limit allows.

        The parameters are those of :meth:`oodcli.data.run_data.RunData.prepared`.
        """
        return self.data.prepared(part, name=name, limit=self.limit, seen=seen)

    def limits(self, *parts: ImagePart) -> bool:
        """Return whether the limit leaves out images of one of these parts."""
        return self.limit is not None and any(len(part) > self.limit for part in parts)

    def reference(self) -> Reference:
        """Return what methods may learn from; each part is made when it is touched."""
        device, activator = self.activator.device, self.activator
        return Reference(
            head=load_head(self.folder.weights, self.record.arch).to(device),
            load_train=lambda: activator.activations(
                self.train(self.as_decoded("train", {View(): False}))
            ),
            load_labels=lambda: _labels(self.train()).to(device),
            load_jigsaw=lambda: activator.activations(
                self.train(self.as_decoded("train", {View("jigsaw"): True})),
                view=View("jigsaw"),
                norms_only=True,
            ),
            load_calibration=lambda: activator.activations(
                self.calibration(self.as_decoded(self.calibration_part, {View(): False}))
            ),
            load_calibration_labels=lambda: _labels(self.calibration()).to(device),
            load_probed=self._probed,
            load_state=self._state,
            load_words=self._words,
            n_blocks=len(self.record.blocks),
        )

    def as_decoded(
        self, part: str, views: Mapping[View, bool], *, normalise: bool = True
    ) -> Callable[[ImageShard], None]:
        """Return a consumer that computes activations while decoding a part that cannot be cached.

        See :meth:`oodcli.scoring.activate.Activator.as_decoded`.
        """
        return self.activator.as_decoded(f"{self.data_name} {part}", views, normalise=normalise)

    def _probed(self, part: Part, probe: Probe, rows: torch.Tensor | None) -> ActivationSet:
        return self.activator.activations(self._rows_of(part, rows), probes=[probe])

    def _state(self, learner: Learner, rows: torch.Tensor | None) -> Mapping[str, torch.Tensor]:
        state = self.activator.learned(self._rows_of("train", rows), learner)
        return {name: values.to(self.activator.device) for name, values in state.items()}

    def _words(self) -> Words | None:
        known = self.record.zero_shot.get("negative_words")
        if known is None:
            return None
        return load_words(self.folder.words, digest=known["digest"]).to(self.activator.device)

    def _rows_of(self, part: Part, rows: torch.Tensor | None) -> ImageSet:
        images = self.train() if part == "train" else self.calibration()
        return images if rows is None else images.take(rows.cpu().numpy())


def _labels(images: ImageSet) -> torch.Tensor:
    assert images.labels is not None  # a data set with classes has labels in every part
    return torch.from_numpy(images.labels)
