"""Networks of torchvision, timm and Hugging Face, and networks in the user's own code.

Their names are ``torchvision:resnet50``, ``timm:vit_tiny_patch16_224`` and
``package.module:function``, optionally with values for the builder:
``torchvision:vit_b_16:image_size=64``, ``package.module:Class.from_name:model_name=small``. For a
network with several outputs, ``@output=NAME`` selects the logits. Networks from a folder are read
by :mod:`oodcli.models.folder_networks`.
"""

import contextlib
import difflib
import importlib
import inspect
import json
import re
import sys
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import cache, partial
from pathlib import Path
from types import MappingProxyType
from typing import Any

import torch
from torch import nn

from oodcli.errors import InvalidInputError, UnknownNameError
from oodcli.files import third_party_code
from oodcli.models.architecture import Architecture, OriginalForm, numbered_blocks
from oodcli.models.clip_sources import OPEN_CLIP, build_tower
from oodcli.models.clip_tower import tower_blocks
from oodcli.models.discovery import NetworkStructure, find_structure
from oodcli.models.folder_networks import canonical_function, config_named
from oodcli.models.hugging_face import HUGGING_FACE, build
from oodcli.models.inventories import of_inverted, of_torchvision_families
from oodcli.models.last_layer import convert_last_layer, put_in_place
from oodcli.models.outputs import convert_input_to_grey, select_output
from oodcli.specs import format_value, names_folder

TORCHVISION = "torchvision"
TIMM = "timm"
_BUILD = "specify a builder of the network, which is called with num_classes or without arguments"
# An unusual number: a builder that ignores it is recognised by its number of outputs.
_CLASSES = 7
# Names of the parameter of builders, and of the attribute of networks, for the image size.
_SIDE_NAMES = ("image_size", "img_size")
_NUMBER = re.compile(r"[-+]?(\d+\.?\d*|\.\d+)(e[-+]?\d+)?", re.ASCII | re.IGNORECASE)
# Torchvision's networks with auxiliary classifiers for training, and the prefixes of their tensors.
AUXILIARY = {"googlenet": ("aux1.", "aux2."), "inception_v3": ("AuxLogits.",)}

# Key of an architecture text that selects the output with the logits; no parameter has this name.
OUTPUT = "@output"

Make = Callable[[int], nn.Module]
Inventory = Callable[[nn.Module], Sequence[str]]
Value = int | float | bool | str


def external_architecture(
    name: str,
    function: str,
    texts: Mapping[str, str],
    *,
    side: int | None = None,
    config: str = "",
) -> Architecture:
    """Return the architecture of a network that this package does not define.

    Parameters
    ----------
    name
        ``torchvision``, ``timm``, ``hf``, or a module that can be imported, also from the current
        folder.
    function
        Name of the builder in the package or module.
    texts
        Values for the builder as text, by name: a number, ``true`` or ``false``, or a string.
        ``@output`` selects the output with the logits.
    side
        Height and width in pixels of the images that the network is used with; it is traced only at
        this size. None: the size that the builder is given, otherwise common sizes until one works.
    config
        Configuration of a network from a folder, as JSON text; read from the folder if empty.

    Returns
    -------
    Architecture
        Without parameters: the values for the builder are part of its name.

    Raises
    ------
    UnknownNameError
        If there is no such builder.
    InvalidInputError
        If the package is not installed, the builder does not accept a value, or blocks and last
        layer cannot be found; see :func:`oodcli.models.discovery.find_structure`.

    Notes
    -----
    The networks of torchvision for which FeatureNorm has been published have the blocks of the
    publication: the residual blocks of ResNets; the convolutions of VGGs, after ReLU and before any
    pooling; stem, inverted residuals and last convolution of MobileNetV3. The blocks of all other
    networks are searched.
    """
    if names_folder(f"{name}:{function}"):
        # A run has its configuration, and needs the folder no more.
        if not config:
            function = canonical_function(name, function)
            config = config_named(name, function)
        return _in_folder(name, function, config, side, texts.get(OUTPUT, ""))
    values = tuple(sorted(_values(name, function, texts).items()))
    return _of_builder(name, function, values, side, texts.get(OUTPUT, ""))


