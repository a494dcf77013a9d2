"""Tracing of a forward pass: which tensors depend on the image, and which operations read them."""

import contextlib
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_flatten

from oodcli.models.functional import Product, Watch


@dataclass(frozen=True, eq=False)
class Call:
    """One call of a module.

    Parameters
    ----------
    path
        Path of the module.
    inputs
        Positional arguments of the call.
    output
        Return value of the call.
    end
        Number of operations that had run when it returned.
    constant_tokens
        Which of the input tokens ``(n, t, c)`` were equal for all images, bool ``(t,)``; None if
        the input has no tokens.
    """

    path: str
    inputs: tuple[object, ...]
    output: object
    end: int
    constant_tokens: Tensor | None


@dataclass
class Trace:
    """One forward pass.

    Parameters
    ----------
    output
        Return value of the network.
    calls
        The calls of its modules, in the order in which they returned.
    written, read
        For every storage that depends on the image, by address: number of the first operation that
        wrote it (-1 for the image itself), and of the last operation that read it.
    products
        Its matrix products in order.
    """

    output: object
    calls: list[Call]
    written: Mapping[int, int]
    read: Mapping[int, int]
    products: Sequence[Product] = ()

    def is_fixed(self, tensor: Tensor) -> bool:
        """Tell whether a tensor does not depend on the image."""
        return memory_of(tensor) not in self.written

    def of_first_tensors(self) -> "Trace":
        """Return the pass with only the tokens of modules that return a tuple starting with tokens.

        Layers of Hugging Face's Swin, for example, also return their attention weights.
        """
        calls = [replace(each, output=first_of(each.output)) for each in self.calls]
        return replace(self, calls=calls)

    def is_cut(self, call: Call) -> bool:
        """Return whether everything after a call depends on the image only through its output.

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
    """Return the tokens ``(n, t, c)`` that a tuple starts with; any other output unchanged."""
    first = output[0] if isinstance(output, tuple) and output else output
    return first if isinstance(first, Tensor) and first.dim() == 3 else output


def memory_of(tensor: Tensor) -> int:
    """Return the address of a tensor's storage, which its views share while they exist."""
    return tensor.untyped_storage().data_ptr()


def _fills_its_memory(tensor: Tensor) -> bool:
    return tensor.numel() * tensor.element_size() == tensor.untyped_storage().nbytes()


class _Tracer(TorchDispatchMode):
    """Records all operations on tensors that depend on the image."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.written: dict[int, int] = {}
        self.read: dict[int, int] = {}
        self.operations = 0
        # References to all traced tensors, because freed memory would be reused by other tensors.
        self.alive: list[Tensor] = []

    def start_from(self, image: Tensor) -> None:
        """Start tracing from this tensor."""
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
    """Run a network and trace the images.

    Parameters
    ----------
    module
        The network, in evaluation mode.
    images
        Normalised images, ``(n, 3, h, w)``.
    """
    tracer = _Tracer()
    calls: list[Call] = []
    given: dict[str, list[Tensor | None]] = defaultdict(list)

    def before(path: str, _module: nn.Module, inputs: tuple[object, ...]) -> None:
        # Before the call, because the module may overwrite its input.
        given[path].append(_constant_tokens(inputs))

    def after(path: str, _module: nn.Module, inputs: tuple[object, ...], output: object) -> None:
        calls.append(Call(path, inputs, output, tracer.operations, given[path].pop()))

    with contextlib.ExitStack() as hooks, torch.no_grad(), tracer, Watch() as watch:
        for path, each in module.named_modules():
            if path:
                hooks.callback(each.register_forward_pre_hook(partial(before, path)).remove)
                hooks.callback(each.register_forward_hook(partial(after, path)).remove)
        tracer.start_from(images)
        output = module(images)
    return Trace(output, calls, tracer.written, tracer.read, watch.products)


def _constant_tokens(inputs: tuple[object, ...]) -> Tensor | None:
    tokens = next((v for v in inputs if isinstance(v, Tensor) and v.dim() == 3), None)
    if tokens is None:
        return None
    return (tokens == tokens[:1]).all(dim=2).all(dim=0)  # (t,)
