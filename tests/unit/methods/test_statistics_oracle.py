"""Statistics of training features next to other code: stored scores, and pytorch-ood's."""

from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import torch
from torch import Tensor

from oodcli.activations import Activations, ActivationSet, Head, Reference
from oodcli.methods import parse_method

CLASSES, WIDTH = 5, 24


def batch_of(features: Tensor, head: Head) -> Activations:
    """Return activations of features."""
    logits = head(features)
    return Activations(logits, features, logits[:, :1], logits.argmax(dim=1))


@pytest.fixture(scope="module")
def problem() -> tuple[Reference, Tensor, Activations]:
    """Return training images, their labels, and images to score."""
    generator = torch.Generator().manual_seed(0)
    centres = torch.rand(CLASSES, WIDTH, generator=generator) * 4
    head = Head(centres / 4 - 0.5, torch.randn(CLASSES, generator=generator) * 0.1)
    labels = torch.arange(600) % CLASSES

    def drawn(n: int, spread: float) -> Tensor:
        noise = torch.randn(n, WIDTH, generator=generator) * spread
        return (centres[torch.arange(n) % CLASSES] + noise).relu()

    train = batch_of(drawn(600, 0.5), head)
    reference = Reference(
        head, load_train=lambda: ActivationSet.of(train), load_labels=lambda: labels
    )
    return reference, labels, batch_of(drawn(40, 1.5), head)


def last_layer(head: Head) -> torch.nn.Linear:
    """Return the last layer as a module."""
    layer = torch.nn.Linear(WIDTH, CLASSES)
    layer.load_state_dict({"weight": head.weight, "bias": head.bias})
    return layer


# How pytorch-ood makes each, and what one unit of its score is in ours.
THEIRS: dict[str, tuple[Callable[[ModuleType, Head], object], float]] = {
    # It sums where we average, and takes half the distance.
    "mds": (lambda po, _: po.Mahalanobis(None), 2 * 600),
    "rmds": (lambda po, _: po.RMD(None), 600),
    "vim:dim=10": (lambda po, head: po.ViM(None, 10, head.weight, head.bias), 1),
    "she": (lambda po, head: po.SHE(None, last_layer(head)), 1),
    "nci:alpha=0.01": (lambda po, head: po.NCI(None, last_layer(head), alpha=0.01), 1),
    "fdbd": (lambda po, head: po.fDBD(None, last_layer(head)), CLASSES - 1),
    "pnml:scale=linear": (lambda po, head: po.PNML(None, last_layer(head)), 1),
}


@pytest.mark.parametrize("name", THEIRS)
def test_scores_are_those_of_pytorch_ood(
    name: str, problem: tuple[Reference, Tensor, Activations]
) -> None:
    detectors = pytest.importorskip("pytorch_ood.detector")
    reference, labels, batch = problem
    make, unit = THEIRS[name]
    theirs = make(detectors, reference.head)
    theirs.fit_features(reference.train.features, labels)  # type: ignore[attr-defined]
    expected = -unit * theirs.predict_features(batch.features)  # type: ignore[attr-defined]
    found = parse_method(name).fit(reference).detector.score(batch)
    torch.testing.assert_close(found.float(), expected.detach().float(), rtol=1e-3, atol=1e-3)


def test_openmax_has_the_probabilities_of_pytorch_ood(
    problem: tuple[Reference, Tensor, Activations],
) -> None:
    theirs = pytest.importorskip("pytorch_ood.detector.openmax.numpy").OpenMax(tailsize=20, alpha=3)
    reference, labels, batch = problem
    # It averages over all images of a class, we over those that are classified correctly.
    hit = reference.train.predictions == labels
    theirs.fit(reference.train.logits[hit].double().numpy(), labels[hit].numpy())
    expected = theirs.predict(batch.logits.double().numpy())  # the unknown first
    found = parse_method("openmax:scale=probability").fit(reference).detector.score(batch)
    np.testing.assert_allclose(found, expected[:, 1:].max(axis=1) - expected[:, 0], atol=1e-3)


@pytest.mark.parametrize("method", ["mds", "gradnorm"])
def test_scores_of_real_images_are_those_stored(method: str, shared: Path) -> None:
    folder = shared / "reference"
    with (
        np.load(folder / "activations.npz") as activations,
        np.load(folder / "scores.npz") as scores,
    ):

        def part(name: str) -> Activations:
            logits, features, norms = (
                torch.from_numpy(activations[f"{name}/{what}"]).float()
                for what in ("logits", "features", "block_norms")
            )
            return Activations(logits, features, norms, logits.argmax(dim=1))

        train = part("train")
        labels = torch.from_numpy(activations["train/labels"]).long()
        # Neither looks at the values of the last layer.
        head = Head(torch.full((10, 512), torch.nan), torch.full((10,), torch.nan))
        reference = Reference(
            head, load_train=lambda: ActivationSet.of(train), load_labels=lambda: labels
        )
        detector = parse_method(method).fit(reference).detector
        for name in ("test", "svhn_crops", "dtd10_32"):
            found = detector.score(part(name))
            np.testing.assert_allclose(found, scores[f"{method}/{name}"], rtol=1e-4)
