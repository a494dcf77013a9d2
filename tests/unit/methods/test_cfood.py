"""CFOOD: by hand, and next to the loops of the published code."""

import numpy as np
import pytest
import torch
from torch import Tensor

from oodcli.activations import Activations, ActivationSet, Head, Reference
from oodcli.errors import InvalidInputError, UndefinedMethodError
from oodcli.methods import parse_method
from oodcli.methods.cfood import CFOOD


def batch_of(features: Tensor) -> Activations:
    """Return activations of features."""
    logits = torch.zeros(len(features), 2)
    return Activations(logits, features, logits[:, :1], logits.argmax(dim=1))


def reference_of(features: Tensor) -> Reference:
    """Return a reference of training features."""
    head = Head(torch.zeros(2, features.shape[1]), torch.zeros(2))
    return Reference(head, load_train=lambda: ActivationSet.of(batch_of(features)))


def on_circle(degrees: list[float]) -> Tensor:
    """Return points of any length at these angles."""
    angles = torch.tensor(degrees).deg2rad()
    return 3 * torch.stack([angles.cos(), angles.sin()], dim=1)


def test_a_circle_by_hand() -> None:
    # Ten images every 36 degrees: each has two neighbours at 36, two at 72, and so on.
    reference = reference_of(on_circle([36.0 * i for i in range(10)]))
    found = CFOOD.fit(reference, k=0.2)
    # Ranks 0, 1, 2, … are reached at the shares 0.001, 0.20375, 0.3025, …: int(share * 10 - 1).
    scores = found.score(batch_of(on_circle([1.0, 0.0])))
    # Two images must count an image among their nearest: for both the nearest, at 36 degrees.
    assert scores.tolist() == [-0.001, -0.001]
    # With the centre of the circle all are at distance 1, farther than neighbours at 36 and nearer
    # than those at 72 degrees: rank 2, the first of the shares from 0.3 on.
    assert found.score(batch_of(torch.zeros(1, 2))).tolist() == pytest.approx([-0.3025])


@pytest.mark.parametrize("k", [0.01, 0.05, 0.5])
def test_it_is_what_the_published_loops_find(k: float) -> None:
    generator = torch.Generator().manual_seed(0)
    train = torch.randn(300, 5, generator=generator) + 1
    queries = torch.randn(40, 5, generator=generator)
    ref = (train / train.norm(dim=1, keepdim=True)).double().numpy()
    points = (queries / queries.norm(dim=1, keepdim=True)).double().numpy()
    kval = np.concatenate(
        (np.linspace(0.001, 0.1, 100), np.linspace(0.105, 0.5, 81), np.linspace(0.51, 0.99, 49))
    )
    kpos = np.array(kval * 300 - 1, dtype=int)
    keep = np.concatenate(([True], kpos[:-1] < kpos[1:]))
    kval, kpos = kval[keep], kpos[keep]
    radii = np.stack([np.sort(((each - ref) ** 2).sum(axis=1))[kpos + 1] for each in ref])
    expected = []
    for point in points:
        distances = ((point - ref) ** 2).sum(axis=1)
        enough = (radii >= distances[:, None]).mean(axis=0) >= k
        expected.append(-kval[enough.argmax()] if enough.any() else -1.0)
    found = CFOOD.fit(reference_of(train), k=k)
    assert found.score(batch_of(queries)).tolist() == pytest.approx(expected)


def test_an_image_that_none_has_among_its_neighbours_gets_the_lowest_score() -> None:
    reference = reference_of(on_circle([0.1 * i for i in range(20)]))
    assert CFOOD.fit(reference, k=0.1).score(batch_of(on_circle([180.0]))).tolist() == [-1.0]


def test_of_many_images_some_are_taken_evenly() -> None:
    train = torch.randn(60, 4, generator=torch.Generator().manual_seed(0))
    some = CFOOD.fit(reference_of(train), k=0.1, images=20)
    assert some.images == 20
    assert torch.equal(some.units, CFOOD.fit(reference_of(train[::3]), k=0.1).units)


def test_fewer_images_than_make_a_share_are_refused() -> None:
    train = torch.randn(99, 4, generator=torch.Generator().manual_seed(0))
    with pytest.raises(UndefinedMethodError, match=r"the share k of them is one at least, but the"):
        parse_method("cfood").fit(reference_of(train))
    parse_method("cfood:k=0.02").fit(reference_of(train))
    with pytest.raises(InvalidInputError, match="cfood:k must be more than 0 and less than 1"):
        parse_method("cfood:k=1").fit(reference_of(train))
