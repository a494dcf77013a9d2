"""WebDataset: tar archives of samples, each an image and a label under one key.

::

    train-000000.tar
      n01440764_10026.jpg      the image: .jpg, .jpeg, .png, .webp, …
      n01440764_10026.cls      its label: a number or a name (.cls, .txt), or a JSON object (.json)

Where the files of a shard begin is found once, by reading its headers, and stored.
"""

import contextlib
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from oodcli.data.compact import Texts, narrow
from oodcli.data.dataset import Dataset
from oodcli.data.decoding.extents import Extents
from oodcli.data.formats.labels import LabelReader, assembled
from oodcli.data.formats.shards import find_shards, holds_shards, lists_shards
from oodcli.data.formats.tars import Entry, entries_in, entries_of
from oodcli.data.identity import identity_of
from oodcli.data.reader import Columns, Place, Role
from oodcli.errors import CorruptArtifactError
from oodcli.files import Ranges, open_ranges, reading, regular
from oodcli.pillow import EXTENSIONS
from oodcli.store.store import (
    Store,
    digest_of_json,
    read_arrays,
    read_json,
    write_arrays,
    write_json,
)

SUFFIXES = (".tar",)
_USUAL = ("jpg", "jpeg", "png", "webp")
IMAGES = (*_USUAL, *sorted({suffix[1:] for suffix in EXTENSIONS} - set(_USUAL)))
LABELS = ("cls", "txt", "json")
JSON_KEYS = ("label", "class", "target", "cls")

# Raised whenever an index of the same shard would differ.
_SCHEMA = 1
_MAX_LABEL_BYTES = 1 << 20
_MAX_LABEL_LENGTH = 1000
_FIRST_FILES = 16
_CURE = "get the shard again"


@dataclass(frozen=True)
class ShardIndex:
    """Where the images of a shard lie, and their labels.

    Parameters
    ----------
    keys
        ``/KEY`` of every sample that has an image, in order.
    offsets, sizes
        Where its image begins, and how many bytes it has, ``(n,)``.
    labels
        Text of its label; empty for none.
    """

    keys: Texts
    offsets: NDArray[np.integer]
    sizes: NDArray[np.integer]
    labels: Texts

    def arrays(self) -> dict[str, NDArray[Any]]:
        """Return the arrays to store."""
        return {
            "keys": self.keys.content,
            "key_ends": self.keys.ends,
            "offsets": self.offsets,
            "sizes": self.sizes,
            "labels": self.labels.content,
            "label_ends": self.labels.ends,
        }

    @classmethod
    def of_arrays(cls, arrays: dict[str, NDArray[Any]]) -> "ShardIndex":
        """Return what :meth:`arrays` gave."""
        keys = Texts(arrays["keys"], arrays["key_ends"])
        labels = Texts(arrays["labels"], arrays["label_ends"])
        return cls(keys, narrow(arrays["offsets"]), narrow(arrays["sizes"]), labels)


@dataclass(slots=True)
class _Sample:
    """What was found of a sample."""

    image: tuple[int, int, int] | None = None
    label: tuple[int, str, Entry] | None = None


def indexed(
    path: Path, store: Store, build: Callable[[Path], ShardIndex] | None = None
) -> ShardIndex:
    """Return the index of a shard: the stored one, if the shard is as it was.

    Parameters
    ----------
    path
        The shard.
    store
        Stores indices, by the identity of the shard.
    build
        Makes the index of an archive of another layout; :func:`index_of` if None.

    Raises
    ------
    CorruptArtifactError
        If it is no tar archive, or is cut short.
    """
    with reading(path, cure=_CURE):
        kind = "" if build is None else build.__qualname__
        name = digest_of_json([identity_of(regular(path)), _SCHEMA, kind])
    sealed, arrays = (store.indices / f"{name}.{end}" for end in ("json", "safetensors"))
    with contextlib.suppress(FileNotFoundError, CorruptArtifactError, KeyError):
        digest = str(read_json(sealed)["digest"])
        return ShardIndex.of_arrays(read_arrays(arrays, digest=digest))
    index = (build or index_of)(path)
    # A store that cannot be written has what it had.
    with contextlib.suppress(OSError):
        digest = write_arrays(arrays, index.arrays())
        write_json(sealed, {"shard": str(path), "digest": digest, "schema": _SCHEMA})
    return index


def index_of(path: Path) -> ShardIndex:
    """Read the headers of a shard, and its labels.

    Parameters
    ----------
    path
        The shard, not compressed.

    Raises
    ------
    CorruptArtifactError
        If it is no tar archive, is cut short, or a label is damaged.

    Notes
    -----
    The key of a file is its path up to the first dot of its name, as in WebDataset; the rest, in
    lower case, says what it is. Of several images of a key that with the first ending of ``IMAGES``
    counts, of several labels that with the first of ``LABELS``.
    """
    samples: dict[str, _Sample] = {}
    with reading(path, cure=_CURE), contextlib.closing(entries_of(regular(path))) as entries:
        for entry in entries:
            key, kind = _key_of(entry.name)
            if kind in IMAGES or kind in LABELS:
                _add(samples.setdefault(key, _Sample()), kind, entry)
        found = [(key, sample) for key, sample in samples.items() if sample.image is not None]
        with open_ranges(path) as file:
            labels = _labels(file, found)
    places = [sample.image for _, sample in found if sample.image is not None]
    table = np.array(places, dtype=np.int64).reshape(-1, 3)
    keys = Texts.of([f"/{key}" for key, _ in found])
    return ShardIndex(keys, narrow(table[:, 1]), narrow(table[:, 2]), Texts.of(labels))


