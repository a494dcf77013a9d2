"""Folders of image files, with a subfolder for every class or without classes."""

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Literal

import numpy as np

from oodcli.data.compact import Texts
from oodcli.data.dataset import Dataset
from oodcli.data.decoding.files import find_images, is_image_name, list_folder
from oodcli.data.decoding.remote import files_in
from oodcli.errors import InvalidInputError
from oodcli.images import Part
from oodcli.remote.files import path_of

WANTED = (
    "expected is CLASS/IMAGE, or train/CLASS/IMAGE and test/CLASS/IMAGE, and val/CLASS/IMAGE if "
    "there is any"
)
# Folders that are called so are parts of a data set under another name, not classes.
_PARTS = frozenset(
    {"train", "training", "test", "testing", "val", "valid", "validation", "dev", "eval"}
)


def open_folder(path: Path, *, name: str, spec: str, role: Literal["id", "ood"]) -> Dataset:
    """Open a folder of images as a data set; files are listed, not read.

    Parameters
    ----------
    path
        The folder.
    name
        How to call the data set.
    spec
        What opens it again.
    role
        ``id`` reads ``train``, ``val`` and ``test`` with a folder for every class, or else folders
        of classes as one whole; ``ood`` takes all images below ``test``, else below ``val``, else
        below the folder itself.

    Raises
    ------
    InvalidInputError
        If the layout is another one, a class has no images, ``val`` or ``test`` has a class of its
        own, or there is no image at all.
    """
    if role == "ood":
        return Dataset(name, {"test": _without_classes(path)}, (), str(path), spec)
    found = [part for part in ("train", "test", "val") if (path / part).is_dir()]
    if not found:
        return _whole(path, name=name, spec=spec)
    if found == ["val"]:
        raise InvalidInputError(f"folder {path} has neither train nor test; {WANTED}")
    files = {part: _files_by_class(path / part) for part in found}
    class_names = classes_of(path, files)
    parts = {part: _with_classes(path / part, class_names, each) for part, each in files.items()}
    return Dataset(name, parts, class_names, str(path), spec)


def open_volume(path: Path, *, name: str, spec: str, role: Literal["id", "ood"]) -> Dataset:
    """Open one medical image as a set without classes, whose frames become its rows.

    Parameters
    ----------
    path
        The file.
    name
        How to call the data set.
    spec
        What opens it again.
    role
        Only ``ood``.

    Raises
    ------
    InvalidInputError
        If images with classes are wanted.
    """
    if role == "id":
        raise InvalidInputError(
            f"{path} has no classes; put volumes into a folder for each class, or write a table "
            f"with a label for each slice, {path.name}[SLICE]"
        )
    source = files_in(path.parent, [path.name])
    return Dataset(name, {"test": Part(source)}, (), str(path), spec)


def classes_of(path: Path, files: Mapping[str, Mapping[str, Sequence[object]]]) -> tuple[str, ...]:
    """Return the classes of the first part, after checking that no other part has more.

    Parameters
    ----------
    path
        What holds the parts.
    files
        The files of every class of every part.

    Raises
    ------
    InvalidInputError
        If another part has a class of its own.
    """
    first, *others = files
    for part in others:
        for foreign in sorted(files[part].keys() - files[first].keys()):
            raise InvalidInputError(
                f"{path / part} has a class {foreign!r} that {first} has not; "
                f"remove it, or add {path / first / foreign}"
            )
    return tuple(files[first])


def _whole(path: Path, *, name: str, spec: str) -> Dataset:
    """Open a folder with a folder for every class, of which nothing says what is for training."""
    check_no_parts(path, [entry.name for entry in list_folder(path) if entry.is_dir()])
    files = _files_by_class(path)
    class_names = tuple(files)
    whole = _with_classes(path, class_names, files)
    return Dataset(name, {"test": whole}, class_names, str(path), spec, is_whole=True)


def check_no_parts(path: Path, folders: Iterable[str]) -> None:
    """Refuse folders of classes that are called as parts of a data set usually are.

    Parameters
    ----------
    path
        What holds them.
    folders
        Their names.

    Raises
    ------
    InvalidInputError
        If one is.
    """
    for part in folders:
        if part.lower() in _PARTS:
            kind = next(known for known in ("train", "test", "val") if _is_kind(part, known))
            raise InvalidInputError(
                f"folder {path} has a folder {part!r}, which is not a class; rename it to {kind}: "
                f"{WANTED}"
            )


def _is_kind(folder: str, part: str) -> bool:
    """Return whether the name of a folder stands for a part."""
    other = {"val": ("val", "dev", "eval")}.get(part, (part,))
    return folder.lower().startswith(other)


def _files_by_class(folder: Path) -> dict[str, Texts]:
    """List the images of every class folder, sorted by name."""
    files = {}
    for entry in list_folder(folder):
        if entry.is_dir():
            files[entry.name] = find_images(path_of(entry.path))
            if not files[entry.name]:
                raise InvalidInputError(f"class folder {entry.path} has no images; remove it")
        elif is_image_name(entry.name):
            raise InvalidInputError(
                f"image {entry.path} lies outside of any class folder; {WANTED}"
            )
    if not files:
        raise InvalidInputError(f"folder {folder} has no class folders; {WANTED}")
    return files


def _with_classes(
    folder: Path, class_names: tuple[str, ...], files: Mapping[str, Sequence[str]]
) -> Part:
    paths = Texts.of(f"{name}/{file}" for name in class_names for file in files.get(name, ()))
    counts = [len(files.get(name, ())) for name in class_names]
    labels = np.repeat(np.arange(len(class_names), dtype=np.int64), counts)
    return Part(files_in(folder, paths), labels)


def _without_classes(path: Path) -> Part:
    folder = next((path / part for part in ("test", "val") if (path / part).is_dir()), path)
    files = find_images(folder)
    if not files:
        raise InvalidInputError(f"folder {folder} has no images; name a folder of image files")
    return Part(files_in(folder, files))
