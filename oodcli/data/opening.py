"""The only place where data sets are opened: known, registered, or named by a path."""

import os
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Literal

import numpy as np

from oodcli.data.columns import divided_parts
from oodcli.data.dataset import Dataset
from oodcli.data.decoding.frames import with_window
from oodcli.data.formats import cifar, openood
from oodcli.data.formats.openood import OpenOODTree
from oodcli.data.own_names import FILE, RegisteredDataset, registered
from oodcli.data.reader import Columns, without_columns
from oodcli.data.readers import (
    LIST,
    is_known_suffix,
    is_there,
    open_path,
    reader_of,
    readers,
)
from oodcli.data.registry import DATASETS
from oodcli.errors import InvalidInputError, MissingArtifactError, UnknownNameError
from oodcli.files import expanded
from oodcli.images import Part
from oodcli.remote.addresses import is_address, without_credentials
from oodcli.remote.files import RemotePath, path_of, use_cache
from oodcli.store.store import Store
from oodcli.windows import Window


def open_dataset(
    spec: str,
    store: Store,
    *,
    role: Literal["id", "ood"] = "id",
    val_fraction: float = 0.0,
    test_fraction: float = 0.0,
    window: Window | None = None,
) -> Dataset:
    """Find a data set and understand its parts; images are decoded later.

    Parameters
    ----------
    spec
        A name; the path of a file, a folder or a pattern that one of :mod:`oodcli.data.readers`
        opens; or ``NAME=PATH``, which gives any of them a name. Where NAME is one of the registry
        and PATH has its files as published, those are opened. After a path,
        ``:path=COLUMN,label=COLUMN,split=COLUMN`` says which columns of a table have what.
        ``train=PATH,test=PATH`` (and ``val=PATH``) is a data set whose parts lie apart.
    store
        Holds what was downloaded, and where OpenOOD's folder is, whose lists are ``openood:KEY``.
    role
        ``id`` wants images with classes; ``ood`` takes the OOD images.
    val_fraction
        Share of the train part to hold out as ``val`` where the set has none.
    test_fraction
        Share of the images to test on, where the set is not divided; the others are ``train`` then.
    window
        Which values of medical images are black and white.

    Raises
    ------
    UnknownNameError
        If no data set has the name.
    MissingArtifactError
        If there is no such folder or file, or the data set was not downloaded.
    InvalidInputError
        If the folder or file is not laid out as a data set, or a share does not fit.
    CorruptArtifactError
        If a published file is damaged.
    """
    use_cache(store.remote)
    opened = _opened(without_credentials(spec), store, role=role, window=window)
    return opened.with_test(test_fraction).holding_out(val_fraction)


def open_in_any_role(spec: str, store: Store, window: Window | None = None) -> Dataset:
    """Open a data set with its classes if it has any; images are decoded later.

    Parameters
    ----------
    spec
        As :func:`open_dataset` takes it.
    store
        Holds what was downloaded.
    window
        Which values of medical images are black and white.

    Raises
    ------
    OodError
        As :func:`open_dataset`.
    """
    if spec in DATASETS:
        return open_dataset(spec, store, role=DATASETS[spec].role)
    try:
        return open_dataset(spec, store, role="id", window=window)
    except InvalidInputError:
        return open_dataset(spec, store, role="ood", window=window)


def is_named(spec: str, store: Store) -> bool:
    """Return whether a text is the name of a data set, or names its parts.

    Parameters
    ----------
    spec
        The text.
    store
        Holds the names that were registered.
    """
    return spec in DATASETS or spec in registered(store) or _divided_parts(spec) is not None


def is_present(path: Path) -> bool:
    """Return whether the path of a registered data set, or each of its parts, is there."""
    parts = None if path.exists() else divided_parts(str(path))
    paths = [path] if parts is None else [_named_path(each)[1] for each in parts[1].values()]
    return all(map(is_there, paths))


def check_dataset_name(name: str, store: Store) -> None:
    """Refuse a name that stands for no data set.

    Parameters
    ----------
    name
        The name.
    store
        Holds the names that were registered.

    Raises
    ------
    UnknownNameError
        If neither the registry nor ``datasets.toml`` has it.
    """
    known = (*DATASETS, *registered(store))
    if name not in known:
        raise UnknownNameError.among("data set", name, known)


def _opened(
    spec: str, store: Store, *, role: Literal["id", "ood"], window: Window | None
) -> Dataset:
    """Open a data set as it is; published ones need no window."""
    first, _, key = spec.partition(":")
    if first == openood.NAME:
        return _open_listed(key, store)
    own = registered(store).get(spec)
    if own is not None:
        return _open_registered(own, store, role=role, window=window)
    if spec in DATASETS:
        return _open_known(spec, store)
    parts = _divided_parts(spec)
    if parts is not None:
        return _open_parts(*parts, store, role=role, window=window)
    name, path, columns = _named_path(spec)
    if not spec or not is_there(path):
        if _is_bare_name(spec):
            unknown = UnknownNameError.among("data set", spec, (*DATASETS, *registered(store)))
            raise UnknownNameError(f"{unknown} (a path, or NAME=PATH, is also accepted)")
        raise MissingArtifactError(f"no folder or file {path}; check the path")
    published = None if columns is not None else _open_published(name, path, store)
    return published or _open_own(name, path, store, role=role, columns=columns, window=window)


