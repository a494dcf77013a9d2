"""RandAugment and AugMix: random operations on every image."""

from functools import lru_cache
from typing import Literal

import torch
from torch import Tensor

from oodcli.training.augmentations.operations import OPERATIONS, changed, number_of

RANDAUGMENT_BINS = 31  # of torchvision: magnitudes are from 0 to 30
AUGMIX_BINS = 10
# Operations whose strength has a random sign.
_SIGNED = (
    "shear-x", "shear-y", "translate-x", "translate-y", "rotate", "brightness", "colour",
    "contrast", "sharpness",
)  # fmt: skip
# AugMix has all operations but the identity.
_AUGMIX = tuple(name for name in OPERATIONS if name != "identity")


def randaugment(
    pixels: Tensor, generator: torch.Generator, *, operations: int, magnitude: int
) -> Tensor:
    """Apply some random operations to each image, one after the other.

    Parameters
    ----------
    pixels
        uint8 ``(n, 3, h, w)``.
    generator
        Random generator, on the device of the pixels.
    operations
        Number of operations per image, each uniform over all 14.
    magnitude
        Strength of the operations, from 0 to 30.

    Returns
    -------
    Tensor
        uint8 ``(n, 3, h, w)``.

    References
    ----------
    Cubuk, Zoph, Shlens, Le. "RandAugment: Practical Automated Data Augmentation with a Reduced
    Search Space". CVPR workshops 2020, arXiv:1909.13719.

    Notes
    -----
    Operations and strengths are those of ``torchvision.transforms.v2.RandAugment`` with bilinear
    interpolation.
    """
    size = (pixels.shape[2], pixels.shape[3])
    strengths = _strengths("randaugment", size, pixels.device)[magnitude]  # (14, 2)
    for _ in range(operations):
        kinds = torch.randint(
            len(OPERATIONS), (len(pixels),), generator=generator, device=pixels.device
        )
        negative = _negative(kinds, generator)
        pixels = changed(pixels, kinds, strengths[kinds, negative])
    return pixels


def augmix(
    pixels: Tensor, generator: torch.Generator, *, severity: int, width: int, depth: int
) -> Tensor:
    """Mix each image with some chains of random operations on it.

    Parameters
    ----------
    pixels
        uint8 ``(n, 3, h, w)``.
    generator
        Random generator, on the device of the pixels.
    severity
        Number of strengths that are possible, the weakest first; from 1 to 10.
    width
        Number of chains.
    depth
        Operations per chain; 0: one, two or three, at random for every image and chain.

    Returns
    -------
    Tensor
        uint8 ``(n, 3, h, w)``, truncated: ``(1 - m) x + m sum_i w_i chain_i(x)``, where ``m`` is
        uniform from 0 to 1, and the weights ``w`` are uniform over those that add up to 1.

    References
    ----------
    Hendrycks, Mu, Cubuk, Zoph, Gilmer, Lakshminarayanan. "AugMix: A Simple Data Processing Method
    to Improve Robustness and Uncertainty". ICLR 2020, arXiv:1912.02781.

    Notes
    -----
    Operations, strengths and their distribution are those of ``torchvision.transforms.v2.AugMix``
    with all operations and ``alpha=1``. Its weakest strength is zero, so that with OpenOOD's
    severity of 1 only posterize, solarize (of value 255), autocontrast and equalize change an
    image.
    """
    n, device = len(pixels), pixels.device
    strengths = _strengths("augmix", (pixels.shape[2], pixels.shape[3]), device)
    share = torch.rand(n, generator=generator, device=device)
    exponential = -torch.rand(width, n, generator=generator, device=device).clamp(min=1e-38).log()
    weights = share * exponential / exponential.sum(dim=0)  # (width, n)
    kinds_of = _numbers(_AUGMIX, device)
    mixture = pixels.float() * (1 - share)[:, None, None, None]
    for chain in range(width):
        lengths = torch.full((n,), depth, device=device)
        if not depth:
            lengths = torch.randint(1, 4, (n,), generator=generator, device=device)
        of_chain = pixels
        for place in range(depth or 3):
            drawn = torch.randint(len(_AUGMIX), (n,), generator=generator, device=device)
            bins = torch.randint(severity, (n,), generator=generator, device=device)
            negative = _negative(kinds_of[drawn], generator)
            strength = strengths[bins, kinds_of[drawn], negative]
            # A chain that has ended goes on with the identity.
            kinds = torch.where(place < lengths, kinds_of[drawn], number_of("identity"))
            of_chain = changed(of_chain, kinds, strength)
        mixture.addcmul_(of_chain.float(), weights[chain][:, None, None, None])
    return mixture.clamp_(0, 255).to(torch.uint8)


def _negative(kinds: Tensor, generator: torch.Generator) -> Tensor:
    """Return a random sign of the strength of each image, int64 ``(n,)``: 1 for negative."""
    return torch.randint(2, kinds.shape, generator=generator, device=kinds.device)


@lru_cache
def _numbers(names: tuple[str, ...], device: torch.device) -> Tensor:
    return torch.tensor([number_of(name) for name in names], device=device)


@lru_cache
def _strengths(
    policy: Literal["randaugment", "augmix"], size: tuple[int, int], device: torch.device
) -> Tensor:
    """Return the strengths of all operations, float32 ``(bins, 14, 2)``.

    Parameters
    ----------
    policy
        Whose strengths.
    size
        Height and width of the images.
    device
        Device of the result, where it remains: copying it for every step would make a GPU wait.

    Returns
    -------
    Tensor
        By bin, operation and sign, as :func:`changed` takes them.
    """
    wide = policy == "randaugment"
    bins = RANDAUGMENT_BINS if wide else AUGMIX_BINS
    height, width = size
    part = torch.linspace(0, 1, bins)
    largest = {
        "shear-x": 0.3,
        "shear-y": 0.3,
        "translate-x": width * (150 / 331 if wide else 1 / 3),
        "translate-y": height * (150 / 331 if wide else 1 / 3),
        "rotate": 30.0,
    }
    table = torch.zeros(bins, len(OPERATIONS), 2)
    for number, name in enumerate(OPERATIONS):
        for sign in range(2):
            signed = -part if sign and name in _SIGNED else part
            if name in largest:
                values = signed * largest[name]
            elif name == "posterize":
                values = ((8 if wide else 4) - part * 4).round()
            elif name == "solarize":
                values = 255 * (1 - part)
            else:
                values = 1 + 0.9 * signed
            table[:, number, sign] = values
    return table.to(device)
