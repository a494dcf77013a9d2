"""The state of a run in training: written after every epoch, and read after a kill.

Tensors come first, then the note that they are good, so that whatever moment the process dies at,
the note names files that are whole. The states of the last two epochs are kept.
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

KEPT = 2
_PATTERNS = ("state-*.safetensors", "best-*.safetensors")
History = list[dict[str, Any]]


def save_state(
    folder: RunFolder, trainer: Trainer, history: History, *, keep_best: bool
) -> dict[str, Any] | None:
    """Store the state after an epoch, and its weights apart if they are the best so far.

    Parameters
    ----------
    folder
        The run.
    trainer
        The network in training.
    history
        One entry per finished epoch.
    keep_best
        Whether the best weights on validation images count.

    Returns
    -------
    dict
        Where the best weights are; None where they do not count or there are no validation images.
    """
    epoch = len(history)
    state = trainer.state()
    before = _states(folder)
    best = before[0]["best"] if before else None
    if keep_best and _is_best(history):
        best = {"epoch": epoch, **_written(folder, f"best-{epoch:04d}", weights_of(state))}
    newest = {"epoch": epoch, **_written(folder, f"state-{epoch:04d}", state), "best": best}
    states = [newest, *(old for old in before if old["epoch"] < epoch)][:KEPT]
    write_history(folder, history)
    write_json(folder.path / STATE, {"states": states, "history": history})
    wanted = {entry["file"] for each in states for entry in (each, each["best"]) if entry}
    for path in (path for pattern in _PATTERNS for path in folder.path.glob(pattern)):
        if path.name not in wanted:
            path.unlink(missing_ok=True)
    return best


def load_state(
    folder: RunFolder, trainer: Trainer, watch: Progress
) -> tuple[History, dict[str, Any] | None]:
    """Take up the last good state; return the history up to it and where the best weights are."""
    for entry in _states(folder):
        try:
            trainer.load_state(_read(folder, entry))
            if entry["best"] is not None:
                _read(folder, entry["best"])
        except (CorruptArtifactError, FileNotFoundError, KeyError, RuntimeError):
            watch.note(f"the state of run {folder.name} after epoch {entry['epoch']} is damaged")
            continue
        return _history(folder)[: entry["epoch"]], entry["best"]
    return [], None


def weights_so_far(folder: RunFolder) -> tuple[int, dict[str, Tensor]]:
    """Return the last good weights of a run in training, and after which epoch they were stored.

    Raises
    ------
    MissingArtifactError
        If no epoch is finished, or what was stored is damaged.
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
    """Return the weights that were best on validation images."""
    return _read(folder, best)


def write_history(folder: RunFolder, history: History) -> None:
    """Write one JSON object a line for every finished epoch."""
    with atomic_write(folder.history) as stream:
        stream.write("".join(json.dumps(line) + "\n" for line in history).encode())


def drop_state(folder: RunFolder) -> None:
    """Remove what only a run in training needs."""
    (folder.path / STATE).unlink(missing_ok=True)
    for pattern in _PATTERNS:
        for path in folder.path.glob(pattern):
            path.unlink(missing_ok=True)


def _is_best(history: History) -> bool:
    """Tell whether no epoch was better on validation images than the last."""
    last = history[-1]["val_accuracy"]
    return last is not None and last >= max(line["val_accuracy"] for line in history)


def _written(folder: RunFolder, stem: str, tensors: Mapping[str, Tensor]) -> dict[str, str]:
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
    """Return what is known of the stored states, the newest first."""
    return list(_content(folder).get("states", []))


def _history(folder: RunFolder) -> History:
    return list(_content(folder).get("history", []))