def builder_side(texts: Mapping[str, str]) -> int | None:
    """Return the image side that a builder is given, in pixels; None if it is given none.

    Parameters
    ----------
    texts
        Values for the builder as text, by name.

    Raises
    ------
    InvalidInputError
        If the size is not an integer.
    """
    return next((_side(key, texts[key]) for key in _SIDE_NAMES if key in texts), None)


def _side(key: str, text: str) -> int:
    if not (text.isascii() and text.isdigit()):
        raise InvalidInputError(f"{key} must be an integer, not {text!r}")
    return int(text)


def check_builder(name: str, function: str, texts: Mapping[str, str]) -> None:
    """Check that the builder of a network exists, without building the network.

    Parameters
    ----------
    name, function, texts
        As for :func:`external_architecture`.

    Raises
    ------
    OodError
        If there is no such builder, its package is not installed, or a size is not an integer.
    """
    if names_folder(f"{name}:{function}"):
        _folder_make(name, config_named(name, function))
        return
    values = _values(name, function, texts)
    _maker(name, function, values, _architecture_text(name, function, tuple(values.items())))


def stated_preprocessing(
    name: str, function: str, texts: Mapping[str, str]
) -> tuple[Mapping[str, Any], int | None]:
    """Return the preprocessing that a network in the user's own code states in its attributes.

    Parameters
    ----------
    name, function, texts
        As for :func:`external_architecture`.

    Returns
    -------
    configuration
        Its attribute ``pretrained_cfg``, as timm's networks have it; empty if there is none.
    side
        Image side in pixels from its attribute ``image_size`` or ``img_size``; None if it has
        neither.

    Raises
    ------
    OodError
        If the network cannot be built.
    """
    return _stated(name, function, tuple(sorted(_values(name, function, texts).items())))


@cache
def _stated(
    name: str, function: str, values: tuple[tuple[str, Value], ...]
) -> tuple[Mapping[str, Any], int | None]:
    with torch.random.fork_rng(devices=[]):
        module = _maker(name, function, dict(values), _architecture_text(name, function, values))(
            _CLASSES
        )
    configuration = getattr(module, "pretrained_cfg", None)
    if not isinstance(configuration, Mapping) or "input_size" not in configuration:
        configuration = {}
    sides = (_square(getattr(module, key, None)) for key in _SIDE_NAMES)
    return configuration, next((side for side in sides if side is not None), None)


def _square(value: object) -> int | None:
    """Return the side of a square size, given as one number or as equal numbers; else None."""
    first, *others = value if isinstance(value, tuple | list) and value else (value,)
    whole = isinstance(first, int) and not isinstance(first, bool) and first > 0
    return first if whole and all(each == first for each in others) else None


def _values(name: str, function: str, texts: Mapping[str, str]) -> dict[str, Value]:
    """Parse the values for a builder; parameters that are annotated as ``str`` stay text.

    Raises
    ------
    InvalidInputError
        If a size is not an integer.
    """
    given = {key: text for key, text in texts.items() if key != OUTPUT}
    builder_side(given)
    if name in (TORCHVISION, TIMM) or all(_parse(text) == text for text in given.values()):
        return {key: _parse(text) for key, text in given.items()}
    texts_only = {k for k, each in _arguments(_builder(name, function)).items() if _is_text(each)}
    return {key: text if key in texts_only else _parse(text) for key, text in given.items()}


def _parse(text: str) -> Value:
    """Parse a value: an integer, a number, ``true``, ``false``, or otherwise text."""
    if text.isascii() and text.isdigit():
        return int(text)
    if text.lower() in ("true", "false"):
        return text.lower() == "true"
    return float(text) if _NUMBER.fullmatch(text) else text


