"""``ood train``: train a classifier and store it as a run; resumable after every epoch."""

import contextlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import torch

from oodcli.compute.compute import Compute
from oodcli.compute.processes import Processes, ProcessLostError
from oodcli.data.dataset import Dataset
from oodcli.data.decoding.random_access import Decoders
from oodcli.data.run_data import TEST_FRACTION, check_division, find_dataset, find_divided
from oodcli.data.views import View
from oodcli.errors import InvalidInputError, MissingArtifactError, OodError
from oodcli.images import ImageSet
from oodcli.pools import worker_count
from oodcli.progress import SILENT, Progress
from oodcli.scoring.accuracy import accuracy_on
from oodcli.scoring.open_run import OpenRun
from oodcli.store.removal import remove_run
from oodcli.store.run_names import find_run, new_name, run_folders
from oodcli.store.runs import STATE, Run, RunFolder, TrainingRecord, utc_now
from oodcli.store.store import Store
from oodcli.training.job import (
    TrainRequest,
    plan_job,
    read_unfinished,
    same_run,
    with_settings_as_options,
)
from oodcli.training.session import Seen, Session, TrainResult, check_compiled

__all__ = ["TrainRequest", "TrainResult", "resume_run", "train", "train_seeds"]


def train(
    store: Store,
    request: TrainRequest,
    *,
    resume: bool = False,
    command: str = "",
    progress: Progress = SILENT,
    processes: Processes | None = None,
) -> TrainResult:
    """Train a classifier and store it as a run.

    Parameters
    ----------
    store
        The store for the run.
    request
        What to train, and how.
    resume
        Whether to resume an unfinished run of the same request if there is one; a finished one is
        returned unchanged.
    command
        The command line, stored with the run.
    progress
        Receives the progress of every epoch.
    processes
        The processes that train together, if there are several. Each calls this function with the
        same request; they share the store, and only the first writes the run.

    Raises
    ------
    OodError
        If the data, the architecture, the recipe or the device cannot be used, the loss is not
        finite, or another process has ended.
    """
    processes = processes or Processes()
    request = with_settings_as_options(request)
    device = Compute.of(request.device).device
    decoders = _decoders(request.data_workers, processes, progress)
    if request.compile:
        check_compiled(device, processes)
    # One process downloads the data before the others open it.
    dataset = processes.in_turn(
        partial(
            find_divided,
            request.data,
            store,
            val=request.val_fraction,
            test=request.test_fraction,
            usual_test=TEST_FRACTION,
            window=request.window,
            progress=progress,
        )
    )
    if "train" not in dataset.parts:
        raise InvalidInputError(f"{dataset.name} at {dataset.location} has no training images")
    job = plan_job(store, request, dataset, progress=progress, processes=processes)
    training = TrainingRecord(job, command, utc_now())
    same, folder = processes.broadcast(
        _select_folder(store, request, training, dataset.name, resume=resume)
        if processes.first
        else (None, None)
    )
    session = partial(
        _session,
        store,
        device=device,
        decoders=decoders,
        progress=progress,
        processes=processes,
        check_images=request.check_images,
    )
    if same is not None:
        return _resume(
            session, same, store=store, dataset=dataset, progress=progress, processes=processes
        )
    assert folder is not None
    with _remove_if_not_started(store, folder, processes):
        return session(folder, training, dataset).run()


def _select_folder(
    store: Store, request: TrainRequest, training: TrainingRecord, data_name: str, *, resume: bool
) -> tuple[RunFolder | None, RunFolder | None]:
    """Return the run of the same job to resume, or a new run with its training record written."""
    with store.lock("runs"):
        same = same_run(store, training.job, request.name) if resume else None
        if same is not None:
            return same, None
        kind = training.job.recipe["objective"].partition(":")[0]
        parts = [data_name, training.job.arch, *([] if kind == "cross-entropy" else [kind])]
        default = "-".join([*parts, f"s{request.seed}"])
        folder = RunFolder(store.runs / new_name(store, request.name, default))
        folder.begin(training)
        return None, folder


@contextlib.contextmanager
def _remove_if_not_started(store: Store, folder: RunFolder, processes: Processes) -> Iterator[None]:
    """Remove a run that fails before its first epoch: it would block the corrected command."""
    try:
        yield
    except ProcessLostError:
        raise  # its message says how to resume
    except OodError:
        if processes.first and not (folder.path / STATE).is_file():
            with contextlib.suppress(InvalidInputError):  # another process uses it
                remove_run(store, folder.name)
        raise


def _session(
    store: Store,
    folder: RunFolder,
    training: TrainingRecord,
    dataset: Dataset,
    *,
    device: torch.device,
    decoders: Decoders,
    progress: Progress,
    processes: Processes,
    check_images: bool,
) -> Session:
    test = partial(
        _test_accuracy, store, folder, device=device, progress=progress, processes=processes
    )
    return Session(
        store, folder, training, dataset, device, decoders, test, progress, processes, check_images
    )


