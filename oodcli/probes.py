"""Observations in a forward pass beyond logits, features and block norms.

A *probe* is a frozen record of parameters with a function that runs during the forward pass, with
access to the network and the batch; its output is a further array of one row per image, stored
under the probe's key. A *learner* reduces the training images to a small state instead. Detectors
see only these arrays and states, never the network.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from torch import Tensor, nn

Edit = Callable[[Tensor], Tensor]


@dataclass(frozen=True, slots=True)
class Output:
    """Outputs of one forward pass of a network on a batch of ``n`` images.

    Parameters
    ----------
    logits
        ``(n, k)``.
    features
        Input of the last layer, ``(n, d)``.
    maps
        The requested outputs of modules, by module path; usually ``(n, c, h, w)``.
    """

    logits: Tensor
    features: Tensor
    maps: Mapping[str, Tensor] = field(default_factory=dict)


class ProbedNetwork(Protocol):
    """A network in evaluation mode, as a probe sees it."""

    @property
    def blocks(self) -> Mapping[str, str]:
        """Module paths of the blocks by name, in forward order; the last gives the last map."""

    @property
    def std(self) -> Tensor:
        """Standard deviation by which pixel values are divided, ``(3, 1, 1)``."""

    @property
    def weight(self) -> Tensor:
        """Weight of the last layer for scoring, ``(k, d)``."""

    @property
    def kept(self) -> Mapping[str, tuple[Tensor, Tensor]]:
        """Weight ``(o, d)`` and bias ``(o,)`` of the kept heads of the network, by name."""

    @property
    def local_path(self) -> str:
        """Path of the module whose map local embeddings are made of; empty if there are none."""

    def local_embeddings(self, maps: Tensor, /) -> Tensor:
        """Return an embedding in the space of the features for every position, ``(n, p, d)``.

        Parameters
        ----------
        maps
            Output of the module at :attr:`local_path`, ``(n, c, h, w)``.
        """

    def modules_of(self, *kinds: type[nn.Module]) -> Sequence[str]:
        """Return the paths of all modules of the given types, in order of definition."""

    def dropout_rates(self) -> Mapping[str, float]:
        """Return the rate of every dropout layer, by module path, in order of definition."""

    def run(
        self, images: Tensor, *, keep: Sequence[str] = (), edit: Mapping[str, Edit] | None = None
    ) -> Output:
        """Run a further forward pass.

        Gradients are computed if the caller has enabled them and ``images``, or a map that an edit
        returns, requires them.

        Parameters
        ----------
        images
            Normalised images, ``(n, 3, h, w)``.
        keep
            Paths of modules whose outputs are returned.
        edit
            Functions that replace the output of a module, by module path.
        """


class Probe(Protocol):
    """A further array of one row per image."""

    @property
    def key(self) -> str:
        """Name of the array in :attr:`Activations.extra`; unique to its parameters and code."""

    @property
    def passes(self) -> float:
        """Cost in forward passes per image beyond the ordinary one; a backward pass counts 2."""

    def maps(self, network: ProbedNetwork, /) -> Sequence[str]:
        """Return the paths of modules whose outputs it needs from the ordinary pass."""

    def observe(self, network: ProbedNetwork, images: Tensor, output: Output, /) -> Tensor:
        """Return the array of a batch, ``(n, …)``.

        Parameters
        ----------
        network
            The network.
        images
            Normalised images, ``(n, 3, h, w)``, on the device of the network.
        output
            Output of the ordinary pass, without gradients.
        """


class Learner(Protocol):
    """Reduces training images to a state, batch by batch; the state is stored under its key."""

    @property
    def key(self) -> str:
        """Name of the state; unique to its parameters and code."""

    @property
    def passes(self) -> float:
        """Cost in forward passes per training image beyond the ordinary one."""

    def maps(self, network: ProbedNetwork, /) -> Sequence[str]:
        """Return the paths of modules whose outputs it needs from the ordinary pass."""

    def update(
        self,
        state: Mapping[str, Tensor],
        network: ProbedNetwork,
        images: Tensor,
        output: Output,
        /,
    ) -> Mapping[str, Tensor]:
        """Return the state updated by one batch; the initial state is empty."""
