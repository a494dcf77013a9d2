"""Random augmentation of training images, for a whole batch at once on the device of the images.

Every augmentation matches torchvision's transform of the same name for 8-bit images: the same
probabilities, and rounding at the same steps.
"""

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor
from torch.nn import functional

from oodcli.data.decoding.crops import ASPECT, TRIES
from oodcli.training.augmentations.cutout import cutout
from oodcli.training.augmentations.operations import luminance
from oodcli.training.augmentations.pixmix import pixmix
from oodcli.training.augmentations.policies import augmix, randaugment
from oodcli.training.augmentations.words import MIXTURES
from oodcli.training.recipes import Recipe


def augmented(
    pixels: Tensor,
    generator: torch.Generator,
    recipe: Recipe,
    pictures: Tensor | None = None,
) -> Tensor:
    """Apply the random augmentation of a recipe.

    Parameters
    ----------
    pixels
        uint8 ``(n, 3, h, w)``.
    generator
        Random generator, on the device of the pixels.
    recipe
        Recipe with the augmentation steps and their order.
    pictures
        The mixing set of PixMix, uint8 ``(m, 3, H, W)`` on the same device, for recipes with it.

    Returns
    -------
    Tensor
        From 0 to 255, ``(n, 3, h, w)``; uint8 unless a step gives pixels of real values. Every
        image and every choice is independent of the others.

    Notes
    -----
    What mixes images of a batch is applied afterwards, by
    :func:`oodcli.training.augmentations.mixtures.mixed`, and with a consistency loss so is AugMix,
    by :func:`augmixed`.
    """
    steps = tuple(
        step
        for step in recipe.augmentation
        if step not in MIXTURES and not (step == "augmix" and recipe.jsd_weight > 0)
    )
    if steps[:2] == ("flip", "crop"):
        pixels = augment(pixels, generator, flip=True, crop_padding=recipe.crop_padding)
        steps = steps[2:]
    for step in steps:
        if step == "flip":
            pixels = augment(pixels, generator, flip=True, crop_padding=0)
        elif step == "crop":
            pixels = augment(pixels, generator, flip=False, crop_padding=recipe.crop_padding)
        elif step == "resized-crop":
            pixels = resized_crop(pixels, generator, scale=recipe.crop_scale)
        elif step == "jitter":
            pixels = jitter(pixels, generator, by=recipe.jitter, chance=recipe.jitter_chance)
        elif step == "randaugment":
            pixels = randaugment(
                pixels,
                generator,
                operations=recipe.randaugment_operations,
                magnitude=recipe.randaugment_magnitude,
            )
        elif step == "augmix":
            pixels = augmixed(pixels, generator, recipe)
        elif step == "pixmix":
            assert pictures is not None  # ensured by the job
            pixels = pixmix(
                pixels,
                pictures,
                generator,
                rounds=recipe.pixmix_rounds,
                beta=recipe.pixmix_beta,
                severity=recipe.pixmix_severity,
            )
        elif step == "cutout":
            pixels = cutout(
                pixels,
                generator,
                size=recipe.cutout_size,
                holes=recipe.cutout_holes,
                colour=recipe.mean,
            )
        else:
            grey = _chosen(len(pixels), recipe.grey_chance, generator)[:, None, None, None]
            pixels = torch.where(grey, greyscale(pixels), pixels)
    return pixels


def augmixed(pixels: Tensor, generator: torch.Generator, recipe: Recipe) -> Tensor:
    """Apply AugMix to 8-bit images ``(n, 3, h, w)`` with the values of a recipe."""
    return augmix(
        pixels,
        generator,
        severity=recipe.augmix_severity,
        width=recipe.augmix_width,
        depth=recipe.augmix_depth,
    )


