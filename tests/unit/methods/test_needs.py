"""What methods need to be defined, at the border: refused with the numbers below, fitted above."""

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from oodcli.activations import Activations, ActivationSet, Head, Reference
from oodcli.errors import UndefinedMethodError
from oodcli.methods import parse_method

CLASSES, WIDTH = 3, 8
TAIL = "train on more images, or use a method without covariances, such as knn"


def batch_of(features: Tensor, head: Head) -> Activations:
    logits = head(features)
    norms = features.norm(dim=1, keepdim=True) * torch.tensor([1.0, 2.0])
    return Activations(logits, features, norms, logits.argmax(dim=1))


def reference_of(
    n: int, *, constant: bool = False, dead: int = 0, classes: int = CLASSES
) -> Reference:
    """Draw the features of ``n`` images of each class in turn, the last ``dead`` of them zero."""
    generator = torch.Generator().manual_seed(0)
    head = Head(torch.randn(classes, WIDTH, generator=generator), torch.zeros(classes))
    labels = torch.arange(n) % classes
    features = (head.weight[labels] + torch.rand(n, WIDTH, generator=generator)).abs()
    if constant:
        features = torch.full((n, WIDTH), 0.7)
    features[:, WIDTH - dead :] = 0
    train = batch_of(features, head)
    jigsaw = replace(train, block_norms=train.block_norms * torch.tensor([0.9, 0.5]))
    return Reference(
        head,
        load_train=lambda: ActivationSet.of(train),
        load_labels=lambda: labels,
        load_jigsaw=lambda: ActivationSet.of(jigsaw),
        load_jigsaw_features=lambda: ActivationSet.of(jigsaw),
        load_calibration=lambda: ActivationSet.of(train),
        load_calibration_labels=lambda: labels,
        n_blocks=2,
    )


def refusal(name: str, reference: Reference) -> str:
    with pytest.raises(UndefinedMethodError) as raised:
        parse_method(name).fit(reference)
    return str(raised.value)


@pytest.mark.parametrize("name", ["mds", "mds++", "rmds", "rmds++"])
def test_one_image_a_class_has_no_covariance_within_classes(name: str) -> None:
    assert refusal(name, reference_of(CLASSES)) == (
        f"{name} is not defined here: it needs more training images, less one of each class, than "
        "directions in which features vary within classes, but there is 1 of each of 3 classes; "
        f"{TAIL}"
    )


def test_a_covariance_within_classes_needs_more_images_than_directions() -> None:
    # 11 images about the means of 3 classes vary in 8 directions at most, which is all there are.
    assert f"11 images of 3 classes vary in 8 of 8 within classes; {TAIL}" in refusal(
        "mds", reference_of(11)
    )
    parse_method("mds").fit(reference_of(12))


def test_features_that_are_always_zero_are_no_directions() -> None:
    # Of width 8 with 3 dead features: 9 images vary in 5 directions within classes, of 6 possible.
    parse_method("mds").fit(reference_of(9, dead=3))
    assert "8 images of 3 classes vary in 5 of 8" in refusal("mds", reference_of(8, dead=3))


@pytest.mark.parametrize("name", ["vim:dim=2", "residual", "pnml", "cop", "corp", "pca-fusion"])
def test_second_moments_need_more_images_than_directions(name: str) -> None:
    assert refusal(name, reference_of(9)).endswith(
        "it needs more training images, less one, than directions in which their features vary, "
        f"but 9 images vary in 8 of 8; {TAIL}"
    )
    parse_method(name).fit(reference_of(10))


def test_a_mixture_needs_more_images_than_dimensions_and_components() -> None:
    assert (
        "a covariance in 8 dimensions needs more training images, less one for each of 2 "
        "components, and there are 10"
    ) in refusal("gmm:dim=8,components=2", reference_of(10))
    parse_method("gmm:dim=8,components=2").fit(reference_of(11))


def test_principal_components_need_more_images() -> None:
    assert "there are 4 for dim 4; choose fewer" in refusal("neco", reference_of(4))
    parse_method("neco").fit(reference_of(5))
    assert "there are 5 for dim 6" in refusal("neco:dim=6", reference_of(5))


LEARNERS = (
    "bats", "knn", "nnguide", "relation", "fdbd", "ora", "nci", "maxcosine", "caref", "cadref",
    "she", "mds", "vim", "residual", "neco", "gmm", "pnml", "nac", "wdiscood", "cop", "corp",
    "pca-fusion", "cfood",
)  # fmt: skip


