"""Products of matrices are those of torch, whatever computes them."""

from types import SimpleNamespace

import pytest
import torch

from oodcli.compute import products
from oodcli.compute.products import product, ready


def drawn(rows: int, width: int, *, seed: int) -> torch.Tensor:
    return torch.randn(rows, width, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("rows", [0, 1, 31, 32, 300])
@pytest.mark.parametrize("others", [1, 70])
def test_products_are_those_of_torch(
    rows: int, others: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(products, "_NUMBERS", 300 * 11)
    monkeypatch.setattr(products, "_ROWS", 100)
    left, right = drawn(rows, 24, seed=1), drawn(others, 24, seed=2)
    expected = (left.double() @ right.double().T).float()
    torch.testing.assert_close(product(left, right), expected, rtol=1e-5, atol=1e-5)
    assert product(left, right[:0]).shape == (rows, 0)
    out = torch.full((rows, others + 3), torch.nan)
    assert product(left, right, out=out[:, :others]).data_ptr() == out.data_ptr()
    torch.testing.assert_close(out[:, :others], expected, rtol=1e-5, atol=1e-5)
    assert out[:, others:].isnan().all()


@pytest.mark.parametrize("queries", [5, 64])
def test_rows_that_are_ready_give_the_same(queries: int) -> None:
    left, right = drawn(5, 24, seed=1), drawn(70, 24, seed=2)
    few, others = (ready(rows, queries=queries) for rows in (left, right))
    assert few.is_mkldnn is (queries == 64 and torch.backends.mkldnn.is_available())
    torch.testing.assert_close(product(few, others), left @ right.T, rtol=1e-5, atol=1e-5)


def test_transposed_and_float64_rows_are_multiplied_too() -> None:
    left, right = drawn(40, 24, seed=1), drawn(24, 9, seed=2)
    torch.testing.assert_close(product(left, right.T), left @ right, rtol=1e-5, atol=1e-5)
    assert torch.equal(product(left.double(), right.double().T), left.double() @ right.double())


def test_products_are_not_rounded_where_the_program_allows_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    left, right = drawn(64, 512, seed=1), drawn(64, 512, seed=2)
    monkeypatch.setattr(torch, "get_float32_matmul_precision", lambda: "medium")
    exact = torch.mm(left.double(), right.double().T).float()
    assert torch.equal(product(left, right), exact)
    assert torch.equal(product(left, right, out=torch.empty(64, 64)), exact)
    assert not ready(left, queries=64).is_mkldnn


def test_the_newer_setting_of_rounding_counts_and_spoils_nothing(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    left, right = drawn(64, 512, seed=1), drawn(64, 512, seed=2)

    def refuse() -> str:
        raise RuntimeError("mix of the legacy and new APIs")

    monkeypatch.setattr(torch, "get_float32_matmul_precision", refuse)
    plain = product(left, right)
    torch.testing.assert_close(plain, left @ right.T, rtol=1e-5, atol=1e-4)
    setting = SimpleNamespace(fp32_precision="bf16")
    monkeypatch.setattr(torch.backends.mkldnn, "matmul", setting, raising=False)
    exact = torch.mm(left.double(), right.double().T).float()
    assert torch.equal(product(left, right), exact)
