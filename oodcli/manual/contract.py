"""The JSON contract as tables: fields of the records that are written, with their docstrings."""

import collections.abc
import re
import types
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, fields, is_dataclass
from itertools import groupby
from pathlib import Path
from typing import Any, Literal, NamedTuple, Union, get_args, get_origin, get_type_hints

from oodcli.data.catalogue import Listing
from oodcli.data.verification import Verification as DatasetVerification
from oodcli.methods.contract import Finding
from oodcli.methods.pages import (
    MethodList,
    MethodPage,
    MethodText,
    MethodTrial,
    docstring,
    parameter_texts,
    sections,
)
from oodcli.reporting.explanations import Explanation, Neighbour, TypicalImage
from oodcli.reporting.literature import PublishedComparison
from oodcli.reporting.results import EXTRAS, Comparison, Report, ResultRow, SplitUsed
from oodcli.scoring.block_ratios import NormRatioResult
from oodcli.scoring.plan import Plan
from oodcli.screening.drift import DriftResult
from oodcli.screening.findings import PredictResult
from oodcli.screening.onnx_verification import Verification
from oodcli.screening.thresholds import ClassThreshold, Threshold
from oodcli.screening.verdict_file import Counts, Verdict
from oodcli.selection.recommendation import Recommendation
from oodcli.store.ensembles import Ensemble
from oodcli.store.preprocess import Preprocess
from oodcli.store.runs import Job, Run
from oodcli.store.scores import Scoring
from oodcli.store.searches import Search
from oodcli.training.recipes import Recipe
from oodcli.workflows.cluster import ClusteredImage, ClusterResult
from oodcli.workflows.doctor import Diagnosis
from oodcli.workflows.explain import ExplainResult
from oodcli.workflows.packing import PackedSummary
from oodcli.workflows.run import RunResult
from oodcli.workflows.runs import RunList
from oodcli.workflows.score import ScoreResult


class Field(NamedTuple):
    """A field of an object: where it stands, which type it has, and what it means."""

    path: str
    type: str
    meaning: str


@dataclass(frozen=True)
class Object:
    """A JSON object that is printed, or written to a file.

    Parameters
    ----------
    title
        The command or the file.
    record
        The record whose fields it has; None where it has those of ``also`` alone.
    kind
        Value of its field ``kind``; empty if it has none.
    also
        Further fields, with type (that of a record for an object) and meaning.
    without
        Fields of the record that it lacks.
    schema
        Version of the object; None where it has none of its own.
    about
        A sentence above the table.
    """

    title: str
    record: type | None
    kind: str = ""
    also: Mapping[str, tuple[Any, str]] = field(default_factory=dict)
    without: tuple[str, ...] = ()
    schema: int | None = 1
    about: str = ""

    def fields(self, seen: dict[type, str] | None = None) -> Iterator[Field]:
        """Return all fields, each followed by those inside it.

        Parameters
        ----------
        seen
            Records whose fields are not to be repeated, and where they stand; grows.
        """
        walk = _Walk(self.title, {} if seen is None else seen, once=seen is not None)
        if self.kind:
            yield Field("kind", "string", f"`{self.kind}`")
        if self.schema is not None:
            yield Field("schema", "integer", f"{self.schema}")
        if self.record is not None:
            if seen is not None:
                seen[self.record] = self.title
            yield from walk.fields(self.record, "", self.without)
        for name, (hint, meaning) in self.also.items():
            yield from walk.field(name, hint, meaning)


