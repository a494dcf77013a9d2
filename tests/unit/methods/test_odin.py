"""ODIN."""

import pytest
import torch

from oodcli.activations import Reference
from oodcli.errors import InvalidInputError
from oodcli.methods import parse_method
from oodcli.methods.odin import ODIN, PerturbedLogits
from tests.support.probing import Small, activations, pictures


def test_moves_pixels_towards_the_predicted_class(reference: Reference) -> None:
    network, images = Small(dtype=torch.float64), pictures(6, seed=1, dtype=torch.float64)
    detector = ODIN.fit(reference, temperature=2.0, epsilon=0.01)
    scores = detector.score(activations(network, images, *detector.probes))
    leaves = images.clone().requires_grad_()
    tempered = network.module(leaves) / 2.0
    # The same loss in its long form: the negative log of the largest tempered probability.
    loss = -(tempered.softmax(dim=1).amax(dim=1)).log().sum()
    (gradient,) = torch.autograd.grad(loss, leaves)
    moved = images - 0.01 * torch.sign(gradient) / network.std
    wanted = (network.module(moved) / 2.0).softmax(dim=1).amax(dim=1)
    torch.testing.assert_close(scores.sigmoid(), wanted.detach())
    plain = (network.module(images) / 2.0).softmax(dim=1).amax(dim=1)
    assert (scores.sigmoid() > plain).all()


def test_agrees_with_another_implementation(reference: Reference) -> None:
    detectors = pytest.importorskip("pytorch_ood.detector")
    network, images = Small(), pictures(9, seed=2)
    ours = ODIN.fit(reference)
    other = detectors.ODIN(
        network.module, eps=0.0014, temperature=1000.0, norm_std=network.std.flatten().tolist()
    )
    batch = activations(network, images, *ours.probes)
    scores = ours.score(batch).sigmoid().float()
    torch.testing.assert_close(scores, -other.predict(images), rtol=1e-5, atol=0)
    published = ODIN.fit(reference, scale="probability")
    assert published.probes == ours.probes
    torch.testing.assert_close(published.score(batch), -other.predict(images), rtol=1e-6, atol=0)
    assert published.score(batch).dtype == torch.float32


def test_an_image_does_not_depend_on_its_neighbours(reference: Reference) -> None:
    network, images = Small(dtype=torch.float64), pictures(7, seed=3, dtype=torch.float64)
    detector = ODIN.fit(reference)
    whole = detector.score(activations(network, images, *detector.probes))
    parts = detector.score(activations(network, images.flip(0), *detector.probes, batch_size=2))
    torch.testing.assert_close(parts.flip(0), whole, rtol=1e-10, atol=0)


def test_a_pixel_without_gradient_stays() -> None:
    network, images = Small(), pictures(3, seed=4)
    with torch.no_grad():
        network.module.fc.weight.zero_()
    probe = PerturbedLogits(1.0, 100.0)
    batch = activations(network, images, probe)
    assert torch.equal(batch.extra[probe.key], batch.logits)
    assert probe.passes == 4.0


def test_images_of_inference_mode_will_do() -> None:
    network, probe = Small(), PerturbedLogits(1000.0, 0.01)
    with torch.inference_mode():
        images = pictures(3, seed=5)
    plain = pictures(3, seed=5)
    with torch.no_grad():
        seen = probe.observe(network, images, network.run(images))
        wanted = probe.observe(network, plain, network.run(plain))
    assert torch.equal(seen, wanted)


def test_values_that_are_not_numbers_stay_so(reference: Reference) -> None:
    network, images = Small(), pictures(3, seed=6)
    images[1] = torch.nan
    detector = ODIN.fit(reference)
    scores = detector.score(activations(network, images, *detector.probes))
    assert scores.isnan().tolist() == [False, True, False]


def test_every_parameter_has_a_key_of_its_own(reference: Reference) -> None:
    keys = {
        parse_method(name).fit(reference).probes[0].key
        for name in ("odin", "odin:temperature=1", "odin:epsilon=0.0028", "odin:epsilon=0.00280001")
    }
    assert len(keys) == 4
    assert "odin(temperature=1000.0,epsilon=0.0014)" in keys


@pytest.mark.parametrize("name", ["temperature", "epsilon"])
def test_parameters_must_be_positive(reference: Reference, name: str) -> None:
    with pytest.raises(InvalidInputError, match=f"^odin:{name} must be a positive number, not 0$"):
        parse_method(f"odin:{name}=0").fit(reference)