def resized_crop(
    pixels: Tensor, generator: torch.Generator, *, scale: tuple[float, float]
) -> Tensor:
    """Crop a random box from each image, and resize it to the size of the image.

    Parameters
    ----------
    pixels
        uint8 ``(n, c, h, w)``.
    generator
        Random generator, on the device of the pixels.
    scale
        Smallest and largest area of the box, as a fraction of the image; the aspect ratio is
        log-uniform from 3/4 to 4/3.

    Returns
    -------
    Tensor
        uint8 ``(n, c, h, w)``: bilinear with antialiasing, along the width first, rounded after
        each of the two directions.

    Notes
    -----
    A box is sampled up to ten times until it is within the image; otherwise it is the largest
    centred box with an allowed aspect ratio.
    """
    n, _, height, width = pixels.shape
    device = pixels.device
    samples = torch.rand(2, n, TRIES, generator=generator, device=device, dtype=torch.float64)
    area = (scale[0] + (scale[1] - scale[0]) * samples[0]) * height * width
    low, high = (math.log(ratio) for ratio in ASPECT)
    ratio = (low + (high - low) * samples[1]).exp()
    widths = (area * ratio).sqrt().round()
    heights = (area / ratio).sqrt().round()
    fits = (widths >= 1) & (widths <= width) & (heights >= 1) & (heights <= height)
    first = fits.int().argmax(dim=1, keepdim=True)  # the first that fits
    any_fits = fits.any(dim=1)
    whole = width / height
    last_width = round(height * ASPECT[1]) if whole > ASPECT[1] else width
    last_height = round(width / ASPECT[0]) if whole < ASPECT[0] else height
    box_width = torch.where(any_fits, widths.gather(1, first)[:, 0], float(last_width))
    box_height = torch.where(any_fits, heights.gather(1, first)[:, 0], float(last_height))
    place = torch.rand(2, n, generator=generator, device=device, dtype=torch.float64)
    room_y, room_x = height - box_height, width - box_width
    top = torch.where(any_fits, (place[0] * (room_y + 1)).floor(), (room_y / 2).floor())
    left = torch.where(any_fits, (place[1] * (room_x + 1)).floor(), (room_x / 2).floor())
    across = _resizing(left, box_width, size=width)  # (n, w, w)
    down = _resizing(top, box_height, size=height)  # (n, h, h)
    rows = torch.einsum("nchw,nvw->nchv", pixels.float(), across).round_()
    return torch.einsum("nchv,nuh->ncuv", rows, down).round_().clamp_(0, 255).to(torch.uint8)


def _resizing(start: Tensor, length: Tensor, *, size: int) -> Tensor:
    """Return the weight of every input pixel in every output pixel, for one direction.

    Parameters
    ----------
    start, length
        First input pixel of the box, and the number of its pixels, ``(n,)``.
    size
        Number of input pixels, and of output pixels.

    Returns
    -------
    Tensor
        ``(n, size, size)``; rows sum to 1.
    """
    at = torch.arange(size, device=start.device, dtype=torch.float64)
    step = (length / size)[:, None]  # (n, 1)
    centre = start[:, None] + (at + 0.5) * step  # (n, out)
    reach = step.clamp(min=1)[:, :, None]  # (n, 1, 1)
    weights = (1 - ((at + 0.5 - centre[:, :, None]) / reach).abs()).clamp_(min=0)  # (n, out, in)
    within = (at >= start[:, None]) & (at < (start + length)[:, None])  # (n, in)
    weights *= within[:, None, :]
    return (weights / weights.sum(dim=2, keepdim=True)).float()


def jitter(
    pixels: Tensor,
    generator: torch.Generator,
    *,
    by: tuple[float, float, float, float],
    chance: float,
) -> Tensor:
    """Change brightness, contrast, saturation and hue of each image, in random order.

    Parameters
    ----------
    pixels
        uint8 ``(n, 3, h, w)``.
    generator
        Random generator, on the device of the pixels.
    by
        Strength of each: a factor from ``1 - by`` to ``1 + by`` for the first three, a fraction of
        the colour circle from ``-by`` to ``by`` for the hue.
    chance
        Probability that an image is changed.

    Returns
    -------
    Tensor
        uint8 ``(n, 3, h, w)``.
    """
    n, device = len(pixels), pixels.device
    samples = torch.rand(4, n, generator=generator, device=device) * 2 - 1
    amounts = [1 + by[i] * samples[i] for i in range(3)] + [by[3] * samples[3]]
    order = torch.rand(n, 4, generator=generator, device=device).argsort(dim=1)
    chosen = _chosen(n, chance, generator)
    changes: tuple[Callable[[Tensor, Tensor], Tensor], ...] = (
        brightened,
        contrasted,
        saturated,
        hue_shifted,
    )
    if device.type != "cpu":
        # Selecting the images of each change would have to wait for the device.
        order = torch.where(chosen[:, None], order, len(changes))
        for place in range(4):
            pixels = _changed(pixels, order[:, place], amounts)
        return pixels
    for place in range(4):
        for kind, change in enumerate(changes):
            mine = ((order[:, place] == kind) & chosen).nonzero()[:, 0]
            if len(mine):
                pixels = pixels.index_copy(0, mine, change(pixels[mine], amounts[kind][mine]))
    return pixels


