"""The weights of a run, stored as safetensors."""

import contextlib
import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import safetensors.torch
from safetensors import safe_open
from torch import Tensor

from oodcli.activations import Head
from oodcli.errors import (
    CorruptArtifactError,
    InvalidInputError,
    MissingArtifactError,
    UnknownNameError,
)
from oodcli.files import reading
from oodcli.models.fitting import load_into
from oodcli.models.heads import KEPT, kept_names, kept_of, scoring_head
from oodcli.models.network import Network
from oodcli.models.registry import ARCHITECTURES, parse_architecture, stores_config
from oodcli.store.store import atomic_write

_HEAD = "head"
_CONFIG = "config"
_KEPT = "kept_heads"
_AGAIN = "remove the run and create it again"


def save_weights(network: Network, path: Path) -> None:
    """Write the weights of a network atomically.

    Parameters
    ----------
    network
        The network.
    path
        A ``.safetensors`` file; an existing one is replaced.
    """
    # Tensors that share memory are copied, because the format does not allow shared memory.
    seen: set[int] = set()
    state: dict[str, Tensor] = {}
    for name, tensor in network.module.state_dict().items():
        memory = tensor.untyped_storage().data_ptr()
        state[name] = tensor.contiguous() if memory not in seen else tensor.clone()
        seen.add(memory)
    content = _in_order(safetensors.torch.save(state, metadata=_metadata(network)))
    with atomic_write(path) as stream:
        stream.write(content)


def _in_order(content: bytes) -> bytes:
    """Return a safetensors file with its metadata sorted by key, so that equal weights are equal.

    The library writes several keys in random order.
    """
    end = 8 + int.from_bytes(content[:8], "little")
    header = json.loads(content[8:end])
    first = {"__metadata__": dict(sorted(header.pop("__metadata__").items()))}
    text = json.dumps({**first, **header}, separators=(",", ":"), ensure_ascii=False).encode()
    size = -(-len(text) // 8) * 8
    return size.to_bytes(8, "little") + text.ljust(size) + content[end:]


def _metadata(network: Network) -> dict[str, str]:
    config = network.spec.architecture.config
    kept = ",".join(f"{name}:{outputs}" for name, outputs in network.kept_outputs.items())
    return {
        _HEAD: network.head_path,
        **({_CONFIG: config} if config else {}),
        **({_KEPT: kept} if kept else {}),
    }


def stored_config(path: Path) -> str:
    """Return the configuration stored with a network from a folder; empty for other networks.

    Raises
    ------
    MissingArtifactError
        If the file does not exist.
    CorruptArtifactError
        If the file is damaged.
    """
    with _own_file(path), safe_open(path, framework="pt") as tensors:
        return (tensors.metadata() or {}).get(_CONFIG, "")


def load_weights(path: Path) -> dict[str, Tensor]:
    """Read the weights that :func:`save_weights` wrote.

    Raises
    ------
    MissingArtifactError
        If the file does not exist.
    CorruptArtifactError
        If the file is damaged.
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
        File of the weights.
    arch
        Architecture of the run.
    num_classes
        Number of classes of the run.
    size
        Height and width of the images in pixels: an external network is traced at that size, as
        it was when the run was created.
    blocks
        Names of the blocks in forward order; None if the record does not have them.

    Raises
    ------
    MissingArtifactError
        If the file does not exist.
    CorruptArtifactError
        If the file is damaged, does not fit the architecture or the number of classes, or if the
        network now has other blocks than when the run was created.
    """
    config = stored_config(path) if stores_config(arch) else ""
    weights = load_weights(path)
    return network_of_weights(
        weights, arch, num_classes,
        config=config, size=size, blocks=blocks, where=path, cure=_AGAIN,
    )  # fmt: skip


def network_of_weights(
    weights: Mapping[str, Tensor],
    arch: str,
    num_classes: int,
    *,
    config: str,
    size: tuple[int, int] | None,
    blocks: Sequence[str] | None,
    where: Path,
    cure: str,
) -> Network:
    """Build the network of a run and load its weights.

    Parameters
    ----------
    weights
        The weights of the run, by name.
    config
        Configuration stored with a network from a folder; empty for other networks.
    arch, num_classes, size, blocks
        As for :func:`load_run_network`.
    where
        The file with the weights, for messages.
    cure
        What the user can do if the file is damaged.

    Raises
    ------
    CorruptArtifactError
        If weights, architecture, number of classes and blocks do not fit together.
    """
    side = size[0] if size is not None and size[0] == size[1] else None
    try:
        network = load_into(parse_architecture(arch, side=side, config=config), weights)
    except (InvalidInputError, UnknownNameError) as error:
        raise CorruptArtifactError(f"{where} is damaged: {error}") from None
    if network.num_classes != num_classes:
        raise CorruptArtifactError(
            f"{where} has {network.num_classes} classes, but its run has {num_classes}; {cure}"
        )
    if blocks is not None:
        network = network.with_blocks(blocks)
    if blocks is not None and tuple(network.blocks) != tuple(blocks):
        raise CorruptArtifactError(
            f"{arch} now has {len(network.blocks)} blocks, starting with "
            f"{next(iter(network.blocks), 'none')}, but its run has {len(blocks)}; {cure}"
        )
    return network


def load_head(path: Path, arch: str) -> Head:
    """Load only the last layer of the network of a run, in the form used for scoring.

    Parameters
    ----------
    path
        File of the weights.
    arch
        Architecture of the run.

    Raises
    ------
    MissingArtifactError
        If the file does not exist.
    CorruptArtifactError
        If the file is damaged.
    """
    with _own_file(path), safe_open(path, framework="pt") as tensors:
        # The metadata saves building an external network just to find its last layer.
        built_in = arch.partition(":")[0] in ARCHITECTURES
        written = None if built_in else (tensors.metadata() or {}).get(_HEAD)
        head = written or parse_architecture(arch).architecture.head
        numbers = {
            name: float(tensors.get_tensor(f"{head}.{name}"))
            for name in ("scoring_tau", "logit_scale")
            if f"{head}.{name}" in tensors.keys()  # noqa: SIM118 - it is no mapping
        }
        kept = {
            name.removeprefix(f"{head}.{KEPT}."): tensors.get_tensor(name)
            for name in kept_names(head, tensors.keys())
        }
        return scoring_head(
            tensors.get_tensor(f"{head}.weight"),
            tensors.get_tensor(f"{head}.bias"),
            **numbers,
            kept=kept_of(kept),
        )


@contextlib.contextmanager
def _own_file(path: Path) -> Iterator[None]:
    try:
        with reading(path, wrong="is damaged", cure=_AGAIN, disk=True):
            yield
    except FileNotFoundError:
        raise MissingArtifactError(f"the weights {path} are missing; {_AGAIN}") from None
