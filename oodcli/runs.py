"""Runs: a trained or imported network with all that is needed to use and cite it.

A run is a folder of the store. ``run.json`` is written last, so a run that has one is complete.
``training.json`` stands in a run that is still being trained.
"""

import contextlib
import os
import re
import shutil
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal, Self

from oodcli.errors import (
    CorruptArtifactError,
    InvalidInputError,
    MissingArtifactError,
    UnknownNameError,
)
from oodcli.progress import Progress, Silent
from oodcli.records import as_json
from oodcli.store import (
    Store,
    digest_of_file,
    read_json,
    remove_leftovers,
    size_of,
    temporary_files,
    write_json,
)

RUN_SCHEMA = 1
RECORD = "run.json"
TRAINING = "training.json"
WEIGHTS = "weights.safetensors"
HISTORY = "history.jsonl"
STATE = "state.json"
RUN_VARIABLE = "OOD_RUN"
_CHOICE = "choice.json"
RECOMMENDATION = "recommendation.json"
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}")
# All that the tool ever writes into the folder of a run; what else lies there is somebody's own.
_OWN_FILES = (
    RECORD, TRAINING, WEIGHTS, HISTORY, STATE, RECOMMENDATION, "state-*.safetensors",
    "best-*.safetensors", ".ood-tmp-*",
)  # fmt: skip
_OWN_FOLDERS = ("normratio", "scores", "detectors")


def now() -> str:
    """Return the present moment in UTC, ISO 8601, to the microsecond."""
    return datetime.now(UTC).isoformat()


@dataclass(frozen=True)
class Preprocess:
    """What happens to an image before the network sees it.

    Parameters
    ----------
    size
        Height and width in pixels.
    resize
        How an image of another size gets there: ``exact`` (aspect ratio not kept),
        ``shorter-crop`` or ``shorter-crop:SIDE`` (shorter side to that length, then the centre).
    mean, std
        Normalisation of the three channels, for pixel values from 0 to 1.
    """

    size: tuple[int, int] = (32, 32)
    resize: str = "exact"
    mean: tuple[float, float, float] = (0.5, 0.5, 0.5)
    std: tuple[float, float, float] = (0.5, 0.5, 0.5)