def _changed(pixels: Tensor, kinds: Tensor, amounts: Sequence[Tensor]) -> Tensor:
    """Apply one change to each image, computed for all images at once.

    Parameters
    ----------
    pixels
        uint8 ``(n, 3, h, w)``.
    kinds
        Change of each image: brightness, contrast, saturation, hue or none, from 0 to 4, ``(n,)``.
    amounts
        Strength of each of the four changes, ``(n,)`` each.
    """
    brightness, contrast, saturation, turn = amounts
    kind = kinds[:, None, None, None]
    grey = luminance(pixels)
    mean = grey.mean(dim=(1, 2, 3), keepdim=True)
    towards = torch.where(kind == 1, mean, torch.where(kind == 2, grey, 0.0))
    factor = torch.where(kinds == 0, brightness, torch.where(kinds == 1, contrast, saturation))
    turned = torch.where(kind == 3, hue_shifted(pixels, turn), pixels)
    return torch.where(kind < 3, _blended(pixels, towards, factor), turned)


def _chosen(n: int, chance: float, generator: torch.Generator) -> Tensor:
    return torch.rand(n, generator=generator, device=generator.device) < chance


def _blended(pixels: Tensor, other: Tensor, factor: Tensor) -> Tensor:
    """Return ``factor * pixels + (1 - factor) * other``, uint8, with a factor ``(n,)``."""
    share = factor[:, None, None, None]
    mixed = pixels.float() * share + other.float() * (1 - share)
    return mixed.clamp_(0, 255).to(torch.uint8)  # truncated as in torchvision, not rounded


def greyscale(pixels: Tensor) -> Tensor:
    """Return images with their luminance in all three channels, uint8 ``(n, 3, h, w)``."""
    return luminance(pixels).to(torch.uint8).expand_as(pixels)


def brightened(pixels: Tensor, factor: Tensor) -> Tensor:
    """Multiply each image by its factor, ``(n,)``."""
    return _blended(pixels, torch.zeros_like(pixels), factor)


def contrasted(pixels: Tensor, factor: Tensor) -> Tensor:
    """Scale the difference of each image from its mean luminance by its factor, ``(n,)``."""
    mean = luminance(pixels).mean(dim=(1, 2, 3), keepdim=True)
    return _blended(pixels, mean, factor)


def saturated(pixels: Tensor, factor: Tensor) -> Tensor:
    """Scale the difference of each image from its luminance by its factor, ``(n,)``."""
    return _blended(pixels, luminance(pixels), factor)


def hue_shifted(pixels: Tensor, turn: Tensor) -> Tensor:
    """Shift all hues of each image by its fraction of the colour circle, ``(n,)``."""
    colours = pixels.float() / 255
    value, _ = colours.max(dim=1)  # (n, h, w)
    chroma = value - colours.amin(dim=1)
    safe = torch.where(chroma > 0, chroma, torch.ones_like(chroma))
    red, green, blue = colours.unbind(dim=1)
    sector = torch.where(
        value == red,
        (green - blue) / safe,
        torch.where(value == green, 2 + (blue - red) / safe, 4 + (red - green) / safe),
    )
    hue = torch.where(chroma > 0, sector / 6, torch.zeros_like(sector)) + turn[:, None, None]
    # A channel falls from value to value - chroma with its distance on the colour circle.
    channels = []
    for offset in (5, 3, 1):
        k = (offset + hue * 6) % 6
        channels.append(value - chroma * torch.minimum(k, 4 - k).clamp(0, 1))
    turned = torch.stack(channels, dim=1)  # (n, 3, h, w)
    return (turned * 255).round_().clamp_(0, 255).to(torch.uint8)


def augment(pixels: Tensor, generator: torch.Generator, *, flip: bool, crop_padding: int) -> Tensor:
    """Mirror each image with probability one half, then take a random crop of the padded image.

    Parameters
    ----------
    pixels
        uint8 ``(n, c, h, w)``.
    generator
        Random generator, on the device of the pixels.
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
        if not crop_padding:
            return torch.where(mirrored[:, :, None, None], pixels.flip(3), pixels)
        columns = torch.where(mirrored, width - 1 - columns, columns)  # (n, w)
    rows = torch.arange(height, device=device).expand(n, height)
    if crop_padding:
        pixels = functional.pad(pixels, [crop_padding] * 4)
        shifts = torch.randint(
            0, 2 * crop_padding + 1, (2, n, 1), generator=generator, device=device
        )
        # Mirroring comes first: in the original, a mirrored image is shifted in reverse.
        shifted = torch.arange(width, device=device) + shifts[1]  # (n, w)
        if flip:
            shifted = torch.where(mirrored, width + 2 * crop_padding - 1 - shifted, shifted)
        columns = shifted
        rows = rows + shifts[0]
    else:
        return pixels
    picked = torch.arange(n, device=device)[:, None, None]
    # Advanced indices on both sides of the channel slice put the channels last.
    return pixels[picked, :, rows[:, :, None], columns[:, None, :]].permute(0, 3, 1, 2)
