"""Benchmarks name data sets that exist."""

import pytest

from oodcli.data import BENCHMARKS, DATASETS, own_benchmark


@pytest.mark.parametrize(
    "benchmark", [*BENCHMARKS.values(), own_benchmark(grey=True), own_benchmark(grey=False)]
)
def test_every_data_set_is_in_the_registry(benchmark):
    for names in benchmark.groups.values():
        assert {DATASETS[name].role for name in names} == {"ood"}
    assert benchmark.id_set is None or DATASETS[benchmark.id_set].role == "id"


def test_digits_are_told_from_near_and_far_sets():
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
