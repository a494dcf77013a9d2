"""Images per second from photographs to pixels of one size, each reader against the usual way.

    OMP_NUM_THREADS=1 python tests/bench/formats.py FOLDER… [--readers READER…] [--images N]
        [--size S] [--workers W] [--repeat N]

``FOLDER`` has photographs in folders of classes. The same JPEG files are written as a folder, as
archives, as a table of paths, as Parquet and as a folder of ``save_to_disk`` by Hugging Face's
``datasets``, as shards by ``webdataset``, and as bytes in HDF5. Both sides decode in as many worker
processes (0: in this one), which run before the time does, and resize to ``S`` x ``S`` with
Pillow's antialiased bilinear filter. They take turns in one process; rates, CPU time per image (of
this process and its workers) and the ratio are medians over the turns, for a machine that does
other things beside. Peak memory: ``tests/bench/memory.py``.
"""

import argparse
import csv
import io
import itertools
import multiprocessing
import os
import statistics
import tarfile
import tempfile
import time
import zipfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import datasets
import h5py
import numpy as np
import torch
import webdataset
from PIL import Image
from torch.utils.data import DataLoader
from torchvision.datasets import ImageFolder
from torchvision.transforms import v2

from oodcli.data.decoding.prepare import Resizing
from oodcli.data.decoding.workers import resized
from oodcli.data.opening import open_dataset
from oodcli.images import ImageSource
from oodcli.pools import Pools, open_pools
from oodcli.store.store import Store

BATCH = 64
SHARD_IMAGES = 250


def transform(size: int) -> Callable[[Any], torch.Tensor]:
    """Return what torchvision users write."""
    return v2.Compose([v2.Resize((size, size)), v2.PILToTensor()])


class OfHub(torch.utils.data.Dataset):
    """Rows of a data set of Hugging Face, transformed."""

    def __init__(self, rows: Any, size: int) -> None:
        self.rows, self.change = rows, transform(size)

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, row: int) -> torch.Tensor:
        return self.change(self.rows[row]["image"].convert("RGB"))


def first(pair: tuple[torch.Tensor, Any]) -> torch.Tensor:
    """Return the image of a sample."""
    return pair[0]


class OfTable(torch.utils.data.Dataset):
    """Images that a table names, transformed."""

    def __init__(self, path: Path, size: int) -> None:
        with path.open(newline="") as stream:
            self.files = [path.parent / row["path"] for row in csv.DictReader(stream)]
        self.change = transform(size)

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, row: int) -> torch.Tensor:
        with Image.open(self.files[row]) as image:
            return self.change(image.convert("RGB"))


class OfHdf5(torch.utils.data.Dataset):
    """Image files in HDF5, transformed; each worker opens the file once."""

    def __init__(self, path: Path, size: int) -> None:
        self.path, self.change, self.images = path, transform(size), None
        with h5py.File(path, locking=False) as file:
            self.count = len(file["images"])

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, row: int) -> torch.Tensor:
        if self.images is None:
            # ``oodcli`` takes no locks, and one process cannot do both with one file.
            self.images = h5py.File(self.path, locking=False)["images"]
        with Image.open(io.BytesIO(self.images[row])) as image:
            return self.change(image.convert("RGB"))


def write_folder(files: list[Path], path: Path) -> None:
    """Write folders of classes."""
    for row, file in enumerate(files):
        target = path / file.parent.name / f"{row:05d}.jpg"
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(file.read_bytes())


def write_tar(_files: list[Path], path: Path) -> None:
    """Write an archive of the folder."""
    with tarfile.open(path, "w") as archive:
        archive.add(path.parent / "folder", ".")


def write_zip(_files: list[Path], path: Path) -> None:
    """Write an archive of the folder, whose files are not compressed again."""
    folder = path.parent / "folder"
    with zipfile.ZipFile(path, "w") as archive:
        for file in sorted(folder.glob("*/*")):
            archive.write(file, file.relative_to(folder))


