"""ODIN: a tempered softmax after a step of the pixels towards the predicted class, and i-ODIN."""

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, Self

import torch
from torch import Tensor
from torch.nn import functional

from oodcli.activations import Activations, Reference
from oodcli.errors import UndefinedMethodError
from oodcli.methods._softmax import Scale
from oodcli.methods._stored import pack
from oodcli.methods.base import Shaper, probes_of
from oodcli.methods.msp import MSP
from oodcli.probes import Output, Probe, ProbedNetwork
from oodcli.specs import positive


@dataclass(frozen=True, slots=True)
class PerturbedLogits:
    """Logits of the perturbed image, ``(n, k)``; see :class:`ODIN`.

    Parameters
    ----------
    temperature
        Divisor of the logits in the loss.
    epsilon
        Step, in pixel values from 0 to 1.
    single
        Whether only the one input value with the largest gradient is moved.
    shaper
        Makes the logits from those of the network, its features and block norms; None for the
        logits of the network.
    identity
        A digest of the shaper, with all that it has learned.
    """

    temperature: float
    epsilon: float
    single: bool = False
    shaper: Shaper | None = None
    identity: str = ""

    @property
    def key(self) -> str:
        """Name of the array."""
        after = f",after={self.identity}" if self.identity else ""
        name = "iodin" if self.single else "odin"
        return f"{name}(temperature={self.temperature!r},epsilon={self.epsilon!r}{after})"

    @property
    def passes(self) -> float:
        """A forward and a backward pass for the gradient, and a forward pass."""
        return 4.0

    def maps(self, _network: ProbedNetwork, /) -> Sequence[str]:
        """Want no map."""
        return ()

    def observe(self, network: ProbedNetwork, images: Tensor, output: Output, /) -> Tensor:
        """Return the logits of the perturbed images, ``(n, k)``."""
        with torch.enable_grad():
            leaves = images.clone().detach().requires_grad_()
            logits = self._logits(network, leaves)
            best = output.logits if self.shaper is None else logits.detach()
            # The sum keeps images apart: the gradient of each is that of its own loss.
            loss = functional.cross_entropy(
                logits / self.temperature, best.argmax(dim=1), reduction="sum"
            )
            (gradient,) = torch.autograd.grad(loss, leaves)
        step = gradient.sign()
        if self.single:
            flat = gradient.flatten(1)
            largest = flat.abs().argmax(dim=1, keepdim=True)
            step = step * torch.zeros_like(flat).scatter_(1, largest, 1.0).view_as(step)
        return self._logits(network, images - self.epsilon * step / network.std)

    def _logits(self, network: ProbedNetwork, images: Tensor) -> Tensor:
        """Return the logits of images, shaped if there is a shaper, ``(n, k)``."""
        if self.shaper is None:
            return network.run(images).logits
        block: int | None = getattr(self.shaper, "block", None)
        paths = list(network.blocks.values())
        keep = [] if block is None else [paths[block]]
        found = network.run(images, keep=keep)
        norms = found.features.new_zeros(len(images), len(paths))
        if block is not None:
            norm = _feature_norm(found.maps[paths[block]])
            at = torch.tensor([block], device=norms.device)
            norms = norms.index_add(1, at, norm[:, None].to(norms))
        batch = Activations(found.logits, found.features, norms, found.logits.argmax(dim=1))
        return self.shaper.logits(batch)


def _feature_norm(maps: Tensor) -> Tensor:
    """Return FeatureNorm of maps ``(n, c, h, w)``, ``(n,)``, with gradient 0 of silent channels."""
    energies = maps.clamp(min=0).float().square().sum(dim=(2, 3))
    is_silent = energies == 0
    return energies.masked_fill(is_silent, 1.0).sqrt().masked_fill(is_silent, 0.0).mean(dim=1)


def _digest(shaper: Shaper) -> str:
    """Return a digest of a fitted shaper."""
    structure, arrays = pack(shaper)
    hasher = hashlib.sha256(json.dumps(structure, sort_keys=True).encode())
    for values in arrays.values():
        assert isinstance(values, Tensor)  # no shaper has a bank
        hasher.update(values.cpu().contiguous().numpy().tobytes())
    return hasher.hexdigest()[:16]


