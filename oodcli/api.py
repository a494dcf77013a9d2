"""Python API: open a run, score and report it, get a detector, judge images.

::

    import oodcli

    run = oodcli.load_run("my-run")
    run.score(method=["knn", "energy"], ood="svhn.npz")
    for row in run.report(convention="openood").rows:
        print(row.method, row.dataset, row.fpr95, row.auroc)
    detector = run.detector("knn", tpr=0.95)
    found = detector.predict(["a.jpg", "b.png"])
    found.ood, found.classes, found.probability

Arguments have the names of the command-line options, and results are the same: each is a frozen
record whose ``to_json()`` returns the object that ``--format json`` prints. Errors that the user
can correct are an ``oodcli.errors.OodError``; its message names arguments instead of options.
Importing this module does not import torch; the first method that needs it does.
"""

import importlib
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypeVar

from oodcli.arguments import naming_arguments
from oodcli.progress import SILENT, Progress
from oodcli.remote.addresses import without_credentials
from oodcli.store.run_names import find_run
from oodcli.store.runs import Run, RunFolder
from oodcli.store.store import Store

if TYPE_CHECKING:
    from oodcli.reporting.results import Report
    from oodcli.scoring.block_ratios import NormRatioResult
    from oodcli.screening.base import BaseDetector
    from oodcli.screening.detector import Detector
    from oodcli.screening.given import Images
    from oodcli.screening.judging import Predictions
    from oodcli.selection.recommendation import Recommendation
    from oodcli.store.scores import ResizedAs
    from oodcli.store.searches import Tuning
    from oodcli.workflows.export import Exported
    from oodcli.workflows.score import ScoreResult
    from oodcli.workflows.screener import Screener

__all__ = [
    "Detector", "LoadedRun", "Predictions", "Screener", "load_detector", "load_run", "predict",
]  # fmt: skip

# Classes whose modules import much, and these modules.
_LAZY = {
    "Detector": "oodcli.screening.detector",
    "Predictions": "oodcli.screening.judging",
    "Screener": "oodcli.workflows.screener",
}


# A data set, as given on the command line.
DataSetName = str | os.PathLike[str]
DataSets = DataSetName | Sequence[DataSetName] | Mapping[str, DataSetName]
_Word = TypeVar("_Word", bound=str)


