"""Loads a state dict whose tensor names may differ from those of the architecture.

A state dict is tried unchanged, and then under the naming schemes of public code: without the
prefixes of wrappers, with only the tensors of one of its modules, and with the names of common
public code translated. A scheme is accepted only if every tensor of the network occurs in it with
the right shape.
"""

import contextlib
import re
from collections import Counter, defaultdict
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache
from typing import Literal

import torch
from torch import Tensor, nn

from oodcli.errors import InvalidInputError
from oodcli.models.architecture import ArchitectureSpec, OriginalForm
from oodcli.models.functional import INSIDE
from oodcli.models.heads import kept_heads, kept_names, restore_last_layer
from oodcli.models.last_layer import two_rows
from oodcli.models.network import COUNTER, Network, fill, network_of, set_last_layer
from oodcli.models.registry import ARCHITECTURES
from oodcli.text import printable

Classifier = Literal["needed", "if there", "aside"]

MAX_CLASSES = 65_536
_SHOWN = 3
_SHORTCUTS = ("shortcut", "downsample", "convShortcut", "skip")
_HEADS = ("fc", "linear", "classifier", "head", "classifier.fc", "output", "last_linear")
# Under these names lies a network whose classifier or projection head lies beside it.
_ENCODERS = ("encoder", "encoder_q", "base_encoder", "backbone", "student", "teacher")
# Buffers of the last layer that OpenOOD's wrappers of a network keep beside the network.
_BESIDE = ("tau", "sigma")
_WRAPPERS = ("module", "_orig_mod", "_forward_module", "_fsdp_wrapped_module")
_NORM = re.compile(r"^(?:norm|bn)\.?(\d*)$")
_NUMBERED = re.compile(r"\.(norm|conv)\.([12])\.")
# The third block of the second stage: layer2.2, block2.layer.2, or counted from 0 layers.1.2.
_FROM_ONE = re.compile(r"^(?:layer|block|stage|group)_?(\d+)\.(?:(?:layer|block)s?\.)?(\d+)\.")
_FROM_ZERO = re.compile(r"^(?:layer|block|stage|group)s\.(\d+)\.(?:(?:layer|block)s?\.)?(\d+)\.")


def names_classifier(state: Mapping[str, Tensor]) -> bool:
    """Tell whether weights have a classifier, by the usual names, and not a projection head.

    Parameters
    ----------
    state
        Tensors by name, in any spelling.
    """
    bare = {_unwrapped(name): tensor for name, tensor in state.items()}
    if any(part in _ENCODERS for name in bare for part in name.split(".")[:2]):
        return False
    ends = tuple(f".{head}.weight" for head in _HEADS)
    return any(each.dim() == 2 and f".{name}".endswith(ends) for name, each in bare.items())


def load_into(spec: ArchitectureSpec, state: Mapping[str, Tensor], *, source: str = "") -> Network:
    """Build a network and load a state dict; see :func:`load_with_remarks`.

    Raises
    ------
    InvalidInputError
        As :func:`load_with_remarks` does.
    """
    return load_with_remarks(spec, state, source=source)[0]


def load_with_remarks(
    spec: ArchitectureSpec,
    state: Mapping[str, Tensor],
    *,
    by_order: bool = False,
    source: str = "",
    classifier: Classifier = "needed",
) -> tuple[Network, tuple[str, ...]]:
    """Build a network and load a state dict that fits it exactly.

    Parameters
    ----------
    spec
        The architecture.
    state
        Tensors by name, with the names of the architecture or of other public code. The batch
        counters (``num_batches_tracked``) are optional. A ``tau`` of the last layer makes it a
        layer of unit features (T2FNorm), a ``sigma`` one of standardised features (ASCOOD), a
        ``logit_scale`` a layer of text embeddings, and ``kept.NAME`` a layer with kept heads.
    by_order
        Whether tensors are matched only by their order and shape, and names are ignored.
    source
        Source of the state dict, a file or published weights; error messages begin with it.
    classifier
        ``needed``: the state dict must contain the last layer. ``if there``: if it contains all but
        the last layer, the network has no classifier. ``aside``: the network has no classifier, and
        a last layer in the state dict is ignored.

    Returns
    -------
    network
        Network with as many classes as the last layer has rows; 0 without a classifier.
    remarks
        Lines for the user about translated names and ignored tensors.

    Raises
    ------
    InvalidInputError
        If a tensor is missing, unexpected, of another shape, or not finite. The message names the
        architecture that would fit, if there is one.
    """
    try:
        fit = _checked(spec, state, by_order=by_order, classifier=classifier)
    except InvalidInputError as error:
        raise InvalidInputError(f"{source}: {error}" if source else str(error)) from None
    fill(fit.module, fit.state, strict=False)  # the counters may be missing
    original = _original_form(spec, fit.state)
    if original is not None:
        original.read(fit.module.eval())
    network = network_of(spec, fit.module)
    return (network.without_classifier() if fit.bare else network), fit.remarks


