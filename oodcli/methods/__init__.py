"""The methods, by their name on the command line."""

from collections.abc import Collection, Sequence
from dataclasses import replace

from oodcli.errors import InvalidInputError
from oodcli.methods import third_party
from oodcli.methods._registry import METHODS
from oodcli.methods.base import Fitted, MethodSpec
from oodcli.methods.base import parse_method as _parse_method
from oodcli.methods.ensemble import AUTO, ENSEMBLE, parse_ensemble
from oodcli.methods.members import ENSEMBLE_METHODS

__all__ = ["METHODS", "Fitted", "MethodSpec", "group", "parse_method", "parse_methods"]


def group(
    *,
    probes: bool,
    zero_shot: bool = False,
    kept: Collection[str] = (),
    blocks: bool = False,
) -> tuple[str, ...]:
    """Return every method, shapers with the scorer of their paper, and the selected norm with all.

    Parameters
    ----------
    probes
        Whether to name those too that need more of the forward pass than its ordinary activations,
        or cost so much that they are scored on request only.
    zero_shot
        Whether to name those too that are defined for zero-shot classifiers alone.
    kept
        Names of the kept heads of the network; methods that need another one are not named.
    blocks
        Whether to name those too that use the pooled maps of all blocks.
    """
    scorers = [
        name
        for name, method in METHODS.items()
        if method.is_logit_scorer or (probes and method.follows_shapers)
    ]
    names: list[str] = []
    for name, method in {**METHODS, **third_party.load_third_party(METHODS).methods}.items():
        if method.is_zero_shot and not zero_shot:
            continue
        if method.kept_head and method.kept_head not in kept:
            continue
        stored = blocks and "blocks" in method.inputs
        if probes or stored or not (method.needs_network or method.on_request):
            names += [f"norm+{scorer}" for scorer in scorers] if name == "norm" else [name]
    return tuple(names)


def parse_method(text: str) -> MethodSpec:
    """Read one method as written on the command line.

    Raises
    ------
    OodError
        If there is no such method, or it cannot be as it is written.

    Examples
    --------
    >>> parse_method("react:percentile=85").canonical
    'react:percentile=85+energy'
    """
    first = text.partition(":")[0].strip()
    if first == ENSEMBLE:
        return parse_ensemble(text, parse_method)
    if first in ENSEMBLE_METHODS:
        raise InvalidInputError(
            f"{first} compares the members of an ensemble of runs, and there is one run here; "
            "name several: ood score --run A --run B --ensemble"
        )
    if first == AUTO and ":" in text:
        raise InvalidInputError(
            f"auto has no parameters, and {text!r} gives it some; write auto, or name a method"
        )
    if first == AUTO:
        raise InvalidInputError(
            "auto stands for the method that ood recommend chose for a run, and there is no run "
            "here; name a method"
        )
    return _parse_method(text, METHODS, lambda unknown: third_party.find(unknown, METHODS))


def parse_methods(
    texts: Sequence[str],
    *,
    zero_shot: bool = False,
    kept: Collection[str] = (),
    blocks: bool = False,
) -> list[MethodSpec]:
    """Read methods as written on the command line, without repetitions.

    Parameters
    ----------
    texts
        Names with parameters. ``all`` stands for every method, and no text at all for every method
        that works from ordinary activations; those may be skipped where they are not defined.
    zero_shot
        Whether such a group has the methods for zero-shot classifiers.
    kept
        Names of the kept heads of the network, for whose methods the same holds.
    blocks
        Whether such a group has the methods that use the pooled maps of all blocks.

    Examples
    --------
    >>> [spec.canonical for spec in parse_methods(["knn", "knn:k=50", "energy"])]
    ['knn', 'energy']
    """
    specs: dict[str, MethodSpec] = {}
    for text in texts or ("",):
        if text in ("", "all"):
            names = group(probes=text == "all", zero_shot=zero_shot, kept=kept, blocks=blocks)
            for name in names:
                spec = replace(parse_method(name), optional=True)
                specs.setdefault(spec.canonical, spec)
            for name, reason in third_party.load_third_party(METHODS).refused.items():
                if name not in METHODS:
                    specs.setdefault(name, third_party.undefined_method(name, reason))
        else:
            spec = parse_method(text)
            specs[spec.canonical] = spec
    return list(specs.values())
