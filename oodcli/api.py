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

import importlib
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from oodcli.arguments import speaking_of_arguments
from oodcli.progress import Progress
from oodcli.runs import Run, RunFolder, find_run, using_run
from oodcli.store import Store

if TYPE_CHECKING:
    from oodcli.workflows.detectors import Detector
    from oodcli.workflows.given import Images
    from oodcli.workflows.judging import Predictions

__all__ = ["Detector", "LoadedRun", "Predictions", "load_run", "predict"]

# Names of classes that need torch, and where they are.
_LATE = {
    "Detector": "oodcli.workflows.detectors",
    "Predictions": "oodcli.workflows.judging",
}


def __getattr__(name: str) -> Any:  # noqa: ANN401 - names of several types
    if name in _LATE:
        return getattr(importlib.import_module(_LATE[name]), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


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
        score_batch_size: int | None = None,
        skip_unreadable: bool = False,
        progress: Progress | None = None,
    ) -> "Detector":
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
        score_batch_size
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
        from oodcli.workflows.compute import Compute
        from oodcli.workflows.detectors import detector_for
        from oodcli.workflows.thresholds import ThresholdRule

        with speaking_of_arguments():
            rule = ThresholdRule(tpr, threshold)
            compute = Compute.of(device, batch_size=score_batch_size)
            with using_run(self._store, self.name) as folder:
                return detector_for(
                    self._store,
                    folder,
                    method,
                    rule,
                    compute=compute,
                    skip_unreadable=skip_unreadable,
                    progress=progress,
                )


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
