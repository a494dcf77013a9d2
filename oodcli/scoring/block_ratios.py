"""NormRatio of the blocks of a run, with their names and shapes, and its storage."""

from dataclasses import dataclass
from typing import Any

import numpy as np

from oodcli.images import ImageSet
from oodcli.normratio import NormRatio
from oodcli.records import as_json
from oodcli.scoring.open_run import OpenRun
from oodcli.store.runs import RunFolder
from oodcli.store.store import write_json

NORMRATIO_SCHEMA = 1


@dataclass(frozen=True)
class Block:
    """NormRatio of one block.

    Parameters
    ----------
    index
        Index of the block, from 0.
    name
        Name of the block in the network.
    shape
        Channels, height and width of its output.
    ratio
        NormRatio; None if all images are excluded.
    stderr
        Its standard error; None for fewer than two images.
    excluded
        Number of images excluded because the norm of their jigsaw puzzle is zero.
    """

    index: int
    name: str
    shape: tuple[int, int, int]
    ratio: float | None
    stderr: float | None
    excluded: int


@dataclass(frozen=True)
class NormRatioResult:
    """NormRatio of all blocks of a run.

    Parameters
    ----------
    run
        Name of the run.
    arch
        Its architecture.
    data
        Name of the data set whose training images were used.
    blocks
        The blocks in forward order.
    selected
        Index of the block with the largest ratio.
    clear
        Whether its lead over the runner-up exceeds two standard errors.
    n_images
        Number of training images that were used.
    of_images
        Number of training images in the data set.
    normalised
        Whether the images were normalised as in training; the released script does not.
    """

    run: str
    arch: str
    data: str
    blocks: tuple[Block, ...]
    selected: int
    clear: bool
    n_images: int
    of_images: int
    normalised: bool

    def to_json(self) -> dict[str, Any]:
        """Return the versioned object that ``--format json`` prints."""
        return {"schema": NORMRATIO_SCHEMA, **as_json(self)}


def describe(run: OpenRun, ratios: NormRatio, *, of: ImageSet, normalised: bool) -> NormRatioResult:
    """Return NormRatio of some training images of a run with names and shapes of the blocks."""
    blocks = tuple(
        Block(
            index=index,
            name=name,
            shape=shape,
            ratio=_number(ratios.ratio[index]),
            stderr=_number(ratios.stderr[index]),
            excluded=int(ratios.excluded[index]),
        )
        for index, (name, shape) in enumerate(run.activator.block_shapes().items())
    )
    return NormRatioResult(
        run=run.name,
        arch=run.record.arch,
        data=run.record.data_name,
        blocks=blocks,
        selected=ratios.selected,
        clear=ratios.clear,
        n_images=ratios.n_images,
        of_images=run.data.n_train(of),
        normalised=normalised,
    )


def write_normratio(folder: RunFolder, result: NormRatioResult, *, precision: str) -> None:
    """Store a result with the run."""
    name = stem_of(
        result.n_images, of=result.of_images, normalised=result.normalised, precision=precision
    )
    write_json(folder.normratio / f"{name}.json", result.to_json())


def stem_of(n_images: int, *, of: int, normalised: bool, precision: str) -> str:
    """Return the name of the file of a result, without extension."""
    images = "all" if n_images == of else str(n_images)
    kind = "normalised" if normalised else "unnormalised"
    return f"{kind}-{images}" + ("" if precision == "float32" else f"-{precision}")


def _number(value: float) -> float | None:
    return float(value) if np.isfinite(value) else None
