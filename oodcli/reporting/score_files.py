"""Score files of other programs, and those that ``ood score --export`` writes.

For every layout, the result is one :class:`ForeignRun` per network: scores by method and data set,
larger = more in-distribution (ID).
"""

import csv
import io
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from oodcli.errors import CorruptArtifactError, InvalidInputError, MissingArtifactError
from oodcli.files import reading, regular
from oodcli.npz import read_npz
from oodcli.pickles import load_pickle
from oodcli.store.scores import LABELS, PREDICTIONS, Scores

LAYOUTS = """\
.npz  arrays called METHOD/SET, as ood score --export writes them; true and predicted classes of the
      ID images may stand under @labels/SET and @predictions/SET
.npz  arrays called id_conf, near_SET_conf and far_SET_conf, with sN_ before them for seed N
.pkl  {"id": {"test": [pred, conf, label]}, "ood": {"near": {SET: [...]}, "far": {SET: [...]}}}, as
      OpenOOD saves its scores
.csv  one row per image: dataset, then method and score, or one column of scores per method; may
      have label, prediction and group"""
"""What can be read, for messages and help."""

_ROLE = re.compile(r"(?:(?P<run>s\d+)_)?(?P<group>id|near|far|ood|csid)_(?:(?P<set>.+)_)?conf")
_GROUPS = {"near": "near", "far": "far", "ood": "ood", "csid": "shifted"}
_NOT_METHODS = ("dataset", "group", "label", "prediction", "image", "path", "index")


@dataclass(frozen=True)
class ForeignRun:
    """Scores of one network on ID test images and OOD sets.

    Parameters
    ----------
    name
        Name in a report.
    id_name
        Name of the ID test set.
    scores
        One score per image, by method and data set.
    groups
        ``near``, ``far``, ``ood`` or ``shifted``, by data set, as far as the file says.
    labels, predictions
        True and predicted class of every ID image, ``(n_id,)``; None where the file has none.
    shifted_accuracy
        Accuracy on covariate-shifted ID sets, if the file gives it.
    plain
        Whether all predictions are those of the plain classifier, not of what a method changed.
    convention
        Name of the metric convention that the layout belongs to, or None.
    """

    name: str
    id_name: str
    scores: Mapping[str, Mapping[str, Scores]]
    groups: Mapping[str, str] = field(default_factory=dict)
    labels: NDArray[np.int64] | None = None
    predictions: NDArray[np.int64] | None = None
    shifted_accuracy: Mapping[str, float] = field(default_factory=dict)
    plain: bool = False
    convention: str | None = None

    @property
    def sizes(self) -> dict[str, int]:
        """Number of images of every data set, the ID set first."""
        found = {self.id_name: len(next(iter(self.scores.values()))[self.id_name])}
        for sets in self.scores.values():
            found |= {name: len(values) for name, values in sets.items()}
        return found

    @property
    def id_accuracy(self) -> float | None:
        """Accuracy on the ID images, where both classes are known."""
        if self.labels is None or self.predictions is None:
            return None
        return float(np.mean(self.labels == self.predictions))

    def negated(self) -> "ForeignRun":
        """Return the same scores with the opposite sign, for files in which larger means OOD."""
        scores = {
            method: {name: -values.astype(np.float64) for name, values in sets.items()}
            for method, sets in self.scores.items()
        }
        return replace(self, scores=scores)


def read_score_file(
    path: Path, *, id_name: str | None = None, method: str | None = None
) -> list[ForeignRun]:
    """Read a file of scores, see :data:`LAYOUTS`.

    Parameters
    ----------
    path
        A ``.npz``, ``.pkl`` or ``.csv`` file.
    id_name
        Name of the ID test set; by default the one that the file has labels of, or ``id`` where the
        layout has a place for it.
    method
        Name of the method, for layouts without it; by default the name of the file.

    Returns
    -------
    list
        One record for each network; several only from a file of several seeds.

    Raises
    ------
    MissingArtifactError
        If there is no such file.
    CorruptArtifactError
        If it is damaged, or is a pickle of anything but arrays and plain values.
    InvalidInputError
        If it has none of the layouts, no ID scores, or sizes that do not fit together.
    """
    readers = {".npz": _read_npz, ".pkl": _read_pickle, ".pickle": _read_pickle, ".csv": _read_csv}
    reader = readers.get(path.suffix.lower())
    if reader is None:
        where = path.name or path
        raise InvalidInputError(f"scores are not read from {where}; give {_one_of(readers)}")
    try:
        runs = reader(regular(path), id_name, method or path.stem)
    except FileNotFoundError:
        raise MissingArtifactError(f"there is no file {path}; name one with scores") from None
    except OSError as error:
        raise InvalidInputError(f"cannot read {path}: {error.strerror}; name a file") from None
    return [_checked(run, path) for run in runs]


