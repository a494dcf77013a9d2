"""The operations of RandAugment, AugMix and PixMix, for a whole batch at once.

Every image has an operation and a strength of its own. The results are those of the functions of
``torchvision.transforms.v2.functional`` of the same name for 8-bit tensors, with bilinear
interpolation and black outside the image: affine operations are one grid sample, operations that
change each pixel value by itself are one table of 256 values per image and channel.
"""

import math
from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional

# By their position, which is the number of the operation.
OPERATIONS = (
    "identity", "shear-x", "shear-y", "translate-x", "translate-y", "rotate", "brightness",
    "contrast", "posterize", "solarize", "autocontrast", "equalize", "colour", "sharpness",
)  # fmt: skip
_AFFINE = (1, 5)  # the first and the last operation of each group
_TABLES = (6, 11)
_COLOUR = (12, 12)
_SHARPNESS = (13, 13)
# Luminance of red, green and blue, ITU-R 601.
_LUMINANCE = (0.299, 0.587, 0.114)


def number_of(name: str) -> int:
    """Return the number of an operation."""
    return OPERATIONS.index(name)


def changed(pixels: Tensor, kinds: Tensor, strengths: Tensor) -> Tensor:
    """Apply one operation to each image.

    Parameters
    ----------
    pixels
        uint8 ``(n, 3, h, w)``.
    kinds
        Number of the operation of each image, int64 ``(n,)``; see :data:`OPERATIONS`.
    strengths
        float32 ``(n,)``: pixels per row or column (shear), pixels (translate), degrees (rotate), a
        factor (brightness, contrast, colour, sharpness), bits that remain (posterize) or the
        smallest value that is inverted (solarize); ignored for the others.

    Returns
    -------
    Tensor
        uint8 ``(n, 3, h, w)``.

    Notes
    -----
    On the CPU each group of operations computes its own images only; elsewhere all images, because
    selecting them would have to wait for the device.
    """
    for (first, last), change in _GROUPS:
        chosen = (kinds >= first) & (kinds <= last)
        if pixels.device.type != "cpu":
            mask = chosen[:, None, None, None]
            pixels = torch.where(mask, change(pixels, kinds, strengths), pixels)
            continue
        rows = chosen.nonzero()[:, 0]
        if len(rows):
            of_rows = change(pixels[rows], kinds[rows], strengths[rows])
            pixels = pixels.index_copy(0, rows, of_rows)
    return pixels


def _moved(pixels: Tensor, kinds: Tensor, strengths: Tensor) -> Tensor:
    """Shear, translate or rotate; other operations leave the image in its place."""
    n, _, height, width = pixels.shape

    def where(name: str, value: Tensor | float) -> Tensor:
        return torch.where(kinds == number_of(name), value, torch.zeros_like(strengths))

    # From a place in the result to its place in the image, both relative to the centre.
    radians = where("rotate", strengths * (math.pi / 180))
    cos, sin = radians.cos(), radians.sin()
    shear_x, shear_y = where("shear-x", strengths), where("shear-y", strengths)
    # A shear leaves the first row or column in its place, not the centre.
    across = shear_x * (height / 2) - where("translate-x", strengths.trunc())
    down = shear_y * (width / 2) - where("translate-y", strengths.trunc())
    rows = torch.stack([cos, shear_x - sin, across, shear_y + sin, cos, down], dim=1)
    matrix = rows.view(n, 2, 3)
    x = torch.linspace((1 - width) / 2, (width - 1) / 2, width, device=pixels.device)
    y = torch.linspace((1 - height) / 2, (height - 1) / 2, height, device=pixels.device)
    places = torch.stack(
        [x.expand(height, width), y[:, None].expand(height, width), x.new_ones(height, width)], -1
    ).view(-1, 3)  # (h w, 3)
    grid = torch.stack(
        [places @ matrix[:, 0].T * (2 / width), places @ matrix[:, 1].T * (2 / height)], dim=-1
    )  # (h w, n, 2)
    grid = grid.transpose(0, 1).reshape(n, height, width, 2)
    moved = functional.grid_sample(
        pixels.float(), grid, mode="bilinear", padding_mode="zeros", align_corners=False
    )
    return moved.round_().clamp_(0, 255).to(torch.uint8)


