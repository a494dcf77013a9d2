"""Float32 products of matrices at the speed of the processor."""

import torch
from torch import Tensor
from torch.nn import functional

# Fewer rows than this are not worth the conversion.
_FEW = 32
# Rows at a time; numbers of their product, 2 MB, and of the other rows in it, 4 MB, which stay in a
# cache.
_ROWS, _NUMBERS, _OTHERS = 1024, 2**19, 2**20


def product(rows: Tensor, others: Tensor, *, out: Tensor | None = None) -> Tensor:
    """Return the inner products of rows with other rows, ``(n, m)``.

    The same as ``rows @ others.T`` but for the order of the sums. On a CPU, oneDNN computes it
    block by block: the BLAS library of torch does not use all instructions of some processors, and
    needs twice as long there. Where the program allows torch to round float32 to fewer digits in
    products, they are computed in float64.

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
    if not _converts(rows, rows.shape[0]):  # len() would fix the number of rows of a graph
        if not _rounds(rows):
            return torch.mm(rows, others.T, out=out)
        exact = torch.mm(rows.double(), others.double().T)
        return exact.float() if out is None else out.copy_(exact)
    if out is None:
        out = rows.new_empty(len(rows), len(others))
    parts = [
        (slice(first, first + _ROWS), rows[first : first + _ROWS].to_mkldnn())
        for first in range(0, len(rows), _ROWS)
    ]
    columns = max(1, min(_NUMBERS // min(len(rows), _ROWS), _OTHERS // rows.shape[1]))
    for first in range(0, len(others), columns):
        columns_here = slice(first, first + columns)
        converted = others[columns_here].to_mkldnn()
        for part, few in parts:
            out[part, columns_here] = functional.linear(few, converted).to_dense()
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
        and not rows.requires_grad
        and queries >= _FEW
        and torch.backends.mkldnn.is_available()
        and not _rounds(rows)
    )


def _rounds(rows: Tensor) -> bool:
    """Return whether the program allows that torch rounds numbers in products of such rows."""
    if torch.compiler.is_compiling() or rows.device.type != "cpu" or rows.dtype != torch.float32:
        return False
    # Releases have one or both of two interfaces; the older one fails where the newer is in use.
    mkldnn = torch.backends.mkldnn
    settings = (torch.backends, mkldnn, getattr(mkldnn, "matmul", None))
    if any(getattr(each, "fp32_precision", "none") not in ("none", "ieee") for each in settings):
        return True
    try:
        return torch.get_float32_matmul_precision() != "highest"
    except RuntimeError:
        return False
