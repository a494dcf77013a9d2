"""RankFeat."""

import pytest
import torch

from oodcli.activations import Reference
from oodcli.methods.energy import Energy
from oodcli.methods.rankfeat import RankFeat, RankOneRemoved, without_rank_one
from tests.support.probing import Small, activations, pictures


def test_removes_the_largest_singular_component_by_hand() -> None:
    # diag(3, 2) has the singular values 3 and 2.
    maps = torch.tensor([[[[3.0, 0.0]], [[0.0, 2.0]]]])
    wanted = torch.tensor([[[[0.0, 0.0]], [[0.0, 2.0]]]])
    torch.testing.assert_close(without_rank_one(maps), wanted)


@pytest.mark.parametrize("shape", [(3, 5, 4, 4), (3, 20, 2, 2), (2, 6, 1, 1)])
def test_agrees_with_the_full_decomposition(shape: tuple[int, int, int, int]) -> None:
    maps = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    before = maps.clone()
    u, s, vh = torch.linalg.svd(maps.flatten(2), full_matrices=False)
    term = s[:, :1, None] * u[:, :, :1] @ vh[:, :1]
    wanted = (maps.flatten(2) - term).reshape(shape)
    torch.testing.assert_close(without_rank_one(maps), wanted, rtol=1e-4, atol=1e-4)
    assert torch.equal(maps, before)


def test_a_map_of_zeros_stays_and_one_of_tiny_or_huge_values_is_no_trouble() -> None:
    assert not without_rank_one(torch.zeros(1, 2, 2, 2)).any()
    maps = torch.rand(1, 3, 2, 2, generator=torch.Generator().manual_seed(1))
    wanted = without_rank_one(maps)
    for factor in (1e-12, 1e12):
        torch.testing.assert_close(without_rank_one(maps * factor) / factor, wanted)


def test_equal_singular_values_have_a_value_that_does_not_depend_on_a_choice() -> None:
    # Removing either would be arbitrary; their mean is what is left.
    torch.testing.assert_close(
        without_rank_one(torch.eye(2)[None, :, None]), torch.eye(2)[None, :, None] / 2
    )


def test_works_in_half_precision() -> None:
    maps = torch.rand(2, 3, 4, 4, generator=torch.Generator().manual_seed(2)).bfloat16()
    with torch.autocast("cpu", torch.bfloat16):
        left = without_rank_one(maps)
    assert left.dtype == torch.bfloat16
    wanted = without_rank_one(maps.float())
    torch.testing.assert_close(left.float(), wanted, rtol=1e-2, atol=1e-2)


def test_averages_the_logits_of_the_last_two_stages(reference: Reference) -> None:
    network, images = Small(), pictures(5, seed=1)
    shaper = RankFeat.fit(reference)
    logits = shaper.logits(activations(network, images, *shaper.probes))
    module = network.module
    middle = module.middle(module.stem(images))  # the end of the first stage
    assert shaper.probes[0].passes == 2.0
    from_middle = module.fc(module.pool(module.last(without_rank_one(middle))))
    from_last = module.fc(module.pool(without_rank_one(module.last(middle))))
    torch.testing.assert_close(logits, (from_middle + from_last).detach() / 2)


def test_agrees_with_another_implementation_on_a_single_stage(reference: Reference) -> None:
    detectors = pytest.importorskip("pytorch_ood.detector")
    network, images = Small(), pictures(5, seed=2)
    network.blocks = {"c": "last"}
    module, shaper = network.module, RankFeat.fit(reference)
    batch = activations(network, images, *shaper.probes)
    other = detectors.RankFeat(
        backbone=lambda each: module.last(module.middle(module.stem(each))),
        head=lambda maps: module.fc(module.pool(maps)),
    )
    scores = Energy.fit(reference).score_logits(shaper.logits(batch))
    with torch.no_grad():
        torch.testing.assert_close(scores, -other.predict(images), rtol=1e-4, atol=1e-4)


def test_an_image_does_not_depend_on_its_neighbours() -> None:
    network, images, probe = Small(), pictures(7, seed=3), RankOneRemoved()
    whole = activations(network, images, probe).extra[probe.key]
    parts = activations(network, images.flip(0), probe, batch_size=2).extra[probe.key]
    torch.testing.assert_close(parts.flip(0), whole, rtol=1e-4, atol=1e-5)


def test_values_that_are_not_numbers_stay_with_their_image() -> None:
    network, images, probe = Small(), pictures(3, seed=4), RankOneRemoved()
    images[1] = torch.nan
    logits = activations(network, images, probe).extra[probe.key]
    assert logits.isnan().all(dim=1).tolist() == [False, True, False]
    assert logits[[0, 2]].isfinite().all()
