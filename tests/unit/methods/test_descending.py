"""Sorted features, which ASH, SCALE and LTS share."""

from math import exp

import pytest
import torch

from oodcli.activations import Activations
from oodcli.errors import UndefinedMethodError
from oodcli.methods._descending import descending, exponential, kept_count, unsigned


def batch(features: list[list[float]]) -> Activations:
    """Make activations with these features."""
    n = len(features)
    return Activations(
        torch.zeros(n, 2),
        torch.tensor(features),
        torch.zeros(n, 1),
        torch.zeros(n, dtype=torch.int64),
    )


def test_sums_run_from_the_largest_feature_down_and_count_negative_ones_as_zero() -> None:
    ordered = descending(batch([[1.0, 4.0, 2.0], [0.0, -3.0, 5.0]]))
    assert ordered.values.tolist() == [[4.0, 2.0, 1.0], [5.0, 0.0, -3.0]]
    assert ordered.sums.tolist() == [[4.0, 6.0, 7.0], [5.0, 5.0, 5.0]]
    assert ordered.total.tolist() == [7.0, 5.0]
    assert ordered.smallest == -3.0


def test_a_batch_is_sorted_once() -> None:
    one = batch([[1.0, 4.0, 2.0]])
    assert descending(one) is descending(one)


def test_a_batch_without_images_has_nothing_below_zero() -> None:
    empty = batch([[1.0, 2.0]]).map(lambda values: values[:0])
    assert descending(empty).smallest == 0.0


def test_the_ratio_is_the_sum_of_all_over_that_of_the_largest() -> None:
    ordered = descending(batch([[1.0, 4.0, 2.0, 1.0], [0.0, 0.0, 0.0, 0.0], [1.0, 1.0, 1.0, 1.0]]))
    # 8 / 6, nothing over nothing, and 4 / 2: as large as it can be.
    assert ordered.ratio(2).tolist() == pytest.approx([8 / 6, 1.0, 2.0])
    assert ordered.ratio(4).tolist() == [1.0, 1.0, 1.0]


def test_exactly_so_many_are_the_largest_and_of_equals_the_first() -> None:
    features = [[1.0, 3.0, 3.0, 3.0, 0.0], [5.0, 4.0, 3.0, 2.0, 1.0], [0.0, 0.0, 7.0, 0.0, 0.0]]
    one = batch(features)
    assert descending(one).largest(one.features, 2).tolist() == [
        [False, True, True, False, False],
        [True, True, False, False, False],
        [True, False, True, False, False],
    ]
    assert descending(one).largest(one.features, 5).all()


@pytest.mark.parametrize(
    ("width", "percentile", "count"),
    # From the table of methods.md, half to even (512 · 0.85 = 435.2), and never none.
    [(512, 65, 179), (512, 85, 77), (2048, 85, 307), (2048, 95, 102), (4, 62.5, 2), (4, 99, 1)],
)
def test_what_lies_above_a_percentile_is_counted(width: int, percentile: float, count: int) -> None:
    assert kept_count(width, percentile) == count


def test_exponentials_that_float32_cannot_hold_are_float64_and_finite() -> None:
    ratio = torch.tensor([1.0, 20.0])
    assert exponential(ratio, 95.0).dtype == torch.float32
    assert exponential(ratio, 95.0).shape == (2, 1)
    large = exponential(torch.tensor([102.0, 2048.0]), 99.0)
    assert large.dtype == torch.float64
    assert large.isfinite().all()
    assert large[0].item() == pytest.approx(exp(102))


def test_features_below_zero_are_refused_with_what_may_be_done() -> None:
    signed = batch([[1.0, -0.314]])
    with pytest.raises(UndefinedMethodError) as raised:
        unsigned(signed, "ash-p")
    assert str(raised.value) == (
        "ash-p is not defined for features below 0 (smallest: -0.31): "
        "use a method that does not sum features"
    )
    with pytest.raises(
        UndefinedMethodError, match=r", or scale:signed=clamp, which counts them as 0"
    ):
        unsigned(signed, "scale", signed="refuse")
    assert unsigned(signed, "scale", signed="clamp").total.tolist() == [1.0]
