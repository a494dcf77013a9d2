"""The registry of architectures, and the syntax of their names: ``resnet18:stem_padding=2``.

Names of other packages start with the package, as in ``torchvision:resnet50``. To add an
architecture, write a module with a build function, and add one line to :data:`ARCHITECTURES`.
"""

from collections.abc import Mapping
from types import MappingProxyType

from oodcli.errors import InvalidInputError, UnknownNameError
from oodcli.models.architecture import Architecture, ArchitectureSpec
from oodcli.models.densenet import build_densenet100, densenet_blocks
from oodcli.models.external import (
    OUTPUT,
    TIMM,
    TORCHVISION,
    builder_side,
    external_architecture,
    stated_preprocessing,
)
from oodcli.models.folder_networks import folder_side
from oodcli.models.onnx_network import ONNX, onnx_architecture
from oodcli.models.resnet import (
    build_resnet18,
    build_resnet20,
    build_resnet32,
    build_resnet34,
    build_resnet44,
    build_resnet56,
    resnet_blocks,
    width_of_weights,
)
from oodcli.models.vgg import (
    build_vgg11,
    build_vgg16_bn,
    build_vgg16_bn_mlp,
    vgg11_blocks,
    vgg16_blocks,
)
from oodcli.models.wide_resnet import build_wrn_28_10, build_wrn_40_2, wide_resnet_blocks
from oodcli.specs import names_folder, parse_pairs

_ALL = (
    Architecture(
        "resnet18", build_resnet18, resnet_blocks, head="fc", infer_parameters=width_of_weights
    ),
    Architecture(
        "resnet34", build_resnet34, resnet_blocks, head="fc", infer_parameters=width_of_weights
    ),
    Architecture("wrn-28-10", build_wrn_28_10, wide_resnet_blocks, head="fc"),
    Architecture("wrn-40-2", build_wrn_40_2, wide_resnet_blocks, head="fc"),
    Architecture("vgg11", build_vgg11, vgg11_blocks, head="classifier.6", smallest_image=32),
    Architecture("vgg16-bn", build_vgg16_bn, vgg16_blocks, head="classifier", smallest_image=32),
    Architecture(
        "vgg16-bn-mlp", build_vgg16_bn_mlp, vgg16_blocks, head="classifier.6", smallest_image=32
    ),
    Architecture("densenet100", build_densenet100, densenet_blocks, head="fc", smallest_image=4),
    Architecture("resnet20", build_resnet20, resnet_blocks, head="fc"),
    Architecture("resnet32", build_resnet32, resnet_blocks, head="fc"),
    Architecture("resnet44", build_resnet44, resnet_blocks, head="fc"),
    Architecture("resnet56", build_resnet56, resnet_blocks, head="fc"),
)

ARCHITECTURES: Mapping[str, Architecture] = MappingProxyType({a.name: a for a in _ALL})


def parse_architecture(spec: str, *, side: int | None = None, config: str = "") -> ArchitectureSpec:
    """Parse an architecture from its text on the command line.

    Parameters
    ----------
    spec
        A name, optionally with parameters: ``resnet18`` or ``resnet18:stem_padding=2,width=16``.
        Or an external network, ``torchvision:NAME``, ``timm:NAME``, ``hf:FOLDER`` or
        ``package.module:function``, optionally with values for its builder: ``timm:NAME:KEY=8``.
    side
        Height and width in pixels of the images that the network is used with; None if unknown. An
        external network is traced at that size.
    config
        Configuration that is stored with the weights, as JSON text (see :func:`stores_config`);
        of a network from a folder, read from the folder if empty.

    Raises
    ------
    UnknownNameError
        If there is no architecture of that name.
    InvalidInputError
        If a parameter does not exist, has no value, two values or a value that is not allowed; or
        if an external network cannot be used.

    Examples
    --------
    >>> str(parse_architecture("resnet18:width=16"))
    'resnet18:width=16'
    """
    name, colon, rest = spec.partition(":")
    if spec == ONNX:
        if not config:
            raise InvalidInputError(
                f"{ONNX} is the architecture of a network in a file, which runs outside of torch: "
                "it can be imported (ood import model.onnx --data DATA, without --arch), but not "
                "trained"
            )
        return onnx_architecture(config).spec({})
    if is_external(spec):
        function, texts = builder_of(spec)
        return external_architecture(name, function, texts, side=side, config=config).spec({})
    if name not in ARCHITECTURES:
        known = (
            *ARCHITECTURES,
            f"{TORCHVISION}:NAME",
            f"{TIMM}:NAME",
            "hf:FOLDER",
            "open_clip:MODEL:TAG",
            "package.module:function",
        )
        raise UnknownNameError.among("architecture", name, known)
    architecture = ARCHITECTURES[name]
    pairs = rest if colon else None
    return architecture.spec(
        parse_pairs("architecture", spec, name, pairs, architecture.parameters)
    )


