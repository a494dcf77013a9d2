"""Activation maps of images and their jigsaw puzzles: a record, its file, and its picture."""

from dataclasses import dataclass, fields

import numpy as np
from numpy.typing import NDArray
from safetensors.numpy import save as safetensors

from oodcli.errors import CorruptArtifactError
from oodcli.reporting.plots import PAGE, SMALLEST, Picture, clipped, drawing
from oodcli.reporting.sheets import enlarged
from oodcli.store.activations import ArrayFolder
from oodcli.store.runs import RunFolder

_COLOURS = "cividis"  # from dark to light also in grey, and with any colour blindness


@dataclass(frozen=True, eq=False)
class ActivationMaps:
    """Maps of one block of a few training images and of their jigsaw puzzles.

    Parameters
    ----------
    block
        Index of the block.
    rows
        Rows of the images among those that NormRatio was computed on, ``(m,)``.
    pixels, puzzles
        Images and puzzles, uint8 ``(m, 3, h, w)``.
    maps, puzzle_maps
        L2 norm over channels of the ReLU of the block at every position, ``(m, y, x)``.
    norms, puzzle_norms
        FeatureNorm of the block, ``(m,)``.
    """

    block: int
    rows: NDArray[np.int64]
    pixels: NDArray[np.uint8]
    puzzles: NDArray[np.uint8]
    maps: NDArray[np.float32]
    puzzle_maps: NDArray[np.float32]
    norms: NDArray[np.float32]
    puzzle_norms: NDArray[np.float32]


def write_maps(folder: RunFolder, stem: str, maps: ActivationMaps) -> None:
    """Store maps beside the NormRatio of a run whose file has this stem; replaces older ones."""
    place = ArrayFolder(folder.normratio / "maps")
    place.remove(stem)
    arrays = {each.name: np.atleast_1d(getattr(maps, each.name)) for each in fields(maps)}
    arrays = {name: np.ascontiguousarray(array) for name, array in arrays.items()}
    place.write(stem, safetensors(arrays))


def stored_maps(folder: RunFolder, stem: str) -> ActivationMaps | None:
    """Return the stored maps; None if there are none.

    Raises
    ------
    CorruptArtifactError
        If the file is damaged.
    """
    place = ArrayFolder(folder.normratio / "maps")
    try:
        arrays = place.arrays(stem)
        return ActivationMaps(block=int(arrays.pop("block")[0]), **arrays)
    except FileNotFoundError:
        return None
    except (KeyError, IndexError, TypeError) as error:
        raise CorruptArtifactError(
            f"maps of {stem} in {place.path} are damaged: {error}; remove them"
        ) from None


def maps_of_block(folder: RunFolder, stem: str, block: int) -> ActivationMaps | None:
    """Return stored maps of a block: with a NormRatio, or of other images; None without any.

    Parameters
    ----------
    folder
        Folder of the run.
    stem
        Stem of the file of the NormRatio whose maps are preferred.
    block
        Index of the block.

    Raises
    ------
    CorruptArtifactError
        If a file is damaged.
    """
    others = sorted(ArrayFolder(folder.normratio / "maps").stored().keys() - {stem})
    found = (stored_maps(folder, each) for each in (stem, *others))
    return next((maps for maps in found if maps is not None and maps.block == block), None)


def activation_maps(run: str, name: str, maps: ActivationMaps) -> Picture:
    """Draw images over their maps, and their puzzles over theirs, all maps with one scale.

    Parameters
    ----------
    run
        Name of the run.
    name
        Name of the block.
    maps
        The maps.
    """
    title = (
        f"Activation maps of block {maps.block} ({clipped(name, 20, 1)}), selected by NormRatio, "
        f"of training images and their jigsaw puzzles: {clipped(run, 60, 1)}"
    )
    count = len(maps.rows)
    left, right, top, line, gap = 0.85, 0.75, 0.5, 0.16, 0.06  # inches
    side = min(1.25, (PAGE - left - right) / count - gap)
    rows = (
        ("image", maps.pixels, None),
        ("map of\nthe image", None, maps.maps),
        ("jigsaw\npuzzle", maps.puzzles, None),
        ("map of\nthe puzzle", None, maps.puzzle_maps),
    )
    height = top + 3 * line + len(rows) * (side + gap) + 0.05
    largest = float(max(maps.maps.max(), maps.puzzle_maps.max())) or 1.0
    with drawing():
        from matplotlib.figure import Figure

        figure = Figure(figsize=(PAGE, height))
        heading = clipped(title, 95)
        figure.suptitle(heading, fontsize=SMALLEST + 1, y=1 - 0.06 / height, va="top")
        for column in range(count):
            norm, puzzle = float(maps.norms[column]), float(maps.puzzle_norms[column])
            x = left + column * (side + gap)
            figure.text(
                (x + side / 2) / PAGE, 1 - top / height,
                f"{norm:.3g} / {puzzle:.3g}\n= {norm / puzzle:.2f}",
                ha="center", va="top", fontsize=SMALLEST,
            )  # fmt: skip
        figure.text(
            0.05 / PAGE, 1 - top / height, "FeatureNorm,\nratio", va="top", fontsize=SMALLEST
        )
        for row, (label, pixels, values) in enumerate(rows):
            y = height - top - 2.2 * line - (row + 1) * (side + gap)
            figure.text(0.05 / PAGE, (y + side / 2) / height, label, va="center", fontsize=SMALLEST)
            for column in range(count):
                x = left + column * (side + gap)
                axes = figure.add_axes((x / PAGE, y / height, side / PAGE, side / height))
                axes.set_axis_off()
                if pixels is not None:
                    axes.imshow(enlarged(pixels[column].transpose(1, 2, 0)), interpolation="none")
                elif values is not None:
                    shown = axes.imshow(
                        values[column], cmap=_COLOURS, vmin=0, vmax=largest, interpolation="none"
                    )
        x = left + count * (side + gap) + 0.05
        bar = figure.add_axes((x / PAGE, (y + side / 2) / height, 0.12 / PAGE, 3 * side / height))
        figure.colorbar(shown, cax=bar)
        bar.set_ylabel("energy (units of activation)", fontsize=SMALLEST)
        bar.tick_params(labelsize=SMALLEST)
    ratios = maps.norms / maps.puzzle_norms
    return Picture(
        "activation-maps",
        title,
        f"{count} training images, their jigsaw puzzles, and maps of block {maps.block} of both; "
        f"ratios of FeatureNorm {', '.join(f'{each:.2f}' for each in ratios)}",
        figure,
        many_colours=True,
    )
