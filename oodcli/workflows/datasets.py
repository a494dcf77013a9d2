"""Data sets known by name: what there is, what is here, what is right, and how it looks."""

import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np

from oodcli.data import BENCHMARKS, DATASETS, KnownDataset, View, open_dataset, prepare
from oodcli.data.benchmarks import Benchmark, own_benchmark
from oodcli.data.dataset import Dataset, take
from oodcli.data.download import (
    JOBS,
    MissingFile,
    WantedFile,
    fetch,
    md5_of,
    part_of,
    wanted_files,
)
from oodcli.data.prepare import check_stored
from oodcli.data.registered import RegisteredDataset, forget, register, registered
from oodcli.data.sheet import COLUMNS, contact_sheet
from oodcli.data.splits import split
from oodcli.errors import InvalidInputError, MissingArtifactError, OodError, UnknownNameError
from oodcli.images import Part, evenly_spaced
from oodcli.progress import Progress, Silent
from oodcli.store import Store, replacing

DATASETS_SCHEMA = 1
VERIFY_SCHEMA = 1
SHEET_ROWS = 5


@dataclass(frozen=True)
class ListedFile:
    """A file to download.

    Parameters
    ----------
    file
        Its name.
    urls
        Where it is to be had.
    by_hand
        Where a person gets it, if not there.
    md5
        Its checksum, if one is published.
    bytes
        Its size; 0 where it is not known.
    present
        Whether it is in its place.
    """

    file: str
    urls: tuple[str, ...]
    by_hand: str
    md5: str | None
    bytes: int
    present: bool


@dataclass(frozen=True)
class ListedDataset:
    """A data set known by name.

    Parameters
    ----------
    name, title, role, licence
        As in the registry; ``role`` is ``own`` for a registered set.
    images
        Number of images in each part; empty for a registered set, which is not opened.
    download_bytes
        Size of its files; 0 where it is not known.
    disk_bytes
        How much of them is here.
    present
        Whether nothing has to be fetched.
    location
        Where a registered set lies; None for others.
    benchmarks
        Benchmarks that it belongs to.
    files
        What is to be fetched; none for a set that comes with the tool.
    """

    name: str
    title: str
    role: str
    licence: str
    images: Mapping[str, int]
    download_bytes: int
    disk_bytes: int
    present: bool
    location: str | None
    benchmarks: tuple[str, ...]
    files: tuple[ListedFile, ...]


@dataclass(frozen=True)
class ListedBenchmark:
    """A benchmark, and what it still lacks.

    Parameters
    ----------
    name, title, convention
        As in the registry.
    datasets
        Its data sets, in distribution first.
    missing
        Those that are not here.
    missing_bytes
        Size of what has to be fetched for it; 0 where it is not known.
    """

    name: str
    title: str
    convention: str
    datasets: tuple[str, ...]
    missing: tuple[str, ...]
    missing_bytes: int


@dataclass(frozen=True)
class Listing:
    """All that is known by name.

    Parameters
    ----------
    folder
        Where downloads are kept.
    datasets
        Data sets, those of the user's own last.
    benchmarks
        Benchmarks.
    """

    folder: Path
    datasets: tuple[ListedDataset, ...]
    benchmarks: tuple[ListedBenchmark, ...]

    def to_json(self) -> dict[str, Any]:
        """Return the versioned object that ``--format json`` prints."""
        return {
            "schema": DATASETS_SCHEMA,
            "folder": str(self.folder),
            "datasets": [asdict(entry) for entry in self.datasets],
            "benchmarks": [asdict(entry) for entry in self.benchmarks],
        }


def list_datasets(store: Store) -> Listing:
    """Return all data sets and benchmarks, and what of them is here.

    Parameters
    ----------
    store
        Where downloads are kept.

    Raises
    ------
    InvalidInputError
        If ``datasets.toml`` is not as it should be.
    """
    own = registered(store)
    known = [_listed(known, store, own) for known in DATASETS.values()]
    added = [
        ListedDataset(
            name=entry.name,
            title=str(entry.path),
            role="own",
            licence="",
            images={},
            download_bytes=0,
            disk_bytes=0,
            present=entry.path.exists(),
            location=str(entry.path),
            benchmarks=(),
            files=(),
        )
        for entry in own.values()
        if entry.name not in DATASETS
    ]
    here = {entry.name for entry in known if entry.present}
    return Listing(
        store.datasets,
        (*known, *added),
        tuple(_listed_benchmark(benchmark, here, store) for benchmark in BENCHMARKS.values()),
    )


