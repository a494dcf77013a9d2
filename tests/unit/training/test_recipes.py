"""Published schedules."""

import json

import pytest

from oodcli.errors import InvalidInputError
from oodcli.training.recipes import RECIPES, Recipe, recipe_for


@pytest.mark.parametrize(
    ("arch", "epochs", "lr", "falls"),
    [
        ("resnet18", 100, 0.1, (50, 75, 90)),
        ("wrn-28-10", 200, 0.1, (100, 150)),
        ("vgg11", 100, 0.05, (50, 75, 90)),
    ],
)
def test_the_schedules_of_featurenorm(
    arch: str, epochs: int, lr: float, falls: tuple[int, ...]
) -> None:
    recipe = recipe_for(arch, "cifar10")
    assert (recipe.epochs, recipe.batch_size, recipe.lr) == (epochs, 128, lr)
    assert (recipe.momentum, recipe.weight_decay, recipe.nesterov) == (0.9, 5e-4, False)
    assert (recipe.flip, recipe.crop_padding, recipe.mean, recipe.std) == (
        True,
        4,
        (0.5,) * 3,
        (0.5,) * 3,
    )
    seen = [epoch for epoch in range(1, epochs) if _rate(recipe, epoch) < _rate(recipe, epoch - 1)]
    assert tuple(seen) == falls
    assert _rate(recipe, 0) == lr
    assert _rate(recipe, epochs - 1) == pytest.approx(lr * 0.1 ** len(falls))


def _rate(recipe: Recipe, epoch: int) -> float:
    return recipe.learning_rate(epoch, epoch / recipe.epochs)


def test_a_shorter_schedule_keeps_its_proportions() -> None:
    recipe = recipe_for("resnet18", "cifar10").changed(epochs=20)
    assert [e for e in range(1, 20) if _rate(recipe, e) < _rate(recipe, e - 1)] == [10, 15, 18]


def test_other_networks_take_the_schedule_of_their_kin() -> None:
    assert recipe_for("resnet20", "x").name == "featurenorm-resnet18"
    assert recipe_for("wrn-40-2", "x").name == "featurenorm-wrn28-10"
    assert recipe_for("vgg11", "digits").name == "digits"


def test_the_cosine_rises_first_and_ends_near_zero() -> None:
    recipe = RECIPES["digits"]
    rates = [recipe.learning_rate(0, share / 100) for share in range(100)]
    assert rates[0] == 0
    assert max(rates) == pytest.approx(recipe.lr)
    assert rates.index(max(rates)) == 10
    assert rates[-1] < 0.01 * recipe.lr


def test_a_recipe_survives_being_stored() -> None:
    for recipe in RECIPES.values():
        assert Recipe.from_json(json.loads(json.dumps(recipe.to_json()))) == recipe


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"epochs": 0}, "--epochs must be at least 1, not 0"),
        ({"batch_size": -1}, "--batch-size must be at least 1, not -1"),
        ({"lr": 0.0}, "--lr must be a positive number, not 0.0"),
        ({"lr": float("nan")}, "--lr must be a positive number, not nan"),
        ({"weight_decay": -1.0}, "--weight-decay must not be negative, nor infinite: -1.0"),
    ],
)
def test_impossible_changes_are_refused(change: dict[str, float], message: str) -> None:
    with pytest.raises(InvalidInputError) as raised:
        recipe_for("resnet18", "cifar10").changed(**change)
    assert str(raised.value) == message
