"""Thresholds and verdicts with a promised rate: against their definitions, and by simulation."""

import math
from collections.abc import Sequence
from fractions import Fraction

import numpy as np
import pytest
from scipy.stats import beta, binom, combine_pvalues

from oodcli.errors import InvalidInputError
from oodcli.reporting.statistics import combined_p, surplus_p
from oodcli.screening.conformal import PValueCounts, conformal_p_values
from oodcli.screening.findings import surplus_of
from oodcli.screening.thresholds import (
    DEFAULT_RULE,
    ClassThreshold,
    Threshold,
    ThresholdRule,
    categories,
    decided,
    joined_classes,
)
from oodcli.screening.verdict_file import Counts

DRAWS = 1000


def counts_of(p_values: Sequence[float] | np.ndarray) -> PValueCounts:
    counts = PValueCounts()
    for part in np.array_split(np.asarray(p_values), 3):
        counts.add(part)
    return counts


@pytest.mark.parametrize("n", [19, 20, 100, 199, 1001])
@pytest.mark.parametrize("decimals", [1, 9])
def test_false_alarms_are_the_images_with_a_small_p_value(n: int, decimals: int) -> None:
    rng = np.random.default_rng(n)
    known = np.sort(rng.normal(size=n).round(decimals))
    new = np.concatenate([rng.normal(size=300).round(decimals), known])
    for rate in (0.05, 0.1, 0.3, 0.99):
        threshold = ThresholdRule(false_alarms=rate).on(known)
        np.testing.assert_array_equal(new < threshold.value, conformal_p_values(known, new) <= rate)
        assert threshold.false_alarms == rate
        assert threshold.below == math.floor(Fraction(str(rate)) * (n + 1)) - 1


def test_the_share_accepted_is_not_the_promise() -> None:
    known = np.arange(1000.0)
    promised, accepted = (ThresholdRule(false_alarms=0.01), ThresholdRule(tpr=0.99))
    assert (promised.on(known).value, accepted.on(known).value) == (9.0, 10.0)
    # A new ID image is below the k-th smallest of n scores with the probability k / (n + 1).
    assert 10 / 1001 <= 0.01 < 11 / 1001


@pytest.mark.parametrize(("rate", "needed"), [(0.01, 99), (0.05, 19), (0.5, 1), (0.03, 33)])
def test_too_few_id_images_are_refused_with_their_number(rate: float, needed: int) -> None:
    for option, rule in (
        ("--false-alarms", ThresholdRule(false_alarms=rate)),
        ("--fdr", ThresholdRule(fdr=rate)),
    ):
        assert rule.needed == needed
        rule.on(np.arange(float(needed)))
        if needed == 1:
            continue
        message = f"{option} {rate:g} needs {needed} ID images .* this detector has {needed - 1}: "
        with pytest.raises(InvalidInputError, match=message) as error:
            rule.on(np.arange(needed - 1.0))
        least = float(str(error.value).split(f"at least {option} ")[1].split(",")[0])
        type(rule)(**{option[2:].replace("-", "_"): least}).on(np.arange(needed - 1.0))


def naive_cutoff(p_values: Sequence[Fraction], rate: Fraction) -> Fraction | None:
    """Return the largest p-value of a discovery, as in the paper."""
    ordered = sorted(p_values)
    found = [p for k, p in enumerate(ordered, 1) if p <= k * rate / len(ordered)]
    return found[-1] if found else None


def test_discoveries_are_those_of_benjamini_and_hochberg() -> None:
    rng = np.random.default_rng(0)
    hits = 0
    for _ in range(300):
        n, m = rng.integers(5, 60), rng.integers(1, 40)
        ranks = np.minimum(rng.integers(1, n + 2, m), rng.integers(1, n + 2, m))
        rate = Fraction(int(rng.integers(1, 60)), 100)
        wanted = naive_cutoff([Fraction(int(k), int(n) + 1) for k in ranks], rate)
        counts = counts_of(ranks / (n + 1))
        found = counts.cutoff(float(rate))
        assert found == (None if wanted is None else float(wanted))
        assert counts.at_most(found) == (
            0 if wanted is None else int((ranks / (n + 1) <= float(wanted)).sum())
        )
        # The smallest rate with a discovery.
        assert (counts.simes <= float(rate) + 1e-12) == (wanted is not None)
        hits += wanted is not None
    assert 50 < hits < 290
    assert PValueCounts().cutoff(0.5) is None
    assert PValueCounts().simes == 1.0


