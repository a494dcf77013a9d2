"""What a method may observe in a forward pass besides logits, features and block norms.

A *probe* is a frozen record of its parameters with a function that runs inside the pass, network
and batch in hand; its output is one more row-aligned array, kept under the probe's own key. A
*learner* reduces the training images to a small state instead. Detectors see only what they left.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from torch import Tensor, nn

Edit = Callable[[Tensor], Tensor]


@dataclass(frozen=True, slots=True)
class Output:
    """What one run of a network on a batch of ``n`` images gave.

    Parameters
    ----------
    logits
        ``(n, k)``.
    features
        Input of the last layer, ``(n, d)``.
    maps
        The outputs that were asked for, by path of their module; usually ``(n, c, h, w)``.
    """

    logits: Tensor
    features: Tensor
    maps: Mapping[str, Tensor] = field(default_factory=dict)


class ProbedNetwork(Protocol):
    """A network in evaluation mode, as a probe sees it."""

    @property
    def blocks(self) -> Mapping[str, str]:
        """Paths of the blocks in forward order, by name; the last one makes the last map."""

    @property
    def std(self) -> Tensor:
        """Standard deviation by which pixel values are divided, ``(3, 1, 1)``."""

    def modules_of(self, *kinds: type[nn.Module]) -> Sequence[str]:
        """Return the paths of all modules of these types, in the order of definition."""

    def run(
        self, images: Tensor, *, keep: Sequence[str] = (), edit: Mapping[str, Edit] | None = None
    ) -> Output:
        """Run the network once more.

        Gradients flow where the caller has enabled them and ``images``, or a map that an edit
        returns, requires them.

        Parameters
        ----------
        images
            Normalised images, ``(n, 3, h, w)``.
        keep
            Paths of modules whose output is wanted.
        edit
            By path of a module: what its output is replaced with.
        """


class Probe(Protocol):
    """One more array per image."""

    @property
    def key(self) -> str:
        """Name of the array in :attr:`Activations.extra`; differs whenever its values do."""

    @property
    def passes(self) -> float:
        """Its cost in forward passes per image beyond the ordinary one; a backward counts 2."""

    def maps(self, network: ProbedNetwork, /) -> Sequence[str]:
        """Return the paths of modules whose output it wants of the ordinary pass."""

    def observe(self, network: ProbedNetwork, images: Tensor, output: Output, /) -> Tensor:
        """Return the array of a batch, ``(n, …)``.

        Parameters
        ----------
        network
            The network.
        images
            Normalised images, ``(n, 3, h, w)``, on the device of the network.
        output
            What the ordinary pass gave, without gradients.
        """


class Learner(Protocol):
    """Reduces training images to a state, batch by batch; the state is stored under its key."""

    @property
    def key(self) -> str:
        """Name of the state; differs whenever its values do."""

    @property
    def passes(self) -> float:
        """Its cost in forward passes per training image beyond the ordinary one."""

    def maps(self, network: ProbedNetwork, /) -> Sequence[str]:
        """Return the paths of modules whose output it wants of the ordinary pass."""

    def update(
        self,
        state: Mapping[str, Tensor],
        network: ProbedNetwork,
        images: Tensor,
        output: Output,
        /,
    ) -> Mapping[str, Tensor]:
        """Return the state with one more batch taken in; the first state is empty."""
