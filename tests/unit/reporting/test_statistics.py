"""Intervals, tests and rates against plain formulas and values worked out by hand."""

import math

import numpy as np
import pytest

from oodcli.errors import InvalidInputError
from oodcli.metrics import CONVENTIONS, Curve, evaluate, tied_share
from oodcli.reporting.binormal import placement_variance, spread_share
from oodcli.reporting.bootstrap import (
    Resamples,
    bootstrap,
    logit_interval,
    rank_edges,
    share_interval,
)
from oodcli.reporting.statistics import (
    Estimate,
    Placements,
    accuracy_above,
    aurc,
    auroc_difference,
    auroc_interval,
    average,
    calibration_error,
    holm,
    mean_auroc_difference,
    mean_ranks,
    placements,
    surplus_p,
    threshold_at,
)


def scores(n_id=200, n_ood=300, *, seed=0, tied=False):
    rng = np.random.default_rng(seed)
    id_scores, ood_scores = rng.normal(1, 1, n_id), rng.normal(0, 1.3, n_ood)
    return (np.round(id_scores, 0), np.round(ood_scores, 0)) if tied else (id_scores, ood_scores)


def kernel(id_scores, ood_scores):
    """Compare all pairs: 1 where ID is above OOD, one half where they are equal, ``(n, m)``."""
    return (id_scores[:, None] > ood_scores) + (id_scores[:, None] == ood_scores) / 2


@pytest.mark.parametrize("tied", [False, True])
def test_variance_of_auroc_is_that_of_all_pairs(tied):
    """DeLong et al., 1988, equations 4 to 6, in O(n m)."""
    id_scores, ood_scores = scores(tied=tied)
    pairs = kernel(id_scores, ood_scores)
    v10, v01 = pairs.mean(axis=1), pairs.mean(axis=0)
    found = placements(id_scores, ood_scores)
    estimate = auroc_difference(
        found, Placements(np.zeros_like(found.id_side), np.zeros_like(found.ood_side))
    )
    assert estimate.value == pytest.approx(pairs.mean(), abs=1e-7)
    variance = np.sum((v10 - v10.mean()) ** 2) / 199 / 200
    variance += np.sum((v01 - v01.mean()) ** 2) / 299 / 300
    assert estimate.stderr == pytest.approx(math.sqrt(variance), rel=1e-6)


def test_variance_of_a_difference_holds_the_covariance():
    """DeLong et al., 1988, equation 8: with L = (1, -1)."""
    id_a, ood_a = scores()
    rng = np.random.default_rng(1)
    id_b, ood_b = id_a + rng.normal(0, 0.7, 200), ood_a + rng.normal(0, 0.7, 300)
    a, b = kernel(id_a, ood_a), kernel(id_b, ood_b)
    s10 = np.cov(np.stack([a.mean(axis=1), b.mean(axis=1)]))
    s01 = np.cov(np.stack([a.mean(axis=0), b.mean(axis=0)]))
    contrast = np.array([1, -1])
    variance = contrast @ (s10 / 200 + s01 / 300) @ contrast
    found = auroc_difference(placements(id_a, ood_a), placements(id_b, ood_b))
    assert found.value == pytest.approx(a.mean() - b.mean(), abs=1e-7)
    assert found.stderr == pytest.approx(math.sqrt(variance), rel=1e-5)
    assert found.p == pytest.approx(math.erfc(found.value / found.stderr / math.sqrt(2)))


def test_delong_and_the_bootstrap_agree():
    id_scores, ood_scores = scores(400, 500)
    rng = np.random.default_rng(2)
    drawn = [
        Curve.of(rng.choice(id_scores, 400), rng.choice(ood_scores, 500)).auroc()
        for _ in range(2000)
    ]
    low, high = auroc_interval([placements(id_scores, ood_scores)])
    assert low == pytest.approx(np.percentile(drawn, 2.5), abs=0.003)
    assert high == pytest.approx(np.percentile(drawn, 97.5), abs=0.003)


