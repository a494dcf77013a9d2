"""Conformal p-values: how extreme a score is among the scores of ID images."""

import numpy as np
from numpy.typing import ArrayLike, NDArray


def conformal_p_values(id_scores: NDArray[np.float64], scores: ArrayLike) -> NDArray[np.float64]:
    """Return the conformal p-value of every score, float64 ``(m,)``; small = unlike ID images.

    Parameters
    ----------
    id_scores
        Scores of ID images that the network was not trained on (the calibration set), ascending,
        ``(n,)``; larger = more in-distribution.
    scores
        Scores of new images, ``(m,)``.

    References
    ----------
    Vovk, Gammerman, Shafer. "Algorithmic Learning in a Random World". Springer, 2005, equation 2.3.

    Bates, Candès, Lei, Romano, Sesia. "Testing for Outliers with Conformal p-values". The Annals of
    Statistics 51(1), 2023, arXiv:2104.08279, equation 1.

    Notes
    -----
    ``p = (1 + #{ID scores <= s}) / (n + 1)``: a multiple of ``1 / (n + 1)``. For a new ID image,
    exchangeable with the calibration images, ``P(p <= t) <= t`` for every ``t``, over the draw of
    both. Equal scores count as smaller, so that ties make p-values larger, never too small.
    The p-values of several images share the calibration set and are therefore dependent; given the
    calibration set, ``P(p <= t)`` varies around ``t`` with a standard deviation of about
    ``sqrt(t (1 - t) / n)``.

    Examples
    --------
    >>> conformal_p_values(np.array([1.0, 2.0, 3.0]), [0.0, 2.0, 9.0]).tolist()
    [0.25, 0.75, 1.0]
    """
    below = np.searchsorted(id_scores, np.asarray(scores, dtype=np.float64), side="right")
    return (1 + below) / (len(id_scores) + 1)