def write_table(_files: list[Path], path: Path) -> None:
    """Write a table of the files of the folder."""
    files = sorted((path.parent / "folder").glob("*/*"))
    with path.open("w", newline="") as stream:
        rows = [[file.relative_to(path.parent), file.parent.name] for file in files]
        csv.writer(stream).writerows([["path", "label"], *rows])


def of_hub(files: list[Path]) -> datasets.Dataset:
    """Return the photographs as a data set of Hugging Face."""
    classes = sorted({file.parent.name for file in files})
    features = {"image": datasets.Image(), "label": datasets.ClassLabel(names=classes)}
    images = [{"bytes": file.read_bytes(), "path": file.name} for file in files]
    labels = [file.parent.name for file in files]
    return datasets.Dataset.from_dict(
        {"image": images, "label": labels}, features=datasets.Features(features)
    )


def write_parquet(files: list[Path], path: Path) -> None:
    """Write one Parquet file in row groups of 100."""
    of_hub(files).to_parquet(str(path), batch_size=100)


def write_saved(files: list[Path], path: Path) -> None:
    """Write a folder of ``save_to_disk``."""
    of_hub(files).save_to_disk(str(path))


def write_webdataset(files: list[Path], path: Path) -> None:
    """Write shards of images and labels."""
    path.mkdir()
    classes = sorted({file.parent.name for file in files})
    with webdataset.ShardWriter(
        str(path / "shard-%06d.tar"), maxcount=SHARD_IMAGES, verbose=0
    ) as writer:
        for row, file in enumerate(files):
            label = classes.index(file.parent.name)
            writer.write({"__key__": f"{row:05d}", "jpg": file.read_bytes(), "cls": label})


def write_hdf5(files: list[Path], path: Path) -> None:
    """Write the bytes of the files as an array of bytes of any length."""
    with h5py.File(path, "w") as file:
        images = file.create_dataset("images", (len(files),), h5py.vlen_dtype(np.uint8))
        for row, each in enumerate(files):
            images[row] = np.frombuffer(each.read_bytes(), np.uint8)


READERS: dict[str, tuple[str, Callable[[list[Path], Path], None]]] = {
    "folder": ("folder", write_folder),
    "tar": ("images.tar", write_tar),
    "zip": ("images.zip", write_zip),
    "csv": ("rows.csv", write_table),
    "parquet": ("rows.parquet", write_parquet),
    "save_to_disk": ("saved", write_saved),
    "webdataset": ("shards", write_webdataset),
    "hdf5": ("images.h5", write_hdf5),
}


def theirs(name: str, path: Path, size: int, cache: Path) -> torch.utils.data.Dataset:
    """Open a form as the field does; archives have no way of their own and take that of folders."""
    if name == "parquet":
        rows = datasets.load_dataset(
            "parquet", data_files=str(path), split="train", cache_dir=str(cache)
        )
        return OfHub(rows, size)
    if name == "save_to_disk":
        return OfHub(datasets.load_from_disk(str(path)), size)
    if name == "webdataset":
        urls = sorted(str(shard) for shard in path.glob("*.tar"))
        whole = webdataset.WebDataset(urls, shardshuffle=False).decode("pilrgb")
        return whole.to_tuple("jpg").map(first).map(transform(size))
    if name == "csv":
        return OfTable(path, size)
    if name == "hdf5":
        return OfHdf5(path, size)
    root = path if name == "folder" else path.parent / "folder"
    return ImageFolder(str(root), transform=transform(size))


def loaded(dataset: torch.utils.data.Dataset, workers: int) -> Callable[[], int]:
    """Return a function that reads all images by a DataLoader, whose workers go on running."""
    loader = DataLoader(
        dataset, BATCH, num_workers=workers, persistent_workers=workers > 0,
        multiprocessing_context="spawn" if workers else None,
    )  # fmt: skip

    def read() -> int:
        return sum(len(batch[0] if isinstance(batch, list) else batch) for batch in loader)

    return read


