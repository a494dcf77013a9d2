"""Last layers that normalise the feature before the linear map.

Such a network predicts and scores by different forward passes, so the layer provides both: its own
forward pass for predictions, and the :class:`~oodcli.activations.Head` for scoring.
"""

from collections.abc import Callable, Iterable, Mapping

import torch
import torch.nn.functional as F  # noqa: N812 - the name that torch's own documentation gives it
from torch import Tensor, nn

from oodcli.activations import BACKGROUND, CONFIDENCE, DIVISOR, ROTATION, Head
from oodcli.errors import InvalidInputError

SMALLEST_NORM = 1e-12
# Added to lengths in a quotient of G-ODIN.
GODIN_MARGIN = 1e-4
# Added to the standard deviation of a feature in z-scores.
SD_MARGIN = 1e-6
# Name of the submodule of a last layer that holds the kept heads.
KEPT = "kept"
_LINEAR = (ROTATION, CONFIDENCE, BACKGROUND)


class NormalisedLinear(nn.Linear):
    """A last layer that normalises the feature of each image in training and prediction.

    Images are scored by the linear map on the feature as it is, so that logits for scoring and
    predictions are those of two different forward passes.
    """


class UnitFeatureLinear(NormalisedLinear):
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


class StandardisedLinear(NormalisedLinear):
    """A linear layer applied to ``sigma`` times the z-scores of each feature.

    ``logits = weight @ (sigma (feature - mean(feature)) / (sd(feature) + 1e-6)) + bias``, with the
    mean and the standard deviation (of ``d - 1`` degrees of freedom) over the ``d`` values of the
    feature of one image.

    Parameters
    ----------
    in_features
        Length of a feature vector, ``d``.
    out_features
        Number of classes, ``k``.
    sigma
        Standard deviation of the values that the linear map sees in training and prediction.

    References
    ----------
    Regmi. "Going Beyond Conventional OOD Detection" (ASCOOD). arXiv:2411.10794. Layer:
    ``ascood_net.py`` of OpenOOD.

    Notes
    -----
    ``sigma`` is a buffer, so that a checkpoint is complete without its recipe. For scoring, OpenOOD
    gives the feature itself to the linear map, neither standardised nor multiplied by ``sigma``.
    The layer computes in float32 even under autocast.
    """

    sigma: Tensor

    def __init__(self, in_features: int, out_features: int, *, sigma: float = 1.0) -> None:
        super().__init__(in_features, out_features)
        self.register_buffer("sigma", torch.tensor(float(sigma)))

    def forward(self, input: Tensor) -> Tensor:  # noqa: A002 - torch's own name
        """Return the logits ``(n, k)`` of features ``(n, d)``."""
        with torch.autocast(input.device.type, enabled=False):
            features = input.float()
            centred = features - features.mean(dim=1, keepdim=True)
            scores = centred / (features.std(dim=1, keepdim=True) + SD_MARGIN)
            return F.linear(self.sigma * scores, self.weight, self.bias)


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


class KeptHeadsLinear(nn.Linear):
    """A last layer beside which further linear heads on the same features stay in the weights.

    Its own forward pass is that of the plain layer. The heads are submodules, ``kept.NAME``, so
    that they are part of every checkpoint; training and scorers compute their outputs.

    Parameters
    ----------
    in_features
        Length of a feature vector, ``d``.
    out_features
        Number of classes, ``k``.
    kept
        The heads by name, each with an input of length ``d``.
    """

    def __init__(self, in_features: int, out_features: int, kept: Mapping[str, nn.Module]) -> None:
        super().__init__(in_features, out_features)
        self.kept = nn.ModuleDict(dict(kept))


