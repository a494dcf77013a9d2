"""Means of the training features."""

import pytest
import torch

from oodcli.activations import Activations, ActivationSet, Head, Reference
from oodcli.errors import UndefinedMethodError
from oodcli.methods._class_means import class_means, feature_mean, feature_rows, predicted_among


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


HEAD = Head(torch.eye(3), torch.zeros(3))
# Predicted 0, 0, 1; labels 0, 1, 1; nothing of class 2.
POINTS = torch.tensor([[4.0, 0.0, 0.0], [2.0, 0.0, 0.0], [0.0, 3.0, 0.0]])
LABELS = [0, 1, 1]


@pytest.mark.parametrize(
    ("by", "means", "counts"),
    [
        ("labels", [[4, 0, 0], [1, 1.5, 0], [0, 0, 0]], [1, 2, 0]),
        ("predictions", [[3, 0, 0], [0, 3, 0], [0, 0, 0]], [2, 1, 0]),
        ("hits", [[4, 0, 0], [0, 3, 0], [0, 0, 0]], [1, 1, 0]),
    ],
)
def test_images_count_for_the_class_they_are_chosen_by(
    by: str, means: list[list[float]], counts: list[int]
) -> None:
    found = class_means(reference_of(POINTS, LABELS, HEAD), by=by)  # type: ignore[arg-type]
    assert found.means.tolist() == means
    assert found.counts.tolist() == counts
    assert found.present.tolist() == [True, True, False]


def test_the_overall_mean_is_of_the_images_that_count() -> None:
    found = class_means(reference_of(POINTS, LABELS, HEAD), by="hits")
    assert found.overall.tolist() == [2.0, 1.5, 0.0]


def test_directions_have_length_1_first() -> None:
    found = class_means(reference_of(POINTS, LABELS, HEAD), normalised=True)
    assert found.means.tolist() == [[1, 0, 0], [0.5, 0.5, 0], [0, 0, 0]]


def test_the_mean_of_all_features_needs_no_labels() -> None:
    reference = Reference(
        HEAD, load_train=lambda: ActivationSet.of(batch_of(POINTS.repeat(2000, 1), HEAD))
    )
    assert feature_mean(reference).tolist() == [2.0, 1.0, 0.0]


def test_without_images_there_is_no_mean() -> None:
    nothing = reference_of(torch.zeros(0, 3), [], HEAD)
    with pytest.raises(UndefinedMethodError, match=r"no training image is left for the class"):
        class_means(nothing)
    with pytest.raises(UndefinedMethodError, match=r"left for the mean feature"):
        feature_mean(nothing)


def test_a_class_that_is_absent_gives_way_to_the_largest_logit_of_the_others() -> None:
    batch = batch_of(torch.tensor([[1.0, 2.0, 9.0], [3.0, 2.0, 0.0]]), HEAD)
    assert predicted_among(batch, torch.tensor([True, True, True])).tolist() == [2, 0]
    assert predicted_among(batch, torch.tensor([True, True, False])).tolist() == [1, 0]


def test_directions_of_a_batch_are_made_once() -> None:
    batch = batch_of(torch.tensor([[3.0, 4.0, 0.0], [0.0, 0.0, 0.0]]), HEAD)
    assert feature_rows(batch, normalised=False) is batch.features
    rows = feature_rows(batch, normalised=True)
    torch.testing.assert_close(rows, torch.tensor([[0.6, 0.8, 0.0], [0.0, 0.0, 0.0]]))
    assert feature_rows(batch, normalised=True) is rows
