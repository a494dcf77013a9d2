"""NormRatio on cases worked out by hand."""

import numpy as np
import pytest

from oodcli.errors import InvalidInputError
from oodcli.normratio import norm_ratio


def test_takes_the_mean_of_ratios_not_the_ratio_of_means():
    """Block 0: (4/1 + 9/9) / 2 = 2.5, while 13 / 10 = 1.3 would lose to block 1 with 2."""
    found = norm_ratio([[4.0, 2.0], [9.0, 4.0]], [[1.0, 1.0], [9.0, 2.0]])
    assert found.ratio.tolist() == [2.5, 2.0]
    assert found.selected == 0
    assert found.runner_up == 1
    assert found.n_images == 2
    assert found.excluded.tolist() == [0, 0]


def test_standard_error_is_that_of_a_sample():
    """Ratios 1, 2, 3, 6: mean 3, squares 4 + 1 + 0 + 9 = 14, sqrt(14 / 3) / sqrt(4)."""
    found = norm_ratio([[1.0], [2.0], [3.0], [6.0]], np.ones((4, 1)))
    assert found.ratio.tolist() == [3.0]
    assert found.stderr == pytest.approx([np.sqrt(14 / 3) / 2])


def test_selects_the_largest_ratio_wherever_it_stands():
    found = norm_ratio(np.tile([1.1, 1.3, 1.7, 1.4], (3, 1)), np.ones((3, 4)))
    assert (found.selected, found.runner_up) == (2, 3)


def test_leaves_zero_norms_out_of_the_mean_of_their_block_only():
    """Of 2,000 images two have a zero jigsaw norm in block 0: 0.1 %."""
    norms = np.full((2000, 2), 3.0)
    jigsaw = np.ones((2000, 2))
    norms[:1000, 0] = 5.0
    jigsaw[[0, 1500], 0] = 0.0
    found = norm_ratio(norms, jigsaw)
    assert found.ratio.tolist() == [4.0, 3.0]
    assert found.excluded.tolist() == [2, 0]
    # 999 ratios on either side of the mean, all at distance 1.
    assert found.stderr == pytest.approx([np.sqrt(1998 / 1997) / np.sqrt(1998), 0.0])
    assert found.selected == 0
    assert found.clear


@pytest.mark.parametrize(("zeros", "selected"), [(2, 0), (3, 1)])
def test_a_block_with_more_than_a_thousandth_of_zero_norms_cannot_be_selected(zeros, selected):
    norms = np.tile([5.0, 3.0, 2.0], (2000, 1))
    jigsaw = np.ones((2000, 3))
    jigsaw[:zeros, 0] = 0.0
    found = norm_ratio(norms, jigsaw)
    assert found.selected == selected
    assert found.runner_up == selected + 1
    assert found.excluded.tolist() == [zeros, 0, 0]
    assert found.ratio.tolist() == [5.0, 3.0, 2.0]


def test_a_dead_block_has_no_ratio_and_no_say():
    found = norm_ratio([[0.0, 2.0], [0.0, 3.0]], [[0.0, 1.0], [0.0, 1.0]])
    assert np.isnan(found.ratio[0])
    assert np.isnan(found.stderr[0])
    assert found.excluded.tolist() == [2, 0]
    assert (found.selected, found.runner_up, found.clear) == (1, None, True)


def test_a_zero_norm_of_the_original_counts_as_a_ratio_of_zero():
    found = norm_ratio([[0.0], [4.0]], [[1.0], [1.0]])
    assert found.ratio.tolist() == [2.0]
    assert found.excluded.tolist() == [0]


def test_the_first_of_equal_ratios_is_selected_and_not_called_clear():
    found = norm_ratio(np.tile([1.0, 2.0, 2.0, 2.0], (5, 1)), np.ones((5, 4)))
    assert (found.selected, found.runner_up, found.clear) == (1, 2, False)


def leading_by(margin: float) -> np.ndarray:
    """Ratios whose paired difference is the margin, plus and minus one, over 100 images."""
    swing = np.tile([1.0, -1.0], 50)
    common = np.linspace(10, 500, 100)
    return np.stack([common, common + margin + swing], axis=1)