@dataclass(frozen=True)
class Run:
    """The record of a finished run.

    Parameters
    ----------
    origin
        ``trained`` or ``imported``.
    created
        When it was finished, UTC.
    arch
        Canonical architecture, such as ``resnet18:width=16``.
    data
        How to open the data set again.
    data_name
        Name of the data set.
    class_names
        Classes in the order of the logits.
    preprocess
        What happens to an image before the network sees it.
    blocks
        Names of the blocks in forward order.
    network
        Digest of architecture and weights.
    weights
        Digest of the weights file.
    recipe
        How it was trained; empty for an imported network.
    seed
        Seed of training; None for an imported network.
    parts
        Number of images of each part of the data set.
    val_fraction
        Share of the training images held out for validation.
    test_fraction
        Share of the images that are tested on, where the data set was one whole; 0 otherwise.
    division
        Digest of what the data set was divided by; empty where it was not.
    versions
        Versions of the packages that made it.
    command
        The command line that made it.
    training
        Device, precision, seconds, loss and accuracies of the checkpoint that counts, which one
        that is, what it began from, whether its last layer was trained or is a linear probe, and
        the digest of the file of the training history.
    imported
        Of an imported network: where the weights and each setting of the images come from
        (``source``, ``preprocess_from``), and how it did on some labelled images
        (``plausibility``), with what looked wrong there.
    """

    origin: str
    created: str
    arch: str
    data: str
    data_name: str
    class_names: tuple[str, ...]
    preprocess: Preprocess
    blocks: tuple[str, ...]
    network: str
    weights: str
    recipe: Mapping[str, Any] = field(default_factory=dict)
    seed: int | None = None
    parts: Mapping[str, int] = field(default_factory=dict)
    val_fraction: float = 0.0
    test_fraction: float = 0.0
    division: str = ""
    versions: Mapping[str, str] = field(default_factory=dict)
    command: str = ""
    training: Mapping[str, Any] = field(default_factory=dict)
    imported: Mapping[str, Any] = field(default_factory=dict)

    @property
    def warnings(self) -> tuple[str, ...]:
        """What looked wrong when the network was imported, a line each."""
        return tuple(self.imported.get("plausibility", {}).get("warnings", ()))

    def to_json(self) -> dict[str, Any]:
        """Return the record as it is written."""
        return {"kind": "ood-run", "schema": RUN_SCHEMA, **as_json(self)}

    @classmethod
    def from_json(cls, content: Mapping[str, Any], where: Path) -> Self:
        """Read a record.

        Raises
        ------
        CorruptArtifactError
            If it is not a record of this schema.
        """
        if content.get("schema") != RUN_SCHEMA:
            raise CorruptArtifactError(
                f"{where} has schema {content.get('schema')!r}, not {RUN_SCHEMA}; "
                "it was written by another version of ood"
            )
        values = {k: v for k, v in content.items() if k not in ("kind", "schema")}
        try:
            pre = values.pop("preprocess")
            return cls(
                preprocess=Preprocess(
                    size=(pre["size"][0], pre["size"][1]),
                    resize=pre["resize"],
                    mean=tuple(pre["mean"]),
                    std=tuple(pre["std"]),
                ),
                class_names=tuple(values.pop("class_names")),
                blocks=tuple(values.pop("blocks")),
                **values,
            )
        except (KeyError, TypeError, IndexError) as error:
            raise CorruptArtifactError(f"{where} is damaged: {error}; remove the run") from None

    @property
    def skip_unreadable(self) -> bool:
        """Whether the run was made with ``--skip-unreadable``, which its data keep."""
        return bool({**self.imported, **self.training}.get("skip_unreadable"))

    def but_for_seed(self) -> tuple[object, ...]:
        """Return what two runs share when they differ by their seed alone."""
        return (
            self.origin,
            self.arch,
            self.data,
            self.preprocess,
            dict(self.recipe),
            self.val_fraction,
            self.test_fraction,
            self.training.get("amp"),
            self.training.get("compile", False),
            self.training.get("init"),
        )


@dataclass(frozen=True)
class RunFolder:
    """The folder of one run.

    Parameters
    ----------
    path
        Where it is; its last component is the name of the run.
    """

    path: Path

    @property
    def name(self) -> str:
        """Name of the run."""
        return self.path.name

    @property
    def weights(self) -> Path:
        """File of the weights."""
        return self.path / WEIGHTS

    @property
    def history(self) -> Path:
        """File of the training history, one JSON object a line."""
        return self.path / HISTORY

    @property
    def scores(self) -> Path:
        """Folder of the scores."""
        return self.path / "scores"

    @property
    def normratio(self) -> Path:
        """Folder of the NormRatio results."""
        return self.path / "normratio"

    @property
    def recommendation(self) -> Path:
        """File of the method that was recommended."""
        return self.path / RECOMMENDATION

    @property
    def detectors(self) -> Path:
        """Folder of the fitted methods."""
        return self.path / "detectors"

    @property
    def finished(self) -> bool:
        """Whether the run is complete."""
        return (self.path / RECORD).is_file()

    @property
    def ours(self) -> bool:
        """Whether the folder holds a run at all, finished or not."""
        return self.finished or (self.path / TRAINING).is_file()

    def read(self) -> Run:
        """Read the record of a finished run.

        Raises
        ------
        MissingArtifactError
            If the run is not finished.
        CorruptArtifactError
            If the record is damaged.
        """
        path = self.path / RECORD
        if not path.is_file():
            raise MissingArtifactError(
                f"run {self.name} is not finished; go on with: ood train --resume --run {self.name}"
            )
        cure = (
            f"restore it, or remove the run (ood runs remove {self.name}) and make it again; its "
            f"weights can still be imported: ood import {self.weights} --arch ARCH --data DATA"
        )
        return Run.from_json(read_json(path, cure=cure), path)

    def write(self, run: Run) -> None:
        """Write the record, which completes the run."""
        write_json(self.path / RECORD, run.to_json())
        (self.path / TRAINING).unlink(missing_ok=True)

    def check_weights(self, run: Run) -> None:
        """Refuse weights that are not those of the record: activations are kept under its digest.

        Raises
        ------
        CorruptArtifactError
            If they are gone, or not what was written.
        """
        try:
            digest = digest_of_file(self.weights)
        except FileNotFoundError:
            digest = "gone"
        if digest != run.weights:
            raise CorruptArtifactError(
                f"the weights of run {self.name} are not what was written; "
                f"remove it (ood runs remove {self.name}) and make it again"
            )

    def read_training(self) -> dict[str, Any]:
        """Read what an unfinished run is being trained with.

        Raises
        ------
        CorruptArtifactError
            If it is damaged.
        """
        cure = f"remove the run (ood runs remove {self.name}) and train it again"
        return read_json(self.path / TRAINING, cure=cure)


