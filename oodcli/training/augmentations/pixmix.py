"""PixMix: images mixed with pictures of complex structure, such as fractals."""

import torch
from torch import Tensor

from oodcli.training.augmentations.operations import OPERATIONS, changed, number_of

# All operations but the identity.
_NAMES = tuple(name for name in OPERATIONS if name != "identity")


def pixmix(
    pixels: Tensor,
    pictures: Tensor,
    generator: torch.Generator,
    *,
    rounds: int,
    beta: float,
    severity: float,
) -> Tensor:
    """Mix each image, in some rounds, with a picture or with changed copies of itself.

    Parameters
    ----------
    pixels
        uint8 ``(n, 3, h, w)``.
    pictures
        The mixing set, uint8 ``(m, 3, H, W)`` with ``H >= h`` and ``W >= w``, on the same device.
    generator
        Random generator, on the device of the pixels.
    rounds
        Largest number of rounds; their number is uniform from 0.
    beta
        Parameter of the weights: the larger, the more remains of the image.
    severity
        Largest strength of the operations on copies, from above 0.1 to 10.

    Returns
    -------
    Tensor
        float32 ``(n, 3, h, w)``, from 0 to 255, not rounded.

    References
    ----------
    Hendrycks, Zou, Mazeika, Tang, Li, Song, Steinhardt. "PixMix: Dreamlike Pictures Comprehensively
    Improve Safety Measures". CVPR 2022, arXiv:2112.05135; and the code of the authors.

    Notes
    -----
    The image begins as itself or, with probability one half, as a copy that one of 13 operations
    changed. In each round the other picture is, with probability one half each, such a copy or one
    random crop of one picture of the mixing set, the same in all rounds. Both are added or
    multiplied, with equal probability. The result is clipped.

    The operations are those of torchvision, whose rounding, and colours at the border of the image
    after an affine operation, differ by little from those of Pillow, which the authors use. Copies
    are 8-bit images, as there. On the CPU only what is needed is computed; elsewhere everything,
    because selecting it would have to wait for the device.
    """
    n, _, height, width = pixels.shape
    picture = _cropped(pictures, n, (height, width), generator)
    start = _chosen(n, generator)
    mixture = _copies(pixels, start, generator, severity).float() / 255
    number = torch.randint(rounds + 1, (n,), generator=generator, device=pixels.device)
    for place in range(rounds):
        active = (place < number)[:, None, None, None]
        own = _chosen(n, generator)
        copies = _copies(pixels, own & active, generator, severity)
        other = torch.where(own, copies, picture).float() / 255
        adds = _chosen(n, generator)
        a, b = weights_of(n, generator, beta)
        for chosen, mixed_by in ((active & adds, added), (active & ~adds, multiplied)):
            if pixels.device.type != "cpu":
                mixture = torch.where(chosen, mixed_by(mixture, other, a, b).clamp_(0, 1), mixture)
                continue
            rows = chosen.flatten().nonzero()[:, 0]
            of_rows = mixed_by(mixture[rows], other[rows], a[rows], b[rows]).clamp_(0, 1)
            mixture = mixture.index_copy(0, rows, of_rows)
    return mixture * 255


def added(one: Tensor, other: Tensor, a: Tensor, b: Tensor) -> Tensor:
    """Return ``(a (2 x - 1) + b (2 y - 1) + 1) / 2``.

    Parameters
    ----------
    one, other
        Images ``x`` and ``y`` from 0 to 1, ``(n, 3, h, w)``.
    a, b
        Weights, ``(n, 1, 1, 1)``.
    """
    return (a * (2 * one - 1) + b * (2 * other - 1) + 1) / 2


def multiplied(one: Tensor, other: Tensor, a: Tensor, b: Tensor) -> Tensor:
    """Return ``(2 x)^a (2 y)^b / 2``, with the parameters of :func:`added`."""
    return (2 * one) ** a * (2 * other).clamp(min=1e-37) ** b / 2


