"""What tables of images have in common: which column is which, and how rows become parts."""

import importlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from oodcli.data.formats.labels import NO_LABEL, LabelReader, Labels
from oodcli.data.formats.shards import PART_NAMES, Shards, part_of
from oodcli.data.reader import Columns
from oodcli.errors import InvalidInputError

IMAGE_COLUMNS = ("image", "images", "img", "jpg", "jpeg", "png", "webp", "bytes", "data")
LABEL_COLUMNS = ("label", "class", "target", "labels")
SPLIT_COLUMN = "split"

_MAX_PARTS = 64

Kind = Literal["struct", "bytes", "path", "text", "integer", "other"]


@dataclass(frozen=True)
class Features:
    """What Hugging Face's ``datasets`` writes of columns beside their types.

    Parameters
    ----------
    images
        Columns of images.
    classes
        Names of the classes of every column of class labels.
    """

    images: tuple[str, ...] = ()
    classes: Mapping[str, tuple[str, ...]] = field(default_factory=dict)

    @classmethod
    def of(cls, features: object) -> "Features":
        """Read the JSON object ``features``; whatever is not understood is left out."""
        images, classes = [], {}
        for name, column in features.items() if isinstance(features, dict) else ():
            kind = column.get("_type") if isinstance(column, dict) else None
            if kind == "Image":
                images.append(str(name))
            names = column.get("names") if kind == "ClassLabel" else None
            if isinstance(names, list) and all(isinstance(each, str) for each in names):
                classes[str(name)] = tuple(names)
        return cls(tuple(images), classes)

    @classmethod
    def in_schema(cls, metadata: Mapping[bytes, bytes] | None) -> "Features":
        """Read the metadata of an Arrow schema."""
        try:
            content = json.loads((metadata or {})[b"huggingface"])
            return cls.of(content["info"]["features"])
        except (KeyError, TypeError, ValueError, RecursionError):
            return cls()


@dataclass(frozen=True)
class Picked:
    """Which column of a table is which.

    Parameters
    ----------
    image
        The images.
    kind
        ``struct`` of bytes and path, or ``bytes``.
    label, split
        The labels and the names of parts, where there are any.
    class_names
        Names of the classes, where the table has them.
    """

    image: str
    kind: Kind
    label: str | None = None
    split: str | None = None
    class_names: tuple[str, ...] | None = None

    @property
    def beside_images(self) -> tuple[str, ...]:
        """Columns of labels and of parts, as far as there are any."""
        return tuple(name for name in (self.label, self.split) if name is not None)


def pick_columns(
    kinds: Mapping[str, Kind],
    features: Features,
    chosen: Columns,
    where: str,
    *,
    labelled: bool,
) -> Picked:
    """Return which column is which.

    Parameters
    ----------
    kinds
        Kind of every column, in order.
    features
        What is written of them.
    chosen
        What the user chose.
    where
        How to call the table in an error.
    labelled
        Whether labels are wanted.

    Raises
    ------
    InvalidInputError
        If a column that is named does not exist or is of another kind, there are several, or none.
    """
    for name in (chosen.path, chosen.label, chosen.split):
        if name is not None and name not in kinds:
            raise InvalidInputError(f"{where} has no column {name!r}; it has {_listed(kinds)}")
    images = {name: kind for name, kind in kinds.items() if kind in ("struct", "bytes")}
    image = chosen.path or _one(
        images, [n for n in features.images if n in images], IMAGE_COLUMNS, where, "path"
    )
    if image is None:
        raise InvalidInputError(
            f"{where} has no column of image files (bytes, or a struct of bytes and path); it has "
            f"{_listed(kinds)}"
        )
    if image not in images:
        raise InvalidInputError(
            f"{where}: column {image!r} does not hold image files (bytes, or a struct of bytes and "
            "path)"
        )
    labels = {name: kind for name, kind in kinds.items() if kind in ("integer", "text")}
    label = chosen.label
    if label is None and labelled:
        classes = [name for name in features.classes if name in labels]
        label = _one(labels, classes, LABEL_COLUMNS, where, "label", any_one=False)
    if label is not None and label not in labels:
        raise InvalidInputError(
            f"{where}: column {label!r} holds no label per image, number or text"
        )
    split = chosen.split or (SPLIT_COLUMN if kinds.get(SPLIT_COLUMN) == "text" else None)
    if split is not None and kinds[split] != "text":
        raise InvalidInputError(f"{where}: column {split!r} holds no texts such as train and test")
    names = features.classes.get(label) if label is not None else None
    return Picked(image, kinds[image], label, split, names)