def _checked(
    spec: ArchitectureSpec, state: Mapping[str, Tensor], *, by_order: bool, classifier: Classifier
) -> "_Fit":
    """Translate a state dict to the names of an architecture, or refuse it."""
    fit = _by_order(spec, state) if by_order else _best(spec, state, classifier)
    if fit.misfit:
        raise InvalidInputError(
            f"the weights do not fit {spec}: {'; '.join(fit.misfit)}; {_cure(spec, state)}"
        )
    wanted = fit.module.state_dict()
    for name, tensor in fit.state.items():
        if not wanted[name].is_floating_point() and not tensor.is_floating_point():
            continue  # indices, such as those of relative positions
        if not tensor.is_floating_point():
            raise InvalidInputError(f"{name} is {tensor.dtype}; save the weights as float32")
        if not tensor.isfinite().all():
            raise InvalidInputError(
                f"{name} contains NaN or infinity; use a checkpoint from before training diverged"
            )
    return fit


@dataclass(frozen=True, slots=True)
class _Fit:
    """A state dict with the names of an architecture, and its mismatches.

    Parameters
    ----------
    state
        Tensors by name.
    module
        A network of the architecture, not loaded yet.
    misfit
        Descriptions of missing, unexpected and wrongly shaped tensors; empty if it fits.
    remarks
        Lines for the user.
    bare
        Whether the last layer is not from the state dict, and is to be removed.
    """

    state: Mapping[str, Tensor]
    module: nn.Module
    misfit: tuple[str, ...]
    remarks: tuple[str, ...] = ()
    bare: bool = False


def _best(
    spec: ArchitectureSpec, state: Mapping[str, Tensor], classifier: Classifier = "needed"
) -> _Fit:
    """Return the first naming scheme that fits, or the mismatches of the unchanged names."""
    first: _Fit | None = None
    for each in ("needed", "if there") if classifier == "if there" else (classifier,):
        for spelling, line in _spellings(state):
            fit = _fit(spec, spelling, each)
            if not fit.misfit:
                return replace(fit, remarks=(*((line,) if line else ()), *fit.remarks))
            first = first or fit
    assert first is not None  # the unchanged names come first
    return first


def _spellings(state: Mapping[str, Tensor]) -> Iterator[tuple[Mapping[str, Tensor], str]]:
    """Yield a state dict unchanged, without wrappers, and the tensors under its modules.

    Yields
    ------
    Mapping
        Tensors by name.
    str
        Line for the user; empty for the unchanged state dict.
    """
    yield state, ""
    bare = {_unwrapped(name): tensor for name, tensor in state.items()}
    if len(bare) != len(state):
        return  # two networks, one of them wrapped
    if bare.keys() != state.keys():
        yield bare, f"names: prefix {' and '.join(sorted(_wrappers_in(state)))} removed"
    for prefix, under in _modules(bare):
        beside = {name: bare[name] for name in _BESIDE if name in bare}
        aside = [n for n in bare if not n.startswith(f"{prefix}.") and n not in beside]
        left = f"; ignored: {_first(aside)}" if aside else ""
        yield (
            {**beside, **under},
            f"names: {printable(prefix)!r} removed from {len(under):,} tensors{left}",
        )


def _unwrapped(name: str) -> str:
    return ".".join(part for part in name.split(".") if part not in _WRAPPERS)


def _wrappers_in(state: Mapping[str, Tensor]) -> set[str]:
    """Return the wrapper prefixes that occur in tensor names."""
    return {part for name in state for part in name.split(".") if part in _WRAPPERS}


def _modules(state: Mapping[str, Tensor]) -> Iterator[tuple[str, Mapping[str, Tensor]]]:
    """Yield modules with at least half of the tensors, outer ones first, and their tensors."""
    prefix = ""
    while True:
        sizes = Counter(
            name[len(prefix) :].partition(".")[0]
            for name in state
            if name.startswith(prefix) and "." in name[len(prefix) :]
        )
        (part, count), *_ = sizes.most_common(1) or [("", 0)]
        if 2 * count < len(state) or not part:
            return
        prefix += f"{part}."
        yield (
            prefix[:-1],
            {n.removeprefix(prefix): tensor for n, tensor in state.items() if n.startswith(prefix)},
        )


