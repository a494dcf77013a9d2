"""Folders that ``save_to_disk`` of Hugging Face's ``datasets`` writes.

::

    FOLDER/
      dataset_dict.json            {"splits": ["train", "test"]}; none where there is one part only
      train/
        state.json                 names of the Arrow files, in order
        dataset_info.json          types of the columns, and names of the classes
        data-00000-of-00001.arrow  a stream of record batches, not compressed

The bytes of an image lie in one piece in such a file, so that each is read by its place.
"""

import contextlib
import json
import mmap
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from oodcli.data.dataset import Dataset
from oodcli.data.decoding.extents import Extents, Numbers
from oodcli.data.formats.arrow_stream import schema_and_batches
from oodcli.data.formats.arrow_tables import (
    Features,
    Picked,
    TableContent,
    arrow_package,
    check_same,
    kinds_of,
    pick_columns,
)
from oodcli.data.formats.labels import assembled
from oodcli.data.formats.shards import Shards
from oodcli.data.reader import Columns, Role
from oodcli.errors import InvalidInputError
from oodcli.files import reading, regular
from oodcli.remote.files import RemotePath

SPLITS, STATE, INFO = "dataset_dict.json", "state.json", "dataset_info.json"
_MAX_JSON_BYTES = 1 << 28
_CURE = "write it again: dataset.save_to_disk(FOLDER)"


def is_saved(folder: Path) -> bool:
    """Return whether a folder is one that ``save_to_disk`` wrote."""
    return (folder / SPLITS).is_file() or (folder / STATE).is_file()


def open_saved(
    path: Path,
    *,
    name: str,
    spec: str,
    role: Role,
    columns: Columns | None = None,
) -> Dataset:
    """Open a folder of ``save_to_disk`` as a data set; no image is read yet.

    Parameters
    ----------
    path
        The folder.
    name
        How to call the data set.
    spec
        What opens it again.
    role
        ``id`` wants labels; ``ood`` takes the test images alone, without labels.
    columns
        Columns that the user chose.

    Raises
    ------
    InvalidInputError
        If a file cannot be read, or does not fit.
    """
    arrow_package()
    shards = _shards(path)
    first = shards.paths()[0]
    features = Features.of(_json(first.parent / INFO).get("features"))
    with _reading(first, None) as (schema, _):
        kinds = kinds_of(schema)
    picked = pick_columns(kinds, features, columns or Columns(), str(path), labelled=role == "id")
    content = TableContent(shards, picked)
    places: list[NDArray[np.int64]] = []
    for at, file in enumerate(shards.paths()):
        with _reading(file, picked) as (schema, batches):
            check_same(kinds_of(schema), kinds, picked, file, first)
            found = [_taken(batch, picked, whole, content, file) for batch, whole in batches]
        rows = np.concatenate([*found, np.empty((0, 2), np.int64)])
        content.ends(len(rows))
        places.append(np.column_stack([np.full(len(rows), at), rows, np.arange(len(rows))]))
    which, offsets, sizes, numbers = np.concatenate(places).T.copy()
    return assembled(
        Extents(path, shards.files, which, offsets, sizes, Numbers(numbers)),
        content.labels,
        content.parts(),
        name=name,
        location=str(path),
        spec=spec,
        role=role,
        no_labels=f"{path} has no column of labels; name it: --columns label=COLUMN",
    )


@contextlib.contextmanager
def _reading(file: Path, columns: Picked | None) -> Iterator[tuple[Any, Iterator[tuple[Any, Any]]]]:
    """Open an Arrow file; yield its schema, and its record batches with where the file lies.

    What is mapped of the batches before is let go of: the system would count it as memory. Of a
    file on a server only what is needed of these columns is requested, and no image.
    """
    arrow = arrow_package()
    with (
        reading(file, cure=_CURE, error=InvalidInputError),
        regular(file).open("rb") as opened,
    ):
        if isinstance(file, RemotePath):
            yield schema_and_batches(opened, file.stat().st_size, columns)
            return
        mapped = mmap.mmap(opened.fileno(), 0, access=mmap.ACCESS_READ)
        whole = arrow.py_buffer(mapped)  # whose last slice closes the mapping
        stream = arrow.ipc.open_stream(whole)
        yield stream.schema, _letting_go(stream, whole, mapped)


