"""The state of a run in training: written after every epoch, and read when training resumes.

Tensors are written first, then the JSON file that lists them with their digests. At whatever moment
the process is killed, the JSON file lists complete files. The states of the last two epochs are
stored.
"""

import json
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from oodcli.errors import CorruptArtifactError, MissingArtifactError
from oodcli.progress import Progress
from oodcli.store.runs import STATE, RunFolder
from oodcli.store.store import atomic_write, read_arrays, read_json, write_arrays, write_json
from oodcli.training.loop import Trainer, weights_of

_STATES = 2
_PATTERNS = ("state-*.safetensors", "best-*.safetensors")
History = list[dict[str, Any]]


def save_state(
    folder: RunFolder, trainer: Trainer, history: History, *, keep_best: bool
) -> dict[str, Any] | None:
    """Store the state after an epoch, and its weights in a separate file if they are the best.

    Parameters
    ----------
    folder
        The run.
    trainer
        The network in training.
    history
        One entry per finished epoch.
    keep_best
        Whether the weights with the best validation accuracy are stored.

    Returns
    -------
    dict
        Epoch, file name and digest of the best weights; None if they are not stored, or if there
        are no validation images.
    """
    epoch = len(history)
    state = trainer.state()
    before = _states(folder)
    best = before[0]["best"] if before else None
    if keep_best and _is_best(history):
        best = {"epoch": epoch, **_write(folder, f"best-{epoch:04d}", weights_of(state))}
    newest = {"epoch": epoch, **_write(folder, f"state-{epoch:04d}", state), "best": best}
    states = [newest, *(old for old in before if old["epoch"] < epoch)][:_STATES]
    write_history(folder, history)
    write_json(folder.path / STATE, {"states": states, "history": history})
    wanted = {entry["file"] for each in states for entry in (each, each["best"]) if entry}
    for path in (path for pattern in _PATTERNS for path in folder.path.glob(pattern)):
        if path.name not in wanted:
            path.unlink(missing_ok=True)
    return best


def load_state(
    folder: RunFolder, trainer: Trainer, progress: Progress
) -> tuple[History, dict[str, Any] | None]:
    """Load the newest intact state into a trainer.

    Parameters
    ----------
    folder
        The run.
    trainer
        The network in training; its state is replaced.
    progress
        Reports damaged states.

    Returns
    -------
    history
        One entry per epoch up to that state; empty if no state is intact.
    best
        Epoch, file name and digest of the best weights; None if they are not stored.
    """
    for entry in _states(folder):
        try:
            trainer.load_state(_read(folder, entry))
            if entry["best"] is not None:
                _read(folder, entry["best"])
        except (CorruptArtifactError, FileNotFoundError, KeyError, RuntimeError):
            progress.note(f"the state of run {folder.name} after epoch {entry['epoch']} is damaged")
            continue
        return _history(folder)[: entry["epoch"]], entry["best"]
    return [], None


def newest_weights(folder: RunFolder) -> tuple[int, dict[str, Tensor]]:
    """Return the newest intact weights of a run in training, and the number of their epoch.

    Raises
    ------
    MissingArtifactError
        If no epoch is finished, or every stored state is damaged.
    """
    for entry in _states(folder):
        try:
            return entry["epoch"], weights_of(_read(folder, entry))
        except (CorruptArtifactError, FileNotFoundError):
            continue
    raise MissingArtifactError(
        f"run {folder.name} has no finished epoch; resume it first: "
        f"ood train --resume --run {folder.name}"
    )


def read_best(folder: RunFolder, best: Mapping[str, Any]) -> dict[str, Tensor]:
    """Return the weights with the best validation accuracy.

    Parameters
    ----------
    folder
        The run.
    best
        Epoch, file name and digest, from :func:`save_state`.

    Raises
    ------
    CorruptArtifactError
        If the file is damaged.
    """
    return _read(folder, best)


def write_history(folder: RunFolder, history: History) -> None:
    """Write the history as JSON lines, one per finished epoch."""
    with atomic_write(folder.history) as stream:
        stream.write("".join(json.dumps(line) + "\n" for line in history).encode())


def remove_state(folder: RunFolder) -> None:
    """Remove the files that only a run in training needs."""
    (folder.path / STATE).unlink(missing_ok=True)
    for pattern in _PATTERNS:
        for path in folder.path.glob(pattern):
            path.unlink(missing_ok=True)


def _is_best(history: History) -> bool:
    """Return whether no epoch has a higher validation accuracy than the last one."""
    last = history[-1]["val_accuracy"]
    return last is not None and last >= max(line["val_accuracy"] for line in history)


def _write(folder: RunFolder, stem: str, tensors: Mapping[str, Tensor]) -> dict[str, str]:
    path = folder.path / f"{stem}.safetensors"
    digest = write_arrays(path, {name: tensor.numpy() for name, tensor in tensors.items()})
    return {"file": path.name, "digest": digest}


def _read(folder: RunFolder, entry: Mapping[str, Any]) -> dict[str, Tensor]:
    arrays = read_arrays(folder.path / entry["file"], digest=entry["digest"])
    return {name: torch.from_numpy(array.copy()) for name, array in arrays.items()}


def _content(folder: RunFolder) -> dict[str, Any]:
    path = folder.path / STATE
    if not path.is_file():
        return {}
    try:
        return read_json(path)
    except CorruptArtifactError:
        return {}


def _states(folder: RunFolder) -> list[dict[str, Any]]:
    """Return epoch, file and digest of the stored states, the newest first."""
    return list(_content(folder).get("states", []))


def _history(folder: RunFolder) -> History:
    return list(_content(folder).get("history", []))