def _fit(spec: ArchitectureSpec, state: Mapping[str, Tensor], classifier: Classifier) -> _Fit:
    head, original = spec.architecture.head, _original_form(spec, state)
    ignored = spec.architecture.ignored_prefixes
    weights = {
        name: tensor
        for name, tensor in state.items()
        if not name.endswith(COUNTER) and not (ignored and name.startswith(ignored))
    }
    tau, scoring_tau = f"{head}.tau", f"{head}.scoring_tau"
    # As many classes as the last layer has rows; names do not depend on the number.
    build = cache(lambda rows: _build(spec, num_classes=rows, original=original))
    where = (f"{head}.weight", 0) if original is None else original.rows
    module = build(_rows(weights, *where))
    known = head if original is None else original.path
    buffers = {tau, scoring_tau, f"{head}.sigma", f"{head}.logit_scale"}
    more = {*buffers, *kept_names(head, weights)}
    ours = _renamed(weights, _shapes(module), more, head=known)
    names = {id(tensor): name for name, tensor in weights.items()}
    remarks = _translated({names[id(tensor)]: name for name, tensor in ours.items()})
    last = _of_layer(module.state_dict(), known)
    if classifier == "aside" or (classifier == "if there" and not last.keys() & ours.keys()):
        fit = _bare(ours, module, last, known, remarks)
        unknown = ours.keys() - module.state_dict().keys()
        named = [name for name in unknown if _may_classify(name, ours[name], last)]
        if classifier == "aside" or not named:
            return fit
        return replace(fit, misfit=_misfit(ours, _shapes(module)))
    rows = _rows(ours, *where)
    if original is None:
        if not spec.architecture.head_has_bias and f"{head}.weight" in ours:
            ours.setdefault(f"{head}.bias", torch.zeros(rows))
        if rows == 1 and f"{head}.weight" in ours:
            ours, rows = _of_two(ours, head), 2
            remarks = (*remarks, f"one logit z of {head} converted to two, -z/2 and z/2")
    module = build(_outputs(spec, ours, rows))
    if original is None and f"{head}.weight" in ours:
        _cut(module, head, rows=len(ours[f"{head}.weight"]))
    ours.update(_tied(module, ours))
    restore_last_layer(module, head, ours)
    # A layer that is read from a function is no module of its own yet, and keeps no heads.
    if original is None and (found := kept_heads(module.get_submodule(head))):
        each = ", ".join(f"{name} (outputs: {len(bias)})" for name, (_, bias) in found.items())
        remarks = (*remarks, f"heads beside the last layer: {each}")
    if tau in ours:
        ours.setdefault(scoring_tau, ours[tau])
    return _Fit(ours, module, _misfit(ours, _shapes(module)), remarks)


def _may_classify(name: str, tensor: Tensor, last: Mapping[str, Tensor]) -> bool:
    """Tell whether a tensor may be a last layer whose name is not known.

    It is the weight of a module beside the others, and has columns for the features; a projection
    head of several layers has a number in its names.
    """
    widths = {each.shape[-1] for each in last.values() if each.dim() == 2}
    path, _, leaf = name.rpartition(".")
    own = leaf == "weight" and "." not in path and tensor.dim() == 2
    return own and tensor.shape[1] in widths


def _outputs(spec: ArchitectureSpec, state: Mapping[str, Tensor], rows: int) -> int:
    """Return the outputs that a network is built with; its last layer may have been cut since."""
    original = spec.architecture.original
    name, dimension = ("", 0) if original is None else original.rows
    return state[name].shape[dimension] if name in state else rows


def _cut(shadow: nn.Module, head: str, *, rows: int) -> None:
    """Give a last layer so many rows: fewer than it was built with, or none."""
    last = shadow.get_submodule(head)
    assert isinstance(last, nn.Linear)  # every architecture sees to it
    if last.out_features != rows:
        set_last_layer(shadow, head, torch.zeros(rows, last.in_features))


