"""The training loop: it learns, and cut off training ends as if it had not been."""

from contextlib import nullcontext
from dataclasses import replace

import pytest
import torch
from torch import nn

from oodcli.progress import Silent
from oodcli.training.loop import LabelledPixels, NotFiniteError, Trainer
from oodcli.training.recipes import Recipe
from oodcli.training.registry import OBJECTIVES, parse_objective
from oodcli.training.student import LastBlock

RECIPE = Recipe("test", "here", epochs=4, batch_size=16, lr=0.05, crop_padding=1)


def images(n: int = 48) -> LabelledPixels:
    """Make two classes that differ by the half of the image that is bright."""
    generator = torch.Generator().manual_seed(0)
    pixels = torch.randint(0, 60, (n, 3, 8, 8), dtype=torch.uint8, generator=generator)
    labels = torch.arange(n) % 2
    pixels[labels == 0, :, :4] += 150
    pixels[labels == 1, :, 4:] += 150
    return LabelledPixels(pixels, labels)


def network() -> nn.Module:
    """Make a tiny network with everything that has a state: batch norm and dropout."""
    torch.manual_seed(3)
    return nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1),
        nn.BatchNorm2d(8),
        nn.ReLU(),
        nn.AdaptiveAvgPool2d(2),
        nn.Flatten(),
        nn.Dropout(0.3),
        nn.Linear(32, 2),
    )


def trainer(
    recipe: Recipe = RECIPE, *, seed: int = 0, amp: bool = False, objective: str = "cross-entropy"
) -> Trainer:
    """Make a fresh trainer."""
    module, chosen = network(), parse_objective(objective).objective
    chosen.attach(module, "6")
    return Trainer(
        module,
        recipe,
        seed=seed,
        device=torch.device("cpu"),
        amp=amp,
        objective=chosen,
        head="6",
        last_block=LastBlock("2", 8),
    )


def run(of: Trainer, *, done: int = 0, epochs: int | None = None) -> list[float]:
    """Train some epochs and return their losses."""
    losses = []
    with Silent().task("training", total=None, unit="images") as task:
        for stats in of.epochs(images(), images(), done=done, task=task):
            losses.append(stats.loss)
            if epochs is not None and len(losses) == epochs:
                break
    return losses


def test_learns_what_can_be_learnt() -> None:
    of = trainer(RECIPE.changed(epochs=12))
    losses = run(of)
    assert losses[-1] < 0.5 * losses[0]
    assert of.accuracy(images()) > 0.95


def test_goes_on_after_a_cut_as_if_there_had_been_none() -> None:
    whole = trainer()
    losses = run(whole)
    first = trainer()
    begun = run(first, epochs=2)
    second = trainer()
    second.load_state(first.state())
    assert begun + run(second, done=2) == losses
    for name, tensor in whole.state().items():
        assert torch.equal(tensor, second.state()[name]), name


@pytest.mark.parametrize("objective", [*OBJECTIVES, "alpa:base=none", "alpa:base=cross-entropy"])
def test_every_objective_goes_on_after_a_cut_and_learns(objective: str) -> None:
    recipe = RECIPE.changed(epochs=5)
    whole = trainer(recipe, objective=objective)
    before = whole.state()
    losses = run(whole)
    first = trainer(recipe, objective=objective)
    begun = run(first, epochs=2)
    second = trainer(recipe, objective=objective)
    second.load_state(first.state())
    assert begun + run(second, done=2) == losses
    assert losses[-1] < losses[0]
    after = whole.state()
    assert after.keys() == second.state().keys()
    for name, tensor in after.items():
        assert torch.equal(tensor, second.state()[name]), name
    trained = parse_objective(objective).objective.trains_last_layer
    assert torch.equal(after["module.6.weight"], before["module.6.weight"]) is not trained
    assert not torch.equal(after["module.0.weight"], before["module.0.weight"])


def test_the_layers_of_an_objective_are_trained_and_are_no_part_of_the_network() -> None:
    of = trainer(objective="alpa")
    before = of.state()
    run(of, epochs=1)
    extras = [name for name in before if name.startswith("extras.")]
    assert len(extras) == 6 + 4
    assert all(not torch.equal(before[name], of.state()[name]) for name in extras)
    assert of.module.state_dict().keys() == network().state_dict().keys()


def test_the_last_layer_may_decay_on_its_own() -> None:
    """Without a gradient to speak of, one step shrinks a weight by rate times decay."""
    recipe = replace(
        RECIPE, epochs=1, lr=1e-6, momentum=0.0, weight_decay=0.0, batch_size=48, milestones=(1.0,)
    )
    of = trainer(replace(recipe, head_weight_decay=1e5))
    before = of.state()
    run(of)
    after = of.state()
    torch.testing.assert_close(
        after["module.6.weight"], 0.9 * before["module.6.weight"], rtol=1e-3, atol=1e-5
    )
    torch.testing.assert_close(
        after["module.0.weight"], before["module.0.weight"], atol=1e-5, rtol=0
    )


def test_features_are_what_the_last_layer_sees() -> None:
    of = trainer()
    run(of, epochs=1)
    features = of.features(images())
    layer = of.module.get_submodule("6")
    right = (layer(features).argmax(dim=1) == images().labels).float().mean()
    assert float(right) == of.accuracy(images())
    of.set_last_layer(torch.zeros(2, 32), torch.tensor([1.0, 0.0]))
    assert of.accuracy(images()) == 0.5


def test_another_seed_trains_otherwise_and_the_same_seed_alike() -> None:
    assert run(trainer(seed=1)) == run(trainer(seed=1))
    assert run(trainer(seed=1)) != run(trainer(seed=2))


def test_a_loss_that_is_not_finite_stops_training_and_names_the_rate() -> None:
    with pytest.raises(
        NotFiniteError, match=r"at step \d in epoch 1; lower the learning"
    ) as raised:
        run(trainer(RECIPE.changed(lr=1e20)))
    assert "\n" not in str(raised.value)
    assert raised.value.epoch == 1
    assert raised.value.step > 1  # the first step is taken with the weights of the start


def test_half_precision_trains_too() -> None:
    losses = run(trainer(RECIPE.changed(epochs=8), amp=True))
    assert losses[-1] < losses[0]


def test_stats_tell_what_happened() -> None:
    told: list[dict[str, str]] = []
    counted = []

    class Task:
        def advance(self, amount: int, /, **fields: str) -> None:
            counted.append(amount)
            if fields:
                told.append(fields)

    with nullcontext(Task()) as task:
        (stats, *_) = list(trainer().epochs(images(), None, done=3, task=task))
    assert stats.epoch == 4
    assert stats.val_accuracy is None
    assert stats.lr == pytest.approx(0.05 * 0.1**2)
    assert 0 <= stats.train_accuracy <= 1
    assert sum(counted) == 48
    assert told[0]["epoch"] == "4/4"
    assert set(stats.to_json()) == {
        "epoch", "loss", "train_accuracy", "val_accuracy", "lr", "seconds", "images_per_s",
    }  # fmt: skip
