"""ODIN."""

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from oodcli.activations import ActivationSet, Reference
from oodcli.errors import InvalidInputError, UndefinedMethodError
from oodcli.methods import parse_method, parse_methods
from oodcli.methods.odin import IODIN, ODIN, PerturbedLogits
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


def test_iodin_moves_the_one_value_with_the_largest_gradient(reference: Reference) -> None:
    """A second implementation, after that of OpenOOD."""
    network, images = Small(dtype=torch.float64), pictures(6, seed=1, dtype=torch.float64)
    detector = IODIN.fit(reference, temperature=2.0, epsilon=0.5)
    scores = detector.score(activations(network, images, *detector.probes))
    wanted = []
    for image in images:
        leaf = image[None].clone().requires_grad_()
        logits = network.module(leaf) / 2.0
        torch.nn.functional.cross_entropy(logits, logits.argmax(dim=1)).backward()
        assert leaf.grad is not None
        at = leaf.grad.abs().flatten().argmax()
        moved = image.clone().flatten()
        channel = int(at) // (8 * 8)
        sign = 1 if leaf.grad.flatten()[at] >= 0 else -1
        moved[at] -= 0.5 * sign / network.std[channel, 0, 0]
        logits = network.module(moved.view(1, 3, 8, 8)) / 2.0
        wanted.append(logits.softmax(dim=1).amax().detach())
    torch.testing.assert_close(scores.sigmoid(), torch.stack(wanted))
    assert detector.probes[0].key == "iodin(temperature=2.0,epsilon=0.5)"


def of_network(network: Small) -> Reference:
    """Return a reference whose training images are some pictures."""
    train = activations(network, pictures(60, seed=9, dtype=torch.float64))
    images = ActivationSet.of(train)
    return Reference(
        network.head,
        load_train=lambda: images,
        load_calibration=lambda: images,
        n_blocks=len(network.blocks),
    )


def norm_logits(network: Small, images: Tensor) -> Tensor:
    """Return the logits of features as long as FeatureNorm of the second block."""
    module = network.module
    middle = module.middle(module.stem(images))
    norm = middle.relu().square().sum(dim=(2, 3)).sqrt().mean(dim=1)
    feature = module.pool(module.last(middle))
    return module.fc(feature / feature.norm(dim=1, keepdim=True) * norm[:, None])


def test_odin_after_the_selected_norm_goes_through_it() -> None:
    network, images = Small(dtype=torch.float64), pictures(6, seed=1, dtype=torch.float64)
    fitted = parse_method("norm:block=1+odin:epsilon=0.01,temperature=3").fit(of_network(network))
    scores = fitted.detector.score(activations(network, images, *fitted.probes))
    leaves = images.clone().requires_grad_()
    loss = -(norm_logits(network, leaves) / 3).log_softmax(dim=1).amax(dim=1).sum()
    (gradient,) = torch.autograd.grad(loss, leaves)
    moved = images - 0.01 * gradient.sign() / network.std
    wanted = (norm_logits(network, moved) / 3).softmax(dim=1).amax(dim=1).detach()
    # FeatureNorm is in float32.
    torch.testing.assert_close(scores.sigmoid(), wanted, rtol=1e-5, atol=0)
    assert fitted.params == {
        "norm.block": 1, "odin.temperature": 3.0, "odin.epsilon": 0.01, "odin.scale": "log-odds",
    }  # fmt: skip
    assert fitted.canonical == "norm:block=1+odin:epsilon=0.01,temperature=3"


def test_odin_follows_a_shaper_that_has_learned() -> None:
    network, images = Small(dtype=torch.float64), pictures(5, seed=2, dtype=torch.float64)
    reference = of_network(network)
    fitted = parse_method("react:percentile=70+iodin").fit(reference)
    scores = fitted.detector.score(activations(network, images, *fitted.probes))
    assert scores.isfinite().all()
    shaped = parse_method("react:percentile=70+msp:temperature=1000").fit(reference).detector
    # One value moved by so little changes scores by little.
    plain = shaped.score(activations(network, images))
    torch.testing.assert_close(scores, plain, rtol=1e-3, atol=1e-5)
    other = parse_method("react:percentile=80+iodin").fit(reference)
    assert fitted.probes[0].key != other.probes[0].key
    again = parse_method("react:percentile=70+iodin").fit(reference)
    assert fitted.probes[0].key == again.probes[0].key


def test_a_channel_that_is_silent_has_no_gradient() -> None:
    network, images = Small(dtype=torch.float64), pictures(3, seed=3, dtype=torch.float64)
    with torch.no_grad():
        network.module.middle[0].weight[2] = 0
        network.module.middle[0].bias[2] = -1
    fitted = parse_method("norm:block=1+odin").fit(of_network(network))
    assert fitted.detector.score(activations(network, images, *fitted.probes)).isfinite().all()


def test_a_shaper_that_runs_the_network_is_refused() -> None:
    network = Small(dtype=torch.float64)
    reference = of_network(network)
    train = reference.train
    with_probe = replace(reference, load_probed=lambda *_: train)
    with pytest.raises(
        UndefinedMethodError, match="odin is not defined after RankFeat, which runs the network 2"
    ):
        parse_method("rankfeat+odin").fit(with_probe)


def test_the_selected_norm_meets_odin_in_the_group_of_all() -> None:
    names = {spec.canonical for spec in parse_methods(["all"])}
    assert {"norm+odin", "norm+iodin"} <= names
    assert "norm+odin" not in {spec.canonical for spec in parse_methods([])}
    spec = parse_method("norm+odin")
    assert (spec.passes, spec.needs_network) == (4.0, True)
    with pytest.raises(InvalidInputError, match=r"'knn' in 'norm\+knn' does not score logits"):
        parse_method("norm+knn")
