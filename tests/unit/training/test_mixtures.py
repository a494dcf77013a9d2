"""Mixed images and labels, and holes: by hand, and with torchvision's distributions."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import Tensor
from torchvision.transforms import v2

from oodcli.errors import InvalidInputError
from oodcli.training.augment import augmented
from oodcli.training.augmentations.cutout import cutout
from oodcli.training.augmentations.mixtures import (
    Labels,
    View,
    box_of,
    cutmix,
    mixed,
    mixup,
)
from oodcli.training.objectives.base import StepOutput
from oodcli.training.objectives.registry import OBJECTIVES, parse_objective
from oodcli.training.recipes import Recipe

RECIPE = Recipe("test", "here", epochs=1, augmentation=())


def view(n: int = 6, side: int = 8) -> View:
    """Return random images of three classes."""
    generator = torch.Generator().manual_seed(0)
    pixels = torch.randint(0, 256, (n, 3, side, side), dtype=torch.uint8, generator=generator)
    return View(pixels, torch.arange(n) % 3)


def plain(logits: Tensor) -> StepOutput:
    """Return the output of a network that gives these logits."""
    return StepOutput(logits, torch.empty(0), torch.empty(0))


def drawn(recipe: Recipe, count: int) -> list[list[View]]:
    """Mix the same images many times."""
    random = np.random.default_rng(0)
    return [mixed(view(), random, recipe) for _ in range(count)]


def distance(ours: list[float], theirs: list[float]) -> float:
    """Return the largest distance of two distribution functions (Kolmogorov-Smirnov)."""
    from scipy.stats import ks_2samp

    return float(ks_2samp(ours, theirs).statistic)


def test_mixup_by_hand() -> None:
    pixels = torch.tensor([10, 20, 40], dtype=torch.uint8).view(3, 1, 1, 1).expand(3, 3, 1, 1)
    found = mixup(View(pixels, torch.tensor([0, 1, 2])), 0.75)
    assert found.pixels[:, 0, 0, 0].tolist() == [17.5, 17.5, 35.0]  # the partner of 10 is 40
    wanted = [[0.75, 0, 0.25], [0.25, 0.75, 0], [0, 0.25, 0.75]]
    assert Labels.of([found]).targets(3).tolist() == wanted
    turned = mixup(View(pixels, torch.tensor([0, 1, 2])), 0.25)
    assert turned.labels.tolist() == [2, 0, 1]  # the class with the larger weight comes first
    assert Labels.of([turned]).targets(3)[0].tolist() == [0.25, 0, 0.75]


@pytest.mark.parametrize("share", [0.0, 0.3, 0.5, 0.9, 1.0])
def test_mixup_and_its_labels_are_those_of_torchvision(share: float) -> None:
    theirs = v2.MixUp(num_classes=3)
    params = {"lam": share, "labels": view().labels, "batch_size": 6}
    wanted = theirs.transform(view().pixels.float(), params)
    found = mixup(view(), share)
    torch.testing.assert_close(found.pixels, wanted, atol=1e-4, rtol=0)
    torch.testing.assert_close(
        Labels.of([found]).targets(3), theirs.transform(params["labels"], params)
    )


@pytest.mark.parametrize(("share", "centre"), [(0.3, (2, 5)), (0.9, (0, 0)), (0.0, (4, 4))])
def test_cutmix_and_its_labels_are_those_of_torchvision(
    share: float, centre: tuple[int, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    theirs, of = v2.CutMix(num_classes=3), view()
    numbers = iter([torch.tensor([centre[1]]), torch.tensor([centre[0]])])
    with monkeypatch.context() as patch:
        patch.setattr(torch, "randint", lambda *_, **__: next(numbers))
        patch.setattr(theirs._dist, "sample", lambda _: torch.tensor(share))
        params = {**theirs.make_params([of.pixels]), "labels": of.labels, "batch_size": 6}
    found = cutmix(of, box_of(share, centre, (8, 8)))
    assert torch.equal(found.pixels, theirs.transform(of.pixels, params))
    torch.testing.assert_close(
        Labels.of([found]).targets(3), theirs.transform(params["labels"], params)
    )


def test_weights_are_distributed_as_those_of_torchvision() -> None:
    """Two samples of 2,000 differ by more than 1.95 sqrt(2 / n) once in a thousand."""
    torch.manual_seed(0)
    limit = 1.95 * (2 / 2000) ** 0.5
    for alpha in (0.2, 20.0):
        recipe = replace(RECIPE, augmentation=("mixup",), mixup_alpha=alpha)
        ours = [float(Labels.of(each).targets(3)[0, 0]) for each in drawn(recipe, 2000)]
        assert np.mean(ours) == pytest.approx(0.5, abs=0.03)
        assert np.var(ours) == pytest.approx(1 / (4 * (2 * alpha + 1)), rel=0.1)  # of Beta
        theirs = v2.MixUp(alpha=alpha, num_classes=3)
        assert distance(ours, [theirs.make_params([])["lam"] for _ in range(2000)]) < limit
    recipe = replace(RECIPE, augmentation=("cutmix",))
    areas = [float(Labels.of(each).targets(3)[0, 0]) for each in drawn(recipe, 2000)]
    published = v2.CutMix(num_classes=3)
    wanted = [published.make_params([view().pixels])["lam_adjusted"] for _ in range(2000)]
    assert distance(areas, wanted) < limit


def test_regmixup_trains_on_images_and_their_mixtures() -> None:
    """Half the loss of the images, and half that of mixtures, as in the code of the authors.

    That is ``l CE([z; z'], [y; y]) + (1 - l) CE([z; z'], [y; y'])``, where the terms of ``z`` add
    up to one.
    """
    recipe = replace(RECIPE, augmentation=("regmixup",))
    own, mixture = mixed(view(), np.random.default_rng(3), recipe)
    assert own.partners is None
    assert torch.equal(own.pixels, view().pixels)
    assert torch.cat([own.pixels, mixture.pixels]).dtype == torch.float32
    targets = Labels.of([own, mixture]).targets(3)
    assert torch.equal(targets[:6], torch.eye(3)[view().labels])
    logits = torch.randn(12, 3, generator=torch.Generator().manual_seed(0))
    log_p = logits.log_softmax(dim=1)
    share, y, other = mixture.share, mixture.labels, mixture.partners
    assert other is not None
    rows = torch.arange(6)
    clean = -log_p[rows, view().labels].mean()
    mix = -(share * log_p[6 + rows, y] + (1 - share) * log_p[6 + rows, other]).mean()
    found = parse_objective("cross-entropy").objective.loss(plain(logits), targets)
    torch.testing.assert_close(found, (clean + mix) / 2)


SOFT = [name for name in OBJECTIVES if parse_objective(name).objective.accepts_soft_labels]


def test_objectives_with_one_loss_per_class_accept_soft_labels() -> None:
    assert {"cross-entropy", "logitnorm", "t2fnorm", "ish"} <= set(SOFT)
    assert not {"supcon", "alpa"} & set(SOFT)


@pytest.mark.parametrize("name", ["cross-entropy", "logitnorm", "t2fnorm", "ish"])
def test_the_loss_of_soft_labels_is_the_mixture_of_the_losses_with_its_gradient(name: str) -> None:
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(6, 3, generator=generator, dtype=torch.float64, requires_grad=True)
    mixture = mixup(view(), 0.7)
    assert mixture.partners is not None
    loss = parse_objective(name).objective.loss
    soft = loss(plain(logits), Labels.of([mixture]).targets(3))
    paired = 0.7 * loss(plain(logits), mixture.labels)
    paired = paired + 0.3 * loss(plain(logits), mixture.partners)
    torch.testing.assert_close(soft, paired)
    (one,), (other,) = (torch.autograd.grad(each, logits) for each in (soft, paired))
    torch.testing.assert_close(one, other)
    if name == "cross-entropy":
        wanted = (logits.softmax(1) - Labels.of([mixture]).targets(3)) / 6
        torch.testing.assert_close(one, wanted.detach(), check_dtype=False, atol=1e-6, rtol=0)


@pytest.mark.parametrize("word", ["mixup", "cutmix", "regmixup"])
def test_objectives_that_need_one_class_per_image_are_refused(word: str) -> None:
    from oodcli.training.augmentations.mixtures import check_combination

    recipe = replace(RECIPE, augmentation=("flip", "crop", word))
    check_combination(recipe, "cross-entropy", parse_objective("cross-entropy").objective)
    with pytest.raises(InvalidInputError, match=f"^{word} mixes the labels.*supcon.*=flip,crop$"):
        check_combination(recipe, "supcon", parse_objective("supcon").objective)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("mixup", "flip"), "flip acts before mixup"),
        (("cutout", "crop"), "crop acts before cutout"),
        (("cutmix", "cutout"), "cutout acts before cutmix"),
        (("mixup", "cutmix"), "use mixup or cutmix$"),
    ],
)
def test_words_in_an_impossible_order_are_refused(words: tuple[str, ...], message: str) -> None:
    with pytest.raises(InvalidInputError, match=message):
        replace(RECIPE, augmentation=words)


def holes(pixels: Tensor, *, size: int, seed: int, number: int = 1) -> Tensor:
    """Return where cutout covers images, bool ``(n, h, w)``."""
    found = cutout(
        pixels,
        torch.Generator().manual_seed(seed),
        size=size,
        holes=number,
        colour=(0.5, 0.25, 0.75),
    )
    covered = found[:, 0] == 127.5
    assert torch.equal(found.permute(0, 2, 3, 1)[covered][:, 1].unique(), torch.tensor([63.75]))
    kept = ~covered[:, None].expand_as(found)
    assert torch.equal(found[kept], pixels.float()[kept])
    return covered


def test_cutout_covers_squares_around_every_pixel_equally_often() -> None:
    pixels = torch.zeros(20_000, 3, 5, 6, dtype=torch.uint8)
    covered = holes(pixels, size=4, seed=0)
    possible = {}
    for y in range(5):
        for x in range(6):
            mask = np.zeros((5, 6), dtype=bool)
            mask[max(y - 2, 0) : y + 2, max(x - 2, 0) : x + 2] = True
            possible[mask.tobytes()] = possible.get(mask.tobytes(), 0) + 1
    counts = dict.fromkeys(possible, 0)
    for mask in covered.numpy():
        counts[mask.tobytes()] += 1  # a KeyError would be an impossible hole
    expected = {key: number * 20_000 / 30 for key, number in possible.items()}
    chi_square = sum((counts[key] - wanted) ** 2 / wanted for key, wanted in expected.items())
    from scipy.stats import chi2

    assert chi_square < chi2.ppf(0.999, len(possible) - 1)


def test_holes_are_zero_after_normalisation_and_may_overlap() -> None:
    recipe = replace(RECIPE, augmentation=("cutout",), cutout_size=4, mean=(0.49, 0.48, 0.45))
    found = augmented(view(64).pixels, torch.Generator().manual_seed(0), recipe)
    mean = torch.tensor(recipe.mean).view(1, 3, 1, 1)
    normalised = (found / 255 - mean) / 0.25
    zero = (normalised.abs() < 1e-6).all(dim=1).float().mean(dim=(1, 2)) * 64
    assert float(zero.max()) == 16.0
    assert float(zero.min()) == 4.0  # in a corner
    two = holes(view(64).pixels.clamp(max=126), size=4, seed=0, number=2).sum(dim=(1, 2))
    assert 16 < int(two.max()) <= 32
    assert int(two.min()) < 16
