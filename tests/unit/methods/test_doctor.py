"""DOCTOR by hand."""

from math import log

import pytest
import torch

from oodcli.activations import Activations, Head, Reference
from oodcli.methods import parse_method
from oodcli.methods.doctor import Doctor

BARE = Reference(Head(torch.zeros(2, 1), torch.zeros(2)))


def test_doctor_adds_up_squared_probabilities() -> None:
    logits = torch.tensor([[log(0.5), log(0.3), log(0.2)], [1.0, 1.0, 1.0], [500.0, 0.0, 0.0]])
    got = Doctor("probability").score_logits(logits).tolist()
    assert got == pytest.approx([0.38, 1 / 3, 1.0])
    # For a lead of 500 nats over two classes 1 - g is 4 · exp(-500).
    wanted = [log(0.38 / 0.62), -log(2), 500 - log(4)]
    assert Doctor().score_logits(logits).tolist() == pytest.approx(wanted)


def test_the_logits_of_the_network_are_scored() -> None:
    logits = torch.tensor([[0.0, 0.0]])
    batch = Activations(logits, torch.zeros(1, 1), torch.zeros(1, 1), torch.tensor([0]))
    assert parse_method("doctor").fit(BARE).detector.score(batch).tolist() == [0.0]


def test_the_score_is_minus_the_logarithm_of_the_ratio_of_the_paper() -> None:
    logits = torch.randn(50, 5, generator=torch.Generator().manual_seed(0))
    agreement = Doctor("probability").score_logits(logits.double())
    torch.testing.assert_close(Doctor().score_logits(logits), -((1 - agreement) / agreement).log())
