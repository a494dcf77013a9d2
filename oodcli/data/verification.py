"""Verification of data sets: their files, the number of their images, and the decoded images."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from oodcli.data.decoding.prepare import check_stored
from oodcli.data.download import md5_of, part_of, wanted_files
from oodcli.data.opening import check_dataset_name, open_in_any_role
from oodcli.data.own_names import registered
from oodcli.data.registry import DATASETS
from oodcli.errors import OodError
from oodcli.progress import SILENT, Progress
from oodcli.records import as_json
from oodcli.store.store import Store
from oodcli.text import counted

VERIFY_SCHEMA = 1


@dataclass(frozen=True)
class Check:
    """The result of one check.

    Parameters
    ----------
    dataset
        Name of the data set.
    what
        A file, a part, or the decoded images.
    state
        ``ok``, ``missing`` or ``wrong``.
    detail
        What was compared, in a few words.
    """

    dataset: str
    what: str
    state: Literal["ok", "missing", "wrong"]
    detail: str


@dataclass(frozen=True)
class Verification:
    """The results of all checks.

    Parameters
    ----------
    checks
        One entry for every file, part or set of decoded images.
    """

    checks: tuple[Check, ...]

    @property
    def is_right(self) -> bool:
        """Return whether nothing is wrong or missing."""
        return all(check.state == "ok" for check in self.checks)

    def to_json(self) -> dict[str, Any]:
        """Return the versioned object that ``--format json`` prints."""
        return {"schema": VERIFY_SCHEMA, **as_json(self)}


def verify_datasets(
    store: Store, name: str | None = None, *, progress: Progress = SILENT
) -> Verification:
    """Verify the number and the checksums of what is stored.

    Parameters
    ----------
    store
        What to look through.
    name
        A data set; if None, all that are registered or of which a file is there.
    progress
        Reports the bytes read.

    Raises
    ------
    UnknownNameError
        If no data set has the name.
    """
    own = registered(store)
    if name:
        check_dataset_name(name, store)
    names = [name] if name else [n for n in (*DATASETS, *own) if _is_begun(n, store)]
    checks: list[Check] = []
    hashed: set[Path] = set()
    for each in dict.fromkeys(names):
        files = () if each in own else tuple(_file_checks(each, store, hashed, progress))
        checks += files
        if all(check.state == "ok" for check in files):
            checks += _count_checks(each, store)
    checks += _decoded_checks(store, name)
    return Verification(tuple(checks))


def _is_begun(name: str, store: Store) -> bool:
    """Tell whether anything of a data set is there; of one that shares files, all of it."""
    if name in registered(store):
        return True
    known, files = DATASETS[name], wanted_files(name, store)
    if known.home or not files:
        return bool(files) and known.is_present(store)
    return known.is_present(store) or any(
        file.target.exists() or part_of(file.target).exists() for file in files
    )


def _file_checks(name: str, store: Store, hashed: set[Path], progress: Progress) -> Iterator[Check]:
    """Hash the files of a set, those that it shares with another once."""
    for file in wanted_files(name, store):
        path, md5 = file.target, file.source.md5
        if path in hashed or (not path.is_file() and DATASETS[name].is_present(store)):
            continue
        hashed.add(path)
        if not path.is_file():
            part = part_of(path)
            begun = f"{part.stat().st_size:,} bytes are here; " if part.is_file() else ""
            how = f"put it at {path}" if file.source.is_manual else "the rest can be downloaded"
            yield Check(name, path.name, "missing", f"{begun}{how}")
            continue
        size = path.stat().st_size
        if md5 is None:
            yield Check(name, path.name, "ok", f"{size:,} bytes; no checksum is published")
            continue
        with progress.task(f"checking {name}/{path.name}", total=size, unit="bytes") as task:
            found = md5_of(path, task)
        right = found == md5
        yield Check(
            name,
            path.name,
            "ok" if right else "wrong",
            f"md5 {found}" if right else f"md5 {found}, not {md5}; download it again",
        )


def _count_checks(name: str, store: Store) -> Iterator[Check]:
    """Compare the number of images with the catalogue's; a registered set has only its own."""
    try:
        parts = open_in_any_role(name, store).parts
    except OodError as error:
        yield Check(name, "images", "wrong", str(error))
        return
    counts = DATASETS[name].counts if name in DATASETS else {}
    for part in dict.fromkeys((*counts, *parts)):
        found = len(parts[part]) if part in parts else 0
        wanted = counts.get(part, found)
        text = counted(found, "image")
        yield Check(
            name,
            part,
            "ok" if found == wanted else "wrong",
            text if found == wanted else f"{text}, not {wanted:,}",
        )


def _decoded_checks(store: Store, name: str | None) -> Iterator[Check]:
    folders = sorted(store.images.iterdir()) if store.images.is_dir() else []
    for folder in folders:
        try:
            images = check_stored(folder)
        except OodError as error:
            if name is None:
                yield Check("", f"images/{folder.name}", "wrong", str(error))
            continue
        if images is None or (name is not None and not f"{images.name} ".startswith(f"{name} ")):
            continue
        bad = len(images.damaged)
        yield Check(
            images.name,
            f"images/{folder.name}",
            "wrong" if bad else "ok",
            f"{bad} of {images.files} files damaged; they are decoded again when needed"
            if bad
            else f"{counted(images.rows, 'decoded image')} in {counted(images.files, 'file')}",
        )
