"""WeiPer, against its definition written out with other means."""

import pytest
import torch
from torch import Tensor
from torch.nn.functional import conv1d, pad

from oodcli.activations import Activations, ActivationSet, Head, Reference
from oodcli.errors import InvalidInputError
from oodcli.methods import parse_method, weiper
from oodcli.methods.base import score_many
from oodcli.methods.weiper import WeiPer


@pytest.fixture
def head() -> Head:
    """Return a last layer of three classes."""
    generator = torch.Generator().manual_seed(0)
    # In float64, so that no value falls on the other side of the edge of a bin by rounding.
    weight, bias = (torch.randn(shape, generator=generator).double() for shape in ((3, 30), (3,)))
    return Head(weight, bias)


def activations(n: int, seed: int, head: Head) -> Activations:
    """Draw features of at least 0."""
    generator = torch.Generator().manual_seed(seed)
    features = torch.randn(n, 30, generator=generator).clamp(min=0).double()
    logits = head(features)
    return Activations(logits, features, torch.zeros(n, 1), logits.argmax(dim=1))


@pytest.fixture
def reference(head: Head) -> Reference:
    """Return 50 training images."""
    train = activations(50, 1, head)
    return Reference(head, load_train=lambda: ActivationSet.of(train))


def histograms(values: Tensor, within: tuple[float, float], bins: int) -> Tensor:
    """Return the share of values in each bin by comparing with every edge."""
    edges = torch.linspace(within[0], within[1] + 1e-8, bins + 1, dtype=torch.float64)
    inside = (values[..., None] >= edges[:-1]) & (values[..., None] < edges[1:])
    return inside.double().mean(dim=1)


def divergence(trained: Tensor, densities: Tensor, smoothing: int, floor: float) -> Tensor:
    """Smooth by a convolution and add both directions of the KL divergence."""
    left = (smoothing - 1) // 2
    padded = pad(densities[:, None], (left, smoothing - 1 - left), mode="replicate")
    kernel = torch.full((1, 1, smoothing), 1 / smoothing, dtype=torch.float64)
    q = conv1d(padded, kernel)[:, 0] + floor
    p = trained + floor
    p, q = p / p.sum(), q / q.sum(dim=1, keepdim=True)
    return (p * (p / q).log()).sum(dim=1) + (q * (q / p).log()).sum(dim=1)


@pytest.mark.parametrize("smoothing", [(4, 15), (1, 2), (5, 40)])
def test_the_score_is_what_its_definition_says(
    reference: Reference, head: Head, smoothing: tuple[int, int]
) -> None:
    fitted = WeiPer.fit(
        reference, repeats=7, bins=20, smoothing=smoothing[0], smoothing_perturbed=smoothing[1]
    )
    weights = (head.weight + 1.8 * fitted.noise).flatten(0, 1)
    train, batch = activations(50, 1, head), activations(9, 2, head)

    def perturbed(of: Activations) -> Tensor:
        return of.features @ weights.T + head.bias.repeat(7)

    feature_range = (train.features.min().item(), train.features.max().item())
    projection_range = (perturbed(train).min().item(), perturbed(train).max().item())
    assert fitted.trained.feature_range == pytest.approx(feature_range)
    assert fitted.trained.projection_range == pytest.approx(projection_range, rel=1e-5)
    ranges = feature_range, projection_range
    of_features = divergence(
        histograms(train.features, ranges[0], 20).mean(dim=0),
        histograms(batch.features, ranges[0], 20),
        smoothing[0],
        0.01,
    )
    of_projections = divergence(
        histograms(perturbed(train), ranges[1], 20).mean(dim=0),
        histograms(perturbed(batch), ranges[1], 20),
        smoothing[1],
        0.025,
    )
    msp = perturbed(batch).view(9, 7, 3).softmax(dim=2).amax(dim=2).mean(dim=1)
    wanted = -(of_features + 2.5 * of_projections - 0.1 * msp)
    torch.testing.assert_close(fitted.score(batch), wanted)


def test_a_perturbation_is_as_long_as_the_weight(reference: Reference, head: Head) -> None:
    noise = WeiPer.fit(reference, repeats=5).noise
    assert noise.shape == (5, 3, 30)
    lengths = head.weight.norm(dim=1).expand(5, 3)
    torch.testing.assert_close(noise.norm(dim=2), lengths)
    assert len(noise[:, 0, 0].unique()) == 5


def test_settings_scored_together_score_as_alone(reference: Reference, head: Head) -> None:
    names = [
        "weiper:repeats=5",
        "weiper:repeats=5,lambda_1=1",
        "weiper:repeats=5,smoothing=8,smoothing_perturbed=25",
        "weiper:repeats=5,bins=60",
        "weiper:repeats=5,distance=2.4,lambda_2=5",
        "weiper:repeats=4",
    ]
    batch = activations(9, 2, head)
    fitted = [parse_method(name).fit(reference).detector for name in names]
    alone = torch.stack([each.score(batch) for each in fitted], dim=1)
    assert torch.equal(score_many(fitted, batch), alone)
    assert len({tuple(column.tolist()) for column in alone.T}) == len(names)


def test_how_many_projections_are_held_at_a_time_does_not_matter(
    reference: Reference, head: Head, monkeypatch: pytest.MonkeyPatch
) -> None:
    batch = activations(9, 2, head)
    together = WeiPer.fit(reference, repeats=7).score(batch)
    monkeypatch.setattr(weiper, "HELD", 60)
    train = activations(50, 1, head)
    anew = Reference(head, load_train=lambda: ActivationSet.of(train))
    torch.testing.assert_close(WeiPer.fit(anew, repeats=7).score(batch), together)


def test_training_images_are_observed_once_for_all_settings(
    reference: Reference, head: Head
) -> None:
    first, second = WeiPer.fit(reference), WeiPer.fit(reference, lambda_1=1.0, smoothing=8)
    assert first.noise is second.noise
    assert first.trained is second.trained


@pytest.mark.parametrize(
    ("parameter", "message"),
    [
        ("repeats=0", "weiper:repeats must be at least 1, not 0"),
        ("bins=1", "weiper:bins must be at least 2, not 1"),
        ("distance=0", "weiper:distance must be a positive number, not 0"),
        ("lambda_1=-1", "weiper:lambda_1 must be a positive number, not -1"),
        ("lambda_2=nan", "weiper:lambda_2 must be a positive number, not nan"),
        ("smoothing=0", "weiper:smoothing must be at least 1, not 0"),
        ("smoothing_perturbed=0", "weiper:smoothing_perturbed must be at least 1, not 0"),
    ],
)
def test_parameters_that_mean_nothing_are_refused(
    reference: Reference, parameter: str, message: str
) -> None:
    with pytest.raises(InvalidInputError, match=message):
        parse_method(f"weiper:{parameter}").fit(reference)
