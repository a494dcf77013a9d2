"""Every reader of images: those of this package, then those that installed packages offer.

The first reader that claims a path opens it; a plain folder of images comes last.
"""

import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import cache
from importlib.metadata import EntryPoint, entry_points
from pathlib import Path
from typing import Any

from oodcli.data.dataset import Dataset
from oodcli.data.decoding.frames import with_window
from oodcli.data.formats import archives, arrow, hdf5, parquet, tables, webdataset
from oodcli.data.formats.archives import open_archive
from oodcli.data.formats.arrays import open_npy, open_npz
from oodcli.data.formats.arrow import open_saved
from oodcli.data.formats.folders import open_folder, open_volume
from oodcli.data.formats.hdf5 import open_hdf5
from oodcli.data.formats.lists import open_list
from oodcli.data.formats.parquet import open_parquet
from oodcli.data.formats.tables import open_metadata_folder, open_table
from oodcli.data.formats.webdataset import open_webdataset
from oodcli.data.reader import GROUP, Columns, Place, Reader, Role, has_pattern
from oodcli.errors import InvalidInputError, OodError
from oodcli.files import third_party_code
from oodcli.medical import ENDINGS
from oodcli.remote.files import RemotePath
from oodcli.store.store import Store
from oodcli.windows import Window

