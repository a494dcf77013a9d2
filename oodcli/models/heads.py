"""Last layers that normalise the feature before the linear map.

Such a network predicts and scores by different forward passes, so the layer provides both: its own
forward pass for predictions, and the :class:`~oodcli.activations.Head` for scoring.
"""

import torch
import torch.nn.functional as F  # noqa: N812 - the name that torch's own documentation gives it
from torch import Tensor, nn

from oodcli.activations import Head
from oodcli.errors import InvalidInputError

SMALLEST_NORM = 1e-12


class UnitFeatureLinear(nn.Linear):
    """A linear layer applied to the feature divided by its length and by ``tau``.

    ``logits = weight @ (feature / max(||feature||, 1e-12) / tau) + bias``

    Parameters
    ----------
    in_features
        Length of a feature vector, ``d``.
    out_features
        Number of classes, ``k``.
    tau
        Temperature in training and prediction.
    scoring_tau
        Divisor of the unnormalised feature for scoring; 1 leaves it unchanged.

    References
    ----------
    Regmi, Panthi, Dotel, Gyawali, Stoyanov, Bhattarai. "T2FNorm: Train-time Feature Normalization
    for OOD Detection in Image Classification". CVPR workshops 2024, arXiv:2305.17797.

    Notes
    -----
    Both temperatures are buffers, so that a checkpoint is complete without its recipe. The layer
    computes in float32 even under autocast: it is small, and the length of a feature needs the
    precision.
    """

    tau: Tensor
    scoring_tau: Tensor

    def __init__(
        self, in_features: int, out_features: int, *, tau: float = 1.0, scoring_tau: float = 1.0
    ) -> None:
        super().__init__(in_features, out_features)
        self.register_buffer("tau", torch.tensor(float(tau)))
        self.register_buffer("scoring_tau", torch.tensor(float(scoring_tau)))

    def forward(self, input: Tensor) -> Tensor:  # noqa: A002 - torch's own name
        """Return the logits ``(n, k)`` of features ``(n, d)`` of any length."""
        with torch.autocast(input.device.type, enabled=False):
            unit = F.normalize(input.float(), dim=1, eps=SMALLEST_NORM)
            return F.linear(unit / self.tau, self.weight, self.bias)


class TextLinear(nn.Linear):
    """A last layer whose rows are unit text embeddings times the logit scale; inputs have length 1.

    Parameters
    ----------
    in_features
        Length of a feature vector, ``d``.
    out_features
        Number of classes, ``k``.

    Notes
    -----
    The logit scale is a buffer, so that a checkpoint is complete without the text tower.
    """

    logit_scale: Tensor

    def __init__(self, in_features: int, out_features: int) -> None:
        super().__init__(in_features, out_features)
        self.register_buffer("logit_scale", torch.tensor(1.0))


def text_embeddings(module: nn.Module, path: str) -> None:
    """Replace the last layer of a network by a :class:`TextLinear` with the same weights.

    Parameters
    ----------
    module
        The network, changed in place.
    path
        Path of the last linear layer.
    """
    old = module.get_submodule(path)
    assert isinstance(old, nn.Linear)  # ensured by every architecture
    with torch.random.fork_rng(devices=[]):  # the initial weights are replaced below
        new = TextLinear(old.in_features, old.out_features).to(old.weight.device)
    new.weight, new.bias = old.weight, old.bias
    module.set_submodule(path, new)


def unit_features(
    module: nn.Module, path: str, *, tau: float = 1.0, scoring_tau: float = 1.0
) -> None:
    """Replace the last layer of a network by a :class:`UnitFeatureLinear` with the same weights.

    Parameters
    ----------
    module
        The network, changed in place.
    path
        Path of the last linear layer.
    tau, scoring_tau
        As in :class:`UnitFeatureLinear`.
    """
    old = module.get_submodule(path)
    assert isinstance(old, nn.Linear)  # ensured by every architecture
    with torch.random.fork_rng(devices=[]):  # the initial weights are replaced below
        new = UnitFeatureLinear(
            old.in_features, old.out_features, tau=tau, scoring_tau=scoring_tau
        ).to(old.weight.device)
    new.weight, new.bias = old.weight, old.bias
    module.set_submodule(path, new)


def scoring_head(
    weight: Tensor,
    bias: Tensor,
    *,
    scoring_tau: float | None = None,
    logit_scale: float | None = None,
) -> Head:
    """Return the linear map for scoring.

    Parameters
    ----------
    weight, bias
        Weight ``(k, d)`` and bias ``(k,)`` of the last layer.
    scoring_tau
        Divisor of features for scoring; None for a plain linear layer.
    logit_scale
        Factor of unit text embeddings; None for a layer that was trained.

    Raises
    ------
    InvalidInputError
        If ``scoring_tau`` or ``logit_scale`` is not a positive finite number.
    """
    if logit_scale is not None and not 0 < logit_scale < float("inf"):
        raise InvalidInputError(
            f"the weights have a logit scale of {logit_scale:g}, which is not a positive number; "
            "use another checkpoint"
        )
    if scoring_tau is None:
        return Head(weight, bias, scale=logit_scale)
    if not 0 < scoring_tau < float("inf"):
        raise InvalidInputError(
            f"the weights divide features by {scoring_tau:g}, which is not a positive number; use "
            "another checkpoint"
        )
    return Head(weight / scoring_tau, bias, scoring_tau)
