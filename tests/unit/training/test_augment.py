"""Augmentation in batches, against what it means for one image."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from oodcli.training.augment import (
    _changed,
    _resizing,
    augment,
    augmented,
    brightened,
    contrasted,
    greyscale,
    hue_shifted,
    jitter,
    resized_crop,
    saturated,
)
from oodcli.training.recipes import RECIPES


def crops_of(image: np.ndarray, padding: int, *, flip: bool) -> set[bytes]:
    """Return every result that mirroring, padding and cropping can have, by the definition."""
    height, width = image.shape[1:]
    results = set()
    for source in [image, image[:, :, ::-1]] if flip else [image]:
        padded = np.pad(source, [(0, 0), (padding, padding), (padding, padding)])
        for top in range(2 * padding + 1):
            for left in range(2 * padding + 1):
                crop = padded[:, top : top + height, left : left + width]
                results.add(np.ascontiguousarray(crop).tobytes())
    return results


def drawn(image: np.ndarray, count: int, *, padding: int, flip: bool) -> list[bytes]:
    """Return many results of one image."""
    pixels = torch.from_numpy(image).expand(count, *image.shape)
    out = augment(pixels, torch.Generator().manual_seed(0), flip=flip, crop_padding=padding)
    return [np.ascontiguousarray(each).tobytes() for each in out.numpy()]


IMAGE = np.arange(1, 3 * 5 * 6 + 1, dtype=np.uint8).reshape(3, 5, 6)


def test_every_result_is_possible_and_every_possible_one_comes_about_equally_often() -> None:
    possible = crops_of(IMAGE, 2, flip=True)
    assert len(possible) == 50
    counts = dict.fromkeys(possible, 0)
    for key in drawn(IMAGE, 20_000, padding=2, flip=True):
        counts[key] += 1
    # Expected 400 each; a chi-square of 49 degrees of freedom is above 85.4 once in a thousand.
    chi_square = sum((n - 400) ** 2 / 400 for n in counts.values())
    assert chi_square < 85.4


def test_crops_without_mirroring() -> None:
    assert set(drawn(IMAGE, 2000, padding=1, flip=False)) == crops_of(IMAGE, 1, flip=False)


def test_mirroring_without_crops() -> None:
    assert set(drawn(IMAGE, 50, padding=0, flip=True)) == crops_of(IMAGE, 0, flip=True)


def test_nothing_asked_for_changes_nothing() -> None:
    assert set(drawn(IMAGE, 5, padding=0, flip=False)) == {IMAGE.tobytes()}


def test_images_of_a_batch_are_changed_independently() -> None:
    assert len(set(drawn(IMAGE, 64, padding=2, flip=True))) > 20


def test_agrees_with_torchvision_on_what_is_possible() -> None:
    from torchvision.transforms import v2

    published = v2.Compose([v2.RandomHorizontalFlip(), v2.RandomCrop((5, 6), padding=2)])
    torch.manual_seed(0)
    theirs = {
        np.ascontiguousarray(published(torch.from_numpy(IMAGE)).numpy()).tobytes()
        for _ in range(2000)
    }
    assert theirs == crops_of(IMAGE, 2, flip=True) == set(drawn(IMAGE, 2000, padding=2, flip=True))


def batch(n: int = 48) -> torch.Tensor:
    """Return random images, a third of them grey."""
    pixels = torch.randint(
        0, 256, (n, 3, 16, 16), dtype=torch.uint8, generator=torch.Generator().manual_seed(0)
    )
    pixels[: n // 3] = pixels[: n // 3, :1]
    return pixels


@pytest.mark.parametrize("factor", [0.6, 0.85, 1.0, 1.2, 1.4])
@pytest.mark.parametrize("kind", ["brightness", "contrast", "saturation"])
def test_colours_change_as_torchvision_changes_them(kind: str, factor: float) -> None:
    from torchvision.transforms.v2 import functional

    ours = {"brightness": brightened, "contrast": contrasted, "saturation": saturated}[kind]
    wanted = getattr(functional, f"adjust_{kind}")(batch(), factor)
    found = ours(batch(), torch.full((48,), factor))
    assert (found.int() - wanted.int()).abs().max() <= 1


@pytest.mark.parametrize("turn", [-0.1, -0.03, 0.0, 0.07, 0.1, 0.5])
def test_hues_turn_as_torchvision_turns_them(turn: float) -> None:
    from torchvision.transforms.v2 import functional

    found = hue_shifted(batch(), torch.full((48,), turn))
    assert (found.int() - functional.adjust_hue(batch(), turn).int()).abs().max() <= 1


def test_grey_is_that_of_torchvision() -> None:
    from torchvision.transforms.v2 import functional

    wanted = functional.rgb_to_grayscale(batch(), 3)
    assert (greyscale(batch()).int() - wanted.int()).abs().max() <= 1


def test_resized_crops_are_of_boxes_as_likely_as_those_of_torchvision() -> None:
    """Images that hold their own coordinates tell which box was cut out of them."""
    from torchvision.transforms import v2

    side = 32
    grid = torch.arange(side, dtype=torch.uint8) * 8
    image = torch.stack([grid.expand(side, side), grid[:, None].expand(side, side)] * 2)[:3]
    published = v2.RandomResizedCrop(side, scale=(0.2, 1.0), antialias=True)
    torch.manual_seed(0)
    theirs = torch.stack([published(image) for _ in range(3000)])
    many = image.expand(3000, 3, side, side)
    ours = resized_crop(many, torch.Generator().manual_seed(1), scale=(0.2, 1.0))
    for at in ((0, 0, 0), (0, 0, -1), (1, 0, 0), (1, -1, 0)):
        a, b = (torch.sort(every[:, *at].float())[0] for every in (theirs, ours))
        # Kolmogorov-Smirnov: above 1.95 sqrt(2 / n) once in a thousand.
        values = torch.arange(257)
        both = [torch.searchsorted(each, values.float(), right=False) / 3000 for each in (a, b)]
        assert float((both[0] - both[1]).abs().max()) < 1.95 * (2 / 3000) ** 0.5


def test_a_resized_crop_of_one_box_is_that_of_pillow() -> None:
    from PIL import Image

    pixels = batch(1)
    weights = [
        _resizing(torch.tensor([float(start)]), torch.tensor([float(length)]), size=16)[0]
        for start, length in ((2, 11), (5, 9))
    ]
    rows = (pixels[0].float() @ weights[1].T).round()
    found = (weights[0] @ rows).round().clamp(0, 255)
    image = Image.fromarray(pixels[0].permute(1, 2, 0).numpy())
    wanted = np.array(image.crop((5, 2, 14, 13)).resize((16, 16), Image.Resampling.BILINEAR))
    assert (found - torch.from_numpy(wanted).permute(2, 0, 1)).abs().max() <= 1


def test_images_too_long_for_a_box_get_the_largest_centred_one() -> None:
    pixels = torch.zeros(4, 3, 2, 32, dtype=torch.uint8)
    pixels[..., 15:18] = 200
    found = resized_crop(pixels, torch.Generator().manual_seed(0), scale=(1.0, 1.0))
    assert found.shape == pixels.shape
    assert found[..., 10:20].float().mean() > 100  # 3 columns of 32 would be 19


def test_chances_are_as_given() -> None:
    colourful = torch.zeros(4000, 3, 2, 2, dtype=torch.uint8)
    colourful[:, 0] = 200
    grey_only = replace(RECIPES["mode-base"], augmentation=("grey",))
    grey = augmented(colourful, torch.Generator().manual_seed(0), grey_only)
    share = float((grey[:, 0] == grey[:, 1]).all(dim=(1, 2)).float().mean())
    assert share == pytest.approx(0.2, abs=0.03)
    jitter_only = replace(RECIPES["mode-base"], augmentation=("jitter",))
    changed = augmented(colourful, torch.Generator().manual_seed(0), jitter_only)
    share = float((changed != colourful).any(dim=(1, 2, 3)).float().mean())
    assert share == pytest.approx(0.8, abs=0.03)


def test_jitter_is_distributed_as_that_of_torchvision() -> None:
    from torchvision.transforms import v2

    pixel = torch.tensor([180, 90, 40], dtype=torch.uint8).view(3, 1, 1).expand(3, 2, 2)
    published = v2.ColorJitter(0.4, 0.4, 0.4, 0.1)
    torch.manual_seed(0)
    theirs = torch.stack([published(pixel) for _ in range(2000)])[:, :, 0, 0].float()
    many = pixel.expand(2000, 3, 2, 2)
    ours = jitter(many, torch.Generator().manual_seed(1), by=(0.4, 0.4, 0.4, 0.1), chance=1.0)
    for channel in range(3):
        a, b = theirs[:, channel].sort()[0], ours[:, channel, 0, 0].float().sort()[0]
        # Values may differ by one in rounding, so the edges lie between every eighth.
        edges = torch.arange(0, 257, 8) - 0.5
        both = [torch.searchsorted(each, edges) / 2000 for each in (a, b)]
        assert float((both[0] - both[1]).abs().max()) < 1.95 * (2 / 2000) ** 0.5


def test_all_images_changed_at_once_are_what_each_change_makes_of_its_own() -> None:
    """A GPU changes all images at once, the CPU those of each change: with the same result."""
    pixels = batch(40)
    kinds = torch.arange(40) % 5
    draws = torch.rand(4, 40, generator=torch.Generator().manual_seed(3))
    amounts = [0.6 + 0.8 * draws[0], 0.6 + 0.8 * draws[1], 0.6 + 0.8 * draws[2], draws[3] - 0.5]
    found = _changed(pixels, kinds, amounts)
    for kind, change in enumerate((brightened, contrasted, saturated, hue_shifted)):
        mine = kinds == kind
        assert torch.equal(found[mine], change(pixels[mine], amounts[kind][mine]))
        assert not torch.equal(found[mine], pixels[mine])
    assert torch.equal(found[kinds == 4], pixels[kinds == 4])


@pytest.mark.gpu
def test_a_gpu_jitters_as_the_cpu_does() -> None:
    from oodcli.training import augment as module

    pixels = batch(64)
    kept = [torch.rand(4, 64), torch.rand(64, 4), torch.rand(64)]
    results = []
    for device in ("cpu", "cuda"):
        numbers = iter(kept)
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(module.torch, "rand", lambda *_, **__: next(numbers).to(device))  # noqa: B023
            found = jitter(
                pixels.to(device),
                torch.Generator(device),
                by=(0.4, 0.4, 0.4, 0.1),
                chance=0.8,
            )
        results.append(found.cpu().int())
    assert (results[0] - results[1]).abs().max() <= 1


def test_every_recipe_augments_every_image_on_its_own() -> None:
    image = batch(48)[40:41].expand(64, 3, 16, 16)
    pictures = batch(4)
    for recipe in RECIPES.values():
        found = augmented(image, torch.Generator().manual_seed(0), recipe, pictures)
        assert found.shape == image.shape
        real = {"cutout", "pixmix"} & {*recipe.augmentation}
        assert found.dtype == (torch.float32 if real else torch.uint8)
        assert len({each.numpy().tobytes() for each in found}) > 15
        again = augmented(image, torch.Generator().manual_seed(0), recipe, pictures)
        assert torch.equal(found, again)
