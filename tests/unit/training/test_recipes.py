"""Published schedules."""

import json
import math

import pytest

from oodcli.errors import InvalidInputError, UnknownNameError
from oodcli.methods import parse_method
from oodcli.training.objectives.registry import OBJECTIVES, parse_objective
from oodcli.training.recipe_choice import (
    default_architecture,
    is_fine_tuning,
    recipe_for,
    recipe_named,
)
from oodcli.training.recipes import RECIPES, SCORERS, Recipe


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
    assert (recipe.augmentation, recipe.crop_padding, recipe.mean, recipe.std) == (
        ("flip", "crop"),
        4,
        (0.5,) * 3,
        (0.5,) * 3,
    )
    seen = [epoch for epoch in range(1, epochs) if _rate(recipe, epoch) < _rate(recipe, epoch - 1)]
    assert tuple(seen) == falls
    assert _rate(recipe, 0) == lr
    assert _rate(recipe, epochs - 1) == pytest.approx(lr * 0.1 ** len(falls))


def test_openood_and_t2fnorm_fall_along_a_cosine_step_by_step() -> None:
    for name in ("openood-cifar", "t2fnorm-cifar", "logitnorm-cifar"):
        recipe = RECIPES[name]
        assert (recipe.epochs, recipe.batch_size, recipe.lr, recipe.nesterov) == (
            100,
            128,
            0.1,
            True,
        )
        assert (recipe.weight_decay, recipe.momentum, recipe.keep) == (5e-4, 0.9, "best")
        assert recipe.learning_rate(0, 0.0) == 0.1
        assert recipe.learning_rate(50, 0.5) == pytest.approx(1e-6 + (0.1 - 1e-6) / 2)
        assert recipe.learning_rate(99, 1.0) == pytest.approx(1e-6)
        assert recipe.learning_rate(0, 0.001) < 0.1
    assert recipe_named("t2fnorm-cifar", "cifar100").std == (0.2675, 0.2565, 0.2761)
    assert RECIPES["t2fnorm-imagenet"].objective == "t2fnorm:scoring=omitted"
    assert RECIPES["t2fnorm-imagenet"].start == "trained"


def test_objectives_that_are_published_for_fine_tuning_are_known() -> None:
    tuned = {name for name in OBJECTIVES if is_fine_tuning(name)}
    assert tuned == {"ish", "energy-regularised", "mixoe"}
    assert is_fine_tuning("ish:p=0.9")


def test_ish_decays_the_last_layer_less_and_keeps_the_last_checkpoint() -> None:
    recipe = RECIPES["ish-imagenet"]
    assert (recipe.epochs, recipe.batch_size, recipe.lr, recipe.lr_min) == (10, 512, 0.003, 1e-6)
    assert (recipe.weight_decay, recipe.head_weight_decay) == (5e-4, 5e-5)
    assert (recipe.keep, recipe.start, recipe.nesterov) == ("last", "trained", True)
    assert recipe.augmentation == ("resized-crop", "flip")


def test_mode_counts_epochs_from_one_and_warms_up_large_batches() -> None:
    recipe = RECIPES["mode-base"]
    low, high = 0.5e-3, 0.5

    def published(epoch: int) -> float:
        return low + (high - low) * (1 + math.cos(math.pi * epoch / 500)) / 2

    assert recipe.learning_rate(10, 10 / 500) == pytest.approx(published(11))
    assert recipe.learning_rate(10, 10.7 / 500) == pytest.approx(published(11))
    assert recipe.learning_rate(499, 499.5 / 500) == pytest.approx(low)
    assert recipe.learning_rate(0, 0.0) == pytest.approx(0.01)
    middle = 0.01 + (published(10) - 0.01) / 2
    assert recipe.learning_rate(5, 5 / 500) == pytest.approx(middle)
    assert RECIPES["mode-train"].learning_rate(0, 0.0) == pytest.approx(published(1))
    fine = RECIPES["mode-finetune"]
    assert (fine.lr, fine.lr_min, fine.objective, fine.start) == (
        0.1,
        1e-4,
        "alpa:base=none",
        "trained",
    )
    assert recipe_named("mode-base", "cifar100").arch == "resnet34"


def test_every_value_can_be_set() -> None:
    recipe = RECIPES["mode-base"].with_settings(
        [
            "nesterov=true", "schedule=step", "milestones=0.5,0.75", "mean=0.5", "epochs=3",
            "augmentation=flip,crop", "crop-padding=2", "head_weight_decay=0.001", "keep=best",
        ]
    )  # fmt: skip
    assert recipe.nesterov
    assert (recipe.schedule, recipe.milestones, recipe.mean) == ("step", (0.5, 0.75), (0.5,) * 3)
    assert (recipe.augmentation, recipe.crop_padding) == (("flip", "crop"), 2)
    assert (recipe.epochs, recipe.head_weight_decay, recipe.keep) == (3, 0.001, "best")
    assert recipe.with_settings(["head_weight_decay=none"]).head_weight_decay is None


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ("epochs", "--set 'epochs' is not KEY=VALUE"),
        ("epochs=many", "--set epochs must be an integer, not 'many'"),
        ("nesterov=perhaps", "--set nesterov must be true or false, not 'perhaps'"),
        ("schedule=linear", "--set schedule must be step or cosine or warm-cosine, not 'linear'"),
        ("mean=1,2", "--set mean must be three numbers"),
        ("std=0", "--set std must be positive"),
        ("jitter_chance=2", "--set jitter_chance must be from 0 to 1"),
        ("crop_scale=0.5,0.2", "--set crop_scale must be two increasing fractions, such as 0.2,1"),
        ("milestones=50,75", "--set milestones must be fractions of all epochs, from 0 to 1"),
        ("lr_min=-1", "--set lr_min must be finite and not negative: -1.0"),
    ],
)
def test_impossible_settings_are_refused(setting: str, message: str) -> None:
    with pytest.raises(InvalidInputError) as raised:
        RECIPES["openood-cifar"].with_settings([setting])
    assert str(raised.value) == message


