"""Neuron activation coverage."""

import math
from collections.abc import Iterator
from functools import partial
from operator import itemgetter

import pytest
import torch
from torch import Tensor

from oodcli.activations import Activations, ActivationSet, ActivationShard, Head, Reference
from oodcli.errors import InvalidInputError, UndefinedMethodError
from oodcli.methods import nac as module_of_nac
from oodcli.methods import parse_method
from oodcli.methods.nac import NAC, StageCounts, counted, inner_edges, intervals
from tests.support.probing import Small, activations, learned, pictures, reference_of


def batch_of(head: Head, features: Tensor) -> Activations:
    logits = head(features)
    return Activations(logits, features, features[:, :1], logits.argmax(dim=1))


def test_edges_by_hand() -> None:
    # h = 4: x = 1, (2 + √1000) / 3, (1 + 2 √1000) / 3, √1000.
    root = 1000**0.5
    first, second = (
        torch.tensor(x).log() / torch.tensor(1000.0).log()
        for x in ((2 + root) / 3, (1 + 2 * root) / 3)
    )
    wanted = torch.tensor([first, second, 0.5, 1 - second, 1 - first])
    torch.testing.assert_close(inner_edges(8).float(), wanted)
    assert inner_edges(4).tolist() == [0.5]


def test_edges_are_closest_at_one_half_and_symmetric() -> None:
    edges = inner_edges(50)
    assert len(edges) == 47
    gaps = edges.diff()
    assert (gaps > 0).all()
    assert (gaps[:23].diff() < 0).all()
    torch.testing.assert_close(edges, 1 - edges.flip(0))


def test_states_at_the_ends_and_on_an_edge() -> None:
    # Of two intervals the second begins at 1/2, the state of a silent neuron.
    found = intervals(torch.tensor([[-1e9, -0.01, 0.0, 0.01, 1e9]]), alpha=100.0, bins=4)
    assert found.tolist() == [[0, 0, 1, 1, 1]]


def test_counts_grow_by_batches() -> None:
    products = torch.tensor([[-1.0, 1.0], [1.0, 1.0], [1.0, -1.0]])
    whole = counted(products, None, alpha=1.0, bins=4)
    assert whole.tolist() == [[1.0, 2.0], [1.0, 2.0]]
    first = counted(products[:1], None, alpha=1.0, bins=4)
    assert torch.equal(counted(products[1:], first, alpha=1.0, bins=4), whole)


def test_coverage_by_hand() -> None:
    # Two classes; with z = (f₁, -f₁) the gradient of KL(uniform ‖ p) with respect to f₁ is
    # (p₁ - 1/2) - (p₂ - 1/2) = tanh(f₁): its sign is that of f₁, and the product is never below 0.
    head = Head(torch.tensor([[1.0, 0.0], [-1.0, 0.0]]), torch.zeros(2))
    train = batch_of(head, torch.tensor([[2.0, 0.0], [0.1, 0.0], [3.0, 0.0]]))
    reference = Reference(head=head, load_train=lambda: ActivationSet.of(train))
    detector = NAC.fit(reference, alpha=1000.0, bins=4, least=4)
    assert detector.counts[0].tolist() == [[0.0, 3.0], [0.0, 3.0]]
    assert detector.score(batch_of(head, torch.tensor([[5.0, 7.0]]))).tolist() == [0.75]


def test_the_closed_form_is_the_gradient() -> None:
    network, images = Small(dtype=torch.float64), pictures(6, seed=1, dtype=torch.float64)
    batch = activations(network, images)
    features = batch.features.clone().requires_grad_()
    p = network.module.fc(features).softmax(dim=1)
    uniform = torch.full_like(p, 0.25)
    divergence = (uniform * (uniform / p).log()).sum()
    (gradient,) = torch.autograd.grad(divergence, features)
    products = module_of_nac._feature_products(network.head, batch.features, batch.logits)
    torch.testing.assert_close(products, batch.features * gradient)