def joined(runs: Sequence[ForeignRun]) -> list[ForeignRun]:
    """Combine records of the same network; a repeated method belongs to another network.

    Parameters
    ----------
    runs
        Records in the order in which they were given: the first that lacks the methods of a record
        and has its ID images takes it in.
    """
    networks: list[ForeignRun] = []
    for run in runs:
        for at, known in enumerate(networks):
            if _may_join(known, run):
                networks[at] = replace(
                    known,
                    scores={**known.scores, **run.scores},
                    groups={**known.groups, **run.groups},
                )
                break
        else:
            networks.append(run)
    return _named_apart(networks)


def _may_join(known: ForeignRun, run: ForeignRun) -> bool:
    if set(known.scores) & set(run.scores) or known.id_name != run.id_name:
        return False
    sizes, others = known.sizes, run.sizes
    pairs = ((known.labels, run.labels), (known.predictions, run.predictions))
    return all(sizes[name] == n for name, n in others.items() if name in sizes) and all(
        a is None or b is None or np.array_equal(a, b) for a, b in pairs
    )


def _named_apart(runs: Sequence[ForeignRun]) -> list[ForeignRun]:
    """Add numbers to the names of records that have the same name."""
    seen: dict[str, int] = {}
    named = []
    for run in runs:
        seen[run.name] = number = seen.get(run.name, 0) + 1
        named.append(run if number == 1 else replace(run, name=f"{run.name} ({number})"))
    return named


def _checked(run: ForeignRun, path: Path) -> ForeignRun:
    """Check that scores can be combined in one table."""
    if not run.scores:
        raise InvalidInputError(f"{path} has no scores; see: ood report --help")
    sizes = {run.id_name: -1}
    for method, sets in run.scores.items():
        if run.id_name not in sets:
            raise InvalidInputError(
                f"{path} has no scores of {method} on {run.id_name}, but on {', '.join(sets)}; "
                "name the ID set: --id NAME"
            )
        if len(sets) == 1:
            raise InvalidInputError(f"{path} has scores of {method} on {run.id_name} alone")
        for name, values in sets.items():
            if values.ndim != 1 or values.dtype.kind not in "biuf":
                raise InvalidInputError(
                    f"{path}: the scores of {method} on {name} are {values.dtype} of shape "
                    f"{values.shape}; give one real number for each image"
                )
            if sizes.setdefault(name, len(values)) not in (-1, len(values)):
                raise InvalidInputError(
                    f"{path} has {len(values)} scores of {method} on {name}, and {sizes[name]} of "
                    "another method; give one score for each image"
                )
            sizes[name] = len(values)
    for what, classes in (("labels", run.labels), ("predictions", run.predictions)):
        if classes is not None and classes.shape != (sizes[run.id_name],):
            raise InvalidInputError(
                f"{path} has {what} of shape {classes.shape} for {sizes[run.id_name]} images of "
                f"{run.id_name}; give one class for each"
            )
    return run


def _read_npz(path: Path, id_name: str | None, method: str) -> list[ForeignRun]:
    arrays = read_npz(path, cure="write it with numpy.savez", error=CorruptArtifactError)
    if any(_ROLE.fullmatch(name) for name in arrays):
        return _by_role(arrays, path, id_name, method)
    return [_by_method(arrays, path, id_name)]


def _by_method(arrays: Mapping[str, NDArray[Any]], path: Path, id_name: str | None) -> ForeignRun:
    """Read arrays called ``method/dataset``."""
    labelled = [name.removeprefix(f"{LABELS}/") for name in arrays if name.startswith(f"{LABELS}/")]
    chosen = id_name or (labelled[0] if len(labelled) == 1 else None)
    if not any("/" in name for name in arrays):
        raise InvalidInputError(
            f"{path} has arrays {_some(arrays)}, which is not a known layout; see: ood report "
            "--help"
        )
    if chosen is None:
        sets = dict.fromkeys(name.rpartition("/")[2] for name in arrays)
        raise InvalidInputError(
            f"{path} does not say which of {_some(sets)} is in distribution; name it: --id NAME"
        )
    scores: dict[str, dict[str, Scores]] = {}
    for name, values in arrays.items():
        made_by, _, dataset = name.rpartition("/")
        if made_by and made_by not in (LABELS, PREDICTIONS):
            scores.setdefault(made_by, {})[dataset] = values
    return ForeignRun(
        name=path.stem,
        id_name=chosen,
        scores=scores,
        labels=_classes(arrays.get(f"{LABELS}/{chosen}"), f"{path}: {LABELS}/{chosen}"),
        predictions=_classes(
            arrays.get(f"{PREDICTIONS}/{chosen}"), f"{path}: {PREDICTIONS}/{chosen}"
        ),
    )


