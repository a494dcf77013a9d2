"""NAC: how often training images have put each neuron into the state it is in."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, Self

import torch
from torch import Tensor

from oodcli.activations import Activations, Head, Reference
from oodcli.errors import InvalidInputError, UndefinedMethodError
from oodcli.methods._needs import Arguments, Need
from oodcli.methods._stages import last_of_stages
from oodcli.methods.base import at_least
from oodcli.probes import Output, Probe, ProbedNetwork
from oodcli.specs import positive

# The authors' alpha and O* of the pooled feature, for CIFAR and for ImageNet.
_FEW = 100
_FEW_CLASSES = (100.0, 50)
_MANY_CLASSES = (3000.0, 10)
_SEED = 0
# Cells of equal width that states are looked up in, and rows at a time, which stay in a cache.
_CELLS, _TABLE_ROWS = 4096, 128
_BASE = 1000.0


def inner_edges(bins: int) -> Tensor:
    """Return the edges between the intervals of neuron states, float64, ascending.

    With ``h = bins // 2`` points ``x`` evenly spaced from 1 to ``√1000``, the edges are
    ``log_1000 x`` up to 1/2, closest together at 1/2, and their mirror images. The first and the
    last interval end at 0 and 1, so there are ``2 h - 2`` intervals.
    """
    half = bins // 2
    lower = torch.linspace(1.0, math.sqrt(_BASE), half, dtype=torch.float64).log() / math.log(_BASE)
    inside = lower[1:-1]
    return torch.cat([inside, torch.tensor([0.5], dtype=torch.float64), 1 - inside.flip(0)])


def intervals(products: Tensor, *, alpha: float, bins: int) -> Tensor:
    """Return the number of the interval that ``sigmoid(alpha * products)`` lies in.

    An edge belongs to the interval above it.
    """
    edges = inner_edges(bins).to(products.device, products.dtype)
    states = (alpha * products).sigmoid()
    graph = torch.compiler.is_compiling()
    if graph or products.device.type != "cpu" or bool((edges.diff() <= 1 / _CELLS).any()):
        return torch.bucketize(states, edges, right=True)
    # A table gives the interval of the beginning of a cell, in which there is at most one edge.
    begin = torch.arange(_CELLS + 1, dtype=torch.float64) / _CELLS
    first = torch.bucketize(begin, edges.double(), right=True)
    following = torch.cat([edges, edges.new_tensor([torch.inf])])
    found = torch.empty(states.shape, dtype=torch.int64)
    for block, into in zip(states.split(_TABLE_ROWS), found.split(_TABLE_ROWS), strict=True):
        flat = block.flatten()
        # NaN is put into the last interval, as the search does.
        index = first.index_select(0, flat.nan_to_num(nan=1.0).float().mul_(_CELLS).int())
        torch.add(index, flat >= following.index_select(0, index), out=into.view(-1))
    return found


def counted(products: Tensor, counts: Tensor | None, *, alpha: float, bins: int) -> Tensor:
    """Return how many images put each neuron into each interval, ``(neurons, intervals)``.

    Parameters
    ----------
    products
        One row per image, ``(n, neurons)``.
    counts
        What to add to; None for nothing.
    alpha, bins
        See :class:`NAC`.
    """
    if counts is None:
        counts = products.new_zeros(products.shape[1], len(inner_edges(bins)) + 1)
    index = intervals(products, alpha=alpha, bins=bins).T  # (neurons, n)
    ones = torch.ones_like(index, dtype=counts.dtype)
    return counts.scatter_add(1, index, ones)


def stage_products(
    network: ProbedNetwork, images: Tensor, output: Output, stages: int
) -> list[Tensor]:
    """Return activation times gradient of the stages before the last, ``(n, c)`` each.

    Both are summed over positions before they are multiplied; the gradient is that of
    ``KL(uniform ‖ softmax(z))`` with respect to the map. Nothing before the first of these stages
    is differentiated.

    Raises
    ------
    UndefinedMethodError
        If the network has fewer stages.
    """
    before = last_of_stages(network.blocks, output.maps)[:-1]
    if len(before) < stages:
        raise UndefinedMethodError(
            f"nac:layers={stages + 1} is not defined for a network of {len(before) + 1} stages; "
            f"take at most {len(before) + 1} layers"
        )
    paths = before[-stages:]
    with torch.enable_grad():
        first = output.maps[paths[0]].clone().detach().requires_grad_()
        again = network.run(images, keep=paths, edit={paths[0]: lambda _map: first})
        # Up to a constant the divergence; the sum keeps images apart.
        divergence = -again.logits.log_softmax(dim=1).mean(dim=1).sum()
        maps = [again.maps[path] for path in paths]
        gradients = torch.autograd.grad(divergence, maps)
    return [
        map_.detach().float().flatten(2).sum(dim=2) * gradient.float().flatten(2).sum(dim=2)
        for map_, gradient in zip(maps, gradients, strict=True)
    ]


@dataclass(frozen=True, slots=True)
class StageCounts:
    """Counts the states of the neurons of earlier stages; see :class:`NAC`.

    Parameters
    ----------
    stages
        Number of stages before the last.
    alpha, bins
        See :class:`NAC`.

    Notes
    -----
    The state is an array ``(neurons, intervals)`` per stage, however many images there are: 86 kB
    for the three stages of ResNet-18 on CIFAR-10 (64, 128 and 256 channels, 48 intervals), and
    344 kB for those of ResNet-50 (256, 512 and 1,024 channels).
    """

    stages: int
    alpha: float
    bins: int

    @property
    def key(self) -> str:
        """Name of the state."""
        return f"nac(stages={self.stages},alpha={self.alpha!r},bins={self.bins})"

    @property
    def passes(self) -> float:
        """A forward and a backward pass."""
        return 3.0

    def maps(self, network: ProbedNetwork, /) -> Sequence[str]:
        """Return the paths of all blocks: the sizes of their maps tell where stages end."""
        return list(network.blocks.values())

    def update(
        self,
        state: Mapping[str, Tensor],
        network: ProbedNetwork,
        images: Tensor,
        output: Output,
        /,
    ) -> Mapping[str, Tensor]:
        """Return the state with one more batch taken in.

        Raises
        ------
        InvalidInputError
            If a map or its gradient has values that are not finite.
        """
        every = stage_products(network, images, output, self.stages)
        if not all(products.isfinite().all() for products in every):
            raise InvalidInputError(
                "nac cannot learn from maps with values that are not finite; use other weights"
            )
        return {
            f"stage{at:02d}": counted(
                products, state.get(f"stage{at:02d}"), alpha=self.alpha, bins=self.bins
            )
            for at, products in enumerate(every)
        }


@dataclass(frozen=True, slots=True)
class StageProducts:
    """Activation times gradient of the neurons of earlier stages, ``(n, neurons)``.

    No parameter of :class:`NAC` but the number of stages matters here, so that searches over the
    others cost no further pass over scored images.

    Parameters
    ----------
    stages
        Number of stages before the last.
    """

    stages: int

    @property
    def key(self) -> str:
        """Name of the array."""
        return f"nac-products(stages={self.stages})"

    @property
    def passes(self) -> float:
        """A forward and a backward pass."""
        return 3.0

    def maps(self, network: ProbedNetwork, /) -> Sequence[str]:
        """Return the paths of all blocks: the sizes of their maps tell where stages end."""
        return list(network.blocks.values())

    def observe(self, network: ProbedNetwork, images: Tensor, output: Output, /) -> Tensor:
        """Return the products of all stages side by side, ``(n, neurons)``."""
        return torch.cat(stage_products(network, images, output, self.stages), dim=1)


@dataclass(frozen=True, slots=True)
class NAC:
    """Coverage, by training images, of the states of neurons (NAC-UE).

    The state of a neuron with activation ``a`` is ``sigmoid(alpha · a · ∂KL(uniform ‖ p)/∂a)`` with
    ``p = softmax(z)``. ``[0, 1]`` is cut into intervals (see :func:`inner_edges`); if ``O``
    training images have put a neuron into the interval that it is in now, its coverage is
    ``min(O / least, 1)``. The score is the mean over neurons, summed over layers.

    The first layer is the feature, whose gradient is ``Wᵀ (p - 1/k)`` and needs no pass; each
    further one is the map of the last block of one more stage, from the last but one backwards,
    where activation and gradient are summed over positions and then multiplied.

    Parameters
    ----------
    head
        Last layer of the classifier.
    alpha
        Steepness of the sigmoid.
    bins
        Number of edges.
    least
        Images that an interval needs to count as covered, ``O*`` in the paper.
    counts
        How many training images put each neuron into each interval, ``(neurons, intervals)`` per
        layer, the feature last.
    probes
        Gives the products of the earlier stages, if there are any.

    References
    ----------
    Liu, Tian, Li, Ma, Wang. "Neuron Activation Coverage: Rethinking Out-of-distribution Detection
    and Generalization". ICLR 2024, arXiv:2306.02879.

    Notes
    -----
    Checked against the authors' code. The defaults are its configuration of the pooled feature on
    1,000 training images with 50 edges: alpha 100 and ``O* = 50``, as for CIFAR, up to 100 classes;
    alpha 3,000 and ``O* = 10``, as for ResNet-50 on ImageNet, above. There the images are
    balanced over classes; here they are drawn by position from all, so another order of a larger
    training set changes scores as another draw would. The authors tune every parameter for every
    layer and network; here all layers share them. How much an interval needs to be covered is felt
    relative to the number of images: with more of either, change both.

    The settings for CIFAR are not for 1,000 classes: on EfficientNet-Lite0, with three crops of
    each of 1,000 ImageNet photographs for training, they cover 400 textures better than them.
    AUROC is 23.08 by the authors' estimator (revision b002780 of their code) as here, and 69.82
    with those for ImageNet, again by both. Scores differ by at most 1.6e-4, where float32 rounds a
    state to the other side of an edge.

    pytorch-ood averages the product over positions where the authors multiply sums, and its
    intervals are narrow at 0 and 1 where the authors' are narrow at 1/2.

    A state that lies on an edge may fall to either side by rounding, which moves the score by at
    most ``1 / neurons``. A neuron with activation 0 has state 1/2 exactly.
    """

    head: Head
    alpha: float
    bins: int
    least: int
    counts: tuple[Tensor, ...]
    probes: tuple[Probe, ...]

    @classmethod
    def fit(
        cls,
        reference: Reference,
        *,
        layers: int = 1,
        alpha: float | Literal["auto"] = "auto",
        bins: int = 50,
        least: int | Literal["auto"] = "auto",
        images: int = 1000,
    ) -> Self:
        """Count the states of the neurons over training images drawn at random.

        Parameters
        ----------
        reference
            The training images.
        layers
            How many stages are looked at, the last one first; 1 is the features alone.
        alpha
            Steepness of the states; ``auto`` is 100 up to 100 classes and 3,000 above.
        bins
            Bins of the histogram of a neuron's states.
        least
            Training images in a bin that count as full coverage (``O*``); ``auto`` is 50 up to 100
            classes and 10 above.
        images
            Training images drawn.
        """
        alpha, least = _settings(reference, alpha, least)
        at_least("nac:layers", layers, 1)
        positive("nac:alpha", alpha)
        at_least("nac:bins", bins, 4)
        at_least("nac:least", least, 1)
        at_least("nac:images", images, 1)
        head, size = reference.head, len(reference.train)
        drawn = torch.randperm(size, generator=torch.Generator().manual_seed(_SEED))[:images]
        rows = drawn.sort().values
        counts: Tensor | None = None
        first = 0
        for chunk in reference.train.chunks():
            here = rows[(rows >= first) & (rows < first + len(chunk))] - first
            first += len(chunk)
            if len(here):
                index = here.to(chunk.features.device)
                products = _feature_products(head, chunk.features[index], chunk.logits[index])
                counts = counted(products, counts, alpha=alpha, bins=bins)
        assert counts is not None  # a training set has images
        if layers == 1:
            return cls(head, alpha, bins, least, (counts,), ())
        state = reference.learned(StageCounts(layers - 1, float(alpha), bins), rows=rows)
        earlier = [state[name] for name in sorted(state)]
        return cls(head, alpha, bins, least, (*earlier, counts), (StageProducts(layers - 1),))

    def score(self, batch: Activations) -> Tensor:
        """Return the coverage of each image, from 0 to the number of layers, ``(n,)``."""
        products = _feature_products(self.head, batch.features, batch.logits)
        every = torch.cat([*(batch.extra[probe.key] for probe in self.probes), products], dim=1)
        layers = every.split([len(counts) for counts in self.counts], dim=1)
        return torch.stack(
            [
                self._coverage(each, counts)
                for each, counts in zip(layers, self.counts, strict=True)
            ],
            dim=1,
        ).sum(dim=1)

    def _coverage(self, products: Tensor, counts: Tensor) -> Tensor:
        index = intervals(products, alpha=self.alpha, bins=self.bins)  # (n, neurons)
        offsets = torch.arange(len(counts), device=counts.device) * counts.shape[1]
        met = counts.take(index + offsets)  # (n, neurons)
        covered = (met / self.least).clamp(max=1)
        # NaN lies in no interval, and the search would put it into the last.
        return torch.where(products.isnan(), products, covered).mean(dim=1)


def _settings(
    reference: Reference, alpha: float | Literal["auto"], least: int | Literal["auto"]
) -> tuple[float, int]:
    """Return what is given, and of what is not the authors' choice for the number of classes."""
    usual = _FEW_CLASSES if len(reference.head.weight) <= _FEW else _MANY_CLASSES
    return usual[0] if alpha == "auto" else alpha, usual[1] if least == "auto" else least


def _never_covered(reference: Reference, arguments: Arguments) -> str | None:
    images, given = arguments["images"], arguments["least"]
    assert isinstance(images, int)  # the types and defaults of both are
    assert given == "auto" or isinstance(given, int)
    _, least = _settings(reference, "auto", given)
    drawn = min(images, len(reference.train))
    if drawn >= least or images < 1:
        return None
    return f"there are {drawn} of the {least} of nac:least={least}"


COVERED = Need(
    "as many training images as an interval needs to count as covered",
    _never_covered,
    "choose less with nac:least=N, or train on more images",
)


def _feature_products(head: Head, features: Tensor, logits: Tensor) -> Tensor:
    """Return feature times gradient, ``(n, d)``."""
    return features * ((logits.softmax(dim=1) - 1 / logits.shape[1]) @ head.weight)