def test_difference_and_the_paired_bootstrap_agree():
    id_a, ood_a = scores(400, 500)
    rng = np.random.default_rng(1)
    id_b, ood_b = id_a + rng.normal(0, 0.7, 400), ood_a + rng.normal(0, 0.7, 500)
    drawn = []
    for _ in range(1500):
        i, o = rng.integers(0, 400, 400), rng.integers(0, 500, 500)
        drawn.append(Curve.of(id_a[i], ood_a[o]).auroc() - Curve.of(id_b[i], ood_b[o]).auroc())
    found = auroc_difference(placements(id_a, ood_a), placements(id_b, ood_b))
    assert found.stderr == pytest.approx(np.std(drawn), rel=0.08)


def test_mean_auroc_over_sets_counts_the_shared_id_images_once():
    id_scores, first = scores()
    second = np.random.default_rng(5).normal(-0.5, 1, 250)
    parts = [placements(id_scores, first), placements(id_scores, second)]
    a, b = kernel(id_scores, first), kernel(id_scores, second)
    ids = (a.mean(axis=1) + b.mean(axis=1)) / 2
    variance = ids.var(ddof=1) / 200
    variance += (a.mean(axis=0).var(ddof=1) / 300 + b.mean(axis=0).var(ddof=1) / 250) / 4
    low, high = auroc_interval(parts)
    assert high - low == pytest.approx(2 * 1.959964 * math.sqrt(variance), rel=0.03)
    assert (low + high) / 2 == pytest.approx((a.mean() + b.mean()) / 2, abs=5e-3)


def test_seeds_are_averaged_image_by_image():
    first, second = placements(*scores(seed=0)), placements(*scores(seed=1))
    mean = average([first, second])
    np.testing.assert_allclose(mean.id_side, (first.id_side + second.id_side) / 2, rtol=1e-6)
    assert mean.auroc == pytest.approx((first.auroc + second.auroc) / 2, abs=1e-7)
    with pytest.raises(InvalidInputError, match="are not of the same images"):
        average([first, placements(*scores(n_id=10))])
    with pytest.raises(InvalidInputError, match="only be compared on the same images"):
        auroc_difference(first, placements(*scores(n_id=10)))


def test_integer_and_boolean_scores_are_placed():
    found = placements(np.array([3, 1, 2]), np.array([1, 2]))
    assert found.id_side.tolist() == [1.0, 0.25, 0.75]
    np.testing.assert_allclose(found.ood_side, [2.5 / 3, 0.5], rtol=1e-6)


def test_one_image_has_no_variance_of_its_own():
    alone = Placements(np.array([0.5], np.float32), np.array([0.2, 0.8], np.float32))
    nothing = Placements(np.zeros(1, np.float32), np.zeros(2, np.float32))
    assert auroc_difference(alone, nothing).stderr == pytest.approx(math.sqrt(0.18 / 2))


def test_interval_ends_where_the_metric_does():
    assert Estimate(0.99, 0.02).interval(low=0, high=1) == (pytest.approx(0.9508007), 1)
    assert Estimate(0.0, 0.0).p == 1.0
    assert Estimate(0.1, 0.0).p == 0.0
    assert Estimate(1.959963984540054, 1.0).p == pytest.approx(0.05)


def test_holm_by_hand():
    """Sorted: 0.01 * 4, 0.02 * 3, 0.03 * 2 (raised to the one before), 0.6 * 1."""
    assert holm([0.03, 0.01, 0.6, 0.02]) == pytest.approx([0.06, 0.04, 0.6, 0.06])
    assert holm([0.5, 0.9]) == [1.0, 1.0]
    assert holm([]) == []


def test_mean_ranks_by_hand():
    """Ranks 1 2 3, then 2.5 1 2.5 where two are equal."""
    assert mean_ranks([[0.1, 0.2, 0.3], [0.5, 0.4, 0.5]]).tolist() == [1.75, 1.5, 2.75]


