"""An open run: its record, its images, and the activations of its network for any images."""

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
from oodcli.store.run_locks import locked_run
from oodcli.store.runs import Run, RunFolder
from oodcli.store.scores import ResizedAs
from oodcli.store.store import Store


@dataclass(frozen=True)
class OpenRun:
    """An open run with its data and network; created by :meth:`open` or :meth:`of`.

    Data and network are opened on first use, so that a run whose data no longer exists can still be
    read, and its fitted detectors can still be used.

    Parameters
    ----------
    store
        The store that contains the run.
    folder
        The folder of the run.
    record
        The record of the run; on a benchmark, with the resizing of the benchmark.
    compute
        Device, precision and batch size.
    opened
        Function that returns the data, opened on the first call.
    progress
        Receives the progress of long work.
    benchmark
        The benchmark whose validation and test images are used, if any.
    resize
        Requested resizing on the benchmark, if any.
    limit
        Number of training and of test images to use, evenly spaced; all if None.
    decode
        Whether images that are not stored are decoded; a dry run decodes none.
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
        """Open a finished run, locked against removal while the context lasts.

        Parameters
        ----------
        store
            The store that contains the run.
        name
            Name of the run; the default run if None.
        compute
            Device, precision and batch size.
        benchmark
            As for :meth:`on`; None for the data of the run's training.
        limit
            Number of training and of test images to use, evenly spaced; all if None.
        skip_unreadable
            Whether to skip images that cannot be decoded.
        progress
            Receives the progress of long work.

        Raises
        ------
        MissingArtifactError
            If the run does not exist or is not finished.
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
        """Return an open run for a folder, without locking it.

        Parameters
        ----------
        store, compute, limit, skip_unreadable, progress
            As for :meth:`open`.
        folder
            The folder of the run.
        record
            The record of the run; read from the folder if None.

        Raises
        ------
        CorruptArtifactError
            If the record is damaged.
        """
        known = folder.read() if record is None else record

        @functools.cache
        def opened() -> RunData:
            return RunData.of(
                store, folder, known, skip_unreadable=skip_unreadable, progress=progress
            )

        return cls(store, folder, known, compute, opened, progress, limit=limit)

    def through(self, window: str | None, *, jpeg_draft: bool = False) -> Self:
        """Return the same run with a window for the medical images of the sets that are scored.

        Parameters
        ----------
        window
            As ``--window`` has it; None for that of the run, if it has one.
        jpeg_draft
            Whether ``--jpeg-draft`` is given.

        Raises
        ------
        InvalidInputError
            If it is no window, or the run has another one: its own images were read with that; or
            if drafts are wanted and the run has none.
        """
        preprocess = self.record.preprocess.through(
            window, jpeg_draft=jpeg_draft, where=f"run {self.name}"
        )
        return replace(self, record=self.record.with_preprocess(preprocess))

    def on(self, benchmark: Benchmark, resize: ResizedAs | None = None) -> Self:
        """Return the same run with the resizing, validation and test images of a benchmark.

        See :meth:`oodcli.data.run_data.RunData.on`, which is called when the data is first used.
        """
        record = self.record.with_preprocess(preprocess_on(benchmark, self.record, resize))
        return replace(self, benchmark=benchmark, resize=resize, record=record)

    @property
    def resized_as(self) -> ResizedAs | None:
        """Whether images are resized as in the benchmark or the network; None if both agree."""
        own, benchmark = self.opened().run.preprocess, self.benchmark
        if benchmark is None or (own.size, own.resize) == (benchmark.size, benchmark.resize):
            return None
        return "network" if self.record.preprocess.resize == own.resize else "benchmark"

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
        """The data of the run, opened on first use.

        Raises
        ------
        OodError
            If the data no longer exists, or is not the data that the run was trained on, or not the
            data of the benchmark.
        """
        return self._opened_on[0]

    @property
    def test_split(self) -> Split | None:
        """The benchmark's list of test images, or None."""
        return self._opened_on[1]

    @cached_property
    def activator(self) -> Activator:
        """The activator of the run's network.

        Raises
        ------
        CorruptArtifactError
            If the weights of the run are damaged.
        """
        return Activator(self.store, self.folder, self.record, self.compute, progress=self.progress)

    @property
    def data_name(self) -> str:
        """Name of the data set of the run."""
        return self.data.dataset.name

    @property
    def calibration_part(self) -> str:
        """``val``, or ``train`` if there are no validation images."""
        return self.data.dataset.calibration()[0]

    def train(self, seen: Callable[[ImageShard], None] | None = None) -> ImageSet:
        """Return the training images; see :meth:`oodcli.data.run_data.RunData.prepared`."""
        return self.data.train(limit=self.limit, seen=seen)

    def decode_train(self, *, puzzles: Mapping[View, bool], observed: bool) -> ImageSet:
        """Return the training images, decoded; if not stored, activations are computed meanwhile.

        Parameters
        ----------
        puzzles
            The view of their jigsaw puzzles, if these are needed, with whether only their block
            norms are.
        observed
            Whether a later pass has probes. It also gives the plain activations, so that none are
            computed now, and pixels that are not stored are kept for it.
        """
        views = {View(): False, **puzzles}
        return self.train(None if observed else self.while_decoding("train", views))

    def calibration(self, seen: Callable[[ImageShard], None] | None = None) -> ImageSet:
        """Return the calibration images, to which no limit applies.

        ``seen`` is as for :meth:`oodcli.data.run_data.RunData.chosen`.
        """
        return self.data.chosen(*self.data.dataset.calibration(), seen=seen)

    def test(self, seen: Callable[[ImageShard], None] | None = None) -> ImageSet:
        """Return the test images; see :meth:`limited`."""
        return self.limited(self.data.dataset.id_test, name=self.data_name, seen=seen)

    def limited(
        self, part: ImagePart, *, name: str, seen: Callable[[ImageShard], None] | None = None
    ) -> ImageSet:
        """Return the images of one part of any data set, at most as many as the limit.

        The parameters are those of :meth:`oodcli.data.run_data.RunData.prepared`.
        """
        return self.data.prepared(part, name=name, limit=self.limit, seen=seen)

    def limits(self, *parts: ImagePart) -> bool:
        """Return whether one of these parts has more images than the limit."""
        return self.limit is not None and any(len(part) > self.limit for part in parts)

    def reference(self) -> Reference:
        """Return the reference data for fitting; each part is computed on first access."""
        device, activator = self.activator.device, self.activator
        return Reference(
            head=load_head(self.folder.weights, self.record.arch).to(device),
            load_train=lambda: activator.activations(
                self.train(self.while_decoding("train", {View(): False}))
            ),
            load_labels=lambda: _labels(self.train()).to(device),
            load_jigsaw=lambda: activator.activations(
                self.train(self.while_decoding("train", {View("jigsaw"): True})),
                view=View("jigsaw"),
                norms_only=True,
            ),
            load_jigsaw_features=lambda: activator.activations(
                self.train(self.while_decoding("train", {View("jigsaw"): False})),
                view=View("jigsaw"),
            ),
            load_calibration=lambda: activator.activations(
                self.calibration(self.while_decoding(self.calibration_part, {View(): False}))
            ),
            load_calibration_labels=lambda: _labels(self.calibration()).to(device),
            load_probed=self._probed,
            load_state=self._state,
            load_words=self._words,
            load_block_widths=lambda: activator.block_widths,
            n_blocks=len(self.record.blocks),
        )

    def while_decoding(
        self, part: str, views: Mapping[View, bool], *, normalise: bool = True
    ) -> Callable[[ImageShard], None]:
        """Return a consumer that computes activations while decoding a part that cannot be cached.

        See :meth:`oodcli.scoring.activate.Activator.while_decoding`.
        """
        return self.activator.while_decoding(f"{self.data_name} {part}", views, normalise=normalise)

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
