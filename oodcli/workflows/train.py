"""Training of a classifier into a run, resumable after every epoch."""

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
from oodcli.errors import InvalidInputError, MissingArtifactError, OodError
from oodcli.images import ImageSet
from oodcli.pools import worker_count
from oodcli.progress import SILENT, Progress
from oodcli.scoring.accuracy import accuracy_on
from oodcli.scoring.open_run import OpenRun
from oodcli.store.removal import remove_run
from oodcli.store.runs import (
    STATE,
    Run,
    RunFolder,
    TrainingRecord,
    find_run,
    new_name,
    run_folders,
    utc_now,
)
from oodcli.store.store import Store
from oodcli.training.job import (
    TrainRequest,
    plan_job,
    read_unfinished,
    same_run,
    with_settings_as_options,
)
from oodcli.training.session import Session, TrainResult, check_compiled

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
        Where the run goes.
    request
        What to train, and how.
    resume
        Go on with an unfinished run of the same request, if there is one; a finished one is
        returned as it is.
    command
        The command line, kept with the run.
    progress
        Receives the progress of every epoch.
    processes
        The processes that train together, each of which calls this with the same request; they
        share the store, in which the first one alone writes the run. This one alone if None.

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
    # One process downloads before the others look.
    dataset = processes.in_turn(
        partial(
            find_divided,
            request.data,
            store,
            val=request.val_fraction,
            test=request.test_fraction,
            usual_test=TEST_FRACTION,
            progress=progress,
        )
    )
    if "train" not in dataset.parts:
        raise InvalidInputError(f"{dataset.name} at {dataset.location} has no training images")
    job = plan_job(store, request, dataset, progress=progress, processes=processes)
    begun = TrainingRecord(job, command, utc_now())
    same, folder = processes.broadcast(
        _named(store, request, begun, dataset.name, resume=resume)
        if processes.first
        else (None, None)
    )
    session = partial(
        _session, store, device=device, decoders=decoders, progress=progress, processes=processes
    )
    if same is not None:
        return _carry_on(
            session, same, store=store, dataset=dataset, progress=progress, processes=processes
        )
    assert folder is not None
    with _removed_unless_begun(store, folder, processes):
        return session(folder, begun, dataset).run()


def _named(
    store: Store, request: TrainRequest, begun: TrainingRecord, data_name: str, *, resume: bool
) -> tuple[RunFolder | None, RunFolder | None]:
    """Return the run of the same job that is resumed, or else a new one with its job in it."""
    with store.lock("runs"):
        same = same_run(store, begun.job, request.name) if resume else None
        if same is not None:
            return same, None
        kind = begun.job.recipe["objective"].partition(":")[0]
        marks = [data_name, begun.job.arch, *([] if kind == "cross-entropy" else [kind])]
        default = "-".join([*marks, f"s{request.seed}"])
        folder = RunFolder(store.runs / new_name(store, request.name, default))
        folder.begin(begun)
        return None, folder


@contextlib.contextmanager
def _removed_unless_begun(store: Store, folder: RunFolder, processes: Processes) -> Iterator[None]:
    """Remove a run that is refused: before its first epoch it only blocks the corrected command."""
    try:
        yield
    except ProcessLostError:
        raise  # it tells how to go on
    except OodError:
        if processes.first and not (folder.path / STATE).is_file():
            with contextlib.suppress(InvalidInputError):  # another process has taken it up
                remove_run(store, folder.name)
        raise


def _session(
    store: Store,
    folder: RunFolder,
    begun: TrainingRecord,
    dataset: Dataset,
    *,
    device: torch.device,
    decoders: Decoders,
    progress: Progress,
    processes: Processes,
) -> Session:
    test = partial(_tested, store, folder, device=device, progress=progress, processes=processes)
    return Session(store, folder, begun, dataset, device, decoders, test, progress, processes)


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
        Where the runs go.
    request
        What to train; its own seed does not matter, and its name becomes ``NAME-s0`` and so on.
    seeds
        The seeds.
    resume
        Go on with what is unfinished, and train no finished run again.
    command
        The command line, kept with every run.
    progress
        Receives the progress of every epoch.
    processes
        As for :func:`train`.

    Raises
    ------
    InvalidInputError
        If a seed stands twice, or there is none.
    OodError
        If one cannot be trained.
    """
    if not seeds or len(set(seeds)) != len(seeds) or min(seeds) < 0:
        raise InvalidInputError("--seeds must be different numbers from 0, such as 0,1,2")
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
) -> TrainResult:
    """Go on with an unfinished run by its own settings.

    Parameters
    ----------
    store
        Where the run is.
    name
        Its name; the unfinished run begun last if None.
    device
        Where to compute.
    progress
        Receives the progress of every epoch.
    processes
        As for :func:`train`; there may be another number of them than before.
    data_workers
        As of a request; there may be another number of them than before.

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
    )
    if name is None:
        unfinished = [folder for folder in run_folders(store) if not folder.finished]
        if not unfinished:
            raise MissingArtifactError(
                f"there is no unfinished run in {store.root}; train one: ood train --data digits"
            )
        folder = unfinished[-1]
        progress.note(f"run: {folder.name}")
    else:
        folder = find_run(store, name)
    return _carry_on(
        session, folder, store=store, dataset=None, progress=progress, processes=processes
    )


def _decoders(workers: int | None, processes: Processes, progress: Progress) -> Decoders:
    """Return who decodes; nobody is started yet."""
    return Decoders(
        worker_count(processes.local_size) if workers is None else workers, progress=progress
    )


def _carry_on(
    session: Callable[[RunFolder, TrainingRecord, Dataset], Session],
    folder: RunFolder,
    *,
    store: Store,
    dataset: Dataset | None,
    progress: Progress,
    processes: Processes,
) -> TrainResult:
    """Train what is left of a run; nothing if it is finished."""
    if processes.broadcast(folder.finished):
        progress.note(f"run {folder.name} is already finished")
        return TrainResult(folder.name, folder.read(), 0)
    begun = read_unfinished(folder)
    job = begun.job
    opened = dataset or find_dataset(
        job.data,
        store,
        role="id",
        val_fraction=job.val_fraction,
        test_fraction=job.test_fraction,
        progress=progress,
    )
    check_division(opened, job.division, run=folder.name)
    return session(folder, begun, opened).run()


def _tested(
    store: Store,
    folder: RunFolder,
    record: Run,
    images: ImageSet,
    *,
    device: torch.device,
    progress: Progress,
    processes: Processes,
) -> dict[str, Any] | None:
    """Measure the accuracy on test images; None if it cannot be measured."""
    run = OpenRun.of(store, folder, Compute(device), record=record, progress=progress)
    try:
        found = accuracy_on(run.activator, images, len(record.class_names), processes=processes)
    except ProcessLostError:
        raise
    except OodError as error:
        progress.note(f"the test images were not classified: {error}")  # the training is done
        return None
    return found.to_json()
