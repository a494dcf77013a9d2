"""Data sets known by name: download, register, remove, show."""

import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from oodcli.data import BENCHMARKS, DATASETS, View, prepare
from oodcli.data.benchmarks import Benchmark, own_benchmark
from oodcli.data.columns import Columns, divided_parts, without_columns
from oodcli.data.dataset import Dataset, take
from oodcli.data.download import JOBS, MissingFile, WantedFile, fetch, wanted_files
from oodcli.data.formats import openood
from oodcli.data.formats.openood import OpenOODTree
from oodcli.data.opening import absolute_parts, check_dataset_name, open_in_any_role
from oodcli.data.own_names import RegisteredDataset, forget, register, registered
from oodcli.data.readers import is_there
from oodcli.data.sheet import COLUMNS, contact_sheet
from oodcli.data.splits import split
from oodcli.errors import InvalidInputError, MissingArtifactError, OodError, UnknownNameError
from oodcli.images import Part, evenly_spaced
from oodcli.progress import SILENT, Progress
from oodcli.remote.files import RemotePath, path_of, use_cache
from oodcli.store.store import Store, atomic_write
from oodcli.windows import window_of

SHEET_ROWS = 5


@dataclass(frozen=True)
class Downloads:
    """The result of a download.

    Parameters
    ----------
    folders
        Folders of the completely downloaded data sets, by name.
    missing
        Files that could not be downloaded.
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
    progress: Progress = SILENT,
) -> Downloads:
    """Download data sets into the store; a failed file does not stop the others.

    Parameters
    ----------
    store
        The store.
    names
        Names of data sets.
    benchmark
        A benchmark whose data sets are downloaded as well.
    origin
        A folder of files that were downloaded manually, or the URL of a mirror.
    jobs
        Maximum number of parallel downloads.
    progress
        Receives the number of bytes received.

    Raises
    ------
    UnknownNameError
        If a data set or the benchmark does not exist.
    InvalidInputError
        If no data set is given, or ``origin`` is neither a folder nor a URL.
    MissingArtifactError
        If ``origin`` is a folder that does not exist.
    """
    own = registered(store)
    wanted = list(dict.fromkeys((*names, *_members(benchmark))))
    if not wanted:
        raise InvalidInputError(
            "no data set is given; name data sets (ood datasets list shows them) or --benchmark "
            "NAME"
        )
    files: list[WantedFile] = []
    for name in wanted:
        if name in own:
            progress.note(f"{name} is your own data set, at {own[name].path}: nothing to download")
            continue
        if name in BENCHMARKS and name not in DATASETS:
            raise InvalidInputError(f"{name} is a benchmark; write --benchmark {name}")
        found = wanted_files(name, store)
        if not found:
            progress.note(f"{name} comes with ood: nothing to download")
        elif DATASETS[name].is_present(store) and not all(f.target.is_file() for f in found):
            # The unpacked archives are present, or a folder given in datasets.toml.
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


def dataset_path(store: Store, name: str) -> Path:
    """Return the path of a data set's files, which need not exist yet.

    Parameters
    ----------
    store
        The store, which contains downloads.
    name
        Name of the data set.

    Raises
    ------
    UnknownNameError
        If no data set has the name.
    InvalidInputError
        If the data set comes with ood.
    """
    own = registered(store)
    if name in own:
        return own[name].path
    check_dataset_name(name, store)
    known = DATASETS[name]
    if not known.sources:
        raise InvalidInputError(f"{name} comes with ood and has no folder; use it by its name")
    return known.folder(store)


def add_dataset(
    store: Store,
    name: str,
    path: Path,
    *,
    labels: Path | None = None,
    root: Path | None = None,
    columns: Columns | None = None,
) -> Dataset:
    """Register a folder or file of the user under a name, or as a local copy of a known set.

    Parameters
    ----------
    store
        The store, whose ``datasets.toml`` is changed.
    name
        The name; ``openood`` for the folder ``data`` of OpenOOD, with all its sets and lists.
    path
        Anything that a reader opens, with columns behind it or not; or ``train=PATH,test=PATH``.
    labels
        For an ``.npy`` file, an array of class indices; for a folder, a list or table of its files.
    root
        For a list or table, the folder that its paths are relative to.
    columns
        For a table, which columns have what.

    Returns
    -------
    dataset
        The opened data set.

    Raises
    ------
    InvalidInputError
        If the name is that of a benchmark or of a set that comes with ood, or is not valid, or the
        images cannot be used.
    MissingArtifactError
        If a path does not exist.
    """
    use_cache(store.remote)
    path = path_of(path)
    labels, root = (None if each is None else path_of(each) for each in (labels, root))
    known = DATASETS.get(name)
    if known is not None and not known.sources:
        raise InvalidInputError(f"{name!r} comes with ood; give yours another name")
    if known is None and name in BENCHMARKS:
        raise InvalidInputError(f"{name!r} is the name of a benchmark; give yours another")
    parts = None if path.exists() else divided_parts(str(path))
    if parts is None and columns is None and not is_there(path):
        text, columns = without_columns(str(path))
        path = path_of(text)
    for given in (None if parts else path, labels, root):
        if given is not None and not is_there(given):
            raise MissingArtifactError(f"no folder or file {given}; check the path")
    if parts is not None and (known is not None or columns is not None):
        raise InvalidInputError(
            f"{path} are parts that lie apart; give them a name of your own, and name columns "
            "behind each: train=FILE.csv:label=NAME"
        )
    if name == openood.NAME:
        if isinstance(path, RemotePath):
            raise InvalidInputError(f"{path} is remote; OpenOOD's folder is read from a disk alone")
        return _add_tree(store, path)
    if labels is not None and path.is_dir():
        path, labels, root = labels, None, path
    entry = RegisteredDataset(
        name,
        path.absolute() if parts is None else Path(absolute_parts(parts[1])),
        None if labels is None else labels.absolute(),
        None if root is None else root.absolute(),
        columns,
    )
    before = registered(store).get(name)
    register(entry, store)
    try:
        return open_in_any_role(name, store)
    except OodError:
        # A data set that cannot be opened is not registered.
        if before is None:
            forget(name, store)
        else:
            register(before, store)
        raise


def _add_tree(store: Store, path: Path) -> Dataset:
    """Register OpenOOD's folder, which holds many sets."""
    tree = OpenOODTree(path.absolute())
    layout = tree.found()
    register(RegisteredDataset(openood.NAME, tree.root), store)
    return Dataset(openood.NAME, {}, (), str(tree.root), openood.NAME, layout=layout)


