"""Near-duplicates among images: the same pixels, or almost the same picture and features."""

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray
from PIL import Image

HASH_BITS = 3
"""Perceptual hashes of near-duplicates differ in at most this many of 64 bits."""
FEATURE_DISTANCE = 0.05
"""Largest squared distance between unit features of near-duplicates."""

# Of 64 bits in 4 bands, two hashes that differ in 3 bits or less agree in a whole band.
_BANDS = HASH_BITS + 1
_SHIFTS = tuple(np.uint64(16 * band) for band in range(_BANDS))


def difference_hash(image: NDArray[np.uint8]) -> int:
    """Return the difference hash of an image, an integer of 64 bits.

    Parameters
    ----------
    image
        ``(h, w, 3)``.

    Notes
    -----
    The image is averaged to 9 x 8 grey values; each bit tells whether one is brighter than its
    right neighbour. Small changes of size, compression or brightness change few bits.

    References
    ----------
    Krawetz. "Kind of Like That". 2013, hackerfactor.com, where it is called dHash.
    """
    grey = Image.fromarray(np.ascontiguousarray(image)).convert("L")
    small = np.asarray(grey.resize((9, 8), Image.Resampling.BOX), dtype=np.int16)
    bits = np.packbits(small[:, :-1] > small[:, 1:])
    return int.from_bytes(bits.tobytes(), "big")


def near_duplicates(
    digests: NDArray[np.uint64], hashes: NDArray[np.uint64], units: NDArray[np.float32]
) -> NDArray[np.int64]:
    """Return for every image the first image of its group, ``(n,)``; its own index if it is first.

    Two images are in one group if they have the same pixels, or if their hashes differ in at most
    :data:`HASH_BITS` bits and their features by at most :data:`FEATURE_DISTANCE`; groups that share
    an image are one. The hash alone would join plain pictures of different things, and features
    alone different images of one class, which a classifier maps to almost the same.

    Parameters
    ----------
    digests
        Digest of the pixels of every image, ``(n,)``.
    hashes
        :func:`difference_hash` of every image, ``(n,)``.
    units
        Features of length 1 or 0, ``(n, d)``.
    """
    from scipy.sparse import coo_array
    from scipy.sparse.csgraph import connected_components

    n = len(digests)
    _, first, inverse = np.unique(digests, return_index=True, return_inverse=True)
    pairs = [np.stack([np.arange(n), first[inverse]], axis=1)]
    pairs += _near(np.sort(first), hashes, units)
    one, other = np.concatenate(pairs).T
    graph = coo_array((np.ones(len(one), np.int8), (one, other)), shape=(n, n))
    _, groups = connected_components(graph, directed=False)
    _, firsts, group = np.unique(groups, return_index=True, return_inverse=True)
    return firsts[group].astype(np.int64)


def _near(
    rows: NDArray[np.int64], hashes: NDArray[np.uint64], units: NDArray[np.float32]
) -> Iterator[NDArray[np.int64]]:
    """Yield pairs of different images that are near-duplicates, ``(m, 2)`` each."""
    for shift in _SHIFTS:
        bands = (hashes[rows] >> shift) & np.uint64(0xFFFF)
        order = np.argsort(bands, kind="stable")
        ends = np.flatnonzero(np.diff(bands[order])) + 1
        for bucket in np.split(rows[order], ends):
            for at in range(len(bucket) - 1):
                one, others = bucket[at], bucket[at + 1 :]
                others = others[_bits(hashes[others] ^ hashes[one]) <= HASH_BITS]
                distances = np.square(units[others] - units[one]).sum(axis=1)
                others = others[distances <= FEATURE_DISTANCE]
                if len(others):
                    yield np.stack([np.full(len(others), one), others], axis=1)


def _bits(values: NDArray[np.uint64]) -> NDArray[np.int64]:
    """Return the number of bits that are set in each value, ``(n,)``."""
    return np.unpackbits(values.view(np.uint8)).reshape(len(values), 64).sum(axis=1, dtype=np.int64)
