"""SupCon and ALPA against plain loops over pairs, and the probe that follows them."""

import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from oodcli.errors import InvalidInputError
from oodcli.training.linear_probe import fit_probe
from oodcli.training.objectives.alpa import ALPA, similarities
from oodcli.training.objectives.base import StepOutput
from oodcli.training.objectives.registry import parse_objective
from oodcli.training.objectives.supcon import SupCon, contrastive, supcon_loss


def unit_vectors(m: int = 8) -> tuple[Tensor, Tensor]:
    """Return unit vectors of two views of four images of two classes."""
    generator = torch.Generator().manual_seed(0)
    vectors = functional.normalize(torch.randn(m, 5, generator=generator), dim=1)
    return vectors, torch.tensor([0, 1, 0, 1]).repeat(m // 4)


def by_pairs(similarity: list[list[float]], labels: list[int]) -> float:
    """Return the contrastive loss by the sums of the papers."""
    total = 0.0
    for i, label in enumerate(labels):
        others = sum(math.exp(similarity[i][j]) for j in range(len(labels)) if j != i)
        positives = [p for p in range(len(labels)) if p != i and labels[p] == label]
        terms = [similarity[i][p] - math.log(others) for p in positives]
        total -= sum(terms) / max(1, len(positives))
    return total / len(labels)


def test_supcon_is_the_sum_over_pairs_with_its_factor() -> None:
    unit, labels = unit_vectors()
    pairs = (unit @ unit.T / 0.1).tolist()
    wanted = 0.1 / 0.07 * by_pairs(pairs, labels.tolist())
    assert float(supcon_loss(unit, labels, tau=0.1)) == pytest.approx(wanted, rel=1e-5)


def test_two_views_of_two_classes_by_hand() -> None:
    """Views of a class are equal, of other classes orthogonal: log(e^10 + 2) - 10 each."""
    unit = torch.eye(2).repeat(2, 1)
    loss = supcon_loss(unit, torch.tensor([0, 1, 0, 1]), tau=0.1)
    assert float(loss) == pytest.approx((math.log(math.exp(10) + 2) - 10) / 0.7, rel=1e-2)


def test_an_anchor_without_positives_counts_as_zero() -> None:
    similar = torch.tensor([[9.0, 1.0, 0.0], [1.0, 9.0, 0.5], [0.0, 0.5, 9.0]])
    labels = [0, 0, 1]
    wanted = by_pairs(similar.tolist(), labels)
    assert float(contrastive(similar, torch.tensor(labels))) == pytest.approx(wanted)


def test_the_gradient_of_supcon_is_that_of_differences() -> None:
    unit, labels = unit_vectors(4)
    torch.autograd.gradcheck(
        lambda u: supcon_loss(u, labels, tau=0.1), unit.double().requires_grad_()
    )


def local_vectors(m: int = 6, p: int = 4, e: int = 3) -> list[Tensor]:
    """Return queries, keys and values."""
    generator = torch.Generator().manual_seed(2)
    return [torch.randn(m, p, e, generator=generator).double() for _ in range(3)]


def pair_similarity(parts: list[Tensor], i: int, j: int) -> float:
    """Return the similarity of a pair by the formula of the paper, aligned values and all."""
    queries, keys, values = parts
    scale = math.sqrt(queries.shape[2])
    j_at_i = (queries[i] @ keys[j].T / scale).softmax(dim=1) @ values[j]
    i_at_j = (queries[j] @ keys[i].T / scale).softmax(dim=1) @ values[i]
    return float(
        (
            functional.cosine_similarity(values[i], j_at_i, dim=1)
            + functional.cosine_similarity(values[j], i_at_j, dim=1)
        ).mean()
    )


@pytest.mark.parametrize("chunk", [1, 6 * 16 * 4, 2**24])
def test_alpa_aligns_every_pair_as_the_paper_has_it(chunk: int) -> None:
    parts = local_vectors()
    found = similarities(*parts, chunk=chunk)
    for i in range(6):
        for j in range(6):
            assert float(found[i, j]) == pytest.approx(pair_similarity(parts, i, j), abs=1e-9)
    assert float(found.abs().max()) <= 2


def test_the_gradient_of_alpa_in_chunks_is_that_of_differences() -> None:
    parts = [part.requires_grad_() for part in local_vectors(3, 2, 2)]
    labels = torch.tensor([0, 1, 0])
    torch.autograd.gradcheck(
        lambda *qkv: contrastive(10 * similarities(*qkv, chunk=1), labels), parts
    )


def test_positions_without_activation_do_no_harm() -> None:
    parts = [part.clone() for part in local_vectors()]
    parts[2][0] = 0
    values = parts[2].requires_grad_()
    contrastive(10 * similarities(*parts), torch.tensor([0, 1, 2] * 2)).backward()
    assert values.grad is not None
    assert values.grad.isfinite().all()


def both_cosines(parts: list[Tensor], i: int, j: int) -> Tensor:
    """Return both cosines of a pair at every position, aligned values and all, ``(2, p)``."""
    queries, keys, values = parts
    scale = math.sqrt(queries.shape[2])
    return torch.stack(
        [
            functional.cosine_similarity(
                values[a], (queries[a] @ keys[b].T / scale).softmax(dim=1) @ values[b], dim=1
            )
            for a, b in ((i, j), (j, i))
        ]
    )


@pytest.mark.parametrize("chunk", [1, 2**24])
@pytest.mark.parametrize(
    ("pooling", "pool"),
    [
        # As the released code of MODE: both cosines are added at every position, then pooled.
        ("mean", lambda c: c.sum(dim=0).mean()),
        ("sum", lambda c: c.sum(dim=0).sum()),
        ("max", lambda c: c.sum(dim=0).max()),
        ("soft", lambda c: (6 * c.sum(dim=0)).exp().sum().log() / 6),
        ("max-each", lambda c: c.max(dim=1).values.sum()),
        ("soft-each", lambda c: ((6 * c).exp().sum(dim=1).log() / 6).sum()),
    ],
)
def test_positions_are_pooled_as_in_the_released_code(
    pooling: str, pool: Callable[[Tensor], Tensor], chunk: int
) -> None:
    parts = local_vectors()
    found = similarities(*parts, pooling=pooling, chunk=chunk)
    wanted = [[float(pool(both_cosines(parts, i, j))) for j in range(6)] for i in range(6)]
    torch.testing.assert_close(found, torch.tensor(wanted, dtype=torch.float64))


def test_poolings_differ_and_keep_their_order() -> None:
    parts = local_vectors()
    found = {how: similarities(*parts, pooling=how) for how in ("mean", "sum", "max", "soft")}
    torch.testing.assert_close(found["sum"], 4 * found["mean"])
    assert (found["max"] >= found["mean"]).all()
    assert (found["soft"] >= found["max"]).all()
    assert (similarities(*parts, pooling="max-each") > found["max"]).any()


def output(objective: SupCon | ALPA) -> tuple[StepOutput, Tensor]:
    """Return what an objective sees of eight random views."""
    generator = torch.Generator().manual_seed(3)
    maps = torch.rand(8, 6, 2, 2, generator=generator)
    features = maps.mean(dim=(2, 3))
    torch.manual_seed(0)
    layers = objective.extras(6, 6, 2)
    logits = torch.randn(8, 4, generator=generator)
    return StepOutput(logits, features, maps, layers(features, maps)), torch.arange(4).repeat(2)


def test_alpa_adds_to_its_base() -> None:
    seen, labels = output(ALPA())
    alone = parse_objective("alpa:base=none").objective.loss(seen, labels)
    supcon = supcon_loss(seen.extras[3], labels, tau=0.1)
    both = parse_objective("alpa").objective.loss(seen, labels)
    torch.testing.assert_close(both, supcon + alone)
    half = parse_objective("alpa:weight=0.5").objective.loss(seen, labels)
    torch.testing.assert_close(half, supcon + 0.5 * alone)
    classified = parse_objective("alpa:base=cross-entropy").objective.loss(seen, labels)
    torch.testing.assert_close(classified, functional.cross_entropy(seen.logits, labels) + alone)


def test_alpa_multiplies_by_ten() -> None:
    seen, labels = output(ALPA(base="none"))
    pairs = (10 * similarities(*seen.extras[:3])).tolist()
    wanted = by_pairs(pairs, labels.tolist())
    assert float(ALPA(base="none").loss(seen, labels).detach()) == pytest.approx(wanted, rel=1e-4)


def test_what_no_loss_reaches_is_not_trained() -> None:
    for text, trained in (
        ("supcon", False),
        ("alpa:base=none", False),
        ("alpa:base=cross-entropy", True),
    ):
        network = torch.nn.Sequential(torch.nn.Linear(3, 3), torch.nn.Linear(3, 2))
        objective = parse_objective(text).objective
        objective.attach(network, "1")
        assert objective.trains_last_layer is trained
        assert network[1].weight.requires_grad is trained
        assert network[0].weight.requires_grad
        assert objective.views == 2


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("supcon:tau=-1", "supcon:tau must be a positive number, not -1"),
        ("alpa:width=0", "alpa:width must be at least 1, not 0"),
        ("alpa:base=x", "alpa:base must be supcon or cross-entropy or none, not 'x'"),
    ],
)
def test_impossible_parameters_are_refused(text: str, message: str) -> None:
    with pytest.raises(InvalidInputError) as raised:
        parse_objective(text)
    assert str(raised.value) == message


