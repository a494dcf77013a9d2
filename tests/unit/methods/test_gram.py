"""Gram matrices."""

from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn

from oodcli.activations import Activations
from oodcli.errors import InvalidInputError, UndefinedMethodError
from oodcli.methods import parse_method
from oodcli.methods.gram import Excess, Gram, Ranges, row_sums
from tests.support.probing import (
    CLASSES,
    Small,
    activations,
    learned,
    pictures,
    reference_of,
)


def plain_row_sums(maps: Tensor, powers: int) -> Tensor:
    """Return the same by the whole Gram matrix."""
    parts = []
    for q in range(1, powers + 1):
        flat = maps.double().flatten(2) ** q
        sums = (flat @ flat.mT).sum(dim=2)
        parts.append(sums.sign() * sums.abs() ** (1 / q))
    return torch.cat(parts, dim=1)


def test_row_sums_by_hand() -> None:
    # F = [[1, 2], [3, -1]]: F Fᵀ = [[5, 1], [1, 10]], F² F²ᵀ = [[17, 13], [13, 82]].
    maps = torch.tensor([[[[1.0, 2.0]], [[3.0, -1.0]]]])
    wanted = torch.tensor([[6.0, 11.0, 30**0.5, 95**0.5]])
    torch.testing.assert_close(row_sums(maps, 2), wanted)


def test_the_sign_of_a_row_sum_stays() -> None:
    # F³ F³ᵀ = [[1, -8], [-8, 64]]: the row sums are -7 and 56.
    maps = torch.tensor([[[[1.0]], [[-2.0]]]])
    torch.testing.assert_close(
        row_sums(maps, 3)[0, 4:], torch.tensor([-(7 ** (1 / 3)), 56 ** (1 / 3)])
    )