def _is_text(argument: inspect.Parameter) -> bool:
    return argument.annotation in (str, "str")


def _arguments(builder: Callable[..., Any]) -> Mapping[str, inspect.Parameter]:
    try:
        return inspect.signature(builder).parameters
    except (TypeError, ValueError):  # a builtin without a signature
        return MappingProxyType({})


@cache
def _of_builder(
    name: str, function: str, values: tuple[tuple[str, Value], ...], side: int | None, output: str
) -> Architecture:
    params = dict(values)
    text = _architecture_text(name, function, values, output)
    make = _maker(name, function, params, text)
    known = _published(name, function, make) if not params and not output else None
    if known is not None:
        return known
    if side is None:
        sides = (params[key] for key in _SIDE_NAMES if key in params)
        side = next((each for each in sides if isinstance(each, int)), None)
    return _searched(text, make, side, output, _INVENTORIES.get(name))


@cache
def _in_folder(
    name: str, function: str, config: str, side: int | None, output: str
) -> Architecture:
    text = _architecture_text(name, function, (), output)
    make = _checked_make(_folder_make(name, config), text)
    return _searched(text, make, side, output, _INVENTORIES.get(name), config=config)


def _folder_make(name: str, config: str) -> Make:
    """Return the builder of the network of a folder, from its configuration."""
    if name == HUGGING_FACE:
        return partial(build, config)
    if name == OPEN_CLIP:
        return partial(build_tower, config)
    content = json.loads(config)
    return _of_timm(content["architecture"], content["model_args"])


def _architecture_text(
    name: str, function: str, values: Sequence[tuple[str, Value]], output: str = ""
) -> str:
    pairs = [f"{key}={format_value(value)}" for key, value in values]
    if output:
        pairs.append(f"{OUTPUT}={output}")
    return f"{name}:{function}:{','.join(pairs)}" if pairs else f"{name}:{function}"


def _maker(name: str, function: str, params: Mapping[str, Value], text: str) -> Make:
    if name == TORCHVISION:
        make = _of_torchvision(function, params)
    elif name == TIMM:
        make = _of_timm(function, params)
    else:
        make = _of_user(name, function, params)
    return _checked_make(make, text)


def _checked_make(make: Make, text: str) -> Make:
    """Return a builder whose errors are one line."""

    def build(num_classes: int) -> nn.Module:
        with third_party_code(f"{text} cannot be built", cure=_BUILD):
            try:
                module: object = make(num_classes)
            except TypeError as error:
                if "unexpected keyword argument" not in str(error):
                    raise
                raise InvalidInputError(f"{text} cannot be built: {error}; remove it") from None
        if not isinstance(module, nn.Module):
            raise InvalidInputError(
                f"{text} returns a {type(module).__name__}, not a torch.nn.Module; specify a "
                "function or class that builds one"
            )
        return module

    return build


def _of_torchvision(function: str, params: Mapping[str, Value]) -> Make:
    from torchvision import models

    known = models.list_models(module=models)
    if function not in known:
        raise UnknownNameError.among("torchvision network", function, known)
    builder = models.get_model_builder(function)
    more: dict[str, Any] = {"aux_logits": False} if function in AUXILIARY else {}

    def make(num_classes: int) -> nn.Module:
        with warnings.catch_warnings():
            # Two builders warn that their initialisation will change.
            warnings.simplefilter("ignore", FutureWarning)
            return builder(weights=None, num_classes=num_classes, **more, **params)

    return make


def timm_package() -> Any:  # noqa: ANN401 - an optional package
    """Import timm.

    Raises
    ------
    InvalidInputError
        If timm is not installed.
    """
    try:
        return importlib.import_module("timm")
    except ModuleNotFoundError:
        raise InvalidInputError(
            'networks of timm need the package timm; install it: pip install "oodcli[timm]"'
        ) from None


