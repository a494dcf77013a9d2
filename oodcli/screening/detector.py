"""Fitted detectors: a method of a run, with scores of ID images as its reference.

::

    <run>/detectors/<digest of method and precision>/
      detector.json          method, ID images behind the threshold, and time of fitting
      detector.safetensors   arrays of the method, and scores, classes and features of ID images

The JSON file is written last and contains the digest of the other one. With both files, images are
screened without the training set, which need not exist any more.
"""

import contextlib
import functools
import threading
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from oodcli.activations import Activations, ActivationSet
from oodcli.compute.compute import Compute, Precision
from oodcli.compute.devices import explain_out_of_memory, find_device
from oodcli.data.views import View
from oodcli.errors import (
    CorruptArtifactError,
    InvalidInputError,
    MissingArtifactError,
    OodError,
    UndefinedMethodError,
)
from oodcli.images import ImageSet
from oodcli.methods import Fitted, MethodSpec, parse_method
from oodcli.methods._stored import UnstorableError, pack, read_tensors, unpack, write_arrays
from oodcli.metrics import MOSTLY_TIED, tied_share
from oodcli.models import Network, load_run_network
from oodcli.models.extraction import ReadyNetwork
from oodcli.scoring.fitting import fit_all, without_logits
from oodcli.scoring.open_run import OpenRun
from oodcli.screening.base import About, BaseDetector, IdScores, Outputs, Reference
from oodcli.screening.thresholds import (
    DEFAULT_RULE,
    Threshold,
    ThresholdRule,
)
from oodcli.store.preprocess import Preprocess
from oodcli.store.runs import Run, RunFolder, utc_now
from oodcli.store.store import (
    atomic_write,
    digest_of_file,
    read_json,
    remove_leftovers,
    write_json,
)
from oodcli.version import __version__

# Incremented whenever the stored form or the scores of the same fitted method change.
DETECTOR_SCHEMA = 4

_RECORD = "detector.json"
_ARRAYS = "detector.safetensors"
_UNDEFINED = "undefined.json"
_ID_SCORES = "id-scores"
_ID_CLASSES = "id-classes"
_ID_FEATURES = "id-features"
# Features of this many ID images are stored: enough to compare distributions with.
ID_FEATURES = 1000


def chances_of(logits: Tensor, predicted: Tensor) -> Tensor:
    """Return the softmax probability of the predicted classes, ``(n,)``; NaN without a classifier.

    Parameters
    ----------
    logits
        ``(n, k)``.
    predicted
        ``(n,)``.
    """
    if logits.shape[1] == 0:
        return logits.new_full(logits.shape[:1], torch.nan)
    return logits.softmax(dim=1).gather(1, predicted[:, None])[:, 0]


@dataclass(frozen=True, eq=False)
class Detector(BaseDetector):
    """A fitted method of a run with a threshold, for judging new images.

    Created by :meth:`oodcli.LoadedRun.detector` or :func:`detector_for`.

    Parameters
    ----------
    source
        Where the network is, and how another process finds the detector.
    record
        Record of the run: network, preprocessing and classes.
    fitted
        The fitted method.
    compute
        Device, precision and batch size.

    Notes
    -----
    The network is loaded for the first image and kept in memory; detectors that differ only in
    their thresholds share it. A detector may be used from several threads. It is pickled by
    reference to its run or file.
    """

    source: "NetworkSource"
    record: Run
    fitted: Fitted
    compute: Compute

    @property
    def engine(self) -> str:
        """What runs network and method."""
        return "torch"

    @contextlib.contextmanager
    def outputs(self, shards: Iterable[NDArray[np.uint8]]) -> Iterator[Iterator[Outputs]]:
        """Run network and method; see :meth:`BaseDetector.outputs`."""
        pre, compute = self.about.preprocess, self.compute
        with explain_out_of_memory(
            compute.device, "use fewer images per forward pass: --score-batch-size N"
        ):
            passes = self.ready.extract(
                shards,
                mean=pre.mean,
                std=pre.std,
                batch_size=compute.batch_size,
                probes=self.fitted.probes,
                to=compute.device,
            )
            yield map(self._outputs_of, passes)

    def _outputs_of(self, activations: Activations) -> Outputs:
        logits, predicted = activations.logits.cpu(), activations.predictions.cpu()
        with self.source.scoring():
            score = self.scores_of(activations)
        return Outputs(
            classes=predicted.numpy(),
            probability=chances_of(logits.double(), predicted).numpy(),
            score=score,
            features=activations.features.float().cpu().numpy(),
        )

    def scores_of(self, batch: Activations) -> NDArray[np.float64]:
        """Return scores from activations, float64 ``(n,)``; larger = more in-distribution."""
        with torch.inference_mode():
            return self.fitted.detector.score(batch).cpu().double().numpy()

    def network(self) -> Network:
        """Load the network of the run.

        Raises
        ------
        CorruptArtifactError
            If its weights are damaged.
        """
        return self.source.network()

    @property
    def ready(self) -> ReadyNetwork:
        """The network on the device of the detector, loaded on first use."""
        return self.source.ready(self.compute)

    def reference(self) -> Reference:
        """Return how another process finds this detector."""
        return self.source.reference(self)


