"""Printed values are read as they were printed, and ours are compared only with what is alike."""

from dataclasses import replace

import pytest

from oodcli.data.benchmarks import BENCHMARKS
from oodcli.metrics import CONVENTIONS, Detection
from oodcli.reporting.literature import (
    _IMAGES,
    SOURCES,
    TOLERANCES,
    Published,
    PublishedComparison,
    compare,
    published,
)
from oodcli.reporting.results import Report, ResultRow, RunSummary, over_runs, with_averages
from oodcli.reporting.sources import _training
from oodcli.store.outlier_source import OutlierSource
from oodcli.store.runs import Job, Run
from oodcli.store.scores import AVERAGE

CIFAR10 = {
    "cifar100": ("near", 9_000),
    "tiny-imagenet": ("near", 7_793),
    "mnist-lossless": ("far", 70_000),
    "svhn-lossless": ("far", 26_032),
    "textures": ("far", 5_640),
    "places365": ("far", 35_195),
}


def found(**wanted: str) -> Published:
    """Return the one value with these fields."""
    hits = [v for v in published() if all(getattr(v, k) == w for k, w in wanted.items())]
    assert len(hits) == 1, (wanted, hits)
    return hits[0]


def report(
    *,
    method: str = "scale",
    auroc: float = 0.8255,
    n_id: int = 9_000,
    sets: dict[str, tuple[str, int]] | None = None,
    convention: str = "openood",
    benchmark: str | None = "openood-cifar10",
    arch: str = "resnet18",
    seed: int | None = None,
    n_runs: int = 1,
) -> Report:
    """Make a report in which every set has the same values."""

    def rows(run: str) -> list[ResultRow]:
        return with_averages(
            [
                ResultRow(
                    detection=Detection(0.8, auroc, 0.5, 0.5, n_id=n_id, n_ood=n_ood),
                    run=run,
                    method=method,
                    params={},
                    dataset=dataset,
                    group=group,
                    id_accuracy=0.95,
                    convention=convention,
                )
                for dataset, (group, n_ood) in (sets or CIFAR10).items()
            ]
        )

    names = [f"r{index}" for index in range(n_runs)]
    runs = [RunSummary(name, arch, "cifar10", n_id, 0.95, seed) for name in names]
    table = rows("r0") if n_runs == 1 else over_runs([rows(name) for name in names])
    return Report(convention, "what it means", benchmark, runs, table)


def near(what: Report, metric: str = "auroc") -> PublishedComparison:
    """Return the comparison of the average over near sets."""
    hits = [c for c in compare(what, (metric,)) if (c.dataset, c.group) == (AVERAGE, "near")]
    assert len(hits) == 1
    return hits[0]


def test_the_values_of_scale_are_those_of_its_table() -> None:
    value = found(
        source="scale", benchmark="openood-cifar10", dataset="mnist-lossless", method="scale"
    )
    assert value.values == pytest.approx(
        {"fpr95": 0.4868, "auroc": 0.9058, "aupr_in": 0.5725, "aupr_out": 0.9854}
    )
    assert value.std["fpr95"] == pytest.approx(0.1538)
    assert (value.group, value.arch, value.n_runs) == ("far", "resnet18", 3)


def test_the_values_of_featurenorm_are_those_of_its_table() -> None:
    value = found(source="featurenorm", arch="wrn-28-10", method="featurenorm", dataset=AVERAGE)
    assert value.values == pytest.approx({"fpr95": 0.1353, "auroc": 0.9733})


@pytest.mark.parametrize("source", ["featurenorm", "scale", "t2fnorm"])
def test_printed_averages_are_those_of_the_printed_sets(source: str) -> None:
    """A wrong digit in a cell would show in the average over its row."""
    checked = 0
    for average in published():
        if average.source != source or average.dataset != AVERAGE:
            continue
        cells = [
            value
            for value in published()
            if value.dataset != AVERAGE
            and (value.source, value.benchmark, value.arch, value.training, value.method)
            == (average.source, average.benchmark, average.arch, average.training, average.method)
            and value.group == average.group
        ]
        for metric, printed in average.values.items():
            values = [value.values[metric] for value in cells if metric in value.values]
            if values:
                assert sum(values) / len(values) == pytest.approx(printed, abs=1.01e-4)
                checked += 1
    assert checked >= 16