def _of_timm(function: str, params: Mapping[str, Value]) -> Make:
    timm = timm_package()
    if not timm.is_model(function):
        near = difflib.get_close_matches(function, timm.list_models(), n=1)
        cure = f"did you mean {near[0]!r}?" if near else "list them: timm.list_models()"
        raise UnknownNameError(f"no timm network {function!r}; {cure}")
    return lambda num_classes: timm.create_model(
        function, pretrained=False, num_classes=num_classes, **params
    )


def _of_user(name: str, function: str, params: Mapping[str, Value]) -> Make:
    builder = _builder(name, function)
    arguments = _arguments(builder)
    if "num_classes" in arguments:
        return lambda num_classes: builder(num_classes=num_classes, **params)
    if any(
        each.default is each.empty
        and each.kind in (each.POSITIONAL_ONLY, each.POSITIONAL_OR_KEYWORD)
        for each in arguments.values()
        if each.name not in params
    ):
        return lambda num_classes: builder(num_classes, **params)
    return lambda _num_classes: builder(**params)


def _builder(name: str, function: str) -> Callable[..., Any]:
    here = str(Path.cwd())
    sys.path.append(here)  # last, so that nothing in it hides an installed package
    try:
        with third_party_code(f"module {name} cannot be imported", cure="correct it"):
            try:
                module = importlib.import_module(name)
            except ModuleNotFoundError as error:
                if error.name is None or not f"{name}.".startswith(f"{error.name}."):
                    raise
                raise UnknownNameError(
                    f"there is no module {error.name!r} for {name}:{function}; change to the "
                    "folder that contains it, or install it"
                ) from None
    finally:
        sys.path.remove(here)
    holder: Any = module
    where = name
    for part in function.split("."):
        found = getattr(holder, part, None)
        if not callable(found):
            public = [k for k, value in vars(holder).items() if k[0] != "_" and _calls(value)]
            raise UnknownNameError.among(f"function in {where}", part, public)
        holder, where = found, f"{where}.{part}"
    return holder


def _calls(value: object) -> bool:
    return callable(value) or isinstance(value, classmethod | staticmethod)


def _published(name: str, function: str, make: Make) -> Architecture | None:
    """Return the architecture of a network whose blocks are published, or of the same family.

    References
    ----------
    Yu, Shin, Lee, Jun, Lee. "Block Selection Method for Using Feature Norm in Out-of-Distribution
    Detection". CVPR 2023, arXiv:2212.02295: ResNet-50, VGG-16 and MobileNetV3-Large on ImageNet.
    """
    if name != TORCHVISION:
        return None
    text = f"{name}:{function}"
    if function.startswith(("resnet", "resnext", "wide_resnet")):
        selected = "4.2" if function == "resnet50" else None
        return Architecture(text, make, _residual, head="fc", selected_block=selected)
    if function.startswith("vgg"):
        selected = "conv13" if function == "vgg16" else None
        return Architecture(
            text, make, _rectified, head="classifier.6", smallest_image=32, selected_block=selected
        )
    if function.startswith("mobilenet_v3"):
        selected = "last" if function == "mobilenet_v3_large" else None
        return Architecture(text, make, _inverted, head="classifier.3", selected_block=selected)
    return None


def _residual(module: nn.Module) -> Mapping[str, str]:
    """Name the residual blocks of torchvision's ResNets ``stage.position``."""
    return numbered_blocks(module, [f"layer{stage}" for stage in (1, 2, 3, 4)])


def _rectified(module: nn.Module) -> Mapping[str, str]:
    """Name the convolutions of torchvision's VGGs; feature maps are taken after the ReLU."""
    layers = module.get_submodule("features").named_children()
    relus = [path for path, layer in layers if isinstance(layer, nn.ReLU)]
    return {f"conv{number}": f"features.{path}" for number, path in enumerate(relus, start=1)}


