"""Removal of runs, their renaming, and what killed processes left in the store."""

import contextlib
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from oodcli.errors import CorruptArtifactError, UnknownNameError
from oodcli.store.runs import (
    OWN_FILES,
    RunFolder,
    chosen_run,
    find_run,
    new_name,
    run_folders,
    run_lock,
    use_run,
)
from oodcli.store.store import Store, remove_leftovers, size_of, temporary_files

_OWN_FOLDERS = ("normratio", "scores", "detectors")


def rename_run(store: Store, old: str, new: str) -> None:
    """Give a run another name.

    Raises
    ------
    InvalidInputError
        If the run is in use, or the new name is taken.
    """
    folder = find_run(store, old)
    with store.alone(run_lock(old)), store.lock("runs"):
        folder.path.rename(store.runs / new_name(store, new, new, cure="choose another name"))
        if chosen_run(store) == (old, "ood runs use"):
            use_run(store, new)


def check_removable(store: Store, name: str) -> None:
    """Refuse a name that neither a run nor what was left of one has.

    Raises
    ------
    UnknownNameError
        If there is no such run.
    """
    known = [folder.name for folder in run_folders(store)]
    known += [rest.path.name for rest in leftovers(store) if rest.kind == "run"]
    if name not in known:
        raise UnknownNameError.among("run", name, known)


def remove_run(store: Store, name: str) -> tuple[int, Sequence[Path]]:
    """Remove a run, and the activations of its network if no other run has the same network.

    What is left of a run that was removed only in part can be removed as well. Files that are not
    the tool's stay where they are.

    Returns
    -------
    tuple
        Bytes set free, and what was left alone.

    Raises
    ------
    UnknownNameError
        If there is no such run.
    InvalidInputError
        If it is in use.
    """
    check_removable(store, name)
    with store.alone(run_lock(name)), store.lock("runs"):
        return _remove(store, RunFolder(store.runs / name))


def _remove(store: Store, folder: RunFolder) -> tuple[int, Sequence[Path]]:
    network = _network(folder)
    others = {_network(other) for other in run_folders(store) if other.path != folder.path}
    freed = size_of(folder.path)
    if network is not None and network not in others:
        activations = store.activations / network
        freed += size_of(activations)
        shutil.rmtree(activations, ignore_errors=True)
    # The record goes first: from then on nobody takes what is left for a run.
    for path in _own_parts(folder.path):
        if path.is_dir():
            shutil.rmtree(path, ignore_errors=True)
        else:
            path.unlink(missing_ok=True)
    left = sorted(folder.path.iterdir())
    if not left:
        folder.path.rmdir()
    freed -= size_of(folder.path) if left else 0
    remove_leftovers(store.runs)
    return freed, left


def _own_parts(path: Path) -> list[Path]:
    """Return the files and folders in the folder of a run that are the tool's, the record first."""
    files = [found for pattern in OWN_FILES for found in sorted(path.glob(pattern))]
    return files + [path / sub for sub in _OWN_FOLDERS if (path / sub).is_dir()]


@dataclass(frozen=True)
class Leftover:
    """Something in the store that no run has, left by a process that was killed.

    Parameters
    ----------
    path
        Where it is.
    kind
        ``run`` (parts of a run without its record), ``activations`` (of a network that no run has)
        or ``temporary`` (a file that was not finished).
    bytes
        Its size.
    """

    path: Path
    kind: Literal["run", "activations", "temporary"]
    bytes: int


def leftovers(store: Store) -> list[Leftover]:
    """Return what is in the store though no run has it and no command will use it.

    While the record of a run cannot be read, activations may be those of that run, and none are
    returned.
    """
    runs = [RunFolder(path) for path in _folders_in(store.runs)]
    rests = [folder.path for folder in runs if not folder.ours and _own_parts(folder.path)]
    networks = [_network(folder) for folder in runs if folder.finished]
    stale = (
        []
        if None in networks
        else [path for path in _folders_in(store.activations) if path.name not in networks]
    )
    inside = (*rests, *stale)
    files = [
        path
        for path in temporary_files(store.root)
        if not any(path.is_relative_to(each) for each in inside)
    ]
    return [
        *(Leftover(path, "run", sum(map(size_of, _own_parts(path)))) for path in rests),
        *(Leftover(path, "activations", size_of(path)) for path in stale),
        *(Leftover(path, "temporary", size_of(path)) for path in files),
    ]


def remove_leftover(store: Store, leftover: Leftover) -> None:
    """Remove what no run has, unless a run has got it meanwhile.

    Raises
    ------
    InvalidInputError
        If a process uses it.
    """
    path = leftover.path
    unused = (
        store.alone(run_lock(path.name)) if leftover.kind == "run" else contextlib.nullcontext()
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
