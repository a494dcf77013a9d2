"""The data of the explorer: exact at every threshold, and what its scripts take it for."""

import itertools
import json
import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

import oodcli
from oodcli.metrics import CONVENTIONS, Curve
from oodcli.reporting.explorer.assets import as_script_data, assets_of
from oodcli.reporting.explorer.build import Budget, payload_of
from oodcli.reporting.explorer.classes import accepted_by_class, places_of
from oodcli.reporting.explorer.curves import MethodScores, fpr95_scores, histogram, thresholds_of
from oodcli.reporting.explorer.packing import packed_counts, packed_reals, unpacked
from oodcli.reporting.explorer.payload import Payload
from oodcli.reporting.explorer.typescript import TARGET, interfaces
from oodcli.reporting.results import RunSummary
from oodcli.reporting.sources import ScoredRun, ScoreQuery, Sources
from oodcli.store.scores import LABELS, PREDICTIONS, ScoredSet, Scoring

PAGE = Path(oodcli.__file__).parent


def test_the_scripts_know_the_records():
    assert TARGET.read_text(encoding="utf-8") == interfaces()


@pytest.mark.parametrize(
    ("counts", "kind"), [([], "u1"), ([0, 255], "u1"), ([256], "u2"), ([65535, 65536], "u4")]
)
def test_counts_are_packed_without_loss(counts, kind):
    packed = packed_counts(np.array(counts, np.int64))
    assert packed.startswith(f"{kind}:")
    assert unpacked(packed).tolist() == counts


def test_reals_are_packed_exactly_on_request():
    values = np.array([0.1, -3e300])
    assert unpacked(packed_reals(values, exact=True)).tolist() == values.tolist()
    assert unpacked(packed_reals(values[:1])).tolist() == [np.float32(0.1)]


def scores(n_id=300, sizes=(200, 50), *, step=0.05):
    """Scores with ties within and between the sets."""
    draw = np.random.default_rng(1)

    def some(mean, n):
        return np.round(draw.normal(mean, 1, n) / step) * step

    return MethodScores(some(0, n_id), tuple(some(-1 - at, n) for at, n in enumerate(sizes)))


def test_few_scores_are_all_thresholds():
    found, every = thresholds_of(scores(), [], limit=1000)
    assert every
    known = scores()
    assert found.tolist() == sorted({*known.id_scores, *known.ood_scores[0], *known.ood_scores[1]})


def test_many_scores_are_thinned_to_the_limit_and_keep_what_is_needed():
    many = scores(5000, (4000, 3000), step=1e-6)
    needed = [many.id_scores[17], many.ood_scores[1][5]]
    found, every = thresholds_of(many, needed, limit=400)
    assert not every
    assert 300 < len(found) <= 404
    assert set(needed) <= set(found)
    assert (np.diff(found) > 0).all()
    everything = np.concatenate([many.id_scores, *many.ood_scores])
    assert found[0] == everything.min()
    assert found[-1] == everything.max()
    # A false alarm rate of 1 % can be had, to a part in a hundred of it.
    rejected = np.searchsorted(np.sort(many.id_scores), found) / 5000
    assert np.abs(rejected - 0.01).min() < 0.0005


@pytest.mark.parametrize("step", [0.05, 1.0])
def test_every_convention_measures_fpr95_at_its_threshold(step):
    known = scores(step=step)
    for name, thresholds in fpr95_scores(known, tuple(CONVENTIONS.values())).items():
        convention = CONVENTIONS[name]
        for ood, threshold in zip(known.ood_scores, thresholds, strict=True):
            expected = Curve.of(known.id_scores, ood).detection(convention).fpr95
            if convention.positive == "id":
                assert np.mean(ood >= threshold) == expected
            else:
                assert np.mean(known.id_scores < threshold) == expected


def test_images_are_counted_by_class():
    draw = np.random.default_rng(0)
    values, classes = draw.integers(9, size=200) / 4, draw.integers(5, size=200)
    thresholds = np.array([-1.0, 0.5, 1.1, 9.0])
    expected = [
        [np.sum((values >= t) & (classes == each)) for each in range(5)] for t in thresholds
    ]
    assert accepted_by_class(values, classes, thresholds, n=5).tolist() == expected


def test_classes_are_counted_at_the_usual_shares_of_id_images():
    accepted = np.arange(1000, -1, -1)
    places = places_of(accepted, at_most=20)
    assert len(places) <= 20
    assert {0, 10, 50, 100, 1000} <= set(places.tolist())
    assert places_of(accepted, at_most=2000).tolist() == list(range(1001))


