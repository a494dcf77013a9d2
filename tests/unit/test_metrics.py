"""Metrics against slow definitions, scikit-learn, and a published table."""

import re
from fractions import Fraction
from itertools import pairwise, product
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from sklearn import metrics as sk

from oodcli.errors import InvalidInputError, UnknownNameError
from oodcli.metrics import (
    CONVENTIONS,
    Convention,
    Curve,
    Detection,
    convention_named,
    evaluate,
    fpr_at_tpr,
    near_chance,
)

Scores = NDArray[np.floating]
Pair = tuple[Scores, Scores]

rng = np.random.default_rng(0)
PAIRS: dict[str, Pair] = {
    "continuous": (rng.normal(1, 1, 203), rng.normal(0, 1, 311)),
    "ood above id": (rng.normal(0, 1, 60), rng.normal(2, 1, 40)),
    "heavy ties": (rng.integers(0, 6, 200).astype(float), rng.integers(-2, 4, 150).astype(float)),
    "two values": (np.repeat([0.0, 1.0], [8, 92]), np.repeat([0.0, 1.0], [30, 20])),
    "all tied": (np.full(30, 2.5), np.full(20, 2.5)),
    "separated": (np.arange(300.0, 340.0), np.arange(-320.0, -300.0)),
    "separated the wrong way": (np.full(7, -300.0), np.full(5, 300.0)),
    "scores of ±300": (rng.normal(300, 1, 80), rng.normal(-300, 400, 70)),
    "single id": (np.array([0.5]), rng.normal(0, 1, 9)),
    "single ood": (rng.normal(0, 1, 9), np.array([0.5])),
    "one of each": (np.array([1.0]), np.array([0.0])),
    "one of each, tied": (np.array([1.0]), np.array([1.0])),
    "tiny and huge": (
        np.array([5e-324, 1e-323, 1e308, 1.7e308, -5e-324]),
        np.array([0.0, -0.0, 5e-324, -1.7e308, 1e308]),
    ),
    "float32": (
        rng.normal(40, 1, 90).astype(np.float32),
        rng.normal(39, 1, 110).astype(np.float32),
    ),
    "ties of equal numbers": (np.arange(40.0), np.arange(40.0)),
}
SIZES = [*range(1, 62), 100, 110, 1999, 2000, 2010]


@pytest.fixture(params=PAIRS)
def pair(request: pytest.FixtureRequest) -> Pair:
    return PAIRS[request.param]


def accepted(scores: Scores, threshold: float) -> int:
    return sum(bool(score >= threshold) for score in scores)


def roc_points(positives: Scores, negatives: Scores) -> list[tuple[int, int]]:
    """Return (true positives, false positives) at every distinct score, highest first."""
    thresholds = sorted({*map(float, positives), *map(float, negatives)}, reverse=True)
    return [(accepted(positives, t), accepted(negatives, t)) for t in thresholds]


def labelled(pair: Pair) -> tuple[NDArray[np.int64], Scores]:
    ids, oods = pair
    return np.repeat([1, 0], [len(ids), len(oods)]), np.concatenate([ids, oods])


# AUROC


def test_auroc_is_the_pair_count(pair):
    ids, oods = pair
    wins = sum((a > b) + (a == b) / 2 for a, b in product(ids, oods))
    for name in CONVENTIONS:
        assert evaluate(ids, oods, convention=name).auroc == pytest.approx(
            wins / (len(ids) * len(oods)), abs=1e-14
        )


def test_auroc_agrees_with_scikit_learn(pair):
    labels, scores = labelled(pair)
    assert evaluate(*pair).auroc == pytest.approx(sk.roc_auc_score(labels, scores), abs=1e-12)


def test_auroc_does_not_saturate_far_from_zero():
    """A sigmoid before the ranking would make all of these scores 1."""
    ids, oods = PAIRS["continuous"]
    assert evaluate(ids + 300, oods + 300).auroc == pytest.approx(evaluate(ids, oods).auroc)
    assert evaluate(ids, oods).auroc < 0.9


# Precision


def test_average_precision_agrees_with_scikit_learn(pair):
    labels, scores = labelled(pair)
    for name in ("neutral", "featurenorm"):
        found = evaluate(*pair, convention=name)
        assert found.aupr_in == pytest.approx(sk.average_precision_score(labels, scores))
        assert found.aupr_out == pytest.approx(sk.average_precision_score(1 - labels, -scores))


