"""A linear probe: the last layer of a network that was trained without one."""

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
        Their classes, ``(n,)``.
    classes
        Number of classes, ``k``.

    Returns
    -------
    tuple
        Weight ``(k, d)`` and bias ``(k,)`` for the features as they are, float32.

    Raises
    ------
    InvalidInputError
        If a feature is not finite.

    Notes
    -----
    Features are standardised for the fit, which weight and bias undo. It minimises the mean
    cross-entropy plus 1e-4 / 2 times the squared weights by L-BFGS from zero, in float64: there is
    no chance in it and no learning rate. SupContrast's own probe is trained with stochastic
    gradient descent and augmentation.
    """
    if not features.isfinite().all():
        raise InvalidInputError(
            "the network gives features that are not finite; train with a smaller learning rate"
        )
    wide = torch.float32 if features.device.type == "mps" else torch.float64
    mean = features.to(wide).mean(dim=0)
    spread = features.to(wide).std(dim=0, correction=0)
    # What varies less than float32 rounds does not vary.
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
