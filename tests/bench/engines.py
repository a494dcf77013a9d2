"""``ood predict`` in torch and in ONNX Runtime: time to the first verdict, and images/s.

::

    python -m tests.bench.engines IMAGES --detector knn.safetensors --run RUN --store STORE

``--detector`` is packed with ``--engine both``. All times are CPU seconds, user and system, since
wall-clock times on a shared machine say more about its other work: of whole processes that judge
one image (minimum of ``--starts``), and of passes over many files in one process, in turns, against
a bare loop that decodes with Pillow and runs the network in torch.
"""

import argparse
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import torch

import oodcli
from oodcli.store.run_names import find_run
from oodcli.store.store import Store
from tests.bench.screening import bare_loop, say


def process_seconds(command: list[str]) -> tuple[float, float]:
    """Return CPU seconds and peak memory in MB of a process."""
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as process:
        _, status, usage = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        sys.exit(f"{' '.join(command)} ended with {process.returncode}")
    return usage.ru_utime + usage.ru_stime, usage.ru_maxrss / 1024


def cpu_seconds(run: Callable[[], object]) -> float:
    """Return the CPU seconds of all threads in one call."""
    started = time.process_time()
    run()
    return time.process_time() - started


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description="Compare the engines of ood predict.")
    parser.add_argument("images", type=Path)
    parser.add_argument("--detector", required=True)
    parser.add_argument("--store", type=Path, required=True)
    parser.add_argument("--run", required=True)
    parser.add_argument("--starts", type=int, default=5)
    parser.add_argument("--turns", type=int, default=5)
    options = parser.parse_args()
    files = sorted(str(path) for path in options.images.rglob("*.png"))
    files += sorted(str(path) for path in options.images.rglob("*.JPEG"))
    for engine in ("onnx", "torch"):
        command = [
            sys.executable, "-m", "oodcli", "predict", files[0], "--detector", options.detector,
            "--engine", engine, "--format", "csv", "--device", "cpu",
        ]  # fmt: skip
        seconds, memory = zip(
            *(process_seconds(command) for _ in range(options.starts)), strict=True
        )
        say(
            f"{engine}: one image in {min(seconds):.2f} CPU s, peak {min(memory):.0f} MB "
            f"(minimum of {options.starts} processes)"
        )
    folder = find_run(Store.at(options.store), options.run)
    detectors = {
        engine: oodcli.load_detector(options.detector, engine=engine, device="cpu")
        for engine in ("torch", "onnx")
    }
    ways: dict[str, Callable[[], object]] = {
        "bare loop": lambda: bare_loop(folder, files, device=torch.device("cpu"), batch=64),
        **{name: (lambda each=each: each.predict(files)) for name, each in detectors.items()},
    }
    best = {name: float("inf") for name in ways}
    for turn in range(options.turns + 1):
        for name, way in ways.items():
            taken = cpu_seconds(way)
            if turn:  # the first warms up
                best[name] = min(best[name], taken)
    for name, taken in best.items():
        say(f"{name:10} {len(files) / taken:7.0f} images per CPU second, of {len(files):,}")


if __name__ == "__main__":
    main()