def weights_of(n: int, generator: torch.Generator, beta: float) -> tuple[Tensor, Tensor]:
    """Draw the weights of images and of what they are mixed with, ``(n, 1, 1, 1)`` each.

    With probability one half ``a ~ Beta(beta, 1)`` and ``b ~ Beta(1, beta)``; otherwise
    ``a ~ 1 + Beta(1, beta)`` and ``b ~ -Beta(1, beta)``.
    """
    # Both distributions are powers of a uniform number: u^(1/beta), and one minus that.
    first, second = (
        torch.rand(2, n, 1, 1, 1, generator=generator, device=generator.device) ** (1 / beta)
    ).unbind()
    plain = _chosen(n, generator)
    return torch.where(plain, first, 2 - first), torch.where(plain, 1 - second, second - 1)


def _chosen(n: int, generator: torch.Generator) -> Tensor:
    """Return true with probability one half, ``(n, 1, 1, 1)``."""
    return torch.rand(n, 1, 1, 1, generator=generator, device=generator.device) < 0.5


def _copies(pixels: Tensor, chosen: Tensor, generator: torch.Generator, severity: float) -> Tensor:
    """Change chosen images, ``(n, 1, 1, 1)``, by one operation of a random strength, uint8."""
    n, device = len(pixels), pixels.device
    kinds = torch.randint(len(_NAMES), (n,), generator=generator, device=device)
    kinds = kinds + (kinds >= number_of("identity"))  # leaves out the identity
    level = 0.1 + (severity - 0.1) * torch.rand(n, generator=generator, device=device)
    negative = torch.rand(n, generator=generator, device=device) < 0.5
    strengths = _strengths(kinds, level, negative, (pixels.shape[2], pixels.shape[3]))
    kinds = torch.where(chosen.flatten(), kinds, number_of("identity"))
    return changed(pixels, kinds, strengths)


def _strengths(kinds: Tensor, level: Tensor, negative: Tensor, size: tuple[int, int]) -> Tensor:
    """Return the strengths of operations, as the code of the authors draws them, ``(n,)``.

    Parameters
    ----------
    kinds
        Number of the operation of each image, ``(n,)``.
    level
        Level from 0 to 10, ``(n,)``.
    negative
        Whether the sign of shears, translations and rotations is negative, ``(n,)``.
    size
        Height and width of the images.
    """
    height, width = size
    part = level / 10
    sign = torch.where(negative, -1.0, 1.0)
    strengths = part * 1.8 + 0.1  # brightness, contrast, colour and sharpness
    for name, values in (
        ("shear-x", part * 0.3 * sign),
        ("shear-y", part * 0.3 * sign),
        ("translate-x", (part * (width / 3)).floor() * sign),
        ("translate-y", (part * (height / 3)).floor() * sign),
        ("rotate", (part * 30).floor() * sign),
        ("posterize", 4 - (part * 4).floor()),
        ("solarize", 256 - (part * 256).floor()),
    ):
        strengths = torch.where(kinds == number_of(name), values, strengths)
    return strengths


def _cropped(pictures: Tensor, n: int, size: tuple[int, int], generator: torch.Generator) -> Tensor:
    """Return a random crop of a random picture for each image, uint8 ``(n, 3, h, w)``."""
    (height, width), device = size, pictures.device
    picked = torch.randint(len(pictures), (n, 1, 1), generator=generator, device=device)
    places = []
    for side, whole in ((height, pictures.shape[2]), (width, pictures.shape[3])):
        first = torch.randint(whole - side + 1, (n, 1), generator=generator, device=device)
        places.append(first + torch.arange(side, device=device))
    rows, columns = places
    # Advanced indices on both sides of the channel slice put the channels last.
    return pictures[picked, :, rows[:, :, None], columns[:, None, :]].permute(0, 3, 1, 2)
