"""Jigsaw images keep their tiles and lose their order."""

import numpy as np
import pytest

from oodcli.data import View, jigsaw
from oodcli.errors import InvalidInputError


def tiles_of(image, count=3):
    """Cut an image ``(c, h, w)`` into tiles, row by row."""
    height, width = image.shape[1] // count, image.shape[2] // count
    return [
        image[:, row * height : (row + 1) * height, column * width : (column + 1) * width]
        for row in range(count)
        for column in range(count)
    ]


@pytest.mark.parametrize("shape", [(32, 32), (9, 9), (32, 17), (3, 3), (224, 224)])
def test_keeps_every_tile_of_the_image(random_images, shape):
    pixels = random_images(4, 3, *shape)
    for before, after in zip(pixels, jigsaw(pixels, np.arange(4)), strict=True):
        assert sorted(tile.tobytes() for tile in tiles_of(before)) == sorted(
            tile.tobytes() for tile in tiles_of(after)
        )


def test_border_is_black_at_the_bottom_and_at_the_right(random_images):
    shuffled = jigsaw(random_images(5, 3, 32, 17) | 1, np.arange(5))
    assert not shuffled[:, :, 30:].any()
    assert not shuffled[:, :, :, 15:].any()
    assert shuffled[:, :, :30, :15].all()


def test_input_is_left_as_it_was(random_images):
    pixels = random_images(5, 3, 32, 32)
    before = pixels.copy()
    jigsaw(pixels, np.arange(5))
    np.testing.assert_array_equal(pixels, before)


def test_order_depends_on_the_row_and_not_on_the_batch(random_images):
    pixels = random_images(50, 3, 12, 12)
    whole = jigsaw(pixels, np.arange(50))
    some = np.array([41, 3, 17])
    np.testing.assert_array_equal(jigsaw(pixels[some], some), whole[some])


def test_seeds_and_rows_differ(random_images):
    pixels = np.repeat(random_images(1, 3, 30, 30), 40, axis=0)
    first = jigsaw(pixels, np.arange(40), seed=0)
    assert len({image.tobytes() for image in first}) == 40
    assert not np.array_equal(first, jigsaw(pixels, np.arange(40), seed=1))
    np.testing.assert_array_equal(first, jigsaw(pixels, np.arange(40), seed=0))


def test_order_is_the_same_on_every_machine():
    """NormRatio rests on these orders; a change belongs into the changelog."""
    pixels = np.arange(9, dtype=np.uint8).reshape(1, 1, 3, 3).repeat(3, axis=0)
    shuffled = jigsaw(pixels, np.array([0, 1, 50_000]))
    assert shuffled.reshape(3, 9).tolist() == [
        [3, 2, 1, 8, 6, 0, 7, 4, 5],
        [7, 4, 5, 1, 8, 6, 2, 0, 3],
        [1, 6, 8, 7, 4, 0, 5, 3, 2],
    ]


def test_every_tile_comes_to_every_place_alike():
    """Chi-square over the 81 pairs of tile and place: 64 degrees of freedom."""
    count = 9000
    pixels = np.broadcast_to(np.arange(9, dtype=np.uint8).reshape(1, 1, 3, 3), (count, 1, 3, 3))
    placed = jigsaw(pixels, np.arange(count)).reshape(count, 9)
    counts = np.stack([np.bincount(placed[:, place], minlength=9) for place in range(9)])
    expected = count / 9
    assert ((counts - expected) ** 2 / expected).sum() < 64 + 5 * np.sqrt(2 * 64)


def test_all_orders_of_four_tiles_are_alike_the_first_included():
    """Chi-square over the 24 orders of 2 x 2 tiles: 23 degrees of freedom."""
    count = 4800
    pixels = np.broadcast_to(np.arange(4, dtype=np.uint8).reshape(1, 1, 2, 2), (count, 1, 2, 2))
    orders = jigsaw(pixels, np.arange(count), tiles=2).reshape(count, 4)
    _, counts = np.unique(orders, axis=0, return_counts=True)
    assert len(counts) == 24
    assert ((counts - 200) ** 2 / 200).sum() < 23 + 5 * np.sqrt(2 * 23)


@pytest.mark.parametrize("shape", [(2, 32), (32, 2)])
def test_image_smaller_than_its_tiles_is_refused(random_images, shape):
    with pytest.raises(InvalidInputError) as caught:
        jigsaw(random_images(1, 3, *shape), np.arange(1))
    assert str(caught.value) == (
        f"images of {shape[0]}x{shape[1]} pixels cannot be cut into 3x3 tiles; use larger images"
    )


def test_view_applies_what_its_key_says(random_images):
    pixels, rows = random_images(4, 3, 12, 12), np.arange(4)
    assert View().apply(pixels, rows) is pixels
    assert View().key() == View(seed=5).key() == {"kind": "plain"}
    view = View("jigsaw", seed=2, tiles=4)
    assert view.key() == {"kind": "jigsaw", "seed": 2, "tiles": 4}
    np.testing.assert_array_equal(view.apply(pixels, rows), jigsaw(pixels, rows, seed=2, tiles=4))


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        (
            {"kind": "fog"},
            "no view 'fog'; there are: blur, framed, gaussian-noise, jigsaw, pixel-shuffle, "
            "plain, rotation, uniform-noise",
        ),
        ({"seed": -1}, "a jigsaw seed of -1 is negative; give 0 or more"),
        ({"tiles": 1}, "a jigsaw needs at least 2 tiles per side, not 1"),
    ],
)
def test_view_refuses_what_it_cannot_show(fields, message):
    with pytest.raises(InvalidInputError) as caught:
        View(**fields)
    assert str(caught.value) == message


