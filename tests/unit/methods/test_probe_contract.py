"""What every method promises that looks at the network, on a small one and real passes."""

from collections.abc import Mapping

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from oodcli.activations import (
    DIVISOR,
    ROTATION,
    Activations,
    ActivationSet,
    Part,
    Reference,
)
from oodcli.errors import UndefinedMethodError
from oodcli.methods import METHODS, Fitted, parse_method
from oodcli.metrics import MOSTLY_TIED, tied_share
from oodcli.models import Network, network_of, parse_architecture
from oodcli.models.extraction import ReadyNetwork, extract
from oodcli.probes import Learner, Probe
from oodcli.training.objectives.registry import parse_objective
from tests.support.clip import zero_shot_network

NAMES = [name for name, method in METHODS.items() if method.needs_network]
CLASSES = 3
NORMALISED = {"mean": (0.5, 0.5, 0.5), "std": (0.25, 0.3, 0.35)}


def coloured(n: int, *, seed: int) -> NDArray[np.uint8]:
    """Draw images of noise, each brighter in the channel of its class."""
    pixels = np.random.default_rng(seed).integers(0, 150, (n, 3, 32, 32), dtype=np.uint8)
    pixels[np.arange(n), np.arange(n) % CLASSES] += 100
    return pixels


def trained_network(kind: str = "") -> Network:
    """Return a small network that was fitted to the colours for a moment.

    Parameters
    ----------
    kind
        The kept head that it has; empty for none.
    """
    torch.manual_seed(0)
    spec = parse_architecture("resnet18:width=4")
    module = with_kept_head(spec.build(CLASSES), kind)
    pixels = torch.from_numpy(coloured(48, seed=5)).float() / 255 / 0.3 - 1.7
    labels = torch.arange(48) % CLASSES
    optimiser = torch.optim.SGD(module.parameters(), lr=0.05, momentum=0.9)
    for _ in range(12):
        optimiser.zero_grad()
        torch.nn.functional.cross_entropy(module(pixels), labels).backward()
        optimiser.step()
    # For the methods that make it active; in evaluation mode it passes maps on.
    module.get_submodule("layer4").append(torch.nn.Dropout(0.3))  # type: ignore[operator]
    return network_of(spec, module)


def with_kept_head(module: nn.Module, kind: str) -> nn.Module:
    """Return a network with a kept head, or unchanged."""
    objective = {ROTATION: "rotpred", DIVISOR: "g-odin"}.get(kind)
    if objective is not None:
        parse_objective(objective).objective.attach(module, "fc")
    return module


def activations(
    network: Network, pixels: NDArray[np.uint8], *probes: Probe, batch_size: int | None = None
) -> Activations:
    return next(
        iter(extract(network, [pixels], **NORMALISED, probes=probes, batch_size=batch_size))  # type: ignore[arg-type]
    )


def reference_of(network: Network, train: NDArray[np.uint8]) -> Reference:
    """Return a reference that runs the network when it is asked to, calibrated on ``train``."""

    def chosen(rows: Tensor | None) -> NDArray[np.uint8]:
        return train if rows is None else train[rows.numpy()]

    def probed(_part: Part, probe: Probe, rows: Tensor | None) -> ActivationSet:
        return ActivationSet.of(activations(network, chosen(rows), probe))

    def learned(learner: Learner, rows: Tensor | None) -> Mapping[str, Tensor]:
        return ReadyNetwork(network).learn([chosen(rows)], learner, **NORMALISED, batch_size=20)  # type: ignore[arg-type]

    def plain() -> ActivationSet:
        return ActivationSet.of(activations(network, train))

    def labels() -> Tensor:
        return torch.arange(len(train)) % CLASSES

    return Reference(
        head=network.head(),
        load_train=plain,
        load_labels=labels,
        load_calibration=plain,
        load_calibration_labels=labels,
        load_probed=probed,
        load_state=learned,
        load_block_widths=lambda: tuple(
            channels for channels, _, _ in network.block_shapes((32, 32)).values()
        ),
        n_blocks=len(network.blocks),
    )


@pytest.fixture(scope="module")
def networks() -> Mapping[str, Network]:
    """Return trained networks, and a zero-shot classifier."""
    trained = {kind: trained_network(kind) for kind in ("", ROTATION, DIVISOR)}
    return {**trained, "zero-shot": zero_shot_network(CLASSES)}


def kind_of(name: str) -> str:
    """Return the key of the network that a method is defined for."""
    return "zero-shot" if METHODS[name].is_zero_shot else METHODS[name].kept_head


@pytest.fixture(scope="module")
def references(networks: Mapping[str, Network]) -> Mapping[str, Reference]:
    """Return the references that methods are fitted on."""
    return {key: reference_of(each, coloured(48, seed=1)) for key, each in networks.items()}


@pytest.fixture(scope="module", params=NAMES)
def name(request: pytest.FixtureRequest) -> str:
    """Return each method in turn."""
    return request.param


