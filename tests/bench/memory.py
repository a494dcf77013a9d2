"""Peak memory of whole commands, for few and for many images in every form.

    OMP_NUM_THREADS=1 python tests/bench/memory.py [--rows 1000 100000] [--forms FORM…]
        [--commands predict score] [--jobs N]

The same distinct PNG files of 8 x 8 pixels (HDF5 and ``.npz``: their pixels) are written in every
form, and ``resnet18:width=2`` is trained on 300 of them. Each command is a new process with a store
of its own, a copy of that of the network, so that nothing of another form is reused. The peak is
``ru_maxrss`` of that process, and the percentage is how much more the most rows take than the
fewest. This process imports neither torch nor ``datasets``: a child's peak is at least that of the
process that starts it.
"""

import argparse
import csv
import io
import itertools
import json
import multiprocessing
import os
import shutil
import subprocess
import sys
import tarfile
import tempfile
import time
import zipfile
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

SIDE = 8
SHARD_IMAGES = 5000
IN_FOLDER = 1000
METHOD = ["--run", "small", "--method", "msp"]
OOD = [sys.executable, "-m", "oodcli"]


def pixels(rows: int) -> NDArray[np.uint8]:
    """Return distinct images, uint8 (rows, 8, 8, 3)."""
    return np.random.default_rng(0).integers(0, 256, (rows, SIDE, SIDE, 3), np.uint8)


def encoded(rows: int) -> Iterator[tuple[str, bytes]]:
    """Yield names and contents of PNG files."""
    for row, each in enumerate(pixels(rows)):
        stream = io.BytesIO()
        Image.fromarray(each).save(stream, "png")
        yield f"group-{row // IN_FOLDER:04d}/photograph-{row:07d}.png", stream.getvalue()


def write_folder(rows: int, path: Path) -> None:
    """Write files into folders of 1,000."""
    for name, content in encoded(rows):
        file = path / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(content)


def write_table(rows: int, path: Path) -> None:
    """Write a table of the files of the folder."""
    names = (f"folder/{name}" for name, _ in encoded(rows))
    with path.open("w", newline="") as stream:
        if path.suffix == ".csv":
            csv.writer(stream).writerows([["path"], *([name] for name in names)])
        elif path.suffix == ".jsonl":
            stream.writelines(json.dumps({"path": name}) + "\n" for name in names)
        else:
            stream.writelines(f"{path.parent / name}\n" for name in names)


def add(archive: tarfile.TarFile, name: str, content: bytes) -> None:
    """Add a file to a tar archive."""
    info = tarfile.TarInfo(name)
    info.size = len(content)
    archive.addfile(info, io.BytesIO(content))


def write_tar(rows: int, path: Path) -> None:
    """Write one tar archive."""
    with tarfile.open(path, "w") as archive:
        for name, content in encoded(rows):
            add(archive, name, content)


def write_zip(rows: int, path: Path) -> None:
    """Write one zip archive."""
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in encoded(rows):
            archive.writestr(name, content)


def write_webdataset(rows: int, path: Path) -> None:
    """Write shards of images and labels."""
    path.mkdir()
    files = encoded(rows)
    for number in itertools.count():
        some = list(itertools.islice(files, SHARD_IMAGES))
        if not some:
            return
        with tarfile.open(path / f"shard-{number:06d}.tar", "w") as archive:
            for name, content in some:
                add(archive, Path(name).name, content)
                add(archive, Path(name).stem + ".cls", b"0")


def write_classes(path: Path, image: Path) -> None:
    """Write images of two classes, for training, and one of them as a file."""
    import numpy as np

    images, labels = pixels(400), np.arange(400) % 2
    parts = {"train_images": images[:300], "train_labels": labels[:300]}
    np.savez(path, **parts, test_images=images[300:], test_labels=labels[300:])
    Image.fromarray(images[0]).save(image)


def hub_rows(rows: int) -> Any:
    """Return the images as a data set of Hugging Face."""
    import datasets

    datasets.disable_progress_bars()
    images = [{"bytes": content, "path": name} for name, content in encoded(rows)]
    features = datasets.Features({"image": datasets.Image()})
    return datasets.Dataset.from_dict({"image": images}, features=features)


def write_parquet(rows: int, path: Path) -> None:
    """Write one Parquet file in row groups of 1,000."""
    hub_rows(rows).to_parquet(str(path), batch_size=1000)


def write_saved(rows: int, path: Path) -> None:
    """Write a folder of ``save_to_disk``."""
    hub_rows(rows).save_to_disk(str(path))


def write_hdf5(rows: int, path: Path) -> None:
    """Write pixels in chunks of 1,000 images."""
    import h5py

    with h5py.File(path, "w") as file:
        file.create_dataset("images", data=pixels(rows), chunks=(1000, SIDE, SIDE, 3))


