"""NECO."""

import pytest
import torch
from sklearn.decomposition import PCA
from sklearn.preprocessing import StandardScaler

from oodcli.activations import Activations, ActivationSet, Head, Reference
from oodcli.errors import InvalidInputError, UndefinedMethodError
from oodcli.methods.neco import NECO


def batch_of(features: torch.Tensor, head: Head) -> Activations:
    """Return activations of features."""
    logits = head(features)
    return Activations(logits, features, logits[:, :1], logits.argmax(dim=1))


def reference_of(features: torch.Tensor, labels: list[int], head: Head) -> Reference:
    """Return a reference of training features."""
    train = batch_of(features, head)
    return Reference(
        head,
        load_train=lambda: ActivationSet.of(train),
        load_labels=lambda: torch.tensor(labels, dtype=torch.int64),
    )


GENERATOR = torch.Generator().manual_seed(0)
POINTS = torch.randn(60, 6, generator=GENERATOR) @ torch.randn(6, 6, generator=GENERATOR) + 2
QUERIES = torch.randn(9, 6, generator=GENERATOR) * 3
HEAD = Head(torch.randn(2, 6, generator=GENERATOR), torch.zeros(2))


def test_it_is_the_share_of_the_standardised_feature_times_the_largest_logit() -> None:
    scaler = StandardScaler().fit(POINTS.double().numpy())
    pca = PCA().fit(scaler.transform(POINTS.double().numpy()))
    standard = scaler.transform(QUERIES.double().numpy())
    inside = torch.from_numpy(pca.transform(standard)[:, :2]).norm(dim=1)
    expected = inside / torch.from_numpy(standard).norm(dim=1) * HEAD(QUERIES).amax(dim=1)
    found = NECO.fit(reference_of(POINTS, [0] * 60, HEAD), dim=2)
    torch.testing.assert_close(
        found.score(batch_of(QUERIES, HEAD)), expected.float(), rtol=1e-5, atol=1e-5
    )


def test_a_feature_that_never_changes_is_not_divided() -> None:
    constant = POINTS.clone()
    constant[:, 2] = 0.1
    found = NECO.fit(reference_of(constant, [0] * 60, HEAD), dim=2)
    assert float(found.scale[2]) == 1.0
    assert found.score(batch_of(QUERIES, HEAD)).isfinite().all()


def test_the_mean_itself_scores_0() -> None:
    points = torch.tensor([[1.0, 1.0], [-1.0, -1.0], [1.0, -1.0], [-1.0, 1.0]])
    head = Head(torch.eye(2), torch.ones(2))
    found = NECO.fit(reference_of(points, [0] * 4, head))
    assert float(found.score(batch_of(torch.zeros(1, 2), head))) == 0.0


@pytest.mark.parametrize(("width", "dim"), [(512, 100), (101, 100), (100, 50), (2, 1)])
def test_the_default_is_100_or_half_a_narrow_width(width: int, dim: int) -> None:
    head = Head(torch.ones(2, width), torch.zeros(2))
    assert NECO.fit(reference_of(torch.rand(3, width), [0] * 3, head)).dim == dim


def test_all_components_leave_nothing_out() -> None:
    reference = reference_of(POINTS, [0] * 60, HEAD)
    with pytest.raises(
        UndefinedMethodError, match=r"^neco is not defined for dim 6: features of wid"
    ):
        NECO.fit(reference, dim=6)
    with pytest.raises(InvalidInputError, match=r"^neco:dim must be at least 1, not 0$"):
        NECO.fit(reference, dim=0)
