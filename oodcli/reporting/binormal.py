"""Variance of an AUROC if the scores of both sides are normal, up to any monotone scale."""

from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

Floats = NDArray[np.float64]

# Logarithms of the ratio of both spreads that are weighed, and the spread of their prior.
_LOG_RATIOS = np.linspace(-1.5, 1.5, 31)
_PRIOR = 1.0
# Placements that a fit looks at; more are thinned evenly by rank.
_LOOKED_AT = 200
_NODES, _WEIGHTS = np.polynomial.legendre.leggauss(32)


def placement_variance(probits: ArrayLike, share: ArrayLike) -> Floats:
    """Return the variance of the placement of one image, ``(k,)``.

    Parameters
    ----------
    probits
        The normal quantile of every AUROC, ``(k,)``.
    share
        Which share of the variance of both sides together the side of the image has, ``(k,)``, from
        0 to 1; one half if both spread alike.

    References
    ----------
    Bamber. "The Area above the Ordinal Dominance Graph and the Area below the Receiver Operating
    Characteristic Graph". Journal of Mathematical Psychology 12(4), 1975, for normal scores.

    Notes
    -----
    Two differences that share an image correlate by ``share``; the variance is the probability that
    both are positive less that of two independent ones: Plackett's integral over the correlation
    ("A Reduction Formula for Normal Multivariate Integrals", Biometrika 41, 1954), with 32 nodes.
    """
    half = np.arcsin(np.asarray(share, dtype=np.float64))[..., None] / 2
    squares = np.asarray(probits, dtype=np.float64)[..., None] ** 2
    heights = np.exp(-squares / (1 + np.sin(half * (1 + _NODES))))
    return np.asarray((heights * half) @ _WEIGHTS / (2 * np.pi))


def spread_share(side: NDArray[np.floating[Any]], others: int, probit: float) -> float:
    """Return the share of the variance of both sides that one of them has, from its placements.

    Parameters
    ----------
    side
        Share of the other side that every image of this one is on the right side of, ``(n,)``.
    others
        Number of images of the other side.
    probit
        The normal quantile of AUROC.

    References
    ----------
    Pepe, Cai. "The Analysis of Placement Values for Evaluating Discriminatory Measures". Biometrics
    60(2), 2004: the likelihood of placements.

    Notes
    -----
    The mean over the posterior of the ratio of both standard deviations, with the AUROC as it is
    and a log-normal prior around 1. The normal quantile of a placement is a normal variable; those
    beyond the last image of the other side are censored.
    """
    from scipy.special import log_ndtr, ndtri

    if len(side) > _LOOKED_AT:
        every = ((np.arange(_LOOKED_AT) + 0.5) * len(side) / _LOOKED_AT).astype(np.int64)
        side = np.sort(side)[every]
    ratios = np.exp(_LOG_RATIOS)[:, None]
    centres = probit * np.sqrt(1 + ratios**2)
    edge = 0.5 / others
    last = ndtri(1 - edge)
    above, below = side > 1 - edge, side < edge
    inner = ndtri(side[~(above | below)].astype(np.float64))
    logs = np.sum(-(((inner - centres) / ratios) ** 2) / 2 - np.log(ratios), axis=1)
    logs += np.count_nonzero(above) * log_ndtr((centres - last) / ratios)[:, 0]
    logs += np.count_nonzero(below) * log_ndtr((-last - centres) / ratios)[:, 0]
    logs -= (_LOG_RATIOS / _PRIOR) ** 2 / 2
    weights = np.exp(logs - logs.max())
    shares = ratios[:, 0] ** 2 / (1 + ratios[:, 0] ** 2)
    return float(weights @ shares / weights.sum())
