"""Images per second from photographs to pixels of one size, each reader against the usual way.

    python tests/bench/formats.py FOLDER… [--images N] [--size S] [--workers W] [--repeat N]

``FOLDER`` has photographs in folders of classes. The same files are written as a folder, as
Parquet and as a folder of ``save_to_disk`` by Hugging Face's ``datasets``, as shards by
``webdataset``, and as an archive. Both sides decode in as many worker processes (0: in this one),
which run before the time does, and resize to ``S`` x ``S`` with Pillow's antialiased bilinear
filter. They take turns in one process, and the ratio is the median over the turns, for a machine
that does other things beside.
"""

import argparse
import itertools
import statistics
import tarfile
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import torch
import webdataset
from torch.utils.data import DataLoader
from torchvision.datasets import ImageFolder
from torchvision.transforms import v2

from oodcli.data.decoding.prepare import Resizing
from oodcli.data.decoding.workers import resized
from oodcli.data.opening import open_dataset
from oodcli.pools import open_pools
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


def write_all(files: list[Path], classes: list[str], work: Path) -> dict[str, Path]:
    """Write the same photographs in every form; return where each lies."""
    folder, shards = work / "folder", work / "shards"
    shards.mkdir()
    labels = [classes.index(file.parent.name) for file in files]
    for row, file in enumerate(files):
        target = folder / file.parent.name / f"{row:05d}.jpg"
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(file.read_bytes())
    with tarfile.open(work / "archive.tar", "w") as archive:
        archive.add(folder, ".")
    with webdataset.ShardWriter(
        str(shards / "shard-%06d.tar"), maxcount=SHARD_IMAGES, verbose=0
    ) as writer:
        for row, (file, label) in enumerate(zip(files, labels, strict=True)):
            writer.write({"__key__": f"{row:05d}", "jpg": file.read_bytes(), "cls": label})
    features = datasets.Features(
        {"image": datasets.Image(), "label": datasets.ClassLabel(names=classes)}
    )
    images = [{"bytes": file.read_bytes(), "path": file.name} for file in files]
    rows = datasets.Dataset.from_dict({"image": images, "label": labels}, features=features)
    rows.save_to_disk(str(work / "saved"))
    rows.to_parquet(str(work / "rows.parquet"), batch_size=100)
    return {
        "folder": folder, "archive": work / "archive.tar", "parquet": work / "rows.parquet",
        "save_to_disk": work / "saved", "webdataset": shards,
    }  # fmt: skip


def theirs(name: str, path: Path, size: int, cache: Path) -> torch.utils.data.Dataset:
    """Open a form as the field does; archives have no way of their own and take that of folders."""
    if name == "parquet":
        return OfHub(
            datasets.load_dataset(
                "parquet", data_files=str(path), split="train", cache_dir=str(cache)
            ), size,
        )  # fmt: skip
    if name == "save_to_disk":
        return OfHub(datasets.load_from_disk(str(path)), size)
    if name == "webdataset":
        urls = sorted(str(shard) for shard in path.glob("*.tar"))
        return (
            webdataset.WebDataset(urls, shardshuffle=False)
            .decode("pilrgb").to_tuple("jpg").map(first).map(transform(size))
        )  # fmt: skip
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


def alternating(
    turns: int, ours: Callable[[], int], other: Callable[[], int]
) -> Iterator[tuple[float, float]]:
    """Yield the seconds of both in each turn; who begins takes turns too."""
    for turn in range(turns):
        seconds = {}
        for read in (ours, other) if turn % 2 else (other, ours):
            start = time.perf_counter()
            read()
            seconds[read] = time.perf_counter() - start
        yield seconds[ours], seconds[other]


def main() -> None:
    """Print the rates of both sides, and how often as fast ours is."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folders", type=Path, nargs="+")
    parser.add_argument("--images", type=int, default=2000)
    parser.add_argument("--size", type=int, default=224)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--repeat", type=int, default=5)
    options = parser.parse_args()
    torch.set_num_threads(1)
    datasets.disable_progress_bars()
    found = [file for folder in options.folders for file in sorted(folder.glob("*/*"))]
    files = list(itertools.islice(itertools.cycle(found), options.images))
    classes = sorted({file.parent.name for file in files})
    resizing = Resizing((options.size, options.size))
    with tempfile.TemporaryDirectory() as work, open_pools() as pools:
        root = Path(work)
        paths = write_all(files, classes, root)
        store = Store(root / "store")
        pools.resize(options.workers)
        for name, path in paths.items():
            source = open_dataset(str(path), store, role="ood").ood_part.source

            def ours(source: Any = source) -> int:
                if not options.workers:
                    each = (resizing.apply(image) for image in source.read(0, len(source)))
                    return sum(1 for _ in each)
                pools.processes()
                return sum(1 for _ in resized(pools, source, 0, len(source), resizing.apply))

            other = loaded(theirs(name, path, options.size, root / "cache"), options.workers)
            assert ours() == other() == len(files)  # and the workers are warm
            pairs = list(alternating(options.repeat, ours, other))
            rates = [len(files) / np.array(side) for side in zip(*pairs, strict=True)]
            ratio = statistics.median(t / m for m, t in pairs)
            print(  # noqa: T201 - the result
                f"{name:13s} ours {np.median(rates[0]):6.0f} images/s, field "
                f"{np.median(rates[1]):6.0f}, ratio {ratio:.2f} "
                f"({min(t / m for m, t in pairs):.2f} to {max(t / m for m, t in pairs):.2f})",
                flush=True,
            )


if __name__ == "__main__":
    main()