NPZ = Reader(
    "npz",
    "an .npz file of arrays",
    (
        "`.npz` with `images` (uint8, n×h×w, n×h×w×3 or n×3×h×w) and optional `labels`; or with "
        "`train_images`, `train_labels`, `test_images`, `test_labels`, optional `val_images`, "
        "`val_labels`, `class_names`, as MedMNIST has them",
        "one set; or a data set with classes",
    ),
    open_npz,
    suffixes=(".npz",),
    options=frozenset({"columns"}),
)
NPY = Reader(
    "npy",
    "an .npy array",
    ("`.npy` (uint8, as above)", "one set; only the images that are needed are read"),
    open_npy,
    suffixes=(".npy",),
    options=frozenset({"labels"}),
)
LIST = Reader(
    "list",
    "a .txt list",
    (
        "`.txt`, a list of `path` or `path label` lines in OpenOOD's format (`-1`: no class), or "
        "of path, label and part between tabs or commas",
        "one set, or its parts; paths are absolute, or relative to the folder of the list",
    ),
    open_list,
    suffixes=(".txt",),
    options=frozenset({"root"}),
    names_files=True,
)
TABLE = Reader(
    "table",
    "a .csv, .tsv or .jsonl table",
    (
        "`.csv`, `.tsv` (with a header; comma, semicolon or tab) or `.jsonl` with a column of "
        "paths (`path`, `file`, `file_name`, `image`, …), perhaps of labels (`label`, `class`, "
        "`target`) and of parts (`split`: `train`, `val`, `test`)",
        "a data set with classes; one set without `split`; `--columns path=…,label=…,split=…` "
        "names other columns",
    ),
    open_table,
    suffixes=tables.SUFFIXES,
    options=frozenset({"columns", "root"}),
    names_files=True,
)
ARCHIVE = Reader(
    "archive",
    "a .zip or .tar archive",
    (
        "`.zip` or `.tar` with folders as above; archives in it that are not compressed count as "
        "folders",
        "a data set with classes; as `--ood`, all images in it; read without unpacking",
    ),
    open_archive,
    suffixes=archives.SUFFIXES,
)
METADATA = Reader(
    "metadata",
    "a folder with a metadata table",
    (
        "a folder with `metadata.csv` or `metadata.jsonl` (Hugging Face), or one in each of "
        "`train`, `val` and `test`",
        "a data set with the labels of the table; as `--ood`, all images in the folder",
    ),
    open_metadata_folder,
    opens=tables.holds_metadata,
    options=frozenset({"columns"}),
    walked=True,
)
PARQUET = Reader(
    "parquet",
    "a .parquet file",
    (
        "`.parquet`, or a folder or pattern of such files: images as a column of bytes or of "
        "Hugging Face's `{bytes, path}`; extra `oodcli[parquet]`",
        "one set; or a data set with the parts that the files are named after "
        "(`train-00000-of-00002.parquet`, `validation/0.parquet`) or that a column `split` names; "
        "classes from the schema, or by number or name",
    ),
    open_parquet,
    suffixes=parquet.SUFFIXES,
    opens=parquet.opens,
    options=frozenset({"columns"}),
    patterns=True,
    files=parquet.files_of,
)
SAVED = Reader(
    "save_to_disk",
    "a folder of save_to_disk",
    (
        "a folder that `save_to_disk` of Hugging Face's `datasets` wrote; extra `oodcli[parquet]`",
        "one set, or a data set with its parts",
    ),
    open_saved,
    opens=lambda place: place.holds(arrow.SPLITS, arrow.STATE),
    options=frozenset({"columns"}),
)
WEBDATASET = Reader(
    "webdataset",
    "a shard of a WebDataset",
    (
        "WebDataset: `.tar` with images and labels (`.cls`, `.txt`, `.json`) under one key; a "
        "folder, a pattern (`shard-{000000..000099}.tar`) or a `.txt` list of such files",
        "one set; or a data set with the parts that the shards are named after "
        "(`train-000000.tar`)",
    ),
    open_webdataset,
    suffixes=webdataset.SUFFIXES,
    opens=webdataset.opens,
    options=frozenset({"store"}),
    patterns=True,
    files=webdataset.files_of,
)
HDF5 = Reader(
    "hdf5",
    "an .h5 file of arrays",
    (
        "`.h5` or `.hdf5` with arrays called as in `.npz` files, or encoded images as bytes of any "
        "length; extra `oodcli[hdf5]`",
        "as `.npz`",
    ),
    open_hdf5,
    suffixes=hdf5.SUFFIXES,
    options=frozenset({"columns"}),
)
VOLUME = Reader(
    "volume",
    "a DICOM file or NIfTI volume",
    (
        "`.dcm`, `.nii` or `.nii.gz`; extra `oodcli[medical]`",
        "one set, an image for each frame or slice: `FILE.nii.gz[SLICE]`; single-frame files lie "
        "in folders, lists, tables, archives or shards as other images do",
    ),
    open_volume,
    suffixes=ENDINGS,
)
FOLDER = Reader(
    "folder",
    "a folder of images",
    (
        "a folder with `train/<class>/…` and `test/<class>/…` or `val/<class>/…`; a folder with "
        "`<class>/…`; any other folder, given as `--ood`",
        "a data set with classes; of one without parts, `ood train` holds out 20 % of every class "
        "for testing (`--test-fraction`), always the same; as `--ood`, all images below its folder "
        "`test`, else below `val`, else in all subfolders",
    ),
    open_folder,
    opens=lambda place: place.is_folder,
    walked=True,
)
# In the order in which they are asked.
OWN = (NPZ, NPY, PARQUET, SAVED, HDF5, WEBDATASET, LIST, TABLE, ARCHIVE, METADATA, VOLUME)
BUILT_IN = (*OWN, FOLDER)


@dataclass(frozen=True)
class ThirdParty:
    """What installed packages offer.

    Parameters
    ----------
    readers
        The readers that load.
    refused
        Why another cannot be used, by its name.
    """

    readers: tuple[Reader, ...] = ()
    refused: Mapping[str, str] = field(default_factory=dict)


@cache
def third_party() -> ThirdParty:
    """Load every reader that an installed package offers; one that fails stops no other."""
    found: list[Reader] = []
    refused: dict[str, str] = {}
    names = {reader.name for reader in BUILT_IN}
    for point in entry_points(group=GROUP):
        package = f"package {point.dist.name}" if point.dist else "a package of unknown name"
        try:
            reader = _loaded(point, package)
        except OodError as error:
            refused[point.name] = str(error)
            continue
        if reader.name in names:
            refused[point.name] = (
                f"{package} offers a reader {reader.name!r}, a name that is taken; the package "
                "must rename its own"
            )
        else:
            names.add(reader.name)
            found.append(reader)
    return ThirdParty(tuple(found), refused)