class NetworkSource(ABC):
    """Where the network of a detector is; it is loaded once for each device and precision."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._loaded: dict[tuple[torch.device, str], ReadyNetwork] = {}

    @abstractmethod
    def network(self) -> Network:
        """Load the network.

        Raises
        ------
        CorruptArtifactError
            If its weights are damaged.
        """

    @abstractmethod
    def reference(self, detector: Detector) -> Reference:
        """Return how another process finds a detector with this network.

        Raises
        ------
        InvalidInputError
            If it cannot be found there.
        """

    def scoring(self) -> contextlib.AbstractContextManager[None]:
        """Return a context for scoring; fitted methods of a store need no precautions."""
        return contextlib.nullcontext()

    def ready(self, compute: Compute) -> ReadyNetwork:
        """Return the network on a device, loaded on first use."""
        key = (compute.device, compute.precision)
        with self._lock:
            if key not in self._loaded:
                self._loaded[key] = ReadyNetwork(
                    self.network(), device=compute.device, precision=compute.precision
                )
            return self._loaded[key]


class RunSource(NetworkSource):
    """The folder of a run.

    Parameters
    ----------
    folder, record
        The run.
    """

    def __init__(self, folder: RunFolder, record: Run) -> None:
        super().__init__()
        self.folder = folder
        self._record = record

    def network(self) -> Network:
        """Load the network; see :meth:`NetworkSource.network`."""
        run = self._record
        self.folder.check_weights(run)
        return load_run_network(
            self.folder.weights,
            run.arch,
            run.outputs,
            size=run.preprocess.size,
            blocks=run.blocks,
        )

    def reference(self, detector: Detector) -> Reference:
        """Return how another process finds a detector; see :meth:`NetworkSource.reference`."""
        compute = detector.compute
        folder = _DetectorFolder(self.folder, self._record, detector.method, compute)
        if not folder.is_stored:
            raise InvalidInputError(
                f"a detector of {detector.method} cannot be pickled, because the method cannot be "
                "stored; make the detector in each process"
            )
        return _RunReference(
            self.folder.path,
            detector.method,
            detector.about.created,
            detector.threshold,
            str(compute.device),
            compute.precision,
            compute.batch_size,
        )


@dataclass(frozen=True)
class _RunReference:
    """A stored detector of a run; see :class:`Reference`."""

    folder: Path
    method: str
    created: str
    threshold: Threshold
    device: str
    precision: Precision
    batch_size: int | None

    def load(self) -> Detector:
        """Return the detector; its network is shared by all that are loaded in this process."""
        with _LOADING:
            found = _stored_detector(
                self.folder, self.method, self.created,
                Compute(find_device(self.device), self.precision, self.batch_size),
            )  # fmt: skip
        return replace(found, threshold=self.threshold)


_LOADING = threading.Lock()


@functools.lru_cache(maxsize=8)
def _stored_detector(folder: Path, method: str, created: str, compute: Compute) -> Detector:
    run = RunFolder(folder)
    found = _DetectorFolder(run, run.read(), method, compute).read()
    if found is None or found.about.created != created:
        raise MissingArtifactError(
            f"the detector of {method} that was pickled is no longer stored in run {run.name}; "
            "make and pickle it again"
        )
    return found


def detector_for(run: OpenRun, method: str, rule: ThresholdRule = DEFAULT_RULE) -> Detector:
    """Return a detector of a run: the stored one if it exists, else one that is fitted and stored.

    Parameters
    ----------
    run
        The run; the warnings of its import are repeated.
    method
        The method, as on the command line, but not ``auto``.
    rule
        Rule for the threshold.

    Raises
    ------
    OodError
        If the method cannot be used, or there is no stored detector and the data of the run cannot
        be opened.

    Notes
    -----
    A stored detector depends on weights, preprocessing, method and precision; if one of these
    differs, the detector is fitted again. Its threshold remains based on the same ID images, even
    if images have been added to the data later.
    """
    spec = parse_method(method)
    if not run.record.outputs:
        without_logits(run.name, [spec])
        if rule.per_class:
            raise InvalidInputError(
                f"--per-class needs the predicted class, and run {run.name} is an encoder without "
                "a classifier; leave it out"
            )
    for warning in run.record.warnings:
        run.progress.note(f"warning: when run {run.name} was imported, {warning}")
    detector = _load_or_fit(run, spec)
    scores = detector.id.values
    tied = tied_share(scores)
    if tied > MOSTLY_TIED:
        run.progress.note(
            f"{100 * tied:.0f} % of the {len(scores):,} ID scores of {detector.method} "
            "are tied with another score, so its threshold is coarse; other methods rank images "
            "more finely"
        )
    return detector.with_rule(rule)


def detector_or_reason(
    run: OpenRun, method: str, rule: ThresholdRule = DEFAULT_RULE
) -> Detector | str:
    """Return a detector of a run as :func:`detector_for`, or why its method is not defined there.

    The reason is stored with the run, so that later calls need not try to fit the method, which
    takes a pass over the training images; a new version of ood tries again.

    Parameters
    ----------
    run, method, rule
        As for :func:`detector_for`.

    Raises
    ------
    OodError
        As for :func:`detector_for`, but for methods that are not defined.
    """
    folder = _DetectorFolder(run.folder, run.record, parse_method(method).canonical, run.compute)
    reason = None if folder.is_stored else folder.undefined()
    if reason is None:
        try:
            return detector_for(run, method, rule)
        except UndefinedMethodError as error:
            reason = str(error)
            folder.write_undefined(reason)
    return reason


def is_stored(run: OpenRun, method: str) -> bool:
    """Return whether a run has the detector of a method, so that none need be fitted.

    Parameters
    ----------
    run
        The run.
    method
        The method, as on the command line, but not ``auto``.
    """
    name = parse_method(method).canonical
    return _DetectorFolder(run.folder, run.record, name, run.compute).read() is not None


def _load_or_fit(run: OpenRun, spec: MethodSpec) -> Detector:
    progress = run.progress
    folder = _DetectorFolder(run.folder, run.record, spec.canonical, run.compute)
    stored = folder.read()
    if stored is not None:
        return stored
    if not run.store.is_writable:
        raise MissingArtifactError(
            f"no fitted {spec.canonical} is stored for run {run.name}, and the store "
            f"{run.store.root} is not writable, so that it cannot be fitted now; run the command "
            "once where the store can be written"
        )
    with run.store.lock(f"detector {spec.canonical} of run {run.name}", progress=progress):
        # Another process may have fitted it while this one waited.
        stored = folder.read()
        if stored is not None:
            return stored
        detector = _fit(folder, spec, run)
        try:
            folder.write(detector)
        except UnstorableError as error:
            progress.note(f"{spec.canonical} cannot be stored ({error}): it is refitted each time")
    return detector


def _fit(folder: "_DetectorFolder", spec: MethodSpec, run: OpenRun) -> Detector:
    """Fit a method, and score ID images that the network was not trained on."""
    activator, data, progress = run.activator, run.data, run.progress
    part = "val" if "val" in data.dataset.parts else data.dataset.test_name
    # Probes need a later pass, which also gives the ordinary activations.
    seen = None if spec.needs_network else run.while_decoding(part, {View(): False})
    images: ImageSet = data.images(part, seen=seen)
    found = fit_all(
        [spec],
        run.reference(),
        progress=progress,
        calibrated_on=run.calibration_part if spec.needs_calibration else "val",
    )
    found = found.with_defined_probes(activator.try_probes)
    found.require_all()
    activations = activator.activations(images, probes=found.probes)
    found, scored = found.score(activations, images.name, progress=progress)
    found.require_all()
    (scores,) = scored.values()
    order = np.argsort(scores, kind="stable")
    return folder.detector(
        found.fitted[0],
        IdScores(
            scores[order].astype(np.float64),
            part,
            data.dataset.name,
            images.digest,
            classes=activations.predictions.cpu().numpy()[order],
            features=_sample_features(activations),
        ),
        created=utc_now(),
    )


def _sample_features(activations: ActivationSet) -> NDArray[np.float32]:
    """Return the features of up to ``ID_FEATURES`` random images, float32 ``(k, d)``."""
    n = len(activations)
    rows = np.sort(np.random.default_rng(0).choice(n, min(n, ID_FEATURES), replace=False))
    found, start = [], 0
    for chunk in activations.chunks():
        inside = rows[(rows >= start) & (rows < start + len(chunk))] - start
        found.append(chunk.features[torch.from_numpy(inside).to(chunk.features.device)])
        start += len(chunk)
    return torch.cat(found).float().cpu().numpy()


@dataclass(frozen=True)
class _DetectorFolder:
    """Where the detector of a method is stored."""

    folder: RunFolder
    record: Run
    method: str
    compute: Compute

    @property
    def key(self) -> dict[str, Any]:
        """What a stored detector must belong to."""
        return {
            "schema": DETECTOR_SCHEMA,
            "network": self.record.network,
            "preprocess": _known(self.record.preprocess),
            "method": self.method,
            "precision": self.compute.precision,
        }

    @property
    def path(self) -> Path:
        """Folder of the detector."""
        return self.folder.detector(self.method, self.compute.precision)

    @property
    def is_stored(self) -> bool:
        """Whether there is a stored detector."""
        return (self.path / _RECORD).is_file()

    def detector(self, fitted: Fitted, scores: IdScores, *, created: str) -> Detector:
        """Return a detector of this run, method and precision, with the default threshold."""
        record = self.record
        about = About(
            run=self.folder.name,
            network=record.network,
            method=fitted.canonical,
            params=fitted.params,
            precision=self.compute.precision,
            created=created,
            classes=record.class_names,
            preprocess=record.preprocess,
        )
        return Detector(
            about=about,
            id=scores,
            threshold=DEFAULT_RULE.on(scores.values),
            source=RunSource(self.folder, record),
            record=record,
            fitted=fitted,
            compute=self.compute,
        )

    def undefined(self) -> str | None:
        """Return the stored reason why the method is not defined; None if there is none."""
        try:
            content = read_json(self.path / _UNDEFINED)
            current = content["key"] == self.key and content["version"] == __version__
            return str(content["reason"]) if current else None
        except (FileNotFoundError, CorruptArtifactError, KeyError, TypeError):
            return None

    def write_undefined(self, reason: str) -> None:
        """Store why the method is not defined, if the store can be written."""
        content = {"kind": "ood-undefined", "key": self.key, "version": __version__}
        with contextlib.suppress(OSError, OodError):
            write_json(self.path / _UNDEFINED, content | {"reason": reason})

    def write(self, detector: Detector) -> None:
        """Store a detector.

        Raises
        ------
        UnstorableError
            If the fitted method cannot be stored.
        """
        structure, arrays = pack(detector.fitted.detector)
        arrays[_ID_SCORES] = torch.from_numpy(detector.id.values)
        arrays[_ID_CLASSES] = torch.from_numpy(detector.id.classes)
        arrays[_ID_FEATURES] = torch.from_numpy(detector.id.features)
        remove_leftovers(self.path, older_than_s=0)
        path = self.path / _ARRAYS
        with atomic_write(path) as stream:
            write_arrays(stream, arrays)
        content = {
            "kind": "ood-detector",
            "key": self.key,
            "origin": detector.origin(),
            "threshold": detector.threshold.to_json(),
            "version": __version__,
            "digest": digest_of_file(path),
            "detector": structure,
        }
        write_json(self.path / _RECORD, content)

    def read(self) -> Detector | None:
        """Return the stored detector; None if there is none or it is damaged or outdated."""
        try:
            content = read_json(self.path / _RECORD)
            path = self.path / _ARRAYS
            if content["key"] != self.key or content["digest"] != digest_of_file(path):
                return None
            arrays = read_tensors(path)
            origin = content["origin"]
            scorer: Any = unpack(content["detector"], arrays, self.compute.device)
            if not callable(getattr(scorer, "score", None)):
                return None
            return self.detector(
                Fitted(self.method, origin["params"], scorer),
                IdScores(
                    arrays[_ID_SCORES].numpy().copy(),
                    part=origin["id_part"],
                    data=origin["id_data"],
                    digest=origin["id_digest"],
                    classes=arrays[_ID_CLASSES].numpy().copy(),
                    features=arrays[_ID_FEATURES].numpy().copy(),
                ),
                created=origin["created"],
            )
        except (FileNotFoundError, CorruptArtifactError, KeyError, TypeError):
            return None


def _known(preprocess: Preprocess) -> Any:  # noqa: ANN401 - as JSON has it
    """Return the preprocessing as stored detectors have it: without a window if there is none."""
    values = asdict(preprocess)
    return _plain(
        values if preprocess.window else {k: v for k, v in values.items() if k != "window"}
    )


def _plain(value: object) -> Any:  # noqa: ANN401 - what JSON reads back
    if isinstance(value, Mapping):
        return {key: _plain(each) for key, each in value.items()}
    if isinstance(value, Sequence) and not isinstance(value, str):
        return [_plain(each) for each in value]
    return value
