"""Entropy by hand."""

from math import log

import pytest
import torch

from oodcli.methods.entropy import Entropy


def test_entropy_is_the_mean_log_probability() -> None:
    logits = torch.tensor([[log(0.5), log(0.25), log(0.25)], [2.0, 2.0, 2.0]])
    got = Entropy().score_logits(logits).tolist()
    assert got == pytest.approx([-1.5 * log(2), -log(3)])


def test_a_certain_prediction_has_no_entropy() -> None:
    assert Entropy().score_logits(torch.tensor([[1000.0, 0.0]])).tolist() == [0.0]
