"""Pack arrays of images into parts of limited size, and unpack them.

::

    python tests/bench/gpu_data.py pack cifar10.npz svhn.npz sun.npz --into .gpu --mib 48
    python tests/bench/gpu_data.py unpack .gpu --into .gpu/data
    python tests/bench/gpu_data.py synthetic --into .gpu/data --images 50000

``pack`` writes ``.gpu/part-1``, ``part-2``, …, each at most ``--mib`` large; together they hold
every array of the ``.npz`` files. Arrays of square RGB images, uint8 ``(n, side, side, 3)``, become
lossless WebP grids; each is decoded again and compared before it is written. ``unpack`` restores
the ``.npz`` files, and names what is missing if a part is. ``--limit`` takes that many images of
each array, evenly spaced. ``synthetic`` writes a training set of ten coloured textures and an OOD
set of noise: enough for rates, while accuracies mean nothing.
"""

import argparse
import io
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

COLUMNS = 50
GRID = 5_000  # images; 8.5 MB of CIFAR-10
COUNTS = "grid_counts."  # before the name of an array: images of each of its grids
CLASSES = 10


def tiled(images: NDArray[np.uint8]) -> Image.Image:
    """Put images ``(n, height, width, 3)`` side by side, row by row, black at the end."""
    count, height, width, _ = images.shape
    rows = -(-count // COLUMNS)
    canvas = np.zeros((rows * COLUMNS, height, width, 3), np.uint8)
    canvas[:count] = images
    grid = canvas.reshape(rows, COLUMNS, height, width, 3).transpose(0, 2, 1, 3, 4)
    return Image.fromarray(grid.reshape(rows * height, COLUMNS * width, 3))


def tiles(grid: Image.Image, count: int) -> NDArray[np.uint8]:
    """Cut ``count`` images out of a grid; their height is their width."""
    pixels = np.asarray(grid.convert("RGB"))
    side = pixels.shape[1] // COLUMNS
    cut = pixels.reshape(-1, side, COLUMNS, side, 3).transpose(0, 2, 1, 3, 4)
    return cut.reshape(-1, side, side, 3)[:count]


def encoded(images: NDArray[np.uint8]) -> bytes:
    """Return a lossless WebP grid that decodes to exactly these images."""
    buffer = io.BytesIO()
    tiled(images).save(buffer, "webp", lossless=True, quality=60, method=3)
    with Image.open(buffer) as grid:
        if not np.array_equal(tiles(grid, len(images)), images):
            sys.exit("error: images changed in a WebP grid; another version of Pillow may help")
    return buffer.getvalue()


def files_of(path: Path) -> Iterator[tuple[str, bytes]]:
    """Yield the names and contents of the files that hold the arrays of an ``.npz`` file."""
    others: dict[str, NDArray[np.generic]] = {}
    with np.load(path, allow_pickle=False) as arrays:
        for key in arrays.files:
            array = arrays[key]
            square = array.ndim == 4 and array.shape[1] == array.shape[2] and array.shape[3] == 3
            if not (square and array.dtype == np.uint8 and len(array)):
                others[key] = array
                continue
            pieces = [array[at : at + GRID] for at in range(0, len(array), GRID)]
            others[COUNTS + key] = np.array([len(piece) for piece in pieces])
            for number, piece in enumerate(pieces):
                yield f"{path.stem}.{key}.{number:03d}.webp", encoded(piece)
    buffer = io.BytesIO()
    np.savez_compressed(buffer, **others)
    yield f"{path.stem}.arrays.npz", buffer.getvalue()


def pack(paths: list[Path], into: Path, mib: float) -> None:
    """Write the parts, as few as their order allows."""
    if stale := sorted(into.glob("part-*")):
        sys.exit(f"error: {stale[0]} exists; remove the old parts or name another folder")
    part, used = 1, 0
    for path in paths:
        for name, content in files_of(path):
            if len(content) > mib * 2**20:
                sys.exit(f"error: {name} has {len(content) / 2**20:.1f} MiB; use a larger --mib")
            if used + len(content) > mib * 2**20:
                part, used = part + 1, 0
            folder = into / f"part-{part}"
            folder.mkdir(parents=True, exist_ok=True)
            (folder / name).write_bytes(content)
            used += len(content)
            sys.stdout.write(f"{folder / name}: {len(content) / 2**20:.1f} MiB\n")


def spaced(array: NDArray[np.generic], limit: int | None) -> NDArray[np.generic]:
    """Return at most ``limit`` evenly spaced rows."""
    if limit is None or len(array) <= limit:
        return array
    return array[np.arange(limit) * len(array) // limit]


def unpack(parts: Path, into: Path, limit: int | None) -> None:
    """Write every ``.npz`` file of which a part is there, or report missing parts."""
    found = {path.name: path for path in sorted(parts.glob("part-*/*"))}
    if not found:
        sys.exit(f"error: {parts} has no folders part-1, part-2, …")
    into.mkdir(parents=True, exist_ok=True)
    for stem in sorted({name.split(".")[0] for name in found}):
        if f"{stem}.arrays.npz" not in found:
            sys.exit(f"error: {parts} lacks a part: {stem}.arrays.npz is missing")
        with np.load(found[f"{stem}.arrays.npz"], allow_pickle=False) as others:
            arrays = {key: others[key] for key in others.files}
        for key in [key for key in arrays if key.startswith(COUNTS)]:
            image_key, pieces = key.removeprefix(COUNTS), []
            for number, count in enumerate(arrays.pop(key)):
                name = f"{stem}.{image_key}.{number:03d}.webp"
                if name not in found:
                    sys.exit(f"error: {parts} lacks a part: {name} is missing")
                with Image.open(found[name]) as grid:
                    pieces.append(tiles(grid, int(count)))
            arrays[image_key] = np.concatenate(pieces)
        if limit is not None:
            lengths = {len(array) for key, array in arrays.items() if key.endswith("images")}
            arrays = {
                key: spaced(array, limit) if array.ndim and len(array) in lengths else array
                for key, array in arrays.items()
            }
        np.savez(into / f"{stem}.npz", **arrays)
        shapes = [f"{key} {array.shape}" for key, array in arrays.items() if array.ndim == 4]
        sys.stdout.write(f"{into / stem}.npz: {', '.join(shapes)}\n")


def synthetic(into: Path, images: int) -> None:
    """Write ``synthetic.npz``, ten textures as ID classes, and ``noise.npz`` as OOD images."""
    random = np.random.default_rng(0)
    textures = random.integers(60, 196, (CLASSES, 32, 32, 3))
    arrays: dict[str, NDArray[np.generic]] = {"class_names": np.array([*"abcdefghij"])}
    for split, count in (("train", images), ("test", max(images // 5, 2 * CLASSES))):
        labels = np.sort(np.arange(count) % CLASSES)  # every class among evenly spaced images
        noise = random.integers(-60, 60, (count, 32, 32, 3))
        arrays[f"{split}_images"] = (textures[labels] + noise).astype(np.uint8)
        arrays[f"{split}_labels"] = labels
    into.mkdir(parents=True, exist_ok=True)
    np.savez(into / "synthetic.npz", **arrays)
    noise = random.integers(0, 256, (max(images // 5, 20), 32, 32, 3), dtype=np.uint8)
    np.savez(into / "noise.npz", images=noise)


def main() -> None:
    """Pack, unpack or make images."""
    parser = argparse.ArgumentParser(description="Images in parts of limited size.")
    commands = parser.add_subparsers(dest="command", required=True)
    packing = commands.add_parser("pack")
    packing.add_argument("files", nargs="+", type=Path)
    packing.add_argument("--mib", type=float, default=48, help="largest size of a part")
    unpacking = commands.add_parser("unpack")
    unpacking.add_argument("parts", type=Path)
    unpacking.add_argument("--limit", type=int, help="images of each array, evenly spaced")
    making = commands.add_parser("synthetic")
    making.add_argument("--images", type=int, default=50_000)
    for each in (packing, unpacking, making):
        each.add_argument("--into", type=Path, required=True, help="folder to write to")
    options = parser.parse_args()
    if options.command == "pack":
        pack(options.files, options.into, options.mib)
    elif options.command == "unpack":
        unpack(options.parts, options.into, options.limit)
    else:
        synthetic(options.into, options.images)


if __name__ == "__main__":
    main()
