"""Outliers in training, and every objective that is trained with them, by hand."""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import Tensor

from oodcli.compute.processes import Processes
from oodcli.data.views import NOISE_SD, NOISE_WIDTH, View
from oodcli.errors import InvalidInputError
from oodcli.training.loop import LabelledPixels
from oodcli.training.objectives.base import OutlierObjective, StepOutput
from oodcli.training.objectives.mixoe import beta_sample, box
from oodcli.training.objectives.registry import OBJECTIVES, parse_objective
from oodcli.training.outliers import (
    MADE,
    MadeOutliers,
    OutlierShare,
    SetOutliers,
    cycled_rows,
    made,
)
from oodcli.training.recipes import OUTLIER_OBJECTIVES, Recipe

NONE = torch.empty(0)
RECIPE = Recipe("test", "here", epochs=2, batch_size=4, augmentation=())
CPU = torch.device("cpu")
# Objective, ID loss and outlier loss of the logits (0, log 3) and the features (3, 4); class 1.
UNIFORM = -(math.log(1 / 4) + math.log(3 / 4)) / 2
ENERGY = -math.log(4)
BY_HAND = {
    "oe": (math.log(4 / 3), 0.5 * UNIFORM),
    "oe:weight=2": (math.log(4 / 3), 2 * UNIFORM),
    "energy-regularised:inner=-3,outer=-1": (
        math.log(4 / 3) + 0.1 * (ENERGY + 3) ** 2,
        0.1 * (-1 - ENERGY) ** 2,
    ),
    "energy-regularised:inner=-1.2,outer=-1.1": (  # low enough; not high enough
        math.log(4 / 3),
        0.1 * (-1.1 - ENERGY) ** 2,
    ),
    "entropic": (math.log(4 / 3), UNIFORM),
    "objectosphere": (math.log(4 / 3), UNIFORM + 25),
    "objectosphere:length=7,weight=0.5": (math.log(4 / 3) + 0.5 * 4, UNIFORM + 12.5),
    "background": (math.log(4 / 3 + math.exp(2) / 3), math.log(4 + math.exp(2)) - 2),  # b = 2
    "mixoe": (math.log(4 / 3), UNIFORM),
    "mixoe:weight=3": (math.log(4 / 3), 3 * UNIFORM),
}


def output(text: str, logits: Tensor) -> StepOutput:
    extra = [[2.0]] if text == "background" else [[3.0, 4.0]]
    return StepOutput(logits, NONE, NONE, (torch.tensor(extra).expand(len(logits), -1),))


def objective(text: str) -> OutlierObjective:
    found = parse_objective(text).objective
    assert isinstance(found, OutlierObjective)
    return found


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@pytest.mark.parametrize("text", BY_HAND)
def test_losses_by_hand(text: str) -> None:
    logits = torch.tensor([[0.0, math.log(3.0)]])
    inner, outer = BY_HAND[text]
    loss = objective(text).loss(output(text, logits), torch.tensor([1]))
    assert float(loss) == pytest.approx(inner, rel=1e-5)
    targets = OutlierShare(torch.zeros(1, 3, 2, 2), None, None, 1, 1).targets(2)
    assert float(objective(text).outlier_loss(output(text, logits), targets)) == pytest.approx(
        outer, rel=1e-5
    )


def test_every_objective_with_outliers_is_worked_out_by_hand() -> None:
    names = [name for name, e in OBJECTIVES.items() if issubclass(e.type, OutlierObjective)]
    assert {text.partition(":")[0] for text in BY_HAND} == set(names)
    assert tuple(names) == OUTLIER_OBJECTIVES


@pytest.mark.parametrize("text", BY_HAND)
def test_gradients_of_outliers_are_those_of_differences(text: str) -> None:
    of = objective(text)
    logits = torch.randn(3, 4, generator=generator(), requires_grad=True)
    width = 1 if text == "background" else 2
    features = torch.randn(3, width, generator=generator(1), requires_grad=True)
    targets = torch.full((3, 4), 0.25)

    def loss(z: Tensor, f: Tensor) -> Tensor:
        return of.outlier_loss(StepOutput(z, NONE, NONE, (f,)), targets)

    loss(logits, features).backward()
    for values, at in ((logits, 0), (features, 1)):
        gradient = torch.zeros_like(values) if values.grad is None else values.grad
        step = torch.randn(values.shape, generator=generator(2)) * 1e-2
        ends = []
        for sign in (1, -1):
            moved = [logits.detach(), features.detach()]
            moved[at] = moved[at] + sign * step
            ends.append(float(loss(moved[0], moved[1])))
        assert float((gradient * step).sum()) == pytest.approx(
            (ends[0] - ends[1]) / 2, rel=2e-2, abs=1e-5
        )
    assert float(logits.grad.abs().max()) > 0 if logits.grad is not None else False


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("oe:weight=0", "oe:weight must be"),
        ("energy-regularised:inner=-1,outer=-2", "inner=-1 must be below outer=-2"),
        ("objectosphere:length=-1", "objectosphere:length must be"),
        ("mixoe:alpha=0", "mixoe:alpha must be"),
        ("mixoe:mix=other", "mixoe:mix"),
    ],
)
def test_impossible_parameters_are_refused(text: str, message: str) -> None:
    with pytest.raises(InvalidInputError, match=message):
        parse_objective(text)