def _listed(
    known: KnownDataset, store: Store, own: Mapping[str, RegisteredDataset]
) -> ListedDataset:
    places = [(source, known.place(store, source)) for source in known.sources]
    files = tuple(
        ListedFile(
            file=source.file,
            urls=source.urls,
            by_hand=source.by_hand,
            md5=source.md5,
            bytes=source.size_bytes,
            present=place.is_file(),
        )
        for source, place in places
    )
    elsewhere = own.get(known.name) or own.get(known.home)
    return ListedDataset(
        name=known.name,
        title=known.title,
        role=known.role,
        licence=known.licence,
        images=dict(known.counts),
        download_bytes=known.download_bytes,
        disk_bytes=sum(place.stat().st_size for _, place in places if place.is_file()),
        present=known.is_present(store),
        location=str(elsewhere.path) if elsewhere else None,
        benchmarks=tuple(name for name, b in BENCHMARKS.items() if known.name in b.members),
        files=files,
    )


def _listed_benchmark(benchmark: Benchmark, here: set[str], store: Store) -> ListedBenchmark:
    missing = tuple(name for name in benchmark.members if name not in here)
    # Sets that share an archive need it once.
    sizes = {
        file.target: file.source.size_bytes
        for name in missing
        for file in wanted_files(name, store)
        if not file.target.is_file()
    }
    return ListedBenchmark(
        name=benchmark.name,
        title=benchmark.title,
        convention=benchmark.convention,
        datasets=benchmark.members,
        missing=missing,
        missing_bytes=sum(sizes.values()),
    )


@dataclass(frozen=True)
class Downloads:
    """What a download brought.

    Parameters
    ----------
    folders
        Folders of the data sets that are complete now, by name.
    missing
        Files that could not be had.
    """

    folders: Mapping[str, Path]
    missing: tuple[MissingFile, ...]


def download_datasets(
    store: Store,
    names: Sequence[str],
    *,
    benchmark: str | None = None,
    origin: str | None = None,
    jobs: int = JOBS,
    progress: Progress | None = None,
) -> Downloads:
    """Bring data sets into the store; what cannot be had stops nothing else.

    Parameters
    ----------
    store
        Where they are kept.
    names
        Names of data sets.
    benchmark
        A benchmark whose data sets are wanted too.
    origin
        A folder of files fetched by hand, or the address of a mirror.
    jobs
        The most files to fetch side by side.
    progress
        Told of the bytes received.

    Raises
    ------
    UnknownNameError
        If no data set, or no benchmark, has the name.
    InvalidInputError
        If nothing is asked for, or ``origin`` is neither a folder nor an address.
    MissingArtifactError
        If ``origin`` is a folder that is not there.
    """
    progress = progress or Silent()
    own = registered(store)
    wanted = list(dict.fromkeys((*names, *_members(benchmark))))
    if not wanted:
        raise InvalidInputError(
            "nothing is named; name data sets (ood datasets list shows them) or --benchmark NAME"
        )
    files: list[WantedFile] = []
    for name in wanted:
        if name in own:
            progress.note(f"{name} is your own, at {own[name].path}: nothing to download")
            continue
        if name in BENCHMARKS and name not in DATASETS:
            raise InvalidInputError(f"{name} is a benchmark; write --benchmark {name}")
        found = wanted_files(name, store)
        if not found:
            progress.note(f"{name} comes with ood: nothing to download")
        elif DATASETS[name].is_present(store) and not all(f.target.is_file() for f in found):
            # Not the archives, but what they unpack to, or a folder that datasets.toml names.
            progress.note(f"{name} is at {DATASETS[name].folder(store)}: nothing to download")
        else:
            files += found
    missing = fetch(files, store, origin=origin, jobs=jobs, progress=progress)
    incomplete = {entry.dataset for entry in missing}
    return Downloads(
        {file.dataset: file.target.parent for file in files if file.dataset not in incomplete},
        missing,
    )


def _members(benchmark: str | None) -> tuple[str, ...]:
    if benchmark is None:
        return ()
    if benchmark not in BENCHMARKS:
        raise UnknownNameError.among("benchmark", benchmark, BENCHMARKS)
    return BENCHMARKS[benchmark].members


