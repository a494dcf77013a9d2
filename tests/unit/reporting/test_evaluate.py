"""Tables with intervals, tests, ranks and calibration, from stored scores and from files."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from oodcli.errors import InvalidInputError, MissingArtifactError, UnknownNameError
from oodcli.metrics import CONVENTIONS, evaluate
from oodcli.reporting.results import METRICS, Report
from oodcli.store.runs import Job, Run, RunFolder
from oodcli.store.scores import LABELS, PREDICTIONS, ScoredSet, Scoring, add_scores, read_scorings
from oodcli.store.store import Store
from tests.support.reporting import report_of, report_of_files

# MANIFEST of the published scores: FPR95, AUROC, AUPR-in, AUPR-out; mean and spread of three seeds.
PUBLISHED = """
cifar100   81.78±3.98 81.27±0.74 75.68±2.01 83.24±0.06
tin        79.14±4.04 83.84±0.02 80.65±1.12 84.03±0.67
near       80.46±4.01 82.55±0.36 78.16±1.57 83.64±0.30
mnist      48.68±15.38 90.58±2.96 57.25±10.02 98.54±0.47
svhn       70.54±8.71 84.63±3.05 62.05±7.29 93.90±1.06
texture    80.39±3.93 83.94±0.35 84.19±0.78 80.27±0.46
places365  70.51±5.98 86.41±1.92 55.87±4.83 96.05±0.59
far        67.53±7.50 86.39±1.86 64.84±5.51 92.19±0.38
"""
SETS = {"a": ("near", 150), "b": ("far", 90)}


def arrays(seed: int, *, n_id: int = 120) -> dict[tuple[str, str], np.ndarray]:
    """Make up scores of two methods and a probability."""
    rng = np.random.default_rng(seed)
    labels = np.arange(n_id) % 3
    confidence = rng.uniform(0.4, 1, n_id)
    made = {
        (LABELS, "id"): labels,
        (PREDICTIONS, "id"): np.where(rng.uniform(size=n_id) < confidence, labels, 9),
        ("msp", "id"): confidence,
        ("weak", "id"): rng.normal(0.1, 1, n_id),
        ("good", "id"): rng.normal(2, 1, n_id),
    }
    for name, (_, n) in SETS.items():
        made |= {
            ("msp", name): rng.uniform(0.3, 0.8, n),
            ("weak", name): rng.normal(0, 1, n),
            ("good", name): rng.normal(0, 1, n),
        }
    return made


def add_run(
    store: Store,
    name: str,
    seed: int,
    *,
    digest: str = "d",
    limit: int | None = None,
    left_out: dict[str, str] | None = None,
    log_odds: bool = False,
) -> None:
    folder = RunFolder(store.runs / name)
    folder.path.mkdir(parents=True)
    folder.write(
        Run(
            origin="trained",
            created=name,
            job=Job("x", "resnet18", seed=seed),
            data_name="x",
            class_names=("0", "1", "2"),
            blocks=("1.1",),
            network=name,
            weights="w",
        )
    )
    made = arrays(seed)
    correct = made[LABELS, "id"] == made[PREDICTIONS, "id"]
    for key in [key for key in made if key[0] == "msp" and log_odds]:
        made[key] = np.log(made[key] / (1 - made[key]))
    scoring = Scoring(
        limit=limit,
        precision="float32",
        id_set=ScoredSet("id", "id", 120, digest),
        id_accuracy=float(correct.mean()),
        sets=tuple(ScoredSet(name, group, n, name) for name, (group, n) in SETS.items()),
        methods={"msp": {"scale": "log-odds"} if log_odds else {}, "weak": {}, "good": {}},
        left_out=left_out,
    )
    add_scores(store, folder.scores, scoring, made)


@pytest.fixture
def store(tmp_path: Path) -> Store:
    found = Store(tmp_path / "store")
    for seed in range(2):
        add_run(found, f"r{seed}", seed)
    return found


def cells(table: Report) -> dict[tuple[str, str], object]:
    return {(r.method, r.group if r.dataset == "average" else r.dataset): r for r in table.rows}


def test_published_scores_give_the_published_table_in_every_cell(shared):
    """The SCALE authors' scores for CIFAR-10, read from the file as it is."""
    path = shared / "data" / "openood_scale_scores_cifar10.npz"
    table = report_of_files([f"scale={path}"], id_name="cifar10", ci=True)
    assert table.convention == "openood"
    found = cells(table)
    checked = 0
    for line in PUBLISHED.split("\n"):
        if not line:
            continue
        name, *values = line.split()
        row = found["scale", name]
        for metric, value in zip(METRICS, values, strict=True):
            assert f"{100 * getattr(row, metric):.2f}±{100 * row.std[metric]:.2f}" == value
            low, high = row.intervals[metric]
            assert low < getattr(row, metric) < high
            checked += 1
    assert checked == 32
    # The file has the predictions of SCALE's logits; the plain classifier's are 95.06±0.30.
    row = found["scale", "tin"]
    assert f"{100 * row.id_accuracy:.2f}±{100 * row.std['id_accuracy']:.2f}" == "95.05±0.31"
    assert table.notes[0].startswith("ID accuracy is of the predictions in the files")