def _one(
    kinds: Mapping[str, Kind],
    written: Sequence[str],
    usual: Sequence[str],
    where: str,
    role: str,
    *,
    any_one: bool = True,
) -> str | None:
    """Return the column of a role: the one that is written of, else by its name, else the only."""
    if len(written) == 1:
        return written[0]
    by_name = [name for name in usual if name in kinds and (not written or name in written)]
    candidates = by_name[:1] or list(written) or (list(kinds) if any_one else [])
    if len(candidates) > 1:
        what = "image" if role == "path" else role
        raise InvalidInputError(
            f"{where} has {len(candidates)} columns that could be the {what}: "
            f"{_listed(candidates)}; choose one: --columns {role}={candidates[0]}"
        )
    return candidates[0] if candidates else None


def _listed(names: Sequence[str] | Mapping[str, Any]) -> str:
    some = [repr(name) for name in list(names)[:20]]
    return ", ".join(some) + (", …" if len(names) > 20 else "") if some else "no columns"


def arrow_package(module: str = "pyarrow") -> Any:  # noqa: ANN401 - a package that need not be there
    """Import pyarrow, or a module of it.

    Raises
    ------
    InvalidInputError
        If it is not installed.
    """
    try:
        package = importlib.import_module("pyarrow")
        if package.default_memory_pool().backend_name != "system":
            # Pools of its own hold what was read for a while, a tenth of the memory of a command.
            package.set_memory_pool(package.system_memory_pool())
        return importlib.import_module(module)
    except ImportError:
        raise InvalidInputError(
            "Parquet and Arrow files need the package pyarrow; install it: "
            'pip install "oodcli[parquet]"'
        ) from None


def kinds_of(schema: Any) -> dict[str, Kind]:  # noqa: ANN401 - pyarrow has no types
    """Return the kind of every column of an Arrow schema."""
    return {column.name: _kind(column.type) for column in schema}


def _kind(type_: Any) -> Kind:  # noqa: ANN401 - pyarrow has no types
    types = arrow_package("pyarrow.types")
    if types.is_struct(type_):
        children = {type_.field(at).name: type_.field(at).type for at in range(type_.num_fields)}
        is_image = "bytes" in children and _kind(children["bytes"]) == "bytes"
        return "struct" if is_image else "other"
    if types.is_binary(type_) or types.is_large_binary(type_):
        return "bytes"
    if types.is_dictionary(type_):
        return "text" if _kind(type_.value_type) == "text" else "other"
    if types.is_string(type_) or types.is_large_string(type_):
        return "text"
    return "integer" if types.is_integer(type_) or types.is_boolean(type_) else "other"


def add_labels(reader: LabelReader, column: Any) -> None:  # noqa: ANN401
    """Take a column of labels in.

    Parameters
    ----------
    reader
        Takes them in.
    column
        An Arrow array of whole numbers or of texts; what is null has no label.

    Raises
    ------
    InvalidInputError
        If there are too many different ones.
    """
    arrow, compute = arrow_package(), arrow_package("pyarrow.compute")
    if _kind(column.type) == "text":
        texts, rows = texts_of(column)
        reader.add_texts(texts, rows)
        return
    numbers = compute.fill_null(compute.cast(column, arrow.int64(), safe=True), NO_LABEL)
    reader.add_numbers(numbers.to_numpy(zero_copy_only=False).astype(np.int64))