def test_a_lead_of_more_than_two_standard_errors_is_clear():
    """The standard error of the paired difference is sqrt(100 / 99) / 10 = 0.1005."""
    assert norm_ratio(leading_by(0.2011), np.ones((100, 2))).clear
    assert not norm_ratio(leading_by(0.2009), np.ones((100, 2))).clear


def test_clarity_compares_image_by_image():
    """Each ratio spreads widely, but one is above the other on every image."""
    common = np.linspace(1, 1000, 50)
    found = norm_ratio(np.stack([common, common + 0.001], axis=1), np.ones((50, 2)))
    assert found.selected == 1
    assert found.clear
    assert found.stderr[1] > 1


@pytest.mark.parametrize(("dead", "alive", "outlier"), [(0, 1, 2e3), (1, 0, 2e4)])
def test_clarity_looks_only_at_images_valid_in_both_blocks(dead, alive, outlier):
    """One image without a ratio in one block has a huge one in the other, which hides the lead."""
    norms = np.tile([5.0, 1.0], (1000, 1))
    jigsaw = np.ones((1000, 2))
    jigsaw[7, dead] = 0.0
    norms[7, alive] = outlier
    found = norm_ratio(norms, jigsaw)
    assert found.selected == 0
    assert found.clear


def test_one_image_gives_a_choice_without_an_error():
    found = norm_ratio([[2.0, 3.0]], [[1.0, 1.0]])
    assert found.ratio.tolist() == [2.0, 3.0]
    assert np.isnan(found.stderr).all()
    assert (found.selected, found.runner_up, found.clear) == (1, 0, False)


def test_one_block_is_a_clear_choice():
    found = norm_ratio([[2.0], [3.0]], [[1.0], [1.0]])
    assert (found.selected, found.runner_up, found.clear) == (0, None, True)


def test_single_precision_norms_are_divided_in_double_precision():
    norms, jigsaw = np.full((3, 1), 1, np.float32), np.full((3, 1), 3, np.float32)
    found = norm_ratio(norms, jigsaw)
    assert found.ratio.dtype == np.float64
    assert found.ratio.tolist() == [1 / 3]


def test_norms_are_left_as_they_were():
    norms, jigsaw = np.ones((2, 2)), np.array([[0.0, 1.0], [1.0, 1.0]])
    norms.flags.writeable = jigsaw.flags.writeable = False
    assert norm_ratio(norms, jigsaw).selected == 1


@pytest.mark.parametrize(
    ("norms", "jigsaw", "message"),
    [
        (
            [[1.0, 2.0]],
            [[1.0]],
            "block norms of images (1, 2) and of jigsaw puzzles (1, 1) differ in shape; compute "
            "both from the same images and network",
        ),
        (
            np.empty((0, 3)),
            np.empty((0, 3)),
            "block norms of images have shape (0, 3); give at least one image (row) and one block "
            "(column)",
        ),
        (
            np.ones((2, 1)),
            np.empty((2, 0)),
            "block norms of jigsaw puzzles have shape (2, 0); give at least one image (row) and "
            "one block (column)",
        ),
        (
            [1.0, 2.0],
            [1.0, 2.0],
            "block norms of images have shape (2,); give at least one image (row) and one block "
            "(column)",
        ),
        (
            [[1.0, 2.0], [3.0, np.nan]],
            np.ones((2, 2)),
            "block norms of images hold nan in row 1, block 1; norms are finite and not negative, "
            "so check the checkpoint",
        ),
        (
            np.ones((1, 2)),
            [[np.inf, 1.0]],
            "block norms of jigsaw puzzles hold inf in row 0, block 0; norms are finite and not "
            "negative, so check the checkpoint",
        ),
        (
            [[1.0, -2.0]],
            np.ones((1, 2)),
            "block norms of images hold -2.0 in row 0, block 1; norms are finite and not negative, "
            "so check the checkpoint",
        ),
        (
            np.ones((3, 2)),
            [[0.0, 0.0], [1.0, 0.0], [1.0, 1.0]],
            "no block can be selected: more than 0.1 % of 3 jigsaw puzzles have norm 0 in each "
            "(block 0: 1, block 1: 2); give a block explicitly, or train the network further",
        ),
    ],
)
def test_norms_that_cannot_be_compared_are_refused(norms, jigsaw, message):
    with pytest.raises(InvalidInputError) as error:
        norm_ratio(norms, jigsaw)
    assert str(error.value) == message
