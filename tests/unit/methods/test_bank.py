"""The bank of training vectors: exact whatever its blocks, and the same held or streamed."""

from collections.abc import Sequence

import pytest
import torch
from torch import Tensor

from oodcli.activations import Activations, ActivationSet, ActivationShard, Head, Reference
from oodcli.errors import UndefinedMethodError
from oodcli.methods import _bank as module
from oodcli.methods._bank import Bank, by_bank, unit_features
from oodcli.methods._class_means import directions


def drawn(n: int, width: int = 12, *, seed: int) -> Tensor:
    return torch.rand(n, width, generator=torch.Generator().manual_seed(seed))


def activations(features: Tensor) -> Activations:
    return Activations(features, features, features, features.argmax(dim=1))


def shards(features: Tensor, rows: int) -> ActivationSet:
    """Cut features into shards that are loaded one by one."""
    parts = features.split(rows)
    return ActivationSet(
        [ActivationShard(len(part), lambda part=part: activations(part)) for part in parts]
    )


def bank_of(features: Tensor, *, rows: int = 7) -> Bank:
    return Bank.of(
        shards(features, rows),
        lambda images: directions(images.features),
        size=len(features),
    )


def distances(queries: Tensor, features: Tensor) -> Tensor:
    """Return all squared distances of directions in float64, sorted, from their differences."""
    u = torch.nn.functional.normalize(queries.double(), dim=1)
    v = torch.nn.functional.normalize(features.double(), dim=1)
    return (u[:, None] - v).square().sum(dim=2).sort(dim=1).values


@pytest.fixture
def full(monkeypatch: pytest.MonkeyPatch) -> None:
    """Leave no free memory."""
    monkeypatch.setattr(module, "free_memory", lambda device: 0)


