"""The catalogue: data sets and benchmarks known by name, and which are in the store."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from oodcli.data.benchmarks import BENCHMARKS, Benchmark
from oodcli.data.download import wanted_files
from oodcli.data.known import KnownDataset
from oodcli.data.opening import is_present
from oodcli.data.own_names import RegisteredDataset, registered
from oodcli.data.registry import DATASETS
from oodcli.records import as_json
from oodcli.store.store import Store

DATASETS_SCHEMA = 1


@dataclass(frozen=True)
class ListedFile:
    """A file to download.

    Parameters
    ----------
    file
        Its name.
    urls
        Addresses of the file.
    by_hand
        Where to download it by hand, if it has no address.
    md5
        Its checksum, if one is published.
    bytes
        Its size; 0 where it is not known.
    present
        Whether it is downloaded.
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
        Size of its files on disk.
    present
        Whether nothing has to be downloaded.
    location
        Path of a registered set; None for others.
    benchmarks
        Benchmarks that it belongs to.
    files
        Files to download; empty for a set that comes with the package.
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
    """A benchmark and its missing data sets.

    Parameters
    ----------
    name, title, convention
        As in the registry.
    datasets
        Its data sets, in distribution first.
    missing
        Data sets that are not downloaded.
    missing_bytes
        Size of the missing downloads; 0 where it is not known.
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
        Folder of the downloads.
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
        return {"schema": DATASETS_SCHEMA, **as_json(self)}


def list_datasets(store: Store) -> Listing:
    """Return all data sets and benchmarks, and which are in the store.

    Parameters
    ----------
    store
        Where downloads are stored.

    Raises
    ------
    InvalidInputError
        If ``datasets.toml`` is invalid.
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
            present=is_present(entry.path),
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
