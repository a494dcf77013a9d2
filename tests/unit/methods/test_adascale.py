"""AdaSCALE."""

import math
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from oodcli.activations import Activations, ActivationSet, Head, Reference
from oodcli.errors import InvalidInputError
from oodcli.methods import parse_method
from oodcli.methods.adascale import AdaSCALE, PerturbedFeatures
from tests.support.probing import Small, activations, pictures, reference_of

KEY = PerturbedFeatures(0.05).key
HEAD = Head(torch.tensor([[1.0, 0.0, 0.0, 0.0], [0.0, 0.0, 0.0, 2.0]]), torch.tensor([0.5, -1.0]))


def batch_of(features: Tensor, moved: Tensor) -> Activations:
    logits = HEAD(features)
    norms, predictions = features[:, :1], logits.argmax(dim=1)
    return Activations(logits, features, norms, predictions, extra={KEY: moved})


def calibrated(*shifts: float) -> Reference:
    """Return a reference with calibration images of given ``Q'``, by k1 = k2 = 1 feature."""
    features = torch.tensor([[3.0, 2.0, 1.0, 0.5]]).repeat(len(shifts), 1)
    moved = features.clone()
    moved[:, 0] = torch.tensor(shifts)
    batch = batch_of(features, moved)
    return Reference(head=HEAD, load_probed=lambda _part, _probe, _rows: ActivationSet.of(batch))


@pytest.mark.parametrize("variant", ["a", "l"])
def test_by_hand(variant: str) -> None:
    # Q' = relu(f'₁) + 10 |3 - f'₁|: 3, 2 + 10, 1 + 20, 0 + 50 for f'₁ = 3, 2, 1, -2.
    shaper = AdaSCALE.fit(calibrated(1.0, 3.0, -2.0, 2.0), variant=variant, low=25.0, high=75.0)  # type: ignore[arg-type]
    assert shaper.calibration.tolist() == [3.0, 12.0, 21.0, 50.0]
    # Q' = 12: F = 1/2, p = 25 + 1/2 · 50, k = 4 - 2, r = 6.5 / 5.
    # Q' = 60: F = 1, p = 25, k = 3, r = 6.5 / 6.
    # Q' = 3: F = 1/4, p = 62.5, k = 4 - 2, for 2.5 rounds to 2.
    features = torch.tensor([[3.0, 2.0, 1.0, 0.5]]).repeat(3, 1)
    moved = features.clone()
    moved[:, 0] = torch.tensor([2.0, -3.0, 3.0])
    batch = batch_of(features, moved)
    ratios = [6.5 / 5, 6.5 / 6, 6.5 / 5]
    wanted = []
    for ratio in ratios:
        if variant == "a":
            wanted.append([3 * math.exp(ratio) + 0.5, math.exp(ratio) - 1.0])
        else:
            wanted.append([3.5 * ratio**2, 0.0])
    logits = shaper.logits(batch)
    assert logits.dtype == torch.float64
    torch.testing.assert_close(logits.float(), torch.tensor(wanted), rtol=1e-5, atol=1e-6)


def test_the_largest_features_are_those_of_the_image_itself() -> None:
    shaper = AdaSCALE.fit(calibrated(3.0), k1=50.0, k2=25.0)
    # Of f the first two lead; of f' the last two would.
    features, moved = torch.tensor([[4.0, 3.0, 0.0, 1.0]]), torch.tensor([[1.0, -2.0, 9.0, 8.0]])
    reference = Reference(
        head=HEAD,
        load_probed=lambda _part, _probe, _rows: ActivationSet.of(batch_of(features, moved)),
    )
    again = AdaSCALE.fit(reference, k1=50.0, k2=25.0)
    assert again.calibration.tolist() == [1.0 + 0.0 + 10 * 3.0]
    assert shaper.calibration.tolist() == [3.0 + 2.0]


def test_moves_the_least_important_values_by_half_a_unit() -> None:
    network, images = Small(dtype=torch.float64), pictures(4, seed=1, dtype=torch.float64)
    probe = PerturbedFeatures(0.1)
    batch = activations(network, images, probe)
    moved = images.clone()
    leaves = images.clone().requires_grad_()
    best = network.module(leaves).max(dim=1).values.sum()
    (gradient,) = torch.autograd.grad(best, leaves)
    for image, slope in zip(moved, gradient, strict=True):
        flat, slopes = image.view(-1), slope.reshape(-1)
        for index in slopes.abs().argsort()[:19]:  # 10 % of 3 · 8 · 8 values, rounded down
            flat[index] += 0.5 * slopes[index].sign()
    torch.testing.assert_close(batch.extra[probe.key], activations(network, moved).features)
    assert not torch.equal(batch.extra[probe.key], batch.features)
    assert probe.passes == 4.0