def test_aurc_by_hand():
    """Accepted one by one: 0/1, 1/2, 1/3, 2/4 wrong; their mean is 1/3."""
    assert aurc([0.9, 0.8, 0.7, 0.6], [True, False, True, False]) == pytest.approx(1 / 3)


def test_aurc_accepts_equal_scores_together():
    """1 of 2 wrong for the first two images, 1 of 3 for the third."""
    expected = (0.5 + 0.5 + 1 / 3) / 3
    assert aurc([2.0, 2.0, 1.0], [True, False, True]) == pytest.approx(expected)
    assert aurc([2.0, 2.0, 1.0], [False, True, True]) == pytest.approx(expected)
    assert aurc([1, 1, 1, 1], [False, True, True, True]) == 0.25


def test_threshold_is_the_score_that_95_percent_reach():
    assert threshold_at(np.arange(100.0)) == 5.0
    assert threshold_at(np.arange(20.0)) == 1.0
    assert threshold_at([3.0]) == 3.0
    # In floating point, 0.95 * 9000 is below 8550 or above it; in decimals it is neither.
    assert threshold_at(np.arange(9000.0)) == 450.0


def test_accuracy_above_a_threshold_counts_it_in():
    assert accuracy_above([1.0, 2.0, 3.0], [True, False, True], threshold=2.0) == 0.5


def test_calibration_error_by_hand():
    """Two bins: |0.3 - 0| * 1/3 and |(0.9 + 0.7)/2 - 1/2| * 2/3."""
    error = calibration_error([0.3, 0.9, 0.7], [False, True, False], n_bins=2)
    assert error == pytest.approx(0.3 / 3 + 0.3 * 2 / 3)
    assert calibration_error([0.5, 0.6], [True, False], n_bins=2) == pytest.approx(0.55)
    assert calibration_error([1.0, 0.0], [True, False]) == 0.0
    with pytest.raises(InvalidInputError, match="are not probabilities"):
        calibration_error([1.2], [True])


def test_ranks_are_binned_finest_at_the_ends_and_at_95_percent():
    for n in (1, 2, 37, 800):
        assert rank_edges(n).tolist() == list(range(n + 1))
    edges = rank_edges(70_000)
    assert edges[0] == 0
    assert edges[-1] == 70_000
    widths = np.diff(edges)
    assert len(edges) < 1200
    assert widths.min() > 0
    assert widths[:32].max() == 1
    assert widths[-32:].max() == 1
    assert widths.max() <= 70_000 / 400
    assert widths[(edges[1:] > 66_400) & (edges[1:] < 66_600)].max() <= 4


def test_samples_draw_as_many_as_there_are_and_repeat_by_seed():
    drawn = Resamples.draw(5000, samples=50, seed=3, name="svhn")
    assert (drawn.drawn[-1] == 5000).all()
    again = Resamples.draw(5000, samples=50, seed=3, name="svhn")
    np.testing.assert_array_equal(drawn.drawn, again.drawn)
    for other in (
        Resamples.draw(5000, samples=50, seed=4, name="svhn"),
        Resamples.draw(5000, samples=50, seed=3, name="mnist"),
    ):
        assert not np.array_equal(drawn.drawn, other.drawn)


def by_image(n, samples, seed):
    """Draw images one by one; return how often each rank, from the highest score, was drawn."""
    rng = np.random.default_rng(seed)
    return np.stack([np.bincount(rng.integers(0, n, n), minlength=n) for _ in range(samples)])


def binned(counts):
    edges = rank_edges(counts.shape[1])
    return Resamples.of_counts(np.add.reduceat(counts, edges[:-1], axis=1), edges)