def path_of(store: Store, name: str) -> Path:
    """Return where the files of a data set are, or belong.

    Parameters
    ----------
    store
        Where downloads are kept.
    name
        Name of the data set.

    Raises
    ------
    UnknownNameError
        If no data set has the name.
    InvalidInputError
        If it comes with the tool.
    """
    own = registered(store)
    if name in own:
        return own[name].path
    known = DATASETS[_known(name, own)]
    if not known.sources:
        raise InvalidInputError(f"{name} comes with ood and has no folder; use it by its name")
    return known.folder(store)


def _known(name: str, own: Mapping[str, RegisteredDataset]) -> str:
    """Return a name that stands for a data set."""
    if name not in DATASETS and name not in own:
        raise UnknownNameError.among("data set", name, (*DATASETS, *own))
    return name


def add_dataset(
    store: Store,
    name: str,
    path: Path,
    *,
    labels: Path | None = None,
    root: Path | None = None,
) -> Dataset:
    """Register a folder or file of the user's under a name, or as the copy of a known set.

    Parameters
    ----------
    store
        Holds ``datasets.toml``.
    name
        The name.
    path
        A folder, an image list, an ``.npz`` or an ``.npy`` file.
    labels
        For an ``.npy`` file, an array of classes; for a folder, an image list of what is in it.
    root
        For an image list, the folder from which its paths start.

    Returns
    -------
    dataset
        The data set, opened.

    Raises
    ------
    InvalidInputError
        If the name is that of a benchmark or of a set that comes with the tool, or cannot be one,
        or the images cannot be used.
    MissingArtifactError
        If a path leads to nothing.
    """
    known = DATASETS.get(name)
    if known is not None and not known.sources:
        raise InvalidInputError(f"{name!r} comes with ood; give yours another name")
    if known is None and name in BENCHMARKS:
        raise InvalidInputError(f"{name!r} is the name of a benchmark; give yours another")
    for given in (path, labels, root):
        if given is not None and not given.exists():
            raise MissingArtifactError(f"no folder or file {given}; check the path")
    if labels is not None and path.is_dir():
        path, labels, root = labels, None, path
    entry = RegisteredDataset(
        name,
        path.absolute(),
        None if labels is None else labels.absolute(),
        None if root is None else root.absolute(),
    )
    before = registered(store).get(name)
    register(entry, store)
    try:
        return _opened(name, store)
    except OodError:
        # What cannot be opened is not registered.
        if before is None:
            forget(name, store)
        else:
            register(before, store)
        raise


def unlike_published(dataset: Dataset) -> str | None:
    """Say that a copy of a known set has not the published number of images.

    Parameters
    ----------
    dataset
        The copy, under the name of the set.

    Returns
    -------
    remark
        None if the numbers agree, or no known set has the name.
    """
    known = DATASETS.get(dataset.name)
    if known is None:
        return None
    found = {part: len(dataset.parts[part]) for part in known.counts if part in dataset.parts}
    if found == dict(known.counts):
        return None
    here = ", ".join(f"{part} {n:,}" for part, n in found.items()) or "none of its parts"
    published = ", ".join(f"{part} {n:,}" for part, n in known.counts.items())
    return (
        f"{dataset.name} has {here} images here and {published} as published: figures on it are "
        "not those of papers"
    )


def remove_dataset(store: Store, name: str) -> Path:
    """Forget a registered data set; its images stay.

    Parameters
    ----------
    store
        Holds ``datasets.toml``.
    name
        Its name.

    Returns
    -------
    path
        Where the images are.

    Raises
    ------
    UnknownNameError
        If none has the name.
    """
    return forget(name, store).path


def _opened(name: str, store: Store) -> Dataset:
    """Open a data set with its classes, if it has any."""
    known = DATASETS.get(name)
    if known is not None:
        return open_dataset(name, store, role=known.role)
    try:
        return open_dataset(name, store, role="id")
    except InvalidInputError:
        return open_dataset(name, store, role="ood")


