"""Resizing by matrices gives Pillow's pixels, every bit of them."""

import numpy as np
import pytest

from oodcli.data.decoding.bilinear import axis_matrix, resizing_matrices
from oodcli.data.decoding.scaling import Resizing
from oodcli.errors import InvalidInputError

SIZES = ((32, 32), (8, 8), (28, 28), (31, 57), (57, 31), (96, 96), (200, 133), (480, 640), (33, 32))


@pytest.mark.parametrize("before", SIZES)
@pytest.mark.parametrize("how", ["exact", "shorter-crop", "shorter-crop:40"])
@pytest.mark.parametrize("size", [(32, 32), (24, 40)])
@pytest.mark.parametrize("filter_", ["bilinear", "bicubic", "lanczos", "nearest"])
def test_the_pixels_are_those_of_pillow(
    before: tuple[int, int], how: str, size: tuple[int, int], filter_: str
) -> None:
    rng = np.random.default_rng(before[0])
    resizing = Resizing(size, f"{how}:{filter_}")
    images = [
        rng.integers(0, 256, (*before, 3), dtype=np.uint8),
        np.where(rng.random((*before, 1)) < 0.5, 0, 255).astype(np.uint8).repeat(3, axis=2),
        np.full((*before, 3), 255, np.uint8),
    ]
    matrices = resizing_matrices(resizing, before)
    for image in images:
        ours = matrices.apply(image.transpose(2, 0, 1)).transpose(1, 2, 0)
        np.testing.assert_array_equal(ours, resizing.apply(image))


def test_an_axis_that_stays_is_left_alone() -> None:
    np.testing.assert_array_equal(axis_matrix(7, 7), np.eye(7))


@pytest.mark.parametrize("filter_", ["bilinear", "bicubic", "lanczos", "nearest"])
def test_weights_are_whole_multiples_that_sum_to_one(filter_: str) -> None:
    weights = axis_matrix(100, 32, filter_)
    np.testing.assert_array_equal(weights * 2**22, np.round(weights * 2**22))
    np.testing.assert_allclose(weights.sum(axis=1), 1, atol=1e-5)
    assert (weights >= 0).all() == (filter_ in ("bilinear", "nearest"))


def test_the_filter_of_torch_is_refused_by_name() -> None:
    with pytest.raises(InvalidInputError, match="a graph cannot resize by bicubic-torchvision: "):
        resizing_matrices(Resizing((8, 8), "exact:bicubic-torchvision"), (20, 30))


def test_a_pillow_that_rounds_otherwise_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    apply = Resizing.apply
    monkeypatch.setattr(Resizing, "apply", lambda self, image: apply(self, image) // 2)
    with pytest.raises(InvalidInputError, match="omit --input-size"):
        resizing_matrices(Resizing((8, 8)), (20, 30))
