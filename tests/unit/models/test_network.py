"""What is known of a network with its weights."""

from collections.abc import Callable

import pytest
import torch
from torch import nn

from oodcli.errors import InvalidInputError
from oodcli.models import Network, network_of, parse_architecture

MakeNetwork = Callable[..., Network]


def test_equal_networks_have_equal_digests(make_network: MakeNetwork) -> None:
    assert make_network().digest == make_network().digest


def test_the_digest_sees_every_weight_statistic_and_parameter(make_network: MakeNetwork) -> None:
    digests = {make_network().digest}
    for name in ("fc.bias", "layer1.0.conv1.weight", "bn1.running_var"):
        changed = make_network()
        changed.module.state_dict()[name].flatten()[0] += 1e-3
        digests.add(changed.digest)
    # The weights of this one are those of the first.
    digests.add(make_network("resnet18:stem_padding=2,width=4").digest)
    assert len(digests) == 5


def test_the_digest_does_not_see_the_count_of_batches(make_network: MakeNetwork) -> None:
    counted = make_network()
    counted.module.state_dict()["bn1.num_batches_tracked"] += 7
    assert counted.digest == make_network().digest


def test_the_head_is_a_copy_of_the_last_layer(network: Network) -> None:
    features = torch.randn(5, 32, generator=torch.Generator().manual_seed(0))
    last = network.module.get_submodule("fc")
    head = network.head()
    with torch.no_grad():
        expected = last(features)
        last.weight.zero_()
    torch.testing.assert_close(head(features), expected)
    assert not head.weight.requires_grad


def test_a_network_is_in_evaluation_mode() -> None:
    spec = parse_architecture("resnet20")
    module = spec.build(3).train()
    assert not any(part.training for part in network_of(spec, module).module.modules())


def test_block_shapes_leave_the_network_as_it_is(network: Network) -> None:
    assert network.block_shapes((8, 16))["4.2"] == (32, 1, 2)
    assert {p.device.type for p in network.module.parameters()} == {"cpu"}
    assert not any(part._forward_hooks for part in network.module.modules())


def test_vgg_refuses_images_of_which_nothing_would_be_left(make_network: MakeNetwork) -> None:
    with pytest.raises(InvalidInputError) as error:
        make_network("vgg11").block_shapes((32, 31))
    assert str(error.value) == (
        "vgg11 needs images of at least 32 x 32 pixels, not 32 x 31; "
        "resize them, or use another architecture"
    )


def test_a_network_needs_a_linear_last_layer_with_a_bias() -> None:
    spec = parse_architecture("resnet20")
    module = spec.build(3)
    module.fc = nn.Linear(64, 3, bias=False)
    with pytest.raises(TypeError, match="fc of resnet20 is not a linear layer with a bias"):
        network_of(spec, module)