@dataclass(frozen=True)
class Check:
    """What was found of one thing.

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
    """What was found of everything that is there.

    Parameters
    ----------
    checks
        One entry a thing.
    """

    checks: tuple[Check, ...]

    @property
    def is_right(self) -> bool:
        """Tell whether nothing is wrong or missing."""
        return all(check.state == "ok" for check in self.checks)

    def to_json(self) -> dict[str, Any]:
        """Return the versioned object that ``--format json`` prints."""
        return {"schema": VERIFY_SCHEMA, "checks": [asdict(check) for check in self.checks]}


def verify_datasets(
    store: Store, name: str | None = None, *, progress: Progress | None = None
) -> Verification:
    """Count and hash again what is there.

    Parameters
    ----------
    store
        What to look through.
    name
        A data set; if None, all that are registered or of which a file is there.
    progress
        Told of the bytes read.

    Raises
    ------
    UnknownNameError
        If no data set has the name.
    """
    progress = progress or Silent()
    own = registered(store)
    names = [_known(name, own)] if name else [n for n in (*DATASETS, *own) if _is_begun(n, store)]
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
        parts = _opened(name, store).parts
    except OodError as error:
        yield Check(name, "images", "wrong", str(error))
        return
    counts = DATASETS[name].counts if name in DATASETS else {}
    for part in dict.fromkeys((*counts, *parts)):
        found = len(parts[part]) if part in parts else 0
        wanted = counts.get(part, found)
        text = f"{found:,} images"
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
            else f"{images.rows:,} decoded images in {images.files} files",
        )


def draw_sheet(
    store: Store,
    spec: str,
    output: Path,
    *,
    view: View | None = None,
    benchmark: str | None = None,
) -> Path:
    """Draw images of a data set as a benchmark shows them to a network.

    Parameters
    ----------
    store
        Holds what was downloaded.
    spec
        A name, or what else `open_dataset` takes.
    output
        The picture to write, PNG.
    view
        How the images are shown; plain if None.
    benchmark
        Whose size and preprocessing to use; the first that has the data set if None.

    Raises
    ------
    OodError
        If the data set or the benchmark is unknown or cannot be opened, or the file is no PNG.
    """
    view = view or View()
    if output.suffix.lower() != ".png":
        raise InvalidInputError(f"--output {output} does not end in .png; name a .png file")
    if benchmark is not None and benchmark not in BENCHMARKS:
        raise UnknownNameError.among("benchmark", benchmark, BENCHMARKS)
    chosen = benchmark or next((n for n, b in BENCHMARKS.items() if spec in b.members), None)
    shape = BENCHMARKS[chosen] if chosen else own_benchmark(grey=False)
    dataset = _opened(spec, store)
    part_name, part = _tested(dataset, spec, shape, store)
    rows = evenly_spaced(len(part), COLUMNS * SHEET_ROWS)
    with tempfile.TemporaryDirectory() as folder:
        # What is decoded for a picture is of no use to anyone later.
        images = prepare(
            take(part, rows),
            Store(Path(folder)),
            name=dataset.name,
            size=shape.size,
            resize=shape.resize,
            skip_unreadable=True,
        )
        shown = rows[np.concatenate([shard.indices for shard in images.shards])]
        pixels = view.apply(images.pixels(), shown)
    if images.labels is None:
        captions = [f"{row:,}" for row in shown]
    else:
        captions = [dataset.class_names[label] for label in images.labels]
    how = f"as in {chosen}" if chosen else "as for data of your own"
    if view.kind == "jigsaw":
        how += f", jigsaw of {view.tiles}x{view.tiles} tiles, seed {view.seed}"
    title = (
        f"{dataset.name} {part_name}: {len(shown)} of {len(part):,} images",
        f"{shape.size[0]}x{shape.size[1]} pixels (resize: {shape.resize}), {how}",
    )
    sheet = contact_sheet(pixels, captions, title=title)
    with replacing(output, cure="name a file elsewhere: --output FILE") as stream:
        sheet.save(stream, "PNG")
    return output


def _tested(dataset: Dataset, spec: str, benchmark: Benchmark, store: Store) -> tuple[str, Part]:
    """Return the images that a benchmark tests on, and how they are called."""
    is_id = spec == benchmark.id_set
    key = benchmark.id_test_list if is_id else benchmark.lists.get(spec, "")
    if key:
        return f"({key})", split(dataset, key, store).part
    name = dataset.test_name if len(dataset.parts) > 1 else next(iter(dataset.parts))
    return name, dataset.parts[name]