def _letting_go(batches: Any, whole: Any, mapped: mmap.mmap) -> Iterator[tuple[Any, Any]]:  # noqa: ANN401
    for batch in batches:
        yield batch, whole
        if hasattr(mmap, "MADV_DONTNEED"):  # not on Windows
            mapped.madvise(mmap.MADV_DONTNEED)


def _taken(
    batch: Any,  # noqa: ANN401 - pyarrow has no types
    columns: Picked,
    whole: Any,  # noqa: ANN401
    content: TableContent,
    file: Path,
) -> NDArray[np.int64]:
    """Take labels and parts of a batch in; return where its images lie in the file, ``(m, 2)``."""
    wanted = batch.select([columns.image, *columns.beside_images])
    wanted.validate(full=True)  # no offset leads out of a buffer
    content.add(file, wanted)
    images = wanted.column(0)
    if columns.kind == "struct":
        images = arrow_package("pyarrow.compute").struct_field(images, "bytes")
    if not len(images):
        return np.empty((0, 2), np.int64)
    large = arrow_package("pyarrow.types").is_large_binary(images.type)
    _, places, data = images.buffers()
    ends = np.frombuffer(places, np.int64 if large else np.int32)
    ends = ends[images.offset : images.offset + len(images) + 1].astype(np.int64)
    empty = data is None or not data.size
    start = 0 if empty else data.address - whole.address
    if not empty and not 0 <= start <= start + data.size <= whole.size:
        raise ValueError("its images are compressed")
    sizes = np.where(images.is_valid().to_numpy(zero_copy_only=False), np.diff(ends), -1)
    return np.column_stack([start + ends[:-1], sizes])


def _shards(path: Path) -> Shards:
    """Return the Arrow files of a folder, part by part."""
    folders = [""]
    if (path / SPLITS).is_file():
        folders = [
            f"{_inside(split, path / SPLITS)}/" for split in _listed(path / SPLITS, "splits")
        ]
    files: list[str] = []
    for folder in folders:
        state = path / folder / STATE
        if _json(state).get("_indices_data_files"):
            raise InvalidInputError(
                f"{state} names rows that were chosen without being copied; write the data set "
                "again: dataset.flatten_indices().save_to_disk(FOLDER)"
            )
        for entry in _listed(state, "_data_files"):
            name = entry.get("filename") if isinstance(entry, dict) else None
            files.append(folder + _inside(name, state))
    if not files:
        raise InvalidInputError(f"{path} has no Arrow files; {_CURE}")
    return Shards(path, tuple(files))


def _inside(name: object, where: Path) -> str:
    """Return the name of a file or folder that lies in the folder of another file."""
    if not isinstance(name, str) or not name or set(name) & set("/\\\0") or name in (".", ".."):
        raise InvalidInputError(f"{where} names {name!r}, which is no file beside it; {_CURE}")
    return name


def _listed(path: Path, key: str) -> list[Any]:
    found = _json(path).get(key)
    if not isinstance(found, list):
        raise InvalidInputError(f"{path} has no list {key!r}; {_CURE}")
    return found


def _json(path: Path) -> dict[str, Any]:
    """Read a JSON object; an empty one where there is no such file."""
    if not path.exists():
        return {}
    with reading(path, cure=_CURE, error=InvalidInputError):
        if regular(path).stat().st_size > _MAX_JSON_BYTES:
            raise ValueError("it is too large")
        content = json.loads(path.read_bytes())
    if not isinstance(content, dict):
        raise InvalidInputError(f"{path} is not a JSON object; {_CURE}")
    return content
