"""ASCOOD: its outliers and its loss by hand, and the gradient that the trainer gives it."""

import copy
import math

import pytest
import torch
from torch import Tensor, nn

from oodcli.errors import InvalidInputError
from oodcli.progress import Silent
from oodcli.training.loop import LabelledPixels, Trainer
from oodcli.training.objectives.ascood import ASCOOD
from oodcli.training.objectives.base import StepOutput
from oodcli.training.objectives.registry import parse_objective
from oodcli.training.recipe_choice import recipe_for
from oodcli.training.recipes import Recipe

NONE = torch.empty(0)
STD = torch.tensor([0.5, 0.25, 0.2]).view(1, 3, 1, 1)


def output(logits: Tensor) -> StepOutput:
    return StepOutput(logits, NONE, NONE)


def test_the_loss_by_hand() -> None:
    """Probabilities 1/4 and 3/4: KL(u || p) = log(1/2) - (log(1/4) + log(3/4)) / 2."""
    logits, uniform = torch.tensor([[0.0, math.log(3.0)]]), torch.full((1, 2), 0.5)
    of = ASCOOD(weight=5.0)
    assert float(of.loss(output(logits), torch.tensor([1]))) == pytest.approx(math.log(4 / 3))
    wanted = 5 * (math.log(1 / 2) - (math.log(1 / 4) + math.log(3 / 4)) / 2)
    assert float(of.outlier_loss(output(logits), uniform)) == pytest.approx(wanted, rel=1e-5)
    assert float(of.outlier_loss(output(torch.ones(3, 4)), torch.full((3, 4), 0.25))) == (
        pytest.approx(0, abs=1e-6)
    )


def test_the_gradient_of_the_outlier_loss_is_that_of_differences() -> None:
    of, targets = ASCOOD(weight=2.0), torch.full((3, 4), 0.25)
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(3, 4, generator=generator, requires_grad=True)
    step = torch.randn(3, 4, generator=generator) * 1e-2
    of.outlier_loss(output(logits), targets).backward()
    ends = [float(of.outlier_loss(output(logits.detach() + s * step), targets)) for s in (1, -1)]
    assert float((logits.grad * step).sum()) == pytest.approx((ends[0] - ends[1]) / 2, rel=2e-2)


def test_the_pixels_with_the_largest_gradients_are_shuffled_by_hand() -> None:
    """exp(2) + 2 exp(0) is more than 3 exp(0.8), and negative gradients count least."""
    images = torch.arange(12, dtype=torch.uint8).view(1, 3, 2, 2)
    gradients = torch.zeros(1, 3, 2, 2)
    gradients[0, 0, 0, 1] = 2.0  # sum 9.4
    gradients[0, :, 1, 0] = 0.8  # sum 6.7
    gradients[0, :, 0, 0] = 0.5  # sum 4.9
    gradients[0, :, 1, 1] = -9.0
    of = ASCOOD(share=0.75)
    assert (of.draws(2, 2), of.draws(3, 3)) == (3, 6)
    # By size: pixels 1, 2, 0. The smallest draw is the second, then the third, then the first.
    found = of.synthesised(images, gradients, STD, torch.tensor([[0.9, 0.1, 0.4]]), 1.0)
    assert found.dtype == torch.uint8
    assert found[0, 0].flatten().tolist() == [1, 2, 0, 3]
    assert found[0, 2].flatten().tolist() == [9, 10, 8, 11]
    assert images.flatten().tolist() == list(range(12))
    huge = of.synthesised(images, 1000 * gradients, STD, torch.tensor([[0.9, 0.1, 0.4]]), 1.0)
    assert torch.equal(huge, found)


