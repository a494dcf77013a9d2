"""Ensembles of networks by hand, and against SciPy."""

import math

import numpy as np
import pytest
import torch
from scipy.special import softmax
from scipy.stats import entropy
from torch import Tensor

from oodcli.activations import Activations, ActivationSet, ActivationShard, Reference
from oodcli.methods.members import (
    ENSEMBLE_METHODS,
    INFORMATION,
    LOG_MEAN,
    ensemble_spec,
    head_without_features,
    mean_of_members,
)


def outputs(logits: Tensor) -> Activations:
    """Return activations of which only the logits matter."""
    return Activations(logits, logits, logits, logits.argmax(dim=1))


def of(*logits: list[list[float]]) -> Activations:
    return mean_of_members([outputs(torch.tensor(each)) for each in logits])


def scores(name: str, batch: Activations) -> Tensor:
    reference = Reference(head_without_features(batch.logits.shape[1], "cpu"))
    return ensemble_spec(name).fit(reference).detector.score(batch)


def test_two_members_by_hand() -> None:
    # p = (3/4, 1/4) and (1/4, 3/4): the mean is (1/2, 1/2), and the mean logits are equal.
    third = math.log(3)
    batch = of([[third, 0.0]], [[0.0, third]])
    assert batch.logits.tolist() == [[pytest.approx(third / 2)] * 2]
    assert batch.extra[LOG_MEAN].exp().tolist() == [[pytest.approx(0.5)] * 2]
    own = math.log(4) - 0.75 * math.log(3)  # the entropy of one member
    assert batch.extra[INFORMATION].tolist() == [pytest.approx(math.log(2) - own)]
    assert scores("mutual-information", batch).tolist() == [pytest.approx(own - math.log(2))]
    assert scores("mean-probability", batch).tolist() == [pytest.approx(0.0)]  # log(½ / ½)
    assert scores("mean-entropy", batch).tolist() == [pytest.approx(-math.log(math.log(2)))]


def test_predictions_are_those_of_the_mean_probabilities() -> None:
    # The first member is certain of class 1, by logits that outweigh the others' of class 0.
    batch = of([[0.0, 9.0, 0.0]], [[4.0, 0.0, 0.0]], [[4.0, 0.0, 0.0]])
    assert batch.logits.argmax(dim=1).tolist() == [1]
    assert batch.predictions.tolist() == [0]


def test_against_scipy_on_many_images() -> None:
    logits = 4 * torch.randn(5, 60, 7, generator=torch.Generator().manual_seed(0))
    batch = mean_of_members([outputs(each) for each in logits])
    p = softmax(logits.double().numpy(), axis=2)
    mean = p.mean(axis=0)
    information = entropy(mean, axis=1) - entropy(p, axis=2).mean(axis=0)
    np.testing.assert_allclose(scores("mutual-information", batch), -information, atol=1e-12)
    np.testing.assert_allclose(
        scores("mean-probability", batch), np.log(mean.max(axis=1) / (1 - mean.max(axis=1)))
    )
    np.testing.assert_allclose(scores("mean-entropy", batch), -np.log(entropy(mean, axis=1)))
    np.testing.assert_allclose(batch.logits, logits.mean(dim=0), atol=1e-6)
    again = mean_of_members([outputs(each) for each in logits.flip(0)])
    torch.testing.assert_close(again.extra[INFORMATION], batch.extra[INFORMATION])


def test_certain_members_do_not_tie() -> None:
    # Each member is certain beyond the precision of one minus a probability.
    batch = of([[60.0, 0.0], [70.0, 0.0]], [[50.0, 0.0], [55.0, 0.0]])
    for name in ENSEMBLE_METHODS:
        found = scores(name, batch)
        assert found.isfinite().all()
        assert found[0] < found[1], name


def test_members_that_agree_have_no_information() -> None:
    same = [[1.0, 2.0, -1.0], [0.0, 0.0, 0.0]]
    assert of(same, same).extra[INFORMATION].tolist() == pytest.approx([0.0, 0.0], abs=1e-15)


def test_sets_are_joined_shard_by_shard() -> None:
    logits = torch.arange(20.0).view(10, 2)

    def stored(scale: float, *rows: int) -> ActivationSet:
        parts = (scale * logits).split(list(rows))
        return ActivationSet(
            [ActivationShard(len(part), lambda part=part: outputs(part)) for part in parts]
        )

    joined = ActivationSet.joined([stored(1.0, 6, 4), stored(3.0, 6, 4)], mean_of_members)
    assert [len(chunk) for chunk in joined.chunks(rows=6)] == [6, 4]
    assert torch.equal(joined.logits, 2 * logits)
    with pytest.raises(ValueError, match="different lengths"):
        ActivationSet.joined([stored(1.0, 6, 4), stored(1.0, 5, 5)], mean_of_members)