class QuotientLinear(KeptHeadsLinear):
    """The last layer of G-ODIN: ``z = h(f) / g(f)``.

    With ``e = 1e-4``, ``h_c = f . w_c / ((||f|| + e) (||w_c|| + e))`` and
    ``g = sigmoid(BatchNorm(v . f + b))``; the layer of ``g`` is the kept head ``divisor``. The bias
    is zero and not trained; it only makes the layer one of the usual form.

    Parameters
    ----------
    in_features
        Length of a feature vector, ``d``.
    out_features
        Number of classes, ``k``.

    References
    ----------
    Hsu, Shen, Jin, Kira. "Generalized ODIN: Detecting Out-of-distribution Image without Learning
    from Out-of-distribution Data". CVPR 2020, arXiv:2002.11297.

    Notes
    -----
    ``g`` is positive, so that the prediction is the class with the largest ``h``. The layer
    computes in float32 even under autocast.
    """

    def __init__(self, in_features: int, out_features: int) -> None:
        divisor = nn.Sequential(nn.Linear(in_features, 1), nn.BatchNorm1d(1))
        super().__init__(in_features, out_features, {DIVISOR: divisor})
        nn.init.zeros_(self.bias)
        self.bias.requires_grad = False

    def forward(self, input: Tensor) -> Tensor:  # noqa: A002 - torch's own name
        """Return the logits ``(n, k)`` of features ``(n, d)``."""
        with torch.autocast(input.device.type, enabled=False):
            features = input.float()
            cosines = F.linear(by_length(features), by_length(self.weight))
            return cosines / self.kept[DIVISOR](features).sigmoid()


def by_length(vectors: Tensor) -> Tensor:
    """Divide vectors ``(n, d)`` by their length plus 1e-4, as G-ODIN does."""
    return vectors / (vectors.norm(dim=1, keepdim=True) + GODIN_MARGIN)


def keep_heads(module: nn.Module, path: str, outputs: Mapping[str, int]) -> None:
    """Add kept heads, with random weights, beside the last layer of a network.

    Parameters
    ----------
    module
        The network, changed in place.
    path
        Path of the last linear layer.
    outputs
        Number of outputs of each head, by name.
    """
    old = module.get_submodule(path)
    assert isinstance(old, nn.Linear)  # ensured by every architecture
    heads = {name: nn.Linear(old.in_features, count) for name, count in outputs.items()}
    _replace(module, path, lambda d, k: KeptHeadsLinear(d, k, heads))


def quotient(module: nn.Module, path: str) -> None:
    """Replace the last layer of a network by a :class:`QuotientLinear` with the same weight.

    Parameters
    ----------
    module
        The network, changed in place; the layer of ``g`` gets random weights.
    path
        Path of the last linear layer.
    """
    old = module.get_submodule(path)
    assert isinstance(old, nn.Linear)  # ensured by every architecture
    new = QuotientLinear(old.in_features, old.out_features)
    new.weight = old.weight
    module.set_submodule(path, new.to(old.weight.device))


def kept_heads(layer: nn.Module) -> dict[str, tuple[Tensor, Tensor]]:
    """Return weight ``(o, d)`` and bias ``(o,)`` of the kept heads of a last layer, by name.

    Parameters
    ----------
    layer
        The last layer. Batch normalisation after a head becomes part of its weight and bias.
    """
    if not isinstance(layer, KeptHeadsLinear):
        return {}
    prefix = f"{KEPT}."
    state = layer.state_dict()
    return kept_of({k.removeprefix(prefix): v for k, v in state.items() if k.startswith(prefix)})


def kept_of(state: Mapping[str, Tensor]) -> dict[str, tuple[Tensor, Tensor]]:
    """Return weight and bias of kept heads from their tensors by name, ``rotation.weight`` etc."""
    heads: dict[str, tuple[Tensor, Tensor]] = {}
    for name in dict.fromkeys(key.partition(".")[0] for key in state):
        if name != DIVISOR:
            heads[name] = state[f"{name}.weight"], state[f"{name}.bias"]
            continue
        weight, bias = state[f"{name}.0.weight"], state[f"{name}.0.bias"]
        mean, variance = state[f"{name}.1.running_mean"], state[f"{name}.1.running_var"]
        factor = state[f"{name}.1.weight"] / (variance + nn.BatchNorm1d(1).eps).sqrt()  # (1,)
        heads[name] = factor[:, None] * weight, factor * (bias - mean) + state[f"{name}.1.bias"]
    return {k: (w.detach().float(), b.detach().float()) for k, (w, b) in heads.items()}


