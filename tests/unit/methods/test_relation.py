"""Relation by hand, and against the formula over all pairs in double precision."""

import pytest
import torch
from torch import Tensor

from oodcli.activations import Activations, ActivationSet, ActivationShard, Head, Reference
from oodcli.errors import InvalidInputError
from oodcli.methods import _bank as bank_module
from oodcli.methods import parse_method
from oodcli.methods import relation as module
from oodcli.methods.base import score_many
from oodcli.methods.relation import Relation

POWERS = (1.0, 2.0, 4.0, 6.0, 8.0, 3.0, 0.5, 2.5)


def activations(features: Tensor, logits: Tensor) -> Activations:
    return Activations(logits, features, features, logits.argmax(dim=1))


def many(n: int, *, seed: int) -> Activations:
    generator = torch.Generator().manual_seed(seed)
    return activations(
        torch.randn(n, 5, generator=generator), 3 * torch.randn(n, 4, generator=generator)
    )


def reference_of(train: Activations, rows: int | None = None) -> Reference:
    rows = rows or len(train)
    parts = [
        ActivationShard(
            len(train.logits[i : i + rows]), lambda i=i: train.map(lambda v: v[i : i + rows])
        )
        for i in range(0, len(train), rows)
    ]
    return Reference(
        Head(torch.zeros(4, 5), torch.zeros(4)), load_train=lambda: ActivationSet(parts)
    )


def all_pairs(train: Activations, batch: Activations, power: float, threshold: float) -> Tensor:
    u, v = (torch.nn.functional.normalize(a.features.double(), dim=1) for a in (batch, train))
    p, q = (a.logits.double().softmax(dim=1) for a in (batch, train))
    similarities = (u @ v.T).clamp(min=0) * (p @ q.T)
    return torch.where(similarities > threshold, similarities**power, 0.0).sum(dim=1)


def test_sums_the_similarities_above_the_threshold() -> None:
    sure, unsure = [50.0, 0.0], [0.0, 0.0]
    train = activations(
        torch.tensor([[2.0, 0.0], [3.0, 4.0], [0.0, 1.0], [-1.0, 0.0], [1.0, 50.0]]),
        torch.tensor([sure, unsure, sure, sure, sure]),
    )
    reference = reference_of(train)
    batch = activations(torch.tensor([[1.0, 0.0]]), torch.tensor([sure]))
    # 1 · 1, 3/5 · 1/2, 0, a negative cosine, and 0.02, which is below 0.03.
    assert Relation.fit(reference).score(batch).item() == pytest.approx(1.3)
    assert Relation.fit(reference, power=2).score(batch).item() == pytest.approx(1.09)
    assert Relation.fit(reference, threshold=0.5).score(batch).item() == pytest.approx(1.0)
    everything = Relation.fit(reference, threshold=0.0).score(batch).item()
    assert everything == pytest.approx(1.3 + 1 / 2501**0.5)


@pytest.mark.parametrize("power", POWERS)
def test_is_the_sum_over_all_pairs(power: float) -> None:
    train, batch = many(70, seed=1), many(20, seed=2)
    got = Relation.fit(reference_of(train), power=power).score(batch)
    torch.testing.assert_close(got, all_pairs(train, batch, power, 0.03), rtol=1e-5, atol=1e-9)


def test_similarities_are_computed_once_for_all_powers(monkeypatch: pytest.MonkeyPatch) -> None:
    train, batch = many(70, seed=1), many(20, seed=2)
    reference = reference_of(train)
    detectors = [Relation.fit(reference, power=p) for p in POWERS]
    detectors.insert(1, Relation.fit(reference, threshold=0.1))
    apart = torch.stack([each.score(batch) for each in detectors], dim=1)
    computed: list[int] = []
    sums = module._sums
    monkeypatch.setattr(module, "_sums", lambda *args: computed.append(len(args[1])) or sums(*args))
    torch.testing.assert_close(score_many(detectors, batch), apart)
    assert computed == [8, 1]


def test_blocks_and_streaming_and_order_do_not_matter(monkeypatch: pytest.MonkeyPatch) -> None:
    train, batch = many(70, seed=1), many(20, seed=2)
    whole = Relation.fit(reference_of(train)).score(batch)
    monkeypatch.setattr(module, "_BANK_ROWS", 9)
    monkeypatch.setattr(module, "_ROWS", 3)
    order = torch.randperm(70, generator=torch.Generator().manual_seed(0))
    mixed = Relation.fit(reference_of(train.map(lambda values: values[order])))
    torch.testing.assert_close(mixed.score(batch), whole, rtol=1e-5, atol=0)
    held = Relation.fit(reference_of(train, 8))
    # Room for one of the two banks: 70 x 4 numbers, but not 70 x 5.
    monkeypatch.setattr(bank_module, "free_memory", lambda device: 2 * 4 * 70 * 4)
    half = Relation.fit(reference_of(train, 8))
    assert half.units.held is None
    assert half.probabilities.held is not None
    assert torch.equal(half.score(batch), held.score(batch))
    monkeypatch.setattr(bank_module, "free_memory", lambda device: 0)
    streamed = Relation.fit(reference_of(train, 8))
    assert streamed.probabilities.held is None
    assert torch.equal(streamed.score(batch), held.score(batch))


def test_a_zero_feature_resembles_nothing() -> None:
    batch = activations(torch.zeros(1, 5), torch.zeros(1, 4))
    assert Relation.fit(reference_of(many(70, seed=1))).score(batch).tolist() == [0.0]


def test_shares_its_bank_with_knn(reference: Reference) -> None:
    knn = parse_method("knn").fit(reference).detector
    relation = parse_method("relation").fit(reference).detector
    assert knn.bank is relation.units  # type: ignore[attr-defined]


def test_parameters_are_bounded(reference: Reference) -> None:
    with pytest.raises(
        InvalidInputError, match=r"^relation:power must be a positive number, not 0$"
    ):
        parse_method("relation:power=0").fit(reference)
    for value in ("-0.1", "1", "nan"):
        with pytest.raises(
            InvalidInputError,
            match=rf"^relation:threshold must be at least 0 and less than 1, not {value}$",
        ):
            parse_method(f"relation:threshold={value}").fit(reference)
