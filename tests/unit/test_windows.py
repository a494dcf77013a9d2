import numpy as np
import pytest

from oodcli.errors import InvalidInputError
from oodcli.windows import Window, canonical


def test_center_and_width_are_the_linear_function_of_dicom():
    # PS3.3, C.11.2.1.2.1 with c = 40 and w = 400: black up to 40 - 0.5 - 199.5 = -160, white above
    # 239, and between them ((x - 39.5) / 399 + 0.5) * 255: 40 gives 127.82, 100 gives 166.17.
    values = np.array([[-1000, -160, -159, 40, 100, 239, 240, 3000]], np.int16)
    expected = [[0, 0, 1, 128, 166, 255, 255, 255]]
    assert Window.of("40/400").apply(values).tolist() == expected


def test_low_and_high_are_black_and_white():
    # (x + 160) / 400 * 255: 40 gives 127.5, which rounds to the even 128.
    values = np.array([[-161, -160, 40, 240, 241, np.nan]], np.float32)
    assert Window.of("-160..240").apply(values).tolist() == [[0, 0, 128, 255, 255, 0]]


def test_slope_and_intercept_come_first():
    values = np.array([[0, 512, 1064, 4095]], np.uint16)
    window = Window.of("40/400")
    rescaled = window.apply(values, slope=2, intercept=-1024)
    assert rescaled.tolist() == window.apply(values.astype(np.int64) * 2 - 1024).tolist()
    assert rescaled.tolist() == [[0, 102, 255, 255]]  # 0 HU: 160 / 399 * 255 = 102.26


def test_width_of_1_is_a_threshold():
    assert Window.of("10/1").apply(np.array([[9, 9.5, 9.6, 10]])).tolist() == [[0, 0, 255, 255]]


def test_large_images_are_windowed_in_blocks(monkeypatch):
    values = np.arange(5 * 7).reshape(5, 7)
    whole = Window.of("0..34").apply(values)
    monkeypatch.setattr("oodcli.windows._BLOCK", 14)
    assert (Window.of("0..34").apply(values) == whole).all()


@pytest.mark.parametrize(
    ("text", "written"),
    [("40/400:axial", "40/400"), ("-160..240:coronal", "-160..240:coronal"), ("", ""), (None, "")],
)
def test_is_stored_in_one_form(text, written):
    assert canonical(text) == written


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("40", "must be CENTER/WIDTH or LOW..HIGH"),
        ("40/400:oblique", "axial, coronal, sagittal"),
        ("40/0.5", "the width must be at least 1, not 0.5"),
        ("240..-160", "LOW must be below HIGH"),
        ("5..5", "LOW must be below HIGH"),
        ("nan/1", "must be CENTER/WIDTH"),
    ],
)
def test_others_are_refused(text, said):
    with pytest.raises(InvalidInputError, match=said):
        Window.of(text)