def published_count_warning(dataset: Dataset) -> str | None:
    """Return a warning if a copy of a known set differs from its published numbers of images.

    Parameters
    ----------
    dataset
        The copy, under the name of the known set.

    Returns
    -------
    warning
        None if the numbers agree, or no known set has the name.
    """
    known = DATASETS.get(dataset.name)
    if known is None:
        return None
    found = {part: len(dataset.parts[part]) for part in known.counts if part in dataset.parts}
    if found and all(n == known.counts[part] for part, n in found.items()):
        return None
    here = ", ".join(f"{part} {n:,}" for part, n in found.items()) or "none of its parts"
    published = ", ".join(f"{part} {n:,}" for part, n in known.counts.items())
    return (
        f"{dataset.name} has {here} images here and {published} as published: "
        "results on it are not comparable with published ones"
    )


def remove_dataset(store: Store, name: str) -> Path:
    """Unregister a data set; its images are not removed.

    Parameters
    ----------
    store
        The store, whose ``datasets.toml`` is changed.
    name
        Name of the data set.

    Returns
    -------
    path
        Path of the images.

    Raises
    ------
    UnknownNameError
        If no registered data set has the name.
    """
    return forget(name, store).path


def write_contact_sheet(
    store: Store,
    spec: str,
    output: Path,
    *,
    view: View | None = None,
    benchmark: str | None = None,
    window: str | None = None,
) -> Path:
    """Write a contact sheet of a data set's images, preprocessed as for a benchmark.

    Parameters
    ----------
    store
        The store, which contains downloads.
    spec
        The data set, as for `open_dataset`.
    output
        The PNG file to write.
    view
        Transformation of the images; none if None.
    benchmark
        Benchmark whose size and preprocessing are used; if None, the first that has the data set.
    window
        Which values of medical images are black and white; see :mod:`oodcli.windows`.

    Raises
    ------
    OodError
        If the data set or the benchmark is unknown or cannot be opened, or ``output`` does not end
        in ``.png``.
    """
    view = view or View()
    if output.suffix.lower() != ".png":
        raise InvalidInputError(f"--output {output} does not end in .png; name a .png file")
    if benchmark is not None and benchmark not in BENCHMARKS:
        raise UnknownNameError.among("benchmark", benchmark, BENCHMARKS)
    chosen = benchmark or next((n for n, b in BENCHMARKS.items() if spec in b.members), None)
    shape = BENCHMARKS[chosen] if chosen else own_benchmark(grey=False)
    dataset = open_in_any_role(spec, store, window_of(window))
    part_name, part = _test_part(dataset, spec, shape, store)
    rows = evenly_spaced(len(part), COLUMNS * SHEET_ROWS)
    with tempfile.TemporaryDirectory() as folder:
        # The pixels decoded for a picture need not be stored.
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
    how = f"as in {chosen}" if chosen else "as for your own data"
    if view.kind == "jigsaw":
        how += f", jigsaw of {view.tiles}x{view.tiles} tiles, seed {view.seed}"
    title = (
        f"{dataset.name} {part_name}: {len(shown)} of {len(part):,} images",
        f"{shape.size[0]}x{shape.size[1]} pixels (resize: {shape.resize}), {how}",
    )
    sheet = contact_sheet(pixels, captions, title=title)
    with atomic_write(output, cure="choose another file: --output FILE") as stream:
        sheet.save(stream, "PNG")
    return output


def _test_part(dataset: Dataset, spec: str, benchmark: Benchmark, store: Store) -> tuple[str, Part]:
    """Return the name and the images of the part that a benchmark tests on."""
    is_id = spec == benchmark.id_set
    key = benchmark.id_test_list if is_id else benchmark.lists.get(spec, "")
    if key:
        return f"({key})", split(dataset, key, store).part
    name = dataset.test_name if len(dataset.parts) > 1 else next(iter(dataset.parts))
    return name, dataset.parts[name]