@pytest.mark.parametrize("decimals", [9, 1])
def test_the_false_discovery_rate_is_kept(decimals: int) -> None:
    rng = np.random.default_rng(2)
    rate, n, m_id, m_ood = 0.2, 200, 90, 10
    shares, powers = [], []
    for _ in range(DRAWS):
        known = np.sort(rng.normal(size=n).round(decimals))
        new = np.append(rng.normal(size=m_id), rng.normal(-3.5, 1, m_ood)).round(decimals)
        p_values = conformal_p_values(known, new)
        cutoff = counts_of(p_values).cutoff(rate)
        flagged = p_values <= (0 if cutoff is None else cutoff)
        shares.append(flagged[:m_id].sum() / max(flagged.sum(), 1))
        powers.append(flagged[m_id:].mean())
    error = float(np.std(shares)) / math.sqrt(DRAWS)
    assert np.mean(shares) <= rate * m_id / (m_id + m_ood) + 3 * error
    # The promise is not kept by finding nothing.
    assert np.mean(shares) > 0.6 * rate
    assert np.mean(powers) > 0.6


def test_id_images_alone_are_seldom_discovered() -> None:
    rng = np.random.default_rng(3)
    alarms = 0
    for _ in range(DRAWS):
        known = np.sort(rng.normal(size=799))
        counts = counts_of(conformal_p_values(known, rng.normal(size=40)))
        alarms += counts.cutoff(0.1) is not None
        assert (counts.simes <= 0.1) == (counts.cutoff(0.1) is not None)
    # The shared ID images make the p-values of one draw similar, which does no harm on average.
    assert 0.04 * DRAWS < alarms <= binom.ppf(0.999, DRAWS, 0.1)


def test_the_rate_of_false_alarms_is_kept_on_average_and_varies_with_the_id_images() -> None:
    rng = np.random.default_rng(4)
    n, rate = 299, 0.02
    rule = ThresholdRule(false_alarms=rate)
    values = np.array([rule.on(np.sort(rng.random(n))).value for _ in range(DRAWS)])
    hits = int((rng.random(DRAWS) < values).sum())  # one new image for every set of ID images
    assert binom.ppf(0.0005, DRAWS, rate) <= hits <= binom.ppf(0.9995, DRAWS, rate)
    # Given the ID images, the rate of uniform scores is the threshold: Beta(k, n + 1 - k).
    law = beta(6, n + 1 - 6)
    assert values.mean() == pytest.approx(rate, abs=4 * law.std() / math.sqrt(DRAWS))
    assert values.std() == pytest.approx(law.std(), rel=0.1)
    assert law.std() == pytest.approx(math.sqrt(rate * (1 - rate) / n), rel=0.05)


def test_every_predicted_class_keeps_the_rate() -> None:
    rng = np.random.default_rng(5)
    names, centres, rate = ("easy", "hard"), np.array([2.0, -1.0]), 0.05
    rules = [ThresholdRule(false_alarms=rate, per_class=each) for each in (True, False)]
    hits = np.zeros((2, 2))
    for _ in range(DRAWS):
        classes = (rng.random(200) < 0.25).astype(np.int64)
        scores = centres[classes] + rng.normal(size=200)
        order = np.argsort(scores)
        new = centres + rng.normal(size=2)
        own, pooled = (rule.on(scores[order], classes[order], names) for rule in rules)
        by_name = {name: each.value for each in own.by_class for name in each.classes}
        hits[0] += new < [by_name[name] for name in names]
        hits[1] += new < pooled.value
    limit = binom.ppf(0.9995, DRAWS, rate)
    assert (hits[0] <= limit).all()
    assert (hits[0] > 0.4 * rate * DRAWS).all()
    assert hits[1, 1] > 2 * limit  # one threshold for all flags the hard class too often
    assert hits[1, 0] < 0.2 * rate * DRAWS


