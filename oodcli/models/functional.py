"""Last layers that are no module: a matrix product in the forward pass of a network.

``F.linear(x, self.weight)``, ``x @ weight.T``, an ``einsum`` or a ``cosine_similarity`` is found by
watching torch's functions. The features are what goes into it. An encoder has no last layer at all:
its features are what it returns. In both cases a linear layer is placed at the end of the network,
whose input is the features and whose output the network returns.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
import torch.nn.functional as F  # noqa: N812 - the name that torch's own documentation gives it
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_flatten

from oodcli.models.outputs import leaves

# The linear layer that was put into a network; weights with this name have been read already.
INSIDE = "read_as"
SMALLEST_NORM = 1e-12
_CLOSE = 1e-4
_COSINE = F.cosine_similarity
_PRODUCTS = frozenset(
    {
        F.linear, torch.matmul, torch.mm, torch.addmm, torch.inner, torch.einsum, _COSINE,
        torch.Tensor.matmul, torch.Tensor.mm, torch.Tensor.addmm, torch.Tensor.inner,
        torch.Tensor.__matmul__,
    }
)  # fmt: skip


@dataclass(frozen=True, eq=False)
class Product:
    """One matrix product of a forward pass.

    Parameters
    ----------
    given
        The tensors that it was given.
    output
        What it made of them.
    cosine
        Whether rows were divided by their lengths in it.
    """

    given: tuple[Tensor, ...]
    output: Tensor
    cosine: bool

    def rows(self, index: int) -> Tensor:
        """Return one of the tensors as rows ``(n, d)``, divided by their lengths in a cosine.

        Parameters
        ----------
        index
            Which of them.
        """
        rows = self.given[index].flatten(0, -2)
        return F.normalize(rows, dim=1, eps=SMALLEST_NORM) if self.cosine else rows


@dataclass(frozen=True)
class Ending:
    """How features are taken out of a forward pass.

    Parameters
    ----------
    kind
        ``product`` for what goes into a matrix product, ``output`` for what the network returns.
    place
        Which product, counted from the last, which is 1.
    index
        Which of the tensors that it is given.
    output
        Which of several outputs, as :func:`oodcli.models.outputs.leaves` has it.
    """

    kind: Literal["product", "output"]
    place: int = 1
    index: int = 0
    output: str = ""


class Watch(TorchFunctionMode):
    """Keeps every matrix product while it is active."""

    def __init__(self) -> None:
        super().__init__()
        self.products: list[Product] = []

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: object,
        args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> object:
        output = func(*args, **(kwargs or {}))
        if func in _PRODUCTS and isinstance(output, Tensor):
            every = tree_flatten((args, kwargs or {}))[0]
            given = tuple(each for each in every if isinstance(each, Tensor))
            self.products.append(Product(given, output, func is _COSINE))
        return output


@dataclass(frozen=True)
class Found:
    """A matrix product that logits are linear in the input of.

    Parameters
    ----------
    ending
        Where it is.
    weight, bias
        ``logits = features @ weight.T + bias``: ``(k, d)`` and ``(k,)``, with what comes after the
        product.
    sigmoid
        Whether the network returns the sigmoid of its one logit.
    held
        The tensor that was multiplied with.
    altered
        Whether a factor or a bias comes after the product.
    cosine
        Whether features are unit vectors.
    """

    ending: Ending
    weight: Tensor
    bias: Tensor
    sigmoid: bool
    held: Tensor = field(repr=False)
    altered: bool
    cosine: bool


def find_product(
    products: Sequence[Product], logits: Tensor, is_fixed: Callable[[Tensor], bool]
) -> Found | None:
    """Find the last matrix product that the logits are linear in the input of.

    Parameters
    ----------
    products
        All of a forward pass, in order.
    logits
        ``(n, k)``.
    is_fixed
        Tells of a tensor whether it does not depend on the images.

    Notes
    -----
    What may come after the product: a constant bias, a constant positive factor, and the sigmoid of
    one logit.
    """
    for place, product in enumerate(reversed(products), start=1):
        if place > 1 and product.output.numel() != logits.numel():
            continue
        for index, rows in enumerate(product.given):
            if rows.dim() < 2 or not rows.is_floating_point() or is_fixed(rows):
                continue
            found = _read(product, Ending("product", place, index), logits, is_fixed)
            if found is not None:
                return found
    return None


def read_product(products: Sequence[Product], ending: Ending, logits: Tensor) -> Found | None:
    """Read a product whose place is known; None if the logits are not linear in its input.

    Parameters
    ----------
    products, logits
        As for :func:`find_product`.
    ending
        Where it is.
    """
    if len(products) < ending.place:
        return None
    return _read(products[-ending.place], ending, logits, lambda _: True)


def _read(
    product: Product, ending: Ending, logits: Tensor, is_fixed: Callable[[Tensor], bool]
) -> Found | None:
    count = logits.shape[1]
    features = product.rows(ending.index)
    if len(features) != len(logits) or product.output.numel() != logits.numel():
        return None
    made = product.output.reshape(logits.shape)
    for other, held in enumerate(product.given):
        if other == ending.index or held.dim() < 2 or not is_fixed(held):
            continue
        rows = product.rows(other)
        for weight in (rows, rows.T):
            if weight.shape != (count, features.shape[1]):
                continue
            own = made - F.linear(features, weight)
            if not _alike(own[:1], own[1:], made):
                continue
            after = _affine(made, logits)
            if after is None:
                continue
            factor, more, sigmoid = after
            return Found(
                ending,
                factor * weight.detach(),
                factor * own[0].detach() + more,
                sigmoid,
                held,
                altered=abs(factor - 1) > _CLOSE or not _alike(more[None], 0 * more[None], made),
                cosine=product.cosine,
            )
    return None


def _alike(ours: Tensor, theirs: Tensor, like: Tensor) -> bool:
    scale = float(like.abs().max()) + 1e-30
    return bool((ours - theirs).abs().max() <= _CLOSE * scale)


def _affine(ours: Tensor, theirs: Tensor) -> tuple[float, Tensor, bool] | None:
    """Return factor, bias and whether a sigmoid follows, that make one tensor of the other."""
    nothing = theirs.new_zeros(theirs.shape[1])
    factor = factor_of(ours, theirs)
    if factor is not None:
        return factor, nothing, False
    if ours.shape[1] == 1:
        close = torch.allclose(ours.sigmoid(), theirs, rtol=0, atol=1e-5)
        return (1.0, nothing, True) if close else None
    factor = factor_of(ours[:1] - ours[1:], theirs[:1] - theirs[1:])
    return None if factor is None else (factor, (theirs - factor * ours)[0].detach(), False)


def factor_of(ours: Tensor, theirs: Tensor) -> float | None:
    """Return the positive number that one tensor is the other times; None if there is none.

    Parameters
    ----------
    ours, theirs
        Of the same shape.
    """
    square = float(ours.square().sum())
    factor = float((ours * theirs).sum()) / square if square > 0 else 0.0
    scale = float(theirs.abs().max()) + 1e-30
    close = float((factor * ours - theirs).abs().max()) <= _CLOSE * scale
    return factor if factor > 0 and close else None


def place_layer(module: nn.Module, ending: Ending, linear: nn.Linear) -> None:
    """Put a linear layer at the end of a network, which returns the output of that layer.

    Parameters
    ----------
    module
        The network, changed in place: its class is one made of its own class, as torch's
        parametrisations do it, so that copies of it are such networks as well.
    ending
        Where the features are, which the layer is given.
    linear
        The layer; it gets the name ``read_as``.
    """
    module.add_module(INSIDE, linear)
    kind = type(module)

    def forward(self: nn.Module, *args: object, **kwargs: object) -> Tensor:
        with Watch() as watch:
            output = kind.forward(self, *args, **kwargs)
        logits: Tensor = self.get_submodule(INSIDE)(_features(output, watch.products, ending))
        return logits

    fields = {"forward": forward, "__module__": kind.__module__, "__doc__": kind.__doc__}
    module.__class__ = type(kind.__name__, (kind,), fields)


def _features(output: object, products: Sequence[Product], ending: Ending) -> Tensor:
    """Return the features of a forward pass, ``(n, d)``."""
    if ending.kind == "output":
        return leaves(output)[ending.output].flatten(1)
    return products[-ending.place].rows(ending.index)