def test_reference_scores_are_compared_on_the_same_images(shared):
    path = shared / "reference" / "scores.npz"
    table = report_of_files(
        [path], id_name="test", compare=[("energy", "msp"), ("energy", "maxlogit")]
    )
    assert table.convention == "neutral"
    assert f"{cells(table)['energy', 'svhn_crops'].auroc:.4f}" == "0.9008"
    assert [(c.method_b, c.dataset, c.significant) for c in table.comparisons] == [
        ("msp", "svhn_crops", True),
        ("msp", "dtd10_32", True),
        ("maxlogit", "svhn_crops", True),
        ("maxlogit", "dtd10_32", False),
    ]
    assert {c.n_compared for c in table.comparisons} == {4}
    assert table.comparisons[3].sentence.startswith(
        "on dtd10_32, energy and maxlogit do not differ significantly: -0.09 points of AUROC"
    )


def test_no_interval_stands_where_none_was_asked_for(store):
    table = report_of(store, runs=["r0"])
    assert all(not row.intervals for row in table.rows)
    assert "comparisons" not in table.to_json()
    assert "intervals" not in table.to_json()["rows"][0]


def test_every_row_has_intervals_that_hold_its_values(store):
    for runs in (["r0"], ["r0", "r1"]):
        table = report_of(store, runs=runs, ci=True, bootstraps=400)
        for row in table.rows:
            for metric in METRICS:
                low, high = row.intervals[metric]
                assert 0 <= low <= getattr(row, metric) <= high <= 1
        assert "400 bootstrap samples (seed 0)" in table.notes[-1]


def test_an_average_is_surer_than_its_parts(store):
    found = cells(report_of(store, runs=["r0"], ci=True))

    def width(name):
        low, high = found["good", name].intervals["auroc"]
        return high - low

    assert width("all") < max(width("a"), width("b"))


def test_intervals_repeat_by_their_seed(store):
    first, same, other = (
        report_of(store, runs=["r0"], ci=True, bootstraps=200, seed=seed).rows[0].intervals
        for seed in (0, 0, 1)
    )
    assert first == same
    assert first["auroc"] == other["auroc"]
    assert first["fpr95"] != other["fpr95"]


def test_too_few_samples_are_refused(store):
    with pytest.raises(InvalidInputError, match="50 bootstrap samples are too few"):
        report_of(store, runs=["r0"], ci=True, bootstraps=50)


def test_methods_are_compared_over_all_seeds_at_once(store):
    table = report_of(store, runs=["r0", "r1"], compare=[("good", "weak")])
    assert [(c.run, c.dataset) for c in table.comparisons] == [("r0, r1", "a"), ("r0, r1", "b")]
    found = cells(table)
    for each in table.comparisons:
        by_hand = found["good", each.dataset].auroc - found["weak", each.dataset].auroc
        assert each.delta == pytest.approx(by_hand, abs=1e-6)
        assert each.significant
        assert each.p <= each.p_holm
        assert each.sentence.startswith(f"on {each.dataset}, good separates better than weak: +")
    turned = report_of(store, runs=["r0", "r1"], compare=[("weak", "good")]).comparisons[0]
    assert "weak separates worse than good: -" in turned.sentence


def test_a_method_is_compared_with_every_other(store):
    found = report_of(store, runs=["r0"], compare=[("good", "all")]).comparisons
    assert [(c.method_a, c.method_b, c.dataset) for c in found] == [
        ("good", "msp", "a"),
        ("good", "msp", "b"),
        ("good", "weak", "a"),
        ("good", "weak", "b"),
    ]


def test_what_cannot_be_compared_is_said(store):
    with pytest.raises(
        UnknownNameError, match="no method with scores 'goood'; did you mean 'good'"
    ):
        report_of(store, runs=["r0"], compare=[("goood", "weak")])
    with pytest.raises(InvalidInputError, match="good cannot be compared with itself"):
        report_of(store, runs=["r0"], compare=[("good", "good")])