@pytest.fixture(scope="module")
def network(name: str, networks: Mapping[str, Network]) -> Network:
    """Return a network that the method is defined for."""
    return networks[kind_of(name)]


@pytest.fixture(scope="module")
def fitted(name: str, references: Mapping[str, Reference]) -> Fitted:
    """Return the method, fitted with its defaults."""
    return parse_method(name).fit(references[kind_of(name)])


def test_gives_one_finite_float_per_image_whatever_the_batches(
    fitted: Fitted, network: Network
) -> None:
    pixels = coloured(11, seed=2)
    whole = fitted.detector.score(activations(network, pixels, *fitted.probes))
    parts = fitted.detector.score(activations(network, pixels, *fitted.probes, batch_size=3))
    assert whole.shape == (11,)
    assert whole.is_floating_point()
    assert whole.isfinite().all()
    torch.testing.assert_close(parts, whole, rtol=1e-3, atol=1e-4)


def test_does_not_depend_on_the_order_of_images(fitted: Fitted, network: Network) -> None:
    pixels = coloured(11, seed=2)
    order = np.random.default_rng(0).permutation(11)
    scores = fitted.detector.score(activations(network, pixels, *fitted.probes))
    mixed = fitted.detector.score(activations(network, pixels[order], *fitted.probes))
    torch.testing.assert_close(mixed, scores[torch.from_numpy(order)], rtol=1e-3, atol=1e-4)


def test_gives_the_same_twice_and_leaves_its_input_alone(fitted: Fitted, network: Network) -> None:
    batch = activations(network, coloured(5, seed=2), *fitted.probes)
    before = {name: values.clone() for name, values in batch.arrays().items()}
    assert torch.equal(fitted.detector.score(batch), fitted.detector.score(batch))
    assert all(torch.equal(values, before[name]) for name, values in batch.arrays().items())


def test_one_image_and_a_black_one_have_scores(fitted: Fitted, network: Network) -> None:
    for pixels in (coloured(1, seed=3), np.zeros((2, 3, 32, 32), dtype=np.uint8)):
        assert fitted.detector.score(activations(network, pixels, *fitted.probes)).isfinite().all()


REFUSED = {
    ("gram", "one image a class"): "at least 10 training images, one of 10 of which is held out, "
    "but there are 3;",
    ("gram", "two images a class"): "held out, but there are 6;",
    ("gram", "one image many times"): "the maps of 27 training images are the same within",
    ("csd", "one image many times"): "from image to image, but those of 30 images do not;",
    ("multi-mahalanobis", "one image a class"): "but there is 1 of each of 3 classes;",
    ("multi-mahalanobis", "two images a class"): "6 images of 3 classes vary in 3 of",
    ("multi-mahalanobis", "one image many times"): "those of 30 images do not in layer 0;",
    ("multi-mahalanobis", "one class"): "but 30 images of 3 classes vary in 27 of 32 within",
    ("multi-knn", "one image many times"): "those of 30 images do not in layer 0;",
    ("odin", "one class"): "it needs at least 2 classes, but the network has 1;",
    ("iodin", "one class"): "it needs at least 2 classes, but the network has 1;",
    ("pro", "one class"): "it needs at least 2 classes, but the network has 1;",
    ("mcdropout", "one class"): "it needs at least 2 classes, but the network has 1;",
    ("rotpred", "one class"): "it needs at least 2 classes, but the network has 1;",
    ("g-odin", "one class"): "it needs at least 2 classes, but the network has 1;",
    ("glmcm", "one class"): "it needs at least 2 classes, but the network has 1;",
}
FEW: Mapping[str, NDArray[np.uint8]] = {
    "one image a class": coloured(CLASSES, seed=1),
    "two images a class": coloured(2 * CLASSES, seed=1),
    "one image many times": coloured(1, seed=1).repeat(30, axis=0),
    "one class": coloured(30, seed=1),
}


@pytest.mark.parametrize("case", FEW)
def test_a_degenerate_fit_is_refused_with_numbers_or_tells_images_apart(
    name: str, case: str, network: Network
) -> None:
    if case == "one class":
        torch.manual_seed(0)
        network = (
            zero_shot_network(1)
            if METHODS[name].is_zero_shot
            else network_of(network.spec, with_kept_head(network.spec.build(1), kind_of(name)))
        )
    reference = reference_of(network, FEW[case])
    if (name, case) in REFUSED:
        with pytest.raises(UndefinedMethodError) as raised:
            parse_method(name).fit(reference)
        assert REFUSED[name, case] in str(raised.value)
        return
    fitted = parse_method(name).fit(reference)
    scores = fitted.detector.score(activations(network, coloured(30, seed=2), *fitted.probes))
    assert scores.isfinite().all()
    assert tied_share(scores.detach().numpy()) <= MOSTLY_TIED


def test_the_cost_in_the_registry_is_that_of_the_probes(fitted: Fitted) -> None:
    declared = METHODS[fitted.canonical.split("+")[0]].passes
    assert declared == pytest.approx(sum(probe.passes for probe in fitted.probes))
