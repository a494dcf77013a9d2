"""Mahalanobis distances, plain, relative and of directions."""

import pytest
import torch

from oodcli.activations import Activations, ActivationSet, Head, Reference
from oodcli.methods.mahalanobis import MDS, RMDS, MDSPlusPlus, RMDSPlusPlus


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


HEAD = Head(torch.eye(2), torch.zeros(2))
# Two classes at (0, 0) and (10, 0), each with variance 1 along x and 4 along y.
POINTS = torch.tensor(
    [
        *([-1.0, 2.0], [1.0, -2.0], [-1.0, -2.0], [1.0, 2.0]),
        *([9.0, 2.0], [11.0, -2.0], [9.0, -2.0], [11.0, 2.0]),
    ]
)
LABELS = [0, 0, 0, 0, 1, 1, 1, 1]


def test_the_distance_counts_in_standard_deviations_to_the_nearest_mean() -> None:
    batch = batch_of(torch.tensor([[3.0, 2.0], [10.0, 0.0], [8.0, -4.0]]), HEAD)
    scores = MDS.fit(reference_of(POINTS, LABELS, HEAD)).score(batch)
    expected = torch.tensor([-(9 + 1), 0.0, -(4 + 4)]).double()
    torch.testing.assert_close(scores, expected, atol=1e-12, rtol=1e-12)


def test_the_relative_distance_takes_that_to_all_images_away() -> None:
    batch = batch_of(torch.tensor([[3.0, 2.0]]), HEAD)
    # All images: mean (5, 0), variances 25 + 1 and 4.
    background = 4 / 26 + 4 / 4
    scores = RMDS.fit(reference_of(POINTS, LABELS, HEAD)).score(batch)
    assert float(scores) == pytest.approx(background - 10)


@pytest.mark.parametrize(("plain", "plus"), [(MDS, MDSPlusPlus), (RMDS, RMDSPlusPlus)])
def test_the_form_for_directions_is_the_plain_one_of_normalised_features(
    plain: type[MDS], plus: type[MDSPlusPlus]
) -> None:
    generator = torch.Generator().manual_seed(0)
    points = torch.rand(30, 4, generator=generator) + 0.1
    queries = torch.rand(5, 4, generator=generator)
    head = Head(torch.eye(2, 4), torch.zeros(2))
    labels = [0, 1] * 15
    of_length_1 = [t / t.norm(dim=1, keepdim=True) for t in (points.double(), queries.double())]
    torch.testing.assert_close(
        plus.fit(reference_of(points, labels, head)).score(batch_of(queries, head)),
        plain.fit(reference_of(of_length_1[0].float(), labels, head)).score(
            batch_of(of_length_1[1].float(), head)
        ),
        rtol=1e-4,
        atol=1e-5,
    )


def test_a_direction_without_variance_does_not_count() -> None:
    head = Head(torch.eye(2, 3), torch.zeros(2))
    wider = torch.cat([POINTS, torch.full((8, 1), 7.0)], dim=1)
    batch = batch_of(torch.tensor([[3.0, 2.0, 7.0], [3.0, 2.0, -7.0]]), head)
    scores = MDS.fit(reference_of(wider, LABELS, head)).score(batch)
    torch.testing.assert_close(scores, torch.full((2,), -10.0).double())


def test_a_class_without_images_is_not_at_zero() -> None:
    head = Head(torch.eye(3, 2), torch.zeros(3))
    labels = [2 if label == 0 else 1 for label in LABELS]
    shifted = POINTS + 100
    batch = batch_of(torch.tensor([[0.0, 0.0]]), head)
    scores = MDS.fit(reference_of(shifted, labels, head)).score(batch)
    assert float(scores) == pytest.approx(-(100**2 + 100**2 / 4))


def test_both_share_the_distance_to_the_classes() -> None:
    reference = reference_of(POINTS, LABELS, HEAD)
    batch = batch_of(POINTS, HEAD)
    mds, rmds = MDS.fit(reference), RMDS.fit(reference)
    assert mds.classes is rmds.classes
    assert mds.classes.nearest(batch) is rmds.classes.nearest(batch)
