"""Images a second of extraction, beside a plain loop without hooks over the same images.

::

    python tests/bench/extraction.py resnet18 --batch 64 --images 512
    python tests/bench/extraction.py timm:tf_efficientnet_lite0 --size 224 --batch 8 --images 48

The ways take turns in one process, so that other work on the machine slows all of them alike. A
way's rate is that of its median turn; where its slowest turn is far slower, the machine was not
free. Page faults are those of one image; ``--free-memory`` gives freed memory back at once, as the
C library does and ``ood`` does not.
"""

import argparse
import resource
import statistics
import sys
import time
from collections.abc import Callable
from functools import partial

import numpy as np
import torch
from numpy.typing import NDArray

from oodcli.__main__ import keep_freed_memory
from oodcli.images import SHARD_ROWS
from oodcli.methods.csd import Regions
from oodcli.models import Network, network_of, parse_architecture
from oodcli.models.extraction import extract

MEAN = STD = (0.5, 0.5, 0.5)


def plain_loop(
    network: Network, pixels: NDArray[np.uint8], *, device: torch.device, batch: int
) -> None:
    """Run the network as it is, in float32 and torch's ordinary layout."""
    mean = torch.tensor(MEAN, device=device).view(3, 1, 1)
    std = torch.tensor(STD, device=device).view(3, 1, 1)
    with torch.inference_mode():
        logits = [
            network.module(images.to(device).float().div_(255).sub_(mean).div_(std))
            for images in torch.from_numpy(pixels).split(batch)
        ]
        torch.cat(logits).cpu()


def hooked(
    network: Network,
    pixels: NDArray[np.uint8],
    *,
    device: torch.device,
    batch: int,
    precision: str,
    regions: bool = False,
) -> None:
    """Run the network through ``extract``, with the regions of the last map on request."""
    shards = (pixels[at : at + SHARD_ROWS] for at in range(0, len(pixels), SHARD_ROWS))
    outputs = extract(
        network,
        shards,
        mean=MEAN,
        std=STD,
        device=device,
        precision=precision,
        batch_size=batch,
        probes=[Regions()] if regions else [],
    )
    for _ in outputs:
        pass


def seconds(run: Callable[[], None]) -> float:
    """Return the time that one call takes."""
    started = time.perf_counter()
    run()
    return time.perf_counter() - started


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description="Measure images a second of extraction.")
    parser.add_argument("arch", nargs="?", default="resnet18")
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--images", type=int, default=512)
    parser.add_argument("--size", type=int, default=32, help="height and width in pixels")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--turns", type=int, default=7)
    parser.add_argument("--free-memory", action="store_true", help="as without ood")
    options = parser.parse_args()
    if not options.free_memory and not keep_freed_memory():
        sys.stdout.write("freed memory is treated as the environment or the C library says\n")

    torch.set_num_threads(options.threads)
    device = torch.device(options.device)
    spec = parse_architecture(options.arch)
    network = network_of(spec, spec.build(10).to(device))
    shape = (options.images, 3, options.size, options.size)
    pixels = np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)
    common = {"device": device, "batch": options.batch}
    ways = {
        "plain loop, float32": partial(plain_loop, network, pixels, **common),
        "extract, float32": partial(hooked, network, pixels, precision="float32", **common),
        "extract with regions": partial(
            hooked, network, pixels, precision="float32", regions=True, **common
        ),
        "extract, bfloat16": partial(hooked, network, pixels, precision="bfloat16", **common),
    }
    for run in ways.values():
        run()  # the first turn of each builds kernels
    times: dict[str, list[float]] = {name: [] for name in ways}
    faults = dict.fromkeys(ways, 0)
    for _ in range(options.turns):
        for name, run in ways.items():
            before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
            times[name].append(seconds(run))
            faults[name] += resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

    plain = statistics.median(times["plain loop, float32"])
    write = sys.stdout.write
    write(
        f"{spec}, {options.images} images of {options.size} x {options.size}, batch "
        f"{options.batch}, {device}, {torch.get_num_threads()} threads, {options.turns} turns\n"
    )
    for name, taken in times.items():
        middle = statistics.median(taken)
        rate, slowest, fastest = (options.images / t for t in (middle, max(taken), min(taken)))
        write(
            f"{name:22s}{rate:9.1f} images/s ({slowest:.1f} to {fastest:.1f}), "
            f"{plain / middle:.2f} of the plain loop, "
            f"{faults[name] / options.turns / options.images:.1f} page faults\n"
        )


if __name__ == "__main__":
    main()