def builder_of(spec: str) -> tuple[str, Mapping[str, str]]:
    """Return the name of the builder of an external network, and the values for it.

    Parameters
    ----------
    spec
        The architecture, as text; :func:`is_external` must be true.

    Raises
    ------
    InvalidInputError
        If a parameter has no value or two values.
    """
    name, _, rest = spec.partition(":")
    if names_folder(spec):
        function, _, output = rest.partition(f":{OUTPUT}=")
        return function, {OUTPUT: output} if output else {}
    function, _, written = rest.partition(":")
    return function, parse_pairs("architecture", spec, f"{name}:{function}", written or None, None)


def with_output(spec: str, output: str) -> str:
    """Return the text of an architecture with one of several outputs selected as the logits.

    Parameters
    ----------
    spec
        The architecture, as text.
    output
        Name of the output; see :func:`oodcli.models.outputs.leaves`.

    Raises
    ------
    InvalidInputError
        If the network has a single output, the name contains ``,``, ``=`` or ``:``, or an output is
        selected already.

    Examples
    --------
    >>> with_output("nets:two_heads", "coarse")
    'nets:two_heads:@output=coarse'
    """
    if not is_external(spec):
        raise InvalidInputError(f"{spec} has only one output; omit --output")
    if not output.strip() or set(output) & set(",=:"):
        raise InvalidInputError(
            f"{output!r} is not a name of an output; give a key, a field or a position"
        )
    name, _, rest = spec.partition(":")
    function, _, pairs = rest.partition(":")
    if OUTPUT in builder_of(spec)[1]:
        raise InvalidInputError(f"{spec} already selects an output; omit --output")
    if names_folder(spec):
        return f"{spec}:{OUTPUT}={output}"
    return f"{name}:{function}:{f'{pairs},' if pairs else ''}{OUTPUT}={output}"


def builder_side_of(spec: str) -> int | None:
    """Return the image side that the text of an architecture determines, in pixels.

    Parameters
    ----------
    spec
        The architecture, as text, such as ``timm:vit_tiny_patch16_224:img_size=64``. A network in
        the user's own code is built, to read its attribute ``image_size`` or ``img_size``.

    Returns
    -------
    int
        The side; None if it is not determined.

    Raises
    ------
    OodError
        If the network cannot be built.
    """
    if not is_external(spec):
        return None
    package = spec.partition(":")[0]
    function, texts = builder_of(spec)
    if names_folder(spec):
        return folder_side(package, function)
    side = builder_side(texts)
    if side is None and package not in (TORCHVISION, TIMM):
        _, side = stated_preprocessing(package, function, texts)
    return side


def stores_config(spec: str) -> bool:
    """Return whether the weights of an architecture are stored with its configuration."""
    return spec == ONNX or names_folder(spec)


def is_external(spec: str) -> bool:
    """Return whether an architecture text names a network that this package does not define."""
    if names_folder(spec):
        return True
    name, _, rest = spec.partition(":")
    function = rest.partition(":")[0]
    return (
        name not in ARCHITECTURES
        and all(part.isidentifier() for part in name.split("."))
        and function != ""
        and "=" not in function
    )
