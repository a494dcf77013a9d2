"""The device, precision and batch size that a network computes with."""

from dataclasses import dataclass
from typing import Literal, Self

import torch

from oodcli.compute.devices import find_device

Precision = Literal["float32", "bfloat16"]


@dataclass(frozen=True)
class Compute:
    """Device, precision and batch size; :meth:`of` builds it from the options of a command.

    Parameters
    ----------
    device
        The device.
    precision
        Floating-point type of the forward pass; activations, scores and detectors are stored
        separately for each precision.
    batch_size
        Images per forward pass; None: chosen for the device.
    """

    device: torch.device
    precision: Precision = "float32"
    batch_size: int | None = None

    @classmethod
    def of(cls, device: str = "auto", *, amp: bool = False, batch_size: int | None = None) -> Self:
        """Build the record from the options of a command.

        Parameters
        ----------
        device
            ``auto``, ``cpu``, ``cuda``, ``cuda:N`` or ``mps``.
        amp
            Whether the network computes in bfloat16.
        batch_size
            Images per forward pass; None: chosen for the device.

        Raises
        ------
        InvalidInputError
            If the name is unknown, or this machine has no such device.

        Examples
        --------
        >>> Compute.of("cpu", amp=True)
        Compute(device=device(type='cpu'), precision='bfloat16', batch_size=None)
        """
        return cls(find_device(device), "bfloat16" if amp else "float32", batch_size)
