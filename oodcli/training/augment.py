"""Random changes of training images, made for a whole batch at once where the images are."""

import torch
from torch import Tensor
from torch.nn import functional


def augment(pixels: Tensor, generator: torch.Generator, *, flip: bool, crop_padding: int) -> Tensor:
    """Mirror each image with probability one half, then cut a random crop out of its padded self.

    Parameters
    ----------
    pixels
        uint8 ``(n, c, h, w)``.
    generator
        Source of chance, on the device of the pixels.
    flip
        Whether to mirror.
    crop_padding
        Zero pixels on every side before the crop; 0 for no crop.

    Returns
    -------
    Tensor
        uint8 ``(n, c, h, w)``; every image and every choice independent of the others.
    """
    n, _, height, width = pixels.shape
    device = pixels.device
    columns = torch.arange(width, device=device).expand(n, width)
    if flip:
        mirrored = torch.rand(n, 1, generator=generator, device=device) < 0.5
        columns = torch.where(mirrored, width - 1 - columns, columns)  # (n, w)
    rows = torch.arange(height, device=device).expand(n, height)
    if crop_padding:
        pixels = functional.pad(pixels, [crop_padding] * 4)
        shifts = torch.randint(
            0, 2 * crop_padding + 1, (2, n, 1), generator=generator, device=device
        )
        # Mirroring comes first: a mirrored image is shifted the other way round in the original.
        shifted = torch.arange(width, device=device) + shifts[1]  # (n, w)
        if flip:
            shifted = torch.where(mirrored, width + 2 * crop_padding - 1 - shifted, shifted)
        columns = shifted
        rows = rows + shifts[0]
    elif not flip:
        return pixels
    picked = torch.arange(n, device=device)[:, None, None]
    # Advanced indices on both sides of the channel slice put the channels last.
    return pixels[picked, :, rows[:, :, None], columns[:, None, :]].permute(0, 3, 1, 2)
