"""Time and memory of fitting and scoring every method, for many classes.

::

    python tests/bench/costs.py --classes 1000 --train 50000 --scored 10000
    python tests/bench/costs.py --classes 5000 --train 50000 --scored 10000

Activations are drawn: features around one direction of each class, without negative values, a
tenth of the images of another class than their label. They lie in files that are read by chunks of
4,096 rows, as those of a store. Each method runs in a process of its own: seconds to fit and to
score, and the peak of its memory above what the process had before (torch, and no activations),
in MB; a chunk of 4,096 images takes 38 MB for 1,000 classes and 103 MB for 5,000.
"""

import argparse
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

CHUNK = 4096


def draw(folder: Path, *, classes: int, width: int, counts: dict[str, int]) -> None:
    """Write the activations of all sets, and the head."""
    rng = np.random.default_rng(0)
    weight = rng.standard_normal((classes, width), dtype=np.float32) / np.float32(width**0.5)
    np.save(folder / "weight.npy", 20 * weight)
    for name, count in counts.items():
        labels = np.arange(count) % classes
        shown = np.where(np.arange(count) % 10 == 9, (labels + 1) % classes, labels)
        features = np.lib.format.open_memmap(
            folder / f"{name}-features.npy", "w+", np.float32, (count, width)
        )
        logits = np.lib.format.open_memmap(
            folder / f"{name}-logits.npy", "w+", np.float32, (count, classes)
        )
        for first in range(0, count, CHUNK):
            part = slice(first, min(first + CHUNK, count))
            noise = rng.standard_normal((part.stop - first, width), dtype=np.float32)
            features[part] = np.maximum(0, 8 * weight[shown[part]] + 0.25 * noise)
            logits[part] = features[part] @ (20 * weight).T
        np.save(folder / f"{name}-labels.npy", labels)


def measure(folder: Path, name: str) -> dict[str, float | str]:
    """Fit and score a method in this process."""
    import torch

    from oodcli.activations import Activations, ActivationSet, ActivationShard, Head, Reference
    from oodcli.errors import OodError
    from oodcli.methods import parse_method

    def set_of(which: str) -> ActivationSet:
        def read(what: str, width: int, first: int) -> torch.Tensor:
            path, rows = folder / f"{which}-{what}.npy", min(CHUNK, size - first)
            start = path.stat().st_size - 4 * width * (size - first)  # behind the header
            values = np.fromfile(path, np.float32, rows * width, offset=start)
            return torch.from_numpy(values.reshape(rows, width))

        size = len(labels(which))

        def load(first: int) -> Activations:
            logits = read("logits", len(weight), first)
            maps = read("features", weight.shape[1], first)
            return Activations(logits, maps, maps[:, :4].clone() + 1, logits.argmax(dim=1))

        return ActivationSet(
            [
                ActivationShard(min(CHUNK, size - first), lambda first=first: load(first))
                for first in range(0, size, CHUNK)
            ]
        )

    def labels(which: str) -> torch.Tensor:
        return torch.from_numpy(np.load(folder / f"{which}-labels.npy"))

    weight = torch.from_numpy(np.load(folder / "weight.npy"))
    reference = Reference(
        head=Head(weight, torch.zeros(len(weight))),
        load_train=lambda: set_of("train"),
        load_labels=lambda: labels("train"),
        load_calibration=lambda: set_of("val"),
        load_calibration_labels=lambda: labels("val"),
        load_jigsaw=lambda: set_of("train"),
        load_jigsaw_features=lambda: set_of("train"),
        n_blocks=4,
    )
    spec = parse_method(name)
    Path("/proc/self/clear_refs").write_text("5", encoding="ascii")  # forgets the peak so far
    before = memory("VmRSS")
    try:
        with torch.inference_mode():
            started = time.perf_counter()
            fitted = spec.fit(reference)
            done = time.perf_counter()
            for chunk in set_of("scored").chunks():
                fitted.detector.score(chunk)
            scored = time.perf_counter()
    except OodError as error:
        return {"error": str(error)}
    return {"fit": done - started, "score": scored - done, "peak": memory("VmHWM") - before}


def memory(name: str) -> float:
    """Return a value of the memory of this process, in MB."""
    for line in Path("/proc/self/status").read_text(encoding="ascii").splitlines():
        if line.startswith(f"{name}:"):
            return int(line.split()[1]) / 1024
    raise LookupError(name)


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--classes", type=int, default=1000)
    parser.add_argument("--width", type=int, default=1280)
    parser.add_argument("--train", type=int, default=50_000)
    parser.add_argument("--val", type=int, default=10_000)
    parser.add_argument("--scored", type=int, default=10_000)
    parser.add_argument("--timeout", type=float, default=600)
    parser.add_argument("--only", nargs="*", default=[])
    parser.add_argument("--measure", nargs=2, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.measure:
        found = measure(Path(options.measure[0]), options.measure[1])
        sys.stdout.write(json.dumps(found))
        return
    from oodcli.methods import group

    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        counts = {name: getattr(options, name) for name in ("train", "val", "scored")}
        draw(folder, classes=options.classes, width=options.width, counts=counts)
        sizes = ", ".join(f"{name} {count:,}" for name, count in counts.items())
        sys.stdout.write(f"{options.classes:,} classes × {options.width:,}; {sizes}\n\n")
        sys.stdout.write("| method | fit, s | score, s | peak, MB |\n|---|---:|---:|---:|\n")
        for name in options.only or group(probes=False):
            try:
                done = subprocess.run(
                    [sys.executable, "-W", "ignore", __file__, "--measure", scratch, name],
                    check=True, capture_output=True, text=True, timeout=options.timeout,
                )  # fmt: skip
                found = json.loads(done.stdout)
                cells = (
                    found["error"] if "error" in found
                    else f"{found['fit']:.2f} | {found['score']:.2f} | {found['peak']:,.0f}"
                )  # fmt: skip
            except subprocess.TimeoutExpired:
                cells = f"stopped after {options.timeout:.0f} s"
            except subprocess.CalledProcessError as error:
                cells = error.stderr.strip().splitlines()[-1] if error.stderr else "killed"
            sys.stdout.write(f"| `{name}` | {cells} |\n")
            sys.stdout.flush()


if __name__ == "__main__":
    main()
