"""Runs: a trained or imported network with all information needed to use and cite it.

A run is a folder of the store. ``run.json`` is written last, so a run that has one is complete.
An unfinished training has ``training.json`` instead, and an ensemble of runs ``ensemble.json``: it
has scores, but no network of its own; see :mod:`oodcli.store.ensembles`.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Self

from oodcli.errors import CorruptArtifactError, InvalidInputError, MissingArtifactError
from oodcli.records import as_json
from oodcli.store.preprocess import DEFAULT_PREPROCESS, Preprocess
from oodcli.store.store import digest_of_file, digest_of_json, read_json, write_json

RUN_SCHEMA = 1
TRAINING_SCHEMA = 1
RECORD = "run.json"
TRAINING = "training.json"
ENSEMBLE_RECORD = "ensemble.json"
WEIGHTS = "weights.safetensors"
WORDS = "words.safetensors"
HISTORY = "history.jsonl"
STATE = "state.json"
RECOMMENDATION = "recommendation.json"
# What the record of an imported network without a classifier has for its last layer.
NO_CLASSIFIER = "none"
# Fields of a job that ``run.json`` stores in its object ``training``.
_TRAINING_FACTS = ("amp", "compile", "skip_unreadable", "init", "outliers", "mixing")
# Order of the fields in ``run.json``, which stores those of the job and of the run together.
_ORDER = (
    "origin", "created", "arch", "data", "data_name", "class_names", "preprocess", "blocks",
    "network", "weights", "recipe", "seed", "parts", "val_fraction", "test_fraction", "division",
    "versions", "command", "training", "imported",
)  # fmt: skip
_TRAINING_ORDER = (
    "device", "processes", "amp", "compile", "skip_unreadable", "threads", "seconds", "loss",
    "train_accuracy", "val_accuracy", "checkpoint", "last_layer", "kept_heads", "init",
    "outliers", "mixing",
)  # fmt: skip
_IMPORTED_ORDER = ("source", "skip_unreadable")
# All files that ood writes into the folder of a run; other files in it belong to the user.
OWN_FILES = (
    RECORD, TRAINING, ENSEMBLE_RECORD, WEIGHTS, WORDS, HISTORY, STATE, RECOMMENDATION,
    "state-*.safetensors", "best-*.safetensors", ".ood-tmp-*",
)  # fmt: skip


def utc_now() -> str:
    """Return the current time in UTC as ISO 8601 with microseconds."""
    return datetime.now(UTC).isoformat()


@dataclass(frozen=True)
class Job:
    """Everything that determines the weights of a run; all values are valid in JSON.

    For an imported network, which ood has not trained, it determines the data only.

    Parameters
    ----------
    data
        Data set, as it is opened again.
    arch
        Canonical architecture, such as ``resnet18:width=16``.
    recipe
        All training settings; empty for an imported network.
    seed
        Seed of training; None for an imported network.
    amp
        Whether training uses bfloat16.
    compile
        Whether torch compiles the training steps.
    val_fraction
        Share of the training images held out for validation.
    test_fraction
        Share of the images held out for testing if the data set has no parts of its own; 0
        otherwise.
    division
        Digest of the rule by which the data set was divided; empty if it was not divided.
    skip_unreadable
        Whether images that cannot be decoded are skipped, in training and later.
    preprocess
        Preprocessing of images before the network.
    init
        Source, digest and architecture of the initial weights; None for random weights.
    outliers
        The outliers that it is trained with, as :class:`oodcli.store.outlier_source.OutlierSource`
        has them; None without outliers.
    mixing
        The mixing set of PixMix, in the same form; None without it.
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
    preprocess: Preprocess = DEFAULT_PREPROCESS
    init: Mapping[str, Any] | None = None
    outliers: Mapping[str, Any] | None = None
    mixing: Mapping[str, Any] | None = None

    def without_seed(self) -> "Job":
        """Return the job without its seed; equal for runs that differ only by the seed."""
        return replace(self, seed=None)

    @classmethod
    def pop_from(cls, content: dict[str, Any]) -> Self:
        """Remove the fields of a job from a JSON object and return the job.

        Parameters
        ----------
        content
            The object; the fields of the job are removed from it.

        Raises
        ------
        KeyError, TypeError, ValueError
            If a field is missing or has an invalid value.
        """
        pre = content.pop("preprocess")
        height, width = pre["size"]
        preprocess = Preprocess(
            (height, width), pre["resize"], tuple(pre["mean"]), tuple(pre["std"]),
            pre.get("window", ""),
        )  # fmt: skip
        names = [each.name for each in fields(cls) if each.name in content]
        return cls(preprocess=preprocess, **{name: content.pop(name) for name in names})