# Properties that stand among the fields of a record.
_DERIVED: Mapping[type, tuple[str, ...]] = {
    Comparison: ("significant", "sentence"),
    Counts: ("total",),
    Diagnosis: ("healthy",),
    DriftResult: ("changed",),
    Explanation: ("agreement",),
    Preprocess: ("filter",),
    PredictResult: ("share", "tested", "p", "alarm"),
    PublishedComparison: ("difference", "within"),
    Recommendation: ("sureness",),
}
# Fields that have another name, or that are not written.
_RENAMED = {
    (SplitUsed, "key"): "list",
    (Verdict, "predicted"): "class",
    (Explanation, "predicted"): "class",
    (Neighbour, "label"): "class",
    (ClusteredImage, "predicted"): "class",
    (TypicalImage, "label"): "class",
    (PredictResult, "counts"): "images",
    (Finding, "what"): "must",
    (MethodTrial, "findings"): "checks",
}
# Records whose fields stand among those of the record that has them.
_FLAT = {(MethodText, "listed"), (ResultRow, "detection"), (Run, "job")}
_UNWRITTEN = {
    ExplainResult: ("detector", "thumbnails"),
    RunList: ("no_default",),
    Job: ("amp", "compile", "skip_unreadable", "init"),
    Report: ("description",),
    PublishedComparison: ("n_runs", "published"),
    DriftResult: ("detector",),
    PredictResult: ("detector", "before", "rows", "complete"),
}
_SCREENED: Mapping[str, tuple[Any, str]] = {
    "run": (str, "Name of the run."),
    "network": (str, "Digest of architecture and weights."),
    "method": (str, "Canonical name of the method."),
    "params": (Mapping[str, Any], "Every parameter of the method, with what fitting chose."),
    "precision": (str, "``float32`` or ``bfloat16``."),
    "id_data": (str, "Name of the data set behind the threshold."),
    "id_part": (str, "Its part: ``val`` or ``test``."),
    "id_images": (int, "Number of ID images behind the threshold."),
    "id_digest": (str, "Digest of their pixels."),
    "engine": (str, "What ran network and method: ``torch`` or ``onnx``."),
    "created": (str, "When the method was fitted, UTC."),
}
_PUBLISHED: Mapping[str, tuple[Any, str]] = {
    "published": (float, "The published value, a fraction."),
    "published_std": (float | None, "Its standard deviation over trainings."),
    "published_runs": (int, "Number of trainings behind it."),
    "comparable": (bool, "Whether the two values are comparable."),
    "source": (str, "The publication."),
    "url": (str, "Its address."),
    "note": (str, "Remark on the value, or empty."),
}
_INSIDE: Mapping[type, Mapping[str, tuple[Any, str]]] = {
    PublishedComparison: _PUBLISHED,
    NormRatioResult: {"schema": (int, "1")},
    Search: {"schema": (int, "1")},
    Run: {
        "training.amp": (bool, "Whether it was trained in bfloat16."),
        "training.compile": (bool, "Whether torch compiled its training steps."),
        "training.skip_unreadable": (
            bool,
            "Whether images that cannot be decoded are skipped; "
            "of an imported network in ``imported``.",
        ),
        "training.init": (
            Mapping[str, Any] | None,
            "What the weights began from: source, digest "
            "and architecture; None for random weights.",
        ),
    },
    ResultRow: {f"extras.{name}": (float, text) for name, text in EXTRAS.items()},
}
_OF_REPORT: Mapping[str, tuple[Any, str]] = {
    "published": (Sequence[PublishedComparison], "With ``--published``: published values."),
    "conventions[].name": (
        str,
        "With several ``--convention``: the name of each; ``rows`` then has the rows of all.",
    ),
    "conventions[].description": (str, "What the convention means, in one line."),
}
_SHOWN_RUN: Mapping[str, tuple[Any, str]] = {
    "name": (str, "Name of the run."),
    "folder": (str, "Its folder."),
    "normratio": (Mapping[str, NormRatioResult], "Results of ``ood normratio``, by file."),
    "scores[].limit": (int | None, "Number of images taken of each set; None for all."),
    "scores[].precision": (str, "``float32`` or ``bfloat16``."),
    "scores[].updated": (str, "When scores were added last, UTC."),
    "scores[].id": (str, "Name of the ID test set."),
    "scores[].sets": (Sequence[str], "Names of the OOD sets."),
    "scores[].methods": (Sequence[str], "Canonical names of the methods."),
}
_MODEL: Mapping[str, tuple[Any, str]] = {
    "created": (str, "When the file was written, UTC."),
    "versions": (Mapping[str, str], "Of ood, torch, onnx, onnxscript and onnxruntime."),
    "run": (str, "Name of the run."),
    "arch": (str, "Canonical architecture."),
    "network": (str, "Digest of architecture and weights."),
    "data": (str, "Name of the data set of the run."),
    "method": (str, "Canonical name of the method."),
    "params": (Mapping[str, Any], "Every parameter of the method, with what fitting chose."),
    "threshold": (Threshold, "The threshold."),
    "threshold.id_part": (str, "Part of the ID images behind it."),
    "fitted": (str, "When the method was fitted, UTC."),
    "id.data": (str, "Name of the data set of the ID images behind the threshold."),
    "id.part": (str, "Their part: ``val`` or ``test``."),
    "id.images": (int, "Their number."),
    "id.digest": (str, "Digest of their pixels."),
    "id.scores": (str, "Their scores, ascending: base64 of little-endian float64."),
    "id.classes": (str, "Their predicted classes in that order: base64 of little-endian int64."),
    "classes": (Sequence[str], "Names of the classes, in the order of the logits."),
    "blocks": (Sequence[str], "Names of the blocks."),
    "preprocess": (Preprocess, "What the run does to an image."),
    "preprocess.inside": (bool, "Whether the model normalises: always true."),
    "preprocess.resizes": (bool, "Whether the model resizes."),
    "inputs[].name": (str, "Name of the input or output; the same for ``outputs[]``."),
    "inputs[].type": (str, "``uint8``, ``float32`` or ``int64``."),
    "inputs[].shape": (Sequence[Any], "Lengths of its axes; ``batch`` is any number."),
    "inputs[].meaning": (str, "What it holds."),
    "outputs": (Sequence[Mapping[str, Any]], "``logits``, ``class``, ``probability``, ``score`` "
        "and ``verdict``, with the fields of ``inputs[]``."),
    "verification": (Verification, "The comparison with ood's own results in ONNX Runtime."),
    "file": (Mapping[str, Any], "``name``, ``bytes`` and ``digest`` of the model."),
}  # fmt: skip
_AND_REPORT = "All fields of `ood report --format json`, and:"
OBJECTS = (
    Object("ood report --format json", Report, also=_OF_REPORT),
    Object("ood score --format json", ScoreResult, without=("report", "seconds", "normratio"),
           about=_AND_REPORT),
    Object("ood score --dry-run --format json", Plan),
    Object("ood normratio --format json", NormRatioResult, schema=None),
    Object("ood run --format json", RunResult, without=("run", "report"), about=_AND_REPORT),
    Object("ood tuning --format json", None, also={
        "run": (str, "Name of the run."),
        "searches": (Sequence[Search], "One for every tuned method."),
    }),
    Object("ood recommend --format json", Recommendation, kind="ood-recommendation"),
    Object("ood predict --format jsonl", Verdict),
    Object("ood predict --summary FILE.json", PredictResult, kind="ood-screening", also=_SCREENED),
    Object("ood explain --format json", ExplainResult, kind="ood-explanations", also=_SCREENED),
    Object("ood cluster --format json", ClusterResult, kind="ood-clusters"),
    Object("FILE.ood.json", None, kind="ood-verdicts", also={
        "format": (str, "``csv``, ``jsonl`` or, of a merged file, ``parquet``."),
        **_SCREENED,
        "threshold": (float | None, "The score from which on an image counts as in-distribution; "
                      "None with ``fdr``."),
        "tpr": (float | None, "Share of ID images to accept; None if the threshold was given, or "
                "another rate."),
        "false_alarms": (float | None, "The promised rate of false alarms; None if not asked for."),
        "fdr": (float | None, "The promised false discovery rate; None if not asked for."),
        "p_cutoff": (float | None, "Largest p-value of an OOD image; only in a merged file, with "
                     "``fdr``."),
        "by_class": (Sequence[ClassThreshold] | None, "Thresholds of the predicted classes; None "
                     "without ``--per-class``."),
        "threshold_stderr": (float | None, "Standard error of the threshold."),
        "id_below": (int, "Number of ID images below the threshold."),
        "features": (str, "``stored`` if ``FILE.features.npy`` has the features of the images, "
                     "else ``not stored``."),
        "group_by": (str | None, "What gives the group of an image; None without ``--group-by``."),
        "csv_safe": (bool, "Whether text was written with ``--csv-safe``."),
        "copy_ood": (str | None, "Folder that gets copies of the OOD images."),
        "command": (str | None, "The command that resumes the file."),
        "window": (str, "Which values of medical images are black and white; absent without a "
                   "window."),
        "columns": (dict[str, str], "Columns (`path=NAME,…`) by the path of the table that they "
                    "were named of; absent without any"),
        "jpeg_draft": (bool, "Present and true if the run decodes JPEG files at a reduced size."),
        "shard": (int, "Number of the shard, from 1; only in a file of ``--shard``."),
        "shards": (int, "Number of shards; only in a file of ``--shard``."),
        "finished": (bool, "Whether all images of the command have their rows."),
        "merged": (int, "Number of files that it was merged from; only in a merged file."),
    }),
    Object("ood verdicts summary --format json", None, kind="ood-screening",
           about="All fields of `ood predict --summary FILE.json`, and:", also={
        "files": (Sequence[str], "The files whose rows are summarised."),
        "rows": (Sequence[Verdict], "All rows if they are few, else those with the lowest scores "
                 "and the first errors."),
    }),
    Object("ood detector show --format json", PackedSummary, kind="ood-packed-detector",
           about="Also of `ood detector pack --format json`."),
    Object("ood drift --format json", DriftResult, kind="ood-drift", also=_SCREENED),
    Object("ood export --format json", None, kind="ood-export", also={
        **_MODEL, "folder": (str, "Where the files are; not in ``model.json``."),
    }),
    Object("ood methods list --format json", MethodList),
    Object("ood methods show --format json", MethodPage),
    Object("ood methods check --format json", MethodTrial, also={
        "sound": (bool, "Whether the method keeps every promise."),
    }),
    Object("ood recipes list --format json", None, also={
        "recipes": (Sequence[Recipe], "The recipes."),
    }),
    Object("ood recipes show --format json", None, also={"recipe": (Recipe, "The recipe.")}),
    Object("ood datasets list --format json", Listing),
    Object("ood datasets verify --format json", DatasetVerification),
    Object("ood runs list --format json", RunList),
    Object("ood runs show", Run, kind="ood-run", also=_SHOWN_RUN),
    Object(
        "runs/NAME/ensemble.json", Ensemble, kind="ood-ensemble",
        about="An ensemble of runs; `ood runs show` prints it as it prints a run.",
    ),
    Object("runs/NAME/scores/KEY/scoring.json", Scoring, schema=2),
    Object("ood doctor --format json", Diagnosis),
)  # fmt: skip