def test_openood_precision_area_is_the_trapezoid_of_scikit_learn(pair):
    labels, scores = labelled(pair)
    found = evaluate(*pair, convention="openood")
    for got, truth, values in (
        (found.aupr_in, labels, scores),
        (found.aupr_out, 1 - labels, -scores),
    ):
        precision, recall, _ = sk.precision_recall_curve(truth, values)
        assert got == pytest.approx(sk.auc(recall, precision))


def walked_areas(ids: Scores, oods: Scores) -> tuple[float, float, float]:
    """AUROC, AUIN and AUOUT of the KNN code, one threshold after the other from below."""
    merged = sorted([*map(float, ids), *map(float, oods)])
    states = [(len(ids), len(oods))]
    for at, score in enumerate(merged):
        if at + 1 == len(merged) or merged[at + 1] > score:
            states.append((sum(x > score for x in ids), sum(x > score for x in oods)))
    inside, outside, roc = [(1.0, 0.5)], [(0.0, 0.0)], [(1.0, 0.0)]
    for tp, fp in states:
        tpr, true_negative_rate = tp / len(ids), 1 - fp / len(oods)
        roc.append((tpr, true_negative_rate))
        if tp + fp:
            inside.append((tpr, tp / (tp + fp)))
        tn, fn = len(oods) - fp, len(ids) - tp
        if tn + fn:
            outside.append((true_negative_rate, tn / (tn + fn)))
    inside.append((0.0, 0.0))
    outside.append((1.0, 0.5))
    roc.append((0.0, 1.0))

    def trapezoids(points: list[tuple[float, float]]) -> float:
        return sum(abs(x1 - x0) * (y0 + y1) / 2 for (x0, y0), (x1, y1) in pairwise(points))

    return trapezoids(roc), trapezoids(inside), trapezoids(outside)


def test_knn_areas_are_those_of_the_walk_over_thresholds(pair):
    found = evaluate(*pair, convention="knn")
    assert (found.auroc, found.aupr_in, found.aupr_out) == pytest.approx(walked_areas(*pair))


def test_conventions_differ_in_precision_area_by_hand():
    """ID 3, 1; OOD 2: precision 1, 1/2, 2/3 at recall 1/2, 1/2, 1 with ID positive."""
    ids, oods = [3.0, 1.0], [2.0]
    last = (1 / 2 + 2 / 3) / 4
    assert evaluate(ids, oods, convention="neutral").aupr_in == pytest.approx(1 / 2 + 1 / 3)
    assert evaluate(ids, oods, convention="openood").aupr_in == pytest.approx(1 / 2 + last)
    assert evaluate(ids, oods, convention="knn").aupr_in == pytest.approx(1 / 4 + last)
    # OOD positive: precision 0, 1/2, 1/3 at recall 0, 1, 1.
    assert evaluate(ids, oods, convention="neutral").aupr_out == pytest.approx(1 / 2)
    assert evaluate(ids, oods, convention="openood").aupr_out == pytest.approx(1 / 4)
    assert evaluate(ids, oods, convention="knn").aupr_out == pytest.approx(1 / 4)


# FPR at 95 % TPR


def test_first_ge_is_the_first_roc_point_that_reaches_the_rate(pair):
    ids, oods = pair
    for tpr in (0.05, 0.5, 0.8, 0.95, 1.0):
        wanted = next(
            fp
            for tp, fp in roc_points(ids, oods)
            if Fraction(tp, len(ids)) >= Fraction(round(100 * tpr), 100)
        )
        assert fpr_at_tpr(ids, oods, tpr=tpr) == wanted / len(oods)


def test_first_ge_agrees_with_scikit_learn(pair):
    labels, scores = labelled(pair)
    fpr, tpr, _ = sk.roc_curve(labels, scores, drop_intermediate=False)
    assert evaluate(*pair).fpr95 == fpr[np.argmax(tpr >= 0.95)]
    fpr, tpr, _ = sk.roc_curve(1 - labels, -scores, drop_intermediate=False)
    assert evaluate(*pair, convention="openood").fpr95 == fpr[np.argmax(tpr >= 0.95)]


