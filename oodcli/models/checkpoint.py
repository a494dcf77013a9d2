"""The weights of a run, in and out of safetensors."""

import contextlib
from collections.abc import Iterator, Sequence
from pathlib import Path

import safetensors.torch
from safetensors import safe_open
from torch import Tensor

from oodcli.activations import Head
from oodcli.errors import CorruptArtifactError, InvalidInputError, MissingArtifactError
from oodcli.files import reading
from oodcli.models.fitting import load_into
from oodcli.models.heads import scoring_head
from oodcli.models.network import Network
from oodcli.models.registry import is_foreign, parse_architecture
from oodcli.specs import names_folder
from oodcli.store.store import atomic_write

_HEAD = "head"
_CONFIG = "config"
_AGAIN = "remove the run and create it again"


def save_weights(network: Network, path: Path) -> None:
    """Write the weights of a network in one step.

    Parameters
    ----------
    network
        The network.
    path
        A ``.safetensors`` file, replaced if it is there.
    """
    # Copies where two names share their memory, which the format does not allow.
    seen: set[int] = set()
    state: dict[str, Tensor] = {}
    for name, tensor in network.module.state_dict().items():
        memory = tensor.untyped_storage().data_ptr()
        state[name] = tensor.contiguous() if memory not in seen else tensor.clone()
        seen.add(memory)
    content = safetensors.torch.save(state, metadata=_metadata(network))
    with atomic_write(path) as stream:
        stream.write(content)


def _metadata(network: Network) -> dict[str, str]:
    config = network.spec.architecture.config
    return {_HEAD: network.head_path, **({_CONFIG: config} if config else {})}


def stored_config(path: Path) -> str:
    """Return the configuration that :func:`save_weights` wrote with a network; empty of others.

    Raises
    ------
    MissingArtifactError
        If there is no such file.
    CorruptArtifactError
        If the file is not what was written.
    """
    with _own_file(path), safe_open(path, framework="pt") as tensors:
        return (tensors.metadata() or {}).get(_CONFIG, "")


def load_weights(path: Path) -> dict[str, Tensor]:
    """Read what :func:`save_weights` wrote.

    Raises
    ------
    MissingArtifactError
        If there is no such file.
    CorruptArtifactError
        If the file is not what was written.
    """
    with _own_file(path):
        return safetensors.torch.load_file(path)


def load_run_network(
    path: Path,
    arch: str,
    num_classes: int,
    *,
    size: tuple[int, int] | None = None,
    blocks: Sequence[str] | None = None,
) -> Network:
    """Load the network of a run.

    Parameters
    ----------
    path
        Its weights.
    arch
        Its architecture.
    num_classes
        Its number of classes.
    size
        Height and width of its images, in pixels: a network from elsewhere is followed at that
        size, as it was when the run was made.
    blocks
        Names of its blocks in forward order, where the record has them.

    Raises
    ------
    MissingArtifactError
        If there is no such file.
    CorruptArtifactError
        If the file is not what was written, or does not belong to such a network, or other blocks
        are found in it than when the run was made.
    """
    side = size[0] if size is not None and size[0] == size[1] else None
    try:
        config = stored_config(path) if names_folder(arch) else ""
        spec = parse_architecture(arch, side=side, config=config)
        network = load_into(spec, load_weights(path))
    except InvalidInputError as error:
        raise CorruptArtifactError(f"{path} is damaged: {error}") from None
    if network.num_classes != num_classes:
        raise CorruptArtifactError(
            f"{path} has {network.num_classes} classes, and its run has {num_classes}; {_AGAIN}"
        )
    if blocks is not None:
        network = network.with_blocks(blocks)
    if blocks is not None and tuple(network.blocks) != tuple(blocks):
        raise CorruptArtifactError(
            f"{len(network.blocks)} blocks are found in {arch} now, from "
            f"{next(iter(network.blocks))} on, and its run has {len(blocks)}; {_AGAIN}"
        )
    return network


def load_head(path: Path, arch: str) -> Head:
    """Load only the last layer of a run's network, as images are scored by it.

    Parameters
    ----------
    path
        The weights of the run.
    arch
        Its architecture.

    Raises
    ------
    MissingArtifactError
        If there is no such file.
    CorruptArtifactError
        If the file is not what was written.
    """
    with _own_file(path), safe_open(path, framework="pt") as tensors:
        # A network from elsewhere would have to be built to find its last layer.
        written = (tensors.metadata() or {}).get(_HEAD) if is_foreign(arch) else None
        head = written or parse_architecture(arch).architecture.head
        name = f"{head}.scoring_tau"
        return scoring_head(
            tensors.get_tensor(f"{head}.weight"),
            tensors.get_tensor(f"{head}.bias"),
            scoring_tau=float(tensors.get_tensor(name)) if name in tensors.keys() else None,  # noqa: SIM118 - it is no mapping
        )


@contextlib.contextmanager
def _own_file(path: Path) -> Iterator[None]:
    try:
        with reading(path, wrong="is damaged", cure=_AGAIN, disk=True):
            yield
    except FileNotFoundError:
        raise MissingArtifactError(f"the weights {path} are missing; {_AGAIN}") from None