@dataclass(frozen=True)
class _Walk:
    """A walk through the records of an object.

    Parameters
    ----------
    title
        Title of the object.
    seen
        Records whose fields are not repeated, and the titles of the objects that have them.
    once
        Whether those met on the way are not repeated either.
    """

    title: str
    seen: dict[type, str]
    once: bool

    def fields(self, record: type, prefix: str, without: tuple[str, ...] = ()) -> Iterator[Field]:
        """Return the fields of a record, and what stands among them."""
        meanings = parameter_texts(sections(docstring(record)).get("Parameters", ""))
        hints = get_type_hints(record)
        skipped = (*without, *_UNWRITTEN.get(record, ()))
        for each in fields(record):
            if each.name not in skipped:
                name = _RENAMED.get((record, each.name), each.name)
                if (record, each.name) in _FLAT:
                    yield from self.fields(hints[each.name], prefix)
                    continue
                yield from self.field(prefix + name, hints[each.name], meanings[each.name])
        for name in _DERIVED.get(record, ()):
            derived = getattr(record, name)
            hint = get_type_hints(derived.fget)["return"]
            text = docstring(derived).partition("\n\n")[0]
            yield from self.field(prefix + name, hint, text)
        for name, (hint, text) in _INSIDE.get(record, {}).items():
            yield from self.field(prefix + name, hint, text)

    def field(self, path: str, hint: object, meaning: str) -> Iterator[Field]:
        """Return a field, and those inside it."""
        words, inner, suffix = _typed(hint)
        meaning = _in_json(meaning)
        elsewhere = None if inner is None else self.seen.get(inner)
        if elsewhere is not None:
            meaning += f"; fields as in `{elsewhere}`"
        yield Field(path, words, meaning)
        if inner is not None and elsewhere is None:
            if self.once:
                self.seen[inner] = self.title
            yield from self.fields(inner, f"{path}{suffix}.")


