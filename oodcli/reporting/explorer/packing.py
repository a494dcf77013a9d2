"""Arrays of numbers as text of a page: base64 of little-endian numbers, with their type."""

import base64
from typing import Any, NewType

import numpy as np
from numpy.typing import NDArray

Packed = NewType("Packed", str)
"""``TYPE:BASE64``, where the type is ``u1``, ``u2``, ``u4``, ``f4`` or ``f8``."""

_UNSIGNED = {"u1": 0xFF, "u2": 0xFFFF, "u4": 0xFFFFFFFF}


def packed_counts(counts: NDArray[Any]) -> Packed:
    """Return non-negative integers below 2³² in the smallest type that holds them all.

    Parameters
    ----------
    counts
        The numbers, of any shape; they are written in C order.

    Examples
    --------
    >>> packed_counts(np.array([1, 300]))
    'u2:AQAsAQ=='
    """
    largest = int(np.max(counts, initial=0))
    return _packed(counts, next(kind for kind, most in _UNSIGNED.items() if largest <= most))


def packed_reals(values: NDArray[Any], *, exact: bool = False) -> Packed:
    """Return real numbers, as float32 or exactly as float64.

    Parameters
    ----------
    values
        The numbers, of any shape; they are written in C order.
    exact
        Whether to write float64.
    """
    return _packed(values, "f8" if exact else "f4")


def unpacked(text: Packed) -> NDArray[Any]:
    """Return the numbers of a text of this module, ``(n,)``."""
    kind, _, content = text.partition(":")
    return np.frombuffer(base64.b64decode(content), dtype=f"<{kind}")


def _packed(values: NDArray[Any], kind: str) -> Packed:
    content = np.ascontiguousarray(values).astype(f"<{kind}").tobytes()
    return Packed(f"{kind}:{base64.b64encode(content).decode()}")
