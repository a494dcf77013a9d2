"""Runs of a store by their names: listing, finding, the default run, and names of new runs."""

import contextlib
import os
import re
from pathlib import Path

from oodcli.errors import (
    CorruptArtifactError,
    InvalidInputError,
    MissingArtifactError,
    UnknownNameError,
)
from oodcli.store.runs import ENSEMBLE_RECORD, OWN_FILES, RECORD, TRAINING, RunFolder
from oodcli.store.store import Store, read_json, write_json

RUN_VARIABLE = "OOD_RUN"
_DEFAULT_RUN = "choice.json"
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}")


def check_name(name: str) -> str:
    """Return ``name`` if it is a valid name of a run.

    Raises
    ------
    InvalidInputError
        If it is not valid.
    """
    if not _NAME.fullmatch(name):
        raise InvalidInputError(
            f"{name!r} is not a valid name of a run; use letters, digits, '.', '_' and '-', "
            "beginning with a letter or digit"
        )
    return name


def run_folders(store: Store) -> list[RunFolder]:
    """Return all runs of the store, finished or not, and ensembles of runs, oldest first."""
    if not store.runs.is_dir():
        return []
    folders = [RunFolder(path) for path in store.runs.iterdir() if path.is_dir()]
    return sorted((f for f in folders if f.is_run), key=lambda f: (_created(f), f.name))


def _created(folder: RunFolder) -> str:
    name = RECORD if folder.finished else TRAINING
    name = ENSEMBLE_RECORD if folder.is_ensemble else name
    with contextlib.suppress(CorruptArtifactError, OSError):
        return str(read_json(folder.path / name).get("created", ""))
    return ""


def default_run(store: Store) -> tuple[str, str] | None:
    """Return the default run that the user has set, and how it was set.

    Parameters
    ----------
    store
        The store.

    Returns
    -------
    tuple
        The name, and either ``OOD_RUN`` (environment variable, takes precedence) or
        ``ood runs use``; None if no default is set.
    """
    named = os.environ.get(RUN_VARIABLE)
    if named:
        return named, RUN_VARIABLE
    try:
        return str(read_json(store.root / _DEFAULT_RUN)["run"]), "ood runs use"
    except (FileNotFoundError, KeyError):
        return None


def set_default_run(store: Store, name: str | None) -> None:
    """Set the default run of commands without ``--run``; None for the run created last.

    Raises
    ------
    UnknownNameError
        If the run does not exist.
    MissingArtifactError
        If it is not finished.
    """
    if name is None:
        (store.root / _DEFAULT_RUN).unlink(missing_ok=True)
        return
    find_run(store, name).read()
    write_json(store.root / _DEFAULT_RUN, {"kind": "ood-choice", "schema": 1, "run": name})


def find_run(store: Store, name: str | None) -> RunFolder:
    """Return the run with a name; if None, the default run, or the finished run created last.

    Raises
    ------
    UnknownNameError
        If the run does not exist.
    MissingArtifactError
        If there is no finished run, or the default run no longer exists.
    """
    folders = run_folders(store)
    default = default_run(store) if name is None else None
    if default is not None:
        for folder in folders:
            if folder.name == default[0]:
                return folder
        cure = (
            f"set {RUN_VARIABLE} to another run, or unset it"
            if default[1] == RUN_VARIABLE
            else "choose another: ood runs use RUN, or the run created last: ood runs use --last"
        )
        raise MissingArtifactError(
            f"there is no run {default[0]!r} in {store.root} (the default, set by {default[1]}); "
            f"{cure}"
        )
    if name is not None:
        for folder in folders:
            if folder.name == name:
                return folder
        raise UnknownNameError.among("run", name, [f.name for f in folders])
    finished = [folder for folder in folders if folder.finished]
    if finished:
        return finished[-1]
    cure = "train one: ood train --data digits"
    unfinished = [folder for folder in folders if not folder.is_ensemble]
    if unfinished:
        cure = f"finish one: ood train --resume --run {unfinished[-1].name}"
    raise MissingArtifactError(f"there is no finished run in {store.root}; {cure}")


def new_name(
    store: Store, wanted: str | None, default: str, *, cure: str = "choose another name: --name RUN"
) -> str:
    """Return an unused name for a new run.

    Parameters
    ----------
    store
        The store.
    wanted
        Name requested by the user; None for a name derived from ``default``.
    default
        Base of the name; a number is appended if it is in use.
    cure
        How the user gives another name, for messages.

    Raises
    ------
    InvalidInputError
        If the requested name is in use or not valid.
    """
    if wanted is not None:
        folder = RunFolder(store.runs / check_name(wanted))
        if folder.is_run and not folder.finished and not folder.is_ensemble:
            raise InvalidInputError(
                f"run {wanted} is not finished; resume it "
                f"(ood train --resume --run {wanted}) or {cure}"
            )
        if _in_use(folder.path) and not folder.is_run and folder.path.is_dir():
            raise InvalidInputError(
                f"the folder {folder.path} already exists and is not a run; if it is the "
                f"remainder of a removed run, remove it (ood runs remove {wanted}), or {cure}"
            )
        if _in_use(folder.path):
            raise InvalidInputError(
                f"run {wanted} already exists; remove it (ood runs remove {wanted}) or {cure}"
            )
        return wanted
    stem = re.sub(r"[^A-Za-z0-9._-]+", "-", default).strip("-.") or "run"
    name, number = stem, 1
    while _in_use(store.runs / name):
        number += 1
        name = f"{stem}-{number}"
    return check_name(name)


def _in_use(path: Path) -> bool:
    """Return whether a path is in use; a folder with only files of a killed import is not."""
    if not path.is_dir() or RunFolder(path).is_run:
        return path.exists()
    own = {found for pattern in OWN_FILES for found in path.glob(pattern)}
    return any(entry not in own for entry in path.iterdir())
