"""Where a block is quiet or loud on training images and on their jigsaw puzzles."""

import numpy as np
from numpy.typing import NDArray

from oodcli.data.views import View
from oodcli.images import ImageSet
from oodcli.normratio import NormRatio
from oodcli.reporting.activation_maps import ActivationMaps, stored_maps, write_maps
from oodcli.scoring.block_ratios import stem_of
from oodcli.scoring.open_run import OpenRun
from oodcli.screening.energy_map import EnergyMap

PERCENTILES = (5, 25, 50, 75, 95)
"""The images are those at these percentiles of their ratio at the selected block."""


def write_activation_maps(
    run: OpenRun,
    images: ImageSet,
    ratios: NormRatio,
    norms: NDArray[np.float32],
    jigsaw_norms: NDArray[np.float32],
    *,
    normalise: bool,
) -> None:
    """Store maps of the selected block of a few images with NormRatio, unless they are stored.

    Parameters
    ----------
    run
        The run.
    images
        The images that NormRatio was computed on.
    ratios
        NormRatio.
    norms, jigsaw_norms
        FeatureNorm of the images and of their puzzles, ``(n, b)``.
    normalise
        Whether images are normalised.

    Notes
    -----
    One forward pass over ten images. It is the only way to the maps, of which the store has the
    norms alone.
    """
    block = ratios.selected
    rows = representative_rows(norms[:, block], jigsaw_norms[:, block])
    stem = stem_of(len(images), of=run.data.n_train(images), normalised=normalise,
                   precision=run.compute.precision)  # fmt: skip
    if _are_of(stored_maps(run.folder, stem), block, rows, norms[rows], jigsaw_norms[rows]):
        return
    chosen = images.take(np.sort(rows))
    order = np.searchsorted(np.sort(rows), rows)
    pixels = chosen.pixels()
    indices = np.concatenate([shard.indices for shard in chosen.shards])
    puzzles = View("jigsaw").apply(pixels, indices)
    energy = EnergyMap(run.record.blocks[block])
    both = np.concatenate([pixels[order], puzzles[order]])
    found = run.activator.of_pixels(both, [energy], normalise=normalise).extra[energy.key]
    maps, puzzle_maps = np.split(found.cpu().numpy(), 2)
    write_maps(
        run.folder,
        stem,
        ActivationMaps(
            block, rows, pixels[order], puzzles[order], maps, puzzle_maps,
            norms[rows, block], jigsaw_norms[rows, block],
        ),
    )  # fmt: skip


def _are_of(
    maps: ActivationMaps | None,
    block: int,
    rows: NDArray[np.int64],
    norms: NDArray[np.float32],
    jigsaw_norms: NDArray[np.float32],
) -> bool:
    """Return whether maps are of a block and of images with these norms, without decoding these."""
    return (
        maps is not None
        and maps.block == block
        and np.array_equal(maps.rows, rows)
        and np.array_equal(maps.norms, norms[:, block])
        and np.array_equal(maps.puzzle_norms, jigsaw_norms[:, block])
    )


def representative_rows(
    norms: NDArray[np.float32], jigsaw_norms: NDArray[np.float32]
) -> NDArray[np.int64]:
    """Return the rows at :data:`PERCENTILES` of the ratio of both norms, without repetition.

    Parameters
    ----------
    norms, jigsaw_norms
        FeatureNorm of one block, of images and of their puzzles, ``(n,)``; images whose puzzle has
        a norm of 0 are left out.

    Examples
    --------
    >>> ones = np.ones(101, np.float32)
    >>> representative_rows(np.arange(101, 0, -1, dtype=np.float32), ones).tolist()
    [95, 75, 50, 25, 5]
    >>> representative_rows(np.array([3.0, 1.0, 2.0], np.float32), np.array([1, 0, 1])).tolist()
    [2, 0]
    """
    defined = np.flatnonzero(jigsaw_norms > 0)
    ratio = norms[defined].astype(np.float64) / jigsaw_norms[defined]
    order = defined[np.argsort(ratio, kind="stable")]
    places = [round(percent / 100 * (len(order) - 1)) for percent in PERCENTILES]
    return np.asarray(order[list(dict.fromkeys(places))], dtype=np.int64)
