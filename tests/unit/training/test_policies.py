"""RandAugment and AugMix, against torchvision's functions and distributions."""

from dataclasses import replace
from math import log
from typing import Any

import pytest
import torch
from scipy.stats import chi2, ks_2samp
from torch import Tensor
from torchvision.transforms import InterpolationMode, v2

from oodcli.errors import InvalidInputError
from oodcli.training.augment import augmented
from oodcli.training.augmentations import operations, policies
from oodcli.training.augmentations.consistency import jensen_shannon
from oodcli.training.augmentations.mixtures import check_combination
from oodcli.training.augmentations.operations import OPERATIONS, changed, number_of
from oodcli.training.augmentations.policies import augmix, randaugment
from oodcli.training.objectives.registry import parse_objective
from oodcli.training.recipes import Recipe

# The names of torchvision, in its order.
THEIRS = {
    "Identity": "identity", "ShearX": "shear-x", "ShearY": "shear-y", "TranslateX": "translate-x",
    "TranslateY": "translate-y", "Rotate": "rotate", "Brightness": "brightness", "Color": "colour",
    "Contrast": "contrast", "Sharpness": "sharpness", "Posterize": "posterize",
    "Solarize": "solarize", "AutoContrast": "autocontrast", "Equalize": "equalize",
}  # fmt: skip
SIZE = (24, 20)


def batch(n: int = 24) -> Tensor:
    """Return images that are smooth, with noise; one is flat, one has a flat channel."""
    generator = torch.Generator().manual_seed(0)
    coarse = torch.rand(n, 3, 4, 4, generator=generator)
    smooth = torch.nn.functional.interpolate(coarse, SIZE, mode="bilinear") * 200
    noise = torch.rand(n, 3, *SIZE, generator=generator) * 55
    pixels = (smooth + noise).to(torch.uint8)
    pixels[0], pixels[1, 1] = 7, 200
    return pixels


def applied(pixels: Tensor, name: str, magnitude: float) -> Tensor:
    """Return what torchvision makes of images."""
    return v2.RandAugment()._apply_image_or_video_transform(
        pixels, name, magnitude, interpolation=InterpolationMode.BILINEAR, fill=_no_fill()
    )


def _no_fill() -> dict[Any, Any]:
    return v2.RandAugment()._fill


def strength(name: str, magnitude: float) -> float:
    """Return a magnitude of torchvision as ours."""
    if name in ("Brightness", "Color", "Contrast", "Sharpness"):
        return 1 + magnitude
    return 255 * magnitude if name == "Solarize" else magnitude


@pytest.mark.parametrize("name", list(THEIRS))
def test_operations_are_those_of_torchvision(name: str) -> None:
    """To a rounding of one in the last bit, of few pixels."""
    magnitudes = {
        "ShearX": (0.3, -0.14), "ShearY": (0.3, -0.14), "TranslateX": (4.7, -6.9),
        "TranslateY": (4.7, -6.9), "Rotate": (30.0, -13.0), "Posterize": (4, 6, 8),
        "Solarize": (1.0, 0.5, 0.0),
    }.get(name, (0.9, -0.9, 0.42))  # fmt: skip
    for magnitude in magnitudes:
        wanted = applied(batch(), name, magnitude)
        ours = torch.full((24,), float(strength(name, magnitude)))
        found = changed(batch(), torch.full((24,), number_of(THEIRS[name])), ours)
        off = (found.int() - wanted.int()).abs()
        assert int(off.max()) <= 1
        assert float(off.float().mean()) < 0.1
        if name not in ("Identity", "Posterize", "Solarize"):
            assert not torch.equal(wanted, batch())


