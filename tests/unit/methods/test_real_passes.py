"""Methods with probes inside the passes of networks of every family."""

from collections.abc import Mapping

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor

from oodcli.activations import Activations, ActivationSet, Part, Reference
from oodcli.methods import parse_method
from oodcli.models import Network, network_of, parse_architecture
from oodcli.models.extraction import ReadyNetwork, extract
from oodcli.probes import Learner, Probe

NAMES = ("odin", "gram:powers=2", "rankfeat", "nac:layers=2,least=5", "adascale")
NORMALISED = {"mean": (0.5, 0.5, 0.5), "std": (0.25, 0.3, 0.35)}
TRAIN = np.random.default_rng(0).integers(0, 256, (12, 3, 32, 32), dtype=np.uint8)
SCORED = np.random.default_rng(1).integers(0, 256, (5, 3, 32, 32), dtype=np.uint8)


@pytest.fixture(scope="module", params=["vgg11", "resnet20", "wrn-40-2"])
def network(request: pytest.FixtureRequest) -> Network:
    """Return an untrained network of each family."""
    torch.manual_seed(0)
    spec = parse_architecture(request.param)
    return network_of(spec, spec.build(3))


def activations(
    network: Network, pixels: NDArray[np.uint8], *probes: Probe, **how: object
) -> Activations:
    return next(iter(extract(network, [pixels], probes=probes, **NORMALISED, **how)))  # type: ignore[arg-type]


def reference_of(network: Network, **how: object) -> Reference:
    def chosen(rows: Tensor | None) -> NDArray[np.uint8]:
        return TRAIN if rows is None else TRAIN[rows.numpy()]

    def probed(_part: Part, probe: Probe, rows: Tensor | None) -> ActivationSet:
        return ActivationSet.of(activations(network, chosen(rows), probe, **how))

    def learned(learner: Learner, rows: Tensor | None) -> Mapping[str, Tensor]:
        ready = ReadyNetwork(network, device=str(how.get("device", "cpu")))
        return ready.learn([chosen(rows)], learner, **NORMALISED)  # type: ignore[arg-type]

    return Reference(
        head=network.head(),
        load_train=lambda: ActivationSet.of(activations(network, TRAIN, **how)),
        load_labels=lambda: torch.zeros(len(TRAIN), dtype=torch.long),
        load_probed=probed,
        load_state=learned,
    )


@pytest.mark.parametrize("name", NAMES)
def test_scores_are_finite_in_every_family_and_precision(network: Network, name: str) -> None:
    for precision in ("float32", "bfloat16"):
        fitted = parse_method(name).fit(reference_of(network, precision=precision))
        batch = activations(network, SCORED, *fitted.probes, precision=precision)
        scores = fitted.detector.score(batch)
        assert scores.shape == (5,)
        assert scores.isfinite().all()
        assert len(scores.unique()) > 1