def test_a_histogram_counts_every_image():
    known = scores()
    found = histogram(known.id_scores, known.ood_scores[0])
    assert unpacked(found.id_counts).sum() == 300
    assert unpacked(found.ood_counts).sum() == 200
    assert found.low < found.high
    assert histogram(np.ones(3), np.ones(2)).low == 0.5


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """Scores of two methods in a file; one has no scores on one of the sets."""
    draw = np.random.default_rng(3)
    labels = draw.integers(4, size=100)
    arrays = {
        "@labels/cifar10": labels,
        "@predictions/cifar10": np.where(draw.random(100) < 0.2, 0, labels),
        "msp/cifar10": draw.normal(0, 1, 100),
        "msp/svhn": draw.normal(-1, 1, 80),
        "msp/tin": draw.normal(-1, 1, 60),
        "energy/cifar10": draw.normal(0, 1, 100),
        "energy/tin": draw.normal(-2, 1, 60),
    }
    path = tmp_path_factory.mktemp("scores") / "scores.npz"
    np.savez(path, **arrays)
    return path, arrays


def payload(path) -> Payload:
    with Sources.open(None, ScoreQuery(files=(path,))) as sources:
        return payload_of(sources.runs, [], convention="neutral", digits=2)


def test_counts_at_every_threshold_are_those_of_the_scores(files):
    path, arrays = files
    (network,) = payload(path).networks
    (evaluation,) = network.evaluations
    labels, predictions = arrays["@labels/cifar10"], arrays["@predictions/cifar10"]
    assert evaluation.n_correct == np.sum(labels == predictions)
    assert evaluation.id_classes == tuple(np.bincount(labels))
    assert network.classes == ("class 0", "class 1", "class 2", "class 3")
    for curve, (at, entry) in itertools.product(evaluation.methods, enumerate(evaluation.sets)):
        thresholds = unpacked(curve.thresholds)
        id_scores = arrays[f"{curve.method}/cifar10"]
        assert unpacked(curve.id_accepted).tolist() == [np.sum(id_scores >= t) for t in thresholds]
        assert unpacked(curve.correct_accepted).tolist() == [
            np.sum(id_scores[labels == predictions] >= t) for t in thresholds
        ]
        ood = arrays.get(f"{curve.method}/{entry.name}")
        if ood is None:
            assert curve.ood_accepted[at] is None
            assert curve.histograms[at] is None
            assert {each[at] for each in curve.fpr95_at.values()} == {None}
        else:
            found = unpacked(curve.ood_accepted[at]).tolist()
            assert found == [np.sum(ood >= t) for t in thresholds]
        by_class = unpacked(curve.classes.id_accepted).reshape(-1, 4)
        assert (
            by_class.sum(axis=1).tolist()
            == unpacked(curve.id_accepted)[unpacked(curve.classes.places)].tolist()
        )
        # A score file has no predictions of OOD images.
        assert curve.classes.ood_accepted == (None, None)


def scored(n_classes=3, n=200, methods=("msp",), sets=("svhn",), predicted=True):
    """Scores of a network whose predictions on OOD images are known."""
    draw = np.random.default_rng(5)
    id_set = ScoredSet("cifar10", "id", n, "d")
    entries = tuple(ScoredSet(name, "far", n, "d") for name in sets)
    found = {
        (m, e.name): draw.normal(e.group == "id", 1, n) for m in methods for e in (id_set, *entries)
    }
    names = (LABELS, PREDICTIONS) if predicted else ()
    found |= {
        (m, e.name): draw.integers(n_classes, size=n) for m in names for e in (id_set, *entries)
    }
    scoring = Scoring(None, "float32", id_set, 0.5, entries, {method: {} for method in methods})
    summary = RunSummary("run", "", "cifar10", n, 0.5, None)
    return ScoredRun(
        summary,
        scoring,
        methods,
        entries,
        (),
        lambda method, entry: found.get((method, entry.name)),
    )


def evaluation_of(run):
    (network,) = payload_of([run], [], convention="neutral", digits=2).networks
    return network.evaluations[0]


def test_ood_images_are_counted_by_the_class_they_are_taken_for():
    run = scored()
    entry = run.sets[0]
    taken, values = run.read(PREDICTIONS, entry), run.read("msp", entry)
    (shown,) = evaluation_of(run).sets
    (curve,) = evaluation_of(run).methods
    assert sorted(shown.classes) == [0, 1, 2]
    assert shown.taken == tuple(np.sum(taken == each) for each in shown.classes)
    assert list(shown.taken) == sorted(shown.taken, reverse=True)
    thresholds = unpacked(curve.thresholds)[unpacked(curve.classes.places)]
    counts = unpacked(curve.classes.ood_accepted[0]).reshape(-1, 3)
    assert counts.tolist() == [
        [np.sum((taken == each) & (values >= t)) for each in shown.classes] for t in thresholds
    ]


