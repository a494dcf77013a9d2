"""OptFS by hand, and against its definition written out."""

from itertools import pairwise

import numpy as np
import pytest
import torch

from oodcli.activations import Activations, ActivationSet, Head, Reference
from oodcli.errors import UndefinedMethodError
from oodcli.methods import parse_method
from oodcli.methods.optfs import OptFS

HEAD = Head(torch.tensor([[1.0, 0.0, 2.0], [0.0, -1.0, 1.0]]), torch.tensor([0.5, 0.0]))


def activations(features: torch.Tensor, head: Head = HEAD) -> Activations:
    """Make activations with these features."""
    logits = head(features)
    return Activations(logits, features, torch.zeros(len(features), 1), logits.argmax(dim=1))


def reference(train: Activations, head: Head = HEAD) -> Reference:
    """Make a reference that has nothing but training images."""
    return Reference(head, load_train=lambda: ActivationSet.of(train))


def test_features_are_multiplied_by_the_weight_of_their_interval() -> None:
    weights = torch.zeros(102)
    weights[1], weights[50], weights[100] = 2.0, 10.0, 3.0
    fitted = OptFS(HEAD, low=1.0, width=0.5, weights=weights)
    # Intervals begin at 1; 25.5 begins the 50th and 50.5 the 100th, which ends at 51.
    got = fitted.logits(activations(torch.tensor([[1.25, 25.75, 50.75], [0.75, 51.0, 3.0]])))
    assert got.tolist() == [[2.5 + 2 * 152.25 + 0.5, -257.5 + 152.25], [0.5, 0.0]]


def test_weights_are_the_mean_contributions_to_the_predicted_class() -> None:
    generator = torch.Generator().manual_seed(0)
    head = Head(torch.randn(3, 40, generator=generator), torch.randn(3, generator=generator))
    train = activations(torch.rand(90, 40, generator=generator).square(), head)
    fitted = OptFS.fit(reference(train, head))
    features = train.features.double().numpy()
    low, high = np.percentile(features, [0.1, 99.9])
    assert (fitted.low, fitted.width) == pytest.approx((low, (high - low) / 100))
    parts = head.weight.double().numpy()[train.predictions.numpy()] * features
    edges = np.linspace(low, high, 101)
    wanted = [
        parts[(features >= first) & (features < last)].sum() for first, last in pairwise(edges)
    ]
    wanted = 1000 * np.array(wanted) / np.linalg.norm(wanted)
    np.testing.assert_allclose(fitted.weights[1:-1].numpy(), wanted, rtol=1e-4, atol=1e-2)
    assert fitted.weights[[0, -1]].tolist() == [0.0, 0.0]


def test_the_vanilla_form_of_the_authors_is_maxlogit_without_the_bias() -> None:
    generator = torch.Generator().manual_seed(0)
    head = Head(torch.randn(3, 40, generator=generator), torch.zeros(3))
    train = activations(torch.rand(90, 40, generator=generator), head)
    fitted = OptFS.fit(reference(train, head))
    shaped = fitted.logits(train)
    same = shaped.argmax(dim=1) == train.predictions
    assert same.any()
    got = parse_method("optfs+maxlogit").fit(reference(train, head)).detector.score(train)
    vanilla = shaped.gather(1, train.predictions[:, None])[:, 0]
    torch.testing.assert_close(got[same], vanilla[same])


@pytest.mark.parametrize("value", [0.0, 2.0])
def test_training_features_without_spread_are_refused(value: float) -> None:
    with pytest.raises(UndefinedMethodError, match=f"without spread .*percentile: {value:g}\\)"):
        OptFS.fit(reference(activations(torch.full((9, 3), value))))


def test_features_that_contribute_nothing_are_refused() -> None:
    head = Head(torch.zeros(2, 3), torch.zeros(2))
    train = activations(torch.rand(9, 3, generator=torch.Generator().manual_seed(0)), head)
    with pytest.raises(UndefinedMethodError, match="training features contribute nothing"):
        OptFS.fit(reference(train, head))