def _divided_parts(spec: str) -> tuple[str | None, dict[str, str]] | None:
    """Divide ``NAME=train=PATH,test=PATH``; None if that is a path or anything else."""
    return None if os.path.lexists(spec) else divided_parts(spec)


def absolute_parts(parts: Mapping[str, str]) -> str:
    """Write the parts of a data set as they are opened from any folder.

    Parameters
    ----------
    parts
        Path and columns of every part.
    """
    return ",".join(f"{part}={_again(path)}" for part, path in parts.items())


def _open_parts(
    name: str | None,
    paths: Mapping[str, str],
    store: Store,
    *,
    role: Literal["id", "ood"],
    window: Window | None,
) -> Dataset:
    """Open a data set each part of which lies elsewhere, in anything that a reader opens."""
    wanted = paths
    if role == "ood":
        part = next(each for each in ("test", "val", "train") if each in paths)
        wanted = {part: paths[part]}
    opened = {part: _opened(path, store, role=role, window=window) for part, path in wanted.items()}
    for part, each in opened.items():
        if len(each.parts) != 1:
            raise InvalidInputError(
                f"{part}={paths[part]} has parts of its own, {', '.join(each.parts)}; name what is "
                "one part"
            )
    called = name or next(iter(opened.values())).name
    again = absolute_parts(paths)
    spec = again if name is None else f"{name}={again}"
    whole = {part: next(iter(each.parts.values())) for part, each in opened.items()}
    if role == "ood":
        return Dataset(called, {"test": next(iter(whole.values()))}, (), again, spec)
    first = opened.get("train") or next(iter(opened.values()))
    labelled = {
        part: _with_classes_of(first, each, where=f"{part}={paths[part]}")
        for part, each in opened.items()
    }
    # The labels of the other parts are those of the first, however they were counted alone.
    notes = tuple(
        dict.fromkeys(
            note
            for each in opened.values()
            for note in each.notes
            if each is first or not note.startswith(f"labels of {each.name} are numbers")
        )
    )
    return Dataset(called, labelled, first.class_names, again, spec, notes=notes)


def _again(path: str) -> str:
    """Return a path with its columns as it is opened from any folder."""
    _, whole, columns = _named_path(path)
    return str(whole) if columns is None else f"{whole}:{columns}"


def _with_classes_of(first: Dataset, other: Dataset, *, where: str) -> Part:
    """Return the one part of a data set with the labels of another's classes."""
    (part,) = other.parts.values()
    if part.labels is None:
        raise InvalidInputError(f"{where} has no labels; a part of a data set needs them")
    if other.class_names == first.class_names:
        return part
    place = {name: at for at, name in enumerate(first.class_names)}
    # Numbers that count from 1 may have no smallest label here, and then count from 0.
    used = set(np.unique(part.labels).tolist())
    for at, name in enumerate(other.class_names):
        if name not in place and at in used:
            raise InvalidInputError(
                f"{where} has a class {name!r} that {first.location} has not; both need the same "
                "names of classes"
            )
    places = np.array([place.get(name, 0) for name in other.class_names], dtype=np.int64)
    return Part(part.source, places[part.labels])


def with_columns(columns: str | None, *specs: Sequence[str]) -> list[tuple[str, ...]]:
    """Write the columns behind every table that is named, as ``PATH:COLUMNS``.

    Parameters
    ----------
    columns
        ``path=NAME,label=NAME,split=NAME``, or some of them; nothing changes if None.
    *specs
        What :func:`open_dataset` takes, in groups.

    Returns
    -------
    list
        The groups.

    Raises
    ------
    InvalidInputError
        If columns are named, but no table that has any.
    """
    groups = [tuple(group) for group in specs]
    if columns is None:
        return groups
    text = str(Columns.of(columns))
    found = [tuple(_with_columns(spec, text) for spec in group) for group in groups]
    if found == groups:
        kinds = " or ".join(each.kind for each in readers() if "columns" in each.options)
        raise InvalidInputError(
            f"--columns {columns} has no effect: it is for {kinds}, and none is given"
        )
    return found


def _with_columns(spec: str, columns: str) -> str:
    parts = _divided_parts(spec)
    if parts is not None:
        name, paths = parts
        each = ",".join(f"{part}={_with_columns(path, columns)}" for part, path in paths.items())
        return each if name is None else f"{name}={each}"
    _, path, known = _named_path(spec)
    reader = reader_of(path) if known is None and is_there(path) else None
    takes = reader is not None and "columns" in reader.options
    return f"{spec}:{columns}" if takes else spec