def _after(name: str, shaper: Shaper | None, probe: PerturbedLogits) -> PerturbedLogits:
    """Return a probe that perturbs the image for the logits of a shaper.

    Raises
    ------
    UndefinedMethodError
        If the shaper looks at the network itself.
    """
    if shaper is None:
        return probe
    if probes_of(shaper):
        raise UndefinedMethodError(
            f"{name} is not defined after {type(shaper).__name__}, which runs the network "
            f"{sum(each.passes for each in probes_of(shaper)):g} times itself; use another shaper"
        )
    return PerturbedLogits(probe.temperature, probe.epsilon, probe.single, shaper, _digest(shaper))


@dataclass(frozen=True, slots=True)
class ODIN:
    """Largest tempered class probability of an image moved towards its predicted class.

    ``x' = x - ε · sign(∇ₓ -log softmax(z(x) / T)_ŷ) / s`` with ``ŷ = argmax z(x)`` and ``s`` the
    standard deviation that divides each channel, so that ``ε`` is in pixel values from 0 to 1; then
    ``log(p / (1 - p))`` with ``p = max_c softmax(z(x') / T)_c``, which ranks images as ``p`` does.

    Parameters
    ----------
    temperature
        ``T``.
    probes
        Gives the logits of the perturbed images.
    scale
        As for MSP.

    References
    ----------
    Liang, Li, Srikant. "Enhancing the Reliability of Out-of-distribution Image Detection in Neural
    Networks". ICLR 2018, arXiv:1706.02690, sections 3 (temperature scaling, input preprocessing).

    Notes
    -----
    Where a gradient is exactly 0 a pixel stays; published code moves it by ``-ε``. That matters
    only for images so confident that the whole gradient vanishes, at small temperatures.

    The perturbed image may leave the range of pixel values, as in published code.

    Temperature and ``ε`` default to the published values; the paper chooses ``ε`` per network.

    Published code compares ``p`` in float32. At ``T = 1000`` all ``p`` are near ``1 / k`` and
    round to few values, at ``T = 1`` many are 1: images tie. ``scale=probability`` gives that.

    After a shaper, as in ``norm+odin``, ``z`` are its logits, in the loss as in the score, and the
    gradient goes through the shaper. FeatureNorm's own table has ODIN with the selected norm; which
    ``T`` and ``ε`` it used is not stated.
    """

    temperature: float
    probes: tuple[Probe, ...]
    scale: Scale = "log-odds"
    # Whether only the most sensitive input value is moved.
    _single: ClassVar[bool] = False

    @classmethod
    def fit(
        cls,
        _reference: Reference,
        after: Shaper | None = None,
        *,
        temperature: float = 1000.0,
        epsilon: float = 0.0014,
        scale: Scale = "log-odds",
    ) -> Self:
        """Learn nothing.

        Parameters
        ----------
        _reference
            Not used.
        after
            The fitted shaper whose logits are used instead of those of the network.
        temperature
            What logits are divided by.
        epsilon
            How far a pixel value is moved, for values from 0 to 1.
        scale
            How the probability is written: ``probability`` as published, with its ties.
        """
        name = cls.__name__.lower()
        probe = PerturbedLogits(
            float(positive(f"{name}:temperature", temperature)),
            float(positive(f"{name}:epsilon", epsilon)),
            cls._single,
        )
        return cls(probe.temperature, (_after(name, after, probe),), scale)

    def score(self, batch: Activations) -> Tensor:
        """Return the log-odds of the largest class probability, or the probability, ``(n,)``."""
        return MSP(self.temperature, self.scale).score_logits(batch.extra[self.probes[0].key])


@dataclass(frozen=True, slots=True)
class IODIN(ODIN):
    """Largest tempered class probability after a step of the one most sensitive input value.

    The score of ODIN for ``x' = x - ε · sign(g_i) e_i / s``, where ``g`` is the gradient of ODIN's
    loss and ``i`` the input value (a pixel in one channel) of the largest ``|g_i|``.

    The parameters are those of ODIN.

    References
    ----------
    ``iodin_postprocessor.py`` of OpenOOD, written by its authors.

    Notes
    -----
    Defaults and grid are those of OpenOOD. Where the whole gradient is exactly 0 the image stays;
    published code moves its first value. Otherwise as for ODIN, also after a shaper.
    """

    _single: ClassVar[bool] = True