def test_small_classes_share_a_threshold() -> None:
    predicted = np.repeat(["a", "b", "c", "d"], [40, 25, 3, 17])
    names = ["a", "b", "c", "d", "e"]
    assert categories(predicted, names, 19) == [("a",), ("b",), ("c", "d", "e")]
    assert categories(predicted, names, 21) == [("a",), ("b", "c", "d", "e")]  # 3 + 17 < 21
    assert categories(predicted, names, 46) == [("a", "b", "c", "d", "e")]
    assert categories(predicted[:65], ["a", "b", "z"], 19) == [("a",), ("b", "z")]
    assert categories(predicted, [*names, "a"], 1) == [("a",), ("b",), ("d",), ("c", "e")]
    rule = ThresholdRule(false_alarms=0.05, per_class=True)
    scores, classes = np.arange(85.0), np.repeat([0, 1, 2, 3], [40, 25, 3, 17])
    threshold = rule.on(scores, classes, names)
    assert threshold.by_class == (
        ClassThreshold(("a",), 1.0, 40, 1),
        ClassThreshold(("b",), 40.0, 25, 0),
        ClassThreshold(("c", "d", "e"), 65.0, 20, 0),
    )
    assert (threshold.below, threshold.n) == (1, 85)
    note = joined_classes(threshold, rule)
    assert note is not None
    assert "needs 19 ID images of each predicted class; 3 classes" in note
    assert note.endswith("share one from 20 images: c, d, e")
    # A threshold of a file comes without its rule, but with its rate.
    assert joined_classes(threshold, DEFAULT_RULE) == note
    assert joined_classes(ThresholdRule().on(scores), DEFAULT_RULE) is None
    rule = ThresholdRule(0.9, per_class=True)
    threshold = rule.on(scores, classes, names)
    note = joined_classes(threshold, DEFAULT_RULE)
    assert note is not None
    assert note.startswith("a threshold by class needs more ID images of each predicted class; ")
    assert "needs 9 ID images of each" in str(joined_classes(threshold, rule))
    assert Threshold.from_json(threshold.to_json()) == threshold


def test_networks_without_classes_have_no_thresholds_by_class() -> None:
    with pytest.raises(InvalidInputError, match="--per-class needs a network with a classifier"):
        ThresholdRule(tpr=0.9, per_class=True).on(np.arange(30.0), np.full(30, -1), ())


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"tpr": 0.9, "fdr": 0.1}, "--tpr and --fdr both set the threshold; give one of them"),
        (
            {"tpr": 0.9, "false_alarms": 0.1, "fdr": 0.1},
            "--tpr, --false-alarms and --fdr all set the threshold; give one of them",
        ),
        ({"threshold": 1.0, "per_class": True}, "--per-class gives every predicted class its own"),
        ({"fdr": 0}, "--fdr must be above 0 and below 1, not 0"),
        ({"fdr": 1}, "--fdr must be above 0 and below 1, not 1"),
        ({"fdr": math.nan}, "--fdr must be above 0 and below 1, not nan"),
        ({"false_alarms": 1.0}, "--false-alarms must be above 0 and below 1, not 1"),
        ({"false_alarms": -0.1}, "--false-alarms must be above 0 and below 1, not -0.1"),
        ({"fdr": "low"}, "--fdr must be a number, not 'low'"),
    ],
)
def test_wrong_rules_are_one_clear_line(given: dict[str, float], message: str) -> None:
    with pytest.raises(InvalidInputError) as error:
        ThresholdRule(**given)  # type: ignore[arg-type]
    assert message in str(error.value)


def test_a_decision_is_recorded() -> None:
    undecided = ThresholdRule(fdr=0.5).on(np.arange(9.0))
    assert undecided.to_json()["value"] is None
    found = decided(undecided, counts_of([0.1, 0.2, 0.9, 1.0]))
    assert (found.p_cutoff, found.below, found.fdr) == (0.2, 1, 0.5)
    again = Threshold.from_json(found.to_json())
    assert math.isnan(again.value)
    assert again.to_json() == found.to_json()


def test_tests_of_classes_are_combined() -> None:
    p_values = [0.01, 0.3, 0.8]
    assert combined_p(p_values) == pytest.approx(combine_pvalues(p_values).pvalue)
    assert combined_p([]) == 1.0
    counts = Counts()
    for name, flagged, judged in (("a", 3, 10), ("b", 0, 5), ("c", 1, 4)):
        for number in range(judged):
            counts.count("ood" if number < flagged else "id", name)
    groups = (ClassThreshold(("a",), 0.0, 50, 2), ClassThreshold(("b", "c"), 0.0, 30, 1))
    threshold = Threshold(0.0, 0.95, 80, 3, by_class=groups)
    parts = [surplus_p(3, 10, below=2, of=50), surplus_p(1, 9, below=1, of=30)]
    assert surplus_of(counts, threshold) == pytest.approx(combine_pvalues(parts).pvalue)
