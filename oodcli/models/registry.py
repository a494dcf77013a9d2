"""The architectures known by name, and how one is written: ``resnet18:stem_padding=2,width=16``.

Those of other packages are written with the name of the package, as in ``torchvision:resnet50``. A
new architecture is a module with a build function, and one line in :data:`ARCHITECTURES`.
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
    Architecture("resnet18", build_resnet18, resnet_blocks, head="fc", visible=width_of_weights),
    Architecture("resnet34", build_resnet34, resnet_blocks, head="fc", visible=width_of_weights),
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
    """Read an architecture as it is written on the command line.

    Parameters
    ----------
    spec
        A name, alone or with parameters: ``resnet18`` or ``resnet18:stem_padding=2,width=16``. Or
        a network from elsewhere, ``torchvision:NAME``, ``timm:NAME`` or
        ``package.module:function``, alone or with values for its builder: ``timm:NAME:KEY=8``.
    side
        Height and width of the images it will be used with, in pixels, where they are known: a
        network from elsewhere is followed at that size.

    Raises
    ------
    UnknownNameError
        If there is no architecture of that name.
    InvalidInputError
        If a parameter does not exist, has no value or two, or a value that is not allowed; or if
        a network from elsewhere cannot be used.

    Examples
    --------
    >>> str(parse_architecture("resnet18:width=16"))
    'resnet18:width=16'
    """
    name, colon, rest = spec.partition(":")
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
    """Return the function that builds a network from elsewhere, and the values that it is given.

    Parameters
    ----------
    spec
        A written architecture of which :func:`is_external` is true.

    Raises
    ------
    InvalidInputError
        If a parameter has no value or two.
    """
    name, _, rest = spec.partition(":")
    if names_folder(spec):
        function, _, output = rest.partition(f":{OUTPUT}=")
        return function, {OUTPUT: output} if output else {}
    function, _, written = rest.partition(":")
    return function, parse_pairs("architecture", spec, f"{name}:{function}", written or None, None)


def with_output(spec: str, output: str) -> str:
    """Return a written architecture whose logits are one of several outputs.

    Parameters
    ----------
    spec
        A written architecture.
    output
        Name of the output; see :func:`oodcli.models.outputs.leaves`.

    Raises
    ------
    InvalidInputError
        If the network has one output only, the name cannot be written, or another is named already.

    Examples
    --------
    >>> with_output("nets:two_heads", "coarse")
    'nets:two_heads:@output=coarse'
    """
    if not is_external(spec):
        raise InvalidInputError(f"{spec} has one output only; leave out --output")
    if not output.strip() or set(output) & set(",=:"):
        raise InvalidInputError(f"no output is called {output!r}; name a key, field or place")
    name, _, rest = spec.partition(":")
    function, _, pairs = rest.partition(":")
    if OUTPUT in builder_of(spec)[1]:
        raise InvalidInputError(f"{spec} names an output already; leave out --output")
    if names_folder(spec):
        return f"{spec}:{OUTPUT}={output}"
    return f"{name}:{function}:{f'{pairs},' if pairs else ''}{OUTPUT}={output}"


def builder_side_of(spec: str) -> int | None:
    """Return the height and width that a written architecture fixes, in pixels.

    Parameters
    ----------
    spec
        A written architecture, such as ``timm:vit_tiny_patch16_224:img_size=64``. A network of the
        user's own is built to see whether it names an ``image_size``.

    Returns
    -------
    int
        None if it fixes none.

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


def is_external(spec: str) -> bool:
    """Tell whether a written architecture names a network that this package does not define."""
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