def texts_of(column: Any) -> tuple[list[str | None], NDArray[np.int64]]:  # noqa: ANN401
    """Return the distinct texts of an Arrow array, and the place of each row's, -1 for none.

    Raises
    ------
    UnicodeDecodeError
        If a text is not UTF-8.
    """
    types = arrow_package("pyarrow.types")
    coded = column if types.is_dictionary(column.type) else column.dictionary_encode()
    rows = coded.indices.fill_null(NO_LABEL).to_numpy(zero_copy_only=False).astype(np.int64)
    return coded.dictionary.to_pylist(), rows


def check_same(
    found: Mapping[str, Kind], first: Mapping[str, Kind], columns: Picked, path: Path, other: Path
) -> None:
    """Refuse a file whose columns are not those of the first file.

    Parameters
    ----------
    found, first
        Kinds of the columns of both.
    columns
        Those that matter.
    path, other
        Both files.

    Raises
    ------
    InvalidInputError
        If one that matters is missing or of another kind.
    """
    for name in (columns.image, *columns.beside_images):
        if found.get(name) != first[name]:
            raise InvalidInputError(
                f"{path} has no column {name!r} such as that of {other}; name files that "
                "belong together"
            )


class TableContent:
    """Labels and parts of the rows of several files, as they are read.

    Parameters
    ----------
    shards
        The files.
    columns
        Which column is which.
    """

    def __init__(self, shards: Shards, columns: Picked) -> None:
        self._shards = shards
        self._columns = columns
        self._labels = LabelReader(str(shards.location), columns.class_names)
        self._rows: list[int] = []
        self._seen = 0
        self._splits: list[NDArray[np.int64]] = []

    def add(self, path: Path, batch: Any) -> None:  # noqa: ANN401 - pyarrow has no types
        """Take in some rows of a file.

        Parameters
        ----------
        path
            The file.
        batch
            An Arrow batch that has its columns of labels and of parts, as far as there are any.

        Raises
        ------
        InvalidInputError
            If labels or names of parts do not fit.
        """
        label, split = self._columns.label, self._columns.split
        if label is not None:
            add_labels(self._labels, batch.column(label))
        if split is not None:
            self._splits.append(self._parts_of(path, batch.column(split)))
        self._seen += batch.num_rows

    def ends(self, rows: int) -> None:
        """Take in the end of a file.

        Parameters
        ----------
        rows
            How many rows it has, as it says.

        Raises
        ------
        ValueError
            If other rows than these were taken in.
        """
        if self._columns.beside_images and self._seen != rows:
            raise ValueError(f"it has {self._seen:,} rows, not {rows:,}")
        self._rows.append(rows)
        self._seen = 0

    def _parts_of(self, path: Path, column: Any) -> NDArray[np.int64]:  # noqa: ANN401
        texts, rows = texts_of(column)
        if len(texts) > _MAX_PARTS:
            raise InvalidInputError(
                f"{path}: column {self._columns.split!r} has {len(texts)} different texts, so it "
                "does not name parts; name another column: --columns split=COLUMN"
            )
        parts = [part_of(text or "") for text in texts]
        for text, part in zip(texts, parts, strict=True):
            if not part:
                raise InvalidInputError(
                    f"{path}: column {self._columns.split!r} names a part {text!r}; "
                    "train, val and test are possible"
                )
        if len(rows) and rows.min() < 0:
            raise InvalidInputError(
                f"{path}: column {self._columns.split!r} is empty in a row; name a part in each"
            )
        return np.array([PART_NAMES.index(part) for part in parts], dtype=np.int64)[rows]

    @property
    def labels(self) -> Labels | None:
        """Labels of all rows; None where there is no such column."""
        return None if self._columns.label is None else self._labels.labels()

    def parts(self) -> dict[str, NDArray[np.int64]]:
        """Return the ascending rows of each part, by the column of parts, else by names of files.

        Raises
        ------
        InvalidInputError
            If some files are named after parts and others are not.
        """
        if self._columns.split is not None:
            which = np.concatenate([*self._splits, np.empty(0, np.int64)])
            rows = {part: np.flatnonzero(which == at) for at, part in enumerate(PART_NAMES)}
            return {part: each.astype(np.int64) for part, each in rows.items() if len(each)}
        return self._shards.rows_by_part(self._rows)