def test_agrees_with_another_implementation_that_is_given_the_authors_intervals(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    other_nac = pytest.importorskip("pytorch_ood.detector.nac")
    network, train, images = Small(), pictures(80, seed=1), pictures(12, seed=2)
    monkeypatch.setattr(
        other_nac,
        "_bin_indices_geometric",
        lambda states, m: torch.bucketize(states, inner_edges(m).float(), right=True),
    )
    other = other_nac.NACUE(network.module, [network.module.pool], o_star=10)
    other.fit([train])
    ours = NAC.fit(reference_of(network, train), least=10)
    batch = activations(network, images)
    torch.testing.assert_close(ours.score(batch), -other.predict(images), rtol=1e-4, atol=1e-5)


def test_earlier_stages_are_added_as_worked_out_without_probe_and_learner() -> None:
    network = Small(dtype=torch.float64)
    train, images = (pictures(n, seed=n, dtype=torch.float64) for n in (40, 9))
    detector = NAC.fit(reference_of(network, train), layers=2, alpha=3.0, bins=20, least=8)

    def products(pixels: Tensor) -> list[Tensor]:
        module = network.module
        middle = module.middle(module.stem(pixels))
        features = module.pool(module.last(middle))
        divergence = -module.fc(features).log_softmax(dim=1).mean(dim=1).sum()
        on_map, on_features = torch.autograd.grad(divergence, [middle, features])
        both = middle.sum(dim=(2, 3)) * on_map.sum(dim=(2, 3)), features * on_features
        return [each.detach() for each in both]

    wanted = torch.zeros(9, dtype=torch.float64)
    for of_train, of_images in zip(products(train), products(images), strict=True):
        for neuron in range(of_train.shape[1]):
            met = intervals(of_train[:, neuron], alpha=3.0, bins=20)
            now = intervals(of_images[:, neuron], alpha=3.0, bins=20)
            covered = (met[:, None] == now).sum(dim=0) / 8
            wanted += covered.clamp(max=1) / of_train.shape[1]
    batch = activations(network, images, *detector.probes)
    torch.testing.assert_close(detector.score(batch), wanted, check_dtype=False, rtol=1e-5, atol=0)


def test_counts_of_stages_do_not_depend_on_batches() -> None:
    network, images = Small(dtype=torch.float64), pictures(30, seed=1, dtype=torch.float64)
    learner = StageCounts(1, 3.0, 20)
    whole = learned(network, images, learner)
    parts = learned(network, images.flip(0), learner, batch_size=7)
    assert {name: counts.shape for name, counts in whole.items()} == {"stage00": (6, 18)}
    assert torch.equal(whole["stage00"], parts["stage00"])
    assert whole["stage00"].sum(dim=1).eq(30).all()


def test_an_image_does_not_depend_on_its_neighbours() -> None:
    network = Small(dtype=torch.float64)
    train, images = (pictures(n, seed=n, dtype=torch.float64) for n in (40, 9))
    detector = NAC.fit(reference_of(network, train, batch_size=11), layers=2)
    whole = detector.score(activations(network, images, *detector.probes))
    parts = detector.score(activations(network, images.flip(0), *detector.probes, batch_size=2))
    assert torch.equal(parts.flip(0), whole)


class Shards(ActivationSet):
    """Activations in chunks of ten rows."""

    def chunks(self, rows: int = 10) -> Iterator[Activations]:
        """Yield the activations in chunks."""
        return super().chunks(rows)


def test_draws_its_images_from_all_chunks() -> None:
    train = activations(Small(), pictures(40, seed=1))
    shards = [
        ActivationShard(10, partial(train.map, itemgetter(slice(at, at + 10))))
        for at in range(0, 40, 10)
    ]
    whole, chunked = (
        Reference(head=Small().head, load_train=lambda each=each: each)  # type: ignore[misc]
        for each in (ActivationSet.of(train), Shards(shards))
    )
    counts = NAC.fit(chunked, images=12).counts[0]
    assert counts.sum(dim=1).eq(12).all()
    assert torch.equal(counts, NAC.fit(whole, images=12).counts[0])
    # A single image lies in one chunk, and the others give nothing.
    assert NAC.fit(chunked, images=1).counts[0].sum(dim=1).eq(1).all()


def test_refuses_more_stages_than_there_are() -> None:
    with pytest.raises(
        UndefinedMethodError,
        match=r"^nac:layers=3 is not defined for a network of 2 stages; take at most 2 layers$",
    ):
        parse_method("nac:layers=3").fit(reference_of(Small(), pictures(50, seed=1)))


def test_refuses_maps_that_are_not_finite() -> None:
    train = pictures(20, seed=1)
    train[3] = torch.nan
    with pytest.raises(
        InvalidInputError,
        match=r"^nac cannot learn from maps with values that are not finite; use other weights$",
    ):
        NAC.fit(reference_of(Small(), train), layers=2)


def test_searches_share_what_is_seen_of_scored_images() -> None:
    reference = reference_of(Small(), pictures(50, seed=1))
    names = ("nac:layers=2", "nac:layers=2,alpha=3", "nac:layers=2,bins=20,least=3")
    assert len({parse_method(name).fit(reference).probes[0].key for name in names}) == 1
    plain, deeper = (parse_method(name).fit(reference) for name in ("nac", "nac:layers=2"))
    assert plain.probes == ()
    assert deeper.probes[0].passes == StageCounts(1, 3.0, 20).passes == 3.0
    assert (
        len({StageCounts(1, 3.0, 20).key, StageCounts(1, 3.5, 20).key, StageCounts(1, 3.0, 22).key})
        == 3
    )


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ("layers=0", "nac:layers must be at least 1, not 0"),
        ("alpha=0", "nac:alpha must be a positive number, not 0"),
        ("bins=3", "nac:bins must be at least 4, not 3"),
        ("least=0", "nac:least must be at least 1, not 0"),
        ("images=0", "nac:images must be at least 1, not 0"),
    ],
)
def test_parameters_out_of_range_are_refused(given: str, message: str) -> None:
    with pytest.raises(InvalidInputError, match=f"^{message}$"):
        parse_method(f"nac:{given}").fit(reference_of(Small(), pictures(50, seed=1)))


