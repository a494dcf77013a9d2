"""A toy problem: a class is a direction of feature space, and OOD images go less far along it."""

import pytest
import torch

from oodcli.activations import Activations, ActivationSet, Head, Reference

CLASSES, WIDTH, BLOCKS = 4, 16, 3


def activations(n: int, *, strength: float, seed: int, head: Head) -> Activations:
    """Draw non-negative features with a bump of ``strength`` on one class direction each."""
    generator = torch.Generator().manual_seed(seed)
    features = torch.rand(n, WIDTH, generator=generator)
    labels = torch.arange(n) % CLASSES
    features[torch.arange(n), labels] += strength
    logits = head(features)
    norms = features.norm(dim=1, keepdim=True) * torch.tensor([0.5, 1.0, 0.9])
    return Activations(logits, features, norms, logits.argmax(dim=1))


@pytest.fixture
def head() -> Head:
    """Return a last layer that reads the class directions."""
    return Head(torch.eye(CLASSES, WIDTH) * 2, torch.linspace(-0.1, 0.1, CLASSES))


@pytest.fixture
def id_batch(head: Head) -> Activations:
    """Return strongly activated images."""
    return activations(120, strength=3.0, seed=1, head=head)


@pytest.fixture
def ood_batch(head: Head) -> Activations:
    """Return weakly activated images."""
    return activations(80, strength=0.3, seed=2, head=head)


@pytest.fixture
def reference(head: Head) -> Reference:
    """Return training images, and jigsaws whose norm falls most in block 1."""
    train = activations(200, strength=3.0, seed=3, head=head)
    puzzle = train.block_norms / torch.tensor([0.9, 1.4, 1.1])
    jigsaw = Activations(train.logits, train.features, puzzle, train.predictions)
    return Reference(
        head=head,
        load_train=lambda: ActivationSet.of(train),
        load_jigsaw=lambda: ActivationSet.of(jigsaw),
        load_calibration=lambda: ActivationSet.of(train),
        load_labels=lambda: torch.arange(200) % CLASSES,
        load_calibration_labels=lambda: torch.arange(200) % CLASSES,
        n_blocks=BLOCKS,
    )
