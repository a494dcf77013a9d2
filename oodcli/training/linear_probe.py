"""A linear probe: the last layer of a network that was trained without a classifier."""

import torch
from torch import Tensor
from torch.nn import functional

from oodcli.errors import InvalidInputError

_ITERATIONS = 200
_DECAY = 1e-4
_TINY = 1e-8


def fit_probe(features: Tensor, labels: Tensor, classes: int) -> tuple[Tensor, Tensor]:
    """Fit a multinomial logistic regression on fixed features.

    Parameters
    ----------
    features
        Features of training images without augmentation, ``(n, d)``.
    labels
        Classes of the images, int64 ``(n,)``.
    classes
        Number of classes, ``k``.

    Returns
    -------
    tuple
        Weight ``(k, d)`` and bias ``(k,)`` for features that are not standardised, float32.

    Raises
    ------
    InvalidInputError
        If a feature is not finite.

    Notes
    -----
    Features are standardised for the fit; the returned weight and bias include that scaling. The
    fit minimises the mean cross-entropy plus 1e-4 / 2 times the sum of squared weights by L-BFGS
    from zero, in float64 (float32 on mps): it is deterministic and has no learning rate. The linear
    probe of SupContrast is trained with stochastic gradient descent and augmentation.
    """
    if not features.isfinite().all():
        raise InvalidInputError(
            "the features of the network are not finite; train with a smaller learning rate"
        )
    wide = torch.float32 if features.device.type == "mps" else torch.float64
    mean = features.to(wide).mean(dim=0)
    spread = features.to(wide).std(dim=0, correction=0)
    # A feature that varies less than the rounding error of float32 counts as constant.
    constant = spread <= (torch.finfo(torch.float32).eps * mean.abs()).clamp(min=_TINY)
    spread = spread.masked_fill(constant, 1.0)
    standard = (features.to(wide) - mean) / spread
    weight = torch.zeros(
        classes, features.shape[1], dtype=wide, device=features.device, requires_grad=True
    )
    bias = torch.zeros(classes, dtype=wide, device=features.device, requires_grad=True)
    optimiser = torch.optim.LBFGS(
        [weight, bias], max_iter=_ITERATIONS, history_size=20, line_search_fn="strong_wolfe"
    )

    def closure() -> Tensor:
        optimiser.zero_grad()
        loss = functional.cross_entropy(standard @ weight.T + bias, labels)
        loss = loss + 0.5 * _DECAY * weight.square().sum()
        loss.backward()
        return loss

    optimiser.step(closure)  # type: ignore[arg-type,no-untyped-call,unused-ignore]
    with torch.no_grad():
        scaled = weight / spread
        return scaled.float(), (bias - scaled @ mean).float()