def test_every_value_belongs_to_a_known_benchmark_source_and_set() -> None:
    for value in published():
        benchmark = BENCHMARKS[value.benchmark]
        assert SOURCES[value.source].convention in CONVENTIONS
        assert benchmark.convention == SOURCES[value.source].convention
        sets = {*benchmark.near, *benchmark.far, *benchmark.ood}
        assert value.dataset == AVERAGE or value.dataset in sets
        assert value.values
        assert all(0 <= each <= 1 for each in value.values.values())


def test_the_images_of_a_benchmark_are_its_sets_in_their_order() -> None:
    for name, images in _IMAGES.items():
        benchmark = BENCHMARKS[name]
        assert images.id_name == benchmark.id_set
        assert tuple(images.ood) == (*benchmark.near, *benchmark.far, *benchmark.ood)


def test_every_tolerance_is_for_a_value_that_was_printed() -> None:
    for rule in TOLERANCES:
        assert [
            value
            for value in published()
            if (value.benchmark, value.arch, value.training, value.group, value.dataset)
            == (rule.benchmark, rule.arch, rule.training, rule.group, AVERAGE)
            and rule.method in ("*", value.method)
            and rule.metric in value.values
        ], rule


def test_the_same_setting_is_compared_and_judged() -> None:
    one = near(report())
    assert one.reasons == ()
    assert one.difference == pytest.approx(0.0)
    assert one.tolerance == pytest.approx(0.001)
    assert one.within is True
    assert near(report(auroc=0.8271)).within is False


def test_rounding_of_what_was_printed_is_no_difference() -> None:
    assert near(report(auroc=0.8255 + 0.00104)).within is True
    assert near(report(auroc=0.8255 + 0.00106)).within is False


def test_a_training_of_our_own_has_the_tolerance_of_three_seeds() -> None:
    assert near(report(seed=0)).tolerance is None
    own = near(report(seed=0, n_runs=3, auroc=0.81))
    assert own.n_runs == 3
    assert own.tolerance == pytest.approx(0.025)
    assert own.within is True


def test_another_convention_forbids_fpr95_and_not_auroc() -> None:
    what = report(convention="neutral")
    assert near(what).within is True
    one = near(what, "fpr95")
    assert one.reasons == ("convention: ours is neutral, theirs openood",)
    assert one.within is None


def test_other_images_forbid_everything() -> None:
    assert "images: 10,000 in distribution here, 9,000 there" in near(report(n_id=10_000)).reasons
    fewer = {name: entry for name, entry in CIFAR10.items() if name != "tiny-imagenet"}
    assert near(report(sets=fewer)).reasons == (
        "images: an average over 1 sets here, over 2 there",
    )
    smaller = {**CIFAR10, "cifar100": ("near", 100)}
    what = report(sets=smaller)
    assert near(what).reasons == ("images: the OOD sets of the average have other sizes",)
    single = next(c for c in compare(what) if c.dataset == "cifar100")
    assert "images: 100 of the OOD set here, 9,000 there" in single.reasons
    assert near(report(benchmark="own")).reasons == (
        "images: ours are those of own, theirs of openood-cifar10",
    )


def test_another_architecture_forbids_everything_and_an_unknown_one_is_said() -> None:
    one = near(report(arch="resnet18:width=16"))
    assert one.reasons == ("architecture: ours is resnet18:width=16, theirs resnet18",)
    unknown = near(report(arch=""))
    assert unknown.within is True
    assert unknown.remarks == ("the architecture of r0 is not known; theirs is resnet18",)


def test_names_of_other_programs_are_understood() -> None:
    sets = {
        {"tiny-imagenet": "tin", "textures": "texture"}.get(name, name.removesuffix("-lossless")): e
        for name, e in CIFAR10.items()
    }
    what = report(method="EBO", sets=sets, benchmark=None, auroc=0.8758)
    assert near(what).theirs == pytest.approx(0.8758)
    assert near(what).within is True


