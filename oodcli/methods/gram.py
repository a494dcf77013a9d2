"""Gram: how far the correlations of channels leave the range they have in training."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Self

import torch
from torch import Tensor, nn

from oodcli.activations import Activations, Reference
from oodcli.errors import InvalidInputError, UndefinedMethodError
from oodcli.images import digest_of
from oodcli.methods._needs import Arguments, Need
from oodcli.methods.base import at_least
from oodcli.probes import Output, Probe, ProbedNetwork

_SEED = 0
_HELD_OUT = 10  # one training image of ten
# Relative width up to which a range is that of one image in several batches.
_ROUNDING = 1e-5
_EPSILON = 1e-6
_TINY = torch.finfo(torch.float32).tiny


def row_sums(maps: Tensor, powers: int) -> Tensor:
    """Return the row sums of the Gram matrices of all powers, ``(n, powers * c)``.

    ``g_q = sign(s) · |s|^(1/q)`` with ``s_i = Σ_j Σ_x F_ix^q F_jx^q``, for ``q = 1 … powers``; one
    power after the other.

    Parameters
    ----------
    maps
        ``(n, c, …)``.
    powers
        The largest power.

    Notes
    -----
    The sum over ``j`` is taken first, so no matrix of ``c × c`` is made. A map is divided by its
    largest magnitude and the result multiplied with its square, which changes nothing but rounding:
    at the fifth power float32 would overflow from activations of some thousand.
    """
    with torch.autocast(maps.device.type, enabled=False):
        if maps.ndim == 2:
            maps = maps[:, :, None]
        # Channels last, as they mostly lie in memory.
        values = maps.movedim(1, -1).flatten(1, -2).float()  # (n, positions, c)
        least, most = values.flatten(1).aminmax(dim=1)
        largest = torch.maximum(-least, most).clamp(min=_TINY)[:, None]  # (n, 1)
        values = values / largest[:, :, None]
        power, parts = torch.ones_like(values), []
        for q in range(1, powers + 1):
            power.mul_(values)
            sums = (power.sum(dim=2)[:, None] @ power).squeeze(1)  # (n, c)
            parts.append(sums.sign() * sums.abs() ** (1 / q) * largest**2)
        return torch.cat(parts, dim=1)


def layers(network: ProbedNetwork) -> Sequence[str]:
    """Return the paths of all convolutions and ReLU modules.

    Raises
    ------
    UndefinedMethodError
        If there are none.
    """
    paths = network.modules_of(nn.Conv2d, nn.ReLU)
    if not paths:
        raise UndefinedMethodError(
            "gram is not defined for a network without convolutions; use another method"
        )
    return paths


@dataclass(frozen=True, slots=True)
class Ranges:
    """Learns the smallest and largest row sum of every predicted class; see :class:`Gram`.

    Parameters
    ----------
    powers
        The largest power of the Gram matrices.

    Notes
    -----
    The state is two arrays ``(k, m)`` with ``m`` the number of channels of all layers times
    ``powers``, however many images there are: 2 MB for ResNet-18 on CIFAR-10 (4,800 channels), and
    1.7 GB for ResNet-50 on ImageNet (41,728 channels, 1,000 classes). It is written to in place.
    """

    powers: int

    @property
    def key(self) -> str:
        """Name of the state."""
        return f"gram(powers={self.powers})"

    @property
    def passes(self) -> float:
        """Nothing beyond the ordinary pass."""
        return 0.0

    def maps(self, network: ProbedNetwork, /) -> Sequence[str]:
        """Return the paths of all layers."""
        return layers(network)

    def update(
        self,
        state: Mapping[str, Tensor],
        network: ProbedNetwork,
        _images: Tensor,
        output: Output,
        /,
    ) -> Mapping[str, Tensor]:
        """Return the state with one more batch taken in.

        Raises
        ------
        InvalidInputError
            If a map has values that are not finite.
        """
        rows = torch.cat(
            [row_sums(output.maps[path], self.powers) for path in layers(network)], dim=1
        )  # (n, m)
        if not rows.isfinite().all():
            raise InvalidInputError(
                "gram cannot learn from maps with values that are not finite; use other weights"
            )
        if not state:
            shape = (output.logits.shape[1], rows.shape[1])
            state = {"low": rows.new_full(shape, torch.inf)}
            state["high"] = -state["low"]
        classes = output.logits.argmax(dim=1)[:, None].expand_as(rows)
        state["low"].scatter_reduce_(0, classes, rows, "amin")
        state["high"].scatter_reduce_(0, classes, rows, "amax")
        return state


@dataclass(frozen=True, slots=True)
class Excess:
    """Relative excess over the learned ranges, of every layer, ``(n, layers)``.

    Parameters
    ----------
    powers
        The largest power of the Gram matrices.
    state
        Digest of the ranges.
    low, high
        The ranges, ``(k, m)``.
    """

    powers: int
    state: str
    low: Tensor = field(repr=False, compare=False)
    high: Tensor = field(repr=False, compare=False)

    @classmethod
    def over(cls, ranges: Mapping[str, Tensor], *, powers: int) -> Self:
        """Build it from what :class:`Ranges` learned.

        A class that was never predicted gets the range of all classes together.
        """
        low, high = ranges["low"], ranges["high"]
        seen = low.isfinite().all(dim=1, keepdim=True)  # (k, 1)
        low = torch.where(seen, low, low.amin(dim=0))
        high = torch.where(seen, high, high.amax(dim=0))
        return cls(powers, digest_of(low.cpu().numpy(), high.cpu().numpy()), low, high)

    @property
    def key(self) -> str:
        """Name of the array."""
        return f"gram-excess(powers={self.powers},ranges={self.state})"

    @property
    def passes(self) -> float:
        """Nothing beyond the ordinary pass."""
        return 0.0

    def maps(self, network: ProbedNetwork, /) -> Sequence[str]:
        """Return the paths of all layers."""
        return layers(network)

    def observe(self, network: ProbedNetwork, _images: Tensor, output: Output, /) -> Tensor:
        """Return the excess of every layer, ``(n, layers)``."""
        classes = output.logits.argmax(dim=1).to(self.low.device)
        columns, first = [], 0
        for path in layers(network):
            sums = row_sums(output.maps[path], self.powers)  # (n, powers * c)
            here = slice(first, first + sums.shape[1])
            low, high = (ends[:, here][classes].to(sums.device) for ends in (self.low, self.high))
            below = (low - sums).relu() / (low + _EPSILON).abs()
            above = (sums - high).relu() / (high + _EPSILON).abs()
            columns.append((below + above).sum(dim=1))
            first = here.stop
        return torch.stack(columns, dim=1)


def _too_few(reference: Reference, _arguments: Arguments) -> str | None:
    number = len(reference.labels)
    return None if number >= _HELD_OUT else f"there are {number}"


ONE_HELD_OUT = Need(
    f"at least {_HELD_OUT} training images, one of {_HELD_OUT} of which is held out",
    _too_few,
    "train on more images",
)


@dataclass(frozen=True, slots=True)
class Gram:
    """Negative total excess of channel correlations over their range in training.

    For every layer ``l`` (convolutions and ReLUs) and power ``q`` the Gram matrix of the map ``F``
    is reduced to its row sums ``g`` (see :func:`row_sums`). Over training images predicted as
    class ``c`` they lie between ``low`` and ``high``. An image predicted as ``c`` has the excess
    ``δ_l = Σ_q Σ_i relu(low - g) / |low + 1e-6| + relu(g - high) / |high + 1e-6|``, and the score
    ``-(Σ_l δ_l / E_l) / max_c softmax(z)_c``, with ``E_l`` the mean of ``δ_l`` over training images
    held out from the ranges.

    Parameters
    ----------
    expected
        ``E_l``, ``(layers,)``.
    probes
        Gives ``δ_l``.

    References
    ----------
    Sastry, Oore. "Detecting Out-of-Distribution Examples with Gram Matrices". ICML 2020,
    arXiv:1912.12510.

    Notes
    -----
    Checked against the first author's correction of the code in OpenOOD (powers 1 to 5, every
    convolution and ReLU module, one image of ten held out, division by the confidence); the paper
    uses powers 1 to 10. Older code in OpenOOD compares a sum over all channels with the range of
    each one and has the wrong sign, so that published OpenOOD v1.5 numbers are near chance.

    As in the paper, ranges belong to *predicted* classes; the corrected code groups training images
    by label. One image of ten is held out from all, not from each class. A class that was never
    predicted gets the range over all classes, and a layer without excess on held-out images (up
    to 1e-6, which is rounding) counts undivided, where published code divides by it.

    A ReLU that is a function call and not a module is not seen, as in published code, and a module
    that a network calls several times is seen at its last call. Training images are run once more.
    The arithmetic on the maps takes about half as long as the forward pass of ResNet-18.

    Batches and their order do not matter, but which images are held out is drawn by position, so
    another order of the training set changes scores as another draw would.
    """

    expected: Tensor
    probes: tuple[Probe, ...]

    @classmethod
    def fit(cls, reference: Reference, *, powers: int = 5) -> Self:
        """Learn ranges on nine training images of ten, and the expected excess on the others.

        Parameters
        ----------
        reference
            The training images.
        powers
            Powers 1 to this of every map are correlated.

        Raises
        ------
        UndefinedMethodError
            If no predicted class has two training images that differ.
        """
        at_least("gram:powers", powers, 1)
        count = len(reference.labels)
        order = torch.randperm(count, generator=torch.Generator().manual_seed(_SEED))
        held_out, rest = (part.sort().values for part in order.tensor_split([count // _HELD_OUT]))
        probe = Excess.over(reference.learned(Ranges(powers), rows=rest), powers=powers)
        if not bool((probe.high - probe.low > _ROUNDING * probe.high.abs()).any()):
            raise UndefinedMethodError(
                f"gram is not defined here: the maps of {len(rest):,} training images are the same "
                "within each predicted class, so that there is no range; train on more images"
            )
        chunks = reference.probed("train", probe, rows=held_out).chunks()
        total = sum(chunk.extra[probe.key].double().sum(dim=0) for chunk in chunks)
        assert isinstance(total, Tensor)  # there is at least one chunk
        expected = (total / len(held_out)).float()
        return cls(torch.where(expected > _EPSILON, expected, torch.ones_like(expected)), (probe,))

    def score(self, batch: Activations) -> Tensor:
        """Return the negative total excess over the confidence, ``(n,)``."""
        excess = (batch.extra[self.probes[0].key] / self.expected).sum(dim=1)
        return -excess / batch.logits.softmax(dim=1).amax(dim=1)