def test_targets_of_mixed_outliers() -> None:
    share = OutlierShare(
        torch.zeros(2, 3, 2, 2), torch.tensor([0.0, 0.75]), torch.tensor([1, 2]), 2, 2
    )
    wanted = [[0.25, 0.25, 0.25, 0.25], [0.0625, 0.0625, 0.8125, 0.0625]]
    torch.testing.assert_close(share.targets(4), torch.tensor(wanted))


def images(n: int = 6, side: int = 7) -> Tensor:
    return torch.randint(0, 256, (n, 3, side, side), dtype=torch.uint8, generator=generator(3))


def test_jigsaws_shuffle_tiles_and_leave_the_border() -> None:
    whole, at = images(), torch.arange(6)
    shuffled = made("jigsaw", whole, at, generator())
    assert torch.equal(shuffled[:, :, 6], whole[:, :, 6])
    assert torch.equal(shuffled[:, :, :, 6], whole[:, :, :, 6])

    def tiles(pixels: Tensor) -> list[list[list[int]]]:
        cut = pixels[:, :, :6, :6].reshape(6, 3, 3, 2, 3, 2).permute(0, 2, 4, 1, 3, 5)
        return [sorted(each) for each in cut.reshape(6, 9, 12).tolist()]

    assert tiles(shuffled) == tiles(whole)
    assert not torch.equal(shuffled, whole)


def test_a_jigsaw_of_one_order_is_that_of_normratio(monkeypatch: pytest.MonkeyPatch) -> None:
    """Both are filled by one function; here NumPy's orders are given to the other."""
    whole = images(1, 6)
    by_row = View("jigsaw", seed=5).apply(whole.numpy(), np.array([8]))
    drawn = torch.from_numpy(np.random.default_rng((5, 8)).random((1, 9)))
    monkeypatch.setattr(torch, "rand", lambda *_, **__: drawn)
    assert np.array_equal(made("jigsaw", whole, torch.tensor([0]), generator()).numpy(), by_row)
    by_row = View("pixel-shuffle", seed=5).apply(whole.numpy(), np.array([8]))
    drawn = torch.from_numpy(np.random.default_rng((5, 8)).random((1, 36)))
    monkeypatch.setattr(torch, "rand", lambda *_, **__: drawn)
    found = made("pixel-shuffle", whole, torch.tensor([0]), generator())
    assert np.array_equal(found.numpy(), by_row)


def test_pixels_are_shuffled_with_their_channels_together() -> None:
    whole = images()
    shuffled = made("pixel-shuffle", whole, torch.arange(6), generator())
    for before, after in zip(whole, shuffled, strict=True):
        assert sorted(before.flatten(1).T.tolist()) == sorted(after.flatten(1).T.tolist())
    assert not torch.equal(shuffled[0], shuffled[1])


def test_rotations_are_quarter_turns_and_none_is_none() -> None:
    whole = images(60)
    turned = made("rotation", whole, torch.arange(60), generator())
    turns = [
        next(k for k in range(4) if torch.equal(after, before.rot90(k, (1, 2))))
        for before, after in zip(whole, turned, strict=True)
    ]
    assert set(turns) == {1, 2, 3}
    wide = whole[:, :, :5]
    assert torch.equal(made("rotation", wide, torch.arange(60), generator()), wide.flip((2, 3)))


def test_noise_is_that_of_recommend() -> None:
    grey = torch.full((200, 3, 8, 8), 128, dtype=torch.uint8)
    noise = made("noise", grey, torch.arange(200), generator()).float() - 128
    spread = noise.flatten(1).std(dim=1)
    peak = noise.flatten(1).abs().amax(dim=1)
    normal = peak > NOISE_WIDTH
    assert 60 < int(normal.sum()) < 140
    assert float(spread[normal].mean()) == pytest.approx(NOISE_SD, rel=0.03)
    assert float(spread[~normal].mean()) == pytest.approx(NOISE_WIDTH / math.sqrt(3), rel=0.03)


def test_patches_keep_their_place_and_come_from_several_images() -> None:
    numbers = torch.arange(40, dtype=torch.uint8)[:, None, None, None].expand(40, 3, 6, 6)
    rows = torch.arange(6, dtype=torch.uint8)[:, None] * 40
    whole = (numbers + rows).contiguous()
    mixed = made("patch-mix", whole, torch.arange(40), generator())
    origins = (mixed - rows).unfold(2, 2, 2).unfold(3, 2, 2).flatten(4)  # (40, 3, 3, 3, 4)
    assert int(origins.max()) < 40
    assert torch.equal(origins.amin(dim=(1, 4)), origins.amax(dim=(1, 4)))
    assert min(len(set(each.flatten().tolist())) for each in origins[:, 0, :, :, 0]) > 3