def test_the_probe_is_where_the_penalised_loss_is_flat() -> None:
    generator = torch.Generator().manual_seed(5)
    labels = torch.arange(60) % 3
    features = torch.randn(60, 4, generator=generator) * 5 + 2
    features[:, 0] += 20 * labels
    weight, bias = fit_probe(features, labels, 3)
    mean, spread = features.double().mean(dim=0), features.double().std(dim=0, correction=0)
    w = (weight.double() * spread).requires_grad_()
    b = (bias.double() + weight.double() @ mean).requires_grad_()
    loss = functional.cross_entropy((features.double() - mean) / spread @ w.T + b, labels)
    (loss + 0.5e-4 * w.square().sum()).backward()
    assert w.grad is not None
    assert float(w.grad.abs().max()) < 1e-4
    assert ((features @ weight.T + bias).argmax(dim=1) == labels).float().mean() > 0.8
    again = fit_probe(features, labels, 3)
    assert torch.equal(weight, again[0])


def test_the_probe_takes_a_feature_that_never_changes() -> None:
    features = torch.tensor([[0.0, 1.0], [0.0, -1.0]])
    weight, bias = fit_probe(features, torch.tensor([0, 1]), 2)
    assert weight.isfinite().all()
    assert (features @ weight.T + bias).argmax(dim=1).tolist() == [0, 1]


def test_the_probe_refuses_features_that_are_not_finite() -> None:
    with pytest.raises(InvalidInputError, match="features of the network are not finite"):
        fit_probe(torch.full((2, 2), torch.nan), torch.tensor([0, 1]), 2)


def test_a_feature_that_varies_by_rounding_alone_does_not_count() -> None:
    generator = torch.Generator().manual_seed(0)
    features = torch.randn(60, 3, generator=generator)
    labels = (features[:, 0] > 0).long()
    plain, _ = fit_probe(features, labels, 2)
    steady = 1000 + 5e-5 * torch.randn(60, 1, generator=generator)
    assert 0 < steady.std() < 1e-4
    weight, _ = fit_probe(torch.cat([features, steady], dim=1), labels, 2)
    torch.testing.assert_close(weight[:, :3], plain, rtol=1e-3, atol=1e-3)
    assert weight[:, 3].abs().max() < 1e-3
