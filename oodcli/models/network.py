"""A network with its weights, its blocks and its last layer."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property, partial

import torch
from torch import Tensor, nn

from oodcli.activations import Head
from oodcli.errors import InvalidInputError
from oodcli.images import digest_of
from oodcli.models.architecture import ArchitectureSpec
from oodcli.models.heads import TextLinear, UnitFeatureLinear, kept_heads, scoring_head
from oodcli.models.layout import PLAIN, Layout
from oodcli.store.store import digest_of_json

# The batch counter of batch normalisation; in evaluation no forward pass depends on it.
COUNTER = "num_batches_tracked"


@dataclass(frozen=True, eq=False)
class Network:
    """A trained classifier with fixed weights.

    Parameters
    ----------
    module
        The network, in evaluation mode.
    spec
        Architecture that the network was built from.
    num_classes
        Number of rows of the last layer; 0 without a classifier.
    blocks
        The blocks in forward order: name, and path of the module whose output is the feature map.
    head_path
        Path of the last linear layer.
    """

    module: nn.Module
    spec: ArchitectureSpec
    num_classes: int
    blocks: Mapping[str, str]
    head_path: str
    _tried: set[tuple[int, int]] = field(default_factory=set, init=False, repr=False)

    @cached_property
    def digest(self) -> str:
        """Digest of the architecture, the number of classes and all weights."""
        tensors = {
            name: digest_of(tensor.detach().cpu().numpy())
            for name, tensor in self.module.state_dict().items()
            if not name.endswith(COUNTER)
        }
        content: dict[str, object] = {
            "arch": self.spec.canonical,
            "num_classes": self.num_classes,
            "tensors": tensors,
        }
        if self.spec.architecture.searched not in ((), tuple(self.blocks)):
            # Older runs of the same network have activations of fewer blocks.
            content["blocks"] = list(self.blocks)
        if self.spec.architecture.config:
            content["config"] = self.spec.architecture.config
        return digest_of_json(content)

    def restricted(self, rows: Sequence[int]) -> "Network":
        """Return the network with only some of its logits; its last layer is changed in place.

        Parameters
        ----------
        rows
            Indices of the logits, in their new order.
        """
        last = self.module.get_submodule(self.head_path)
        assert isinstance(last, nn.Linear)  # ensured by network_of
        index = list(rows)
        return self.with_last_layer(last.weight.detach()[index], last.bias.detach()[index])

    def with_last_layer(self, weight: Tensor, bias: Tensor) -> "Network":
        """Replace the weights of the last layer in place, and return the network.

        Parameters
        ----------
        weight, bias
            New weight ``(k, d)`` and bias ``(k,)``, for any number of classes ``k``.
        """
        set_last_layer(self.module, self.head_path, weight, bias)
        return network_of(self.spec, self.module)

    def without_classifier(self) -> "Network":
        """Return the network with a last layer of no rows, which gives no logits.

        The last layer is changed in place; its input, the features, stays what it is.
        """
        last = self.module.get_submodule(self.head_path)
        assert isinstance(last, nn.Linear)  # ensured by network_of
        return self.with_last_layer(last.weight.detach()[:0], torch.zeros(0))

    def with_blocks(self, names: Sequence[str]) -> "Network":
        """Return the same network with the blocks of an older run.

        Parameters
        ----------
        names
            Names of the blocks of the run. If they are the blocks of the network, or not those of
            any older version, the network is returned unchanged.
        """
        if tuple(names) != self.spec.architecture.searched:
            return self
        return replace(self, blocks={name: name for name in names})

    def head(self) -> Head:
        """Return a float32 copy of the last layer in the form used for scoring, on the CPU."""
        last = self.module.get_submodule(self.head_path)
        assert isinstance(last, nn.Linear)  # ensured by network_of
        return scoring_head(
            last.weight.detach().to("cpu", torch.float32, copy=True),
            last.bias.detach().to("cpu", torch.float32, copy=True),
            scoring_tau=float(last.scoring_tau) if isinstance(last, UnitFeatureLinear) else None,
            logit_scale=float(last.logit_scale) if isinstance(last, TextLinear) else None,
            kept={
                name: (weight.to("cpu", copy=True), bias.to("cpu", copy=True))
                for name, (weight, bias) in kept_heads(last).items()
            },
        )

    @property
    def kept_outputs(self) -> dict[str, int]:
        """Number of outputs of every kept head beside the last layer, by name."""
        last = self.module.get_submodule(self.head_path)
        return {name: len(bias) for name, (_, bias) in kept_heads(last).items()}

    def layout(self, block: str) -> Layout:
        """Return the layout of the output of a block.

        Parameters
        ----------
        block
            Name of the block.
        """
        return self.spec.architecture.layouts.get(block, PLAIN)

    def remarks(self) -> tuple[str, ...]:
        """Return lines for the user: the structure that was found, and the published block."""
        known = self.spec.architecture
        lines = [known.text] if known.text else []
        if known.selected_block is not None:
            index = list(self.blocks).index(known.selected_block)
            lines.append(
                f"{self.spec}: the authors of FeatureNorm use block {known.selected_block}, "
                f"which is featurenorm:block={index}"
            )
        return tuple(lines)

    def placement(self, device: torch.device) -> tuple[str, ...]:
        """Return lines to tell the user where the network does not compute on a device.

        Parameters
        ----------
        device
            The device that was asked for.
        """
        return self.spec.architecture.placement(device)

    def check_image_size(self, height: int, width: int) -> None:
        """Refuse images of a size that the network does not accept.

        Raises
        ------
        InvalidInputError
            If the feature map before the pooling would be empty, or if a network that accepts only
            some sizes does not accept this one.
        """
        least = self.spec.architecture.smallest_image
        if min(height, width) < least:
            raise InvalidInputError(
                f"{self.spec} needs images of at least {least} x {least} pixels, "
                f"not {height} x {width}; resize them, or use another architecture"
            )
        known = self.spec.architecture
        traced = height == width == known.traced_side
        if known.any_image or traced or (height, width) in self._tried:
            return
        seen: list[torch.Size] = []
        last = self.module.get_submodule(self.head_path)
        handle = last.register_forward_pre_hook(lambda _m, inputs: seen.append(inputs[0].shape))
        try:
            with torch.inference_mode():
                self.module(self._black(height, width))
            # torch raises no error if the network folds positions into rows.
            shape = tuple(seen[-1])
            reason = "" if len(shape) == 2 and shape[0] == 1 else f"features of {shape}"
        except Exception as error:  # noqa: BLE001 - third-party code can raise anything
            reason = str(error).partition("\n")[0] or type(error).__name__
        finally:
            handle.remove()
        if reason:
            raise InvalidInputError(
                f"{self.spec} does not accept images of {height} x {width} pixels ({reason}); "
                "specify the size that it was trained with: --image-size N"
            )
        self._tried.add((height, width))

    def _black(self, height: int, width: int) -> Tensor:
        """Return one image of zeros; the meta device would suffice, but its import takes longer."""
        return torch.zeros(1, 3, height, width, device=next(self.module.parameters()).device)

    def block_shapes(self, size: tuple[int, int]) -> dict[str, tuple[int, int, int]]:
        """Return channels, height and width of the feature map of every block, by name.

        Parameters
        ----------
        size
            Height and width of an image, in pixels.

        Raises
        ------
        InvalidInputError
            If the network does not accept images of this size.
        """
        self.check_image_size(*size)
        shapes: dict[str, tuple[int, int, int]] = {}

        def record(name: str, _module: nn.Module, _inputs: object, maps: Tensor) -> None:
            _, channels, height, width = self.layout(name).maps(maps).shape
            shapes[name] = (channels, height, width)

        handles = [
            self.module.get_submodule(path).register_forward_hook(partial(record, name))
            for name, path in self.blocks.items()
        ]
        try:
            with torch.inference_mode():
                self.module(self._black(*size))
        finally:
            for handle in handles:
                handle.remove()
        return shapes


def fill(module: nn.Module, state: Mapping[str, Tensor], *, strict: bool = True) -> None:
    """Copy weights that fit into a network.

    Parameters
    ----------
    module
        The network.
    state
        Tensors by name.
    strict
        Whether all have to be there, and no others.

    Notes
    -----
    A state dict of torch knows which version of its modules wrote it, and some refuse to read one
    that does not (MNASNet). Since all shapes fit, it is the version of the network.
    """
    own = module.state_dict()
    current = type(own)(state)
    current._metadata = own._metadata  # type: ignore[attr-defined]  # noqa: SLF001 - torch reads it
    module.load_state_dict(current, strict=strict)


def set_last_layer(
    module: nn.Module, path: str, weight: Tensor, bias: Tensor | None = None
) -> None:
    """Give a last layer other weights, and as many outputs as these have rows.

    Parameters
    ----------
    module
        The network, changed in place.
    path
        Path of its last linear layer, which has a bias.
    weight, bias
        ``(k, d)`` and ``(k,)``, copied; a bias of zero if None.
    """
    last = module.get_submodule(path)
    assert isinstance(last, nn.Linear)  # network_of has seen to it
    zero = weight.new_zeros(len(weight))
    for name, values in (("weight", weight), ("bias", zero if bias is None else bias)):
        old = getattr(last, name)
        new = values.to(old.device, old.dtype, copy=True)
        setattr(last, name, nn.Parameter(new, requires_grad=old.requires_grad))
    last.out_features = len(weight)


def network_of(spec: ArchitectureSpec, module: nn.Module) -> Network:
    """Wrap a module that was built from ``spec``, and put it into evaluation mode.

    Raises
    ------
    TypeError
        If its last layer is not a linear layer with a bias.
    """
    path = spec.architecture.head
    last = module.get_submodule(path)
    if not isinstance(last, nn.Linear) or last.bias is None:
        raise TypeError(f"{path} of {spec} is not a linear layer with a bias")
    return Network(module.eval(), spec, last.out_features, spec.architecture.blocks(module), path)