def test_framed_images_differ_from_jigsaws_in_the_order_of_tiles_alone() -> None:
    pixels = np.random.default_rng(0).integers(1, 256, (4, 3, 32, 34), dtype=np.uint8)
    framed = View("framed").apply(pixels, np.arange(4))
    puzzle = View("jigsaw").apply(pixels, np.arange(4))
    assert np.array_equal(framed[:, :, :30, :33], pixels[:, :, :30, :33])
    assert not framed[:, :, 30:].any()
    assert not framed[:, :, :, 33:].any()
    assert np.array_equal(framed == 0, puzzle == 0)
    for image, shuffled in zip(framed, puzzle, strict=True):
        assert np.array_equal(np.sort(image, axis=None), np.sort(shuffled, axis=None))
    assert View("framed").key() != View("jigsaw").key() != View().key()


SPOILT = ("gaussian-noise", "uniform-noise", "blur", "rotation", "pixel-shuffle")


@pytest.mark.parametrize("kind", SPOILT)
def test_a_corrupted_image_is_the_same_in_every_batch(random_images, kind):
    pixels = random_images(6, 3, 32, 24)
    rows = np.array([4, 9, 2, 31, 7, 8])
    before = pixels.copy()
    whole = View(kind).apply(pixels, rows)
    assert whole.dtype == np.uint8
    assert whole.shape == pixels.shape
    np.testing.assert_array_equal(pixels, before)
    order = [5, 0, 3]
    np.testing.assert_array_equal(View(kind).apply(pixels[order], rows[order]), whole[order])
    assert View(kind).apply(pixels[:0], rows[:0]).shape == (0, 3, 32, 24)
    assert all((a != b).any() for a, b in zip(whole, pixels, strict=True))


@pytest.mark.parametrize("kind", ["gaussian-noise", "uniform-noise", "pixel-shuffle", "jigsaw"])
def test_what_is_random_goes_by_seed_and_row(random_images, kind):
    pixels = np.repeat(random_images(1, 3, 32, 32), 2, axis=0)
    first = View(kind).apply(pixels, np.array([0, 1]))
    assert (first[0] != first[1]).any()
    assert (View(kind, seed=1).apply(pixels, np.array([0, 1])) != first).any()
    assert View(kind, seed=1).key() != View(kind).key()


def test_noise_has_its_strength_and_stays_in_range():
    grey = np.full((8, 3, 64, 64), 128, dtype=np.uint8)
    rows = np.arange(8)
    normal = View("gaussian-noise").apply(grey, rows).astype(float) - 128
    assert abs(normal.mean()) < 1
    # What is clipped beyond 127 of a deviation of 51 takes little of it.
    assert 49 < normal.std() < 51.5
    uniform = View("uniform-noise").apply(grey, rows).astype(float) - 128
    assert uniform.min() == -89
    assert uniform.max() == 89
    assert uniform.std() == pytest.approx(89 / np.sqrt(3), rel=0.01)
    white = np.full((1, 3, 32, 32), 255, dtype=np.uint8)
    noisy = View("gaussian-noise").apply(white, rows[:1])
    assert 0.4 < (noisy == 255).mean() < 0.6


def test_blurring_weighs_by_a_bell_curve_and_mirrors_the_border():
    point = np.zeros((1, 3, 32, 32), dtype=np.uint8)
    point[0, 1, 16, 10] = 255
    away = np.arange(32)
    bell = np.exp(-((away[:, None] - 16) ** 2 + (away - 10) ** 2) / (2 * 2.0**2))
    expected = 255 * bell / bell.sum()
    spread = View("blur").apply(point, np.array([0]))
    assert not spread[0, [0, 2]].any()
    np.testing.assert_allclose(spread[0, 1], expected, atol=0.51)
    flat = np.full((2, 3, 32, 20), 77, dtype=np.uint8)
    np.testing.assert_array_equal(View("blur").apply(flat, np.arange(2)), flat)


def test_images_are_turned_by_their_row(random_images):
    pixels = random_images(4, 3, 8, 8)
    turned = View("rotation").apply(pixels, np.array([0, 1, 2, 3]))
    for image, after, times in zip(pixels, turned, (1, 2, 3, 1), strict=True):
        np.testing.assert_array_equal(after, np.rot90(image, times, axes=(1, 2)))
    oblong = random_images(2, 3, 8, 6)
    half = View("rotation").apply(oblong, np.array([0, 1]))
    np.testing.assert_array_equal(half, oblong[:, :, ::-1, ::-1])


def test_shuffled_pixels_keep_their_channels_together(random_images):
    pixels = random_images(3, 3, 9, 7)
    shuffled = View("pixel-shuffle").apply(pixels, np.arange(3))
    for before, after in zip(pixels, shuffled, strict=True):
        assert sorted(map(tuple, before.reshape(3, -1).T)) == sorted(
            map(tuple, after.reshape(3, -1).T)
        )


def test_views_of_one_name_and_none_are_distinguished():
    keys = [View(kind).key() for kind in (*SPOILT, "plain", "framed", "jigsaw")]
    assert len({str(sorted(key.items())) for key in keys}) == len(keys)