def test_no_value_may_be_chosen() -> None:
    network, images, probe = Small(), pictures(3, seed=1), PerturbedFeatures(0.001)
    batch = activations(network, images, probe)
    assert torch.equal(batch.extra[probe.key], batch.features)


def test_images_of_inference_mode_will_do() -> None:
    network, probe = Small(), PerturbedFeatures(0.05)
    with torch.inference_mode():
        images = pictures(3, seed=5)
    with torch.no_grad():
        assert probe.observe(network, images, network.run(images)).isfinite().all()


def test_an_image_does_not_depend_on_its_neighbours() -> None:
    network = Small(dtype=torch.float64)
    train, images = (pictures(n, seed=n, dtype=torch.float64) for n in (20, 7))
    shaper = AdaSCALE.fit(reference_of(network, train))
    whole = shaper.logits(activations(network, images, *shaper.probes))
    parts = shaper.logits(activations(network, images.flip(0), *shaper.probes, batch_size=2))
    torch.testing.assert_close(parts.flip(0), whole, rtol=1e-8, atol=0)


def test_an_image_without_positive_features_has_the_bias() -> None:
    shaper = AdaSCALE.fit(calibrated(3.0, 2.0))
    nothing = torch.zeros(1, 4)
    assert shaper.logits(batch_of(nothing, nothing)).tolist() == [[0.5, -1.0]]


def test_negative_features_do_not_count_in_the_ratio() -> None:
    shaper = AdaSCALE.fit(calibrated(3.0, 2.0), low=25.0, high=50.0, variant="l")
    features = torch.tensor([[3.0, -2.0, 1.0, -4.0]])
    # Q' = 3: F = 1/2, p = 37.5, k = 4 - round(1.5) = 2: all positive features, so r = 1.
    logits = shaper.logits(batch_of(features, features))
    torch.testing.assert_close(logits.float(), HEAD(features))


def test_flat_features_at_the_largest_percentile_stay_finite() -> None:
    head = Head(torch.ones(2, 4000), torch.zeros(2))
    features = torch.ones(1, 4000)
    logits = head(features)
    batch = Activations(
        logits, features, features[:, :1], logits.argmax(dim=1), extra={KEY: features}
    )
    reference = Reference(head=head, load_probed=lambda *_: ActivationSet.of(replace(batch)))
    shaper = AdaSCALE.fit(reference, low=99.8, high=99.95)
    assert shaper.logits(batch).isfinite().all()


def test_values_that_are_not_numbers_stay_so() -> None:
    network, images = Small(), pictures(3, seed=4)
    shaper = AdaSCALE.fit(reference_of(network, pictures(20, seed=1)))
    images[1] = torch.nan
    logits = shaper.logits(activations(network, images, *shaper.probes))
    assert logits.isnan().all(dim=1).tolist() == [False, True, False]


def test_searches_share_what_is_seen() -> None:
    reference = reference_of(Small(), pictures(20, seed=1))
    names = (
        "adascale",
        "adascale:variant=l,low=60",
        "adascale:k1=10,k2=5,lmbda=1",
        "adascale:share=0.1",
    )
    assert len({parse_method(name).fit(reference).probes[0].key for name in names}) == 2


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ("low=100", "adascale:low must be at least 0 and less than 100, not 100"),
        ("high=-1", "adascale:high must be at least 0 and less than 100, not -1"),
        ("low=85", "adascale:low must be less than adascale:high, not 85 and 85"),
        ("k1=0", "adascale:k1 must be a positive number, not 0"),
        ("k2=101", "adascale:k2 must be at most 100, not 101"),
        ("lmbda=0", "adascale:lmbda must be a positive number, not 0"),
        ("share=1.5", "adascale:share must be at most 1, not 1.5"),
        ("variant=b", "adascale:variant must be a or l, not 'b'"),
    ],
)
def test_parameters_out_of_range_are_refused(given: str, message: str) -> None:
    with pytest.raises(InvalidInputError, match=f"^{message}$"):
        parse_method(f"adascale:{given}").fit(calibrated(3.0))