def test_ranks_are_means_over_the_sets(store):
    table = report_of(store, runs=["r0"])
    ranks = {rank.method: rank for rank in table.mean_ranks}
    assert set(ranks) == {"msp", "weak", "good"}
    assert ranks["weak"].auroc == 3.0
    assert ranks["good"].n_datasets == 2
    assert sum(rank.fpr95 for rank in ranks.values()) == pytest.approx(6)
    assert report_of(store, runs=["r0"], methods=["good"]).mean_ranks == []


@pytest.mark.parametrize("log_odds", [False, True])
def test_calibration_is_that_of_the_probabilities(tmp_path, log_odds):
    store = Store(tmp_path / "store")
    add_run(store, "r0", 0, log_odds=log_odds)
    (calibration,) = report_of(store, runs=["r0"]).calibration
    made = arrays(0)
    correct = made[LABELS, "id"] == made[PREDICTIONS, "id"]
    assert calibration.accuracy == pytest.approx(correct.mean())
    assert calibration.confidence == pytest.approx(made["msp", "id"].mean())
    assert abs(calibration.confidence - calibration.accuracy) <= calibration.ece < 0.2
    assert calibration.n_bins == 15


@pytest.mark.parametrize("convention", CONVENTIONS)
def test_extras_follow_the_convention(store, convention):
    row = report_of(store, runs=["r0"], methods=["good"], convention=convention).rows[0]
    made = arrays(0)
    id_scores, ood_scores = made["good", "id"], made["good", row.dataset]
    # The ID score of ascending index 6 is the highest that 114 of 120 images reach.
    threshold = np.sort(id_scores)[6]
    correct = made[LABELS, "id"] == made[PREDICTIONS, "id"]
    assert row.extras["threshold_95"] == threshold
    assert row.extras["accuracy_at_95"] == correct[id_scores >= threshold].mean()
    assert row.extras["fpr80"] <= row.extras["fpr90"] <= row.fpr95 <= row.extras["fpr99"]
    if convention == "neutral":
        accepted = np.sort(id_scores)[12]
        assert row.extras["fpr90"] == np.mean(ood_scores >= accepted)
    assert 0 < row.extras["detection_error"] < row.extras["fpr99"]
    assert set(row.extras) == set(report_of(store, runs=["r0"]).to_json()["rows"][0]["extras"])


def test_a_method_most_of_whose_scores_tie_is_named(store):
    """Of 120 ID scores 100 are 1, of each OOD set all but ten: that is more than half."""
    rng = np.random.default_rng(0)
    made = {("saturated", "id"): np.concatenate([np.ones(100), rng.uniform(0, 1, 20)])}
    for name, (_, n) in SETS.items():
        made["saturated", name] = np.concatenate([rng.uniform(0, 1, 10), np.ones(n - 10)])
    folder = RunFolder(store.runs / "r0")
    (scoring,) = read_scorings(folder.scores)
    add_scores(store, folder.scores, replace(scoring, methods={"saturated": {}}), made)
    table = report_of(store, runs=["r0"])
    shares = {r.dataset: r.extras["tied"] for r in table.rows if r.method == "saturated"}
    assert all(shares[name] == pytest.approx((90 + n) / (120 + n)) for name, (_, n) in SETS.items())
    worst = max(SETS, key=lambda name: SETS[name][1])
    assert (
        "most images have the same score as another image, so these images are not ranked among "
        f"each other: saturated ({100 * shares[worst]:.0f} % on {worst})"
    ) in table.notes
    assert all(r.extras["tied"] == 0 for r in table.rows if r.method in ("weak", "good"))
    assert not any("have the same score" in n for n in report_of(store, runs=["r1"]).notes)


def test_stored_scores_and_their_export_give_one_table(store, tmp_path):
    with (tmp_path / "out.npz").open("wb") as stream:
        np.savez(stream, **{f"{m}/{d}": values for (m, d), values in arrays(0).items()})
    ours, files = report_of(store, runs=["r0"]), report_of_files([tmp_path / "out.npz"])
    found = {(row.method, row.dataset): row for row in files.rows}
    for row in ours.rows:
        if row.dataset != "average":
            other = found[row.method, row.dataset]
            assert [getattr(row, m) for m in METRICS] == [getattr(other, m) for m in METRICS]
            assert row.extras == other.extras
    assert files.calibration[0].ece == ours.calibration[0].ece
    assert {row.group for row in files.rows} == {"ood", "all"}


