"""Augmentation in batches, against what it means for one image."""

import numpy as np
import torch

from oodcli.training.augment import augment


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