def test_the_values_with_the_largest_gradients_are_moved_by_hand() -> None:
    """Half of 12 values; a step of normalised values is ``255 std`` times as much in pixels."""
    images = torch.full((1, 3, 2, 2), 100, dtype=torch.uint8)
    gradients = torch.tensor([0.01, -0.1, 0.02, 0.2] * 3).view(1, 3, 2, 2)
    of = ASCOOD(share=0.5, outliers="gradient", alpha_max=30.0, alpha_min=10.0)
    assert of.draws(2, 2) == 0
    for progress, alpha in ((0.25, 25), (1.0, 10)):
        found = of.synthesised(images, gradients, STD, None, progress)
        for channel, std in enumerate((0.5, 0.25, 0.2)):
            wanted = torch.tensor([[100, 100 - 25.5 * std * alpha], [100, 100 + 51 * std * alpha]])
            torch.testing.assert_close(found[0, channel], wanted)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("ascood:weight=0", "ascood:weight must be"),
        ("ascood:sigma=-1", "ascood:sigma must be"),
        ("ascood:share=0", "ascood:share must be above 0 and at most 1, not 0"),
        ("ascood:share=1.5", "not 1.5"),
        ("ascood:alpha_min=11", "alpha_min=11 must not be negative, nor above alpha_max=10"),
        ("ascood:outliers=noise", "ascood:outliers must be shuffle or gradient"),
    ],
)
def test_impossible_parameters_are_refused(text: str, message: str) -> None:
    with pytest.raises(InvalidInputError, match=message):
        parse_objective(text)


def test_the_recipes_are_those_of_published_scripts() -> None:
    ten, hundred = (recipe_for("resnet18", data, "ascood") for data in ("cifar10", "cifar100"))
    assert parse_objective(ten.objective).objective == ASCOOD(1.0, 0.15, 0.5)
    assert ten.head_lr_factor == 1
    assert parse_objective(hundred.objective).objective == ASCOOD(5.0, 0.1, 0.5)
    assert hundred.head_lr_factor == 0.05


class Seen(ASCOOD):
    """ASCOOD that keeps what the trainer gives it."""

    calls: list[tuple[Tensor, Tensor, Tensor | None, float]] = []  # noqa: RUF012

    def synthesised(
        self,
        images: Tensor,
        gradients: Tensor,
        std: Tensor,
        draws: Tensor | None,
        progress: float,
    ) -> Tensor:
        self.calls.append((images, gradients, draws, progress))
        return super().synthesised(images, gradients, std, draws, progress)


def test_the_trainer_gives_the_gradient_of_the_logit_of_the_class_in_evaluation_mode() -> None:
    torch.manual_seed(0)
    module = nn.Sequential(
        nn.Conv2d(3, 6, 3), nn.BatchNorm2d(6), nn.ReLU(), nn.Flatten(), nn.Dropout(0.5),
        nn.Linear(216, 3),
    )  # fmt: skip
    objective = Seen()
    objective.attach(module, "5")
    module[1].running_mean.fill_(0.2)  # unlike the statistics of any batch
    before = copy.deepcopy(module).eval()
    recipe = Recipe("test", "here", epochs=2, batch_size=8, augmentation=(), lr=0.1)
    generator = torch.Generator().manual_seed(1)
    pixels = torch.randint(0, 256, (8, 3, 8, 8), dtype=torch.uint8, generator=generator)
    labels = torch.arange(8) % 3
    trainer = Trainer(
        module, recipe, seed=0, device=torch.device("cpu"), amp=False, objective=objective, head="5"
    )
    objective.calls.clear()
    with Silent().task("", total=None, unit="") as task:
        list(trainer.epochs(LabelledPixels(pixels, labels), None, done=0, task=task))
    images, gradients, draws, progress = objective.calls[0]
    assert [call[3] for call in objective.calls] == [0.5, 1.0] == [progress, 1.0]
    assert draws is not None
    assert draws.shape == (8, 9)
    rows = [int((pixels == each).flatten(1).all(dim=1).nonzero()) for each in images]
    assert sorted(rows) == list(range(8))
    shown = ((images.float() / 255 - 0.5) / 0.5).requires_grad_()
    before(shown).gather(1, labels[rows][:, None]).sum().backward()
    torch.testing.assert_close(gradients, shown.grad)
    assert float(gradients.abs().max()) > 0
    assert module.training