def test_fewer_images_than_an_interval_needs_are_refused() -> None:
    reference = reference_of(Small(), pictures(9, seed=1))
    with pytest.raises(
        UndefinedMethodError,
        match=r"^nac is not defined here: it needs as many training images as an interval needs to "
        r"count as covered, but there are 9 of the 50 of nac:least=50; choose less with "
        r"nac:least=N, or train on more images$",
    ):
        parse_method("nac").fit(reference)
    assert parse_method("nac:least=9").fit(reference).params["least"] == 9


@pytest.mark.parametrize(("alpha", "least"), [(100.0, 50), (3000.0, 10)])
def test_many_classes_and_few_images_score_as_by_the_estimator_of_the_authors(
    alpha: float, least: int
) -> None:
    """Edges, and a count for each interval by comparison with both its ends, in float64."""
    generator = torch.Generator().manual_seed(0)
    weight = torch.randn(400, 32, generator=generator, dtype=torch.float64)
    head = Head(weight, torch.zeros(400, dtype=torch.float64))

    def batch(n: int) -> Activations:
        features = torch.randn(n, 32, generator=generator, dtype=torch.float64).abs()
        logits = head(features)
        return Activations(logits, features, torch.ones(n, 1), logits.argmax(dim=1))

    def states(of: Activations) -> torch.Tensor:
        leaves = of.features.clone().requires_grad_()
        loss = -head(leaves).log_softmax(dim=1).mean(dim=1).sum()
        (gradient,) = torch.autograd.grad(loss, leaves)
        return (alpha * of.features * gradient).sigmoid()

    train, scored = batch(300), batch(40)
    points = torch.linspace(1, 1000**0.5, 25, dtype=torch.float64).log() / math.log(1000)
    edges = [*points[:-1].tolist(), *(1 - points).flip(0).tolist()]
    edges[-1] += 0.01
    wanted = torch.zeros(40, dtype=torch.float64)
    for low, high in zip(edges, [*edges[1:], 1.2], strict=True):
        met = (states(train) >= low) & (states(train) < high)
        here = (states(scored) >= low) & (states(scored) < high)
        wanted += (here * (met.sum(dim=0) / least).clamp(max=1)).mean(dim=1)
    reference = Reference(head, load_train=lambda: ActivationSet.of(train))
    found = parse_method(f"nac:alpha={alpha:g},least={least}").fit(reference).detector
    torch.testing.assert_close(found.score(scored).double(), wanted)


@pytest.mark.parametrize(("classes", "alpha", "least"), [(100, 100.0, 50), (101, 3000.0, 10)])
def test_the_settings_are_those_of_the_authors_for_so_many_classes(
    classes: int, alpha: float, least: int
) -> None:
    generator = torch.Generator().manual_seed(0)
    head = Head(torch.randn(classes, 8, generator=generator), torch.zeros(classes))
    features = torch.randn(60, 8, generator=generator).abs()
    logits = head(features)
    train = Activations(logits, features, torch.ones(60, 1), logits.argmax(dim=1))
    reference = Reference(head, load_train=lambda: ActivationSet.of(train))
    fitted = parse_method("nac").fit(reference)
    assert (fitted.params["alpha"], fitted.params["least"]) == (alpha, least)
    own = parse_method(f"nac:alpha={alpha:g},least={least}").fit(reference)
    assert torch.equal(fitted.detector.score(train), own.detector.score(train))


@pytest.mark.parametrize("bins", [4, 5, 50, 400, 3000])
def test_states_are_looked_up_where_a_search_finds_them(bins: int) -> None:
    edges = inner_edges(bins).float()
    states = torch.cat([torch.rand(4000, generator=torch.Generator().manual_seed(0)), edges])
    products = torch.cat([torch.tensor([0.0, -0.0, 1e9, -1e9, torch.nan]), states.logit()])
    products = products[: len(products) // 3 * 3].view(-1, 3)
    expected = torch.bucketize(products.sigmoid(), edges, right=True)
    assert torch.equal(intervals(products, alpha=1.0, bins=bins), expected)