def __getattr__(name: str) -> Any:  # noqa: ANN401 - names of several types
    if name in _LAZY:
        return getattr(importlib.import_module(_LAZY[name]), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


class LoadedRun:
    """A finished run; made by :func:`load_run`.

    Parameters
    ----------
    store
        The store that contains the run.
    folder
        The folder of the run.
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
        false_alarms: float | None = None,
        fdr: float | None = None,
        per_class: bool = False,
        device: str = "auto",
        amp: bool = False,
        score_batch_size: int | None = None,
        skip_unreadable: bool = False,
        progress: Progress = SILENT,
    ) -> "Detector":
        """Return a detector: the stored one if it exists, otherwise one that is fitted and stored.

        Parameters
        ----------
        method
            As on the command line: ``knn``, ``react:percentile=85+energy``; ``auto`` for the
            recommended method, which is chosen now if no recommendation is stored. None: the stored
            recommendation if there is one, otherwise ``msp``.
        tpr
            Share of ID images that the threshold accepts; 0.95 if None.
        threshold
            A fixed threshold, instead of ``tpr``.
        false_alarms
            Instead of ``tpr``: the promised rate of false alarms among ID images.
        fdr
            Instead of ``tpr``: the promised false discovery rate among all images of one call of
            :meth:`Detector.predict`.
        per_class
            Whether an image is compared with ID images of the same predicted class only.
        device
            ``auto``, ``cpu``, ``cuda``, ``cuda:N`` or ``mps``.
        amp
            Whether the network computes in bfloat16.
        score_batch_size
            Images per forward pass; None for a value that suits the device.
        skip_unreadable
            Whether to skip images of the run's own data that cannot be read.
        progress
            Shows the progress of fitting; silent by default.

        Raises
        ------
        OodError
            If the method, the threshold or the device cannot be used, or the method has to be
            fitted and the data of the run cannot be opened.

        Examples
        --------
        >>> detector = run.detector("energy", tpr=0.9)
        >>> detector.threshold.tpr, len(detector.predict(images))
        (0.9, 8)
        """
        from oodcli.compute.compute import Compute
        from oodcli.scoring.open_run import OpenRun
        from oodcli.screening.thresholds import ThresholdRule
        from oodcli.workflows.recommend import resolve_detector

        with naming_arguments():
            rule = ThresholdRule(tpr, threshold, false_alarms, fdr, per_class)
            compute = Compute.of(device, amp=amp, batch_size=score_batch_size)
            with OpenRun.open(
                self._store,
                self.name,
                compute,
                skip_unreadable=skip_unreadable,
                progress=progress,
            ) as run:
                return resolve_detector(run, method, rule)

    def score(
        self,
        *,
        method: str | Sequence[str] = (),
        ood: DataSets = (),
        near: DataSets = (),
        far: DataSets = (),
        shifted_id: DataSets = (),
        benchmark: str | None = None,
        allow_missing: bool = False,
        tune: "Tuning | Sequence[Tuning]" = (),
        tune_ood: DataSetName | None = None,
        limit: int | None = None,
        resize: "ResizedAs | None" = None,
        export: str | os.PathLike[str] | None = None,
        export_activations: str | os.PathLike[str] | None = None,
        keep_blocks: bool = False,
        blocks_limit: float = 20.0,
        ensemble: str | Sequence[str] = (),
        name: str | None = None,
        device: str = "auto",
        amp: bool = False,
        score_batch_size: int | None = None,
        skip_unreadable: bool = False,
        progress: Progress = SILENT,
    ) -> "ScoreResult":
        """Score the ID test images and OOD sets by every method, and store the scores.

        The network sees each image once, and not at all where its activations are stored.

        Parameters
        ----------
        method
            One or more, as on the command line; if empty, every method that works from stored
            activations.
        ood, near, far
            OOD sets without a group, near the classes, and far from them: names, folders, files or
            ``NAME=PATH``, one or more, or a dictionary of folders or files by name; if all are
            empty, those of the benchmark.
        shifted_id
            Covariate-shifted ID sets, with labels, for full-spectrum results.
        benchmark
            Name of a benchmark; that of the run's data if None.
        allow_missing
            Whether to continue if sets of the benchmark are missing.
        tune
            ``openood`` or ``pseudo``, or both: how parameters are tuned on validation images.
        tune_ood
            OOD validation images for ``openood``.
        limit
            Score this many images of each set, evenly spaced over it; all if None.
        resize
            Resizing of benchmark images: that of the ``benchmark`` or that of the ``network``; if
            None, that of the published numbers.
        export, export_activations
            Files to write the scores and the activations of this call to.
        keep_blocks, blocks_limit
            Whether to store the pooled maps of all blocks, and their largest size in GB.
        ensemble, name
            Other runs that form an ensemble with this one, and its name; none if empty.
        device
            ``auto``, ``cpu``, ``cuda``, ``cuda:N`` or ``mps``.
        amp
            Whether the network computes in bfloat16.
        score_batch_size
            Images per forward pass; None for a value that suits the device.
        skip_unreadable
            Whether to skip images that cannot be read.
        progress
            Shows the progress of long work; silent by default.

        Returns
        -------
        ScoreResult
            The report of these methods and sets, the forward passes, and in ``undefined`` the
            requested methods that are not defined for this network, with the reason in
            ``left_out``.

        Raises
        ------
        OodError
            If a data set, a method or the device cannot be used, or no method is defined for the
            network and data.

        Examples
        --------
        >>> result = run.score(method=["msp", "energy"], ood=grey)  # an .npz file of grey images
        >>> [row.method for row in result.report.rows if row.dataset == "grey"]
        ['msp', 'energy']
        """
        from oodcli.compute.compute import Compute
        from oodcli.workflows.score import ScoreRequest
        from oodcli.workflows.score import score as score_workflow
        from oodcli.workflows.score_ensemble import EnsembleRequest, score_ensemble

        with naming_arguments():
            request = ScoreRequest(
                run=self.name,
                methods=_as_tuple(method),
                ood=_sets(ood),
                near=_sets(near),
                far=_sets(far),
                shifted_id=_sets(shifted_id),
                benchmark=benchmark,
                allow_missing=allow_missing,
                tune=_as_tuple(tune),
                tune_ood=None if tune_ood is None else os.fspath(tune_ood),
                limit=limit,
                resize=resize,
                compute=Compute.of(device, amp=amp, batch_size=score_batch_size),
                skip_unreadable=skip_unreadable,
                export=_path(export),
                export_activations=_path(export_activations),
                keep_blocks=keep_blocks,
                blocks_limit=blocks_limit,
            )
            if ensemble:
                members = (self.name, *_as_tuple(ensemble))
                asked = EnsembleRequest(members, name, request)
                return score_ensemble(self._store, asked, progress=progress)
            return score_workflow(self._store, request, progress=progress)

    def report(
        self,
        *,
        convention: str | None = None,
        method: str | Sequence[str] = (),
        dataset: str | Sequence[str] = (),
        benchmark: str | None = None,
        limit: int | None = None,
        ci: bool = False,
        compare: tuple[str, str] | None = None,
    ) -> "Report":
        """Tabulate stored scores; loads no network and imports no torch.

        Parameters
        ----------
        convention
            Name of the metric convention; if None, that of the benchmark, or ``neutral`` without
            one.
        method, dataset
            Only these, in this order; all if empty.
        benchmark
            Only the sets of this benchmark, as scored for it; if None, the latest scoring.
        limit
            The scores of this many images of each set; the latest full scoring if None.
        ci
            Whether to give 95 % confidence intervals.
        compare
            Two methods whose AUROC is compared on every OOD set by DeLong's paired test; ``all`` as
            the second stands for every other method.

        Returns
        -------
        Report
            One row per method and set, FPR95 and the areas as fractions.

        Raises
        ------
        MissingArtifactError
            If the run has no such scores.
        OodError
            If a name cannot be used, or the scores cannot be combined in one table.

        Examples
        --------
        >>> table = run.report(convention="openood", method="msp")
        >>> table.convention, {row.method for row in table.rows}
        ('openood', {'msp'})
        """
        from oodcli.reporting.sources import ScoreQuery, Sources
        from oodcli.workflows.report import Statistics
        from oodcli.workflows.report import report as report_workflow

        with naming_arguments():
            query = ScoreQuery(
                runs=(self.name,),
                benchmark=benchmark,
                methods=_as_tuple(method),
                datasets=_as_tuple(dataset),
                limit=limit,
            )
            statistics = Statistics(ci=ci, compare=() if compare is None else (compare,))
            with Sources.open(self._store, query) as sources:
                return report_workflow(sources, convention, statistics)

    def normratio(
        self,
        *,
        max_images: int | None = None,
        normalise: bool = True,
        device: str = "auto",
        amp: bool = False,
        score_batch_size: int | None = None,
        skip_unreadable: bool = False,
        progress: Progress = SILENT,
    ) -> "NormRatioResult":
        """Select a block by NormRatio, without OOD images, and store the result.

        Parameters
        ----------
        max_images
            Use this many evenly spaced training images; all if None.
        normalise
            Whether to normalise the images with the mean and standard deviation of the run. False,
            like ``--no-normalise`` of the command line, reproduces the released script.
        device, amp, score_batch_size, skip_unreadable, progress
            As for :meth:`score`.

        Returns
        -------
        NormRatioResult
            NormRatio of every block, and the index of the selected block.

        Raises
        ------
        OodError
            If the run's data or the device cannot be used.

        Examples
        --------
        >>> result = run.normratio(max_images=8)
        >>> result.n_images, result.selected in [block.index for block in result.blocks]
        (8, True)
        """
        from oodcli.compute.compute import Compute
        from oodcli.workflows.normratio import normratio as normratio_workflow

        with naming_arguments():
            return normratio_workflow(
                self._store,
                run=self.name,
                max_images=max_images,
                normalise=normalise,
                compute=Compute.of(device, amp=amp, batch_size=score_batch_size),
                skip_unreadable=skip_unreadable,
                progress=progress,
            )

    def recommend(
        self,
        *,
        method: str | Sequence[str] = (),
        limit: int | None = None,
        seed: int = 0,
        device: str = "auto",
        amp: bool = False,
        score_batch_size: int | None = None,
        skip_unreadable: bool = False,
        progress: Progress = SILENT,
    ) -> "Recommendation":
        """Recommend a method without OOD images, and store the choice unless it is restricted.

        Parameters
        ----------
        method
            The candidates; if empty, all methods that work from stored activations, and ensembles
            of them.
        limit
            Number of ID images to use, evenly spaced; all if None.
        seed
            Seed of noise, jigsaw puzzles and bootstrap samples.
        device, amp, score_batch_size, skip_unreadable, progress
            As for :meth:`score`.

        Returns
        -------
        Recommendation
            The method, the confidence in it, and every candidate with its mean AUROC against
            corrupted copies of ID images.

        Raises
        ------
        OodError
            If the run's data or the device cannot be used, or no candidate can be evaluated.

        Examples
        --------
        >>> chosen = run.recommend(method=["msp", "energy"])
        >>> chosen.method in ("msp", "energy"), chosen.restricted
        (True, True)
        """
        from oodcli.compute.compute import Compute
        from oodcli.workflows.recommend import RecommendRequest
        from oodcli.workflows.recommend import recommend as recommend_workflow

        with naming_arguments():
            request = RecommendRequest(
                run=self.name,
                methods=_as_tuple(method),
                limit=limit,
                seed=seed,
                compute=Compute.of(device, amp=amp, batch_size=score_batch_size),
                skip_unreadable=skip_unreadable,
            )
            return recommend_workflow(self._store, request, progress=progress)

    def export(
        self,
        method: str,
        output: str | os.PathLike[str],
        *,
        tpr: float | None = None,
        threshold: float | None = None,
        false_alarms: float | None = None,
        input: Literal["uint8", "float32"] = "uint8",  # noqa: A002 - name of the option
        input_size: tuple[int, int] | None = None,
        overwrite: bool = False,
        device: str = "auto",
        skip_unreadable: bool = False,
        progress: Progress = SILENT,
    ) -> "Exported":
        """Write classifier and detector to one ONNX file, verified on real images.

        Parameters
        ----------
        method
            As on the command line; ``auto`` for the recommended method.
        output
            Folder for ``model.onnx`` and ``model.json``.
        tpr, threshold, false_alarms
            As for :meth:`detector`.
        input
            ``uint8`` for pixels from 0 to 255, ``float32`` for pixels from 0 to 1.
        input_size
            Height and width of the input images; those of the network if None.
        overwrite
            Whether to replace files that are not an export of ood.
        device, skip_unreadable, progress
            As for :meth:`score`; the method is fitted on the device.

        Returns
        -------
        Exported
            The folder, the content of ``model.json``, and the differences from the results of ood.

        Raises
        ------
        MissingArtifactError
            If the extra ``onnx`` is not installed.
        OodError
            If the method, the network or an argument cannot be used, or the exported file gives
            different results. Then nothing is written.

        Examples
        --------
        >>> exported = run.export("energy", folder / "screen", tpr=0.9)
        >>> sorted(path.name for path in exported.folder.iterdir())
        ['model.json', 'model.onnx']
        """
        from oodcli.compute.compute import Compute
        from oodcli.screening.thresholds import ThresholdRule
        from oodcli.workflows.export import ExportRequest
        from oodcli.workflows.export import export as export_workflow

        with naming_arguments():
            request = ExportRequest(
                method,
                Path(output),
                run=self.name,
                rule=ThresholdRule(tpr, threshold, false_alarms),
                input=input,
                input_size=input_size,
                overwrite=overwrite,
                compute=Compute.of(device),
                skip_unreadable=skip_unreadable,
            )
            return export_workflow(self._store, request, progress=progress)


def load_run(name: str | None = None, *, store: str | os.PathLike[str] | None = None) -> LoadedRun:
    """Open a finished run.

    Parameters
    ----------
    name
        Name of the run; if None, the one that was created last.
    store
        The folder of the store; that of the command line if None.

    Raises
    ------
    OodError
        If the run does not exist or is not finished.

    Examples
    --------
    >>> load_run("tiny", store=store).classes
    ('blue', 'red')
    """
    with naming_arguments():
        place = Store.at(None if store is None else Path(store))
        return LoadedRun(place, find_run(place, name))


def load_detector(
    file: str | os.PathLike[str],
    *,
    tpr: float | None = None,
    threshold: float | None = None,
    false_alarms: float | None = None,
    fdr: float | None = None,
    per_class: bool = False,
    engine: Literal["torch", "onnx"] | None = None,
    device: str = "auto",
    amp: bool = False,
    score_batch_size: int | None = None,
    allow_code: bool = False,
) -> "BaseDetector":
    """Load a detector from one file; needs no store and no training data.

    Parameters
    ----------
    file
        A file of ``ood detector pack``, or ``model.onnx`` of ``ood export``, or its folder.
    tpr
        Share of ID images that the threshold accepts; if None, the threshold of the file.
    threshold
        A fixed threshold, instead of ``tpr``.
    false_alarms, fdr, per_class
        As for :meth:`LoadedRun.detector`.
    engine
        ``torch``, or ``onnx`` for ONNX Runtime, which imports no torch; if None, torch, or ONNX
        Runtime for a file that has only a graph.
    device
        ``auto``, ``cpu``, ``cuda``, ``cuda:N`` or, with torch, ``mps``.
    amp
        Whether the network computes in bfloat16, as when the method was fitted.
    score_batch_size
        Images per forward pass; None for a value that suits the device.
    allow_code
        Whether the module with your own network, which the file names, may be imported.

    Returns
    -------
    BaseDetector
        A detector with the methods of :class:`Detector`. It can be pickled: the pickle has the path
        of the file, and the detector is loaded in the other process when it is first used.

    Raises
    ------
    OodError
        If the file, the engine or the device cannot be used.

    Examples
    --------
    >>> detector = load_detector(packed)
    >>> detector.method, len(detector.predict(images))
    ('energy', 8)
    """
    from oodcli.screening.thresholds import ThresholdRule
    from oodcli.workflows.engines import DetectorRequest, detector_of_file

    with naming_arguments():
        return detector_of_file(
            DetectorRequest(
                file=Path(file),
                rule=ThresholdRule(tpr, threshold, false_alarms, fdr, per_class),
                engine=engine,
                device=device,
                amp=amp,
                batch_size=score_batch_size,
                allow_code=allow_code,
            )
        )


def predict(
    images: "Images",
    method: str | None = None,
    *,
    run: str | None = None,
    tpr: float | None = None,
    threshold: float | None = None,
    device: str = "auto",
    store: str | os.PathLike[str] | None = None,
    errors: Literal["raise", "row"] = "raise",
) -> "Predictions":
    """Judge images once; to judge images repeatedly, use :meth:`LoadedRun.detector`.

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

    Examples
    --------
    >>> predictions = predict(images, "energy", run="tiny", store=store)
    >>> len(predictions), predictions.score.dtype.name
    (8, 'float64')
    """
    detector = load_run(run, store=store).detector(
        method, tpr=tpr, threshold=threshold, device=device
    )
    return detector.predict(images, errors=errors)


def _as_tuple(given: _Word | Sequence[_Word]) -> tuple[_Word, ...]:
    """Return one word or a sequence of words as a tuple."""
    return (given,) if isinstance(given, str) else tuple(given)


def _sets(given: DataSets) -> tuple[str, ...]:
    """Return data sets as the command line takes them; a dictionary gives them names."""
    if isinstance(given, Mapping):
        named = [f"{name}={os.fspath(each)}" for name, each in given.items()]
    elif isinstance(given, str | os.PathLike):
        named = [os.fspath(given)]
    else:
        named = [os.fspath(each) for each in given]
    return tuple(map(without_credentials, named))


def _path(given: str | os.PathLike[str] | None) -> Path | None:
    return None if given is None else Path(given)
