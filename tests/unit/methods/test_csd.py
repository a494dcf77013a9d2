"""CSD and the probe of its regions, by hand; KNN is its special case."""

from collections.abc import Mapping, Sequence

import pytest
import torch
from torch import Tensor, nn

from oodcli.activations import Activations, ActivationSet, Head, Reference
from oodcli.errors import InvalidInputError, UndefinedMethodError
from oodcli.methods import parse_method
from oodcli.methods.base import score_many
from oodcli.methods.csd import CSD, Regions
from oodcli.methods.knn import KNN
from oodcli.probes import Edit, Output
from oodcli.regions import REGIONS, region_bounds


class Blocks:
    """A network of which only the names of its blocks are known."""

    std = torch.ones(3, 1, 1)

    def __init__(self, **blocks: str) -> None:
        self.blocks = blocks

    def modules_of(self, *kinds: type[nn.Module]) -> Sequence[str]:
        raise AssertionError("regions come from blocks")

    def run(
        self, images: Tensor, *, keep: Sequence[str] = (), edit: Mapping[str, Edit] | None = None
    ) -> Output:
        raise AssertionError("regions cost no pass")


NETWORK = Blocks(first="layer1", last="layer4.1")


def pooled(maps: Tensor) -> Tensor:
    output = Output(torch.zeros(len(maps), 2), torch.zeros(len(maps), 3), {"layer4.1": maps})
    return Regions().observe(NETWORK, torch.zeros(len(maps), 3, 8, 8), output)


def activations(features: Tensor, regions: Tensor) -> Activations:
    return Activations(
        features, features, features, features.argmax(dim=1), extra={"regions": regions}
    )


def reference_of(train: Activations) -> Reference:
    width = train.features.shape[1]
    return Reference(
        Head(torch.eye(width), torch.zeros(width)),
        load_train=lambda: ActivationSet.of(train),
        load_probed=lambda part, probe, rows: {("train", Regions(), None): ActivationSet.of(train)}[
            part, probe, rows
        ],
    )


def of_regions(regions: Tensor) -> Activations:
    return activations(torch.zeros(len(regions), 2), regions)


def test_regions_of_the_published_size() -> None:
    maps = torch.arange(16.0).view(1, 1, 4, 4)
    # 2 x 2 quadrants, the whole, rows and columns 1 to 2.
    assert pooled(maps)[0, :, 0].tolist() == [2.5, 4.5, 10.5, 12.5, 7.5, 7.5]
    maps = torch.arange(16.0).square().view(1, 1, 4, 4)
    assert pooled(maps)[0, 5, 0] == (25 + 36 + 81 + 100) / 4


def test_regions_of_an_odd_size() -> None:
    maps = torch.zeros(1, 1, 7, 7)
    maps[0, 0, 3, 3] = 16.0  # in all four quadrants of 4 x 4, and in the centre of 5 x 5
    assert pooled(maps)[0, :, 0].tolist() == pytest.approx([1, 1, 1, 1, 16 / 49, 16 / 25])
    maps = torch.zeros(1, 1, 7, 7)
    maps[0, 0, 0, 6] = 32.0  # the upper right quadrant alone
    assert pooled(maps)[0, :, 0].tolist() == pytest.approx([0, 2, 0, 0, 32 / 49, 0])


