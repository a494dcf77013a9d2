"""MC dropout: by hand with a layer that drops everything, and against thinned networks."""

import copy
from math import log

import pytest
import torch
from torch import nn

from oodcli.activations import Reference
from oodcli.errors import InvalidInputError, UndefinedMethodError
from oodcli.methods import parse_method
from oodcli.methods.mcdropout import SCORES, MCDropout, hash_of
from tests.support.probing import Small, activations, pictures


def with_dropout(rate: float, *, bias: list[float] | None = None) -> Small:
    """Return a network with a dropout layer in front of the last layer."""
    network = Small(dtype=torch.float64)
    network.module.pool.append(nn.Dropout(rate))
    if bias is not None:
        with torch.no_grad():
            network.module.fc.bias.copy_(torch.tensor(bias))
    network.module.eval()
    return network


def test_what_drops_everything_leaves_the_bias(reference: Reference) -> None:
    network = with_dropout(1.0, bias=[log(6.0), 0.0, 0.0, 0.0])
    images = pictures(2, seed=1, dtype=torch.float64)
    scores = {}
    for by in SCORES:
        detector = MCDropout.fit(reference, by=by, samples=2)
        scores[by] = detector.score(activations(network, images, *detector.probes)).tolist()
    # Probabilities 6/9 and three times 1/9, in both samples.
    assert scores["probability"] == pytest.approx([log(2.0)] * 2)
    assert scores["information"] == pytest.approx([0.0] * 2, abs=1e-9)
    assert scores["variance"] == pytest.approx([0.0] * 2, abs=1e-9)


def test_it_is_the_mean_over_thinned_networks(reference: Reference) -> None:
    """A second implementation: each sample is a network with some weights gone."""
    network, images = with_dropout(0.4), pictures(5, seed=1, dtype=torch.float64)
    predictions = []
    for sample in range(6):
        thinned = copy.deepcopy(network.module)
        generator = torch.Generator().manual_seed(hash_of(3, sample, 0))
        kept = torch.rand(8, generator=generator) >= 0.4
        with torch.no_grad():
            thinned.fc.weight.mul_(kept / 0.6)
        predictions.append(thinned(images).softmax(dim=1).detach())
    p = torch.stack(predictions)
    mean = p.mean(dim=0)
    entropy = -(p * p.log()).sum(dim=2).mean(dim=0)
    wanted = {
        "probability": torch.logit(mean.amax(dim=1)),
        "information": entropy + (mean * mean.log()).sum(dim=1),
        "variance": -p.var(dim=0, correction=0).mean(dim=1),
    }
    for by in SCORES:
        detector = MCDropout.fit(reference, by=by, samples=6, seed=3)
        scores = detector.score(activations(network, images, *detector.probes))
        torch.testing.assert_close(scores, wanted[by], rtol=1e-6, atol=1e-9)
    assert (wanted["information"] < -1e-3).any()


def test_a_score_does_not_depend_on_the_batch(reference: Reference) -> None:
    network, images = with_dropout(0.5), pictures(7, seed=1, dtype=torch.float64)
    detector = MCDropout.fit(reference, samples=4)
    whole = detector.score(activations(network, images, *detector.probes))
    parts = detector.score(activations(network, images, *detector.probes, batch_size=2))
    torch.testing.assert_close(parts, whole)


def test_one_pass_serves_all_that_is_compared(reference: Reference) -> None:
    keys = {MCDropout.fit(reference, by=by).probes[0].key for by in SCORES}
    assert keys == {"mcdropout(samples=30,seed=0)"}


@pytest.mark.parametrize("rate", [None, 0.0])
def test_a_network_without_dropout_is_refused(reference: Reference, rate: float | None) -> None:
    network = Small() if rate is None else with_dropout(rate)
    detector = MCDropout.fit(reference)
    with pytest.raises(UndefinedMethodError, match="without dropout: it has 0 layers"):
        activations(network, pictures(2, seed=1, dtype=network.std.dtype), *detector.probes)


def test_samples_are_two_at_least(reference: Reference) -> None:
    with pytest.raises(InvalidInputError, match="mcdropout:samples must be at least 2, not 1"):
        parse_method("mcdropout:samples=1").fit(reference)