def train_seeds(
    store: Store,
    request: TrainRequest,
    seeds: Sequence[int],
    *,
    resume: bool = False,
    command: str = "",
    progress: Progress = SILENT,
    processes: Processes | None = None,
) -> list[TrainResult]:
    """Train the same request with several seeds, one after the other.

    Parameters
    ----------
    store
        The store for the runs.
    request
        What to train; its seed is ignored, and its name becomes ``NAME-s0`` and so on.
    seeds
        The seeds.
    resume
        Whether to resume unfinished runs and skip finished ones.
    command
        The command line, stored with every run.
    progress
        Receives the progress of every epoch.
    processes
        As for :func:`train`.

    Raises
    ------
    InvalidInputError
        If there are no seeds, or a seed is negative or occurs twice.
    OodError
        As for :func:`train`.
    """
    if not seeds or len(set(seeds)) != len(seeds) or min(seeds) < 0:
        raise InvalidInputError("--seeds must be distinct non-negative integers, such as 0,1,2")
    results = []
    for seed in seeds:
        name = None if request.name is None else f"{request.name}-s{seed}"
        results.append(
            train(
                store,
                replace(request, seed=seed, name=name),
                resume=resume,
                command=command,
                progress=progress,
                processes=processes,
            )
        )
    every = " ".join(f"--run {result.run}" for result in results)
    progress.note(f"score each run; their mean and spread: ood report {every}")
    return results


def resume_run(
    store: Store,
    name: str | None,
    *,
    device: str = "auto",
    progress: Progress = SILENT,
    processes: Processes | None = None,
    data_workers: int | None = None,
    check_images: bool = False,
) -> TrainResult:
    """Resume an unfinished run with its own settings.

    Parameters
    ----------
    store
        The store that contains the run.
    name
        Name of the run; if None, the unfinished run that was started last.
    device
        The device.
    progress
        Receives the progress of every epoch.
    processes
        As for :func:`train`; their number may differ from before.
    data_workers
        As for a request; the number may differ from before.
    check_images
        As for a request.

    Raises
    ------
    MissingArtifactError
        If there is no unfinished run.
    """
    processes = processes or Processes()
    session = partial(
        _session,
        store,
        device=Compute.of(device).device,
        decoders=_decoders(data_workers, processes, progress),
        progress=progress,
        processes=processes,
        check_images=check_images,
    )
    if name is None:
        unfinished = [
            folder
            for folder in run_folders(store)
            if not folder.finished and not folder.is_ensemble
        ]
        if not unfinished:
            raise MissingArtifactError(
                f"there is no unfinished run in {store.root}; train one: ood train --data digits"
            )
        folder = unfinished[-1]
        progress.note(f"run: {folder.name}")
    else:
        folder = find_run(store, name)
    return _resume(
        session, folder, store=store, dataset=None, progress=progress, processes=processes
    )


def _decoders(workers: int | None, processes: Processes, progress: Progress) -> Decoders:
    """Return the decoders; no process is started yet."""
    return Decoders(
        worker_count(processes.local_size) if workers is None else workers, progress=progress
    )


def _resume(
    session: Callable[[RunFolder, TrainingRecord, Dataset], Session],
    folder: RunFolder,
    *,
    store: Store,
    dataset: Dataset | None,
    progress: Progress,
    processes: Processes,
) -> TrainResult:
    """Train the remaining epochs of a run; none if it is finished."""
    if processes.broadcast(folder.finished):
        progress.note(f"run {folder.name} is already finished")
        return TrainResult(folder.name, folder.read(), 0)
    training = read_unfinished(folder)
    job = training.job
    opened = dataset or find_dataset(
        job.data,
        store,
        role="id",
        val_fraction=job.val_fraction,
        test_fraction=job.test_fraction,
        window=job.preprocess.medical,
        progress=progress,
    )
    check_division(opened, job.division, run=folder.name)
    return session(folder, training, opened).run()


def _test_accuracy(
    store: Store,
    folder: RunFolder,
    record: Run,
    images: Callable[[Seen], ImageSet],
    *,
    device: torch.device,
    progress: Progress,
    processes: Processes,
) -> dict[str, Any] | None:
    """Return the accuracy on test images; None if it cannot be computed."""
    run = OpenRun.of(store, folder, Compute(device), record=record, progress=progress)
    # The first process decodes for all, and what it decodes may not be stored.
    seen = (
        run.activator.while_decoding(record.data_name, {View(): False}) if processes.first else None
    )

    def opened() -> ImageSet | OodError:
        try:
            return images(seen)
        except OodError as error:  # every process meets it
            return error

    try:
        found = processes.in_turn(opened)
        if isinstance(found, OodError):
            raise found
        tested = accuracy_on(run.activator, found, len(record.class_names), processes=processes)
    except ProcessLostError:
        raise
    except OodError as error:
        # Not an error: the training is complete.
        progress.note(f"the accuracy on test images could not be computed: {error}")
        return None
    return tested.to_json()
