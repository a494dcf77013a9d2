"""Which tensors of a forward pass are made of the image, and who reads them when."""

import contextlib
from collections import defaultdict
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_flatten


@dataclass(frozen=True, eq=False)
class Call:
    """One call of a module.

    Parameters
    ----------
    path
        Path of the module.
    inputs
        What it was given.
    output
        What it returned.
    end
        How many operations had run when it returned.
    blind
        Which of the tokens ``(n, t, c)`` that it was given were the same for all images, ``(t,)``;
        None if it was given none.
    """

    path: str
    inputs: tuple[object, ...]
    output: object
    end: int
    blind: Tensor | None


@dataclass
class Trace:
    """One forward pass.

    Parameters
    ----------
    output
        What the network returned.
    calls
        The calls of its modules, in the order in which they returned.
    written, read
        For every piece of memory that is made of the image: the operation that wrote it first
        (-1 for the image itself), and the one that read it last.
    """

    output: object
    calls: list[Call]
    written: Mapping[int, int]
    read: Mapping[int, int]

    def of_first_tensors(self) -> "Trace":
        """Return the pass as if modules that return tokens first in a tuple returned them alone.

        Layers of Hugging Face's Swin also return the weights of their attention.
        """
        calls = [replace(each, output=first_of(each.output)) for each in self.calls]
        return replace(self, calls=calls)

    def is_cut(self, call: Call) -> bool:
        """Tell whether all that comes after a call depends on the image through its output alone.

        Parameters
        ----------
        call
            One of the calls.
        """
        if not isinstance(call.output, Tensor):
            return False
        own = memory_of(call.output)
        if own not in self.written or not _fills_its_memory(call.output):
            return False
        return not any(
            first < call.end <= self.read.get(memory, -1)
            for memory, first in self.written.items()
            if memory != own
        )


def first_of(output: object) -> object:
    """Return the tokens ``(n, t, c)`` that come first in a tuple; anything else stays."""
    first = output[0] if isinstance(output, tuple) and output else output
    return first if isinstance(first, Tensor) and first.dim() == 3 else output


def memory_of(tensor: Tensor) -> int:
    """Return what is the same for a tensor and its views, while they live."""
    return tensor.untyped_storage().data_ptr()


def _fills_its_memory(tensor: Tensor) -> bool:
    return tensor.numel() * tensor.element_size() == tensor.untyped_storage().nbytes()


class _Reader(TorchDispatchMode):
    """Follows the image through all operations."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.written: dict[int, int] = {}
        self.read: dict[int, int] = {}
        self.operations = 0
        # Memory that is given back could be taken for another tensor's.
        self.alive: list[Tensor] = []

    def start_from(self, image: Tensor) -> None:
        """Follow this tensor."""
        self.alive.append(image)
        self.written[memory_of(image)] = -1

    def __torch_dispatch__(
        self,
        func: Callable[..., Any],
        types: object,
        args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> object:
        given = [v for v in tree_flatten((args, kwargs or {}))[0] if isinstance(v, Tensor)]
        seen = [m for m in map(memory_of, given) if m in self.written]
        output = func(*args, **(kwargs or {}))
        for memory in seen:
            self.read[memory] = self.operations
        if seen:
            for made in tree_flatten(output)[0]:
                if isinstance(made, Tensor) and made.numel():
                    self.alive.append(made)
                    self.written.setdefault(memory_of(made), self.operations)
        self.operations += 1
        return output


def trace(module: nn.Module, images: Tensor) -> Trace:
    """Run a network and follow the images.

    Parameters
    ----------
    module
        The network, in evaluation mode.
    images
        ``(n, 3, h, w)``.
    """
    reader = _Reader()
    calls: list[Call] = []
    given: dict[str, list[Tensor | None]] = defaultdict(list)

    def before(path: str, _module: nn.Module, inputs: tuple[object, ...]) -> None:
        # Now, for the module may write over what it is given.
        given[path].append(_blind(inputs))

    def after(path: str, _module: nn.Module, inputs: tuple[object, ...], output: object) -> None:
        calls.append(Call(path, inputs, output, reader.operations, given[path].pop()))

    with contextlib.ExitStack() as hooks, torch.no_grad(), reader:
        for path, each in module.named_modules():
            if path:
                hooks.callback(each.register_forward_pre_hook(partial(before, path)).remove)
                hooks.callback(each.register_forward_hook(partial(after, path)).remove)
        reader.start_from(images)
        output = module(images)
    return Trace(output, calls, reader.written, reader.read)


def _blind(inputs: tuple[object, ...]) -> Tensor | None:
    tokens = next((v for v in inputs if isinstance(v, Tensor) and v.dim() == 3), None)
    if tokens is None:
        return None
    return (tokens == tokens[:1]).all(dim=2).all(dim=0)  # (t,)
