"""NormRatio: which block of a network separates images best from their jigsaw puzzles.

Used by the command ``ood normratio`` and by the method FeatureNorm.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from oodcli.errors import InvalidInputError, UndefinedMethodError


@dataclass(frozen=True, slots=True, eq=False)
class NormRatio:
    """NormRatio of every block and the selected block; blocks are counted from 0.

    Parameters
    ----------
    ratio
        Mean over images of the FeatureNorm of the image divided by that of its jigsaw puzzle,
        ``(b,)``; NaN if no image remains.
    stderr
        Standard error of ``ratio``, ``(b,)``; NaN if fewer than two images remain.
    excluded
        Number of images excluded from the mean because the norm of their jigsaw puzzle is zero,
        ``(b,)``.
    selected
        The block with the largest ratio among the selectable blocks.
    runner_up
        The block with the second largest ratio among them; None if there is no other.
    clear
        Whether the lead over the runner-up exceeds two standard errors of the lead; True without a
        runner-up.
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
    """Compute NormRatio from the block norms of images and of their jigsaw puzzles.

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
        If no block is selectable because of zero norms.

    References
    ----------
    Yu, Shin, Lee, Jun, Lee. "Block Selection Method for Using Feature Norm in Out-of-Distribution
    Detection". CVPR 2023, arXiv:2212.02295.

    Notes
    -----
    As in the paper, the ratio of a block is the mean of the ratios of the images, not the ratio of
    the means, and the block with the largest ratio is selected. Departures from the released code:
    images whose jigsaw norm is zero, for which the ratio is inf or NaN, are excluded from the mean
    of that block, and a block that excludes more than 0.1 % of the images is not selectable;
    standard errors are computed; among equal ratios the first block is selected.

    Examples
    --------
    >>> result = norm_ratio([[1.0, 4.0], [1.0, 2.0]], [[1.0, 2.0], [2.0, 1.0]])
    >>> result.ratio.tolist(), result.selected
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
    included = [ratios[valid[:, block], block] for block in range(n_blocks)]
    ratio = np.array([values.mean() if len(values) else np.nan for values in included])
    excluded = n_images - np.count_nonzero(valid, axis=0)

    # In integers, so that a block with exactly 0.1 % is still selectable.
    selectable = np.flatnonzero(1000 * excluded <= n_images)
    if not len(selectable):
        zeros = ", ".join(f"block {block}: {count}" for block, count in enumerate(excluded))
        raise UndefinedMethodError(
            f"no block can be selected: more than 0.1 % of {n_images} jigsaw puzzles have norm 0 "
            f"in each ({zeros}); give a block explicitly, or train the network further"
        )
    # A stable sort preserves the order of blocks with equal ratios.
    ranking = selectable[np.argsort(-ratio[selectable], kind="stable")]
    selected = int(ranking[0])
    runner_up = int(ranking[1]) if len(ranking) > 1 else None
    return NormRatio(
        ratio=ratio,
        stderr=np.array([_standard_error(values) for values in included]),
        excluded=excluded.astype(np.int64),
        selected=selected,
        runner_up=runner_up,
        clear=runner_up is None or _leads(ratio, ratios, valid, (selected, runner_up)),
        n_images=n_images,
    )


def _checked(norms: ArrayLike, what: str) -> NDArray[np.float64]:
    """Return norms as float64; raise an error for values that cannot be norms."""
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
    """Return whether the first block leads by more than two standard errors, paired by image."""
    first, second = blocks
    both = valid[:, first] & valid[:, second]
    error = _standard_error(ratios[both, first] - ratios[both, second])
    # With one image the standard error is NaN, and a comparison with NaN is False.
    return bool(ratio[first] - ratio[second] > 2 * error)
