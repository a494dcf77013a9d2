"""Contact sheets show the pixels that they were given."""

import numpy as np
import pytest

from oodcli.data.sheet import contact_sheet


def colours(count, side):
    """Return images of one colour each, ``(count, 3, side, side)``."""
    values = np.random.default_rng(0).integers(0, 256, (count, 3, 1, 1), dtype=np.uint8)
    return np.broadcast_to(values, (count, 3, side, side)).copy()


@pytest.mark.parametrize(("side", "cell"), [(8, 96), (32, 96), (28, 112), (96, 96), (224, 224)])
def test_small_images_are_enlarged_by_a_whole_number(side, cell):
    pixels = np.random.default_rng(0).integers(0, 256, (1, 3, side, side), dtype=np.uint8)
    sheet = np.asarray(contact_sheet(pixels, ["x"], title=["t"]))
    top = 16 + 24 + 8
    shown = sheet[top : top + cell, 16 : 16 + cell]
    scale = cell // side
    np.testing.assert_array_equal(
        shown, pixels[0].transpose(1, 2, 0).repeat(scale, axis=0).repeat(scale, axis=1)
    )


def test_every_image_is_on_the_sheet_in_rows_of_ten():
    pixels = colours(23, 32)
    sheet = np.asarray(contact_sheet(pixels, [""] * 23, title=[]))
    for at in range(23):
        row, column = divmod(at, 10)
        y, x = 16 + 8 + row * (96 + 19 + 8), 16 + column * (96 + 8)
        assert (sheet[y : y + 96, x : x + 96] == pixels[at, :, 0, 0]).all()
    assert sheet.shape == (16 + 8 + 3 * 123 + 16 - 8, 32 + 10 * 104 - 8, 3)


def test_captions_and_titles_leave_ink_and_long_ones_are_cut():
    pixels = colours(2, 96)
    plain = np.asarray(contact_sheet(pixels, ["", ""], title=[""]))
    short = np.asarray(contact_sheet(pixels, ["cat", ""], title=[""]))
    long = np.asarray(contact_sheet(pixels, ["x" * 10_000, ""], title=[""]))
    assert (plain != short).any()
    below = slice(16 + 24 + 8 + 96, None)
    assert (long[below, 16 : 16 + 96] != 255).any()
    assert (long[below, 16 + 96 + 1 :] == 255).all()
    named = np.asarray(contact_sheet(pixels, ["", ""], title=["a title that is wide " * 5]))
    assert named.shape[1] > plain.shape[1]


def test_captions_of_any_script_are_drawn():
    assert contact_sheet(colours(3, 32), ["Äpfel", "猫", "a\nb\t\x00"], title=["é"]).mode == "RGB"