def test_openood_keeps_roc_points_on_a_straight_line():
    """The plotting shortcut of scikit-learn would answer 1.0 here: it keeps only the two ends."""
    ids, oods = PAIRS["ties of equal numbers"]
    labels, scores = labelled((ids, oods))
    fpr, tpr, _ = sk.roc_curve(1 - labels, -scores)
    assert fpr[np.argmax(tpr >= 0.95)] == 1.0
    assert evaluate(ids, oods, convention="openood").fpr95 == 0.95


@pytest.mark.parametrize("n", SIZES)
def test_neutral_threshold_is_the_id_score_of_rank_floor_of_five_percent(n):
    random = np.random.default_rng(n)
    ids, oods = random.integers(0, 3 * n, n), random.integers(0, 3 * n, 150)
    threshold = np.sort(ids)[n * 5 // 100]
    assert evaluate(ids, oods).fpr95 == np.mean(oods >= threshold)


@pytest.mark.parametrize("n", SIZES)
def test_knn_threshold_is_the_rounded_rank_and_strict(n):
    random = np.random.default_rng(n)
    ids, oods = random.integers(0, 3 * n, n), random.integers(0, 3 * n, 150)
    threshold = np.sort(ids)[min(round(0.05 * n), n - 1)]
    assert evaluate(ids, oods, convention="knn").fpr95 == np.mean(oods > threshold)


def test_rank_rounds_halves_to_even():
    """Of 10 ID scores rank round(0.5) = 0, of 30 rank round(1.5) = 2."""
    assert fpr_at_tpr(np.arange(10), [0, 1, 2, 3], rule="rank") == 3 / 4
    assert fpr_at_tpr(np.arange(30), [0, 1, 2, 3], rule="rank") == 1 / 4


def test_rank_stays_within_the_scores():
    assert fpr_at_tpr([1.0, 2.0], [1.5, 2.0, 3.0], tpr=0.01, rule="rank") == 1 / 3


def nearest_by_walk(ids: Scores, oods: Scores) -> float:
    """Walk from the first point of full recall to higher thresholds, keep the first minimum."""
    points = roc_points(ids, oods)
    full = next(at for at, (tp, _) in enumerate(points) if tp == len(ids))
    walk = points[full::-1]
    distances = [abs(Fraction(tp, len(ids)) - Fraction(95, 100)) for tp, _ in walk]
    return walk[distances.index(min(distances))][1] / len(oods)


def test_featurenorm_takes_the_nearest_recall(pair):
    assert evaluate(*pair, convention="featurenorm").fpr95 == nearest_by_walk(*pair)


@pytest.mark.parametrize("n", SIZES[:-3])
def test_featurenorm_takes_the_nearest_recall_at_every_size(n):
    random = np.random.default_rng(n)
    for high in (5, n, 10 * n):
        ids, oods = random.integers(0, high + 1, n), random.integers(0, high + 1, 50)
        assert evaluate(ids, oods, convention="featurenorm").fpr95 == nearest_by_walk(ids, oods)


def test_nearest_may_lie_below_the_rate():
    """Recall 0.94 is nearer to 0.95 than 1: the 6 tied ID scores are not accepted."""
    ids, oods = np.repeat([0.0, 1.0], [6, 94]), np.array([0.0, 1.0, 1.0, -1.0])
    assert fpr_at_tpr(ids, oods, rule="nearest") == 2 / 4
    assert fpr_at_tpr(ids, oods, rule="first_ge") == 3 / 4


def test_nearest_prefers_the_larger_of_two_equally_near_recalls():
    """Of 10 ID scores, recalls of 0.9 and 1 are equally near to 0.95."""
    assert fpr_at_tpr(np.arange(10), [-0.5, 0.5, 1.5], rule="nearest") == 2 / 3


def test_nearest_takes_the_lowest_threshold_of_a_recall():
    """19 of 20 ID scores are accepted from 1 down to just above 0, with more and more OOD."""
    assert fpr_at_tpr(np.arange(20), [0.2, 0.4, 0.6, 3.0, -1.0], rule="nearest") == 4 / 5


def test_nearest_takes_the_highest_threshold_of_full_recall():
    assert fpr_at_tpr([2.0, 2.0], [1.0, 2.0, 3.0], rule="nearest") == 2 / 3


def test_nearest_may_accept_no_positive():
    """For a rate of 0.3 no recall but 0 and 1 exists, and 0 is nearer."""
    assert fpr_at_tpr([1.0, 1.0], [2.0, 2.0, 0.0], tpr=0.3, rule="nearest") == 2 / 3


@pytest.mark.parametrize("tpr", [0.07, 0.29, 0.55, 0.58])
def test_rates_that_floating_point_misses_are_reached_exactly(tpr):
    """0.07 * 100 is 7.000000000000001 in floating point, which would ask for an eighth score."""
    percent = round(100 * tpr)
    assert fpr_at_tpr(np.arange(100), np.arange(100) - 0.5, tpr=tpr) == (percent - 1) / 100


def test_nineteen_hundred_of_two_thousand_are_95_percent():
    ids = np.arange(2000)
    assert evaluate(ids, ids - 0.5).fpr95 == 1899 / 2000


def test_a_numpy_rate_means_the_decimal_it_prints():
    ids = np.arange(100)
    assert fpr_at_tpr(ids, ids - 0.5, tpr=np.float32(0.95)) == fpr_at_tpr(ids, ids - 0.5)


@pytest.mark.parametrize("rule", ["first_ge", "nearest", "rank"])
def test_positive_classes_are_mirror_images(pair, rule):
    ids, oods = pair
    assert fpr_at_tpr(ids, oods, positive="id", rule=rule) == fpr_at_tpr(
        -oods, -ids, positive="ood", rule=rule
    )


def test_the_positive_class_matters():
    """95 % of ID lie at 0 or above, as do 2 of 4 OOD; 95 % of OOD lie at 9 or below: 10 of 20."""
    ids, oods = np.arange(20.0) - 1, np.array([-3.0, -2.0, 0.5, 8.5])
    assert fpr_at_tpr(ids, oods, positive="id") == 2 / 4
    assert fpr_at_tpr(ids, oods, positive="ood") == 10 / 20


# What must not matter


@pytest.mark.parametrize("name", CONVENTIONS)
def test_the_order_of_images_does_not_matter(pair, name):
    ids, oods = pair
    random = np.random.default_rng(1)
    shuffled = evaluate(random.permutation(ids), random.permutation(oods), convention=name)
    assert shuffled == evaluate(ids, oods, convention=name)


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.int8, np.int64, np.uint8])
def test_the_number_type_does_not_matter(dtype):
    random = np.random.default_rng(2)
    ids, oods = random.integers(0, 9, 80), random.integers(0, 7, 60)
    assert evaluate(ids.astype(dtype), oods.astype(dtype)) == evaluate(
        ids.astype(np.float64), oods.astype(np.float64)
    )


