"""Locks on runs: a run in use is neither removed nor renamed."""

import contextlib
from collections.abc import Iterator, Sequence

from oodcli.errors import MissingArtifactError
from oodcli.progress import SILENT, Progress
from oodcli.store.run_names import find_run
from oodcli.store.runs import RunFolder
from oodcli.store.store import Store


@contextlib.contextmanager
def locked_run(
    store: Store, name: str | None, *, progress: Progress = SILENT
) -> Iterator[RunFolder]:
    """Find a run and lock it against removal and renaming.

    Parameters
    ----------
    store
        The store.
    name
        Name of the run; if None, as for :func:`find_run`.
    progress
        Receives a note with the name of the run if ``name`` is None.

    Yields
    ------
    RunFolder
        The run.

    Raises
    ------
    OodError
        As for :func:`find_run`, or if another process has just removed or renamed the run.
    """
    folder = find_run(store, name)
    if name is None:
        progress.note(f"run: {folder.name}")
    with store.shared(run_lock(folder.name), progress=progress):
        if not folder.is_run:
            raise MissingArtifactError(
                f"run {folder.name} was removed or renamed just now; see: ood runs list"
            )
        yield folder


@contextlib.contextmanager
def locked_runs(store: Store, names: Sequence[str]) -> Iterator[list[RunFolder]]:
    """Find and lock several runs, without duplicates; the default run if there are no names."""
    with contextlib.ExitStack() as locks:
        yield [
            locks.enter_context(locked_run(store, name)) for name in dict.fromkeys(names) or [None]
        ]


def run_lock(name: str) -> str:
    """Return the name of the lock to hold while a run is used, renamed or removed."""
    return f"run {name}"
