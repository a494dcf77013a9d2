"""Weights to start training from: those of a run, of a checkpoint, or published ones."""

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
from oodcli.store.runs import RunFolder, run_folders
from oodcli.store.store import Store, digest_of_json
from oodcli.training.state import weights_so_far


@dataclass(frozen=True)
class Initial:
    """Where the first weights of a run came from, as its record has it.

    Parameters
    ----------
    source
        Name of a run, path of a checkpoint, or name of published weights.
    digest
        Digest of the weights.
    arch
        Architecture of the run; None for a checkpoint, which does not say.
    pretrained
        Whether they are published weights of a network of torchvision or timm, or a file of such.
    """

    source: str
    digest: str
    arch: str | None = None
    pretrained: bool = False

    def to_json(self) -> dict[str, Any]:
        """Return it as it is stored."""
        return as_json(self)

    def read(self, store: Store, spec: ArchitectureSpec) -> "InitialWeights":
        """Read the weights again.

        Parameters
        ----------
        store
            Where the runs are.
        spec
            Architecture of the network that starts from them.

        Raises
        ------
        OodError
            If they are gone, or cannot be read.
        """
        if not self.pretrained:
            return initial_weights(store, self.source)
        return published_weights(spec, _again(self.source))[0]


@dataclass(frozen=True)
class InitialWeights:
    """The weights themselves.

    Parameters
    ----------
    named
        Where they came from.
    state
        Tensors by name.
    """

    named: Initial
    state: Mapping[str, Tensor]

    def network(self, spec: ArchitectureSpec) -> Network:
        """Return the network that they make.

        Raises
        ------
        InvalidInputError
            If they are not those of such a network.
        """
        return load_into(spec, self.state, source=self.named.source)

    def put_into(self, module: nn.Module, spec: ArchitectureSpec, *, digest: str) -> None:
        """Copy them into a network; its last layer stays as it is if the classes are others.

        Parameters
        ----------
        module
            A network of the same architecture, with an ordinary last layer; changed in place.
        spec
            The architecture.
        digest
            Digest that the weights had when the run was begun.

        Raises
        ------
        InvalidInputError
            If they are other weights now.
        """
        if self.named.digest != digest:
            raise InvalidInputError(
                f"{self.named.source} holds different weights than when this run was started; "
                "restore the old ones, or start another run"
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
    """Read weights to start from.

    Parameters
    ----------
    store
        Where the runs are.
    source
        Name of a run, finished or in training; otherwise path of a checkpoint.

    Raises
    ------
    OodError
        If there is neither, or it cannot be read.
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
    """Read published weights of a network to start from.

    Parameters
    ----------
    spec
        The network.
    source
        A file of them, or the name of one of torchvision's sets; the usual set if None.

    Returns
    -------
    weights
        The weights.
    published
        The same, with what they expect of an image.

    Raises
    ------
    OodError
        If there are none, or they cannot be had.
    """
    found = pretrained_state(str(spec), source)
    named = Initial(found.source, _digest(found.state), spec.canonical, pretrained=True)
    return InitialWeights(named, found.state), found


def _again(source: str) -> str | None:
    """Return what :func:`published_weights` was asked for, from the name of what it found."""
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
        _, state = weights_so_far(folder)
        arch = folder.read_training().job.arch
    return InitialWeights(Initial(folder.name, _digest(state), arch), state)


def _digest(state: Mapping[str, Tensor]) -> str:
    return digest_of_json({name: digest_of(tensor.cpu().numpy()) for name, tensor in state.items()})
