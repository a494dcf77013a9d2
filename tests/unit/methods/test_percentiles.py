"""Percentiles of large arrays, against NumPy's."""

import numpy as np
import pytest
import torch

from oodcli.methods._percentiles import ascending, at_percentile, outer_percentiles


@pytest.mark.parametrize("percent", [0, 1, 10, 33.3, 50, 90, 99.9, 100])
@pytest.mark.parametrize("count", [1, 2, 7, 1000])
def test_a_percentile_is_interpolated_as_numpy_does(percent: float, count: int) -> None:
    values = torch.randn(count, generator=torch.Generator().manual_seed(count))
    wanted = np.percentile(values.numpy().astype(np.float64), percent)
    assert at_percentile(ascending(values), percent) == pytest.approx(wanted, rel=1e-12)


def test_sorting_goes_along_the_last_dimension_and_leaves_its_input_alone() -> None:
    values = torch.tensor([[3.0, 1.0, 2.0], [0.0, 5.0, -1.0]])
    assert ascending(values).tolist() == [[1.0, 2.0, 3.0], [-1.0, 0.0, 5.0]]
    assert values.tolist() == [[3.0, 1.0, 2.0], [0.0, 5.0, -1.0]]


def test_values_elsewhere_are_sorted_where_they_are() -> None:
    """A device without values stands for one that is not the processor."""
    assert ascending(torch.empty(2, 5, device="meta")).device.type == "meta"


@pytest.mark.parametrize(("low", "high"), [(0.1, 99.9), (0, 100), (25, 75), (10, 90), (50, 50)])
@pytest.mark.parametrize(("count", "rows"), [(1, 1), (2, 1), (11, 3), (5000, 37), (5000, 5000)])
def test_outer_percentiles_need_the_values_only_in_chunks(
    low: float, high: float, count: int, rows: int
) -> None:
    values = torch.randn(count, 3, generator=torch.Generator().manual_seed(count))
    got = outer_percentiles(values.split(rows), total=values.numel(), low=low, high=high)
    assert got == pytest.approx(np.percentile(values.double().numpy(), [low, high]), rel=1e-12)


def test_outer_percentiles_of_equal_values_are_that_value() -> None:
    chunks = [torch.full((50, 4), 2.5) for _ in range(9)]
    assert outer_percentiles(chunks, total=1800, low=0.1, high=99.9) == (2.5, 2.5)
