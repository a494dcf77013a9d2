"""Benchmarks: which data sets are scored together, and by which convention."""

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType


@dataclass(frozen=True, slots=True)
class Benchmark:
    """In-distribution images and the OOD sets that they are to be told from.

    Parameters
    ----------
    name
        Its key.
    title
        What it is, in a few words.
    id_set
        Name of the in-distribution data set; None for the user's own.
    near, far, ood
        Names of the OOD data sets: close to the classes, far from them, or not divided.
    convention
        Name of the metric convention.
    size
        Height and width to which every image is resized.
    """

    name: str
    title: str
    id_set: str | None
    near: tuple[str, ...] = ()
    far: tuple[str, ...] = ()
    ood: tuple[str, ...] = ()
    convention: str = "neutral"
    size: tuple[int, int] = (32, 32)

    @property
    def groups(self) -> dict[str, tuple[str, ...]]:
        """Groups that have data sets, in the order of a table."""
        groups = {"near": self.near, "far": self.far, "ood": self.ood}
        return {name: names for name, names in groups.items() if names}


def own_benchmark(*, grey: bool, size: tuple[int, int] = (32, 32)) -> Benchmark:
    """Return OOD sets that need no download, for in-distribution images of the user's own.

    Parameters
    ----------
    grey
        Whether the images have no colour; colour alone would give colour photographs away.
    size
        Height and width to which every image is resized.
    """
    photographs = "photographs-grey" if grey else "photographs"
    return Benchmark(
        name="own",
        title="your images against photographs and noise",
        id_set=None,
        ood=(photographs, "gaussian-noise", "uniform-noise"),
        size=size,
    )


BENCHMARKS: Mapping[str, Benchmark] = MappingProxyType(
    {
        "digits": Benchmark(
            name="digits",
            title="digits 0 to 5 against other digits, photographs and noise",
            id_set="digits",
            near=("digits-6-9",),
            far=("photographs-grey", "gaussian-noise", "uniform-noise"),
        )
    }
)