def test_neighbouring_float32_scores_are_distinguished_from_float64():
    low = np.float32(1.0)
    high = np.nextafter(low, np.float32(2.0))
    assert evaluate(np.array([high]), np.array([low], np.float64)).auroc == 1.0


def test_large_integers_are_distinguished():
    """In double precision the two are equal."""
    assert evaluate([2**53 + 1], [2**53]).auroc == 1.0


def test_scores_are_left_as_they_were():
    ids, oods = np.array([2.0, 1.0, 3.0]), np.array([1.5, 0.5])
    ids.flags.writeable = oods.flags.writeable = False
    evaluate(ids, oods)
    assert ids.tolist() == [2.0, 1.0, 3.0]


# Conventions


def test_perfect_separation_gives_the_ends_of_the_scale():
    assert evaluate([3.0, 2.0], [1.0]) == Detection(0.0, 1.0, 1.0, 1.0, n_id=2, n_ood=1)


def test_conventions_are_named_and_fit_a_table_header():
    assert set(CONVENTIONS) == {"featurenorm", "knn", "openood", "neutral"}
    for name, convention in CONVENTIONS.items():
        assert convention.name == name
        assert convention_named(name) is convention
        assert re.fullmatch(r"(ID|OOD) positive; FPR95 .+; AUPR = .+", convention.description)
        assert convention.description.startswith(convention.positive.upper())
        assert len(convention.description) <= 100