def _in_json(text: str) -> str:
    """Return a text of a docstring as the page has it."""
    plain = text.replace("``", "`").replace("\n", " ").removesuffix(".")
    return re.sub(r"\bNone\b", "null", plain)


def _typed(hint: Any) -> tuple[str, type | None, str]:  # noqa: ANN401 - a type
    """Return a type in words, the record inside it, and what the path to that record has more."""
    origin, inside = get_origin(hint), get_args(hint)
    if origin in (Union, types.UnionType):
        found = [_typed(each) for each in inside]
        words = " or ".join(dict.fromkeys(each[0] for each in found))
        return next(
            ((words, *each[1:]) for each in found if each[1] is not None), (words, None, "")
        )
    if origin is Literal:
        return "string", None, ""
    if origin in (dict, collections.abc.Mapping):
        value, record, suffix = _typed(inside[1])
        return ("object" if record else f"object of {value}"), record, f".<name>{suffix}"
    if origin in (tuple, list, collections.abc.Sequence):
        value, record, suffix = _typed(inside[0])
        return f"list of {value}", record, f"[]{suffix}"
    if isinstance(hint, type) and is_dataclass(hint):
        return "object", hint, ""
    return _WORDS.get(hint, "any"), None, ""


_WORDS = {str: "string", Path: "string", int: "integer", float: "number", bool: "boolean",
          type(None): "null"}  # fmt: skip


def table(heads: Iterable[str], rows: Iterable[Iterable[str]]) -> str:
    """Return a table in Markdown."""
    heads = list(heads)
    lines = [heads, ["---"] * len(heads), *rows]
    return "\n".join(
        "| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |" for line in lines
    )


def contract() -> str:
    """Return a heading and a table for every object; a record has its fields where it is first."""
    seen: dict[type, str] = {}
    texts = []
    for each in OBJECTS:
        found = list(each.fields(seen))
        rows = []
        # Fields that one text describes share a row.
        for (_, kind, meaning), group in groupby(found, _shared):
            first, *others = [f.path for f in group]
            names = [f"`{first}`", *(f"`{path.rpartition('.')[2]}`" for path in others)]
            rows.append((", ".join(names), kind.replace(" of any", ""), meaning))
        head = f"### `{each.title}`\n\n" + (f"{each.about}\n\n" if each.about else "")
        texts.append(head + table(("field", "type", "meaning"), rows))
    return "\n\n".join(texts)


def _shared(field: Field) -> tuple[str, str, str]:
    return field.path.rpartition(".")[0], field.type, field.meaning