def _key_of(name: str) -> tuple[str, str]:
    """Return key and ending of a file; hidden files and what a Mac adds have no ending."""
    folder, slash, file = name.removeprefix("./").rpartition("/")
    stem, _, kind = file.partition(".")
    hidden = not stem or any(part.startswith(".") for part in folder.split("/"))
    return f"{folder}{slash}{stem}", "" if hidden or "__MACOSX" in folder else kind.lower()


def _add(sample: _Sample, kind: str, entry: Entry) -> None:
    if kind in IMAGES:
        rank = IMAGES.index(kind)
        if sample.image is None or rank < sample.image[0]:
            sample.image = (rank, entry.offset, entry.size)
    else:
        rank = LABELS.index(kind)
        if sample.label is None or rank < sample.label[0]:
            sample.label = (rank, kind, entry)


def _labels(file: Ranges, found: Sequence[tuple[str, _Sample]]) -> list[str]:
    """Return the text of the label of every sample; empty for none."""
    texts = [""] * len(found)
    rows = [row for row, (_, sample) in enumerate(found) if sample.label is not None]
    wanted = [(row, *label[1:]) for row in rows if (label := found[row][1].label) is not None]
    for row, kind, entry in wanted:
        if entry.size > _MAX_LABEL_BYTES:
            key = found[row][0]
            raise ValueError(f"the label {key}.{kind} claims to have {entry.size:,} bytes")
    apart = ((each.offset, each.size if each.content is None else 0) for _, _, each in wanted)
    for (row, kind, entry), _ in zip(wanted, file.ahead(apart), strict=True):
        content = entry.content
        if content is None:
            content = file.read_at(entry.offset, entry.size)
        texts[row] = _label_text(f"{found[row][0]}.{kind}", kind, content)
    return texts


def _label_text(name: str, kind: str, content: bytes) -> str:
    """Return the text of a label; empty if it is a caption."""
    try:
        text = content.decode("utf-8")
        text = _in_json(json.loads(text)) if kind == "json" else text.strip()
    except (ValueError, RecursionError):
        wanted = "JSON" if kind == "json" else "text in UTF-8"
        raise ValueError(f"the label {name} is not {wanted}") from None
    # A caption is no class.
    return text if "\n" not in text and len(text) <= _MAX_LABEL_LENGTH else ""


def _in_json(content: object) -> str:
    """Return the label in a JSON value: the value itself, or that of a usual key."""
    if isinstance(content, dict):
        content = next((content[key] for key in JSON_KEYS if key in content), None)
    fits = isinstance(content, (str, int)) and not isinstance(content, bool)
    return str(content) if fits else ""


def is_webdataset(path: Path) -> bool:
    """Return whether a tar archive has a label beside an image among its first files."""
    kinds: dict[str, set[str]] = {}
    with (
        contextlib.suppress(Exception),  # what is wrong with it is said where it is opened
        regular(path).open("rb") as stream,
        contextlib.closing(entries_in(stream, path.stat().st_size)) as entries,
    ):
        for entry in islice(entries, _FIRST_FILES):
            key, kind = _key_of(entry.name)
            kinds.setdefault(key, set()).add(kind)
    return any(found & set(IMAGES) and found & set(LABELS) for found in kinds.values())


def opens(place: Place) -> bool:
    """Return whether a place holds shards: such an archive, a list, or a folder of them."""
    if lists_shards(place, SUFFIXES):
        return True
    if place.is_file:
        return place.ends_with(*SUFFIXES) and is_webdataset(place.path)
    found = holds_shards(place, SUFFIXES)
    return found is not None and is_webdataset(found)


def files_of(path: Path, columns: Columns | None) -> tuple[Path, Sequence[str]]:  # noqa: ARG001
    """Return the shards whose images are scored as OOD images, as a folder and paths below it."""
    return find_shards(path, SUFFIXES).of_ood_part()


def open_webdataset(path: Path, *, name: str, spec: str, role: Role, store: Store) -> Dataset:
    """Open the shards of a WebDataset; no image is read yet.

    Parameters
    ----------
    path
        A tar archive that is not compressed; a folder, of which all below count; a pattern; or a
        ``.txt`` list of archives.
        Shards named after parts (``train-000000.tar``, ``photos-val-000000.tar``) are these parts.
    name
        How to call the data set.
    spec
        What opens it again.
    role
        ``id`` wants labels; ``ood`` takes the test images alone, without labels.
    store
        Stores where the files in each shard lie.

    Raises
    ------
    InvalidInputError
        If there is no image, or labels are wanted and missing.
    CorruptArtifactError
        If a shard is damaged.
    """
    shards = find_shards(path, SUFFIXES)
    indices = [indexed(each, store) for each in shards.paths()]
    counts = [len(index.offsets) for index in indices]
    location = str(shards.location)
    reader = LabelReader(location)
    labelled = role == "id" and any(len(index.labels.content) for index in indices)
    if labelled:
        for index in indices:
            reader.add_texts(index.labels)
    source = Extents(
        shards.folder,
        shards.files,
        np.repeat(narrow(np.arange(len(counts))), counts),
        np.concatenate([index.offsets for index in indices]),
        np.concatenate([index.sizes for index in indices]),
        Texts.joined([index.keys for index in indices]),
    )
    return assembled(
        source,
        reader.labels() if labelled else None,
        shards.rows_by_part(counts),
        name=name,
        location=location,
        spec=spec,
        role=role,
        no_labels=f"{location} has no labels: no file {', '.join(f'KEY.{end}' for end in LABELS)}",
    )