@pytest.mark.parametrize("convention", ["featurenorm", "knn", "openood", "neutral"])
@pytest.mark.parametrize("kind", ["smooth", "rounded", "far apart", "short"])
def test_binned_samples_give_the_intervals_of_exact_ones(convention, kind):
    """The same draws, once with every image resampled and all metrics computed anew."""
    n_id, n_ood = (700, 300) if kind == "short" else (3000, 5000)
    id_scores, ood_scores = scores(n_id, n_ood, seed=7)
    if kind == "rounded":
        id_scores, ood_scores = np.round(id_scores, 1), np.round(ood_scores, 1)
    if kind == "far apart":
        id_scores = id_scores + 3
    id_scores, ood_scores = np.sort(id_scores), np.sort(ood_scores)
    id_counts, ood_counts = by_image(n_id, 200, 0), by_image(n_ood, 200, 1)
    exact = []
    for id_drawn, ood_drawn in zip(id_counts, ood_counts, strict=True):
        found = evaluate(
            np.repeat(id_scores[::-1], id_drawn),
            np.repeat(ood_scores[::-1], ood_drawn),
            convention=convention,
        )
        exact.append((found.fpr95, found.aupr_in, found.aupr_out))
    found = bootstrap(
        id_scores,
        ood_scores,
        convention=CONVENTIONS[convention],
        id_resamples=binned(id_counts),
        ood_resamples=binned(ood_counts),
    )
    for ours, wanted in zip(found, np.transpose(exact), strict=True):
        if kind == "short":
            np.testing.assert_allclose(ours, wanted, atol=2e-6)
        np.testing.assert_allclose(
            np.percentile(ours, [2.5, 97.5]), np.percentile(wanted, [2.5, 97.5]), atol=0.001
        )


def test_interval_of_a_perfect_method_is_a_point():
    id_scores, ood_scores = np.arange(900.0) + 2000, np.arange(1000.0)
    for convention in CONVENTIONS.values():
        found = bootstrap(
            id_scores,
            ood_scores,
            convention=convention,
            id_resamples=Resamples.draw(900, samples=100, seed=0, name="id"),
            ood_resamples=Resamples.draw(1000, samples=100, seed=0, name="ood"),
        )
        np.testing.assert_array_equal(found[0], 0)
        lowest = 0.997 if convention.area == "trapezoid_from_zero" else 1 - 1e-6
        assert found[1:].min() >= lowest


def test_ties_are_counted_over_both_sides():
    """2 stands three times, 3 twice, and 0 and 1 once each."""
    curve = Curve.of([2.0, 3.0, 3.0, 2.0], [0.0, 1.0, 2.0])
    assert curve.tied == curve.flipped().tied == 5 / 7
    assert tied_share([2.0, 3.0, 3.0, 2.0, 0.0, 1.0, 2.0]) == 5 / 7
    assert tied_share([]) == Curve.of([1.0, 2.0], [0.5]).tied == 0


def test_detection_error_is_the_smallest_mean_of_both_errors():
    """Threshold 2: 1 of 4 ID missed, 0 of 2 OOD accepted."""
    assert Curve.of([1.0, 2.0, 3.0, 4.0], [0.0, 1.5]).detection_error() == 0.125
    assert Curve.of([1.0], [1.0]).detection_error() == 0.5
    id_scores, ood_scores = scores()
    slow = min(
        (np.mean(id_scores < t) + np.mean(ood_scores >= t)) / 2
        for t in np.concatenate([id_scores, ood_scores])
    )
    assert Curve.of(id_scores, ood_scores).detection_error() == pytest.approx(slow)


# The share of flagged images


@pytest.mark.parametrize(
    ("flagged", "judged", "below", "of"),
    [
        (0, 10, 20, 400), (1, 1, 20, 400), (10, 100, 20, 400), (252, 1000, 20, 400),
        (3000, 50_000, 450, 9000), (7, 7, 0, 50), (5, 9, 50, 50), (1, 10**6, 50_000, 10**6),
    ],
)  # fmt: skip
def test_the_share_of_flagged_images_is_tested_as_scipy_has_it(
    flagged: int, judged: int, below: int, of: int
) -> None:
    from scipy.stats import betabinom, hypergeom

    found = surplus_p(flagged, judged, below=below, of=of)
    wanted = hypergeom.sf(flagged - 1, judged + of, below + flagged, judged)
    assert found == pytest.approx(wanted, rel=1e-6)
    if below < of and wanted > 1e-8:  # the other is one minus the rest
        mixture = betabinom.sf(flagged - 1, judged, below + 1, of - below)
        assert found == pytest.approx(mixture, rel=1e-5)