def is_here(name: str, store: Store) -> bool:
    """Return whether a known set can be opened without a download.

    Parameters
    ----------
    name
        Its name.
    store
        Holds what was downloaded, and where OpenOOD's folder is.
    """
    tree = OpenOODTree.of(store)
    return DATASETS[name].is_present(store) or (tree is not None and tree.has_id_set(name))


def _open_known(name: str, store: Store) -> Dataset:
    """Open a known set from its published files, or else from OpenOOD's folder."""
    tree = OpenOODTree.of(store)
    if tree is not None and not DATASETS[name].is_present(store) and tree.has_id_set(name):
        return tree.id_set(name)
    return DATASETS[name].open(store)


def _open_listed(key: str, store: Store) -> Dataset:
    """Open ``openood:KEY``, the images of a list in OpenOOD's folder."""
    tree = OpenOODTree.of(store)
    if tree is None:
        raise MissingArtifactError(
            "OpenOOD's folder data is not registered; run: ood datasets add openood DATA"
        )
    if not key or not tree.has(key):
        raise InvalidInputError(
            f"{tree.root} has no images of a list {key!r}; name one as openood:cifar10/test_tin: "
            f"{tree.found()}"
        )
    return tree.dataset(key.rpartition("/")[2], key)


def _open_published(name: str | None, path: Path, store: Store) -> Dataset | None:
    """Open a known set from a folder of the user's; None if the path holds something else."""
    if isinstance(path, RemotePath):
        return None  # the tool downloads published sets itself
    release = cifar.find_release(path)
    if release is not None and (name is None or name not in DATASETS):
        known = release[0].name
        return cifar.open_cifar(
            release[1],
            store,
            release=release[0],
            name=name or known,
            spec=f"{name or known}={path}",
        )
    if name is None or name not in DATASETS or not DATASETS[name].sources:
        return None
    folder = path.parent if path.is_file() else path
    try:
        opened = DATASETS[name].read(folder, store)
    except MissingArtifactError:
        if name in (cifar.CIFAR10.name, cifar.CIFAR100.name):
            # Their images are never files, so these are others under a name that misleads.
            raise MissingArtifactError(
                f"{path} does not hold {name} as published; name a folder that does, "
                "or give your images another name: NAME=PATH"
            ) from None
        return None
    return replace(opened, name=name, spec=f"{name}={path}")


def _open_own(
    name: str | None,
    path: Path,
    store: Store,
    *,
    role: Literal["id", "ood"],
    columns: Columns | None,
    window: Window | None,
) -> Dataset:
    """Open what a user has, by its reader."""
    again = str(path) if name is None else f"{name}={path}"
    if columns is not None:
        again = f"{again}:{columns}"
    stem = path.stem.removesuffix(".nii") if path.suffix == ".gz" else path.stem
    called = name or (path.name if path.is_dir() else stem)
    return open_path(
        path, store, name=called, spec=again, role=role, columns=columns, window=window
    )


def _open_registered(
    own: RegisteredDataset,
    store: Store,
    *,
    role: Literal["id", "ood"],
    window: Window | None,
) -> Dataset:
    """Open what ``datasets.toml`` names."""
    if not is_there(own.path) and divided_parts(str(own.path)) is None:
        raise MissingArtifactError(
            f"{own.name} is registered at {own.path}, which does not exist; correct {FILE} in the "
            f"store, or forget it: ood datasets remove {own.name}"
        )
    if own.labels is None and own.root is None and own.columns is None:
        opened = _opened(f"{own.name}={own.path}", store, role=role, window=window)
        return replace(opened, spec=own.name)
    if own.root is not None and own.path.is_file() and not is_known_suffix(own.path.name):
        # A list may be called as one likes where its root says that it is one.
        listed = LIST.open(own.path, name=own.name, spec=own.name, role=role, root=own.root)
        return with_window(listed, window)
    return open_path(
        own.path,
        store,
        name=own.name,
        spec=own.name,
        role=role,
        columns=own.columns,
        labels=own.labels,
        root=own.root,
        window=window,
    )


def _named_path(spec: str) -> tuple[str | None, Path, Columns | None]:
    """Divide ``NAME=PATH:COLUMNS``; a path that exists as it stands has neither."""
    if not is_address(spec):
        whole = _absolute(spec)
        if os.path.exists(whole):  # noqa: PTH110
            return None, whole, None
    text, columns = without_columns(spec)
    if is_address(text):
        return None, path_of(text), columns
    whole = _absolute(text)
    name, equals, path = text.partition("=")
    if os.path.exists(whole) or not (name and equals and path) or "/" in name:  # noqa: PTH110
        return None, whole, columns
    return name, _absolute(path), columns


def _absolute(path: str) -> Path:
    if is_address(path):
        return path_of(path)
    # Without "." and "..", but with the links in it: a folder goes by the name it was given.
    return Path(os.path.abspath(expanded(Path(path))))  # noqa: PTH100


def _is_bare_name(spec: str) -> bool:
    path_like = "/" in spec or "=" in spec or spec.startswith(("~", "."))
    return not (path_like or is_known_suffix(spec))
