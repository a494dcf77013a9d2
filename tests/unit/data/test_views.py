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
        ({"kind": "blur"}, "no view 'blur'; there are: framed, jigsaw, plain"),
        ({"seed": -1}, "a jigsaw seed of -1 is negative; give 0 or more"),
        ({"tiles": 1}, "a jigsaw needs 2 tiles a side or more, not 1"),
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
