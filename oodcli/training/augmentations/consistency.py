"""The consistency loss of AugMix: predictions for an image and for two mixtures of it."""

from math import log

from torch import Tensor


def jensen_shannon(logits: Tensor) -> Tensor:
    """Return the mean Jensen-Shannon divergence of several predictions for each image.

    Parameters
    ----------
    logits
        Logits of ``v`` views of the images, ``(v, n, k)``.

    Returns
    -------
    Tensor
        ``()``, float32, natural logarithm: the mean over images and views of ``KL(p_v || m)``,
        where ``m`` is the mean of the probabilities ``p_v``; from 0 to ``log v``.

    References
    ----------
    Hendrycks et al. "AugMix". ICLR 2020, arXiv:1912.02781, equation 1.

    Notes
    -----
    The code of the authors computes with probabilities and clamps ``m`` at 1e-7; here everything is
    computed from logarithms.
    """
    own = logits.float().log_softmax(dim=2)  # (v, n, k)
    mean = own.logsumexp(dim=0) - log(len(own))  # (n, k)
    return (own.exp() * (own - mean)).sum(dim=2).mean()