def _bare(
    state: Mapping[str, Tensor],
    shadow: nn.Module,
    last: Mapping[str, Tensor],
    path: str,
    remarks: tuple[str, ...],
) -> _Fit:
    """Return a state dict whose last layer is the one that was built.

    What lies in its place, or in modules that the network does not have, is left aside: a
    classifier for other classes, a projection head.
    """
    own = {name.partition(".")[0] for name in shadow.state_dict()}
    under = _of_layer(state, path)
    aside = [n for n in state if n in under or n.partition(".")[0] not in own]
    ours = {name: tensor for name, tensor in state.items() if name not in aside} | dict(last)
    if aside:
        remarks = (*remarks, f"ignored: {printable(_first(aside))}")
    return _Fit(ours, shadow, _misfit(ours, _shapes(shadow)), remarks, bare=True)


def _of_layer(state: Mapping[str, Tensor], path: str) -> dict[str, Tensor]:
    """Return the tensors of a module, or the one tensor of that name."""
    return {n: each for n, each in state.items() if n == path or n.startswith(f"{path}.")}


def _misfit(ours: Mapping[str, Tensor], wanted: Mapping[str, tuple[int, ...]]) -> tuple[str, ...]:
    """Describe the tensors that are missing, unexpected or of another shape."""
    wrong = [
        f"{name} is {tuple(tensor.shape)}, not {wanted[name]}"
        for name, tensor in ours.items()
        if name in wanted and tuple(tensor.shape) != wanted[name]
    ]
    found = {
        "missing": [name for name in wanted if name not in ours],
        "unexpected": [printable(name) for name in ours if name not in wanted],
        "wrong shape": wrong,
    }
    return tuple(f"{what}: {_first(names)}" for what, names in found.items() if names)


def _translated(names: Mapping[str, str]) -> tuple[str, ...]:
    """Describe the modules that have another name in the file, as a line for the user."""
    pairs: dict[tuple[str, str], int] = Counter()
    for theirs, ours in names.items():
        if theirs != ours:
            pairs[_difference(theirs, ours)] += 1
    if not pairs:
        return ()
    shown = [f"{printable(theirs)} as {ours} ({count})" for (theirs, ours), count in pairs.items()]
    return (f"names: read {_first(shown)}",)


def _difference(theirs: str, ours: str) -> tuple[str, str]:
    """Return two names without their common last parts."""
    a, b = theirs.split("."), ours.split(".")
    while len(a) > 1 and len(b) > 1 and a[-1] == b[-1]:
        a, b = a[:-1], b[:-1]
    return ".".join(a), ".".join(b)


def _by_order(spec: ArchitectureSpec, state: Mapping[str, Tensor]) -> _Fit:
    """Match tensors with those of the network by their order.

    Raises
    ------
    InvalidInputError
        If the numbers of tensors differ, or the shapes of two matched tensors.
    """
    weights = {name: tensor for name, tensor in state.items() if not name.endswith(COUNTER)}
    original = _original_form(spec, state)
    module = _build(spec, num_classes=1, original=original)
    head = spec.architecture.head
    name, dimension = (f"{head}.weight", 0) if original is None else original.rows
    place = list(_shapes(module)).index(name) if name else None
    if len(weights) != len(_shapes(module)):
        raise InvalidInputError(
            f"{spec} has {len(_shapes(module)):,} tensors and the checkpoint {len(weights):,}, so "
            "they cannot be matched by order; specify the architecture of the checkpoint"
        )
    rows = 1 if place is None else list(weights.values())[place].shape[dimension]
    module = _build(spec, num_classes=rows, original=original)
    ours = {}
    for (theirs, tensor), (name, shape) in zip(
        weights.items(), _shapes(module).items(), strict=True
    ):
        if tuple(tensor.shape) != shape:
            raise InvalidInputError(
                f"by order, {printable(theirs)} {tuple(tensor.shape)} would be {name} {shape} of "
                f"{spec}; specify the architecture of the checkpoint"
            )
        ours[name] = tensor
    pairs = [
        f"{printable(theirs)} as {name}"
        for theirs, name in zip(weights, ours, strict=True)
        if theirs != name
    ]
    line = f"names: by order, {len(ours):,} tensors of the same shapes: {_first(pairs)}"
    return _Fit(ours, module, (), (line,) if pairs else ())


def _original_form(spec: ArchitectureSpec, state: Mapping[str, Tensor]) -> OriginalForm | None:
    """Return the original form of the network, unless the weights are already converted."""
    original = spec.architecture.original
    return None if any(INSIDE in name.split(".") for name in state) else original