def test_files_of_seeds_are_averaged_and_files_of_methods_joined(tmp_path):
    paths = []
    for seed in range(2):
        for method in ("good", "weak"):
            made = arrays(seed)
            path = tmp_path / f"{method}{seed}.npz"
            keys = [key for key in made if key[0] in (method, LABELS, PREDICTIONS)]
            with path.open("wb") as stream:
                np.savez(stream, **{f"{m}/{d}": made[m, d] for m, d in keys})
            paths.append(path)
    table = report_of_files(paths, compare=[("good", "weak")])
    assert [run.name for run in table.runs] == ["good0", "good1"]
    assert {row.n_runs for row in table.rows} == {2}
    assert {row.method for row in table.rows} == {"good", "weak"}
    value = np.mean(
        [evaluate(arrays(s)["good", "id"], arrays(s)["good", "a"]).auroc for s in range(2)]
    )
    assert cells(table)["good", "a"].auroc == pytest.approx(value)


def test_a_benchmark_gives_its_groups_and_order_to_files(tmp_path):
    path = tmp_path / "mine.csv"
    lines = ["dataset,score"]
    for name in ("cifar10", "svhn-lossless", "cifar100", "tiny-imagenet"):
        lines += [f"{name},{value}" for value in range(5)]
    path.write_text("\n".join(lines))
    table = report_of_files([path], id_name="cifar10")
    assert table.benchmark == "openood-cifar10"
    assert table.convention == "openood"
    assert [r.group for r in table.rows] == ["near", "near", "near", "far", "far", "all"]
    assert "because of the names of the sets" in table.notes[-1]
    # A name that no benchmark has leaves all of them in one group.
    path.write_text("\n".join([*lines, "mine,3", "mine,4"]))
    assert {r.group for r in report_of_files([path], id_name="cifar10").rows} == {"ood", "all"}
    chosen = report_of_files([path], id_name="cifar10", benchmark="openood-cifar10")
    assert "mine" not in {row.dataset for row in chosen.rows}
    with pytest.raises(UnknownNameError, match="no benchmark 'openod-cifar10'"):
        report_of_files([path], id_name="cifar10", benchmark="openod-cifar10")


def test_shifted_images_of_a_pickle_give_full_spectrum_rows(tmp_path):
    import pickle

    rng = np.random.default_rng(0)

    def part(mean, n):
        return [np.zeros(n, int), rng.normal(mean, 1, n), np.zeros(n, int)]

    content = {
        "id": {"test": part(1, 40)},
        "csid": {"cifar10c": part(0.5, 30)},
        "ood": {"near": {"tin": part(0, 20)}, "far": {"mnist": part(-1, 20)}},
    }
    path = tmp_path / "react.pkl"
    path.write_bytes(pickle.dumps(content))
    table = report_of_files([path], id_name="cifar10", ci=True, bootstraps=100)
    found = {(row.dataset, row.group): row for row in table.rows}
    together = np.concatenate([content["id"]["test"][1], content["csid"]["cifar10c"][1]])
    expected = evaluate(together, content["ood"]["near"]["tin"][1], convention="openood")
    row = found["tin", "fs-near"]
    assert (row.fpr95, row.auroc) == (expected.fpr95, expected.auroc)
    assert row.n_id == 70
    assert row.id_accuracy == 1.0
    assert "aurc" not in row.extras
    assert "auroc" in row.intervals


def test_a_choice_that_leaves_nothing_is_refused(tmp_path):
    path = tmp_path / "mine.csv"
    path.write_text("dataset,score\nid,1\nsvhn,0\n")
    with pytest.raises(MissingArtifactError, match="mine has no scores of these methods and sets"):
        report_of_files([path], id_name="id", datasets=["mnist"])


def test_a_name_without_scores_is_refused_beside_names_that_have_them(store):
    with pytest.raises(UnknownNameError, match="no method with scores 'god'; did you mean 'good'"):
        report_of(store, runs=["r0"], methods=["msp", "god"])
    name = next(iter(SETS))
    with pytest.raises(UnknownNameError, match="no OOD set with scores 'nowhere'; there are: "):
        report_of(store, runs=["r0"], datasets=[name, "nowhere"])


def test_a_missing_method_says_that_the_scores_are_a_quick_look(store):
    add_run(store, "quick", 0, limit=120)
    with pytest.raises(UnknownNameError, match="scores of 120 images of each set 'knn'; there are"):
        report_of(store, runs=["quick"], methods=["knn"])


def test_skipped_methods_are_named_where_all_are_shown_alone(store):
    add_run(store, "other", 0, left_out={"vim": "too narrow"})
    assert "without vim: too narrow" in report_of(store, runs=["other"]).notes
    assert "without vim: too narrow" not in report_of(store, runs=["other"], methods=["msp"]).notes
    # Also where those named are all that have scores.
    every = report_of(store, runs=["other"], methods=["msp", "weak", "good"])
    assert "without vim: too narrow" not in every.notes