def test_unknown_settings_and_recipes_are_refused_with_the_nearest_name() -> None:
    with pytest.raises(UnknownNameError, match="did you mean 'nesterov'"):
        RECIPES["digits"].with_settings(["nestrov=true"])
    with pytest.raises(UnknownNameError, match="did you mean 'flip'"):
        RECIPES["digits"].with_settings(["augmentation=flop"])
    with pytest.raises(UnknownNameError, match="did you mean 'mode-base'"):
        recipe_named("mode-bas")


def test_an_objective_takes_the_recipe_of_its_paper() -> None:
    assert recipe_for("resnet18", "cifar10", "t2fnorm").name == "t2fnorm-cifar"
    assert recipe_for("resnet18", "cifar10", "supcon").name == "mode-base"
    assert recipe_for("resnet18", "cifar10", "ish").name == "featurenorm-resnet18"
    assert recipe_for("resnet18", "photos", "vos:weight=1").name == "vos-cifar"
    assert recipe_for("resnet18", "digits", "alpa").name == "digits"
    assert recipe_for("resnet18", "cifar10", "t2fnorm:tau=0.2").objective == "t2fnorm:tau=0.2"
    assert recipe_for("resnet18", "photos", "palm").objective == "palm:momentum=0.9"
    assert recipe_for("resnet18", "photos", "palm:momentum=0.999").objective.endswith("0.999")
    cifar100 = recipe_for("resnet18", "cifar100", "palm")
    assert (cifar100.objective, cifar100.batch_size, cifar100.lr) == ("palm", 512, 0.5)
    assert recipe_for("resnet18", "cifar100", "cider").objective == "cider:momentum=0.5"


def test_the_method_of_a_paper_exists() -> None:
    """And the recipe of an objective is scored with it."""
    for objective, scorer in SCORERS.items():
        parse_objective(objective)
        parse_method(scorer)
    assert recipe_for("resnet18", "cifar10", "palm").scorer == "mds++"
    assert recipe_for("resnet18", "cifar10").scorer == ""


def test_a_recipe_is_stored_and_read_again() -> None:
    for recipe in RECIPES.values():
        assert Recipe.from_json(json.loads(json.dumps(recipe.to_json()))) == recipe


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
        ({"weight_decay": -1.0}, "--weight-decay must be finite and not negative: -1.0"),
    ],
)
def test_impossible_changes_are_refused(change: dict[str, float], message: str) -> None:
    with pytest.raises(InvalidInputError) as raised:
        recipe_for("resnet18", "cifar10").changed(**change)
    assert str(raised.value) == message


@pytest.mark.parametrize(
    ("data", "objective", "name", "wanted"),
    [
        ("imagenet200", "cross-entropy", "openood-imagenet200", "cross-entropy"),
        ("imagenet200", "t2fnorm", "t2fnorm-imagenet200", "t2fnorm"),
        ("imagenet200", "logitnorm", "openood-imagenet200", "logitnorm"),
        ("imagenet", "t2fnorm", "t2fnorm-imagenet", "t2fnorm:scoring=omitted"),
        ("imagenet", "t2fnorm:tau=0.05", "t2fnorm-imagenet", "t2fnorm:tau=0.05"),
        ("imagenet", "ish", "ish-imagenet", "ish"),
        ("imagenet", "supcon", "mode-base", "supcon"),
        ("imagenet", "rotpred", "openood-imagenet200", "rotpred"),
        ("imagenet", "cider", "cider-cifar", "cider"),
    ],
)
def test_imagenet_has_recipes_of_its_own(data, objective, name, wanted) -> None:
    recipe = recipe_for(default_architecture(data), data, objective)
    assert (recipe.name, recipe.objective) == (name, wanted)


def test_openood_trains_imagenet_200_for_90_epochs_in_batches_of_256() -> None:
    recipe = RECIPES["openood-imagenet200"]
    assert (recipe.arch, recipe.epochs, recipe.batch_size, recipe.lr, recipe.weight_decay) == (
        "torchvision:resnet18", 90, 256, 0.1, 5e-4,
    )  # fmt: skip
    assert (recipe.augmentation, recipe.keep) == (("resized-crop", "flip"), "best")
    assert default_architecture("imagenet200") == recipe.arch
