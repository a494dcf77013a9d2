"""Whether a network from elsewhere does on labelled images what it should."""

import numpy as np
import pytest
from numpy.typing import NDArray

from oodcli.training.plausibility import better_order

Labels = NDArray[np.int64]


def noisy(labels: Labels, count: int, *, accuracy: float, seed: int = 0) -> Labels:
    """Return predictions that are right at a given rate, and any class otherwise."""
    rng = np.random.default_rng(seed)
    wrong = rng.random(len(labels)) >= accuracy
    return np.where(wrong, rng.integers(0, count, len(labels)), labels)


def names(count: int) -> list[str]:
    return [f"class {k:04d}" for k in range(count)]


@pytest.mark.parametrize("shift", [1, -1, 3])
def test_outputs_that_are_shifted_are_seen_with_one_image_a_class(shift: int) -> None:
    labels = np.arange(256, dtype=np.int64) * 3
    right = noisy(labels, 1000, accuracy=0.85)
    order = better_order((right + shift) % 1000, labels, names(1000))
    assert order is not None
    assert order.description == f"the outputs are shifted by {shift}"
    assert np.array_equal(order.predictions, right)


def test_any_order_is_found_by_the_confusion_matrix() -> None:
    labels = np.repeat(np.arange(10, dtype=np.int64), 40)
    right = noisy(labels, 10, accuracy=0.9)
    order = np.random.default_rng(1).permutation(10)
    found = better_order(order[right], labels, names(10))
    assert found is not None
    assert found.description == "by the confusion matrix"
    assert np.array_equal(found.predictions, right)


def test_two_classes_that_are_exchanged_are_seen() -> None:
    labels = np.repeat(np.arange(10, dtype=np.int64), 40)
    right = noisy(labels, 10, accuracy=0.9)
    order = np.array([0, 1, 2, 5, 4, 3, 6, 7, 8, 9])
    found = better_order(order[right], labels, names(10))
    assert found is not None
    assert np.array_equal(found.predictions, right)


def test_names_that_are_numbers_may_be_sorted_as_numbers() -> None:
    """As text, 10 stands before 2; one image a class is enough to see it."""
    by_text = sorted(map(str, range(200)))
    labels = np.arange(200, dtype=np.int64)  # by the names as they are sorted
    outputs = np.array([int(by_text[k]) for k in labels])
    predicted = noisy(outputs, 200, accuracy=0.8)
    found = better_order(predicted, labels, by_text)
    assert found is not None
    assert found.description == "their names are sorted as numbers"
    assert np.array_equal(found.predictions == labels, predicted == outputs)


@pytest.mark.parametrize("accuracy", [0.0, 0.1, 0.9])
@pytest.mark.parametrize(("count", "each"), [(2, 12), (10, 40), (100, 5), (256, 1), (1000, 1)])
def test_no_order_is_made_up(count: int, each: int, accuracy: float) -> None:
    """With few images a class, some assignment of outputs to classes always looks good."""
    labels = np.repeat(np.arange(count, dtype=np.int64), each)
    for seed in range(5):
        found = noisy(labels, count, accuracy=accuracy, seed=seed)
        assert better_order(found, labels, names(count)) is None


def test_classes_that_are_confused_with_their_neighbours_are_no_shift() -> None:
    labels = np.repeat(np.arange(100, dtype=np.int64), 5)
    found = labels.copy()
    found[::5] = (found[::5] + 1) % 100  # a fifth of the images
    assert better_order(found, labels, names(100)) is None