def test_of_many_classes_the_most_frequent_of_a_set_are_counted():
    run = scored(n_classes=100, n=300)
    (shown,) = evaluation_of(run).sets
    totals = np.bincount(run.read(PREDICTIONS, run.sets[0]), minlength=100)
    assert list(shown.taken) == sorted(totals, reverse=True)[:25]
    found = payload_of([run], [], convention="neutral", digits=2)
    assert any("25 classes" in each for each in found.limits)


def test_without_predictions_no_class_is_counted():
    run = scored(predicted=False)
    assert evaluation_of(run).id_classes is None
    assert evaluation_of(run).n_correct is None
    assert evaluation_of(run).methods[0].classes is None


@pytest.mark.parametrize("unknown", [LABELS, PREDICTIONS])
def test_images_of_unknown_class_are_not_counted_by_class(unknown):
    run = scored()

    def read(method, entry):
        found = run.read(method, entry)
        return np.where(np.arange(len(found)) == 3, -1, found) if method == unknown else found

    evaluation = evaluation_of(replace(run, read=read))
    assert evaluation.id_by == ("prediction" if unknown == LABELS else "label")
    known = PREDICTIONS if unknown == LABELS else LABELS
    counts = np.bincount(run.read(known, run.scoring.id_set), minlength=3)
    assert evaluation.id_classes == tuple(counts)
    assert (evaluation.sets[0].classes is None) is (unknown == PREDICTIONS)


def test_a_page_of_ten_sets_and_47_methods_leaves_room_for_pictures():
    sets, methods = [f"set{at}" for at in range(10)], [f"m{at}" for at in range(47)]
    run = scored(10, 1500, methods, sets)
    text = as_script_data(payload_of([run], [], convention="neutral", digits=2))
    assert 1_000_000 < len(text) < 3_500_000


def test_a_page_with_more_methods_has_fewer_thresholds(files):
    with Sources.open(None, ScoreQuery(files=(files[0],))) as sources:
        (run,) = sources.runs
        small = Budget.of([run])
        large = Budget.of([replace(run, methods=[f"m{at}" for at in range(900)])])
    assert small == Budget(1000, 1000)
    assert 200 <= large.thresholds < 1000
    assert 8 <= large.by_class < 1000


def test_data_cannot_end_its_element(files):
    hostile = "</script><!--<script>&\u2028"
    (network,) = payload(files[0]).networks
    text = as_script_data(
        replace(payload(files[0]), networks=(replace(network, classes=(hostile,)),))
    )
    assert text.isascii()
    assert not set("<>&") & set(text)
    assert json.loads(text)["networks"][0]["classes"] == [hostile]


def test_a_page_has_the_licences_of_what_it_contains(files):
    scripts = assets_of(payload(files[0])).scripts
    for script, owner in zip(scripts[:2], ("Mike Bostock", "Observable, Inc."), strict=True):
        notice = script.partition("*/")[0]
        assert owner in notice
        assert "Permission to use, copy, modify" in notice
    assert "</script" not in "".join(scripts).lower()


def colours(scheme):
    """Return the colours of a page by their names in the style sheets."""
    found = {}
    for sheet in ("cli/render/formats/page.css", "reporting/explorer/web/explorer.css"):
        text = (PAGE / sheet).read_text(encoding="utf-8")
        light, _, rest = text.partition("prefers-color-scheme: dark")
        parts = [light] if scheme == "light" else [light, rest]
        for part in parts:
            block = part.partition(":root {")[2].partition("}")[0]
            found |= dict(re.findall(r"(--[a-z0-9-]+): (#[0-9a-f]{6})", block))
    return found


def contrast(first, second):
    """Return the contrast ratio of WCAG 2.2."""

    def luminance(colour):
        parts = [int(colour[at : at + 2], 16) / 255 for at in (1, 3, 5)]
        linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in parts]
        return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]

    low, high = sorted((luminance(first), luminance(second)))
    return (high + 0.05) / (low + 0.05)


TEXT = [
    *itertools.product(("--ink", "--faint", "--mark"), ("--ground", "--paper", "--band")),
    ("--paper", "--mark"),
    *((f"--heat-ink-{at}", f"--heat-{at}") for at in range(10)),
]
SHAPES = [*itertools.product(("--id", "--ood", "--edge", "--mark", "--ink"), ("--paper",))]


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_text_and_shapes_stand_out_as_wcag_asks(scheme):
    known = colours(scheme)
    for pairs, least in ((TEXT, 4.5), (SHAPES, 3)):
        ratios = {pair: contrast(*(known[each] for each in pair)) for pair in pairs}
        assert {pair: ratio for pair, ratio in ratios.items() if ratio < least} == {}