@dataclass(frozen=True)
class TrainingRecord:
    """The record of an unfinished training, stored in ``training.json``.

    Parameters
    ----------
    job
        Everything that determines the weights.
    command
        The command line that started the training.
    created
        Time of the start, UTC.
    """

    job: Job
    command: str
    created: str

    def to_json(self) -> dict[str, Any]:
        """Return the stored object; mean and standard deviation are in the recipe only."""
        job = as_json(self.job)
        pre = job.pop("preprocess")
        sources = {name: job.pop(name) for name in ("init", "outliers", "mixing")}
        sizing = {name: pre[name] for name in ("size", "resize", "window") if name in pre}
        values = {**job, **sizing, **sources, "command": self.command, "created": self.created}
        return {"kind": "ood-run", "schema": TRAINING_SCHEMA, **values}

    @classmethod
    def from_json(cls, content: Mapping[str, Any]) -> Self:
        """Build the record from its stored object.

        Raises
        ------
        KeyError, TypeError, ValueError
            If the object is not such a record.
        """
        recipe = content["recipe"]
        pre = {
            **{name: content[name] for name in ("size", "resize")},
            "window": content.get("window", ""),
            **{name: recipe[name] for name in ("mean", "std")},
        }
        return cls(
            Job.pop_from({**content, "preprocess": pre}), content["command"], content["created"]
        )