def test_all_images_changed_at_once_are_those_changed_by_group(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A GPU computes every group for all images, the CPU for its own: with the same result."""
    pixels = batch(56)
    kinds = torch.arange(56) % len(OPERATIONS)
    strengths = torch.linspace(0.2, 5, 56)
    alone = changed(pixels, kinds, strengths)
    whole = pixels
    for (first, last), change in operations._GROUPS:
        chosen = ((kinds >= first) & (kinds <= last))[:, None, None, None]
        whole = torch.where(chosen, change(whole, kinds, strengths), whole)
    assert torch.equal(alone, whole)


@pytest.mark.gpu
def test_a_gpu_changes_images_as_the_cpu_does() -> None:
    pixels = batch(56)
    kinds = torch.arange(56) % len(OPERATIONS)
    strengths = torch.linspace(0.2, 5, 56)
    found = changed(pixels.cuda(), kinds.cuda(), strengths.cuda()).cpu().int()
    assert (found - changed(pixels, kinds, strengths).int()).abs().max() <= 1


@pytest.mark.parametrize("magnitude", [0, 9, 14, 30])
def test_strengths_of_randaugment_are_those_of_torchvision(magnitude: int) -> None:
    table = policies._strengths("randaugment", SIZE, torch.device("cpu"))[magnitude]
    for name, (magnitudes, signed) in v2.RandAugment._AUGMENTATION_SPACE.items():
        values = magnitudes(31, *SIZE)
        if values is not None:
            value = float(values[magnitude])
            found = table[number_of(THEIRS[name])].tolist()
            wanted = [strength(name, value), strength(name, -value if signed else value)]
            assert found == pytest.approx(wanted, abs=1e-4), name


def test_strengths_of_augmix_are_those_of_torchvision() -> None:
    table = policies._strengths("augmix", SIZE, torch.device("cpu"))
    assert set(v2.AugMix._AUGMENTATION_SPACE) == set(THEIRS) - {"Identity"}
    assert {THEIRS[name] for name in v2.AugMix._AUGMENTATION_SPACE} == set(policies._AUGMIX)
    for name, (magnitudes, signed) in v2.AugMix._AUGMENTATION_SPACE.items():
        values = magnitudes(10, *SIZE)
        for severity in range(10):
            if values is not None:
                value = float(values[severity])
                found = table[severity, number_of(THEIRS[name])].tolist()
                wanted = [strength(name, value), strength(name, -value if signed else value)]
                assert found == pytest.approx(wanted, abs=1e-4), name


def test_operations_and_signs_of_randaugment_are_equally_frequent() -> None:
    """Each result of one image is one of 14 operations with one of two signs."""
    image = batch()[2:3]
    results: list[Tensor] = []
    chances: list[float] = []
    for name, own in THEIRS.items():
        magnitudes, signed = v2.RandAugment._AUGMENTATION_SPACE[name]
        values = magnitudes(31, *SIZE)
        value = 0.0 if values is None else float(values[14])
        signs = (1, -1) if signed else (1,)
        for sign in signs:
            ours = torch.tensor([float(strength(name, sign * value))])
            results.append(changed(image, torch.tensor([number_of(own)]), ours)[0])
            chances.append(1 / (14 * len(signs)))
    assert len({each.numpy().tobytes() for each in results}) == 14 + 9
    many = image.expand(7000, 3, *SIZE)
    found = randaugment(many, torch.Generator().manual_seed(0), operations=1, magnitude=14)
    every = torch.stack(results).flatten(1).float()
    distances = torch.cdist(found.flatten(1).float(), every)  # rounding differs by batch
    assert float(distances.min(dim=1).values.max()) < 5
    counts = distances.argmin(dim=1).bincount(minlength=len(chances)).tolist()
    expected = [7000 * chance for chance in chances]
    chi_square = sum((n - e) ** 2 / e for n, e in zip(counts, expected, strict=True))
    assert chi_square < chi2.ppf(0.999, len(chances) - 1)


@pytest.mark.parametrize(("severity", "depth"), [(1, 0), (10, 2)])
def test_augmix_is_distributed_as_that_of_torchvision(severity: int, depth: int) -> None:
    """The distance from the image, and the value of a pixel, by Kolmogorov-Smirnov."""
    image = batch()[3]
    theirs = v2.AugMix(severity=severity, chain_depth=depth or -1)
    torch.manual_seed(0)
    wanted = torch.stack([theirs(image) for _ in range(600)]).float()
    many = image.expand(3000, 3, *SIZE)
    generator = torch.Generator().manual_seed(1)
    found = augmix(many, generator, severity=severity, width=3, depth=depth).float()
    limit = 1.95 * (1 / 600 + 1 / 3000) ** 0.5  # once in a thousand
    own = image.float()
    for of in (
        lambda every: (every - own).abs().mean(dim=(1, 2, 3)),
        lambda every: every[:, 0, 6, 8],
        lambda every: every[:, 2, 0, 0],
    ):
        assert ks_2samp(of(found).numpy(), of(wanted).numpy()).statistic < limit


def test_images_of_a_batch_are_augmented_independently() -> None:
    many = batch()[2:3].expand(64, 3, *SIZE)
    for name, at_least in (("randaugment", 12), ("augmix", 40)):
        recipe = Recipe("test", "here", epochs=1, augmentation=(name,), jsd_weight=0.0)
        found = augmented(many, torch.Generator().manual_seed(0), recipe)
        assert found.dtype == torch.uint8
        assert len({each.numpy().tobytes() for each in found}) >= at_least
        assert torch.equal(found, augmented(many, torch.Generator().manual_seed(0), recipe))


def test_the_divergence_by_hand() -> None:
    p, q = torch.tensor([0.5, 0.5]), torch.tensor([0.25, 0.75])
    m = (2 * p + q) / 3
    kl = 2 * (p * (p / m).log()).sum() + (q * (q / m).log()).sum()
    logits = torch.stack([p, p, q]).log()[:, None]
    torch.testing.assert_close(jensen_shannon(logits), kl / 3)
    assert float(jensen_shannon(logits[:1].expand(3, 1, 2))) == pytest.approx(0, abs=1e-7)
    apart = torch.diag(torch.full((3,), 1e4))[:, None]  # certain of three different classes
    assert float(jensen_shannon(apart)) == pytest.approx(log(3), abs=1e-6)


def test_the_divergence_is_that_of_the_code_of_the_authors_with_its_gradient() -> None:
    logits = torch.randn(3, 5, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    logits = logits.float().requires_grad_()
    found = jensen_shannon(logits)
    p = logits.softmax(dim=2)
    m = p.mean(dim=0).clamp(1e-7, 1).log()
    wanted = sum(torch.nn.functional.kl_div(m, each, reduction="batchmean") for each in p) / 3
    torch.testing.assert_close(found, wanted)
    (ours,), (theirs,) = (torch.autograd.grad(each, logits) for each in (found, wanted))
    torch.testing.assert_close(ours, theirs, atol=1e-6, rtol=1e-4)


def test_what_cannot_be_combined_with_the_divergence_is_refused() -> None:
    recipe = Recipe("test", "here", epochs=1, augmentation=("flip", "augmix"))
    assert recipe.compares_views
    with pytest.raises(InvalidInputError, match="cutout cannot follow it"):
        replace(recipe, augmentation=("augmix", "cutout"))
    assert not replace(recipe, augmentation=("augmix", "cutout"), jsd_weight=0).compares_views
    check_combination(recipe, "logitnorm", parse_objective("logitnorm").objective)
    with pytest.raises(InvalidInputError, match=r"supcon.*jsd_weight=0$"):
        check_combination(recipe, "supcon", parse_objective("supcon").objective)


@pytest.mark.parametrize(
    "setting", ["randaugment_magnitude=31", "augmix_severity=0", "augmix_width=11"]
)
def test_values_out_of_range_are_refused(setting: str) -> None:
    with pytest.raises(InvalidInputError, match=f"{setting.partition('=')[0]} must be from"):
        Recipe("test", "here", epochs=1).with_settings([setting])
