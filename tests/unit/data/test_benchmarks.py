"""Benchmarks name data sets that exist."""

import pytest

from oodcli.data import BENCHMARKS, DATASETS, own_benchmark
from oodcli.data.decoding.scaling import Resizing
from oodcli.data.splits import known_lists
from oodcli.metrics import convention_named


@pytest.mark.parametrize(
    "benchmark", [*BENCHMARKS.values(), own_benchmark(grey=True), own_benchmark(grey=False)]
)
def test_every_data_set_is_in_the_registry(benchmark):
    assert set(benchmark.members) <= DATASETS.keys()
    assert benchmark.id_set is None or DATASETS[benchmark.id_set].role == "id"
    shown = [name for names in benchmark.groups.values() for name in names]
    assert len({benchmark.id_set, *shown, *benchmark.shifted}) == 1 + len(shown) + len(
        benchmark.shifted
    )
    assert benchmark.lists.keys() <= {*shown, *benchmark.shifted}
    assert bool(benchmark.id_test_list) == bool(benchmark.id_val_list)
    Resizing(benchmark.size, benchmark.resize)
    convention_named(benchmark.convention)


def test_numbers_of_images_are_the_published_ones():
    """Counts of methods.md 6.1, 6.2 and 6.4, from the registry and the lists."""

    def counts(name):
        benchmark = BENCHMARKS[name]
        return {
            dataset: known_lists()[benchmark.lists[dataset]].lines
            if dataset in benchmark.lists
            else DATASETS[dataset].counts["test"]
            for names in benchmark.groups.values()
            for dataset in names
        }

    assert list(counts("featurenorm-cifar10").values()) == [26032, 5640, 10000, 10000, 8925, 10000]
    assert list(counts("mode-cifar100").values()) == [10000, 10000, 10000, 8925, 5640]
    assert list(counts("openood-cifar10").values()) == [9000, 7793, 70000, 26032, 5640, 35195]
    assert list(counts("openood-cifar100").values()) == [10000, 6526, 70000, 26032, 5640, 33773]
    for name in ("cifar10", "cifar100"):
        benchmark = BENCHMARKS[f"openood-{name}"]
        lists = (benchmark.id_val_list, benchmark.id_test_list, benchmark.ood_val_list)
        assert [known_lists()[key].lines for key in lists] == [
            1000, 9000, 1000 if name == "cifar10" else 972,
        ]  # fmt: skip


def test_what_is_not_exact_is_called_otherwise():
    """Samples of our own, and sets that OpenOOD has as JPEG, do not go by the plain name."""
    assert "places365-sample" in BENCHMARKS["featurenorm-cifar10"].ood
    assert "places365-test-sample" in BENCHMARKS["mode-cifar10"].ood
    openood = BENCHMARKS["openood-cifar10"]
    assert {"mnist-lossless", "svhn-lossless"} <= set(openood.far)
    assert openood.shifted == ("cifar10-c-sample",)


def test_digits_are_distinguished_from_near_and_far_sets():
    digits = BENCHMARKS["digits"]
    assert digits.groups == {
        "near": ("digits-6-9",),
        "far": ("photographs-grey", "gaussian-noise", "uniform-noise"),
    }
    assert (digits.convention, digits.size) == ("neutral", (32, 32))


@pytest.mark.parametrize(
    ("grey", "photographs"), [(True, "photographs-grey"), (False, "photographs")]
)
def test_own_images_meet_photographs_of_their_kind(grey, photographs):
    own = own_benchmark(grey=grey, size=(64, 64))
    assert own.groups == {"ood": (photographs, "gaussian-noise", "uniform-noise")}
    assert own.size == (64, 64)
