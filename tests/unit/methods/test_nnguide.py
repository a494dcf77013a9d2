"""NNGuide by hand, its draw, and against another implementation."""

from math import exp, log

import pytest
import torch
from torch import Tensor

from oodcli.activations import Activations, ActivationSet, Head, Reference
from oodcli.errors import InvalidInputError
from oodcli.methods import _bank as bank_module
from oodcli.methods import parse_method
from oodcli.methods._class_means import directions
from oodcli.methods.base import score_many
from oodcli.methods.nnguide import NNGuide


def activations(features: Tensor, logits: Tensor) -> Activations:
    return Activations(logits, features, features, logits.argmax(dim=1))


def reference_of(train: Activations, rows: Tensor | slice = slice(None)) -> Reference:
    chosen = train.map(lambda values: values[rows])
    return Reference(
        Head(torch.eye(train.logits.shape[1]), torch.zeros(train.logits.shape[1])),
        load_train=lambda: ActivationSet.of(chosen),
    )


def many(n: int, *, seed: int = 0) -> Activations:
    generator = torch.Generator().manual_seed(seed)
    return activations(
        torch.rand(n, 6, generator=generator), torch.randn(n, 3, generator=generator) + 1
    )


def sorted_rows(values: Tensor) -> list[list[float]]:
    return sorted(values.tolist())


def test_is_the_energy_times_the_mean_of_the_largest_products() -> None:
    train = activations(
        torch.tensor([[2.0, 0.0], [0.0, 5.0], [3.0, 4.0]]),
        torch.tensor([[1.0, 1.0], [3.0, 0.0], [0.0, 0.0]]),
    )
    batch = activations(torch.tensor([[7.0, 0.0]]), torch.tensor([[2.0, 0.0]]))
    # Products with (1, 0): the energies times 1, 0 and 3/5.
    first, last, energy = log(2 * exp(1)), 0.6 * log(2), log(exp(2) + 1)
    got = [NNGuide.fit(reference_of(train), k=k, alpha=1).score(batch).item() for k in (1, 2, 3)]
    wanted = [energy * first, energy * (first + last) / 2, energy * (first + last) / 3]
    assert got == pytest.approx(wanted)


def test_draws_the_fraction() -> None:
    assert NNGuide.fit(reference_of(many(1000)), k=3, alpha=0.101).bank.size == 101
    whole = NNGuide.fit(reference_of(many(1000)), k=3, alpha=1.0)
    assert whole.bank.size == 1000


def test_draws_no_fewer_than_are_averaged() -> None:
    nnguide = NNGuide.fit(reference_of(many(1000)))
    assert nnguide.bank.size == nnguide.k == 100
    few = NNGuide.fit(reference_of(many(30)))
    assert few.bank.size == few.k == 30


def test_draws_the_same_images_in_whatever_order_they_lie() -> None:
    train = many(500)
    order = torch.randperm(500, generator=torch.Generator().manual_seed(1))
    banks = [
        NNGuide.fit(reference_of(train, rows), k=5, alpha=0.1).bank.held
        for rows in (slice(None), order)
    ]
    assert banks[0] is not None
    assert banks[1] is not None
    assert sorted_rows(banks[0]) == sorted_rows(banks[1])


def test_draws_at_random_from_class_after_class() -> None:
    train = many(2000)
    train.features[:, 0] = torch.arange(2000) // 200 + 1.0  # lies class after class
    held = NNGuide.fit(reference_of(train), k=1, alpha=0.1).bank.held
    assert held is not None
    energies = train.logits.logsumexp(dim=1, keepdim=True)
    scaled = (directions(train.features) * energies).tolist()
    places = torch.tensor([scaled.index(row) for row in held.tolist()])
    counts = torch.bincount(places // 200, minlength=10)
    # 200 of 2,000: 20 of each of the ten classes, with a standard deviation of 4.
    assert counts.min() >= 8
    assert counts.max() <= 34


def test_a_larger_fraction_holds_the_smaller() -> None:
    reference = reference_of(many(500))
    small, large = (NNGuide.fit(reference, k=2, alpha=a).bank.held for a in (0.05, 0.2))
    assert small is not None
    assert large is not None
    assert set(map(tuple, small.tolist())) < set(map(tuple, large.tolist()))


def test_images_that_share_their_logits_are_drawn_together() -> None:
    train = activations(torch.rand(40, 6), torch.ones(40, 3))
    assert NNGuide.fit(reference_of(train), k=2, alpha=0.1).bank.size == 40


@pytest.mark.parametrize("alpha", [0.1, 1.0])
def test_a_streamed_bank_gives_the_same_scores(
    alpha: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    train, batch = many(300), many(20, seed=1)
    held = NNGuide.fit(reference_of(train), k=9, alpha=alpha)
    monkeypatch.setattr(bank_module, "free_memory", lambda device: 0)
    streamed = NNGuide.fit(reference_of(train), k=9, alpha=alpha)
    assert streamed.bank.held is None
    assert torch.equal(streamed.score(batch), held.score(batch))


def test_scored_together_or_apart_is_the_same() -> None:
    reference, batch = reference_of(many(300)), many(20, seed=1)
    pairs = [(9, 0.1), (2, 0.1), (9, 1.0), (40, 0.5)]
    detectors = [NNGuide.fit(reference, k=k, alpha=alpha) for k, alpha in pairs]
    apart = torch.stack([each.score(batch).double() for each in detectors], dim=1)
    torch.testing.assert_close(score_many(detectors, batch), apart)


def test_parameters_are_bounded(reference: Reference) -> None:
    with pytest.raises(InvalidInputError, match=r"^nnguide:k must be at least 1, not 0$"):
        parse_method("nnguide:k=0").fit(reference)
    for value in ("0", "1.5", "nan"):
        with pytest.raises(
            InvalidInputError,
            match=rf"^nnguide:alpha must be greater than 0 and at most 1, not {value}$",
        ):
            parse_method(f"nnguide:alpha={value}").fit(reference)


def test_agrees_with_pytorch_ood_on_the_whole_bank(
    reference: Reference, id_batch: Activations, head: Head
) -> None:
    detector = pytest.importorskip("pytorch_ood.detector")
    theirs = detector.NNGuide(None, head, k=10)
    theirs.fit_features(reference.train.features, reference.labels)
    ours = NNGuide.fit(reference, k=10, alpha=1).score(id_batch)
    torch.testing.assert_close(ours, -theirs.predict_features(id_batch.features))