def _of_two(state: Mapping[str, Tensor], head: str) -> dict[str, Tensor]:
    """Convert the single logit of a last layer for two classes to two logits."""
    both = {f"{head}.{leaf}" for leaf in ("weight", "bias")}
    return {name: two_rows(each) if name in both else each for name, each in state.items()}


def _tied(module: nn.Module, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return missing tensors that the network shares with another name in the state dict."""
    first: dict[tuple[int, torch.Size], str] = {}
    for name, tensor in module.state_dict().items():
        if name in state and tensor.numel():
            first.setdefault((tensor.data_ptr(), tensor.shape), name)
    return {
        name: state[first[tensor.data_ptr(), tensor.shape]]
        for name, tensor in module.state_dict().items()
        if name not in state and (tensor.data_ptr(), tensor.shape) in first
    }


def _rows(state: Mapping[str, Tensor], name: str, dimension: int = 0) -> int:
    """Return the number of rows of a last layer, or 1 if there is none.

    Raises
    ------
    InvalidInputError
        If there are more than ``MAX_CLASSES`` rows.
    """
    last = state.get(name)
    rows = max(last.shape[dimension], 1) if last is not None and last.dim() >= 2 else 1
    if rows > MAX_CLASSES:
        raise InvalidInputError(
            f"the last layer {name.removesuffix('.weight')} has {rows:,} rows; a classifier may "
            f"have at most {MAX_CLASSES:,} classes"
        )
    return rows


def _build(
    spec: ArchitectureSpec, *, num_classes: int, original: OriginalForm | None = None
) -> nn.Module:
    """Build a network to be loaded, without advancing torch's random generator.

    The meta device would save the initialisation, but its first use imports a compiler.
    """
    with torch.random.fork_rng(devices=[]):
        return spec.build(num_classes) if original is None else original.build(num_classes)


def _shapes(module: nn.Module) -> dict[str, tuple[int, ...]]:
    return {
        name: tuple(tensor.shape)
        for name, tensor in module.state_dict().items()
        if not name.endswith(COUNTER)
    }


def _first(names: Sequence[str]) -> str:
    more = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
    return ", ".join(names[:_SHOWN]) + more


def _renamed(
    state: Mapping[str, Tensor],
    wanted: Mapping[str, tuple[int, ...]],
    more: Collection[str],
    *,
    head: str,
) -> dict[str, Tensor]:
    """Translate the names of common public code, except if two tensors would get the same name."""
    ours: defaultdict[str, list[str]] = defaultdict(list)
    for name in (*wanted, *more):
        ours[_normal_form(name, head)].append(name)
    names = {
        key: key
        if key in wanted or key in more
        else _only(ours.get(_normal_form(key, head), []), key)
        for key in state
    }
    uses = Counter(names.values())
    return {name if uses[name] == 1 else key: state[key] for key, name in names.items()}


def _only(names: Sequence[str], key: str) -> str:
    return names[0] if len(names) == 1 else key


def _normal_form(name: str, head: str) -> str:
    """Return a form of a tensor name that is the same in all public code."""
    path, _, leaf = name.rpartition(".")
    if path == head or path in _HEADS or name in _BESIDE:
        return f"<head>.{leaf}"
    name = _NUMBERED.sub(r".\1\2.", name)  # as in old versions of torchvision's DenseNets
    name = _FROM_ONE.sub(r"<\1.\2>.", name)
    name = _FROM_ZERO.sub(lambda found: f"<{int(found[1]) + 1}.{found[2]}>.", name)
    parts = ["<shortcut>" if part in _SHORTCUTS else part for part in name.split(".")]
    return ".".join(_NORM.sub(r"<norm>\1", part) for part in parts)


def _cure(spec: ArchitectureSpec, state: Mapping[str, Tensor]) -> str:
    fitting = [str(other) for other in _candidates(spec, state) if not _best(other, state).misfit]
    if not fitting:
        return "no known architecture fits them"
    return f"these look like weights of {' or '.join(fitting)}: specify that architecture"


def _candidates(spec: ArchitectureSpec, state: Mapping[str, Tensor]) -> Iterator[ArchitectureSpec]:
    """Yield every architecture, with the parameters that can be inferred from the weights."""
    for architecture in ARCHITECTURES.values():
        params = {**(spec.params if architecture is spec.architecture else {})}
        params.update(architecture.infer_parameters(state))
        with contextlib.suppress(InvalidInputError):  # a parameter out of its range
            yield architecture.spec({name: str(value) for name, value in params.items()})