def test_among_id_images_alone_alarms_are_as_rare_as_they_are_said_to_be() -> None:
    """Nights of ID images, each against a threshold from another draw of few ID scores."""
    rng = np.random.default_rng(0)
    of, judged, below, nights = 100, 60, 5, 4000
    p = np.empty(nights)
    for night in range(nights):
        threshold = np.sort(rng.normal(size=of))[below]
        flagged = int((rng.normal(size=judged) < threshold).sum())
        p[night] = surplus_p(flagged, judged, below=below, of=of)
    for level in (0.2, 0.05, 0.01):
        share = float((p <= level).mean())
        assert share <= level + 3 * np.sqrt(level / nights)
    # And no rarer than steps of whole images have it.
    assert (p <= 0.2).mean() > 0.1


def test_a_perfect_auroc_is_not_certain():
    """None of 50 is misplaced: the lower end is 1.96 of its own standard errors below 1.

    The variance is that of normal scores, here from SciPy's bivariate normal.
    """
    from scipy.stats import multivariate_normal, norm

    perfect = placements(np.arange(50.0) + 100, np.arange(50.0))
    low, high = auroc_interval([perfect])
    assert high == 1.0
    h = norm.ppf(low)
    share = spread_share(perfect.id_side, 50, norm.ppf(0.99))
    both = [multivariate_normal(cov=[[1, rho], [rho, 1]]).cdf([h, h]) for rho in (share, 1 - share)]
    assert (1 - low) ** 2 == pytest.approx(1.959964**2 * (sum(both) - 2 * low**2) / 50, rel=1e-3)
    assert low == pytest.approx(0.9531, abs=1e-4)
    mirrored = placements(np.arange(50.0), np.arange(50.0) + 100)
    assert auroc_interval([mirrored]) == (0.0, pytest.approx(1 - low))


def test_placements_of_normal_scores_vary_as_drawn_ones_do():
    from scipy.stats import norm

    rng = np.random.default_rng(4)
    for auroc, spread in ((0.8, 1.0), (0.95, 2.0), (0.95, 0.5)):
        centre = norm.ppf(auroc) * math.hypot(1, spread)
        drawn = norm.cdf(rng.normal(centre, spread, 400_000))
        share = spread**2 / (1 + spread**2)
        found = placement_variance([norm.ppf(auroc)], [share])
        assert found == pytest.approx([drawn.var()], rel=0.02)


@pytest.mark.parametrize("spread", [0.5, 1.0, 2.0])
def test_the_spread_of_a_side_is_found_from_placements(spread):
    """300 images among 3,000; and the same of any rising function of the scores."""
    from scipy.stats import norm

    ((inside, outside),) = normal_pairs(0.95, 300, 3000, draws=1, seed=2, spread=spread)
    found = placements(np.exp(inside), np.exp(outside))
    share = spread_share(found.id_side, 3000, norm.ppf(found.auroc))
    assert share == pytest.approx(spread**2 / (1 + spread**2), abs=0.08)


def test_many_misplaced_images_leave_the_interval_of_delong():
    """Wilson's form of it: the ends are where AUROC is 1.96 of its own standard errors away."""
    id_scores, ood_scores = scores(4000, 5000)
    found = placements(id_scores, ood_scores)
    pairs = kernel(id_scores, ood_scores)
    variance = np.var(pairs.mean(axis=1), ddof=1) / 4000 + np.var(pairs.mean(axis=0), ddof=1) / 5000
    reach = 1.959964 * math.sqrt(variance)
    low, high = auroc_interval([found])
    assert high - low == pytest.approx(2 * reach, rel=2e-3)
    assert (low + high) / 2 == pytest.approx(found.auroc, abs=2e-4)


