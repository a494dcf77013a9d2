"""Crops out of originals, against torchvision's transform of the same name."""

import math

import numpy as np
import pytest
import torch
from PIL import Image
from scipy import stats
from torchvision.transforms import v2
from torchvision.transforms.v2 import functional

from oodcli.data.decoding.crops import RandomCrops, random_box

SCALES = [(0.08, 1.0), (0.2, 1.0)]
# Wide, tall and square images; of the last two, most boxes or all have to be drawn again.
SIZES = [(60, 90), (90, 60), (50, 50), (20, 200), (150, 12)]


def theirs(height, width, scale, count):
    """Draw boxes as torchvision does: top, left, height and width of each, ``(n, 4)``."""
    transform = v2.RandomResizedCrop(8, scale=scale, antialias=True)
    image = torch.zeros(3, height, width, dtype=torch.uint8)
    torch.manual_seed(0)
    drawn = [transform.make_params([image]) for _ in range(count)]
    return np.array([[d["top"], d["left"], d["height"], d["width"]] for d in drawn])


@pytest.mark.parametrize("scale", SCALES)
@pytest.mark.parametrize("size", SIZES)
def test_boxes_are_drawn_as_torchvision_draws_them(size, scale):
    chance = np.random.default_rng(1)
    count = 3000
    ours = np.array([random_box(*size, scale, chance) for _ in range(count)])
    wanted = theirs(*size, scale, count)
    assert (ours[:, :2] >= 0).all()
    assert (ours[:, 2:] >= 1).all()
    assert (ours[:, 0] + ours[:, 2] <= size[0]).all()
    assert (ours[:, 1] + ours[:, 3] <= size[1]).all()
    for name, function in {
        "top": lambda boxes: boxes[:, 0],
        "left": lambda boxes: boxes[:, 1],
        "height": lambda boxes: boxes[:, 2],
        "width": lambda boxes: boxes[:, 3],
        "area": lambda boxes: boxes[:, 2] * boxes[:, 3],
        "ratio": lambda boxes: boxes[:, 3] / boxes[:, 2],
        "centre": lambda boxes: boxes[:, 0] + boxes[:, 2] / 2 + boxes[:, 1] + boxes[:, 3] / 2,
    }.items():
        found = stats.ks_2samp(function(ours), function(wanted), method="asymp")
        assert found.pvalue > 1e-4, (name, found)


@pytest.mark.parametrize("size", [(20, 200), (150, 12)])
def test_what_never_fits_becomes_the_same_centred_box(size):
    chance = np.random.default_rng(0)
    assert {random_box(*size, (0.99, 1.0), chance) for _ in range(20)} == {
        tuple(box) for box in theirs(*size, (0.99, 1.0), 20).tolist()
    }


@pytest.mark.parametrize("filter_", ["bilinear", "bicubic", "lanczos", "nearest"])
@pytest.mark.parametrize("size", SIZES)
def test_pixels_are_those_of_torchvision(size, filter_):
    image = np.random.default_rng(2).integers(0, 256, (*size, 3), dtype=np.uint8)
    crops = RandomCrops((16, 24), (0.08, 1.0), seed=3, epoch=2, views=4, filter=filter_)
    how = v2.InterpolationMode(filter_)
    for row in (0, 5):
        views = crops.apply(image, row)
        for view in range(4):
            box = random_box(*size, (0.08, 1.0), np.random.default_rng((3, 2, row, view)))
            wanted = functional.resized_crop(Image.fromarray(image), *box, [16, 24], how)
            np.testing.assert_array_equal(views[view], np.asarray(wanted).transpose(2, 0, 1))


def test_chance_is_of_seed_epoch_row_and_view_alone():
    image = np.random.default_rng(2).integers(0, 256, (40, 50, 3), dtype=np.uint8)

    def crop(seed=0, epoch=1, row=0, views=1):
        return RandomCrops((8, 8), (0.08, 1.0), seed, epoch, views).apply(image, row)

    first = crop(views=2)
    np.testing.assert_array_equal(first, crop(views=2))
    np.testing.assert_array_equal(first[:1], crop())
    others = [first[1:], crop(seed=1), crop(epoch=2), crop(row=1)]
    every = [first[:1], *others]
    assert len({each.tobytes() for each in every}) == len(every)


def test_ratios_are_even_on_a_logarithmic_scale():
    chance = np.random.default_rng(4)
    boxes = [random_box(2000, 2000, (0.05, 0.05), chance) for _ in range(4000)]
    logs = [math.log(width / height) / math.log(4 / 3) for _, _, height, width in boxes]
    assert stats.kstest(logs, "uniform", (-1, 2)).pvalue > 1e-4
