"""Activations, whole and in shards."""

import pytest
import torch

from oodcli.activations import Activations, ActivationSet, ActivationShard, Head, Reference
from oodcli.errors import InvalidInputError


def activations(start: int, n: int) -> Activations:
    """Make rows that carry their number."""
    rows = torch.arange(start, start + n, dtype=torch.float32)[:, None]
    return Activations(
        rows, rows.expand(-1, 3), rows.expand(-1, 2), rows[:, 0].long(), extra={"probe": rows * 2}
    )


def test_arrays_of_different_lengths_are_a_bug() -> None:
    good = activations(0, 4)
    with pytest.raises(ValueError, match="different lengths"):
        Activations(good.logits, good.features[:3], good.block_norms, good.predictions)


def test_shards_are_read_in_order_and_only_when_wanted() -> None:
    read: list[int] = []

    def shard(start: int) -> ActivationShard:
        def load() -> Activations:
            read.append(start)
            return activations(start, 5)

        return ActivationShard(5, load)

    images = ActivationSet([shard(0), shard(5), shard(10)])
    assert len(images) == 15
    assert read == []
    assert [len(chunk) for chunk in images.chunks(rows=5)] == [5, 5, 5]
    assert [len(chunk) for chunk in images.chunks(rows=14)] == [10, 5]
    assert [len(chunk) for chunk in images.chunks(rows=4)] == [5, 5, 5]
    assert torch.equal(next(images.chunks()).extra["probe"], images.column("probe"))
    read.clear()
    next(images.chunks(rows=5))
    assert read == [0]
    assert images.logits[:, 0].tolist() == list(range(15))
    assert images.column("probe")[:, 0].tolist() == list(range(0, 30, 2))
    read.clear()
    assert images.logits.shape == (15, 1)
    assert read == []
    assert images.features.shape == (15, 3)
    assert images.block_norms.shape == (15, 2)
    assert images.predictions.tolist() == list(range(15))


def test_the_head_is_the_last_linear_layer() -> None:
    layer = torch.nn.Linear(3, 2)
    head = Head(layer.weight.detach(), layer.bias.detach()).to("cpu")
    features = torch.randn(5, 3)
    torch.testing.assert_close(head(features), layer(features).detach())


def test_each_part_of_a_reference_is_made_once_and_only_when_touched() -> None:
    made: list[str] = []

    def load() -> ActivationSet:
        made.append("train")
        return ActivationSet.of(activations(0, 3))

    reference = Reference(Head(torch.zeros(1, 3), torch.zeros(1)), load_train=load)
    assert made == []
    assert len(reference.train) == len(reference.train) == 3
    assert made == ["train"]
    for part in ("jigsaw", "calibration"):
        with pytest.raises(InvalidInputError, match="this method needs"):
            getattr(reference, part)
