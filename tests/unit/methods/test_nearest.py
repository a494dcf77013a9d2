"""Search by bounds: no bound is too small, and all ways give the same to the bit."""

import pytest
import torch
from torch import Tensor

from oodcli.methods import _bank, _nearest
from oodcli.methods._bank import Bank
from oodcli.methods._nearest import Coarse, Products, Table, has_fast_bfloat16, k_largest

NONE = torch.zeros(0, dtype=torch.int64)


def around(centres: Tensor, count: int, spread: float, *, seed: int, unit: bool = True) -> Tensor:
    """Draw vectors around centres."""
    generator = torch.Generator().manual_seed(seed)
    noise = torch.randn(count, centres.shape[1], generator=generator) / centres.shape[1] ** 0.5
    vectors = centres[torch.arange(count) % len(centres)] + spread * noise
    return torch.nn.functional.normalize(vectors, dim=1) if unit else vectors


def drawn(
    spread: float, *, size: int = 3000, width: int = 70, unit: bool = True
) -> tuple[Tensor, Tensor]:
    """Draw vectors of five classes, and queries near the classes and far from them."""
    generator = torch.Generator().manual_seed(0)
    centres = torch.rand(5, width, generator=generator)
    centres /= centres.norm(dim=1, keepdim=True)
    vectors = around(centres, size, spread, seed=1, unit=unit)
    queries = torch.cat(
        [around(centres, 30, spread, seed=2), around(-centres[:2], 10, 1.0, seed=3)]
    )
    return vectors, queries


def tables(vectors: Tensor, silent: Tensor = NONE) -> list[Table]:
    lengths = vectors.norm(dim=1)
    return [Products(vectors, lengths, silent), Coarse(vectors, lengths, silent)]


@pytest.fixture(autouse=True)
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    """Use several centres, also for few vectors, and many batches of queries."""
    monkeypatch.setattr(_nearest, "_PER_CENTRE", 400)
    monkeypatch.setattr(_nearest, "_QUERIES", 16)
    monkeypatch.setattr(_nearest, "_NUMBERS", 3000 * 9)
    monkeypatch.setattr(_nearest, "_PAIRS", 999)


@pytest.mark.parametrize("scale", [1e-3, 1.0, 50.0])
@pytest.mark.parametrize("spread", [1.0, 0.1, 1e-3])
@pytest.mark.parametrize("way", [0, 1])
def test_no_product_is_above_its_bound(way: int, spread: float, scale: float) -> None:
    vectors, queries = drawn(spread, unit=False)
    vectors *= scale
    table = tables(vectors)[way]
    bounds = torch.empty(16, table.columns, dtype=table.dtype)
    few = queries[::3][:14]
    offset = table.fill(bounds[:14], few, 10)
    exact = few.double() @ vectors.double().T
    if table.rows is not None:
        exact = exact[:, table.rows[:3000]]
    wanted = (exact.float() - offset[:, None]).to(table.dtype)
    assert (bounds[:14, :3000] >= wanted).all()
    # Not by being useless: what is allowed for is a few times what bfloat16 rounds.
    room = (bounds[:14, :3000].double() + offset[:, None] - exact).amax() / scale
    assert room < 0.03 or scale > 1  # where queries are as long as vectors


@pytest.mark.parametrize("k", [1, 7, 60, 400])
@pytest.mark.parametrize("spread", [1.0, 0.2])
def test_all_ways_give_the_definition_and_the_same_to_the_bit(spread: float, k: int) -> None:
    vectors, queries = drawn(spread)
    exact = queries.double() @ vectors.double().T
    expected = exact.sort(dim=1, descending=True)
    found = [k_largest(queries, table, k) for table in tables(vectors)]
    products, rows, left = found[0]
    assert len(left) == 0
    torch.testing.assert_close(products.double(), expected.values[:, :k], rtol=0, atol=3e-7)
    torch.testing.assert_close(exact.gather(1, rows), expected.values[:, :k], rtol=0, atol=3e-7)
    done = torch.ones(len(queries), dtype=torch.bool)
    done[found[1][2]] = False
    assert done.any() or k >= 60
    assert torch.equal(found[1][0][done], products[done])
    assert torch.equal(found[1][1][done], rows[done])


