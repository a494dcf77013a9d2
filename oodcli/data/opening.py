"""The only place where data sets are opened: known, registered, or named by a path."""

import os
from dataclasses import replace
from pathlib import Path
from typing import Literal

from oodcli.data.dataset import Dataset
from oodcli.data.formats import cifar
from oodcli.data.formats.archives import SUFFIXES, open_archive
from oodcli.data.formats.arrays import open_npy, open_npz
from oodcli.data.formats.folders import open_folder
from oodcli.data.formats.lists import open_list
from oodcli.data.own_names import FILE, RegisteredDataset, registered
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
        A name, a folder, an .npz or .npy file, a .txt list, a .zip or .tar archive, or
        ``NAME=PATH``, which gives any of them a name. Where NAME is one of the registry and PATH
        has its files as published, those are opened.
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
    name, path = _named_path(spec)
    if not spec or not os.path.exists(path):  # noqa: PTH110 - Path.exists raises on names that are too long
        if _is_bare_name(spec):
            unknown = UnknownNameError.among("data set", spec, (*DATASETS, *registered(store)))
            raise UnknownNameError(
                f"{unknown} (a folder, an .npz file or NAME=PATH is also accepted)"
            )
        raise MissingArtifactError(f"no folder or file {path}; check the path")
    return _open_published(name, path, store) or _open_own(name, path, role=role)


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


def _open_own(name: str | None, path: Path, *, role: Literal["id", "ood"]) -> Dataset:
    """Open what a user has, by its kind."""
    again = str(path) if name is None else f"{name}={path}"
    suffix = path.suffix.lower()
    if path.is_dir():
        return open_folder(path, name=name or path.name, spec=again, role=role)
    called = name or path.stem
    if suffix == ".npz":
        return open_npz(path, name=called, spec=again, role=role)
    if suffix == ".npy":
        return open_npy(path, name=called, spec=again, role=role)
    if suffix == ".txt":
        return open_list(path, name=called, spec=again, role=role)
    if suffix in SUFFIXES:
        return open_archive(path, name=called, spec=again, role=role)
    raise InvalidInputError(
        f"{path} is none of: a folder, an .npz or .npy file, a .txt list, a .zip or .tar archive"
    )


def _open_registered(
    own: RegisteredDataset, store: Store, *, role: Literal["id", "ood"]
) -> Dataset:
    """Open what ``datasets.toml`` names."""
    suffix = own.path.suffix.lower()
    if not own.path.exists():
        raise MissingArtifactError(
            f"{own.name} is registered at {own.path}, which does not exist; correct {FILE} in the "
            f"store, or forget it: ood datasets remove {own.name}"
        )
    if own.labels is not None and suffix != ".npy":
        raise InvalidInputError(
            f"labels of {own.name} do not fit {own.path}; they are for .npy files"
        )
    if suffix == ".npy":
        return open_npy(own.path, name=own.name, spec=own.name, role=role, labels=own.labels)
    if own.path.is_file() and (own.root is not None or suffix == ".txt"):
        return open_list(own.path, name=own.name, spec=own.name, role=role, root=own.root)
    return replace(_opened(f"{own.name}={own.path}", store, role=role), spec=own.name)


def _named_path(spec: str) -> tuple[str | None, Path]:
    """Divide ``NAME=PATH``; a path that exists as it stands has no name."""
    whole = _absolute(spec)
    name, equals, path = spec.partition("=")
    if os.path.exists(whole) or not (name and equals and path) or "/" in name:  # noqa: PTH110
        return None, whole
    return name, _absolute(path)


def _absolute(path: str) -> Path:
    # Without "." and "..", but with the links in it: a folder goes by the name it was given.
    return Path(os.path.abspath(expanded(Path(path))))  # noqa: PTH100


def _is_bare_name(spec: str) -> bool:
    kinds = (".npz", ".npy", ".txt", *SUFFIXES)
    return not ("/" in spec or "=" in spec or spec.startswith(("~", ".")) or spec.endswith(kinds))
