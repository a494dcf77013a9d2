"""Exact percentiles of large arrays, as NumPy interpolates them.

``torch.quantile`` refuses more than 16 million values, and a training bank has far more.
"""

from collections.abc import Iterable
from math import floor, inf

import numpy as np
import torch
from torch import Tensor

from oodcli.activations import Reference

# Values that are looked at together: after the first of them, few remain to be kept.
_PIECE = 2**18


def ascending(values: Tensor) -> Tensor:
    """Return values sorted along the last dimension.

    NumPy sorts with vector instructions and without the indices, which on a CPU takes a small part
    of the time that torch takes; a GPU sorts by itself.
    """
    if values.device.type == "cpu":
        return torch.from_numpy(np.sort(values.detach().numpy(), axis=-1))
    return values.sort(dim=-1).values


def at_percentile(ordered: Tensor, percent: float) -> float:
    """Return a percentile of sorted values, with linear interpolation between neighbours.

    Parameters
    ----------
    ordered
        Ascending values, ``(n,)``.
    percent
        From 0 to 100.
    """
    place = (len(ordered) - 1) * percent / 100
    below = floor(place)
    above = min(below + 1, len(ordered) - 1)
    low, high = float(ordered[below]), float(ordered[above])
    return low + (high - low) * (place - below)


def calibration_percentile(reference: Reference, percent: float) -> float:
    """Return a percentile of all features of all calibration images, sorted once for all methods.

    Parameters
    ----------
    reference
        The calibration images.
    percent
        From 0 to 100.
    """
    ordered = reference.once(
        "calibration features in order", lambda: ascending(reference.calibration.features.flatten())
    )
    return at_percentile(ordered, percent)


def outer_percentiles(
    chunks: Iterable[Tensor], *, total: int, low: float, high: float
) -> tuple[float, float]:
    """Return a low and a high percentile of more values than fit in memory.

    Only the values outside the percentiles are held in memory.

    Parameters
    ----------
    chunks
        The values, of any shape.
    total
        How many there are in all chunks.
    low
        The low percentile.
    high
        The high percentile.
    """
    low_place, high_place = (total - 1) * low / 100, (total - 1) * high / 100
    smallest = _Outer(min(floor(low_place) + 2, total), largest=False)
    largest = _Outer(total - floor(high_place), largest=True)
    for chunk in chunks:
        for values in chunk.flatten().split(_PIECE):
            smallest.add(values)
            largest.add(values)
    lows, highs = smallest.values(), largest.values()
    return (
        at_percentile(lows, 100 * low_place / max(len(lows) - 1, 1)),
        at_percentile(highs, 100 * (high_place - floor(high_place)) / max(len(highs) - 1, 1)),
    )


class _Outer:
    """The ``count`` smallest or largest of all values added."""

    def __init__(self, count: int, *, largest: bool) -> None:
        self._count, self._largest = count, largest
        self._parts: list[Tensor] = []
        self._held = 0
        self._bound = -inf if largest else inf

    def add(self, values: Tensor) -> None:
        inside = values > self._bound if self._largest else values < self._bound
        self._parts.append(values[inside])
        self._held += len(self._parts[-1])
        # Sorting only after as many values again have come in keeps the cost linear.
        if self._held > 2 * self._count:
            self._parts = [self.values()]
            self._held = self._count
            self._bound = float(self._parts[0][0 if self._largest else -1])

    def values(self) -> Tensor:
        """Return them in ascending order."""
        ordered = ascending(torch.cat(self._parts))
        return ordered[-self._count :] if self._largest else ordered[: self._count]
