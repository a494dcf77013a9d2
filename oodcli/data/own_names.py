"""The user's own data sets, by name: ``datasets.toml`` in the store.

::

    [fog]                                # a name of your choice: ood score --ood fog
    path = "/data/fog"                   # a folder, an image list, an .npz or an .npy file

    [birds]
    path = "/data/birds.txt"             # an image list: path and label per line
    root = "/data/images"                # what its paths start from; else the folder of the list

    [faults]
    path = "/data/faults.csv"            # a table
    columns = "path=image,label=kind"    # which of its columns have what

    [scans]
    path = "/data/scans.npy"
    labels = "/data/classes.npy"         # the class of every image

    [cifar10]                            # a known name: take this copy, download nothing
    path = "/data/cifar-10-batches-py"

The file may be edited by hand; what is written here keeps comments and order. Paths that are not
absolute start from the folder of the file.
"""

import os
import re
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from oodcli.data.columns import Columns, divided_parts
from oodcli.errors import InvalidInputError, UnknownNameError
from oodcli.files import reading, regular
from oodcli.remote.addresses import is_address
from oodcli.remote.files import path_of
from oodcli.store.store import Store, atomic_write

FILE = "datasets.toml"

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")
_KEYS = ("path", "labels", "root", "columns")


@dataclass(frozen=True, slots=True)
class RegisteredDataset:
    """A name of the user's, and what it stands for.

    Parameters
    ----------
    name
        The name.
    path
        Anything that a reader opens; or ``train=PATH,test=PATH``, whose parts lie apart.
    labels
        File with the class of every image of an ``.npy`` file.
    root
        Folder from which the paths of an image list or table start.
    columns
        Which columns of a table have what.
    """

    name: str
    path: Path
    labels: Path | None = None
    root: Path | None = None
    columns: Columns | None = None


def registered(store: Store) -> dict[str, RegisteredDataset]:
    """Return all registered data sets, in the order of the file.

    Parameters
    ----------
    store
        Holds the file; without one there are none.

    Raises
    ------
    InvalidInputError
        If the file is invalid.
    """
    path = store.root / FILE
    try:
        raw = regular(path).read_bytes()
    except FileNotFoundError:
        return {}
    with reading(path, cure="correct it", error=InvalidInputError):
        content = tomllib.loads(raw.decode("utf-8"))
    return {name: _entry(path, name, table) for name, table in content.items()}


def register(entry: RegisteredDataset, store: Store) -> None:
    """Write a data set into the file, in place of what had its name.

    Parameters
    ----------
    entry
        The data set.
    store
        Holds the file.

    Raises
    ------
    InvalidInputError
        If the name cannot be one, or the file is invalid.
    """
    if not _NAME.fullmatch(entry.name):
        raise InvalidInputError(
            f"{entry.name!r} cannot name a data set; use letters, digits, '-', '_' and '.'"
        )
    import tomlkit

    registered(store)
    with store.lock(FILE):
        document = _document(store)
        table = tomlkit.table()
        for key in _KEYS:
            value = getattr(entry, key)
            if value is not None:
                table[key] = str(value)
        document[entry.name] = table
        _write(document, store)


def forget(name: str, store: Store) -> RegisteredDataset:
    """Remove a data set from the file; its images are not touched.

    Parameters
    ----------
    name
        Its name.
    store
        Holds the file.

    Raises
    ------
    UnknownNameError
        If none has the name.
    InvalidInputError
        If the file is invalid.
    """
    entries = registered(store)
    if name not in entries:
        raise UnknownNameError.among("registered data set", name, entries)
    with store.lock(FILE):
        document = _document(store)
        document.pop(name, None)
        _write(document, store)
    return entries[name]


def _document(store: Store) -> Any:  # noqa: ANN401 - tomlkit's documents take anything
    import tomlkit

    path = store.root / FILE
    if path.exists():
        with reading(path, cure="correct it", error=InvalidInputError):
            return tomlkit.parse(path.read_text("utf-8"))
    document = tomlkit.document()
    document.add(tomlkit.comment("Data sets of your own, and known ones that lie elsewhere."))
    document.add(tomlkit.comment('[NAME] with path = "…", and labels = "…" or root = "…".'))
    document.add(tomlkit.nl())
    return document


def _write(document: Any, store: Store) -> None:  # noqa: ANN401 - the same
    import tomlkit

    with atomic_write(store.root / FILE) as stream:
        stream.write(f"{tomlkit.dumps(document).rstrip()}\n".encode())


def _place(file: Path, value: str) -> Path:
    """Return the path that a value stands for, from the folder of the file on, or the address."""
    if is_address(value):
        return path_of(value)
    return file.parent / os.path.expanduser(value)  # noqa: PTH111


def _entry(file: Path, name: str, table: object) -> RegisteredDataset:
    if not isinstance(table, Mapping) or "path" not in table:
        raise InvalidInputError(f'{file}: {name} has no path; write [{name}] and path = "…"')
    if not _NAME.fullmatch(name):
        raise InvalidInputError(
            f"{file}: {name!r} cannot name a data set; use letters, digits, '-', '_' and '.'"
        )
    for key, value in table.items():
        if key not in _KEYS:
            raise InvalidInputError(
                f"{file}: {name} has a key {key!r}; there are: {', '.join(_KEYS)}"
            )
        if not isinstance(value, str) or not value or "\0" in value:
            raise InvalidInputError(f"{file}: {key} of {name} is not a path in quotes; write one")
    # Path.expanduser raises where there is no such user; this leaves the name as it stands.
    paths = {key: _place(file, value) for key, value in table.items() if key != "columns"}
    with reading(f"{file}: {name}", wrong="is wrong", cure="correct it", error=InvalidInputError):
        columns = Columns.of(table["columns"]) if "columns" in table else None
    parts = divided_parts(table["path"])
    if parts is not None:
        each = (f"{part}={_place(file, at)}" for part, at in parts[1].items())
        paths["path"] = Path(",".join(each))
    return RegisteredDataset(name, **paths, columns=columns)
