"""Float32 products of matrices at the speed of the processor."""

import torch
from torch import Tensor
from torch.nn import functional

# Fewer rows than this are not worth the conversion.
_FEW = 32
# Numbers of a product at a time, 2 MB, and of the other rows in it, 4 MB, which stay in a cache.
_NUMBERS, _OTHERS = 2**19, 2**20


def product(rows: Tensor, others: Tensor, *, out: Tensor | None = None) -> Tensor:
    """Return the inner products of rows with other rows, ``(n, m)``.

    The same as ``rows @ others.T`` but for the order of the sums. On a CPU, oneDNN computes it
    block by block: the BLAS library of torch does not use all instructions of some processors, and
    needs twice as long there.

    Parameters
    ----------
    rows
        ``(n, d)``; both may be :func:`ready`, without ``out``.
    others
        ``(m, d)``, of the same type.
    out
        Where to write the products, ``(n, m)``; None for new memory.
    """
    if rows.is_mkldnn:
        return functional.linear(rows, others).to_dense()
    if not _converts(rows, len(rows)):
        return torch.mm(rows, others.T, out=out)
    if out is None:
        out = rows.new_empty(len(rows), len(others))
    columns = max(1, min(_NUMBERS // len(rows), _OTHERS // rows.shape[1]))
    converted = rows.to_mkldnn()
    for first in range(0, len(others), columns):
        part = slice(first, first + columns)
        found = functional.linear(converted, others[part].to_mkldnn())
        out[:, part] = found.to_dense()
    return out


def ready(rows: Tensor, *, queries: int) -> Tensor:
    """Return rows as :func:`product` converts them, for those that are multiplied many times.

    Parameters
    ----------
    rows
        ``(n, d)``: queries, or what they are multiplied with. Either both are ready or none.
    queries
        Number of queries.
    """
    return rows.to_mkldnn() if _converts(rows, queries) else rows


def _converts(rows: Tensor, queries: int) -> bool:
    return (
        not torch.compiler.is_compiling()  # a graph that is recorded is for any number of rows
        and rows.device.type == "cpu"
        and rows.dtype == torch.float32
        and queries >= _FEW
        and torch.backends.mkldnn.is_available()
        # Otherwise the products may be rounded further.
        and torch.get_float32_matmul_precision() == "highest"
    )
