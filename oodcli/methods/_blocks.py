"""Pooled maps of every block, each as features of their own, and scores that layers join to.

The maps are averaged over positions inside the forward pass, by a probe.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal, Self

import torch
from torch import Tensor

from oodcli.activations import Activations, ActivationSet, Head, Part, Reference
from oodcli.errors import UndefinedMethodError
from oodcli.methods._needs import Arguments, Need, alike
from oodcli.methods.base import at_least
from oodcli.methods.ensemble import RankScale
from oodcli.probes import Output, ProbedNetwork

Combination = Literal["mean", "minimum", "fisher"]
COMBINATIONS: tuple[Combination, ...] = ("mean", "minimum", "fisher")


@dataclass(frozen=True, slots=True)
class BlockMeans:
    """Mean of every channel of every block, blocks side by side in forward order, ``(n, Σ c)``.

    float32; the output of a block as the network passes it on, without another ReLU.
    """

    @property
    def key(self) -> str:
        """Name of the array."""
        return "block-means"

    @property
    def passes(self) -> float:
        """Nothing beyond the ordinary pass."""
        return 0.0

    def maps(self, network: ProbedNetwork) -> Sequence[str]:
        """Return the paths of all blocks.

        Raises
        ------
        UndefinedMethodError
            If the network has no blocks.
        """
        if not network.blocks:
            raise UndefinedMethodError(
                "methods of several layers are not defined for a network without blocks"
            )
        return list(network.blocks.values())

    def observe(self, network: ProbedNetwork, images: Tensor, output: Output) -> Tensor:
        """Average the maps of a batch over positions, ``(n, Σ c)``."""
        del images
        maps = (output.maps[path].float() for path in self.maps(network))
        return torch.cat([each.flatten(2).mean(dim=2) for each in maps], dim=1)


BLOCK_MEANS = BlockMeans()


def block_bounds(reference: Reference, last: int) -> tuple[tuple[int, int], ...]:
    """Return first column and end of the blocks that are used, in the array of the probe.

    Parameters
    ----------
    reference
        Gives the widths of the blocks.
    last
        Number of blocks that are used, counted from the last; all if 0.

    Raises
    ------
    InvalidInputError
        If the number is negative.
    UndefinedMethodError
        If there are not as many blocks.
    """
    widths = reference.block_widths
    at_least("last", last, 0)
    if last > len(widths):
        raise UndefinedMethodError(f"last must be at most the {len(widths)} blocks, not {last}")
    ends = torch.tensor(widths).cumsum(0).tolist()
    bounds = tuple(zip([0, *ends[:-1]], ends, strict=True))
    return bounds[-last:] if last else bounds


def layer_of(batch: Activations, bounds: tuple[int, int]) -> Activations:
    """Return activations whose features are the pooled maps of one block, made once per batch."""
    first, end = bounds

    def make() -> Activations:
        features = batch.extra[BLOCK_MEANS.key][:, first:end]
        return Activations(batch.logits, features, batch.block_norms, batch.predictions)

    return batch.once(("block", bounds), make)


def layer_reference(reference: Reference, bounds: tuple[int, int]) -> Reference:
    """Return a reference whose training features are the pooled maps of one block, made once.

    It has no classifier, so that its classes are those of the labels.
    """

    def make() -> Reference:
        weight = reference.head.weight
        head = Head(weight.new_zeros(0, bounds[1] - bounds[0]), weight.new_zeros(0))
        return Reference(
            head=head,
            load_train=lambda: ActivationSet.joined(
                [_probed(reference, "train")], lambda parts: layer_of(parts[0], bounds)
            ),
            load_labels=lambda: reference.labels,
        )

    return reference.once(("block reference", bounds), make)


def _probed(reference: Reference, part: Part) -> ActivationSet:
    return reference.once(("block means", part), lambda: reference.probed(part, BLOCK_MEANS))


@dataclass(frozen=True, slots=True)
class LayerScales:
    """Converts the scores of several layers to a common unit, and joins them to one.

    With ``s_l`` the score of layer ``l``, and ``m_l`` and ``d_l`` mean and standard deviation of
    the scores of calibration images: ``mean`` is ``mean_l (s_l - m_l) / d_l``; ``minimum`` the
    least of these; ``fisher`` is ``Σ_l log p_l``, minus half of Fisher's statistic, with ``p_l``
    the share of calibration images whose score is less than ``s_l``.

    Parameters
    ----------
    means, deviations
        float64, ``(l,)``.
    ranks
        The shares, one scale per layer.

    Notes
    -----
    Shares are interpolated between calibration scores, and go on below the least of them, so that
    extreme images do not tie; see :meth:`oodcli.methods.ensemble.RankScale.log_shares`. The layers
    of one network are not independent, so that ``Σ_l log p_l`` is no p-value; corrections for that
    (Brown's) rise with it, and rank images as it does.
    """

    means: Tensor
    deviations: Tensor
    ranks: tuple[RankScale, ...]

    @classmethod
    def of(cls, scores: Tensor) -> Self:
        """Build the scales of calibration scores ``(n, l)``.

        Raises
        ------
        UndefinedMethodError
            If the scores of a layer are not finite, or all equal.
        """
        wide = scores.double()
        ranks = tuple(RankScale.of(column) for column in wide.T)
        return cls(wide.mean(dim=0), wide.std(dim=0, correction=0), ranks)

    def joined(self, scores: Tensor, by: Combination) -> Tensor:
        """Return one score of the scores of the layers ``(n, l)``, float64 ``(n,)``."""
        wide = scores.double()
        if by == "fisher":
            pairs = zip(self.ranks, wide.T, strict=True)
            return torch.stack([ranks.log_shares(column) for ranks, column in pairs]).sum(dim=0)
        standard = (wide - self.means) / self.deviations
        return standard.mean(dim=1) if by == "mean" else standard.amin(dim=1)


def fit_scales(
    reference: Reference, key: object, scores: Callable[[Activations], Tensor]
) -> LayerScales:
    """Return the scales of calibration images, computed once per kind of scores.

    Parameters
    ----------
    reference
        Gives the pooled maps of calibration images.
    key
        Identifies the scores.
    scores
        Returns the scores of the layers of a batch, ``(n, l)``.
    """

    def make() -> LayerScales:
        with torch.no_grad():
            chunks = _probed(reference, "calibration").chunks()
            return LayerScales.of(torch.cat([scores(chunk) for chunk in chunks]))

    return reference.once(("layer scales", key), make)


def _all_alike(reference: Reference, arguments: Arguments) -> str | None:
    last = arguments["last"]
    assert isinstance(last, int)  # the type of the parameter is
    for at, bounds in enumerate(block_bounds(reference, last)):
        train = layer_reference(reference, bounds).train
        if alike(chunk.features for chunk in train.chunks()):
            return f"those of {len(train):,} images do not in layer {at}"
    return None


DIFFERENT_BLOCKS = Need(
    "training images whose pooled maps differ from image to image in every layer",
    _all_alike,
    "train on more images, or use fewer layers: last=N",
)


def in_every_layer(need: Need) -> Need:
    """Return a need of one set of features as a need of every layer that is used."""

    def lacking(reference: Reference, arguments: Arguments) -> str | None:
        last = arguments["last"]
        assert isinstance(last, int)  # the type of the parameter is
        states = (
            need.check(layer_reference(reference, bounds), arguments)
            for bounds in block_bounds(reference, last)
        )
        return next((state for state in states if state is not None), None)

    return Need(f"in every layer {need.description}", lacking, need.cure)
