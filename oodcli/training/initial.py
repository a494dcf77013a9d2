"""Initial weights of training: from a run, from a checkpoint, or published."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from oodcli.errors import InvalidInputError
from oodcli.images import digest_of
from oodcli.models import (
    ArchitectureSpec,
    Network,
    Pretrained,
    load_into,
    load_weights,
    pretrained_state,
    read_state,
)
from oodcli.records import as_json
from oodcli.specs import names_clip
from oodcli.store.run_names import run_folders
from oodcli.store.runs import RunFolder
from oodcli.store.store import Store, digest_of_json
from oodcli.training.state import newest_weights


@dataclass(frozen=True)
class Initial:
    """Source of the initial weights of a run, as stored in its record.

    Parameters
    ----------
    source
        Name of a run, path of a checkpoint, or name of published weights.
    digest
        Digest of the weights.
    arch
        Architecture of the run; None for a checkpoint, which does not state it.
    pretrained
        Whether they are published weights of a torchvision or timm network, by name or from a
        file.
    """

    source: str
    digest: str
    arch: str | None = None
    pretrained: bool = False

    def to_json(self) -> dict[str, Any]:
        """Return the record as it is stored."""
        return as_json(self)

    def read(self, store: Store, spec: ArchitectureSpec) -> "InitialWeights":
        """Read the weights from their source.

        Parameters
        ----------
        store
            Store of the runs.
        spec
            Architecture of the network that is trained.

        Raises
        ------
        OodError
            If the source no longer exists, or cannot be read.
        """
        if not self.pretrained:
            return initial_weights(store, self.source)
        return published_weights(spec, _requested_source(self.source))[0]


@dataclass(frozen=True)
class InitialWeights:
    """Initial weights and their source.

    Parameters
    ----------
    origin
        Source of the weights.
    state
        Tensors by name.
    """

    origin: Initial
    state: Mapping[str, Tensor]

    def network(self, spec: ArchitectureSpec) -> Network:
        """Build a network with these weights.

        Raises
        ------
        InvalidInputError
            If the weights do not fit the architecture.
        """
        return load_into(spec, self.state, source=self.origin.source)

    def copy_into(self, module: nn.Module, spec: ArchitectureSpec, *, digest: str) -> None:
        """Copy the weights into a network, except a last layer with another number of classes.

        Parameters
        ----------
        module
            A network of the same architecture, with a plain linear last layer; changed in place.
        spec
            The architecture.
        digest
            Digest of the weights when the run was started.

        Raises
        ------
        InvalidInputError
            If the source now holds different weights.
        """
        if self.origin.digest != digest:
            raise InvalidInputError(
                f"{self.origin.source} holds different weights than when this run was started; "
                "restore the original weights, or start another run"
            )
        given = self.network(spec).module.state_dict()
        ours = module.state_dict()
        head = f"{spec.architecture.head}."
        same = ours[f"{head}weight"].shape == given[f"{head}weight"].shape
        with torch.no_grad():
            for name, tensor in ours.items():
                if name in given and (same or not name.startswith(head)):
                    tensor.copy_(given[name])


def initial_weights(store: Store, source: str) -> InitialWeights:
    """Read the initial weights from a run or a checkpoint.

    Parameters
    ----------
    store
        Store of the runs.
    source
        Name of a run, finished or in training; otherwise path of a checkpoint.

    Raises
    ------
    OodError
        If neither such a run nor such a file exists, or it cannot be read.
    """
    for folder in run_folders(store):
        if folder.name == source:
            return _of_run(folder)
    path = Path(source)
    if not path.exists():
        known = ", ".join(folder.name for folder in run_folders(store)) or "none"
        raise InvalidInputError(
            f"--init {source} is neither a run nor a file; existing runs: {known}"
        )
    state = read_state(path)
    return InitialWeights(Initial(str(path.resolve()), _digest(state)), state)


def published_weights(
    spec: ArchitectureSpec, source: str | None
) -> tuple[InitialWeights, Pretrained]:
    """Read the published weights of a network.

    Parameters
    ----------
    spec
        The network.
    source
        Path of a weight file, or name of one of torchvision's weight sets; None: the default set.

    Returns
    -------
    weights
        The weights.
    published
        The same weights, with the preprocessing that they expect.

    Raises
    ------
    OodError
        If no weights are published for the network, or they cannot be downloaded or read.
    """
    if names_clip(str(spec)):
        raise InvalidInputError(
            f"the weights of {spec} have no last layer; make one of class names (ood import --arch "
            f"{spec}), and start from that run: ood train --init RUN"
        )
    found = pretrained_state(str(spec), source)
    origin = Initial(found.source, _digest(found.state), spec.canonical, pretrained=True)
    return InitialWeights(origin, found.state), found


def _requested_source(source: str) -> str | None:
    """Return the ``source`` argument of :func:`published_weights` from the stored source."""
    if Path(source).is_absolute():
        return source
    network, _, name = source.partition(" ")
    return name if network.startswith("torchvision:") else None


def _of_run(folder: RunFolder) -> InitialWeights:
    if folder.finished:
        record = folder.read()
        folder.check_weights(record)
        state, arch = load_weights(folder.weights), record.arch
    else:
        folder.check_single()
        _, state = newest_weights(folder)
        arch = folder.read_training().job.arch
    return InitialWeights(Initial(folder.name, _digest(state), arch), state)


def _digest(state: Mapping[str, Tensor]) -> str:
    return digest_of_json({name: digest_of(tensor.cpu().numpy()) for name, tensor in state.items()})