@pytest.mark.parametrize("size", [(2, 2), (3, 5), (12, 9)])
def test_regions_of_other_sizes(size: tuple[int, int]) -> None:
    maps = torch.rand(4, 5, *size, generator=torch.Generator().manual_seed(0))
    got = pooled(maps.bfloat16())
    assert got.shape == (4, 6, 5)
    assert got.dtype == torch.float32
    torch.testing.assert_close(pooled(maps)[:, 4], maps.mean(dim=(2, 3)))
    rows, columns = (slice(n // 4, n - n // 4) for n in size)
    torch.testing.assert_close(pooled(maps)[:, 5], maps[:, :, rows, columns].mean(dim=(2, 3)))


def test_regions_are_those_of_the_last_block_and_cost_nothing() -> None:
    assert Regions().maps(NETWORK) == ("layer4.1",)
    assert Regions().key == "regions"
    assert Regions().passes == 0


@pytest.mark.parametrize(
    ("shape", "written"),
    [((3, 1, 4), "3 x 1 x 4"), ((3, 4, 1), "3 x 4 x 1"), ((17, 3), "17 x 3"), ((3,), "3")],
)
def test_regions_are_undefined_without_a_map(shape: tuple[int, ...], written: str) -> None:
    with pytest.raises(UndefinedMethodError) as refusal:
        pooled(torch.zeros(2, *shape))
    assert str(refusal.value) == (
        "csd is not defined without a last map of at least 2 x 2 "
        f"(output of last: {written}); use larger images or another network"
    )


def test_regions_are_undefined_without_blocks() -> None:
    with pytest.raises(
        UndefinedMethodError, match=r"^csd is not defined for a network without blocks$"
    ):
        Regions().maps(Blocks())


def test_the_region_that_comes_nearest_counts() -> None:
    train = torch.tensor([[[2.0, 0.0], [0.0, 3.0]], [[3.0, 4.0], [0.0, -1.0]]])
    # (1, 0) has cosines 1, 3/5, 0, 0; (-1, 0) has 0, 0, -3/5, -1; the second nearest: 0.8 and 2.
    batch = of_regions(torch.tensor([[[5.0, 0.0], [-1.0, 0.0]], [[-7.0, 0.0], [-1.0, 0.0]]]))
    csd = CSD.fit(reference_of(of_regions(train)), k=2)
    assert csd.score(batch).tolist() == pytest.approx([-0.8, -2.0])
    assert csd.probes == (Regions(),)


def test_a_region_may_match_any_other_region() -> None:
    train = of_regions(torch.tensor([[[1.0, 0.0], [0.0, 1.0]]]))
    swapped = of_regions(torch.tensor([[[-1.0, 0.0], [1.0, 0.0]]]))
    assert CSD.fit(reference_of(train), k=1).score(swapped).tolist() == [0.0]


def test_knn_is_the_special_case_of_the_whole_map() -> None:
    generator = torch.Generator().manual_seed(0)
    train, batch = (
        activations(features, features[:, None])
        for features in (torch.rand(n, 8, generator=generator) for n in (60, 20))
    )
    reference = reference_of(train)
    for k in (1, 10, 50):
        assert torch.equal(
            CSD.fit(reference, k=k).score(batch), KNN.fit(reference, k=k).score(batch)
        )


def test_more_regions_can_only_raise_the_score() -> None:
    generator = torch.Generator().manual_seed(0)
    train, regions = (torch.randn(n, 6, 8, generator=generator) for n in (40, 20))
    few = CSD.fit(reference_of(of_regions(train[:, :3])))
    more = CSD.fit(reference_of(of_regions(train)))
    batch = of_regions(regions)
    assert (more.score(batch) >= few.score(batch) - 1e-6).all()
    assert (more.score(batch) >= more.score(of_regions(regions[:, 2:4])) - 1e-6).all()


def test_a_region_of_zeros_has_no_vote() -> None:
    # In a bank full of zeros the nearest to a zero vector is at distance 0.
    train = torch.zeros(9, 2, 2)
    train[0] = torch.tensor([[1.0, 0.0], [0.0, 1.0]])
    csd = CSD.fit(reference_of(of_regions(train)), k=2)
    batch = of_regions(torch.tensor([[[0.0, 0.0], [1.0, 0.0]], [[0.0, 0.0], [0.0, 0.0]]]))
    assert csd.score(batch).tolist() == [-1.0, -4.0]


def test_one_search_serves_every_k() -> None:
    generator = torch.Generator().manual_seed(0)
    train, batch = (of_regions(torch.rand(n, 6, 8, generator=generator)) for n in (40, 20))
    reference = reference_of(train)
    detectors = [CSD.fit(reference, k=k) for k in (10, 1, 200, 999)]
    assert [each.k for each in detectors] == [10, 1, 200, 240]
    apart = torch.stack([each.score(batch).double() for each in detectors], dim=1)
    torch.testing.assert_close(score_many(detectors, batch), apart)


def test_k_must_be_positive() -> None:
    reference = reference_of(of_regions(torch.rand(4, 6, 8)))
    with pytest.raises(InvalidInputError, match=r"^csd:k must be at least 1, not 0$"):
        parse_method("csd:k=0").fit(reference)


def test_no_training_image_is_a_refusal() -> None:
    reference = Reference(
        Head(torch.eye(2), torch.zeros(2)),
        load_probed=lambda part, probe, rows: ActivationSet([]),
    )
    with pytest.raises(UndefinedMethodError):
        CSD.fit(reference)


@pytest.mark.parametrize(("height", "width"), [(2, 2), (4, 4), (7, 7), (5, 8)])
def test_bounds_are_those_that_regions_are_pooled_over(height: int, width: int) -> None:
    maps = torch.randn(3, 4, height, width, generator=torch.Generator().manual_seed(1))
    regions = pooled(maps)
    for at in range(len(REGIONS)):
        top, bottom, left, right = region_bounds(at, height, width)
        torch.testing.assert_close(
            regions[:, at], maps[:, :, top:bottom, left:right].mean(dim=(2, 3))
        )


def test_the_region_that_gives_the_score_and_its_neighbours() -> None:
    generator = torch.Generator().manual_seed(2)
    train = torch.randn(5, 6, 8, generator=generator)
    query = torch.randn(2, 6, 8, generator=generator)
    query[0, 3] = 2 * train[4, 1]  # the bottom right shows what training image 4 has top right
    query[1] = 0
    method = CSD.fit(reference_of(of_regions(train)), k=1)
    found = method.matches(of_regions(query), 3)
    assert found.regions.tolist() == [3, -1]
    assert found.rows[0, 0] == 4 * 6 + 1
    assert found.distances[0, 0] == pytest.approx(0, abs=1e-12)
    units = torch.nn.functional.normalize(train.flatten(0, 1), dim=1)
    own = torch.nn.functional.normalize(query[0, 3], dim=0)
    distances = (units - own).square().sum(dim=1)
    expected = distances.sort()
    torch.testing.assert_close(found.distances[0], expected.values[:3], atol=1e-6, rtol=1e-5)
    assert found.rows[0].tolist() == expected.indices[:3].tolist()
    assert -found.distances[0, 0] == pytest.approx(float(method.score(of_regions(query))[0]))