@dataclass(frozen=True)
class Run:
    """The record of a finished run: its job and its results.

    Parameters
    ----------
    origin
        ``trained`` or ``imported``.
    created
        Time of completion, UTC.
    job
        Everything that determines the weights.
    data_name
        Name of the data set.
    class_names
        Names of the classes, in the order of the logits.
    blocks
        Names of the blocks, in forward order.
    network
        Digest of architecture and weights.
    weights
        Digest of the weights file.
    parts
        Number of images of each part of the data set.
    versions
        Versions of the packages in use when the run was created.
    command
        The command line that created the run.
    training
        For a trained network: device, seconds, loss and accuracies of the selected checkpoint,
        which checkpoint that is, whether its last layer was trained or is a linear probe, the
        number of outputs of every head that its objective keeps beside the last layer
        (``kept_heads``), the accuracy on test images, and the digest of the
        file of the training history.
    imported
        For an imported network: the source of the weights and of each preprocessing setting
        (``source``, ``preprocess_from``; ``commit`` for a repository of the hub), whether images
        are resized as in the configuration of the published weights (``as_published``), and the
        results and warnings of the check on some labelled images (``plausibility``).
        ``last_layer`` is present if the last layer is a linear probe fitted at import
        (``linear probe``), or if there is no classifier (``none``); ``kept_heads`` as above, if the
        weights have any. If the network has more outputs
        than the data has classes, ``logits`` gives which logits are used (``kept``: ``data`` or
        ``all``) and the numbers of ``classes`` and ``outputs``.
        For a zero-shot classifier, ``zero_shot`` gives how class names became the last layer:
        ``templates`` and ``names`` with their sources (``templates_from``, ``names_from``),
        ``logit_scale``, ``logit_bias``, and ``negative_words`` if there are any: the ``file``,
        ``template`` and number of ``words`` of each of the ``lists``, and the ``digest`` of their
        embeddings.
    """

    # Thirteen fields: one of the last two is empty, and each is stored under its own name.
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
        """Data set, as it is opened again."""
        return self.job.data

    @property
    def preprocess(self) -> Preprocess:
        """Preprocessing of images before the network."""
        return self.job.preprocess

    @property
    def seed(self) -> int | None:
        """Seed of training; None for an imported network."""
        return self.job.seed

    @property
    def zero_shot(self) -> Mapping[str, Any]:
        """How class names became the last layer of a zero-shot classifier; empty of others."""
        return self.imported.get("zero_shot", {})

    @property
    def kept_heads(self) -> Mapping[str, int]:
        """Number of outputs of every kept head beside the last layer, by name."""
        return {**self.training, **self.imported}.get("kept_heads", {})

    @property
    def outputs(self) -> int:
        """Number of logits of the network: one for each class, or 0 without a classifier."""
        bare = self.imported.get("last_layer") == NO_CLASSIFIER
        return 0 if bare else len(self.class_names)

    @property
    def warnings(self) -> tuple[str, ...]:
        """Warnings of the check at import, one line each."""
        return tuple(self.imported.get("plausibility", {}).get("warnings", ()))

    def with_preprocess(self, preprocess: Preprocess) -> Self:
        """Return the record of the same network with another preprocessing.

        Parameters
        ----------
        preprocess
            Preprocessing of images before the network.
        """
        return replace(self, job=replace(self.job, preprocess=preprocess))

    def to_json(self) -> dict[str, Any]:
        """Return the stored object, with the fields of the job at the same level."""
        content = as_json(self)
        content |= content.pop("job")
        moved = {name: content.pop(name) for name in _TRAINING_FACTS}
        if self.origin == "trained":
            content["training"] = _ordered({**content["training"], **moved}, _TRAINING_ORDER)
        else:
            skipped = {"skip_unreadable": moved["skip_unreadable"]}
            content["imported"] = _ordered({**content["imported"], **skipped}, _IMPORTED_ORDER)
        return {"kind": "ood-run", "schema": RUN_SCHEMA, **_ordered(content, _ORDER)}

    @classmethod
    def from_json(cls, content: Mapping[str, Any], where: Path) -> Self:
        """Build the record from its stored object.

        Raises
        ------
        CorruptArtifactError
            If the object is not a record of this schema.
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
                names = [name for name in _TRAINING_FACTS if name in values[place]]
                values |= {name: values[place].pop(name) for name in names}
            job = Job.pop_from(values)
            for name in ("class_names", "blocks"):
                values[name] = tuple(values[name])
            return cls(job=job, **values)
        except (KeyError, TypeError, ValueError) as error:
            raise CorruptArtifactError(f"{where} is damaged: {error}; remove the run") from None


def _ordered(content: Mapping[str, Any], names: Sequence[str]) -> dict[str, Any]:
    """Return an object with the given fields first, in the given order."""
    return {**{name: content[name] for name in names if name in content}, **content}


@dataclass(frozen=True)
class RunFolder:
    """The folder of one run.

    Parameters
    ----------
    path
        Path of the folder; its last component is the name of the run.
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
    def words(self) -> Path:
        """File of the embeddings of negative words."""
        return self.path / WORDS

    @property
    def history(self) -> Path:
        """File of the training history, one JSON object per line."""
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
    def embeddings(self) -> Path:
        """Folder of features in two dimensions."""
        return self.path / "embeddings"

    @property
    def recommendation(self) -> Path:
        """File of the recommendation."""
        return self.path / RECOMMENDATION

    @property
    def detectors(self) -> Path:
        """Folder of the fitted methods."""
        return self.path / "detectors"

    def detector(self, method: str, precision: str) -> Path:
        """Return the folder of a fitted method.

        Parameters
        ----------
        method
            Canonical name of the method.
        precision
            Precision of the forward pass.
        """
        return self.detectors / digest_of_json([method, precision])[:16]

    @property
    def finished(self) -> bool:
        """Whether the run is complete."""
        return (self.path / RECORD).is_file()

    @property
    def is_ensemble(self) -> bool:
        """Whether the folder is an ensemble of runs, which has no network of its own."""
        return (self.path / ENSEMBLE_RECORD).is_file()

    @property
    def is_run(self) -> bool:
        """Whether the folder is a run, finished or not, or an ensemble of runs."""
        return self.finished or (self.path / TRAINING).is_file() or self.is_ensemble

    def check_single(self) -> None:
        """Raise an error if the folder is an ensemble of runs, where one network is needed.

        Raises
        ------
        InvalidInputError
            If it is.
        """
        if self.is_ensemble:
            raise InvalidInputError(
                f"{self.name} is an ensemble, and this needs one network; name one of its members "
                f"(ood runs show {self.name}), or report its scores: ood report --run {self.name}"
            )

    def read(self) -> Run:
        """Read the record of a finished run.

        Raises
        ------
        MissingArtifactError
            If the run is not finished.
        CorruptArtifactError
            If the record is damaged.
        InvalidInputError
            If it is an ensemble of runs.
        """
        self.check_single()
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
        """Verify the weights file: stored activations are identified by its digest.

        Raises
        ------
        CorruptArtifactError
            If the file is missing or its digest differs from the record.
        """
        try:
            digest = digest_of_file(self.weights)
        except FileNotFoundError:
            digest = ""
        if digest != run.weights:
            raise CorruptArtifactError(
                f"the weights of run {self.name} have changed since they were written; remove it "
                f"(ood runs remove {self.name}) and create it again"
            )

    def begin(self, training: TrainingRecord) -> None:
        """Write the record of a training at its start."""
        write_json(self.path / TRAINING, training.to_json())

    def read_training(self) -> TrainingRecord:
        """Read the record of an unfinished training.

        Raises
        ------
        CorruptArtifactError
            If it is damaged.
        InvalidInputError
            If it is an ensemble of runs.
        """
        self.check_single()
        cure = f"remove the run (ood runs remove {self.name}) and train it again"
        content = read_json(self.path / TRAINING, cure=cure)
        try:
            return TrainingRecord.from_json(content)
        except (KeyError, TypeError, ValueError) as error:
            raise CorruptArtifactError(
                f"the unfinished run {self.name} is damaged: {error}; "
                f"remove it: ood runs remove {self.name}"
            ) from None