def test_one_curve_serves_every_convention():
    ids, oods = PAIRS["two values"]
    curve = Curve.of(ids, oods)
    found = {name: curve.detection(c) for name, c in CONVENTIONS.items()}
    assert found == {name: evaluate(ids, oods, convention=name) for name in CONVENTIONS}
    assert len(set(found.values())) == 4


def test_a_convention_of_ones_own_is_accepted():
    own = Convention("own", "", positive="ood", rule="rank", area="average_precision")
    ids, oods = PAIRS["continuous"]
    found = evaluate(ids, oods, convention=own)
    assert found.fpr95 == fpr_at_tpr(ids, oods, positive="ood", rule="rank")
    assert found.aupr_in == evaluate(ids, oods).aupr_in


def test_flipping_twice_changes_nothing():
    curve = Curve.of(*PAIRS["heavy ties"])
    again = curve.flipped().flipped()
    assert again.true_positives.tolist() == curve.true_positives.tolist()
    assert again.false_positives.tolist() == curve.false_positives.tolist()


# Refusals


@pytest.mark.parametrize(
    ("ids", "oods", "message"),
    [
        (
            [1.0, 2.0],
            [0.0, np.nan, np.inf],
            "knn on svhn: 2 of 3 OOD scores are not finite, the first is nan in row 1; "
            "check the checkpoint and the options of the method",
        ),
        (
            [1.0, 2.0, -np.inf],
            [0.0],
            "knn on svhn: 1 of 3 ID scores are not finite, the first is -inf in row 2; "
            "check the checkpoint and the options of the method",
        ),
        ([], [0.0], "knn on svhn: there are no ID scores; give at least one image"),
        ([0.0], [], "knn on svhn: there are no OOD scores; give at least one image"),
        (
            [[1.0, 2.0]],
            [0.0],
            "knn on svhn: the ID scores are float64 of shape (1, 2); "
            "give one real number for each image",
        ),
        (
            [1.0],
            [1j],
            "knn on svhn: the OOD scores are complex128 of shape (1,); "
            "give one real number for each image",
        ),
    ],
)
def test_scores_that_cannot_be_ranked_are_refused(ids, oods, message):
    with pytest.raises(InvalidInputError) as error:
        evaluate(ids, oods, method="knn", dataset="svhn")
    assert str(error.value) == message


def test_a_pair_without_names_is_called_unnamed():
    with pytest.raises(InvalidInputError, match=r"^unnamed method on unnamed data set: there are"):
        fpr_at_tpr([], [1.0])


@pytest.mark.parametrize("tpr", [0.0, -0.1, 1.01, float("nan")])
def test_rates_out_of_range_are_refused(tpr):
    with pytest.raises(InvalidInputError) as error:
        fpr_at_tpr([1.0], [0.0], tpr=tpr)
    assert str(error.value) == (
        f"a true-positive rate of {tpr} is not possible; give one above 0 and at most 1"
    )


def test_unknown_names_are_refused_with_the_nearest_known_one():
    with pytest.raises(UnknownNameError, match=r"^no convention 'opendod'; did you mean 'openood'"):
        evaluate([1.0], [0.0], convention="opendod")
    with pytest.raises(UnknownNameError, match=r"^no rule 'nearer'; did you mean 'nearest'"):
        fpr_at_tpr([1.0], [0.0], rule="nearer")
    with pytest.raises(UnknownNameError, match=r"^no positive class 'x'; there are: id, ood$"):
        fpr_at_tpr([1.0], [0.0], positive="x")


# Published numbers

PUBLISHED = {
    # data set: FPR95, AUROC, AUPR_IN, AUPR_OUT
    "cifar100": ("81.78±3.98", "81.27±0.74", "75.68±2.01", "83.24±0.06"),
    "tin": ("79.14±4.04", "83.84±0.02", "80.65±1.12", "84.03±0.67"),
    "near": ("80.46±4.01", "82.55±0.36", "78.16±1.57", "83.64±0.30"),
    "mnist": ("48.68±15.38", "90.58±2.96", "57.25±10.02", "98.54±0.47"),
    "svhn": ("70.54±8.71", "84.63±3.05", "62.05±7.29", "93.90±1.06"),
    "texture": ("80.39±3.93", "83.94±0.35", "84.19±0.78", "80.27±0.46"),
    "places365": ("70.51±5.98", "86.41±1.92", "55.87±4.83", "96.05±0.59"),
    "far": ("67.53±7.50", "86.39±1.86", "64.84±5.51", "92.19±0.38"),
}
GROUPS = {"near": ("cifar100", "tin"), "far": ("mnist", "svhn", "texture", "places365")}


