"""Runs: a trained or imported network with all that is needed to use and cite it.

A run is a folder of the store. ``run.json`` is written last, so a run that has one is complete.
``training.json`` stands in a run that is still being trained.
"""

import contextlib
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Self

from oodcli.errors import (
    CorruptArtifactError,
    InvalidInputError,
    MissingArtifactError,
    UnknownNameError,
)
from oodcli.progress import SILENT, Progress
from oodcli.records import as_json
from oodcli.resizing import Resize
from oodcli.store.store import (
    Store,
    digest_of_file,
    read_json,
    write_json,
)

RUN_SCHEMA = 1
TRAINING_SCHEMA = 1
RECORD = "run.json"
TRAINING = "training.json"
WEIGHTS = "weights.safetensors"
HISTORY = "history.jsonl"
STATE = "state.json"
RUN_VARIABLE = "OOD_RUN"
_CHOICE = "choice.json"
RECOMMENDATION = "recommendation.json"
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}")
# Facts of a job that ``run.json`` has among those of its training.
_BESIDE = ("amp", "compile", "skip_unreadable", "init")
# The order in ``run.json``, where the facts of the job stand among those of the run.
_ORDER = (
    "origin", "created", "arch", "data", "data_name", "class_names", "preprocess", "blocks",
    "network", "weights", "recipe", "seed", "parts", "val_fraction", "test_fraction", "division",
    "versions", "command", "training", "imported",
)  # fmt: skip
_TRAINING_ORDER = (
    "device", "processes", "amp", "compile", "skip_unreadable", "threads", "seconds", "loss",
    "train_accuracy", "val_accuracy", "checkpoint", "last_layer", "init",
)  # fmt: skip
_IMPORTED_ORDER = ("source", "skip_unreadable")
# All that the tool ever writes into the folder of a run; what else lies there is somebody's own.
OWN_FILES = (
    RECORD, TRAINING, WEIGHTS, HISTORY, STATE, RECOMMENDATION, "state-*.safetensors",
    "best-*.safetensors", ".ood-tmp-*",
)  # fmt: skip


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
        ``shorter-crop`` or ``shorter-crop:SIDE`` (shorter side to that length, then the centre);
        with a filter behind it, as in ``shorter-crop:256:bicubic``, unless that is ``bilinear``.
    mean, std
        Normalisation of the three channels, for pixel values from 0 to 1.
    """

    size: tuple[int, int] = (32, 32)
    resize: str = "exact"
    mean: tuple[float, float, float] = (0.5, 0.5, 0.5)
    std: tuple[float, float, float] = (0.5, 0.5, 0.5)

    @property
    def filter(self) -> str:
        """The filter that ``resize`` names, one of those of ``ood train --resize``."""
        return Resize.of(self.resize).used

    def to_json(self) -> dict[str, Any]:
        """Return it as records and exports have it."""
        return {
            "size": list(self.size),
            "resize": self.resize,
            "filter": self.filter,
            "mean": list(self.mean),
            "std": list(self.std),
        }


@dataclass(frozen=True)
class Job:
    """What fixes the weights of a run: the one list of it; values are as JSON has them.

    Of an imported network, which the tool has not trained, it is what fixes its data.

    Parameters
    ----------
    data
        How to open the data set again.
    arch
        Canonical architecture, such as ``resnet18:width=16``.
    recipe
        How it is trained, every value; empty for an imported network.
    seed
        Seed of training; None for an imported network.
    amp
        Whether it is trained in bfloat16.
    compile
        Whether torch compiles its training steps.
    val_fraction
        Share of the training images held out for validation.
    test_fraction
        Share of the images that are tested on, where the data set was one whole; 0 otherwise.
    division
        Digest of what the data set was divided by; empty where it was not.
    skip_unreadable
        Whether images that cannot be decoded are skipped, in training and ever after.
    preprocess
        What happens to an image before the network sees it.
    init
        What the weights began from: its source, digest and architecture; None for random weights.
    """

    data: str
    arch: str
    recipe: Mapping[str, Any] = field(default_factory=dict)
    seed: int | None = None
    amp: bool = False
    compile: bool = False
    val_fraction: float = 0.0
    test_fraction: float = 0.0
    division: str = ""
    skip_unreadable: bool = False
    preprocess: Preprocess = Preprocess()
    init: Mapping[str, Any] | None = None

    def but_for_seed(self) -> "Job":
        """Return what two runs share when they differ by their seed alone."""
        return replace(self, seed=None)

    @classmethod
    def taken_from(cls, content: dict[str, Any]) -> Self:
        """Take the facts of a job out of an object that has them among others.

        Parameters
        ----------
        content
            The object; what is read is removed from it.

        Raises
        ------
        KeyError, TypeError, ValueError
            If a fact is missing, or no such value.
        """
        pre = content.pop("preprocess")
        height, width = pre["size"]
        preprocess = Preprocess(
            (height, width), pre["resize"], tuple(pre["mean"]), tuple(pre["std"])
        )
        names = [each.name for each in fields(cls) if each.name in content]
        return cls(preprocess=preprocess, **{name: content.pop(name) for name in names})


@dataclass(frozen=True)
class Begun:
    """A run in training, as it stands in ``training.json``.

    Parameters
    ----------
    job
        What fixes its weights.
    command
        The command line that began it.
    created
        When, UTC.
    """

    job: Job
    command: str
    created: str

    def to_json(self) -> dict[str, Any]:
        """Return the record as it is written; normalisation stands in the recipe alone."""
        job = as_json(self.job)
        pre, init = job.pop("preprocess"), job.pop("init")
        sizing = {"size": pre["size"], "resize": pre["resize"]}
        facts = {**job, **sizing, "init": init, "command": self.command, "created": self.created}
        return {"kind": "ood-run", "schema": TRAINING_SCHEMA, **facts}

    @classmethod
    def from_json(cls, content: Mapping[str, Any]) -> Self:
        """Read a record.

        Raises
        ------
        KeyError, TypeError, ValueError
            If it is none.
        """
        recipe = content["recipe"]
        pre = {
            **{name: content[name] for name in ("size", "resize")},
            **{name: recipe[name] for name in ("mean", "std")},
        }
        return cls(
            Job.taken_from({**content, "preprocess": pre}), content["command"], content["created"]
        )


@dataclass(frozen=True)
class Run:
    """The record of a finished run: its job, and what came out.

    Parameters
    ----------
    origin
        ``trained`` or ``imported``.
    created
        When it was finished, UTC.
    job
        What fixed its weights.
    data_name
        Name of the data set.
    class_names
        Classes in the order of the logits.
    blocks
        Names of the blocks in forward order.
    network
        Digest of architecture and weights.
    weights
        Digest of the weights file.
    parts
        Number of images of each part of the data set.
    versions
        Versions of the packages that made it.
    command
        The command line that made it.
    training
        Of a trained network: device, seconds, loss and accuracies of the checkpoint that counts,
        which one that is, whether its last layer was trained or is a linear probe, the accuracy on
        test images, and the digest of the file of the training history.
    imported
        Of an imported network: where the weights and each setting of the images come from
        (``source``, ``preprocess_from``), whether images are resized as the configuration of its
        published weights has it (``as_published``), and how it did on some labelled images
        (``plausibility``), with what looked wrong there; where the last layer is a linear
        probe that was fitted then, ``last_layer`` says so; where the network has more classes than
        the data, which logits count (``logits``: ``kept`` is ``data`` or ``all``, of so many
        ``classes`` and ``outputs``).
    """

    # One more than twelve: of the last two, one is empty, and each is written under its own name.
    origin: str
    created: str
    job: Job
    data_name: str
    class_names: tuple[str, ...]
    blocks: tuple[str, ...]
    network: str
    weights: str
    parts: Mapping[str, int] = field(default_factory=dict)
    versions: Mapping[str, str] = field(default_factory=dict)
    command: str = ""
    training: Mapping[str, Any] = field(default_factory=dict)
    imported: Mapping[str, Any] = field(default_factory=dict)

    @property
    def arch(self) -> str:
        """Canonical architecture, such as ``resnet18:width=16``."""
        return self.job.arch

    @property
    def data(self) -> str:
        """How to open the data set again."""
        return self.job.data

    @property
    def preprocess(self) -> Preprocess:
        """What happens to an image before the network sees it."""
        return self.job.preprocess

    @property
    def seed(self) -> int | None:
        """Seed of training; None for an imported network."""
        return self.job.seed

    @property
    def warnings(self) -> tuple[str, ...]:
        """What looked wrong when the network was imported, a line each."""
        return tuple(self.imported.get("plausibility", {}).get("warnings", ()))

    def showing(self, preprocess: Preprocess) -> Self:
        """Return the record of the same network, which is shown its images in another way.

        Parameters
        ----------
        preprocess
            What happens to an image before the network sees it.
        """
        return replace(self, job=replace(self.job, preprocess=preprocess))

    def to_json(self) -> dict[str, Any]:
        """Return the record as it is written, the facts of the job among the others."""
        content = as_json(self)
        content |= content.pop("job")
        beside = {name: content.pop(name) for name in _BESIDE}
        if self.origin == "trained":
            content["training"] = _ordered({**content["training"], **beside}, _TRAINING_ORDER)
        else:
            skipped = {"skip_unreadable": beside["skip_unreadable"]}
            content["imported"] = _ordered({**content["imported"], **skipped}, _IMPORTED_ORDER)
        return {"kind": "ood-run", "schema": RUN_SCHEMA, **_ordered(content, _ORDER)}

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
            for place in ("training", "imported"):
                values[place] = dict(values.get(place, {}))
                names = [name for name in _BESIDE if name in values[place]]
                values |= {name: values[place].pop(name) for name in names}
            job = Job.taken_from(values)
            for name in ("class_names", "blocks"):
                values[name] = tuple(values[name])
            return cls(job=job, **values)
        except (KeyError, TypeError, ValueError) as error:
            raise CorruptArtifactError(f"{where} is damaged: {error}; remove the run") from None


def _ordered(content: Mapping[str, Any], names: Sequence[str]) -> dict[str, Any]:
    """Return an object with some of its fields first, in this order."""
    return {**{name: content[name] for name in names if name in content}, **content}


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
                f"run {self.name} is not finished; "
                f"resume it with: ood train --resume --run {self.name}"
            )
        cure = (
            f"restore it, or remove the run (ood runs remove {self.name}) and create it again; "
            f"its weights can still be imported: ood import {self.weights} --arch ARCH --data DATA"
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
                f"the weights of run {self.name} have changed since they were written; remove it "
                f"(ood runs remove {self.name}) and create it again"
            )

    def begin(self, begun: Begun) -> None:
        """Write what the run is going to be trained with."""
        write_json(self.path / TRAINING, begun.to_json())

    def read_training(self) -> Begun:
        """Read what an unfinished run is being trained with.

        Raises
        ------
        CorruptArtifactError
            If it is damaged.
        """
        cure = f"remove the run (ood runs remove {self.name}) and train it again"
        content = read_json(self.path / TRAINING, cure=cure)
        try:
            return Begun.from_json(content)
        except (KeyError, TypeError, ValueError) as error:
            raise CorruptArtifactError(
                f"the unfinished run {self.name} is damaged: {error}; "
                f"remove it: ood runs remove {self.name}"
            ) from None


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


def new_name(
    store: Store, wanted: str | None, default: str, *, cure: str = "choose another name: --name RUN"
) -> str:
    """Return a name that no folder has yet.

    Parameters
    ----------
    store
        Where the run will be.
    wanted
        The name the user asked for.
    default
        The name to start from otherwise; a number is added where it is taken.
    cure
        How the user gives another name, for messages.

    Raises
    ------
    InvalidInputError
        If the wanted name is taken, or no run can have it.
    """
    if wanted is not None:
        folder = RunFolder(store.runs / check_name(wanted))
        if folder.ours and not folder.finished:
            raise InvalidInputError(
                f"run {wanted} is not finished; resume it "
                f"(ood train --resume --run {wanted}) or {cure}"
            )
        if _taken(folder.path) and not folder.ours and folder.path.is_dir():
            raise InvalidInputError(
                f"the folder {folder.path} already exists and is not a run; if it is the "
                f"remainder of a removed run, remove it (ood runs remove {wanted}), or {cure}"
            )
        if _taken(folder.path):
            raise InvalidInputError(
                f"run {wanted} already exists; remove it (ood runs remove {wanted}) or {cure}"
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
    own = {found for pattern in OWN_FILES for found in path.glob(pattern)}
    return any(entry not in own for entry in path.iterdir())


@contextlib.contextmanager
def using_run(
    store: Store, name: str | None, *, progress: Progress = SILENT
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
    folder = find_run(store, name)
    if name is None:
        progress.note(f"run: {folder.name}")
    with store.shared(run_lock(folder.name), progress=progress):
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


def run_lock(name: str) -> str:
    """Return the name of the lock that is held while a run is used, renamed or removed."""
    return f"run {name}"