def check_name(name: str) -> str:
    """Return ``name`` if a run can have it.

    Raises
    ------
    InvalidInputError
        If it cannot.
    """
    if not _NAME.fullmatch(name):
        raise InvalidInputError(
            f"a run cannot be called {name!r}; use letters, digits, '.', '_' and '-', "
            "a letter or digit first"
        )
    return name


def run_folders(store: Store) -> list[RunFolder]:
    """Return all runs of the store, finished or not, the oldest first."""
    if not store.runs.is_dir():
        return []
    folders = [RunFolder(path) for path in store.runs.iterdir() if path.is_dir()]
    return sorted((f for f in folders if f.ours), key=lambda f: (_made(f), f.name))


def _made(folder: RunFolder) -> str:
    name = RECORD if folder.finished else TRAINING
    with contextlib.suppress(CorruptArtifactError, OSError):
        return str(read_json(folder.path / name).get("created", ""))
    return ""


def chosen_run(store: Store) -> tuple[str, str] | None:
    """Return the name of the run that was chosen for commands that name none, and by what.

    Parameters
    ----------
    store
        Where the choice is kept.

    Returns
    -------
    tuple
        The name, and ``OOD_RUN`` (the environment) or ``ood runs use``, in this order; None if
        nothing was chosen.
    """
    named = os.environ.get(RUN_VARIABLE)
    if named:
        return named, RUN_VARIABLE
    try:
        return str(read_json(store.root / _CHOICE)["run"]), "ood runs use"
    except (FileNotFoundError, KeyError):
        return None


def use_run(store: Store, name: str | None) -> None:
    """Choose the run of commands that name none; None leaves it to the run created last.

    Raises
    ------
    UnknownNameError
        If there is no such run.
    MissingArtifactError
        If it is not finished.
    """
    if name is None:
        (store.root / _CHOICE).unlink(missing_ok=True)
        return
    find_run(store, name).read()
    write_json(store.root / _CHOICE, {"kind": "ood-choice", "schema": 1, "run": name})