def _inverted(module: nn.Module) -> Mapping[str, str]:
    """Name stem, inverted residuals and last 1x1 convolution of torchvision's MobileNetV3."""
    paths = [f"features.{path}" for path, _ in module.get_submodule("features").named_children()]
    between = {str(number): path for number, path in enumerate(paths[1:-1], start=1)}
    return {"stem": paths[0], **between, "last": paths[-1]}


_INVENTORIES: Mapping[str, Inventory] = MappingProxyType(
    {TIMM: of_inverted, TORCHVISION: of_torchvision_families, OPEN_CLIP: tower_blocks}
)


def _searched(
    text: str,
    make: Make,
    side: int | None,
    output: str,
    inventory: Inventory | None,
    *,
    config: str = "",
) -> Architecture:
    with torch.random.fork_rng(devices=[]):
        found = _structure(text, make, side, output, inventory)
    last, bare = found.last, found.bare

    def original_network(num_classes: int) -> nn.Module:
        module = make(num_classes)
        if found.channels == 1:
            convert_input_to_grey(module)
        if found.output and not bare:
            select_output(module, found.output)
        return module

    def build(num_classes: int) -> nn.Module:
        module = original_network(num_classes)
        if last.how == "plain":
            _give_head(module, last.path, num_classes)
            return module
        with torch.random.fork_rng(devices=[]):
            fresh = nn.Linear(last.width, num_classes)
        put_in_place(module, last, fresh.weight, fresh.bias)
        return module

    return Architecture(
        text,
        build,
        lambda _module: found.blocks,
        head=last.linear_path,
        layouts=found.layouts,
        channels_last=found.channels_last,
        head_has_bias=last.has_bias,
        any_image=False,
        traced_side=found.side,
        ignored_prefixes=next(
            (AUXILIARY[key] for key in AUXILIARY if text == f"{TORCHVISION}:{key}"), ()
        ),
        text=found.text,
        channels=found.channels,
        searched=found.searched,
        bare=bare,
        width=last.width,
        original=None
        if last.how == "plain" or bare
        else OriginalForm(
            original_network,
            last.rows,
            lambda module: convert_last_layer(module, last, found.images, text),
            last.path,
        ),
        config=config,
    )


def _structure(
    text: str, make: Make, side: int | None, output: str, inventory: Inventory | None
) -> NetworkStructure:
    """Find the structure of a network; with a single class if that fails with several.

    If no classifier is found and the number of outputs does not depend on that of the classes, the
    network counts as an encoder.
    """
    find = partial(find_structure, name=text, side=side, output=output, inventory=inventory)
    try:
        return find(_varied(make(_CLASSES)), classes=_CLASSES)
    except InvalidInputError as error:
        with contextlib.suppress(InvalidInputError):
            return find(_varied(make(1)), classes=1)
        with contextlib.suppress(InvalidInputError):
            found = find(_varied(make(_CLASSES)), classes=_CLASSES, encoder=True)
            return replace(found, bare=str(error))
        raise


def _varied(module: nn.Module) -> nn.Module:
    """Fill weights that are all zero or not finite with noise, so that they can be followed.

    Weights of a last layer are often built as ``torch.zeros`` or ``torch.empty``.
    """
    with torch.no_grad():
        for weight in module.parameters():
            if weight.dim() > 1 and not (weight.any() and weight.isfinite().all()):
                nn.init.normal_(weight, std=0.1)
    return module


def _give_head(module: nn.Module, path: str, num_classes: int) -> None:
    """Replace the last layer by one with ``num_classes`` rows, and add a bias if it has none."""
    last = module.get_submodule(path)
    assert isinstance(last, nn.Linear)  # ensured by find_structure
    if last.out_features != num_classes:
        last = nn.Linear(last.in_features, num_classes, bias=last.bias is not None)
        module.set_submodule(path, last)
    if last.bias is None:
        # Not trainable, so that the network remains the one that was specified.
        last.bias = nn.Parameter(torch.zeros(num_classes), requires_grad=False)