def _loaded(point: EntryPoint, package: str) -> Reader:
    with third_party_code(
        f"reader {point.name!r} of {package} does not load",
        cure="update the package, or remove it",
    ):
        reader = point.load()
    if not isinstance(reader, Reader):
        raise InvalidInputError(
            f"reader {point.name!r} of {package} is a {type(reader).__name__}, not a Reader of "
            "oodcli.data.reader; the package must offer one"
        )
    return reader


def readers() -> Iterator[Reader]:
    """Yield all readers in the order in which they are asked.

    Those of other packages are loaded when none before them has claimed a path.
    """
    yield from OWN
    yield from third_party().readers
    yield FOLDER


def reader_of(path: Path) -> Reader | None:
    """Return the reader that opens a path; None if there is none.

    Parameters
    ----------
    path
        A file, a folder, or a pattern.

    Raises
    ------
    InvalidInputError
        If a reader of another package fails.
    """
    place = Place(path)
    for reader in readers():
        if reader in BUILT_IN:
            claimed = reader.claims(place)
        else:
            with third_party_code(
                f"reader {reader.name!r} cannot say whether it opens {path}",
                cure="update its package, or remove it",
            ):
                claimed = reader.claims(place)
        if claimed:
            return reader
    return None


def is_there(path: Path) -> bool:
    """Return whether a path leads to something, or is a pattern that a reader takes."""
    if isinstance(path, RemotePath):
        return has_pattern(path) or path.exists()
    # Path.exists raises on names that are too long.
    return os.path.exists(path) or (has_pattern(path) and reader_of(path) is not None)  # noqa: PTH110


def is_known_suffix(name: str) -> bool:
    """Return whether a name ends as that of a file that some reader opens."""
    lower = name.lower()
    return any(lower.endswith(reader.suffixes) for reader in readers() if reader.suffixes)


def kinds() -> str:
    """Return what all readers open, as errors say it."""
    return ", ".join([FOLDER.kind, *(each.kind for each in readers() if each is not FOLDER)])


def no_reader(path: Path) -> InvalidInputError:
    """Return the error of a path that no reader opens."""
    if isinstance(path, RemotePath) and path.is_web and not has_pattern(path):
        files = ", ".join(each.kind for each in readers() if each.suffixes)
        return InvalidInputError(
            f"cannot read {path}: its name is not that of {files}; and a folder on a web server "
            "cannot be listed"
        )
    failed = "".join(f"; {reason}" for reason in third_party().refused.values())
    return InvalidInputError(f"{path} is none of: {kinds()}{failed}")


def open_path(
    path: Path,
    store: Store,
    *,
    name: str,
    spec: str,
    role: Role,
    columns: Columns | None = None,
    labels: Path | None = None,
    root: Path | None = None,
    window: Window | None = None,
) -> Dataset:
    """Open a path by its reader.

    Parameters
    ----------
    path
        A file, a folder, or a pattern.
    store
        For readers that store an index.
    name
        How to call the data set.
    spec
        What opens it again.
    role
        ``id`` wants images with classes; ``ood`` takes the OOD images.
    columns
        Which columns of a table have what.
    labels
        A file of labels.
    root
        Folder that paths in a list or table are relative to.
    window
        Which values of medical images are black and white.

    Raises
    ------
    InvalidInputError
        If no reader opens the path, or its reader does not take what was given.
    OodError
        As the reader says.
    """
    reader = reader_of(path)
    if reader is None:
        raise no_reader(path)
    given: dict[str, Any] = {"columns": columns, "labels": labels, "root": root}
    for option, value in given.items():
        if value is not None and option not in reader.options:
            takes = [each.kind for each in readers() if option in each.options]
            raise InvalidInputError(
                f"{option} of {name} do not fit {path}; they are for {' or '.join(takes)}"
            )
    given["store"] = store
    options = {option: value for option, value in given.items() if option in reader.options}
    if reader in BUILT_IN:
        return with_window(reader.open(path, name=name, spec=spec, role=role, **options), window)
    with third_party_code(
        f"reader {reader.name!r} cannot open {path}", cure="update its package, or remove it"
    ):
        opened = reader.open(path, name=name, spec=spec, role=role, **options)
    return with_window(opened, window)