def find_run(store: Store, name: str | None) -> RunFolder:
    """Return the run called ``name``, or the chosen one, or else the finished run created last.

    Raises
    ------
    UnknownNameError
        If there is no such run.
    MissingArtifactError
        If there is no finished run at all, or the chosen one is gone.
    """
    folders = run_folders(store)
    choice = chosen_run(store) if name is None else None
    if choice is not None:
        for folder in folders:
            if folder.name == choice[0]:
                return folder
        cure = (
            f"set {RUN_VARIABLE} to another or unset it"
            if choice[1] == RUN_VARIABLE
            else "choose another: ood runs use RUN, or the one created last: ood runs use --last"
        )
        raise MissingArtifactError(
            f"there is no run {choice[0]!r} in {store.root}, which {choice[1]} names; {cure}"
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
    if folders:
        cure = f"finish one: ood train --resume --run {folders[-1].name}"
    raise MissingArtifactError(f"there is no finished run in {store.root}; {cure}")


def new_name(store: Store, wanted: str | None, default: str) -> str:
    """Return a name that no folder has yet.

    Parameters
    ----------
    store
        Where the run will be.
    wanted
        The name the user asked for.
    default
        The name to start from otherwise; a number is added where it is taken.

    Raises
    ------
    InvalidInputError
        If the wanted name is taken, or no run can have it.
    """
    if wanted is not None:
        folder = RunFolder(store.runs / check_name(wanted))
        if folder.ours and not folder.finished:
            raise InvalidInputError(
                f"run {wanted} was begun and is not finished; go on with it "
                f"(ood train --resume --run {wanted}) or name another: --name RUN"
            )
        if _taken(folder.path) and not folder.ours and folder.path.is_dir():
            raise InvalidInputError(
                f"the folder {folder.path} is there already, and is no run; if it is what was left "
                f"of one, remove it (ood runs remove {wanted}), or name another: --name RUN"
            )
        if _taken(folder.path):
            raise InvalidInputError(
                f"there is a run {wanted} already; remove it (ood runs remove {wanted}) "
                "or name another: --name RUN"
            )
        return wanted
    stem = re.sub(r"[^A-Za-z0-9._-]+", "-", default).strip("-.") or "run"
    name, number = stem, 1
    while _taken(store.runs / name):
        number += 1
        name = f"{stem}-{number}"
    return check_name(name)


def _taken(path: Path) -> bool:
    """Return whether a name is in use; what an import left that was killed is not in the way."""
    if not path.is_dir() or RunFolder(path).ours:
        return path.exists()
    own = {found for pattern in _OWN_FILES for found in path.glob(pattern)}
    return any(entry not in own for entry in path.iterdir())


@contextlib.contextmanager
def using_run(
    store: Store, name: str | None, *, progress: Progress | None = None
) -> Iterator[RunFolder]:
    """Find a run, and keep others from removing or renaming it meanwhile.

    Parameters
    ----------
    store
        Where the run is.
    name
        Its name; the finished run created last if None, which is said.
    progress
        Told which run is taken.

    Yields
    ------
    RunFolder
        The run.

    Raises
    ------
    OodError
        As :func:`find_run`, or if the run was removed or renamed just now.
    """
    watch = progress or Silent()
    folder = find_run(store, name)
    if name is None:
        watch.note(f"run: {folder.name}")
    with store.shared(run_lock(folder.name), progress=watch):
        if not folder.ours:
            raise MissingArtifactError(
                f"run {folder.name} was removed or renamed just now; see: ood runs list"
            )
        yield folder


@contextlib.contextmanager
def using_runs(store: Store, names: Sequence[str]) -> Iterator[list[RunFolder]]:
    """Find several runs, each once, as :func:`using_run` does; the default one if none is named."""
    with contextlib.ExitStack() as held:
        yield [
            held.enter_context(using_run(store, name)) for name in dict.fromkeys(names) or [None]
        ]


def rename_run(store: Store, old: str, new: str) -> None:
    """Give a run another name.

    Raises
    ------
    InvalidInputError
        If the run is in use, or the new name is taken.
    """
    folder = find_run(store, old)
    with store.alone(run_lock(old)), store.lock("runs"):
        folder.path.rename(store.runs / new_name(store, new, new))
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


def run_lock(name: str) -> str:
    """Return the name of the lock that is held while a run is used, renamed or removed."""
    return f"run {name}"


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
    files = [found for pattern in _OWN_FILES for found in sorted(path.glob(pattern))]
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
