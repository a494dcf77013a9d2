"""Pictures that compare methods: values worked by hand or published, and room for all names."""

import numpy as np
import pytest

from oodcli.errors import InvalidInputError
from oodcli.reporting.plots import PAGE, Picture
from oodcli.reporting.plots_of_methods import (
    auroc_dots,
    correlation_map,
    critical_difference,
    dot_plot,
    rank_correlations,
    rank_diagram,
    ranks_of,
)
from oodcli.reporting.statistics import auroc_interval, placements
from tests.support.pictures import overlaps, smallest_text, texts

LONG = "a-method-of-a-very-long-name:parameter=12.5,other=3+energy"


@pytest.mark.parametrize(
    ("n_methods", "quantile"),
    [(2, 1.960), (3, 2.343), (4, 2.569), (5, 2.728), (6, 2.850), (7, 2.949), (8, 3.031), (9, 3.102),
     (10, 3.164)],
)  # fmt: skip
def test_quantiles_are_those_of_demsars_table(n_methods, quantile):
    """Table 5 (a), two-tailed Nemenyi test at 0.05."""
    scale = np.sqrt(n_methods * (n_methods + 1) / (6 * 14))
    assert critical_difference(n_methods, 14) / scale == pytest.approx(quantile, abs=1e-3)


def test_ranks_and_their_critical_difference():
    """Ranks worked by hand; four methods on 14 sets have 1.25 in the example of Demšar."""
    auroc = {"a": [0.9, 0.8, 0.7], "b": [0.8, 0.8, 0.9], "c": [0.1, 0.2, 0.3]}
    ranks = ranks_of(auroc)
    # a: 1, 1.5 and 2; b: 2, 1.5 and 1; c: 3 everywhere.
    assert dict(zip(ranks.methods, ranks.ranks, strict=True)) == {"a": 1.5, "b": 1.5, "c": 3.0}
    assert ranks.critical_difference == pytest.approx(2.343 * np.sqrt(12 / 18), abs=1e-3)  # 1.913
    assert not ranks.is_hopeless
    assert ranks.as_good_as_first == ("a", "b", "c")
    assert critical_difference(4, 14) == pytest.approx(1.25, abs=0.005)
    twice = ranks_of({name: 2 * values for name, values in auroc.items()})
    assert twice.critical_difference == pytest.approx(1.913 / np.sqrt(2), abs=1e-3)  # 1.353
    assert twice.as_good_as_first == ("a", "b")


def test_too_few_sets_are_said():
    two = rank_diagram("run", ranks_of({"a": [0.9, 0.8], "b": [0.8, 0.7], "c": [0.1, 0.2]}))
    label = "mean rank (1 is the best)"
    assert f"{label}\n2 OOD sets: too few for\nany difference to show" in texts(two)
    ten = rank_diagram("run", ranks_of({"a": [0.9] * 10, "b": [0.8] * 10}))
    assert f"{label}\n10 OOD sets: only large\ndifferences show" in texts(ten)
    enough = rank_diagram("run", ranks_of({"a": [0.9] * 11, "b": [0.8] * 11}))
    assert label in texts(enough)
    with pytest.raises(InvalidInputError, match="at least two methods"):
        ranks_of({"a": [0.5]})


def test_correlation_is_the_mean_within_sets():
    low, high = np.array([1.0, 2.0, 3.0, 4.0]), np.array([11.0, 12.0, 13.0, 14.0])
    swapped = np.array([2.0, 1.0, 3.0, 4.0])  # 1 - 6 (1 + 1) / (4 x 15) = 0.8
    scores = {
        "a": (high, {"ood": low}),
        "b": (10 + swapped, {"ood": low[::-1]}),
        "same": (np.zeros(4), {"ood": low}),
    }
    np.testing.assert_allclose(
        rank_correlations(scores), [[1, -0.1, 0.5], [-0.1, 1, -0.5], [0.5, -0.5, 1]], atol=1e-12
    )


def test_dots_are_auroc_with_its_interval():
    id_scores, ood = np.array([2.0, 4.0, 6.0, 8.0]), np.array([1.0, 5.0])
    dots = auroc_dots({"m": (id_scores, {"ood": ood})})
    dot = dots["ood"]["m"]
    assert dot.value == 6 / 8
    assert (dot.low, dot.high) == auroc_interval([placements(id_scores, ood)])
    lines = dot_plot("run", dots).figure.axes[0].lines
    np.testing.assert_allclose(lines[0].get_xdata(), [100 * dot.low, 100 * dot.high])
    assert list(lines[1].get_xdata()) == [75.0]


def pictures_of_many(n_sets: int, n_methods: int) -> list[Picture]:
    rng = np.random.default_rng(0)
    scores = {
        f"{LONG}-{method}": (
            rng.normal(1, 1, 30),
            {f"{LONG} set {at}" if n_sets > 1 else "svhn": rng.normal(0, 1, 20)
             for at in range(n_sets)},
        )
        for method in range(n_methods)
    }  # fmt: skip
    dots = auroc_dots(scores)
    auroc = {method: [each[method].value for each in dots.values()] for method in scores}
    return [
        dot_plot("run", dots),
        rank_diagram("run", ranks_of(auroc)),
        correlation_map("run", list(scores), rank_correlations(scores)),
    ]


@pytest.mark.parametrize(("n_sets", "n_methods"), [(1, 2), (10, 2), (20, 2), (2, 12), (1, 6)])
def test_there_is_room_for_every_name(n_sets, n_methods):
    for picture in pictures_of_many(n_sets, n_methods):
        assert overlaps(picture) == [], picture.name
        assert smallest_text(picture) >= 8
        assert picture.figure.get_figwidth() <= PAGE