def _by_role(
    arrays: Mapping[str, NDArray[Any]], path: Path, id_name: str | None, method: str
) -> list[ForeignRun]:
    """Read arrays called ``id_conf``, ``near_SET_conf`` and so on, of one or several seeds."""
    chosen = id_name or "id"
    found = {name: role for name in arrays if (role := _ROLE.fullmatch(name))}
    runs = []
    for seed in dict.fromkeys(role["run"] for role in found.values()):
        scores: dict[str, Scores] = {}
        groups: dict[str, str] = {}
        for name, role in found.items():
            if role["run"] != seed:
                continue
            if role["group"] == "id" and role["set"] in (None, "test"):
                scores[chosen] = arrays[name]
            elif role["group"] != "id" and role["set"]:
                scores[role["set"]] = arrays[name]
                groups[role["set"]] = _GROUPS[role["group"]]
        before = "" if seed is None else f"{seed}_"
        runs.append(
            ForeignRun(
                name=path.stem if seed is None else f"{path.stem}:{seed}",
                id_name=chosen,
                scores={method: scores},
                groups=groups,
                labels=_classes(arrays.get(f"{before}id_label"), f"{path}: {before}id_label"),
                predictions=_classes(arrays.get(f"{before}id_pred"), f"{path}: {before}id_pred"),
                convention="openood",
            )
        )
    return runs


def _read_pickle(path: Path, id_name: str | None, method: str) -> list[ForeignRun]:
    loaded = load_pickle(path.read_bytes(), where=str(path), tensors=True)
    chosen = id_name or "id"
    try:
        tested = loaded["id"]["test"]
        parts = {chosen: tested} if tested is not None else {}
        groups: dict[str, str] = {}
        places = [(key, loaded["ood"].get(key) or {}) for key in ("near", "far")]
        for key, sets in (*places, ("csid", loaded.get("csid") or {})):
            for name, part in sets.items():
                if part is not None:
                    parts[name], groups[name] = part, _GROUPS[key]
        scores = {name: np.asarray(part[1]) for name, part in parts.items()}
        predictions, labels = _plain_classes(
            loaded.get("id_preds"), loaded.get("id_labels"), tested
        )
        accuracy: dict[str, float] = {}
        plain = _has_plain(loaded.get("id_preds"), loaded.get("id_labels"))
        for name in (name for name, group in groups.items() if group == "shifted"):
            predicted = (loaded.get("csid_preds") or {}).get(name)
            classes = (loaded.get("csid_labels") or {}).get(name)
            ours, true = _plain_classes(predicted, classes, parts[name])
            plain = plain and _has_plain(predicted, classes)
            if len(ours) != len(parts[name][1]) or len(true) != len(ours):
                raise InvalidInputError(
                    f"{path}: {name} has {len(ours)} predictions and {len(true)} labels for "
                    f"{len(parts[name][1])} scores; get it again"
                )
            accuracy[name] = float(np.mean(np.asarray(ours) == np.asarray(true)))
    except (KeyError, TypeError, AttributeError, IndexError, ValueError):
        raise InvalidInputError(
            f"{path} is a pickle of another layout; see: ood report --help"
        ) from None
    return [
        ForeignRun(
            name=path.stem,
            id_name=chosen,
            scores={method: scores},
            groups=groups,
            labels=_classes(labels, f"{path}: the labels"),
            predictions=_classes(predictions, f"{path}: the predictions"),
            shifted_accuracy=accuracy,
            plain=plain,
            convention="openood",
        )
    ]


def _plain_classes(predictions: Any, labels: Any, part: Any) -> tuple[Any, Any]:  # noqa: ANN401
    """Return the plain classifier's classes where stored: shaped logits may predict others.

    Parameters
    ----------
    predictions, labels
        Those of the plain classifier, or None.
    part
        Predictions, scores and labels as the method has them, or None.
    """
    if part is not None and not _has_plain(predictions, labels):
        return part[0], part[2]
    return predictions, labels


def _has_plain(predictions: Any, labels: Any) -> bool:  # noqa: ANN401
    return predictions is not None and labels is not None