def test_the_interval_of_an_average_adds_up_independent_sets():
    """Four OOD sets of few images against many ID images: half the width of one of them."""
    rng = np.random.default_rng(5)
    id_scores = rng.normal(1.5, 1, 20_000)
    sets = [rng.normal(0, 1, 200) for _ in range(4)]
    widths = [np.diff(auroc_interval([placements(id_scores, each)]))[0] for each in sets]
    low, high = auroc_interval([placements(id_scores, each) for each in sets])
    assert high - low == pytest.approx(np.mean(widths) / 2, rel=0.05)


def test_one_perfect_set_among_others_has_an_interval():
    perfect = placements(np.arange(60.0) + 100, np.arange(50.0))
    other = placements(np.arange(60.0) + 100, np.arange(50.0) * 3)
    low, high = auroc_interval([perfect, other])
    assert low < (1 + other.auroc) / 2 < high < 1
    assert auroc_interval([placements([1.0], [0.0])]) == (pytest.approx(1.0), 1.0)


def normal_pairs(auroc, n_id, n_ood, *, draws, seed, spread=1.0):
    """Draw normal scores, ID with this spread and OOD with 1, and an AUROC that is known."""
    from scipy.stats import norm

    rng = np.random.default_rng(seed)
    for _ in range(draws):
        centre = norm.ppf(auroc) * math.hypot(1, spread)
        yield rng.normal(centre, spread, n_id), rng.normal(0, 1, n_ood)


SIDES = [(50, 50), (50, 300), (300, 50), (200, 300), (50, 1000), (1000, 50), (1000, 1000)]


@pytest.mark.slow
@pytest.mark.parametrize("spread", [0.5, 1.0, 2.0])
@pytest.mark.parametrize(("n_id", "n_ood"), SIDES)
@pytest.mark.parametrize("auroc", [0.6, 0.8, 0.9, 0.95, 0.98, 0.99])
def test_the_interval_of_auroc_covers_what_it_says(auroc, n_id, n_ood, spread):
    """The share of 4,000 draws, whose own standard error is 0.003."""
    ends = [
        auroc_interval([placements(*pair)])
        for pair in normal_pairs(auroc, n_id, n_ood, draws=4000, seed=1, spread=spread)
    ]
    assert 0.927 <= np.mean([low <= auroc <= high for low, high in ends]) <= 0.973


def test_the_interval_of_an_area_is_lopsided_and_holds_its_value():
    """Resamples at odds of 19, and by turns 0.2 above and below on the logit scale."""
    logits = math.log(19) + np.array([-0.2, 0.2] * 500) * math.sqrt(999 / 1000)
    low, high = logit_interval(0.95, 1 / (1 + np.exp(-logits)), positives=400)
    reach = 1.959964 * 0.2
    assert math.log(low / (1 - low)) == pytest.approx(math.log(19) - reach, rel=1e-6)
    assert math.log(high / (1 - high)) == pytest.approx(math.log(19) + reach, rel=1e-6)
    assert 0.95 - low > high - 0.95


def test_a_share_of_none_is_not_certain():
    """Wilson: up to z^2 / (n + z^2); and otherwise never narrower than the resamples."""
    low, high = share_interval(0.0, np.zeros(1000), images=300)
    assert (low, high) == (0.0, pytest.approx(1.959964**2 / (300 + 1.959964**2)))
    assert share_interval(1.0, np.ones(1000), images=300) == (pytest.approx(1 - high), 1.0)
    spread = np.linspace(0.1, 0.5, 1001)
    assert share_interval(0.3, spread, images=10**6) == pytest.approx((0.11, 0.49))
    # 3 of 10, by Brown, Cai, DasGupta, "Interval Estimation for a Binomial Proportion", 2001.
    assert share_interval(0.3, np.full(9, 0.3), images=10) == pytest.approx(
        (0.1078, 0.6032), abs=1e-4
    )


