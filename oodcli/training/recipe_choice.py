"""Which recipe a network is trained with, by objective, architecture and data set."""

from collections.abc import Mapping
from dataclasses import replace
from types import MappingProxyType
from typing import Any

from oodcli.errors import UnknownNameError
from oodcli.training.recipes import RECIPES, Recipe

# Values of the same recipes that differ for CIFAR-100.
_CIFAR100_OPENOOD = {"mean": (0.5071, 0.4867, 0.4408), "std": (0.2675, 0.2565, 0.2761)}
_CIFAR100_OWN: Mapping[str, Mapping[str, Any]] = MappingProxyType(
    {
        "regmixup-cifar": {"regmixup_alpha": 10.0},
        "ascood-cifar": {"objective": "ascood:share=0.1,weight=5", "head_lr_factor": 0.05},
        "energy-finetune": {"objective": "energy-regularised:inner=-27,outer=-5"},
        "cider-cifar": {"objective": "cider:momentum=0.5"},
        "palm-cifar": {"objective": "palm", "batch_size": 512, "lr": 0.5, "lr_min": 0.5e-3},
    }
)
_FINE_TUNED = ("energy-finetune", "mixoe-finetune")
_CIFAR100: Mapping[str, Mapping[str, Any]] = MappingProxyType(
    {
        name: {
            **_CIFAR100_OPENOOD,
            **({"arch": "resnet34"} if name.startswith("mode-") else {}),
            **_CIFAR100_OWN.get(name, {}),
        }
        for name in RECIPES
        if name.endswith("-cifar") or name.startswith("mode-") or name in _FINE_TUNED
    }
)
# Default architecture of a data set.
_NETWORK_OF = {
    "digits": RECIPES["digits"].arch,
    "imagenet200": "torchvision:resnet18",
    "imagenet": "torchvision:resnet50",
}
# Recipes of objectives on ImageNet that differ from OpenOOD's recipe for cross-entropy.
_ON_IMAGENET: Mapping[str, Mapping[str, Recipe]] = MappingProxyType(
    {
        "imagenet200": {"t2fnorm": RECIPES["t2fnorm-imagenet200"], "oe": RECIPES["oe-imagenet200"]},
        "imagenet": {"t2fnorm": RECIPES["t2fnorm-imagenet"], "ish": RECIPES["ish-imagenet"]},
    }
)
_CONTRASTIVE = ("supcon", "cider", "palm", "reweightood", "alpa")
# Default recipe of an objective on other data sets.
_RECIPE_OF = {
    "t2fnorm": "t2fnorm-cifar",
    "logitnorm": "logitnorm-cifar",
    "rotpred": "rotpred-cifar",
    "conf-branch": "conf-branch-cifar",
    "g-odin": "g-odin-cifar",
    "vos": "vos-cifar",
    "cider": "cider-cifar",
    "palm": "palm-cifar",
    "reweightood": "reweightood-cifar",
    "ascood": "ascood-cifar",
    "supcon": "mode-base",
    "alpa": "mode-train",
    "oe": "oe-cifar",
    "energy-regularised": "energy-finetune",
    "entropic": "entropic-cifar",
    "objectosphere": "objectosphere-cifar",
    "background": "background-cifar",
    "mixoe": "mixoe-finetune",
}


def default_architecture(data_name: str) -> str:
    """Return the default architecture for a data set, by the name of the data set."""
    return _NETWORK_OF.get(data_name, "resnet18")


def recipe_named(name: str, data_name: str = "") -> Recipe:
    """Return a recipe with the values that its authors published for a data set.

    Parameters
    ----------
    name
        Key in the registry.
    data_name
        Name of the data set; some recipes have other constants for CIFAR-100.

    Raises
    ------
    UnknownNameError
        If there is no such recipe.
    """
    if name not in RECIPES:
        raise UnknownNameError.among("recipe", name, RECIPES)
    return replace(RECIPES[name], **(_CIFAR100.get(name, {}) if data_name == "cifar100" else {}))


def recipe_for(arch: str, data_name: str, objective: str = "cross-entropy") -> Recipe:
    """Return the default recipe for an architecture, a data set and an objective.

    Parameters
    ----------
    arch
        Name of the architecture, without parameters.
    data_name
        Name of the data set; ``digits`` has a recipe of its own.
    objective
        Name of the objective, with or without parameters.

    Notes
    -----
    An objective other than cross-entropy uses the recipe of its paper; ISH published one for
    ImageNet only, and uses that of cross-entropy on other data sets. On ImageNet, ISH and T2FNorm
    start from a trained network, as in their papers; other objectives there, and on ImageNet-200,
    use OpenOOD's recipe for ImageNet-200, except contrastive objectives. On other data sets,
    cross-entropy uses the recipe of the FeatureNorm paper, which trained ResNet-18, WRN-28-10 and
    VGG-11; other architectures use that of ResNet-18, except wide residual networks (WRN-28-10) and
    VGG networks (VGG-11). An objective without parameters has those of its recipe.
    """
    kind = objective.partition(":")[0]
    if data_name == "digits":
        return replace(RECIPES["digits"], objective=objective)
    recipe = RECIPES["featurenorm-resnet18"]
    if data_name in _ON_IMAGENET and kind not in _CONTRASTIVE:
        recipe = _ON_IMAGENET[data_name].get(kind, RECIPES["openood-imagenet200"])
    elif kind in _RECIPE_OF:
        recipe = recipe_named(_RECIPE_OF[kind], data_name)
    elif arch.startswith("wrn"):
        recipe = RECIPES["featurenorm-wrn28-10"]
    elif arch.startswith("vgg"):
        recipe = RECIPES["featurenorm-vgg11"]
    # The recipe may have a parameter, which the name without parameters implies.
    is_implied = recipe.objective.partition(":")[0] == kind == objective
    return recipe if is_implied else replace(recipe, objective=objective)


def is_fine_tuning(objective: str) -> bool:
    """Return whether all published recipes of an objective start from a trained network."""
    kind = objective.partition(":")[0]
    starts = {r.start for r in RECIPES.values() if r.objective.partition(":")[0] == kind}
    return starts == {"trained"}