def _read_csv(path: Path, id_name: str | None, method: str) -> list[ForeignRun]:
    with reading(path, wrong="is not a CSV file", cure="get it again", disk=True):
        lines = csv.reader(io.StringIO(path.read_bytes().decode("utf-8-sig")), strict=True)
        header = [name.strip() for name in next(lines, ())]
        if not header:
            raise ValueError("it is empty")
        table = [line for line in lines if line]
    if "dataset" not in header:
        raise InvalidInputError(
            f"{path} has columns {_some(header)} and none called dataset; see: ood report --help"
        )
    ragged = next((n for n, line in enumerate(table, 2) if len(line) != len(header)), None)
    if ragged is not None:
        raise InvalidInputError(
            f"{path}: row {ragged} has {len(table[ragged - 2])} values, not {len(header)}"
        )
    columns = dict(zip(header, zip(*table, strict=True), strict=True)) if table else {}
    rows = _Rows.of(columns, path, method)
    chosen = id_name or rows.id_name()
    if chosen is None:
        raise InvalidInputError(
            f"{path} does not say which of {_some(rows.groups)} is in distribution; "
            "name it: --id NAME, or write id into a column group"
        )
    return [
        ForeignRun(
            name=path.stem,
            id_name=chosen,
            scores=rows.scores,
            groups={n: g for n, g in rows.groups.items() if g in _GROUPS.values()},
            labels=rows.classes("label", chosen),
            predictions=rows.classes("prediction", chosen),
        )
    ]


@dataclass(frozen=True)
class _Rows:
    """Columns of a CSV file, cut by method and data set."""

    path: Path
    columns: Mapping[str, Sequence[str]]
    rows: Mapping[tuple[str, str], NDArray[np.int64]]
    scores: Mapping[str, Mapping[str, Scores]]
    groups: Mapping[str, str]

    @classmethod
    def of(cls, columns: Mapping[str, Sequence[str]], path: Path, method: str) -> "_Rows":
        datasets = columns.get("dataset", ())
        n = len(datasets)
        is_long = "score" in columns
        methods = columns.get("method", (method,) * n) if is_long else ("",) * n
        places: dict[tuple[str, str], list[int]] = {}
        for row, key in enumerate(zip(methods, datasets, strict=True)):
            places.setdefault(key, []).append(row)
        rows = {key: np.array(found, dtype=np.int64) for key, found in places.items()}
        scores: dict[str, dict[str, Scores]] = {}
        for name in ("score",) if is_long else [c for c in columns if c not in _NOT_METHODS]:
            values = _numbers(columns[name], name, path)
            for (made_by, dataset), at in rows.items():
                scores.setdefault(made_by if is_long else name, {})[dataset] = values[at]
        groups = dict(zip(datasets, columns.get("group", ("",) * n), strict=True))
        return cls(path, columns, rows, scores, groups)

    def id_name(self) -> str | None:
        named = [dataset for dataset, group in self.groups.items() if group == "id"]
        return named[0] if len(named) == 1 else None

    def classes(self, column: str, dataset: str) -> NDArray[np.int64] | None:
        at = next((found for (_, name), found in self.rows.items() if name == dataset), None)
        if at is None or column not in self.columns:
            return None
        written = [self.columns[column][row] for row in at]
        if "" in written:
            return None
        where = f"{self.path}: column {column}"
        return _classes(_numbers(written, column, self.path), where)


def _numbers(texts: Sequence[str], column: str, path: Path) -> NDArray[np.float64]:
    try:
        return np.array(texts, dtype=np.float64)
    except ValueError as error:
        raise InvalidInputError(f"{path}: column {column} is not all numbers: {error}") from None


def _classes(values: object, where: str) -> NDArray[np.int64] | None:
    """Return classes as whole numbers; None where there are none."""
    if values is None:
        return None
    with reading(where, cure="give a number for each class, from 0", error=InvalidInputError):
        given = np.asarray(values)
        if given.dtype.kind not in "biuf":
            raise ValueError(f"{_shown(given)} is not a number")
        with np.errstate(invalid="ignore"):  # what is not a number is found below
            whole = given.astype(np.int64)
        if not np.array_equal(whole, given):
            raise ValueError(f"{_shown(given[whole != given])} is not a whole number")
    return whole


def _shown(values: NDArray[Any]) -> str:
    """Show the first of some values, in a few characters."""
    first = next(iter(values.flat), None)
    return repr(first.item() if isinstance(first, np.generic) else first)[:40]


def _some(names: Iterable[str]) -> str:
    listed = list(names)
    return ", ".join(listed[:8]) + (" and others" if len(listed) > 8 else "")


def _one_of(names: Iterable[str]) -> str:
    return ", ".join(names)