def write_npz(rows: int, path: Path) -> None:
    """Write pixels."""
    np.savez_compressed(path, images=pixels(rows))


FORMS: dict[str, tuple[str, Callable[[int, Path], None]]] = {
    "folder": ("folder", write_folder),
    "stdin": ("names.list", write_table),
    "csv": ("rows.csv", write_table),
    "jsonl": ("rows.jsonl", write_table),
    "tar": ("images.tar", write_tar),
    "zip": ("images.zip", write_zip),
    "webdataset": ("shards", write_webdataset),
    "parquet": ("rows.parquet", write_parquet),
    "save_to_disk": ("saved", write_saved),
    "hdf5": ("images.h5", write_hdf5),
    "npz": ("images.npz", write_npz),
}


def write(form: str, rows: int, path: Path) -> None:
    """Write a form in a process of its own."""
    path.parent.mkdir(exist_ok=True)
    process = multiprocessing.get_context("spawn").Process(target=FORMS[form][1], args=(rows, path))
    process.start()
    process.join()
    if process.exitcode:
        sys.exit(f"{form} could not be written")


def peak_of(command: Sequence[str], *, stdin: Path | None) -> tuple[float, float]:
    """Run a command; return its peak memory in MB and its CPU seconds."""
    with Path(stdin or os.devnull).open() as stream, tempfile.TemporaryFile("w+") as said:
        process = subprocess.Popen(command, stdin=stream, stdout=subprocess.DEVNULL, stderr=said)
        _, status, usage = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
        if process.returncode:
            said.seek(0)
            sys.exit(f"{' '.join(command)} ended with {process.returncode}: {said.read()[-500:]}")
    return usage.ru_maxrss / 1024, usage.ru_utime + usage.ru_stime


def train(root: Path) -> None:
    """Train the network, and store its detector, so that no command fits one."""
    where = ["--device", "cpu", "--store", str(root / "store")]
    write_classes(root / "classes.npz", root / "one.png")
    network = ["--data", str(root / "classes.npz"), "--arch", "resnet18:width=2"]
    peak_of([*OOD, "train", *network, "--epochs", "1", "--name", "small", *where], stdin=None)
    peak_of([*OOD, "predict", str(root / "one.png"), *METHOD, *where], stdin=None)


def measured(command: str, form: str, path: Path, network: Path) -> tuple[float, float]:
    """Return peak memory and CPU seconds of a command on a form, with a store of its own."""
    with tempfile.TemporaryDirectory() as scratch:
        store = Path(scratch) / "store"
        shutil.copytree(network, store)
        listed = form == "stdin"
        given = "-" if listed else str(path)
        own = [*METHOD, "--device", "cpu", "--store", str(store)]
        if command == "predict":
            own = ["predict", given, *own, "--output", str(Path(scratch) / "verdicts.csv")]
        else:
            own = ["score", "--ood", given, *own]
        return peak_of([*OOD, *own], stdin=path if listed else None)


def main() -> None:
    """Print the peaks."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rows", type=int, nargs="+", default=[1000, 100_000])
    parser.add_argument("--forms", nargs="+", choices=FORMS, default=list(FORMS))
    parser.add_argument(
        "--commands", nargs="+", choices=("predict", "score"), default=["predict", "score"]
    )
    parser.add_argument("--jobs", type=int, default=1, help="commands at a time")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as work, ThreadPoolExecutor(options.jobs) as pool:
        root = Path(work)
        train(root)
        forms = dict.fromkeys(["folder", *options.forms])  # lists name the files of the folder
        each = itertools.product(forms, options.rows)
        paths = {(f, n): root / f"{n}" / FORMS[f][0] for f, n in each}
        list(pool.map(lambda pair: write(*pair, paths[pair]), paths))

        def row(command: str, form: str) -> str:
            peaks = []
            started = time.perf_counter()
            cpu = 0.0
            for rows in options.rows:
                peak, taken = measured(command, form, paths[form, rows], root / "store")
                peaks.append(peak)
                cpu += taken
            more = 100 * (peaks[-1] / peaks[0] - 1)
            each = "".join(f"{peak:9.1f}" for peak in peaks)
            seconds = f"{cpu:6.0f} CPU s, {time.perf_counter() - started:5.0f} s"
            return f"{command:8}{form:13}{each} MB {more:+6.1f} % {seconds}"

        print(f"{'':21}" + "".join(f"{rows:>9,}" for rows in options.rows), flush=True)  # noqa: T201
        jobs = [
            (command, form)
            for command in options.commands
            for form in options.forms
            if (command, form) != ("score", "stdin")
        ]
        for line in pool.map(lambda each: row(*each), jobs):
            print(line, flush=True)  # noqa: T201 - the result


if __name__ == "__main__":
    main()
