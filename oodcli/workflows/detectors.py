"""Fitted detectors: a method of a run with the ID scores that say what its scores mean.

::

    <run>/detectors/<digest of method and precision>/
      detector.json          what it is, from which images its threshold comes, and when it was made
      detector.safetensors   its arrays, and the ID scores

The JSON file is written last and names the digest of the other one. With both there, images are
screened without the training set, which may be gone.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from fractions import Fraction
from numbers import Real
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray

from oodcli import __version__
from oodcli.activations import Activations
from oodcli.errors import CorruptArtifactError, InvalidInputError
from oodcli.images import ImageSet
from oodcli.methods import Fitted, MethodSpec, parse_method
from oodcli.methods.ensemble import AUTO
from oodcli.methods.stored import UnstorableError, pack, read_arrays, unpack, write_arrays
from oodcli.metrics import MOSTLY_TIED, tied_share
from oodcli.models import Network, load_run_network
from oodcli.progress import Progress, Silent
from oodcli.runs import Run, RunFolder, now
from oodcli.store import (
    Store,
    digest_of_file,
    digest_of_json,
    read_json,
    remove_leftovers,
    replacing,
    write_json,
)
from oodcli.workflows.activate import Activator
from oodcli.workflows.detect import Detectors, fit_all
from oodcli.workflows.own_images import OwnImages
from oodcli.workflows.recommend import default_method, recommended_method
from oodcli.workflows.run_data import RunData

# Raised whenever the same fitted method would be stored, or would score, otherwise.
DETECTOR_SCHEMA = 2
TPR = 0.95

_RECORD = "detector.json"
_ARRAYS = "detector.safetensors"
_ID_SCORES = "id-scores"


@dataclass(frozen=True)
class Threshold:
    """The score from which on an image counts as in-distribution.

    Parameters
    ----------
    value
        The score.
    tpr
        Share of ID images with at least that score.
    n
        Number of ID scores that say so.
    below
        How many of these are taken to lie below it.
    given
        Whether the user gave the score.
    stderr
        Standard error of the score; None for a given one.
    share_stderr
        Standard error of the share of other ID images with at least that score; None for a given
        one.
    """

    value: float
    tpr: float
    n: int
    below: int
    given: bool = False
    stderr: float | None = None
    share_stderr: float | None = None


@dataclass(frozen=True)
class Detector:
    """A fitted method of a run, ready to judge images that nobody has seen.

    Parameters
    ----------
    run
        Name of the run.
    record
        Record of the run: its network, its preprocessing and its classes.
    fitted
        The method.
    id_scores
        Scores of ID images that it was not trained on, float64, ascending, ``(n,)``.
    id_part
        Part of the run's data that these are of: ``val`` where there is one, else ``test``.
    id_data
        Name of the run's data.
    id_digest
        Digest of the pixels of these images.
    precision
        ``float32`` or ``bfloat16``.
    created
        When it was fitted, UTC.
    """

    run: str
    record: Run
    fitted: Fitted
    id_scores: NDArray[np.float64]
    id_part: str
    id_data: str
    id_digest: str
    precision: str
    created: str

    @property
    def method(self) -> str:
        """Canonical name of the method."""
        return self.fitted.canonical

    def threshold(self, tpr: float = TPR) -> Threshold:
        """Return the highest score that a share of the ID images reaches.

        Parameters
        ----------
        tpr
            The share, above 0 and at most 1.

        Raises
        ------
        InvalidInputError
            If it is out of range.

        Notes
        -----
        It is the threshold of :func:`oodcli.metrics.fpr_at_tpr` with the rule ``first_ge``. Of
        ``n`` ID scores, a number with the standard deviation ``s = sqrt(n p (1 - p))`` lies below
        the quantile of which ``t`` is an estimate; the standard error of ``t`` is half the
        difference of the scores that stand ``s`` ranks above and below it. That of the share of
        other ID images is ``sqrt(p (1 - p) / n)``.
        """
        check_threshold(tpr, None)
        scores = self.id_scores
        n = len(scores)
        rank = n - math.ceil(Fraction(str(tpr)) * n)
        spread = math.sqrt(n * tpr * (1 - tpr))
        low, high = max(rank - spread, 0.0), min(rank + spread, n - 1.0)
        stderr = 0.0
        if high > low:
            ends = np.interp([low, high], np.arange(n), scores)
            # Where a side ends before that many ranks, the other one speaks for it.
            stderr = float(ends[1] - ends[0]) / (high - low) * spread
        return Threshold(
            float(scores[rank]),
            tpr,
            n,
            rank,
            stderr=stderr,
            share_stderr=math.sqrt(tpr * (1 - tpr) / n),
        )

    def given_threshold(self, value: float) -> Threshold:
        """Return a threshold that the user has chosen, with the share of ID images that reach it.

        Raises
        ------
        InvalidInputError
            If it is no finite number.
        """
        check_threshold(None, value)
        below = int(np.searchsorted(self.id_scores, value, side="left"))
        n = len(self.id_scores)
        return Threshold(value, 1 - below / n, n, below, given=True)

    def chosen(self, tpr: float | None, value: float | None) -> Threshold:
        """Return the threshold that is given, or that of a share of ID images, 0.95 if None."""
        if value is not None:
            return self.given_threshold(value)
        return self.threshold(TPR if tpr is None else tpr)

    def score(self, batch: Activations) -> NDArray[np.float64]:
        """Return the scores of images from their activations, ``(n,)``, larger for more ID."""
        with torch.inference_mode():
            return self.fitted.detector.score(batch).cpu().double().numpy()

    def percentile(self, scores: ArrayLike) -> NDArray[np.float64]:
        """Return the share of ID scores below each score, in percent, ``(n,)``."""
        below = np.searchsorted(self.id_scores, np.asarray(scores, dtype=np.float64), side="left")
        return 100 * below / len(self.id_scores)

    def verdicts(self, scores: ArrayLike, threshold: Threshold) -> NDArray[np.bool_]:
        """Return whether each image counts as in-distribution, ``(n,)``."""
        return np.asarray(scores, dtype=np.float64) >= threshold.value

    def network(self, folder: RunFolder) -> Network:
        """Load the network of the run.

        Raises
        ------
        CorruptArtifactError
            If its weights are not what was written.
        """
        folder.check_weights(self.record)
        run = self.record
        return load_run_network(
            folder.weights,
            run.arch,
            len(run.class_names),
            size=run.preprocess.size,
            blocks=run.blocks,
        )

    def origin(self) -> dict[str, Any]:
        """Return what a threshold has to be stored with: method, data and date."""
        return {
            "run": self.run,
            "network": self.record.network,
            "method": self.method,
            "params": dict(self.fitted.params),
            "precision": self.precision,
            "id_data": self.id_data,
            "id_part": self.id_part,
            "id_images": len(self.id_scores),
            "id_digest": self.id_digest,
            "created": self.created,
        }


def check_threshold(tpr: float | None, value: float | None) -> None:
    """Refuse what sets no threshold, before anything is opened.

    Parameters
    ----------
    tpr
        Share of ID images to accept, if it was given.
    value
        The threshold itself, if it was given.

    Raises
    ------
    InvalidInputError
        If both are given, one is no number, the share is not above 0 and at most 1, or the
        threshold is not finite.
    """
    if tpr is not None and value is not None:
        raise InvalidInputError("--tpr and --threshold both set the threshold; give one of them")
    for option, given in (("--tpr", tpr), ("--threshold", value)):
        if not isinstance(given, Real | None):  # callers from Python may give anything
            raise InvalidInputError(f"{option} must be a number, not {given!r}")
    if tpr is not None and not 0 < tpr <= 1:
        raise InvalidInputError(f"--tpr must be above 0 and at most 1, not {tpr:g}")
    if value is not None and not math.isfinite(value):
        raise InvalidInputError(f"--threshold must be a finite number, not {value}")


def detector_for(
    store: Store,
    folder: RunFolder,
    method: str | None,
    *,
    device: torch.device,
    amp: bool = False,
    batch_size: int | None = None,
    skip_unreadable: bool = False,
    progress: Progress | None = None,
) -> Detector:
    """Return the detector of a run: the stored one, or one that is fitted and stored now.

    Parameters
    ----------
    store
        Where the run is.
    folder
        The run.
    method
        The method as written on the command line; ``auto`` for the recommended one, which is
        chosen now if it was not yet; None for the recommended one if it was chosen, else ``msp``.
    device
        Where it scores.
    amp
        Whether the network computes in bfloat16.
    batch_size
        Images at a time where activations have to be computed; None for what suits the device.
    skip_unreadable
        Whether to leave out images of the run that cannot be decoded.
    progress
        Told of fitting, and of what looked wrong when the run was imported.

    Raises
    ------
    OodError
        If the run or the method cannot be used, or there is no stored detector and the data of the
        run cannot be opened.

    Notes
    -----
    A stored detector belongs to the weights, the preprocessing, the method and the precision; where
    one of these differs it is fitted again. It keeps the images that its threshold is from, though
    images may have been added to the data since.
    """
    watch = progress or Silent()
    detector = _found_or_fitted(
        store, folder, method,
        device=device, amp=amp, batch_size=batch_size, skip_unreadable=skip_unreadable,
        progress=watch,
    )  # fmt: skip
    tied = tied_share(detector.id_scores)
    if tied > MOSTLY_TIED:
        watch.note(
            f"{100 * tied:.0f} % of the {len(detector.id_scores):,} ID scores of {detector.method} "
            "tie with another, so that its threshold is coarse; another method ranks images better"
        )
    return detector


def _found_or_fitted(
    store: Store,
    folder: RunFolder,
    method: str | None,
    *,
    device: torch.device,
    amp: bool,
    batch_size: int | None,
    skip_unreadable: bool,
    progress: Progress,
) -> Detector:
    record = folder.read()
    for warning in record.warnings:
        progress.note(f"warning: when run {folder.name} was imported, {warning}")
    if method is None:
        method = default_method(store, folder, device=device, amp=amp, progress=progress)
    elif method == AUTO:
        method = recommended_method(store, folder, device=device, amp=amp, progress=progress)
        progress.note(f"method: {method}, recommended for run {folder.name}")
    spec = parse_method(method)
    kept = _Kept(folder, record, spec.canonical, "bfloat16" if amp else "float32")
    found = kept.read(device)
    if found is not None:
        return found
    with store.lock(f"detector {spec.canonical} of run {folder.name}", progress=progress):
        # Another process may have made it while this one waited.
        found = kept.read(device)
        if found is not None:
            return found
        activator = Activator(
            store, folder, record, device=device, amp=amp, batch_size=batch_size, progress=progress
        )
        data = RunData.of(store, folder, record, skip_unreadable=skip_unreadable, progress=progress)
        detector = _fitted(kept, spec, OwnImages(folder, data, activator), progress)
        try:
            kept.write(detector)
        except UnstorableError as error:
            progress.note(
                f"{spec.canonical} cannot be stored ({error}): it is fitted anew each time"
            )
    return detector


def _fitted(kept: "_Kept", spec: MethodSpec, own: OwnImages, progress: Progress) -> Detector:
    """Fit a method, and score ID images that the network was not trained on."""
    data, activator = own.data, own.activator
    part = "val" if "val" in data.dataset.parts else data.dataset.test_name
    images: ImageSet = data.images(part)
    found: Detectors = fit_all(
        [spec],
        own.reference(),
        progress=progress,
        calibrated_on=own.calibration_part if spec.needs_calibration else "val",
    )
    found.try_probes(activator.try_probes)
    found.require_all()
    activations = activator.activations(images, probes=found.probes)
    scored = found.score(activations, images.name, progress=progress)
    found.require_all()
    (scores,) = scored.values()
    return Detector(
        run=kept.folder.name,
        record=kept.record,
        fitted=found.fitted[0],
        id_scores=np.sort(scores.astype(np.float64)),
        id_part=part,
        id_data=data.dataset.name,
        id_digest=images.digest,
        precision=kept.precision,
        created=now(),
    )


@dataclass(frozen=True)
class _Kept:
    """Where the detector of a method is stored."""

    folder: RunFolder
    record: Run
    method: str
    precision: str

    @property
    def key(self) -> dict[str, Any]:
        """What a stored detector must belong to."""
        return {
            "schema": DETECTOR_SCHEMA,
            "network": self.record.network,
            "preprocess": _plain(asdict(self.record.preprocess)),
            "method": self.method,
            "precision": self.precision,
        }

    @property
    def place(self) -> Path:
        """Folder of the detector."""
        return self.folder.detectors / digest_of_json([self.method, self.precision])[:16]

    def write(self, detector: Detector) -> None:
        """Store a detector.

        Raises
        ------
        UnstorableError
            If the fitted method cannot be stored.
        """
        structure, arrays = pack(detector.fitted.detector)
        arrays[_ID_SCORES] = torch.from_numpy(detector.id_scores)
        remove_leftovers(self.place, older_than_s=0)
        path = self.place / _ARRAYS
        with replacing(path) as stream:
            write_arrays(stream, arrays)
        content = {
            "kind": "ood-detector",
            "key": self.key,
            "origin": detector.origin(),
            "threshold": asdict(detector.threshold()),
            "version": __version__,
            "digest": digest_of_file(path),
            "detector": structure,
        }
        write_json(self.place / _RECORD, content)

    def read(self, device: torch.device) -> Detector | None:
        """Return the stored detector; None if there is none that can be relied on."""
        try:
            content = read_json(self.place / _RECORD)
            path = self.place / _ARRAYS
            if content["key"] != self.key or content["digest"] != digest_of_file(path):
                return None
            arrays = read_arrays(path)
            origin = content["origin"]
            scorer: Any = unpack(content["detector"], arrays, device)
            if not callable(getattr(scorer, "score", None)):
                return None
            return Detector(
                run=self.folder.name,
                record=self.record,
                fitted=Fitted(self.method, origin["params"], scorer),
                id_scores=arrays[_ID_SCORES].numpy().copy(),
                id_part=origin["id_part"],
                id_data=origin["id_data"],
                id_digest=origin["id_digest"],
                precision=self.precision,
                created=origin["created"],
            )
        except (FileNotFoundError, CorruptArtifactError, KeyError, TypeError):
            return None


def _plain(value: object) -> Any:  # noqa: ANN401 - what JSON reads back
    if isinstance(value, Mapping):
        return {key: _plain(each) for key, each in value.items()}
    if isinstance(value, Sequence) and not isinstance(value, str):
        return [_plain(each) for each in value]
    return value
