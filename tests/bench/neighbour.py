"""Training, scoring and predicting beside a busy neighbour, and what waiting passively costs.

::

    python tests/bench/neighbour.py --turns 3

Threads of OpenMP wait at the end of every layer. While they wait they spin, as torch has it, or
sleep, as ood has it; and small batches are computed by one thread. Each way runs in processes of
its own, once alone and once beside a program that never rests. The ways take turns, so that other
work on the machine slows them alike; what is printed is the median of the turns and the fastest.
``one image`` and ``bare network`` are the same image through ``Detector.score`` and through the
module, on the threads that each takes.
"""

import argparse
import contextlib
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

# What libgomp does where nobody says anything: about 3 ms of spinning.
WAYS = {
    "spinning": {"GOMP_SPINCOUNT": "300000"},
    "passive": {},
    "one thread": {"OMP_NUM_THREADS": "1"},
}
KNOWN = ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT", "KMP_BLOCKTIME", "OMP_NUM_THREADS")


def milliseconds(run: Callable[[], object], *, turns: int) -> float:
    """Return the median time of a call."""
    times = []
    for turn in range(turns + 2):
        started = time.perf_counter()
        run()
        if turn > 1:
            times.append(time.perf_counter() - started)
    return 1e3 * statistics.median(times)


def measure() -> dict[str, float]:
    """Train, score and predict in this process; return milliseconds by what was done."""
    import oodcli  # noqa: I001 - before torch, whose threads it tells how to wait
    import numpy as np
    import torch

    from oodcli.models.extraction import ReadyNetwork
    from oodcli.store.store import Store
    from oodcli.workflows.train import TrainRequest, train

    pixels = np.random.default_rng(0).integers(0, 256, (512, 32, 32, 3), dtype=np.uint8)
    found: dict[str, float] = {}
    with tempfile.TemporaryDirectory() as scratch:
        request = TrainRequest(data="digits", arch="resnet20", epochs=1, name="bench", device="cpu")
        started = time.perf_counter()
        train(Store(Path(scratch)), request)
        found["train, an epoch of digits"] = 1e3 * (time.perf_counter() - started)
        run = oodcli.load_run("bench", store=scratch)
        detector = run.detector("msp", device="cpu")
        network = detector._fitted.network(detector._folder)
        shard = np.ascontiguousarray(pixels.transpose(0, 3, 1, 2))
        ready, half = ReadyNetwork(network), (0.5, 0.5, 0.5)
        found["score, 512 images"] = milliseconds(
            lambda: list(ready.extract([shard], mean=half, std=half)), turns=3
        )
        found["predict, 64 images"] = milliseconds(lambda: detector.predict(pixels[:64]), turns=5)
        found["predict, one image"] = milliseconds(lambda: detector.score(pixels[0]), turns=40)
        image = torch.rand(1, 3, 32, 32)
        with torch.inference_mode():
            found["bare network, one image"] = milliseconds(lambda: network.module(image), turns=40)
    return found


@contextlib.contextmanager
def neighbour(*, busy: bool) -> Iterator[None]:
    """Keep one core busy meanwhile."""
    if not busy:
        yield
        return
    with subprocess.Popen([sys.executable, "-c", "while True: pass"]) as other:
        try:
            yield
        finally:
            other.kill()


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description="Measure ood beside a busy neighbour.")
    parser.add_argument("--turns", type=int, default=3)
    parser.add_argument("--measure", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.measure:
        sys.stdout.write(json.dumps(measure()))
        return
    rest = {name: value for name, value in os.environ.items() if name not in KNOWN}
    taken: dict[tuple[str, bool, str], list[float]] = {}
    for _ in range(options.turns):
        for busy in (False, True):
            for way, setting in WAYS.items():
                with neighbour(busy=busy):
                    done = subprocess.run(
                        [sys.executable, __file__, "--measure"],
                        check=True, capture_output=True, text=True, env=rest | setting,
                    )  # fmt: skip
                found = json.loads(done.stdout)
                sys.stderr.write(f"{way}{', busy neighbour' if busy else ''}: {found}\n")
                for what, value in found.items():
                    taken.setdefault((what, busy, way), []).append(value)
    sys.stdout.write(f"{os.cpu_count()} processors, load {os.getloadavg()[0]:.1f}\n")
    for (what, busy, way), values in sorted(taken.items()):
        sys.stdout.write(
            f"{what:28} {'busy neighbour' if busy else 'alone':15} {way:11} "
            f"median {statistics.median(values):9.1f} ms, fastest {min(values):9.1f} ms\n"
        )


if __name__ == "__main__":
    main()
