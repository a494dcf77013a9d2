"""The sizes that images have before they are resized, and what is kept of them."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from oodcli.data.decoding.files import FileSource
from oodcli.data.decoding.scaling import Resizing
from oodcli.data.formats.arrays import ArraySource
from oodcli.data.originals import LARGE, OriginalSizes


def sizes(*values: tuple[int, int]) -> OriginalSizes:
    return OriginalSizes(np.array(values, dtype=np.int64).reshape(-1, 2))


def test_some_images_spread_over_a_folder_are_looked_at(tmp_path: Path) -> None:
    for number in range(200):
        Image.new("RGB", (10 + number, 8)).save(tmp_path / f"{number:03d}.png")
    source = FileSource(tmp_path, sorted(path.name for path in tmp_path.iterdir()))
    found = OriginalSizes.of(source).values
    assert found.shape == (64, 2)
    assert (found[:, 0] == 8).all()
    assert found[0, 1] == 10
    assert found[-1, 1] > 200
    assert OriginalSizes.of(source).differ_from((8, 10))


def test_an_unreadable_image_has_no_size(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(b"nothing")
    found = OriginalSizes.of(FileSource(tmp_path, ["a.png"]))
    assert found.shorter_side == 0
    assert not found.are_large
    assert str(found) == "of unknown size"
    assert found.kept(Resizing((32, 32))) == ""


def test_arrays_have_one_size() -> None:
    found = OriginalSizes.of(ArraySource(np.zeros((5, 12, 17), dtype=np.uint8)))
    assert not found.differ_from((12, 17))
    assert found.differ_from((17, 12))
    assert str(found) == "12 x 17 pixels"


def test_large_is_decided_by_the_median_shorter_side() -> None:
    assert sizes((LARGE, 500), (LARGE, 80), (20, 20)).are_large
    assert not sizes((LARGE - 1, 500), (LARGE - 1, 80), (900, 900)).are_large


def test_the_smallest_the_middle_and_the_largest_are_named() -> None:
    found = sizes((480, 640), (256, 341), (375, 500))
    assert str(found) == "256 x 341 to 480 x 640 pixels, 375 x 500 in the middle"


@pytest.mark.parametrize(
    ("before", "resizing", "kept"),
    [
        ((32, 32), Resizing((32, 32)), ""),
        # The centre square of 256 x 512 is half of it, and 32 * 32 of its 256 * 256 pixels stay.
        (
            (256, 512),
            Resizing((32, 32), "shorter-crop"),
            "this keeps 50 % of the area and 1.6 % of the pixels there",
        ),
        # 224 of 256 on each side.
        (
            (256, 256),
            Resizing((224, 224), "shorter-crop:256"),
            "this keeps 77 % of the area",
        ),
        (
            (256, 512),
            Resizing((128, 128)),
            "this keeps 100 % of the area and 12 % of the pixels there; "
            "height and width are scaled differently",
        ),
        ((16, 16), Resizing((32, 32)), "this keeps 100 % of the area, enlarged 2.0 times"),
    ],
)
def test_what_is_kept_is_said(before: tuple[int, int], resizing: Resizing, kept: str) -> None:
    assert sizes(before).kept(resizing) == kept


def test_shares_of_images_of_several_sizes_are_means() -> None:
    """Of a square all is kept, of the other half; a quarter and all of the pixels there."""
    found = sizes((64, 64), (32, 64))
    assert found.kept(Resizing((32, 32), "shorter-crop")) == (
        "this keeps 75 % of the area and 62 % of the pixels there, on average"
    )
