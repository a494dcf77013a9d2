"""Weights under the names of other people's code."""

import numpy as np
import pytest
import torch

from oodcli.errors import InvalidInputError
from oodcli.models import load_into, load_with_remarks, parse_architecture, read_checkpoint


def state_of(network):
    return {name: tensor.clone() for name, tensor in network.module.state_dict().items()}


@pytest.mark.parametrize(
    "prefix", ["model.", "net.", "backbone.", "model.module.", "_orig_mod.encoder.", "my.own.name."]
)
def test_whatever_prefix_all_names_have_is_taken_off(network, prefix):
    state = {f"{prefix}{name}": tensor for name, tensor in state_of(network).items()}
    found, remarks = load_with_remarks(network.spec, state)
    assert found.digest == network.digest
    bare = prefix.replace("module.", "").replace("_orig_mod.", "").rstrip(".")
    assert f"names: {bare!r} removed from {len(state)} tensors" in remarks


def test_a_wrapper_in_the_middle_of_names_is_taken_out(network):
    state = {
        name.replace("layer1.", "layer1.module."): tensor
        for name, tensor in state_of(network).items()
    }
    found, remarks = load_with_remarks(network.spec, state)
    assert found.digest == network.digest
    assert remarks == ("names: prefix module removed",)


def test_tensors_beside_the_network_are_left_aside_and_said(network):
    state = {f"net.{name}": tensor for name, tensor in state_of(network).items()}
    state["projection.0.weight"] = torch.ones(3, 3)
    found, remarks = load_with_remarks(network.spec, state)
    assert found.digest == network.digest
    assert remarks[0].endswith("; ignored: projection.0.weight")


SPELLINGS = {
    "blocks of wide networks": lambda name: name.replace("layer1.", "block1.layer."),
    "stages counted from zero": lambda name: name.replace("layer1.", "stages.0.").replace(
        "layer2.", "stages.1."
    ),
    "norms by their name": lambda name: name.replace(".bn1.", ".norm1.").replace(
        ".bn2.", ".norm2."
    ),
    "skips": lambda name: name.replace("shortcut", "skip"),
    "the last layer": lambda name: name.replace("fc.", "output."),
}


@pytest.mark.parametrize("spelling", SPELLINGS)
def test_names_of_the_usual_code_are_translated_and_said(network, spelling):
    state = {SPELLINGS[spelling](name): tensor for name, tensor in state_of(network).items()}
    found, remarks = load_with_remarks(network.spec, state)
    assert found.digest == network.digest
    assert len(remarks) == 1
    assert remarks[0].startswith("names: read ")


def test_names_that_fit_are_not_spoken_of(network):
    assert load_with_remarks(network.spec, state_of(network))[1] == ()


def test_order_and_shape_suffice_where_that_is_asked_for(network):
    state = {f"p{i}": tensor for i, (_, tensor) in enumerate(state_of(network).items())
             if tensor.ndim}  # fmt: skip
    with pytest.raises(InvalidInputError, match="do not fit"):
        load_into(network.spec, state)
    found, remarks = load_with_remarks(network.spec, state, by_order=True)
    assert found.digest == network.digest
    assert remarks == (
        f"names: by order, {len(state)} tensors of the same shapes: "
        f"p0 as conv1.weight, p1 as bn1.weight, p2 as bn1.bias and {len(state) - 3} more",
    )


def test_an_order_that_does_not_fit_is_refused_with_the_first_place(network):
    tensors = [tensor for tensor in state_of(network).values() if tensor.ndim]
    few = {f"p{i}": tensor for i, tensor in enumerate(tensors[:-1])}
    with pytest.raises(InvalidInputError, match=r"has \d+ tensors and the checkpoint \d+, so"):
        load_with_remarks(network.spec, few, by_order=True)
    tensors[0] = tensors[0].flatten()
    other = {f"p{i}": tensor for i, tensor in enumerate(tensors)}
    with pytest.raises(InvalidInputError, match=r"p0 \(108,\) would be conv1.weight \(4, 3"):
        load_with_remarks(network.spec, other, by_order=True)


@pytest.mark.parametrize("n", [150, pytest.param(1000, marks=pytest.mark.slow)])
@pytest.mark.parametrize(
    ("name", "accuracy"), [("cifar10", 0.9453), ("cifar100", 0.7506)], ids=["cifar10", "cifar100"]
)
def test_the_published_densenets_have_their_published_accuracy(
    shared, cifar_test, name, accuracy, n
):
    """On test images evenly spaced, within two standard errors of the accuracy on all 10,000."""
    path = shared / "data" / "checkpoints" / "densenet" / f"{name}_checkpoint_100.pth.tar"
    network = load_into(parse_architecture("densenet100"), read_checkpoint(path).state)
    images, labels = cifar_test(name)
    mean = torch.tensor([0.4914, 0.4822, 0.4465]).view(3, 1, 1)
    std = torch.tensor([0.2023, 0.1994, 0.2010]).view(3, 1, 1)
    chosen = np.linspace(0, len(images) - 1, n).astype(int)
    pixels = (torch.from_numpy(images[chosen]).float() / 255 - mean) / std
    with torch.inference_mode():
        found = torch.cat([network.module(part).argmax(1) for part in pixels.split(50)])
    share = (found.numpy() == labels[chosen]).mean()
    assert abs(share - accuracy) < 2 * (accuracy * (1 - accuracy) / n) ** 0.5
