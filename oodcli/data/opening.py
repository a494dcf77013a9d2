"""The only place where data sets are opened: known, registered, or named by a path."""

import os
from dataclasses import replace
from pathlib import Path
from typing import Literal

from oodcli.data.dataset import Dataset
from oodcli.data.formats import cifar
from oodcli.data.own_names import FILE, RegisteredDataset, registered
from oodcli.data.reader import Columns, without_columns
from oodcli.data.readers import LIST, is_known_suffix, is_there, open_path
from oodcli.data.registry import DATASETS
from oodcli.errors import InvalidInputError, MissingArtifactError, UnknownNameError
from oodcli.files import expanded
from oodcli.store.store import Store


def open_dataset(
    spec: str,
    store: Store,
    *,
    role: Literal["id", "ood"] = "id",
    val_fraction: float = 0.0,
    test_fraction: float = 0.0,
) -> Dataset:
    """Find a data set and understand its parts; images are decoded later.

    Parameters
    ----------
    spec
        A name; the path of a file, a folder or a pattern that one of :mod:`oodcli.data.readers`
        opens; or ``NAME=PATH``, which gives any of them a name. Where NAME is one of the registry
        and PATH has its files as published, those are opened. After a path,
        ``:path=COLUMN,label=COLUMN,split=COLUMN`` says which columns of a table have what.
    store
        Holds what was downloaded.
    role
        ``id`` wants images with classes; ``ood`` takes the OOD images.
    val_fraction
        Share of the train part to hold out as ``val`` where the set has none.
    test_fraction
        Share of the images to test on, where the set is not divided; the others are ``train`` then.

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
    opened = _opened(spec, store, role=role)
    return opened.with_test(test_fraction).holding_out(val_fraction)


def open_in_any_role(spec: str, store: Store) -> Dataset:
    """Open a data set with its classes if it has any; images are decoded later.

    Parameters
    ----------
    spec
        As :func:`open_dataset` takes it.
    store
        Holds what was downloaded.

    Raises
    ------
    OodError
        As :func:`open_dataset`.
    """
    if spec in DATASETS:
        return open_dataset(spec, store, role=DATASETS[spec].role)
    try:
        return open_dataset(spec, store, role="id")
    except InvalidInputError:
        return open_dataset(spec, store, role="ood")


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


def _opened(spec: str, store: Store, *, role: Literal["id", "ood"]) -> Dataset:
    """Open a data set as it is."""
    own = registered(store).get(spec)
    if own is not None:
        return _open_registered(own, store, role=role)
    if spec in DATASETS:
        return DATASETS[spec].open(store)
    name, path, columns = _named_path(spec)
    if not spec or not is_there(path):
        if _is_bare_name(spec):
            unknown = UnknownNameError.among("data set", spec, (*DATASETS, *registered(store)))
            raise UnknownNameError(f"{unknown} (a path, or NAME=PATH, is also accepted)")
        raise MissingArtifactError(f"no folder or file {path}; check the path")
    published = None if columns is not None else _open_published(name, path, store)
    return published or _open_own(name, path, store, role=role, columns=columns)


def _open_published(name: str | None, path: Path, store: Store) -> Dataset | None:
    """Open a known set from a folder of the user's; None if the path holds something else."""
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
) -> Dataset:
    """Open what a user has, by its reader."""
    again = str(path) if name is None else f"{name}={path}"
    if columns is not None:
        again = f"{again}:{columns}"
    called = name or (path.name if path.is_dir() else path.stem)
    return open_path(path, store, name=called, spec=again, role=role, columns=columns)


def _open_registered(
    own: RegisteredDataset, store: Store, *, role: Literal["id", "ood"]
) -> Dataset:
    """Open what ``datasets.toml`` names."""
    if not own.path.exists():
        raise MissingArtifactError(
            f"{own.name} is registered at {own.path}, which does not exist; correct {FILE} in the "
            f"store, or forget it: ood datasets remove {own.name}"
        )
    if own.labels is None and own.root is None:
        return replace(_opened(f"{own.name}={own.path}", store, role=role), spec=own.name)
    if own.root is not None and own.path.is_file() and not is_known_suffix(own.path.name):
        # A list may be called as one likes where its root says that it is one.
        return LIST.open(own.path, name=own.name, spec=own.name, role=role, root=own.root)
    return open_path(
        own.path, store, name=own.name, spec=own.name, role=role, labels=own.labels, root=own.root
    )


def _named_path(spec: str) -> tuple[str | None, Path, Columns | None]:
    """Divide ``NAME=PATH:COLUMNS``; a path that exists as it stands has neither."""
    whole = _absolute(spec)
    if os.path.exists(whole):  # noqa: PTH110
        return None, whole, None
    text, columns = without_columns(spec)
    whole = _absolute(text)
    name, equals, path = text.partition("=")
    if os.path.exists(whole) or not (name and equals and path) or "/" in name:  # noqa: PTH110
        return None, whole, columns
    return name, _absolute(path), columns


def _absolute(path: str) -> Path:
    # Without "." and "..", but with the links in it: a folder goes by the name it was given.
    return Path(os.path.abspath(expanded(Path(path))))  # noqa: PTH100


def _is_bare_name(spec: str) -> bool:
    path_like = "/" in spec or "=" in spec or spec.startswith(("~", "."))
    return not (path_like or is_known_suffix(spec))
