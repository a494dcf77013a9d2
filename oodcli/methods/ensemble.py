"""Ensembles: the mean rank that several methods give an image among calibration images."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Self

import torch
from torch import Tensor

from oodcli.activations import Activations, ActivationSet, Reference
from oodcli.errors import InvalidInputError, UndefinedMethodError
from oodcli.methods.base import JOIN, Fitted, Input, MethodSpec, Scorer, probes_of
from oodcli.probes import Probe
from oodcli.specs import Value

# Prefix of ensembles, and the name of the recommended method, for --method.
ENSEMBLE = "ensemble"
AUTO = "auto"
_EXAMPLE = "ensemble:knn+energy+featurenorm"


@dataclass(frozen=True, slots=True)
class RankScale:
    """Converts scores to shares of calibration images with smaller scores.

    Parameters
    ----------
    scores
        Distinct scores of the calibration images in ascending order, ``(m,)``.
    shares
        The share of calibration images with a smaller score, for each score, ties counting half,
        ``(m,)``.
    below, above
        Distances from the lowest and the highest score at which the scale begins to flatten.
    count
        Number of calibration images.
    """

    scores: Tensor
    shares: Tensor
    below: float
    above: float
    count: int

    @classmethod
    def of(cls, scores: Tensor) -> Self:
        """Build the scale of calibration scores.

        Parameters
        ----------
        scores
            Scores of the calibration images, ``(n,)``.

        Raises
        ------
        UndefinedMethodError
            If they are not finite, or all equal.
        """
        values = scores.double()
        if not bool(values.isfinite().all()):
            raise UndefinedMethodError("calibration images have scores that are not finite")
        distinct, counts = values.unique(return_counts=True)  # ascending
        if len(distinct) < 2:
            raise UndefinedMethodError("all calibration images have the same score")
        count = int(counts.sum())
        shares = (counts.cumsum(0) - counts / 2) / count
        # The extrapolation starts with the mean slope of the outer tenth of the scale.
        tenth = torch.tensor([0.1, 0.9], dtype=distinct.dtype, device=distinct.device)
        low, high = torch.searchsorted(shares, tenth).clamp(1, len(distinct) - 1).tolist()
        high = min(high, len(distinct) - 2)
        first = (distinct[low] - distinct[0]) / (shares[low] - shares[0])
        last = (distinct[-1] - distinct[high]) / (shares[-1] - shares[high])
        return cls(distinct, shares, float(first) / count, float(last) / count, count)

    def ranks(self, scores: Tensor) -> Tensor:
        """Return the share of calibration images with smaller scores, ``(n,)``.

        It is linear between adjacent scores and logarithmic beyond the ends, so that it is strictly
        increasing and extreme scores are not tied.
        """
        values = scores.double()
        at = self._less(values).clamp(1, len(self.scores) - 1)
        left, right = self.scores[at - 1], self.scores[at]
        step = self.shares[at] - self.shares[at - 1]
        inside = self.shares[at - 1] + step * ((values - left) / (right - left))
        under = (self.scores[0] - values).clamp(min=0) / self.below
        over = (values - self.scores[-1]).clamp(min=0) / self.above
        lower = self.shares[0] - under.log1p() / self.count
        upper = self.shares[-1] + over.log1p() / self.count
        return torch.where(under > 0, lower, torch.where(over > 0, upper, inside))

    def log_shares(self, scores: Tensor) -> Tensor:
        """Return the logarithm of the share of calibration images with smaller scores, ``(n,)``.

        As :meth:`ranks`; below the lowest score ``s_1``, at ``s_1 - t``, the share goes on as
        ``share_1 / (1 + t/h)``, with ``h`` as there.
        """
        values = scores.double()
        under = (self.scores[0] - values).clamp(min=0) / self.below
        shares = self.ranks(torch.maximum(values, self.scores[0]))
        return shares.log() - under.log1p()

    def _less(self, values: Tensor) -> Tensor:
        """Return the number of distinct calibration scores below each value, int64 ``(n,)``."""
        return torch.searchsorted(self.scores, values)


@dataclass(frozen=True, slots=True)
class RankEnsemble:
    """The mean over members of the rank of an image's score among those of calibration images.

    ``mean_m F_m(s_m(x))``, where ``s_m`` is the score of member ``m`` and ``F_m(s)`` the share of
    calibration images whose score is less than ``s``, ties counted half. ``F_m`` is
    linear between neighbouring calibration scores. Beyond the lowest, ``s_1``, it is
    ``F_m(s_1) - log(1 + (s_1 - s)/h)/n`` for ``n`` calibration images, and likewise beyond the
    highest; ``h`` is such that its slope there is the mean slope over the outer tenth of the
    images. It rises everywhere, so that two images tie only where all members say so.

    Members are written ``ensemble:A+B+C``, each a method with its own parameters; a shaper is
    followed by energy.

    Parameters
    ----------
    members
        The fitted members.
    scales
        The scale of each member.

    Notes
    -----
    Ranks need no common unit: a distance and a probability count the same. They say how unusual a
    score is among ID images and forget by how much, which costs an ensemble where one member alone
    is far out and the others are not.
    """

    members: tuple[Scorer, ...]
    scales: tuple[RankScale, ...]

    @classmethod
    def fit(cls, reference: Reference, members: Sequence[Fitted]) -> Self:
        """Score the calibration images with every member, once each."""
        scales = tuple(rank_scale(each, reference) for each in members)
        return cls(tuple(each.detector for each in members), scales)

    @property
    def probes(self) -> tuple[Probe, ...]:
        """The probes that the members need, without duplicates."""
        return tuple({p.key: p for each in self.members for p in probes_of(each)}.values())

    def score(self, batch: Activations) -> Tensor:
        """Return the mean rank, ``(n,)``, in double precision."""
        ranks = [
            scale.ranks(member.score(batch))
            for member, scale in zip(self.members, self.scales, strict=True)
        ]
        return torch.stack(ranks).mean(dim=0)


@dataclass(frozen=True)
class EnsembleSpec(MethodSpec):
    """An ensemble as specified on the command line.

    Parameters
    ----------
    parts
        The parts of all members.
    optional
        Whether it was requested as part of a group.
    members
        The members in order.
    """

    members: tuple[MethodSpec, ...] = ()

    @classmethod
    def of(cls, *members: MethodSpec) -> Self:
        """Build an ensemble of members."""
        return cls(tuple(part for each in members for part in each.parts), members=members)

    @property
    def canonical(self) -> str:
        """The full name; ``+energy`` after a shaper is omitted."""
        return f"{ENSEMBLE}:" + "+".join(_short(each) for each in self.members)

    @property
    def inputs(self) -> tuple[Input, ...]:
        """Inputs of the members, and calibration images."""
        every = (name for each in self.members for name in each.inputs)
        return tuple(dict.fromkeys((*every, "calibration")))

    def fit(self, reference: Reference) -> Fitted:
        """Fit every member, then the ensemble."""
        fitted = [each.fit(reference) for each in self.members]
        detector = RankEnsemble.fit(reference, fitted)
        return Fitted(self.canonical, _params(self.members, fitted), detector)


def parse_ensemble(text: str, parse_member: Callable[[str], MethodSpec]) -> EnsembleSpec:
    """Parse ``ensemble:A+B+C``.

    Parameters
    ----------
    text
        The specification of the ensemble.
    parse_member
        Function that parses one member.

    Raises
    ------
    InvalidInputError
        If there are fewer than two members, one appears twice, or one is an ensemble.
    OodError
        If a member cannot be parsed.
    """
    members: dict[str, MethodSpec] = {}
    written = text.partition(":")[2].strip()
    for piece in JOIN.split(written) if written else ():
        if piece.partition(":")[0].strip() == ENSEMBLE:
            raise InvalidInputError(f"{text!r} contains an ensemble; list its members instead")
        spec = parse_member(piece.strip())
        if spec.canonical in members:
            raise InvalidInputError(f"{piece.strip()!r} appears twice in {text!r}; remove one")
        members[spec.canonical] = spec
    if len(members) < 2:
        raise InvalidInputError(
            f"{text!r} has {len(members) or 'no'} member{'s' if not members else ''}, and an "
            f"ensemble needs two or more; for example {_EXAMPLE}"
        )
    return EnsembleSpec.of(*members.values())


def _short(spec: MethodSpec) -> str:
    # A shaper can only be combined with energy here, since a plus separates members.
    return spec.parts[0].canonical


def rank_scale(fitted: Fitted, reference: Reference) -> RankScale:
    """Return the scale of a fitted method, computed once for all ensembles of one reference.

    Parameters
    ----------
    fitted
        The method.
    reference
        The reference with the calibration images.

    Raises
    ------
    UndefinedMethodError
        If the scores of the calibration images cannot be ranked.
    """

    def scale() -> RankScale:
        with torch.no_grad():
            scores = [fitted.detector.score(chunk) for chunk in _chunks(fitted, reference)]
        try:
            return RankScale.of(torch.cat(scores))
        except UndefinedMethodError as error:
            raise UndefinedMethodError(f"{fitted.canonical} cannot be ranked: {error}") from None

    return reference.once((ENSEMBLE, fitted.canonical), scale)


def _chunks(fitted: Fitted, reference: Reference) -> Iterator[Activations]:
    """Yield the activations of calibration images with the arrays of a method's probes."""
    if not fitted.probes:
        yield from reference.calibration.chunks()
        return
    sets: list[ActivationSet] = [reference.probed("calibration", p) for p in fitted.probes]
    for chunks in zip(*(each.chunks() for each in sets), strict=True):
        arrays = {name: array for chunk in chunks for name, array in chunk.arrays().items()}
        yield Activations.of(arrays)


def _params(members: tuple[MethodSpec, ...], fitted: list[Fitted]) -> dict[str, Value]:
    """Return parameters as ``member.parameter``; members with the same name are numbered."""
    params: dict[str, Value] = {}
    seen: dict[str, int] = {}
    for spec, each in zip(members, fitted, strict=True):
        name = spec.parts[0].name
        seen[name] = seen.get(name, 0) + 1
        label = name if seen[name] == 1 else f"{name}-{seen[name]}"
        for key, value in each.params.items():
            params[f"{label}.{key.removeprefix(f'{name}.')}"] = value
    return params