@pytest.mark.parametrize("name", LEARNERS)
def test_images_that_all_have_the_same_features_teach_nothing(name: str) -> None:
    assert (
        "it needs training features that differ from image to image, but those of 60 images do not"
    ) in refusal(name, reference_of(60, constant=True))


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("optfs", "optfs is not defined for training features without spread"),
        ("weiper", "weiper is not defined here: all features of the training images are 0.7, and"),
        ("react", "react is not defined here: percentile 90 of the calibration features is 0.7,"),
        ("vra", "vra is not defined here: both percentiles of the calibration features, 10 and"),
    ],
)
def test_constant_features_have_no_percentiles_to_tell_apart(name: str, reason: str) -> None:
    assert refusal(name, reference_of(60, constant=True)).startswith(reason)


ONE = (
    "msp", "entropy", "doctor", "gen", "tempscale", "klm", "t2fnorm", "gradnorm", "fdbd",
    "logitgap", "igeood", "graduncertainty", "ora",
)  # fmt: skip


@pytest.mark.parametrize("name", [*ONE, "pnml", "nac", "odin", "norm+msp"])
def test_what_compares_classes_needs_two(name: str) -> None:
    assert refusal(name, reference_of(60, classes=1)).endswith(
        "is not defined here: it needs at least 2 classes, but the network has 1; use a method "
        "that does not compare classes"
    )


@pytest.mark.parametrize("name", ["rmds", "rmds++"])
def test_what_is_relative_to_all_classes_needs_images_of_two(name: str) -> None:
    reference = replace(reference_of(60), load_labels=lambda: torch.ones(60).long())
    assert "training images of at least 2 classes, but they are all of 1 class" in refusal(
        name, reference
    )


def test_no_image_that_is_classified_correctly() -> None:
    whole = reference_of(60)
    wrong = (whole.train.predictions + 1) % CLASSES
    reference = replace(whole, load_labels=lambda: wrong)
    assert "classifies correctly, but none of 60 is; check" in refusal("she", reference)
    assert "none of 60 is" in refusal("openmax", reference)


def test_a_tail_needs_images_beyond_it() -> None:
    whole = reference_of(60)
    (images,) = whole.train.chunks()
    right = replace(images, predictions=whole.labels)
    reference = replace(whole, load_train=lambda: ActivationSet.of(right))
    assert "than the tail of their distances has, but there are 20 (tail 20); choose" in refusal(
        "openmax", reference
    )
    parse_method("openmax:tail=19").fit(reference)


def klm_on(predicted: list[int], classes: int) -> Reference:
    logits = 5 * torch.eye(classes)[predicted]
    n = len(predicted)
    images = Activations(logits, torch.zeros(n, 1), torch.zeros(n, 1), torch.tensor(predicted))
    head = Head(torch.zeros(classes, 1), torch.zeros(classes))
    return Reference(head, load_calibration=lambda: ActivationSet.of(images))


def test_typical_predictions_need_calibration_images_of_most_classes() -> None:
    # 18 of 20 images in pairs, two alone: Good's estimate of what is unseen is 2 / 20.
    pairs = [c for c in range(9) for _ in range(2)]
    parse_method("klm").fit(klm_on([*pairs, 9, 10], 1000))
    assert (
        "but 21 are predicted as 12 of 1,000 classes, 3 of them as the only one of its class, so "
        "that about 14 % of all images would find no typical prediction of their class; calibrate"
    ) in refusal("klm", klm_on([*pairs, 9, 10, 11], 1000))
    assert "all 7 are predicted as 1 class" in refusal("klm", klm_on([2] * 7, 4))


def test_selecting_a_block_needs_two_images_and_a_named_block_none() -> None:
    for name in ("featurenorm", "norm+energy"):
        assert "2 training images to select a block, but there is 1; name the block" in refusal(
            name, reference_of(1)
        )
    assert parse_method("featurenorm:block=1").fit(reference_of(1)).params == {"block": 1}


def test_the_same_weight_for_all_classes_has_no_boundary() -> None:
    whole = reference_of(60)
    head = replace(whole.head, weight=whole.head.weight[:1].expand(CLASSES, -1))
    assert "the weights of all 3 classes are the same" in refusal("fdbd", replace(whole, head=head))


def test_what_fitting_found_and_what_is_in_use_stand_in_the_parameters() -> None:
    reference = reference_of(20)
    knn = parse_method("knn").fit(reference)
    assert (knn.canonical, knn.params) == ("knn", {"k": 20})
    (part,) = parse_method("knn").parts
    assert part.replaced_values(knn.params) == {"k": (50, 20)}
    assert part.replaced_values({"k": 50}) == {}
    assert parse_method("knn:k=7").fit(reference).params == {"k": 7}
    assert parse_method("nnguide").fit(reference).params == {"k": 20, "alpha": 0.01}
    vim = parse_method("vim").fit(reference)
    assert vim.params == {"dim": 4, "alpha": vim.detector.alpha}  # type: ignore[attr-defined]
    both = parse_method("ensemble:knn+react").fit(reference).params
    assert both["knn.k"] == 20
    assert set(both) == {"knn.k", "react.percentile", "react.threshold", "react.energy.temperature"}