def cell(values: NDArray[np.float64]) -> str:
    return f"{100 * values.mean():.2f}±{100 * values.std():.2f}"


def test_openood_convention_reproduces_the_published_scale_table(shared: Path):
    """Per-image scores of the SCALE authors, ID CIFAR-10, three training runs.

    Their accuracy, 95.06±0.30, is left out: the predictions in the file give 95.05±0.31.
    """
    with np.load(shared / "data" / "openood_scale_scores_cifar10.npz", allow_pickle=False) as file:
        scores = dict(file)
    seeds = (0, 1, 2)
    measured = {}
    for group, names in GROUPS.items():
        for name in names:
            rows = [
                evaluate(
                    scores[f"s{seed}_id_conf"],
                    scores[f"s{seed}_{group}_{name}_conf"],
                    convention="openood",
                )
                for seed in seeds
            ]
            measured[name] = np.array([(r.fpr95, r.auroc, r.aupr_in, r.aupr_out) for r in rows])
        measured[group] = np.mean([measured[name] for name in names], axis=0)
    assert {
        name: tuple(cell(column) for column in table.T) for name, table in measured.items()
    } == PUBLISHED


def percent(found: Detection) -> str:
    return f"{100 * found.fpr95:.1f} / {100 * found.auroc:.2f}"


def test_neutral_convention_reproduces_the_reference_table(shared: Path):
    """FPR95 and AUROC of published implementations on the reference network, in percent."""
    with np.load(shared / "reference" / "scores.npz", allow_pickle=False) as file:
        scores = dict(file)
    table = {
        "msp": ("71.5 / 88.83", "74.0 / 81.53"),
        "maxlogit": ("66.5 / 90.42", "73.7 / 84.03"),
        "energy": ("67.1 / 90.08", "75.1 / 83.94"),
    }
    for method, cells in table.items():
        for dataset, expected in zip(("svhn_crops", "dtd10_32"), cells, strict=True):
            found = evaluate(scores[f"{method}/test"], scores[f"{method}/{dataset}"])
            assert percent(found) == expected


def test_neutral_convention_reproduces_the_reference_table_of_block_norms(shared: Path):
    datasets = ("svhn_crops", "dtd10_32", "sun_resize32", "cifar100")
    with np.load(shared / "reference" / "activations.npz", allow_pickle=False) as file:
        norms = {name: file[f"{name}/block_norms"] for name in ("test", *datasets)}
    table = {
        5: ("11.7 / 97.46", "23.6 / 93.74", "74.5 / 78.31", "84.3 / 65.84"),
        6: ("6.3 / 98.78", "23.7 / 93.85", "63.1 / 82.29", "80.0 / 70.19"),
        7: ("5.1 / 98.91", "29.2 / 92.69", "74.7 / 77.84", "76.7 / 75.22"),
    }
    for block, cells in table.items():
        for dataset, expected in zip(datasets, cells, strict=True):
            found = evaluate(norms["test"][:, block], norms[dataset][:, block])
            assert percent(found) == expected


@pytest.mark.parametrize(("accuracy", "counts", "chance"), [
    (0.10, [100] * 10, 0.10),
    (0.124, [100] * 10, 0.10),
    (0.13, [100] * 10, None),
    (0.62, [500, 500], 0.5),
    (0.63, [500, 500], None),
    (0.90, [900, 100], 0.90),
    (0.93, [900, 100], None),
    (0.002, [50] * 1000, None),
    (1.0, [2, 2], None),  # so few tell little, but all are right
    (0.75, [2, 2], 0.5),
    (1.0, [9], None),  # one class cannot be guessed wrong
])  # fmt: skip
def test_a_classifier_near_chance_is_distinguished_from_others(
    accuracy: float, counts: list[int], chance: float | None
) -> None:
    labels = np.repeat(np.arange(len(counts)), counts)
    assert near_chance(accuracy, labels) == chance
    assert near_chance(accuracy, labels[:0]) is None
