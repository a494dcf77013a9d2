"""Removal and renaming of runs, and removal of files left in the store by killed processes."""

import contextlib
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from oodcli.errors import CorruptArtifactError, UnknownNameError
from oodcli.store.run_locks import run_lock
from oodcli.store.run_names import default_run, find_run, new_name, run_folders, set_default_run
from oodcli.store.runs import OWN_FILES, RunFolder
from oodcli.store.store import Store, remove_leftovers, size_of, temporary_files

_OWN_FOLDERS = ("normratio", "scores", "detectors")


def rename_run(store: Store, old: str, new: str) -> None:
    """Rename a run.

    Raises
    ------
    InvalidInputError
        If the run is in use, or the new name is in use or not valid.
    """
    folder = find_run(store, old)
    with store.exclusive(run_lock(old)), store.lock("runs"):
        folder.path.rename(store.runs / new_name(store, new, new, cure="choose another name"))
        if default_run(store) == (old, "ood runs use"):
            set_default_run(store, new)


def check_removable(store: Store, name: str) -> None:
    """Check that a name belongs to a run, or to the remains of one.

    Raises
    ------
    UnknownNameError
        If it does not.
    """
    known = [folder.name for folder in run_folders(store)]
    known += [each.path.name for each in leftovers(store) if each.kind == "run"]
    if name not in known:
        raise UnknownNameError.among("run", name, known)


def remove_run(store: Store, name: str) -> tuple[int, Sequence[Path]]:
    """Remove a run, and the activations of its network if no other run has the same network.

    The remains of a partially removed run can be removed as well. Files that ood has not written
    are not removed.

    Returns
    -------
    tuple
        Number of bytes freed, and the files and folders that were not removed.

    Raises
    ------
    UnknownNameError
        If the run does not exist.
    InvalidInputError
        If it is in use.
    """
    check_removable(store, name)
    with store.exclusive(run_lock(name)), store.lock("runs"):
        return _remove(store, RunFolder(store.runs / name))


def _remove(store: Store, folder: RunFolder) -> tuple[int, Sequence[Path]]:
    network = _network(folder)
    others = {_network(other) for other in run_folders(store) if other.path != folder.path}
    freed = size_of(folder.path)
    if network is not None and network not in others:
        activations = store.activations / network
        freed += size_of(activations)
        shutil.rmtree(activations, ignore_errors=True)
    # The record is removed first: without it, the folder no longer counts as a run.
    for path in _own_parts(folder.path):
        if path.is_dir():
            shutil.rmtree(path, ignore_errors=True)
        else:
            path.unlink(missing_ok=True)
    remaining = sorted(folder.path.iterdir())
    if not remaining:
        folder.path.rmdir()
    freed -= size_of(folder.path) if remaining else 0
    remove_leftovers(store.runs)
    return freed, remaining


def _own_parts(path: Path) -> list[Path]:
    """Return the files and folders that ood wrote into the folder of a run, the record first."""
    files = [found for pattern in OWN_FILES for found in sorted(path.glob(pattern))]
    return files + [path / sub for sub in _OWN_FOLDERS if (path / sub).is_dir()]


@dataclass(frozen=True)
class Leftover:
    """A file or folder in the store that belongs to no run, left by a killed process.

    Parameters
    ----------
    path
        Path of the file or folder.
    kind
        ``run`` (parts of a run without its record), ``activations`` (of a network that no run has)
        or ``temporary`` (an unfinished file).
    bytes
        Size in bytes.
    """

    path: Path
    kind: Literal["run", "activations", "temporary"]
    bytes: int


def leftovers(store: Store) -> list[Leftover]:
    """Return the files and folders in the store that belong to no run.

    If the record of any run cannot be read, no activations are returned, since they may belong to
    that run.
    """
    runs = [RunFolder(path) for path in _folders_in(store.runs)]
    remains = [folder.path for folder in runs if not folder.is_run and _own_parts(folder.path)]
    networks = [_network(folder) for folder in runs if folder.finished]
    stale = (
        []
        if None in networks
        else [path for path in _folders_in(store.activations) if path.name not in networks]
    )
    inside = (*remains, *stale)
    files = [
        path
        for path in temporary_files(store.root)
        if not any(path.is_relative_to(each) for each in inside)
    ]
    return [
        *(Leftover(path, "run", sum(map(size_of, _own_parts(path)))) for path in remains),
        *(Leftover(path, "activations", size_of(path)) for path in stale),
        *(Leftover(path, "temporary", size_of(path)) for path in files),
    ]


def remove_leftover(store: Store, leftover: Leftover) -> None:
    """Remove a leftover, unless it has become part of a run in the meantime.

    Raises
    ------
    InvalidInputError
        If a process uses it.
    """
    path = leftover.path
    unused = (
        store.exclusive(run_lock(path.name)) if leftover.kind == "run" else contextlib.nullcontext()
    )
    with unused, store.lock("runs"):
        if not any(path == each.path for each in leftovers(store)):
            return
        if leftover.kind == "run":
            _remove(store, RunFolder(path))
        elif leftover.kind == "activations":
            shutil.rmtree(path, ignore_errors=True)
        else:
            path.unlink(missing_ok=True)


def _folders_in(path: Path) -> list[Path]:
    return sorted(each for each in path.iterdir() if each.is_dir()) if path.is_dir() else []


def _network(folder: RunFolder) -> str | None:
    if not folder.finished:
        return None
    with contextlib.suppress(CorruptArtifactError):
        return folder.read().network
    return None
