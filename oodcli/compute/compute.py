"""Where, how precisely and how many images at a time a network computes."""

from dataclasses import dataclass
from typing import Literal, Self

import torch

from oodcli.compute.devices import find_device

Precision = Literal["float32", "bfloat16"]


@dataclass(frozen=True)
class Compute:
    """Where and how to compute; :meth:`of` makes it of the options of a command.

    Parameters
    ----------
    device
        The device.
    precision
        Of the network; activations, scores and detectors of each precision are stored apart.
    batch_size
        Images that go through the network at a time; None for what suits the device.
    """

    device: torch.device
    precision: Precision = "float32"
    batch_size: int | None = None

    @classmethod
    def of(cls, device: str = "auto", *, amp: bool = False, batch_size: int | None = None) -> Self:
        """Return what options ask for.

        Parameters
        ----------
        device
            ``auto``, ``cpu``, ``cuda``, ``cuda:N`` or ``mps``.
        amp
            Whether the network computes in bfloat16.
        batch_size
            Images that go through the network at a time; None for what suits the device.

        Raises
        ------
        InvalidInputError
            If there is no such device, or it is not on this machine.

        Examples
        --------
        >>> Compute.of("cpu", amp=True)
        Compute(device=device(type='cpu'), precision='bfloat16', batch_size=None)
        """
        return cls(find_device(device), "bfloat16" if amp else "float32", batch_size)
