"""NormRatio: which block of a network separates images best from their jigsaw puzzles.

Used by the command and by FeatureNorm alike.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from oodcli.errors import InvalidInputError, UndefinedMethodError


@dataclass(frozen=True, slots=True, eq=False)
class NormRatio:
    """The ratio of every block and the choice that follows from it; blocks count from 0.

    Parameters
    ----------
    ratio
        Mean over images of FeatureNorm of the image by that of its jigsaw puzzle, ``(b,)``; NaN
        where no image is left.
    stderr
        Standard error of ``ratio``, ``(b,)``; NaN where it takes more images.
    excluded
        Images left out of the mean because the norm of their jigsaw puzzle is zero, ``(b,)``.
    selected
        The block with the largest ratio among those that may be selected.
    runner_up
        The block with the next largest ratio among those; None if there is no other.
    clear
        Whether the lead over the runner-up is more than two of its standard errors; true without
        one.
    n_images
        Number of images.
    """

    ratio: NDArray[np.float64]
    stderr: NDArray[np.float64]
    excluded: NDArray[np.int64]
    selected: int
    runner_up: int | None
    clear: bool
    n_images: int


def norm_ratio(norms: ArrayLike, jigsaw_norms: ArrayLike) -> NormRatio:
    """Compare the block norms of images with those of their jigsaw puzzles and select a block.

    Parameters
    ----------
    norms
        FeatureNorm of every image and block, ``(n, b)``.
    jigsaw_norms
        FeatureNorm of the jigsaw puzzles of the same images, ``(n, b)``.

    Raises
    ------
    InvalidInputError
        If the arrays are empty, differ in shape, or hold values that are negative or not finite.
    UndefinedMethodError
        If every block has too many zero norms to be selected.

    References
    ----------
    Yu, Shin, Lee, Jun, Lee. "Block Selection Method for Using Feature Norm in Out-of-Distribution
    Detection". CVPR 2023, arXiv:2212.02295.

    Notes
    -----
    As in the paper, the ratio of a block is the mean of the ratios of the images, not the ratio of
    the means, and the block with the largest one is selected. Departures from the released code:
    images whose jigsaw norm is zero are left out of that block's mean, where a division would give
    inf or NaN, and a block that loses more than 0.1 % of the images so cannot be selected; standard
    errors are given; of equal ratios the first block wins.

    Examples
    --------
    >>> found = norm_ratio([[1.0, 4.0], [1.0, 2.0]], [[1.0, 2.0], [2.0, 1.0]])
    >>> found.ratio.tolist(), found.selected
    ([0.75, 2.0], 1)
    """
    originals = _checked(norms, "images")
    puzzles = _checked(jigsaw_norms, "jigsaw puzzles")
    if originals.shape != puzzles.shape:
        raise InvalidInputError(
            f"block norms of images {originals.shape} and of jigsaw puzzles {puzzles.shape} differ "
            f"in shape; compute both from the same images and network"
        )
    n_images, n_blocks = originals.shape
    valid = puzzles > 0
    ratios = np.divide(originals, puzzles, out=np.zeros_like(originals), where=valid)
    kept = [ratios[valid[:, block], block] for block in range(n_blocks)]
    ratio = np.array([values.mean() if len(values) else np.nan for values in kept])
    excluded = n_images - np.count_nonzero(valid, axis=0)

    # In whole numbers, so that exactly 0.1 % may still be selected.
    selectable = np.flatnonzero(1000 * excluded <= n_images)
    if not len(selectable):
        zeros = ", ".join(f"block {block}: {count}" for block, count in enumerate(excluded))
        raise UndefinedMethodError(
            f"no block can be selected: more than 0.1 % of {n_images} jigsaw puzzles have norm 0 "
            f"in each ({zeros}); name a block yourself, or train the network further"
        )
    # A stable sort keeps the first of equal ratios first.
    ranking = selectable[np.argsort(-ratio[selectable], kind="stable")]
    selected = int(ranking[0])
    runner_up = int(ranking[1]) if len(ranking) > 1 else None
    return NormRatio(
        ratio=ratio,
        stderr=np.array([_standard_error(values) for values in kept]),
        excluded=excluded.astype(np.int64),
        selected=selected,
        runner_up=runner_up,
        clear=runner_up is None or _leads(ratio, ratios, valid, (selected, runner_up)),
        n_images=n_images,
    )


def _checked(norms: ArrayLike, what: str) -> NDArray[np.float64]:
    """Return norms in double precision, after refusing what cannot be a norm."""
    array = np.asarray(norms, dtype=np.float64)
    if array.ndim != 2 or 0 in array.shape:
        raise InvalidInputError(
            f"block norms of {what} have shape {array.shape}; give at least one image (row) and "
            f"one block (column)"
        )
    wrong = ~(np.isfinite(array) & (array >= 0))
    if wrong.any():
        row, block = (int(at) for at in np.argwhere(wrong)[0])
        raise InvalidInputError(
            f"block norms of {what} hold {array[row, block]} in row {row}, block {block}; norms "
            f"are finite and not negative, so check the checkpoint"
        )
    return array


def _standard_error(values: NDArray[np.float64]) -> float:
    return float(values.std(ddof=1) / np.sqrt(len(values))) if len(values) > 1 else np.nan


def _leads(
    ratio: NDArray[np.float64],
    ratios: NDArray[np.float64],
    valid: NDArray[np.bool_],
    blocks: tuple[int, int],
) -> bool:
    """Say whether the first block leads by more than two standard errors, paired by image."""
    first, second = blocks
    both = valid[:, first] & valid[:, second]
    error = _standard_error(ratios[both, first] - ratios[both, second])
    # One image has no standard error, and no comparison with NaN holds.
    return bool(ratio[first] - ratio[second] > 2 * error)
