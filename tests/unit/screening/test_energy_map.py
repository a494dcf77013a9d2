"""Energies of a block at every position, by hand."""

import pytest
import torch

from oodcli.models.hooks import feature_norm
from oodcli.probes import Output
from oodcli.screening.energy_map import EnergyMap
from tests.support.probing import Small, activations, pictures


def test_the_energy_of_a_position_is_the_norm_over_channels_of_the_relu() -> None:
    maps = torch.tensor([[[[3.0, -1.0]], [[4.0, 2.0]], [[-9.0, 0.5]]]])  # (1, 3, 1, 2)
    output = Output(torch.zeros(1, 2), torch.zeros(1, 2), {"middle": maps})
    energy = EnergyMap("b").observe(Small(), torch.zeros(1, 3, 8, 8), output)
    assert energy.tolist() == [[[5.0, pytest.approx(4.25**0.5)]]]
    assert maps[0, 2, 0, 0] == -9  # not changed


def test_energies_sum_the_squares_that_featurenorm_sums() -> None:
    network = Small()
    images = pictures(5, seed=3)
    found = activations(network, images, EnergyMap("c")).extra["energy map(c)"]
    maps = network.run(images, keep=["last"]).maps["last"].detach()
    assert found.shape == (5, 4, 4)
    positive = maps.clamp(min=0)
    for image in range(5):
        for row in range(4):
            for column in range(4):
                norm = float(positive[image, :, row, column].square().sum().sqrt())
                assert float(found[image, row, column]) == pytest.approx(norm, rel=1e-6)
    # One channel: both norms are of the same numbers.
    one = maps[:, :1]
    output = Output(torch.zeros(5, 2), torch.zeros(5, 2), {"last": one})
    energy = EnergyMap("c").observe(network, images, output)
    torch.testing.assert_close(energy.square().sum(dim=(1, 2)).sqrt(), feature_norm(one))