def test_agrees_with_the_whole_matrix() -> None:
    maps = torch.randn(3, 6, 4, 4, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(
        row_sums(maps, 5), plain_row_sums(maps, 5).float(), rtol=1e-4, atol=1e-4
    )


def test_large_activations_do_not_overflow_and_zeros_are_zero() -> None:
    maps = torch.rand(1, 3, 2, 2, generator=torch.Generator().manual_seed(1))
    torch.testing.assert_close(row_sums(maps * 1e6, 5), row_sums(maps, 5) * 1e12)
    assert not row_sums(torch.zeros(1, 3, 2, 2), 5).any()


def test_works_in_half_precision_and_on_vectors() -> None:
    maps = torch.rand(2, 3, 2, 2, generator=torch.Generator().manual_seed(2)).bfloat16()
    with torch.autocast("cpu", torch.bfloat16):
        sums = row_sums(maps, 3)
    assert torch.equal(sums, row_sums(maps.float(), 3))
    assert row_sums(maps.flatten(1), 2).shape == (2, 24)


def ranges_of(network: Small, images: Tensor, powers: int) -> dict[str, Tensor]:
    return dict(learned(network, images, Ranges(powers)))


def test_ranges_are_those_of_every_predicted_class_whatever_the_batches() -> None:
    network, images = Small(), pictures(60, seed=1)
    state = ranges_of(network, images, 2)
    paths = network.modules_of(nn.Conv2d, nn.ReLU)
    with torch.no_grad():
        output = network.run(images, keep=paths)
    rows = torch.cat([row_sums(output.maps[path], 2) for path in paths], dim=1)
    classes = output.logits.argmax(dim=1)
    assert len(classes.unique()) > 1
    for c in classes.unique():
        torch.testing.assert_close(state["low"][c], rows[classes == c].amin(dim=0))
        torch.testing.assert_close(state["high"][c], rows[classes == c].amax(dim=0))
    order = torch.randperm(60, generator=torch.Generator().manual_seed(0))
    again = learned(network, images[order], Ranges(2), batch_size=7)
    torch.testing.assert_close(again, state, rtol=1e-5, atol=1e-6)


def test_excess_by_hand() -> None:
    # One layer of one channel of one pixel, so that g = F² at every power; range 1 to 4.
    class One:
        """A network of one convolution."""

        blocks = {"only": "conv"}  # noqa: RUF012 - a test double

        def modules_of(self, *_kinds: type[nn.Module]) -> list[str]:
            """Return the path of the convolution."""
            return ["conv"]

    probe = Excess.over({"low": torch.full((1, 2), 1.0), "high": torch.full((1, 2), 4.0)}, powers=2)
    values = torch.tensor([0.5, 1.5, 3.0])
    network, images = Small(), pictures(3, seed=0)
    output = replace(
        network.run(images), logits=torch.zeros(3, 1), maps={"conv": values[:, None, None, None]}
    )
    excess = probe.observe(One(), images, output)  # type: ignore[arg-type]
    # Two powers: 2 · (1 - 0.25) / 1, nothing, 2 · (9 - 4) / 4.
    torch.testing.assert_close(excess, torch.tensor([[1.5], [0.0], [2.5]]))


def test_agrees_with_another_implementation() -> None:
    detectors = pytest.importorskip("pytorch_ood.detector")
    network, train, images = Small(), pictures(80, seed=1), pictures(12, seed=2)
    reference = reference_of(network, train)
    ours = Gram.fit(reference, powers=3)
    batch = activations(network, images, *ours.probes)
    module = network.module
    layers = [*module.stem, *module.middle, *module.last]
    other = detectors.Gram(
        lambda maps: module.fc(module.pool(maps)), layers, CLASSES, num_poles_list=[1, 2, 3]
    )
    (probe,) = ours.probes
    assert isinstance(probe, Excess)
    widths = [3 * width for width in (5, 5, 6, 6, 8, 8)]
    other.feature_min = [list(each.chunk(3, dim=1)) for each in probe.low.split(widths, dim=1)]
    other.feature_max = [list(each.chunk(3, dim=1)) for each in probe.high.split(widths, dim=1)]
    other.layer_norm = ours.expected
    deviations = other._score(*other._create_feature_list(images))
    confidence = batch.logits.softmax(dim=1).amax(dim=1)
    torch.testing.assert_close(ours.score(batch), -deviations / confidence, rtol=1e-4, atol=1e-5)


def test_one_training_image_of_ten_is_held_out_from_the_ranges() -> None:
    network, train = Small(), pictures(50, seed=1)
    seen: dict[str, Tensor] = {}
    reference = reference_of(network, train)
    load_state, load_probed = reference.load_state, reference.load_probed

    def state(learner: Ranges, rows: Tensor) -> dict[str, Tensor]:
        seen["learned"] = rows
        return dict(load_state(learner, rows))

    def probed(part: str, probe: Excess, rows: Tensor) -> object:
        seen["held out"] = rows
        return load_probed(part, probe, rows)  # type: ignore[arg-type]

    detector = Gram.fit(replace(reference, load_state=state, load_probed=probed))  # type: ignore[arg-type]
    assert len(seen["held out"]) == 5
    assert torch.equal(torch.cat(list(seen.values())).sort().values, torch.arange(50))
    held_out = activations(network, train[seen["held out"]], *detector.probes)
    torch.testing.assert_close(
        detector.expected, held_out.extra[detector.probes[0].key].mean(dim=0), rtol=1e-5, atol=1e-6
    )


def test_a_layer_that_never_leaves_its_range_counts_undivided() -> None:
    network = Small()
    # Eight images five times: what is held out is among the others.
    train = pictures(8, seed=1).repeat(5, 1, 1, 1)
    assert torch.equal(Gram.fit(reference_of(network, train)).expected, torch.ones(6))


def test_too_few_images_to_hold_one_out_are_refused() -> None:
    with pytest.raises(
        UndefinedMethodError,
        match=r"^gram is not defined here: it needs at least 10 training images, one of 10 of "
        r"which is held out, but there are 9; train on more images$",
    ):
        parse_method("gram").fit(reference_of(Small(), pictures(9, seed=1)))


def test_a_class_that_was_never_predicted_has_the_range_of_all() -> None:
    low = torch.tensor([[1.0, 5.0], [torch.inf, torch.inf], [2.0, 3.0]])
    high = torch.tensor([[4.0, 6.0], [-torch.inf, -torch.inf], [3.0, 9.0]])
    probe = Excess.over({"low": low, "high": high}, powers=1)
    assert probe.low[1].tolist() == [1.0, 3.0]
    assert probe.high[1].tolist() == [4.0, 9.0]
    assert torch.equal(probe.low[[0, 2]], low[[0, 2]])


def test_the_key_and_equality_of_the_probe_follow_what_was_learned() -> None:
    ranges = {"low": torch.zeros(2, 3), "high": torch.ones(2, 3)}
    probe, same = Excess.over(ranges, powers=1), Excess.over(ranges, powers=1)
    assert probe.passes == Ranges(1).passes == 0.0
    other = Excess.over({**ranges, "high": torch.full((2, 3), 2.0)}, powers=1)
    assert probe == same
    assert hash(probe) == hash(same)
    assert probe != other
    assert len({probe.key, same.key, other.key}) == 2
    assert Ranges(1).key != Ranges(2).key


def test_an_image_does_not_depend_on_its_neighbours() -> None:
    network, images = Small(), pictures(11, seed=3)
    detector = Gram.fit(reference_of(network, pictures(60, seed=1)))
    whole = detector.score(activations(network, images, *detector.probes))
    parts = detector.score(activations(network, images.flip(0), *detector.probes, batch_size=3))
    torch.testing.assert_close(parts.flip(0), whole, rtol=1e-4, atol=1e-4)


def test_far_images_score_lower() -> None:
    network = Small()
    detector = Gram.fit(reference_of(network, pictures(60, seed=1)))

    def mean(images: Tensor) -> float:
        batch: Activations = activations(network, images, *detector.probes)
        return float(detector.score(batch).mean())

    assert mean(pictures(20, seed=2) * 5) < mean(pictures(20, seed=2))


def test_refuses_maps_that_are_not_finite() -> None:
    train = pictures(20, seed=1)
    train[3] = torch.nan
    with pytest.raises(
        InvalidInputError,
        match=r"^gram cannot learn from maps with values that are not finite; use other weights$",
    ):
        Gram.fit(reference_of(Small(), train))


def test_values_that_are_not_numbers_stay_with_their_image() -> None:
    network, images = Small(), pictures(3, seed=4)
    detector = Gram.fit(reference_of(network, pictures(40, seed=1)))
    images[1] = torch.nan
    scores = detector.score(activations(network, images, *detector.probes))
    assert scores.isnan().tolist() == [False, True, False]


def test_refuses_a_network_without_convolutions() -> None:
    network = Small()
    network.modules_of = lambda *_kinds: []  # type: ignore[method-assign]
    with pytest.raises(
        UndefinedMethodError, match=r"^gram is not defined for a network without convolutions; "
    ):
        Gram.fit(reference_of(network, pictures(20, seed=1)))


def test_powers_must_be_at_least_1() -> None:
    with pytest.raises(InvalidInputError, match=r"^gram:powers must be at least 1, not 0$"):
        parse_method("gram:powers=0").fit(reference_of(Small(), pictures(20, seed=1)))


def test_the_state_does_not_grow_with_the_number_of_images() -> None:
    network = Small()
    few, many = (ranges_of(network, pictures(n, seed=1), 5) for n in (5, 100))
    width = 5 * (5 + 5 + 6 + 6 + 8 + 8)
    for state in (few, many):
        assert {name: array.shape for name, array in state.items()} == {
            "low": (CLASSES, width),
            "high": (CLASSES, width),
        }