def test_every_kind_of_outliers_is_made_on_its_own() -> None:
    whole = images(5, 9)
    for kind in MADE:
        first = made(kind, whole, torch.arange(12) % 5, generator())
        assert first.shape == (12, 3, 9, 9)
        assert first.dtype == torch.uint8
        assert torch.equal(first, made(kind, whole, torch.arange(12) % 5, generator())), kind
        if kind != "rotation":
            assert not torch.equal(first[0], first[5]), kind  # of the same image


def test_a_set_is_passed_through_in_new_orders() -> None:
    rows = list(cycled_rows(5, 0, 23, seed=1))
    passes = [rows[at : at + 5] for at in range(0, 20, 5)]
    assert all(sorted(each) == [0, 1, 2, 3, 4] for each in passes)
    assert len({tuple(each) for each in passes}) > 1
    parts = [list(cycled_rows(5, a, b, seed=1)) for a, b in ((0, 3), (3, 11), (11, 23))]
    assert [*parts[0], *parts[1], *parts[2]] == rows
    assert list(cycled_rows(5, 0, 23, seed=2)) != rows


def test_each_process_gets_its_share_of_the_outliers_of_a_step() -> None:
    pixels = torch.arange(7, dtype=torch.uint8)[:, None, None, None].expand(7, 3, 2, 2)
    of = SetOutliers(LabelledPixels(pixels, torch.zeros(7, dtype=torch.int64)), RECIPE, seed=0)
    feeds = [of.epoch(2, [4, 4, 2], device=CPU, processes=Processes(r, 2)) for r in (0, 1)]
    alone = of.epoch(2, [4, 4, 2], device=CPU, processes=Processes())
    for size in (4, 4, 2):
        whole = alone.next(NONE)
        assert len(whole) == size
        for feed in feeds:
            assert torch.equal(feed.next(NONE), whole)
        shares = [feed.share(size, size).tolist() for feed in feeds]
        assert shares[0] + shares[1] == list(range(size))


def test_made_outliers_are_computed_where_their_image_is() -> None:
    recipe = replace(RECIPE, outlier_batch_size=9)
    of = MadeOutliers("jigsaw", recipe, seed=0)
    shares = [
        of.epoch(1, [4], device=CPU, processes=Processes(r, 2)).share(9, 4).tolist() for r in (0, 1)
    ]
    assert shares == [[0, 1, 4, 5, 8], [2, 3, 6, 7]]
    assert len(of.epoch(1, [4], device=CPU, processes=Processes()).next(images(4))) == 9


@pytest.mark.parametrize(("alpha", "beta"), [(0.1, 1.0), (2.0, 5.0)])
def test_beta_samples_have_the_mean_and_the_spread_of_their_distribution(
    alpha: float, beta: float
) -> None:
    source = generator()
    drawn = torch.stack([beta_sample(alpha, beta, source) for _ in range(4000)])
    total = alpha + beta
    assert float(drawn.mean()) == pytest.approx(alpha / total, abs=0.02)
    variance = alpha * beta / (total**2 * (total + 1))
    assert float(drawn.var()) == pytest.approx(variance, rel=0.1)


def test_boxes_are_clipped_at_the_border() -> None:
    areas = [box(torch.tensor(0.25), 8, 6, generator(seed)) for seed in range(200)]
    sizes = [(int(each.any(1).sum()), int(each.any(0).sum())) for each in areas]
    # Half of 4 rows and of 3 columns, rounded down, on both sides of the centre.
    assert max(size[0] for size in sizes) == 4
    assert max(size[1] for size in sizes) == 2
    assert min(size[0] for size in sizes) == 2
    assert all(int(each.sum()) == h * w for each, (h, w) in zip(areas, sizes, strict=True))


def test_cutmix_pastes_the_outlier_and_counts_what_is_left() -> None:
    ids = torch.full((3, 3, 8, 8), 10, dtype=torch.uint8)
    others = torch.full((3, 3, 8, 8), 200, dtype=torch.uint8)
    mixed, shares = objective("mixoe:alpha=2,beta=2").shown(ids, others, generator(1))
    assert shares is not None
    left = (mixed == 10).float().mean(dim=(1, 2, 3))
    torch.testing.assert_close(shares, left)
    assert 0 < float(left[0]) < 1
    assert set(mixed.unique().tolist()) == {10, 200}


def test_mixup_is_the_weighted_sum_and_its_weight() -> None:
    ids = torch.full((3, 3, 4, 4), 10, dtype=torch.uint8)
    others = torch.full((3, 3, 4, 4), 210, dtype=torch.uint8)
    mixed, shares = objective("mixoe:mix=mixup,alpha=2,beta=2").shown(ids, others, generator(1))
    assert shares is not None
    torch.testing.assert_close(mixed[:, 0, 0, 0], 10 * shares + 210 * (1 - shares))