def test_a_perfect_area_is_not_certain():
    """Half of 50 positive images away from 1: Boyd et al., section 3.2, with 0.99."""
    low, high = logit_interval(1.0, np.ones(1000), positives=50)
    reach = 1.959964 / math.sqrt(50 * 0.99 * 0.01)
    assert math.log(low / (1 - low)) == pytest.approx(math.log(99) - reach, rel=1e-6)
    assert high == 1.0
    assert logit_interval(0.0, np.zeros(1000), positives=50) == (0.0, pytest.approx(1 - low))


@pytest.mark.slow
@pytest.mark.parametrize("convention", ["openood", "featurenorm"])
@pytest.mark.parametrize("spread", [1.0, 2.0])
@pytest.mark.parametrize(
    ("n_id", "n_ood"), [(50, 50), (50, 300), (200, 300), (1000, 50), (1000, 1000)]
)
@pytest.mark.parametrize("auroc", [0.8, 0.95, 0.98])
def test_the_bootstrap_covers_what_it_says(auroc, n_id, n_ood, spread, convention):
    """The share of 400 draws, by 200 resamples each; true values are those of a million images."""
    chosen = CONVENTIONS[convention]
    larger = max(n_id, n_ood)
    sizes = (10**6 * n_id // larger, 10**6 * n_ood // larger)
    (large,) = normal_pairs(auroc, *sizes, draws=1, seed=2, spread=spread)
    exact = evaluate(*large, convention=convention)
    wanted = np.array([exact.fpr95, exact.aupr_in, exact.aupr_out])
    hits = np.zeros(3)
    draws = normal_pairs(auroc, n_id, n_ood, draws=400, seed=3, spread=spread)
    for number, (inside, outside) in enumerate(draws):
        found = evaluate(inside, outside, convention=convention)
        fpr95, aupr_in, aupr_out = bootstrap(
            np.sort(inside),
            np.sort(outside),
            convention=chosen,
            id_resamples=Resamples.draw(n_id, samples=200, seed=number, name="id"),
            ood_resamples=Resamples.draw(n_ood, samples=200, seed=number, name="ood"),
        )
        low, high = np.array(
            [
                share_interval(found.fpr95, fpr95, images=n_ood),
                logit_interval(found.aupr_in, aupr_in, positives=n_id),
                logit_interval(found.aupr_out, aupr_out, positives=n_ood),
            ]
        ).T
        hits += (low - 1e-9 <= wanted) & (wanted <= high + 1e-9)
    covered = hits / 400
    few = min(n_id, n_ood) == 50
    assert covered.min() >= (0.86 if few or spread > 1 else 0.91)
    assert covered.max() <= (1.0 if few else 0.985)


def test_variance_of_a_mean_difference_counts_the_shared_id_images_once():
    """DeLong's variance for the mean over two OOD sets: ID parts averaged, OOD parts over 4."""
    rng = np.random.default_rng(3)
    id_a, id_b = rng.normal(1, 1, 40), rng.normal(1, 1, 40)
    oods = [(rng.normal(0, 1, n), rng.normal(0.5, 1, n)) for n in (30, 50)]
    a, b = ([kernel(ids, pair[side]) for pair in oods] for side, ids in ((0, id_a), (1, id_b)))
    id_parts = np.mean(
        [one.mean(axis=1) - two.mean(axis=1) for one, two in zip(a, b, strict=True)], axis=0
    )
    variance = id_parts.var(ddof=1) / 40
    for one, two, n in zip(a, b, (30, 50), strict=True):
        variance += (one.mean(axis=0) - two.mean(axis=0)).var(ddof=1) / n / 4
    found = mean_auroc_difference(
        [placements(id_a, pair[0]) for pair in oods], [placements(id_b, pair[1]) for pair in oods]
    )
    assert found.value == pytest.approx(
        np.mean([x.mean() - y.mean() for x, y in zip(a, b, strict=True)])
    )
    assert found.stderr == pytest.approx(math.sqrt(variance), rel=1e-5)