def restore_last_layer(module: nn.Module, path: str, state: Mapping[str, Tensor]) -> None:
    """Give a network the kind of last layer whose tensors a state dict has.

    Parameters
    ----------
    module
        The network, changed in place; the new layer has the weight and bias of the old one.
    path
        Path of the last linear layer.
    state
        Tensors by name: a ``tau`` of the last layer makes it a :class:`UnitFeatureLinear`, a
        ``sigma`` a :class:`StandardisedLinear`, a ``logit_scale`` a :class:`TextLinear`,
        ``kept.divisor`` a :class:`QuotientLinear`, and other tensors of ``kept`` a
        :class:`KeptHeadsLinear`.
    """
    kept = kept_names(path, state)
    if f"{path}.tau" in state:
        unit_features(module, path)
    elif f"{path}.sigma" in state:
        standardised_features(module, path)
    elif f"{path}.logit_scale" in state:
        text_embeddings(module, path)
    elif any(name.startswith(f"{path}.{KEPT}.{DIVISOR}.") for name in kept):
        with torch.random.fork_rng(devices=[]):  # the initial weights are replaced by the state
            quotient(module, path)
    elif kept:
        weights = {name: state.get(f"{path}.{KEPT}.{name}.weight") for name in _LINEAR}
        with torch.random.fork_rng(devices=[]):
            keep_heads(
                module,
                path,
                {k: len(each) for k, each in weights.items() if each is not None and each.dim()},
            )


def kept_names(path: str, names: Iterable[str]) -> list[str]:
    """Return those of some tensor names that belong to kept heads of the last layer ``path``."""
    return [name for name in names if name.startswith(f"{path}.{KEPT}.")]


def text_embeddings(module: nn.Module, path: str) -> None:
    """Replace the last layer of a network by a :class:`TextLinear` with the same weights.

    Parameters
    ----------
    module
        The network, changed in place.
    path
        Path of the last linear layer.
    """
    _replace(module, path, TextLinear)


def _replace(module: nn.Module, path: str, make: Callable[[int, int], nn.Linear]) -> None:
    """Replace a last layer by one that is made for its shape, and has its weight and bias."""
    old = module.get_submodule(path)
    assert isinstance(old, nn.Linear)  # ensured by every architecture
    with torch.random.fork_rng(devices=[]):  # the initial weights are replaced below
        new = make(old.in_features, old.out_features).to(old.weight.device)
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
    _replace(module, path, lambda d, k: UnitFeatureLinear(d, k, tau=tau, scoring_tau=scoring_tau))


def standardised_features(module: nn.Module, path: str, *, sigma: float = 1.0) -> None:
    """Replace the last layer of a network by a :class:`StandardisedLinear` with the same weights.

    Parameters
    ----------
    module
        The network, changed in place.
    path
        Path of the last linear layer.
    sigma
        As in :class:`StandardisedLinear`.
    """
    _replace(module, path, lambda d, k: StandardisedLinear(d, k, sigma=sigma))


def scoring_head(
    weight: Tensor,
    bias: Tensor,
    *,
    scoring_tau: float | None = None,
    logit_scale: float | None = None,
    kept: Mapping[str, tuple[Tensor, Tensor]] | None = None,
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
    kept
        Weight and bias of the kept heads, by name; with a ``divisor``, the last layer is that of
        G-ODIN, and its rows are divided by their lengths.

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
    kept = dict(kept or {})
    if DIVISOR in kept:
        weight = by_length(weight)
    if scoring_tau is None:
        return Head(weight, bias, scale=logit_scale, kept=kept)
    if not 0 < scoring_tau < float("inf"):
        raise InvalidInputError(
            f"the weights divide features by {scoring_tau:g}, which is not a positive number; use "
            "another checkpoint"
        )
    return Head(weight / scoring_tau, bias, scoring_tau)