def test_values_of_the_named_benchmark_come_first() -> None:
    """CIFAR-10 against textures was printed for three benchmarks, with different images."""
    sets = {"textures": ("ood", 5_640), "svhn": ("ood", 26_032)}
    what = report(
        method="msp", sets=sets, n_id=10_000, benchmark="featurenorm-cifar10",
        convention="featurenorm",
    )  # fmt: skip
    sources = {c.published.source for c in compare(what)}
    assert sources == {"featurenorm"}
    assert all(not c.reasons for c in compare(what) if c.dataset != AVERAGE)


def test_what_nobody_printed_is_not_there() -> None:
    assert compare(report(method="my-own")) == []
    assert compare(report(sets={"photographs": ("ood", 10)}, benchmark=None)) == []


def test_a_shaper_is_found_with_its_scorer_and_tuning() -> None:
    for method in ("scale+energy", "scale:percentile=65+energy", "scale+energy@openood"):
        assert near(report(method=method)).published.method == "scale"


def test_another_training_cannot_be_compared() -> None:
    made = report()
    runs = [replace(run, training="t2fnorm") for run in made.runs]
    reasons = near(replace(made, runs=runs)).reasons
    assert "training: ours is t2fnorm, theirs cross-entropy" in reasons
    own = [replace(run, training="cross-entropy") for run in made.runs]
    assert near(replace(made, runs=own)).reasons == near(made).reasons


def test_outliers_of_a_training_are_compared_too() -> None:
    """Those that are made from training images are others; of a set it is said which it is."""
    plain = report(method="msp", auroc=0.9482)

    def compared(outliers: OutlierSource) -> PublishedComparison:
        runs = [replace(run, training="oe", outliers=outliers) for run in plain.runs]
        return near(replace(plain, runs=runs))

    made = compared(OutlierSource("jigsaw", "jigsaw", made=True))
    assert made.published.training == "oe"
    assert made.reasons == ("outliers: ours are jigsaw, made from training images",)
    given = compared(OutlierSource("x", "photos", part="test", images=5, digest="d"))
    assert given.reasons == ()
    assert given.remarks == (
        "the outliers of r0 are photos; theirs are TIN-597, classes of Tiny ImageNet beside those "
        "of a near set",
    )


def test_the_published_vos_is_said_to_have_no_gradient() -> None:
    plain = report(method="energy", auroc=0.8770)
    runs = [replace(run, training="vos") for run in plain.runs]
    found = near(replace(plain, runs=runs))
    assert found.published.training == "vos"
    assert found.reasons == ()
    assert found.remarks == (
        "the code behind the published VOS sends no gradient of its outliers into the network: it "
        "is nearly cross-entropy",
    )


@pytest.mark.parametrize(
    ("objective", "words", "name"),
    [
        ("cross-entropy", ("flip", "crop"), "cross-entropy"),
        ("cross-entropy", ("flip", "crop", "regmixup"), "regmixup"),
        ("logitnorm:tau=0.1", ("flip", "crop", "pixmix"), "logitnorm+pixmix"),
        ("supcon", ("resized-crop", "flip", "jitter", "grey"), "contrastive"),
        ("conf-branch", ("flip",), "confbranch"),
        ("vos", ("flip", "crop"), "vos"),
        ("alpa", ("flip",), ""),
    ],
)
def test_trainings_are_called_as_in_the_literature(
    objective: str, words: tuple[str, ...], name: str
) -> None:
    job = Job("x", "resnet18", recipe={"objective": objective, "augmentation": [*words]})
    run = Run("trained", "2026", job, "x", ("0", "1"), ("1",), "n", "w")
    assert _training(run) == name
    if name:
        assert name in {value.training for value in published()}


def test_an_imported_network_has_no_known_training() -> None:
    run = Run("imported", "2026", Job("x", "resnet18"), "x", ("0", "1"), ("1",), "n", "w")
    assert _training(run) == ""