def test_of_equal_products_the_first_rows_are_taken() -> None:
    vectors, _ = drawn(0.5)
    vectors[1000:1040] = vectors[7]
    for table in tables(vectors):
        _, rows, left = k_largest(vectors[7:8], table, 20)
        assert len(left) == 0
        assert rows.tolist() == [[7, *range(1000, 1019)]]


def test_silent_rows_are_not_found() -> None:
    vectors, queries = drawn(0.5)
    silent = torch.arange(0, 3000, 3)
    vectors[silent] = 0
    for table in tables(vectors, silent):
        products, rows, left = k_largest(queries, table, 9)
        assert len(left) == 0
        assert (rows % 3 > 0).all()
        assert products.isfinite().all()


@pytest.mark.parametrize("searched", [20, 21, 60])
def test_few_vectors_among_many_silent_ones_are_found(searched: int) -> None:
    vectors = torch.zeros(3000, 70)
    rows = torch.arange(searched) * 8  # of few groups of columns
    vectors[rows] = -drawn(1.0)[0][:searched]
    silent = (vectors.norm(dim=1) == 0).nonzero()[:, 0]
    queries = drawn(1.0)[0][-10:]
    for table in tables(vectors, silent):
        products, found, left = k_largest(queries, table, 20)
        done = [index for index in range(10) if index not in left]
        expected = (queries @ vectors[rows].T).sort(dim=1, descending=True)
        torch.testing.assert_close(products[done], expected.values[done, :20])
        assert torch.equal(found[done], rows[expected.indices[done, :20]])
    assert len(k_largest(queries, tables(vectors, silent)[0], 20)[2]) == 0


def test_products_beyond_the_range_of_numbers_are_infinite() -> None:
    vectors = torch.full((200, 4), 1e10)
    vectors[::2] *= -1
    found, _, left = k_largest(torch.full((3, 4), 1e28), tables(vectors)[0], 3)
    assert len(left) == 0
    assert found.tolist() == [[float("inf")] * 3] * 3


def test_one_crowded_query_does_not_make_all_others_wide() -> None:
    counts = torch.tensor([3, 2, 500, 4, 1])
    of = torch.arange(5).repeat_interleave(counts)
    runs = list(_nearest._parts(of, 5, 20))
    assert [(part.start, part.stop) for part, _ in runs] == [(0, 2), (2, 3), (3, 5)]
    assert [pairs for _, pairs in runs] == [slice(0, 5), slice(5, 505), slice(505, 510)]


def test_crowded_vectors_are_left_to_float32() -> None:
    vectors, queries = drawn(1e-3)
    products, coarse = tables(vectors)
    assert len(k_largest(queries, coarse, 5)[2]) > 0
    assert len(k_largest(queries, products, 5)[2]) == 0


@pytest.mark.parametrize("spread", [1.0, 0.1, 1e-3])
def test_a_bank_finds_the_same_with_and_without_bfloat16(
    spread: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    vectors, queries = drawn(spread)
    vectors[::50] = 0
    monkeypatch.setattr(_bank, "_MANY_QUERIES", 8)
    monkeypatch.setattr(_bank, "_MANY_VECTORS", 0)
    made: list[int] = []

    def counted(*arguments: Tensor) -> Coarse:
        made.append(1)
        return Coarse(*arguments)

    monkeypatch.setattr(_bank, "Coarse", counted)
    found = []
    for fast in (False, True):
        monkeypatch.setattr(_bank, "has_fast_bfloat16", lambda fast=fast: fast)
        bank = Bank.from_stored({"vectors": vectors}, torch.device("cpu"))
        found.append([bank.neighbours(queries, 11) for _ in range(2)][1])
    assert made == [1]  # once for two searches
    assert torch.equal(found[0][0], found[1][0])
    assert torch.equal(found[0][1], found[1][1])


@pytest.mark.parametrize(
    ("capabilities", "expected"),
    [({"avx512_bf16": True}, True), ({"amx_bf16": True}, True), ({"avx2": True}, False)],
)
def test_instructions_of_the_processor_decide(
    capabilities: dict[str, bool], expected: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: capabilities, raising=False)
    assert has_fast_bfloat16() is (expected and torch.backends.mkldnn.is_available())
    monkeypatch.delattr(torch.cpu, "get_capabilities")
    assert not has_fast_bfloat16()