def cpu_seconds() -> float:
    """Return the CPU time of this process, of its running children, and of those that ended."""
    ticks = 0
    for process in multiprocessing.active_children():
        fields = Path(f"/proc/{process.pid}/stat").read_text().rpartition(")")[2].split()
        ticks += int(fields[11]) + int(fields[12])
    return sum(os.times()[:4]) + ticks / os.sysconf("SC_CLK_TCK")


@dataclass(frozen=True)
class Turn:
    """One reading of all images: wall-clock and CPU seconds."""

    wall: float
    cpu: float


def timed(read: Callable[[], int]) -> Turn:
    """Time one reading."""
    wall, cpu = time.perf_counter(), cpu_seconds()
    read()
    return Turn(time.perf_counter() - wall, cpu_seconds() - cpu)


def alternating(
    turns: int, ours: Callable[[], int], other: Callable[[], int]
) -> Iterator[tuple[Turn, Turn]]:
    """Yield both sides of each turn; who begins takes turns too."""
    for turn in range(turns):
        if turn % 2:
            mine, usual = timed(ours), timed(other)
        else:
            usual, mine = timed(other), timed(ours)
        yield mine, usual


def reading(source: ImageSource, pools: Pools, size: int) -> Callable[[], int]:
    """Return a function that reads all images by this package."""
    resizing = Resizing((size, size))

    def read() -> int:
        if not pools.workers:
            return sum(1 for _ in map(resizing.apply, source.read(0, len(source))))
        pools.processes()
        return sum(1 for _ in resized(pools, source, 0, len(source), resizing))

    return read


def line_of(name: str, turns: Sequence[tuple[Turn, Turn]], images: int) -> str:
    """Return the medians of a reader in one line."""

    def median(of: Callable[[Turn, Turn], float]) -> float:
        return statistics.median(of(*turn) for turn in turns)

    ratios = [usual.wall / mine.wall for mine, usual in turns]
    return (
        f"{name:13s} ours {median(lambda m, _: images / m.wall):6.0f} images/s "
        f"{median(lambda m, _: 1000 * m.cpu / images):5.2f} CPU ms, "
        f"field {median(lambda _, u: images / u.wall):6.0f} images/s "
        f"{median(lambda _, u: 1000 * u.cpu / images):5.2f} CPU ms, "
        f"ratio {statistics.median(ratios):.2f} ({min(ratios):.2f} to {max(ratios):.2f}), "
        f"of CPU {median(lambda m, u: u.cpu / m.cpu):.2f}"
    )


def main() -> None:
    """Print the rates of both sides, and how often as fast ours is."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folders", type=Path, nargs="+")
    parser.add_argument("--readers", nargs="+", choices=READERS, default=list(READERS))
    parser.add_argument("--images", type=int, default=2000)
    parser.add_argument("--size", type=int, default=224)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--repeat", type=int, default=5)
    options = parser.parse_args()
    torch.set_num_threads(1)
    datasets.disable_progress_bars()
    found = [file for folder in options.folders for file in sorted(folder.glob("*/*"))]
    files = list(itertools.islice(itertools.cycle(found), options.images))
    with tempfile.TemporaryDirectory() as work, open_pools() as pools:
        root = Path(work)
        for name in dict.fromkeys(["folder", *options.readers]):  # some are of the folder's files
            where, write = READERS[name]
            write(files, root / where)
        store = Store(root / "store")
        pools.resize(options.workers)
        for name in options.readers:
            path = root / READERS[name][0]
            source = open_dataset(str(path), store, role="ood").ood_part.source
            ours = reading(source, pools, options.size)
            other = loaded(theirs(name, path, options.size, root / "cache"), options.workers)
            assert ours() == other() == len(files)  # and the workers are warm
            turns = list(alternating(options.repeat, ours, other))
            print(line_of(name, turns, len(files)), flush=True)  # noqa: T201 - the result


if __name__ == "__main__":
    main()
