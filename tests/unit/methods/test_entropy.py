"""Entropy by hand."""

from math import log

import pytest
import torch

from oodcli.methods.entropy import Entropy


def test_entropy_is_the_mean_log_probability() -> None:
    logits = torch.tensor([[log(0.5), log(0.25), log(0.25)], [2.0, 2.0, 2.0]])
    got = Entropy("linear").score_logits(logits).tolist()
    assert got == pytest.approx([-1.5 * log(2), -log(3)])
    assert Entropy().score_logits(logits).tolist() == pytest.approx(
        [-log(1.5 * log(2)), -log(log(3))]
    )


def test_a_certain_prediction_has_no_entropy() -> None:
    certain = torch.tensor([[1000.0, 0.0]])
    assert Entropy("linear").score_logits(certain).tolist() == [0.0]
    # It is (1 + 1000) e^-1000, but for what is smaller by another factor of e^-1000.
    assert Entropy().score_logits(certain).tolist() == pytest.approx([1000 - log(1001)])


def test_a_class_that_is_ruled_out_counts_as_absent() -> None:
    with_third = torch.tensor([[1.0, 0.0, -torch.inf]])
    assert Entropy().score_logits(with_third) == Entropy().score_logits(with_third[:, :2])