@pytest.fixture
def small_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Cut the bank, the queries and the pairs into many blocks of odd sizes."""
    monkeypatch.setattr(module, "_NUMBERS", 12 * 11)
    monkeypatch.setattr(module, "_PAIRS", 23)
    monkeypatch.setattr(module, "CHUNK_ROWS", 3)


def test_distances_are_those_of_the_definition() -> None:
    queries, features = drawn(9, seed=1), drawn(40, seed=2)
    found = bank_of(features).nearest(directions(queries), 5)
    assert found.shape == (9, 5)
    torch.testing.assert_close(
        found.double(), distances(queries, features)[:, :5], rtol=1e-5, atol=0
    )


def test_a_unit_vector_at_a_right_angle_is_at_distance_two() -> None:
    bank = bank_of(torch.tensor([[0.0, 3.0], [-2.0, 0.0]]))
    assert bank.nearest(torch.tensor([[1.0, 0.0]]), 2).tolist() == [[2.0, 4.0]]


@pytest.mark.parametrize("k", [1, 3, 10, 50])
@pytest.mark.usefixtures("small_blocks")
def test_blocks_do_not_matter(k: int, monkeypatch: pytest.MonkeyPatch) -> None:
    queries, features = directions(drawn(30, seed=1)), drawn(50, seed=2)
    cut = bank_of(features).nearest(queries, k)
    monkeypatch.undo()
    assert torch.equal(cut, bank_of(features).nearest(queries, k))


@pytest.mark.parametrize("rows", [1, 7, 50])
@pytest.mark.usefixtures("small_blocks")
def test_a_streamed_bank_gives_the_same_to_the_bit(
    rows: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    queries, features = directions(drawn(30, seed=1)), drawn(50, seed=2)
    held = bank_of(features, rows=rows)
    assert held.held is not None
    assert torch.equal(held.held, directions(features))
    monkeypatch.setattr(module, "free_memory", lambda device: 2 * 4 * 50 * 12 - 1)
    streamed = bank_of(features, rows=rows)
    assert streamed.held is None
    assert torch.equal(streamed.nearest(queries, 8), held.nearest(queries, 8))
    assert torch.equal(streamed.largest(queries, 8), held.largest(queries, 8))
    monkeypatch.setattr(module, "free_memory", lambda device: 2 * 4 * 50 * 12)
    assert bank_of(features).held is not None


@pytest.mark.usefixtures("full")
def test_a_streamed_bank_reads_one_shard_after_the_other() -> None:
    loaded: list[int] = []
    features = drawn(12_000, 2, seed=2)

    def load(first: int) -> Activations:
        loaded.append(first)
        return activations(features[first : first + 3000])

    source = ActivationSet(
        [ActivationShard(3000, lambda i=i: load(i)) for i in range(0, 12_000, 3000)]
    )
    bank = Bank.of(source, lambda images: images.features, size=12_000)
    loaded.clear()
    seen = [(first, len(vectors), len(loaded)) for first, vectors in bank.blocks(5000)]
    assert seen == [(0, 5000, 2), (5000, 5000, 4), (10_000, 2000, 4)]


@pytest.mark.parametrize("streamed", [False, True])
def test_order_does_not_matter(streamed: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    if streamed:
        monkeypatch.setattr(module, "free_memory", lambda device: 0)
    by_class = torch.cat([drawn(20, seed=i) + 3 * torch.eye(12)[i] for i in range(3)])
    queries = directions(drawn(10, seed=9) + 3 * torch.eye(12)[1])
    mixed = by_class[torch.randperm(60, generator=torch.Generator().manual_seed(0))]
    torch.testing.assert_close(
        bank_of(by_class).nearest(queries, 25), bank_of(mixed).nearest(queries, 25)
    )


@pytest.mark.parametrize("streamed", [False, True])
@pytest.mark.usefixtures("small_blocks")
def test_small_distances_keep_their_digits(streamed: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    if streamed:
        monkeypatch.setattr(module, "free_memory", lambda device: 0)
    centre = drawn(1, seed=3)
    # A cluster in which distances go down to 1e-8, where 2 - 2c is rounding alone; and one far off.
    steps = torch.logspace(-4, -1, 40)[:, None]
    features = torch.cat([centre + steps * drawn(40, seed=4), drawn(9, seed=5)])
    queries = centre + 1e-4 * drawn(6, seed=6)
    found = bank_of(features).nearest(directions(queries), 30)
    exact = distances(queries, features)[:, :30]
    assert exact.min() < 1e-7
    cosines = directions(queries).mm(directions(features).T)
    naive = (2 - 2 * cosines).sort(dim=1).values[:, :30].double()
    torch.testing.assert_close(found.double(), exact, rtol=3e-3, atol=0)
    assert ((naive - exact).abs() / exact).max() > 0.5


def test_a_vector_of_the_bank_is_at_distance_zero_from_itself() -> None:
    features = drawn(20, seed=1)
    assert bank_of(features).nearest(directions(features), 1).max() == 0


def test_a_zero_vector_is_at_distance_one_from_every_unit_vector() -> None:
    units = torch.tensor([[1.0, 0.0, 0.0], [0.0, 0.0, 0.0]])
    bank = bank_of(torch.tensor([[4.0, 3.0, 0.0], [0.0, 0.0, 0.0], [0.0, 0.0, 5.0]]))
    # cos = 4/5 gives 2 - 8/5 = 0.4; then the zero vector; then a right angle.
    torch.testing.assert_close(
        bank.nearest(units, 3), torch.tensor([[0.4, 1.0, 2.0], [0.0, 1.0, 1.0]])
    )


def test_a_bank_of_zeros_is_searched() -> None:
    bank = bank_of(torch.zeros(5, 3))
    assert bank.nearest(torch.eye(3), 2).tolist() == [[1.0, 1.0]] * 3


@pytest.mark.parametrize("streamed", [False, True])
def test_the_rows_of_neighbours_are_known_in_their_order(
    streamed: bool, monkeypatch: pytest.MonkeyPatch, small_blocks: None
) -> None:
    if streamed:
        monkeypatch.setattr(module, "free_memory", lambda device: 0)
    train = drawn(29, seed=1)
    # Nearer than products can tell: ranked by their differences.
    queries = train[[20, 3]] + 1e-5 * drawn(2, seed=2)
    train[11] = queries[0] + 1e-6 * drawn(1, seed=3)[0]
    bank = bank_of(train)
    units = directions(queries)
    found, rows = bank.neighbours(units, 4)
    u, v = directions(queries.double()), directions(train.double())
    expected = (u[:, None] - v).square().sum(dim=2).sort(dim=1)
    assert rows.tolist() == expected.indices[:, :4].tolist()
    assert rows[:, 0].tolist() == [11, 3]
    assert torch.equal(found, bank.nearest(units, 4))
    pairs = bank.distances(units, torch.tensor([1, 0]), torch.tensor([3, 11]))
    torch.testing.assert_close(pairs, found[:, 0].flip(0))


def test_more_neighbours_than_there_are_means_all() -> None:
    features = drawn(4, seed=2)
    assert bank_of(features).nearest(directions(drawn(3, seed=1)), 9).shape == (3, 4)


def test_no_query_has_no_neighbours() -> None:
    assert bank_of(drawn(4, seed=2)).nearest(torch.zeros(0, 12), 2).shape == (0, 2)


@pytest.mark.parametrize("k", [1, 30])
@pytest.mark.parametrize("coarse", [False, True])
def test_an_image_alone_has_the_neighbours_that_it_has_among_others(
    coarse: bool, k: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    if coarse:
        monkeypatch.setattr(module, "has_fast_bfloat16", lambda: True)
        monkeypatch.setattr(module, "_MANY_QUERIES", 40)
        monkeypatch.setattr(module, "_MANY_VECTORS", 0)
    features = drawn(2000, seed=2)
    features[::97] = 0
    queries = directions(drawn(40, seed=1))
    bank = bank_of(features, rows=300)
    together, rows = bank.neighbours(queries, k)
    for index in (0, 1, 39):
        alone, at = bank.neighbours(queries[index : index + 1], k)
        assert torch.equal(alone[0], together[index])
        assert torch.equal(at[0], rows[index])


@pytest.mark.usefixtures("small_blocks")
def test_silent_queries_have_the_same_neighbours_and_are_searched_once(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    features = drawn(50, seed=2)
    features[[4, 30]] = 0
    queries = directions(drawn(30, seed=1))
    queries[::3] = 0
    bank = bank_of(features)
    expected = [bank.neighbours(queries[index : index + 1], 6) for index in range(30)]
    searched: list[int] = []
    search = Bank._search_few

    def counted(self: Bank, few: Tensor, k: int, *, of_units: bool) -> tuple[Tensor, Tensor]:
        searched.append(len(few))
        return search(self, few, k, of_units=of_units)

    monkeypatch.setattr(Bank, "_search_few", counted)
    found, rows = bank.neighbours(queries, 6)
    assert sum(searched) == 21
    assert torch.equal(found, torch.cat([each[0] for each in expected]))
    assert torch.equal(rows, torch.cat([each[1] for each in expected]))
    assert found[0].tolist() == [0, 0, 1, 1, 1, 1]


def test_queries_of_a_graph_have_neighbours() -> None:
    queries = directions(drawn(40, seed=1)).requires_grad_()
    assert not bank_of(drawn(50, seed=2)).nearest(queries, 3).requires_grad


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_a_query_that_is_not_finite_has_no_number_and_spoils_no_other(bad: float) -> None:
    bank = bank_of(drawn(40, seed=2))
    queries = directions(drawn(5, seed=1))
    expected = bank.nearest(queries, 3)
    spoilt = queries.clone()
    spoilt[2, 4] = bad
    found = bank.nearest(spoilt, 3)
    assert found[2].isnan().all()
    others = [0, 1, 3, 4]
    assert torch.equal(found[others], expected[others])


def test_largest_products_are_in_falling_order_and_may_be_negative() -> None:
    features = torch.tensor([[1.0, 0.0], [-3.0, 0.0], [0.0, 2.0], [2.0, 2.0]])
    bank = Bank.of(shards(features, 3), lambda images: images.features, size=4)
    assert bank.largest(torch.tensor([[1.0, 0.5]]), 4).tolist() == [[3.0, 1.0, 1.0, -3.0]]


@pytest.mark.parametrize("streamed", [False, True])
def test_an_image_may_have_several_vectors_or_none(
    streamed: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    if streamed:
        monkeypatch.setattr(module, "free_memory", lambda device: 0)
    features = torch.arange(24.0).view(12, 2)

    def twice_where_even(images: Activations) -> Tensor:
        return images.features[images.features[:, 0] % 4 == 0].repeat_interleave(2, dim=0)

    bank = Bank.of(shards(features, 1), twice_where_even, size=12)
    got = torch.cat([vectors.clone() for _, vectors in bank.blocks(5)])
    assert got[:, 0].tolist() == [0, 0, 4, 4, 8, 8, 12, 12, 16, 16, 20, 20]


def test_the_bank_of_directions_is_made_once() -> None:
    made: list[int] = []

    def load() -> ActivationSet:
        made.append(1)
        return shards(drawn(6, seed=1), 3)

    reference = Reference(Head(torch.eye(12), torch.zeros(12)), load_train=load)
    assert unit_features(reference) is unit_features(reference)
    assert made == [1]
    assert unit_features(reference).size == 6


def test_an_empty_bank_is_refused() -> None:
    with pytest.raises(
        UndefinedMethodError, match=r"^there are no training images to find neighbours among$"
    ):
        Bank.of(ActivationSet([]), lambda images: images.features, size=0)


def test_detectors_that_share_a_bank_are_searched_once() -> None:
    banks = [bank_of(drawn(4, seed=i)) for i in range(2)]
    asked: list[tuple[int, Sequence[int]]] = []

    def search(bank: Bank, ks: Sequence[int]) -> list[Tensor]:
        asked.append((banks.index(bank), list(ks)))
        return [torch.tensor([100 * banks.index(bank) + k]) for k in ks]

    got = by_bank([(banks[1], 5), (banks[0], 2), (banks[1], 1), (banks[1], 5)], search)
    assert [int(each) for each in got] == [105, 2, 101, 105]
    assert asked == [(1, [5, 1, 5]), (0, [2])]


def test_a_bank_is_held_where_nobody_knows_how_much_memory_is_free(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(module, "free_memory", lambda device: None)
    assert bank_of(drawn(5, seed=0)).held is not None
