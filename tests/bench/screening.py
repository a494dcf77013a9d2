"""``ood predict`` on a folder of real images: verdicts, speed, start-up time and memory.

::

    python tests/bench/screening.py mixed --store STORE --run RUN --method featurenorm:block=6

``mixed`` holds a folder for every set; those named with ``--id`` hold in-distribution images. Speed
is compared with a bare loop, which decodes a batch with Pillow and runs the network on it, without
threads, hooks or scores. Both take turns on the same files, so that other work on the machine slows
them alike; a way's rate is that of its median turn. Memory is the peak of a process of its own.

``--processes`` compares whole processes in turns: the bare loop, one ``ood predict``, and two
shards side by side, by CPU seconds per image, which other work changes less than the wall clock.
``--listed`` measures memory on paths from stdin and from a table: all are different names of one
image.
"""

import argparse
import csv
import io
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import IO

import numpy as np
import torch
from PIL import Image

from oodcli.compute.compute import Compute
from oodcli.data.decoding.files import find_images
from oodcli.models import load_run_network
from oodcli.store.run_names import find_run
from oodcli.store.runs import RunFolder
from oodcli.store.store import Store
from oodcli.workflows.engines import DetectorRequest
from oodcli.workflows.predict import PredictRequest, VerdictOutputs, predict


def bare_loop(folder: RunFolder, files: Sequence[str], *, device: torch.device, batch: int) -> None:
    """Decode images of the network's size and run the network, one batch after another."""
    run = folder.read()
    network = load_run_network(
        folder.weights, run.arch, len(run.class_names), size=run.preprocess.size
    )
    module = network.module.eval().to(device)
    mean, std = (
        torch.tensor(each, device=device).view(3, 1, 1)
        for each in (run.preprocess.mean, run.preprocess.std)
    )
    height, width = run.preprocess.size
    with torch.inference_mode():
        for at in range(0, len(files), batch):
            pixels = []
            for file in files[at : at + batch]:
                with Image.open(file) as image:
                    rgb = image.convert("RGB")
                    if rgb.size != (width, height):
                        rgb = rgb.resize((width, height), Image.Resampling.BILINEAR)
                    pixels.append(np.asarray(rgb))
            images = torch.from_numpy(np.stack(pixels)).permute(0, 3, 1, 2).to(device)
            module(images.float().div_(255).sub_(mean).div_(std)).argmax(dim=1).cpu()


def say(line: str) -> None:
    """Write a line at once."""
    sys.stdout.write(f"{line}\n")
    sys.stdout.flush()


def seconds(run: Callable[[], object]) -> float:
    """Return the time that one call takes."""
    started = time.perf_counter()
    run()
    return time.perf_counter() - started


def confusion(text: str, root: Path, known: Sequence[str]) -> None:
    """Print the verdicts of every set."""
    verdicts: dict[str, Counter[str]] = {}
    for row in csv.DictReader(io.StringIO(text)):
        name = Path(row["path"]).relative_to(root).parts[0]
        verdicts.setdefault(name, Counter())[row["verdict"] or "unreadable"] += 1
    for name, counts in sorted(verdicts.items(), key=lambda each: each[0] not in known):
        total = sum(counts.values())
        say(
            f"{name:24} {'ID ' if name in known else 'OOD'} {total:6,} images: "
            + ", ".join(f"{kind} {n:,} ({100 * n / total:.1f} %)" for kind, n in counts.items())
        )


def program(
    command: Sequence[str], *, first_line: bool = False, stdin: IO[str] | None = None
) -> tuple[float, float]:
    """Run a command; return seconds to its end, or its second line, and its peak memory in MB."""
    started = time.perf_counter()
    with subprocess.Popen(
        command, stdin=stdin, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL
    ) as process:
        assert process.stdout is not None
        process.stdout.readline()
        process.stdout.readline()
        taken = time.perf_counter() - started
        process.stdout.read()
        _, status, usage = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        sys.exit(f"{' '.join(command)} ended with {process.returncode}")
    whole = time.perf_counter() - started
    return taken if first_line else whole, usage.ru_maxrss / 1024


