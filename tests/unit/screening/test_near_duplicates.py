"""Near-duplicates: the same pixels, or almost the same picture and features."""

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from oodcli.screening.near_duplicates import difference_hash, near_duplicates


def photo(seed: int) -> NDArray[np.uint8]:
    """Return a smooth picture of random colours."""
    small = np.random.default_rng(seed).integers(0, 256, (6, 6, 3), dtype=np.uint8)
    return np.asarray(Image.fromarray(small).resize((48, 48), Image.Resampling.BICUBIC))


def found(digests: list[int], hashes: list[int], units: list[list[float]]) -> list[int]:
    return near_duplicates(
        np.array(digests, np.uint64), np.array(hashes, np.uint64), np.array(units, np.float32)
    ).tolist()


def test_a_bit_tells_whether_a_grey_value_exceeds_its_right_neighbour() -> None:
    falling = np.repeat(np.arange(90, 0, -10, dtype=np.uint8)[None, :, None], 8, axis=0)
    image = falling.repeat(3, axis=2)
    assert difference_hash(image) == 2**64 - 1
    assert difference_hash(image[:, ::-1]) == 0
    image[7, 8] = 255  # the last pair of the last row rises
    assert difference_hash(image) == 2**64 - 2


def test_small_changes_change_few_bits_and_other_pictures_many() -> None:
    image = photo(1)
    brighter = np.clip(image.astype(int) + 6, 0, 255).astype(np.uint8)
    smaller = np.asarray(Image.fromarray(image).resize((40, 40)))
    own = difference_hash(image)
    assert (difference_hash(brighter) ^ own).bit_count() <= 3
    assert (difference_hash(smaller) ^ own).bit_count() <= 3
    assert (difference_hash(photo(2)) ^ own).bit_count() > 15


def test_the_same_pixels_are_one_group_whatever_their_features() -> None:
    assert found([7, 8, 7, 7], [0, 2**40 - 1, 5, 9], [[1, 0], [1, 0], [0, 1], [1, 0]]) == [
        0,
        1,
        0,
        0,
    ]


def test_hashes_may_differ_in_three_bits_and_features_a_little() -> None:
    one = [1.0, 0.0]
    near = [0.98, float(np.sqrt(1 - 0.98**2))]  # at a squared distance of 0.04
    far = [0.97, float(np.sqrt(1 - 0.97**2))]  # 0.06
    bits = 1 | 1 << 20 | 1 << 40  # in three of four bands
    assert found([1, 2], [0, bits], [one, near]) == [0, 0]
    assert found([1, 2], [0, bits], [one, far]) == [0, 1]
    assert found([1, 2], [0, bits | 1 << 60], [one, near]) == [0, 1]
    assert found([1, 2], [0, 0b111], [one, near]) == [0, 0]


def test_groups_that_share_an_image_are_one() -> None:
    hashes = [2**50 - 1, 0, 0b111, 0b111000 | 0b111]  # 1 and 3 differ in 6 bits, 2 in 3 from both
    assert found([1, 2, 3, 4], hashes, [[1.0, 0.0]] * 4) == [0, 1, 1, 1]


def test_no_pair_is_missed() -> None:
    rng = np.random.default_rng(0)
    centres = rng.integers(0, 2**63, 30, dtype=np.uint64)
    flips = [
        np.bitwise_or.reduce(np.uint64(1) << rng.choice(64, rng.integers(0, 4)).astype(np.uint64))
        if at % 3
        else np.uint64(0)
        for at in range(90)
    ]
    hashes = np.repeat(centres, 3) ^ np.array(flips, np.uint64)
    units = np.tile(np.array([[1, 0]], np.float32), (90, 1))
    group = near_duplicates(np.arange(90, dtype=np.uint64), hashes, units)
    assert group.tolist() == [3 * (at // 3) for at in range(90)]
