"""Whose resizing the images of a run get on a benchmark."""

from dataclasses import replace

import pytest

from oodcli.data.benchmarks import BENCHMARKS
from oodcli.data.run_data import preprocess_on
from oodcli.errors import InvalidInputError
from oodcli.store.preprocess import Preprocess
from oodcli.store.runs import Job, Run
from oodcli.store.scores import ResizedAs

SWIN = Preprocess((224, 224), "shorter-crop:232:bicubic", (0.1, 0.2, 0.3), (0.4, 0.5, 0.6))
BENCHMARK = "shorter-crop:256"


def run_of(preprocess: Preprocess, *, as_published: bool | None = True) -> Run:
    """Return the record of an imported network; before there were filters nothing said whose."""
    job = Job(data="imagenet", arch="torchvision:swin_t", preprocess=preprocess)
    imported = {} if as_published is None else {"as_published": as_published}
    return Run("imported", "", job, "imagenet", (), (), "", "", imported=imported)


@pytest.mark.parametrize(
    ("benchmark", "as_published", "asked", "wanted"),
    [
        # OpenOOD's script for ImageNet reads networks of torchvision by the weights' transforms.
        ("openood-imagenet", True, None, SWIN.resize),
        ("openood-imagenet", False, None, BENCHMARK),
        ("openood-imagenet", None, None, BENCHMARK),
        ("openood-imagenet", True, "benchmark", BENCHMARK),
        ("openood-imagenet", False, "network", SWIN.resize),
        ("openood-imagenet200", True, None, BENCHMARK),
        # The papers that use it have one transform for every network.
        ("mos-imagenet", True, None, BENCHMARK),
        ("mos-imagenet", True, "network", SWIN.resize),
    ],
)
def test_the_default_is_that_of_the_published_numbers(
    benchmark: str, as_published: bool | None, asked: ResizedAs | None, wanted: str
) -> None:
    run = run_of(SWIN, as_published=as_published)
    found = preprocess_on(BENCHMARKS[benchmark], run, asked)
    assert found == replace(SWIN, resize=wanted)  # size and normalisation stay


def test_a_network_of_another_size_keeps_its_own() -> None:
    regnet = replace(SWIN, size=(384, 384), resize="shorter-crop:384:bicubic")
    benchmark = BENCHMARKS["openood-imagenet"]
    for asked in (None, "network"):
        assert preprocess_on(benchmark, run_of(regnet), asked) == regnet
    with pytest.raises(InvalidInputError) as refused:
        preprocess_on(benchmark, run_of(regnet), "benchmark")
    assert str(refused.value) == (
        "--resize benchmark brings images to 224 x 224 on openood-imagenet, and the network takes "
        "384 x 384; leave it out"
    )