def together(commands: Sequence[Sequence[str]]) -> tuple[float, float]:
    """Run commands at the same time; return seconds to their end, and their CPU seconds."""
    started = time.perf_counter()
    running = [
        subprocess.Popen(each, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        for each in commands
    ]
    cpu = 0.0
    for process in running:
        _, status, usage = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
        if process.returncode:
            sys.exit(f"{process.args} ended with {process.returncode}")
        cpu += usage.ru_utime + usage.ru_stime
    return time.perf_counter() - started, cpu


def whole_processes(command: Sequence[str], images: Path, count: int, turns: int) -> None:
    """Compare the bare loop, one process and two shards, each started anew in every turn."""
    own = [sys.executable, *sys.argv, "--bare"]
    few = next(images.rglob("*.*"))
    with tempfile.TemporaryDirectory() as scratch:
        ways: dict[str, Callable[[int], Sequence[Sequence[str]]]] = {
            "bare loop": lambda _: [own],
            "one process": lambda turn: [
                [*command, str(images), "--output", f"{scratch}/{turn}.csv"]
            ],
            "two shards": lambda turn: [
                [*command, str(images), "--output", f"{scratch}/s{turn}.csv", "--shard", f"{i}/2"]
                for i in (1, 2)
            ],
            "start": lambda turn: [[*command, str(few), "--output", f"{scratch}/f{turn}.csv"]],
        }
        taken: dict[str, list[tuple[float, float]]] = {name: [] for name in ways}
        for turn in range(turns):
            for name, way in ways.items():
                taken[name].append(together(way(turn)))
    for name, each in taken.items():
        wall, cpu = (statistics.median(values) for values in zip(*each, strict=True))
        n = 1 if name == "start" else count
        ratios = [c / b for (_, c), (_, b) in zip(each, taken["bare loop"], strict=True)]
        say(
            f"{name:12} {n / wall:7.0f} images/s, {1000 * cpu / n:8.3f} CPU ms an image, "
            f"{statistics.median(ratios):.2f} of the CPU time of the bare loop (medians)"
        )


def listed_memory(command: Sequence[str], file: Path, count: int) -> None:
    """Print the peak memory of a process that judges many names of one image."""
    with tempfile.TemporaryDirectory() as scratch:
        root = Path(scratch)
        (root / "x.png").write_bytes(file.read_bytes())
        for number in range(min(count, 1000)):
            (root / f"d{number:03d}").mkdir()
        for kind in ("stdin", "table"):
            names = root / f"{kind}.csv"
            with names.open("w") as stream:
                stream.write("path\n" if kind == "table" else "")
                for number in range(count):
                    first, second = divmod(number, 1000)
                    stream.write(f"{root}/d{first:03d}/../d{second:03d}/../x.png\n")
            given = str(names) if kind == "table" else "-"
            whole = [*command, given, "--output", str(root / f"{kind}-out.csv")]
            with names.open() as stdin:
                taken, peak = program(whole, stdin=stdin)
            found = {
                "listed": kind,
                "files": count,
                "peak_mb": round(peak),
                "seconds": round(taken, 1),
            }
            say(json.dumps(found))


def parsed() -> argparse.Namespace:
    """Return the options."""
    parser = argparse.ArgumentParser(description="Measure ood predict.")
    parser.add_argument("images", type=Path)
    parser.add_argument("--store", type=Path, required=True)
    parser.add_argument("--run", required=True)
    parser.add_argument("--method", default="featurenorm:block=6")
    parser.add_argument("--id", nargs="*", default=["cifar10"])
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--turns", type=int, default=5)
    parser.add_argument("--turn-images", type=int, default=512)
    parser.add_argument("--memory", type=int, nargs="*", default=[])
    parser.add_argument("--memory-run", help="a small network, for which many files take less long")
    parser.add_argument("--verdicts", action="store_true")
    parser.add_argument("--processes", type=int, default=0, metavar="TURNS")
    parser.add_argument("--listed", type=int, nargs="*", default=[], metavar="N")
    parser.add_argument("--bare", action="store_true", help="only run the bare loop once")
    return parser.parse_args()


def main() -> None:
    """Measure and print."""
    options = parsed()
    device = Compute.of(options.device).device
    store = Store.at(options.store)
    folder = find_run(store, options.run)
    files = [str(options.images / name) for name in find_images(options.images)]
    if options.bare:
        bare_loop(folder, files, device=device, batch=options.batch)
        return
    say(
        f"{len(files):,} files, {options.method} on {device}, torch {torch.__version__}, "
        f"{torch.get_num_threads()} threads, {os.cpu_count()} processors"
    )

    def ours(paths: Sequence[str], sink: io.StringIO) -> None:
        request = PredictRequest(
            paths,
            detector=DetectorRequest(run=options.run, method=options.method, device=options.device),
            outputs=VerdictOutputs(format="csv"),
        )
        predict(store, request, rows_to=sink.write)

    if options.verdicts:
        sink = io.StringIO()
        ours([str(options.images)], sink)
        confusion(sink.getvalue(), options.images, options.id)

    if options.turns:
        step = max(1, len(files) // options.turn_images)
        few = files[::step][: options.turn_images]
        ways: dict[str, Callable[[], object]] = {
            "bare loop": lambda: bare_loop(folder, few, device=device, batch=options.batch),
            "ood predict": lambda: ours(few, io.StringIO()),
        }
        times: dict[str, list[float]] = {name: [] for name in ways}
        for turn in range(options.turns + 1):
            for name, way in ways.items():
                taken = seconds(way)
                if turn:  # the first warms up
                    times[name].append(taken)
        for name, each in times.items():
            say(
                f"{name:12} {len(few) / statistics.median(each):7.0f} images/s, turns from "
                f"{len(few) / max(each):.0f} to {len(few) / min(each):.0f}"
            )
        pairs = [b / o for b, o in zip(times["bare loop"], times["ood predict"], strict=True)]
        say(f"ood predict at {statistics.median(pairs):.2f} of the bare loop (median of turns)")

    command = [
        sys.executable, "-m", "oodcli", "predict", "--store", str(options.store), "--run",
        options.run, "--method", options.method, "--device", options.device, "--format", "csv",
    ]  # fmt: skip
    starts = [program([*command, files[0]], first_line=True)[0] for _ in range(3)]
    say(f"first verdict after {statistics.median(starts):.1f} s (median of 3)")

    plain = [word for word in command if word not in ("--format", "csv")]
    if options.processes:
        whole_processes(plain, options.images, len(files), options.processes)
    if options.memory_run:
        command[command.index("--run") + 1] = options.memory_run
    plain = [word for word in command if word not in ("--format", "csv")]
    for count in options.listed:
        listed_memory(plain, Path(files[0]), count)
    for count in options.memory:
        with tempfile.TemporaryDirectory() as scratch:
            for number in range(count):
                file = files[number % len(files)]
                target = (
                    Path(scratch) / f"{number // 1000:04d}" / f"{number:07d}{Path(file).suffix}"
                )
                target.parent.mkdir(exist_ok=True)
                target.symlink_to(Path(file).resolve())
            taken, peak = program([*command, scratch])
        say(json.dumps({"files": count, "peak_mb": round(peak), "seconds": round(taken, 1)}))


if __name__ == "__main__":
    main()