def _looked_up(pixels: Tensor, kinds: Tensor, strengths: Tensor) -> Tensor:
    """Change each pixel value by itself, by a table of each image and channel."""
    n, channels = pixels.shape[:2]
    strength = strengths[:, None, None]
    values = torch.arange(256, device=pixels.device, dtype=torch.float32)
    bits = 8 - strength.trunc()
    tables = {
        "brightness": (values * strength).clamp(0, 255).floor(),
        "contrast": _blended_values(values, mean_luminance(pixels), strength),
        "posterize": (values / 2**bits).floor() * 2**bits,
        "solarize": torch.where(values >= strength, 255 - values, values),
        "autocontrast": _stretched(pixels, values),
        "equalize": _equalised(pixels, values),
    }
    table = values.expand(n, channels, 256)
    for name, of_name in tables.items():
        table = torch.where((kinds == number_of(name))[:, None, None], of_name, table)
    flat = pixels.flatten(2).long()
    return table.to(torch.uint8).gather(2, flat).view_as(pixels)


def _blended_values(values: Tensor, towards: Tensor, factor: Tensor) -> Tensor:
    """Return ``factor * values + (1 - factor) * towards``, truncated to 8 bits."""
    return (values * factor + towards * (1 - factor)).clamp(0, 255).floor()


def mean_luminance(pixels: Tensor) -> Tensor:
    """Return the mean of the luminance, rounded down per pixel, ``(n, 1, 1)``."""
    return luminance(pixels).mean(dim=(2, 3))[:, :, None]


def luminance(pixels: Tensor) -> Tensor:
    """Return the luminance of each pixel, rounded down, float32 ``(n, 1, h, w)``."""
    # Python numbers need no synchronising copy to the device; a tensor of them would.
    red, green, blue = (
        channel * weight
        for channel, weight in zip(pixels.float().split(1, dim=1), _LUMINANCE, strict=True)
    )
    return (red + green + blue).floor_()


def _stretched(pixels: Tensor, values: Tensor) -> Tensor:
    """Return the tables that stretch the range of each channel to 0 to 255, ``(n, c, 256)``."""
    low = pixels.amin(dim=(2, 3)).float()[:, :, None]
    high = pixels.amax(dim=(2, 3)).float()[:, :, None]
    flat = high == low
    scale = torch.where(flat, 1.0, (high - low) * (1 / 255))
    return ((values - torch.where(flat, 0.0, low)) / scale).clamp(0, 255).floor()


def _equalised(pixels: Tensor, values: Tensor) -> Tensor:
    """Return the tables that make the histogram of each channel flat, ``(n, c, 256)``.

    The scheme is that of Pillow: the histogram without its last value is divided by 255.
    """
    flat = pixels.flatten(2).long()
    histogram = torch.zeros(*flat.shape[:2], 256, dtype=torch.int64, device=pixels.device)
    histogram.scatter_add_(2, flat, torch.ones_like(flat))
    below = histogram.cumsum(dim=2) - histogram  # pixels with a smaller value
    last = histogram.gather(2, pixels.flatten(2).amax(dim=2, keepdim=True).long())
    step = (flat.shape[2] - last) // 255  # (n, c, 1)
    table = ((below + step // 2) // step.clamp(min=1)).clamp(0, 255).float()
    table[..., 0] = 0  # as nothing is below it, and half a step is less than one
    return torch.where(step == 0, values, table)


def _coloured(pixels: Tensor, _kinds: Tensor, strengths: Tensor) -> Tensor:
    """Scale the difference of each pixel from its luminance."""
    factor = strengths[:, None, None, None]
    return _blended_values(pixels.float(), luminance(pixels), factor).to(torch.uint8)


def _sharpened(pixels: Tensor, _kinds: Tensor, strengths: Tensor) -> Tensor:
    """Scale the difference of each pixel from a blurred image; the border stays."""
    if min(pixels.shape[2:]) <= 2:
        return pixels
    real = pixels.float()
    # The sum of 3 x 3 pixels, the middle one five times, divided by 13.
    around = functional.avg_pool2d(real, 3, stride=1) * 9
    inner = real[..., 1:-1, 1:-1]
    blurred = ((around + 4 * inner) / 13).round_()
    sharp = inner + (blurred - inner) * (1 - strengths)[:, None, None, None]
    real[..., 1:-1, 1:-1] = sharp.clamp_(0, 255).floor_()
    return real.to(torch.uint8)


_Change = Callable[[Tensor, Tensor, Tensor], Tensor]
_GROUPS: tuple[tuple[tuple[int, int], _Change], ...] = (
    (_AFFINE, _moved),
    (_TABLES, _looked_up),
    (_COLOUR, _coloured),
    (_SHARPNESS, _sharpened),
)
