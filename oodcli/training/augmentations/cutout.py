"""Cutout: square holes in images."""

from collections.abc import Sequence

import torch
from torch import Tensor


def cutout(
    pixels: Tensor,
    generator: torch.Generator,
    *,
    size: int,
    holes: int,
    colour: Sequence[float],
) -> Tensor:
    """Fill square holes of each image with one colour.

    Parameters
    ----------
    pixels
        From 0 to 255, ``(n, 3, h, w)``.
    generator
        Random generator, on the device of the pixels.
    size
        Side of a hole in pixels; of an odd one, twice its half rounded down.
    holes
        Number of holes per image.
    colour
        The three channels of the colour, from 0 to 1: the mean of the normalisation.

    Returns
    -------
    Tensor
        float32 ``(n, 3, h, w)``. The centre of a hole is uniform over the pixels of the image, and
        the hole is clipped to the image.

    References
    ----------
    DeVries, Taylor. "Improved Regularization of Convolutional Neural Networks with Cutout".
    arXiv:1708.04552.

    Notes
    -----
    As in the code of the authors, the holes are zero after normalisation: the mean colour of the
    normalisation becomes zero, up to rounding in float32.
    """
    n, _, height, width = pixels.shape
    device = pixels.device
    covered = torch.zeros(n, height, width, dtype=torch.bool, device=device)
    for _ in range(holes):
        y = torch.randint(height, (n, 1), generator=generator, device=device)
        x = torch.randint(width, (n, 1), generator=generator, device=device)
        rows = _within(y, size // 2, height)
        columns = _within(x, size // 2, width)
        covered |= rows[:, :, None] & columns[:, None, :]
    filled = [
        torch.where(covered, 255 * value, channel.float())
        for channel, value in zip(pixels.unbind(1), colour, strict=True)
    ]
    return torch.stack(filled, dim=1)


def _within(centre: Tensor, half: int, side: int) -> Tensor:
    """Return which of ``side`` positions are in the range around each centre, ``(n, side)``."""
    at = torch.arange(side, device=centre.device)
    return (at >= centre - half) & (at < centre + half)
