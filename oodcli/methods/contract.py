"""The rules that every method must satisfy, as checks that its author can run.

``check(method)`` runs all checks on a toy problem, and so does ``ood methods check NAME``::

    from oodcli.methods.contract import check

    def test_my_method_satisfies_the_contract():
        check("acme.detect:Mine")

The tests of ``ood`` run the same checks over its own methods.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from types import MappingProxyType

import torch
from torch import Tensor
from torch.nn.functional import normalize

from oodcli.activations import BACKGROUND, Activations, ActivationSet, Head, Reference, Words
from oodcli.errors import InvalidInputError, UndefinedMethodError
from oodcli.methods import parse_method
from oodcli.methods._needs import KEPT_HEADS
from oodcli.methods.base import Fitted, Method, MethodPart, MethodSpec
from oodcli.methods.third_party import method_of
from oodcli.metrics import MOSTLY_TIED, Curve, evaluate

CLASSES, WIDTH, BLOCKS = 4, 64, 3
_SHARE = 8  # number of features per class
# Minimum AUROC on the toy problem, which every method must separate well.
MIN_AUROC = 0.9
LOGIT_SCALE = 20.0


@dataclass(frozen=True)
class Problem:
    """The problem on which a method is checked.

    Parameters
    ----------
    reference
        The data for fitting.
    id_batch
        In-distribution images.
    ood_batch
        Out-of-distribution images.
    """

    reference: Reference
    id_batch: Activations
    ood_batch: Activations


@dataclass(frozen=True)
class Trial:
    """A method on a problem.

    Parameters
    ----------
    spec
        The method.
    problem
        The problem on which it is checked.
    """

    spec: MethodSpec
    problem: Problem

    @cached_property
    def fitted(self) -> Fitted:
        """The method, fitted once for all checks."""
        return self.spec.fit(self.problem.reference)

    def scores(self, batch: Activations) -> Tensor:
        """Return the scores of a batch, ``(n,)``."""
        return self.fitted.detector.score(batch)


@dataclass(frozen=True)
class Finding:
    """The result of one check.

    Parameters
    ----------
    what
        A rule for methods.
    broken
        How the method breaks it; None if it does not.
    """

    what: str
    broken: str | None


def toy_activations(
    n: int, *, strength: float, seed: int, head: Head, novelty: float = 0.0
) -> Activations:
    """Return random rectified features of ``n`` images, of each class in turn.

    Parameters
    ----------
    n
        Number of images.
    strength
        Component along the direction of their class; 1 for in-distribution images.
    seed
        Seed of the noise.
    head
        The last layer.
    novelty
        Component along a direction that belongs to no class.
    """
    generator = torch.Generator().manual_seed(seed)
    class_direction = 0.5 + 2 * _directions()[torch.arange(n) % CLASSES]
    novel_direction = torch.zeros(WIDTH)
    novel_direction[-3 * _SHARE : -_SHARE] = 1
    noise = torch.randn(n, WIDTH, generator=generator)
    features = (strength * class_direction + novelty * novel_direction + 0.3 * noise).relu()
    logits = head(features)
    norms = features.norm(dim=1, keepdim=True) * torch.tensor([0.5, 1.0, 0.9])
    return Activations(logits, features, norms, logits.argmax(dim=1))


def toy_problem() -> Problem:
    """Return a problem in which classes are directions of the feature space.

    OOD images have a smaller component along their class direction, and a component in a direction
    of no class. One of twenty calibration images has a wrong label, so that a temperature can be
    fitted. Jigsaw puzzles of the training images have smaller norms, especially in block 1, and
    features between those of ID and of OOD images.
    """
    directions = _directions()
    head = Head(
        0.05 * (directions - directions.mean(dim=0) / CLASSES), torch.linspace(-0.1, 0.1, CLASSES)
    )
    train = toy_activations(200, strength=1.0, seed=3, head=head)
    puzzle = replace(
        toy_activations(200, strength=0.6, seed=4, head=head, novelty=0.4),
        block_norms=train.block_norms / torch.tensor([0.9, 1.4, 1.1]),
    )
    labels = torch.arange(200) % CLASSES
    return Problem(
        _reference(head, train, puzzle, labels, _some_wrong(labels)),
        toy_activations(120, strength=1.0, seed=1, head=head),
        toy_activations(80, strength=0.3, seed=2, head=head, novelty=0.7),
    )


def _zero_shot(problem: Problem) -> Problem:
    """Return a problem with a zero-shot classifier in the place of the trained one.

    Its features are unit vectors; the rows of its last layer are the class directions, in which the
    weights of the trained one point, times a logit scale. Words go along the coordinates in random
    mixtures, and one along the direction of OOD images.

    Parameters
    ----------
    problem
        The problem with the trained classifier.
    """
    whole = problem.reference
    texts = normalize(whole.head.weight.clamp(min=0), dim=1)
    head = Head(LOGIT_SCALE * texts, torch.zeros(len(texts)), scale=LOGIT_SCALE)

    def shown(batch: Activations) -> Activations:
        features = normalize(batch.features, dim=1)
        logits = head(features)
        predictions = logits.argmax(dim=1)
        return replace(batch, features=features, logits=logits, predictions=predictions)

    def shown_set(load: Callable[[], ActivationSet]) -> Callable[[], ActivationSet]:
        return lambda: ActivationSet.of(shown(_all_of(load())))

    generator = torch.Generator().manual_seed(4)
    width = texts.shape[1]
    mixtures = torch.rand(39, width, generator=generator)
    novel = torch.zeros(1, width)
    novel[0, -3 * _SHARE : -_SHARE] = 1
    words = Words(normalize(torch.cat([mixtures, novel]), dim=1), (30, 10))
    reference = replace(
        whole,
        head=head,
        load_train=shown_set(whole.load_train),
        load_jigsaw=shown_set(whole.load_jigsaw),
        load_jigsaw_features=shown_set(whole.load_jigsaw_features),
        load_calibration=shown_set(whole.load_calibration),
        load_words=lambda: words,
    )
    return Problem(reference, shown(problem.id_batch), shown(problem.ood_batch))


def problem_for(spec: MethodSpec, problem: Problem) -> Problem:
    """Return a problem as a method wants it: with a zero-shot classifier, or kept heads."""
    if any(part.method.kept_head for part in spec.parts):
        whole = problem.reference
        along = whole.head.weight.clamp(min=0).sum(dim=0, keepdim=True)  # (1, d)
        # ID images lie along it; the logit of a background is the larger the less they do.
        heads = {name: -along if name == BACKGROUND else along for name in KEPT_HEADS}
        kept = {name: (weight, torch.zeros(1)) for name, weight in heads.items()}
        return replace(problem, reference=replace(whole, head=replace(whole.head, kept=kept)))
    zero_shot = any(part.method.is_zero_shot for part in spec.parts)
    made = problem.reference.head.scale is None and zero_shot
    return _zero_shot(problem) if made else problem


def _fewer(images: int) -> Problem:
    """Return the problem with only the first training images, which are of each class in turn."""
    whole = toy_problem()
    train, jigsaw = (
        _all_of(each).map(lambda values: values[:images])
        for each in (whole.reference.train, whole.reference.jigsaw)
    )
    labels = whole.reference.labels[:images]
    return replace(whole, reference=_reference(whole.reference.head, train, jigsaw, labels))


def _one_class() -> Problem:
    """Return the problem with a network that has a single class, the sum of all classes."""
    whole = toy_problem()
    head = Head(whole.reference.head.weight.abs().sum(dim=0, keepdim=True), torch.zeros(1))
    train, jigsaw, *batches = (
        replace(each, logits=head(each.features), predictions=torch.zeros_like(each.predictions))
        for each in (
            _all_of(whole.reference.train),
            _all_of(whole.reference.jigsaw),
            whole.id_batch,
            whole.ood_batch,
        )
    )
    labels = torch.zeros_like(whole.reference.labels)
    return Problem(_reference(head, train, jigsaw, labels), *batches)


def _many_classes(calibration: int) -> Problem:
    """Return a problem of 100 classes with the given number of calibration images.

    Images lie along the random direction of their class, OOD images along directions of no class.
    """
    generator = torch.Generator().manual_seed(0)
    directions = torch.randn(200, WIDTH, generator=generator).relu()
    directions /= directions.norm(dim=1, keepdim=True)
    head = Head(2 * (directions[:100] - directions[:100].mean(dim=0)), torch.zeros(100))
    rows = torch.cat([torch.arange(720) % 100, torch.arange(100, 180)])
    noise = torch.randn(800, WIDTH, generator=generator)
    features = (6 * directions[rows] + 0.3 * noise).relu()
    logits = head(features)
    norms = features.norm(dim=1, keepdim=True) * torch.tensor([0.5, 1.0, 0.9])
    every = Activations(logits, features, norms, logits.argmax(dim=1))
    train, id_batch, ood_batch = (
        every.map(lambda values, part=part: values[part])  # type: ignore[misc]
        for part in (slice(600), slice(600, 720), slice(720, 800))
    )
    jigsaw = replace(train, block_norms=train.block_norms / torch.tensor([0.9, 1.4, 1.1]))
    labels = rows[:600]
    reference = replace(
        _reference(head, train, jigsaw, labels),
        load_calibration=lambda: ActivationSet.of(train.map(lambda values: values[:calibration])),
        load_calibration_labels=lambda: labels[:calibration],
    )
    return Problem(reference, id_batch, ood_batch)


def _labelled(*, right: bool) -> Problem:
    """Return the problem with labels that all agree with the predictions, or none of them."""
    whole = toy_problem()
    train, jigsaw = _all_of(whole.reference.train), _all_of(whole.reference.jigsaw)
    labels = train.predictions if right else (train.predictions + 1) % CLASSES
    return replace(whole, reference=_reference(whole.reference.head, train, jigsaw, labels))


def _constant() -> Problem:
    """Return the problem with the same features for all training images."""
    whole = toy_problem()
    head = whole.reference.head
    features = torch.full((40, WIDTH), 0.5)
    train = Activations(head(features), features, torch.ones(40, BLOCKS), torch.zeros(40).long())
    labels = torch.arange(40) % CLASSES
    jigsaw = replace(train, block_norms=train.block_norms / torch.tensor([0.9, 1.4, 1.1]))
    return replace(whole, reference=_reference(head, train, jigsaw, labels))


# Degenerate problems, with too little data for some methods; see _defined_or_refused.
DEGENERATE: Mapping[str, Callable[[], Problem]] = MappingProxyType(
    {
        "one training image per class": lambda: _fewer(CLASSES),
        "two training images per class": lambda: _fewer(2 * CLASSES),
        "fewer training images than features": lambda: _fewer(WIDTH // 2),
        "one class": _one_class,
        "few calibration images for many classes": lambda: _many_classes(20),
        "every image classified correctly": lambda: _labelled(right=True),
        "every image classified wrongly": lambda: _labelled(right=False),
        "constant training features": _constant,
    }
)


def _directions() -> Tensor:
    """Return the direction of every class, ``(k, d)``, with disjoint features."""
    return torch.eye(CLASSES, WIDTH // _SHARE).repeat_interleave(_SHARE, dim=1)


def check(method: str | type | Method, problem: Problem | None = None) -> None:
    """Check a method; it must satisfy every requirement.

    Parameters
    ----------
    method
        Its name as written after ``--method``, a class, or a registry entry.
    problem
        The problem on which it is checked; by default :func:`toy_problem`.

    Raises
    ------
    InvalidInputError
        If it violates a requirement, or is not a method at all.
    """
    for finding in findings(method, problem):
        if finding.broken is not None:
            raise InvalidInputError(f"it must {finding.what}: {finding.broken}")


def findings(method: str | type | Method, problem: Problem | None = None) -> tuple[Finding, ...]:
    """Check a method, and return the result of every check.

    Parameters
    ----------
    method
        Its name as written after ``--method``, a class, or a registry entry.
    problem
        The problem on which it is checked; by default :func:`toy_problem`.

    Raises
    ------
    InvalidInputError
        If it is not a method, or needs the network itself, which no toy problem has.
    """
    spec = _spec(method)
    beyond = {"network", "regions", "blocks"} & set(spec.inputs)
    if beyond:
        raise InvalidInputError(
            f"{spec.canonical} uses {' and '.join(sorted(beyond))}, but these checks have "
            "only activations; score a run with it: ood score --method"
        )
    trial = Trial(spec, problem_for(spec, problem or toy_problem()))
    return tuple(Finding(what, _broken(each, trial)) for what, each in CHECKS.items())


def _spec(method: str | type | Method) -> MethodSpec:
    if isinstance(method, str):
        return parse_method(method)
    name = method.type.__name__ if isinstance(method, Method) else method.__name__
    found = method_of(method, name)
    parts = (MethodPart(name, found, {}),)
    return MethodSpec((*parts, *parse_method("energy").parts) if found.is_shaper else parts)


def _broken(each: Callable[[Trial], None], trial: Trial) -> str | None:
    try:
        each(trial)
    except InvalidInputError as error:
        return str(error)
    except Exception as error:  # noqa: BLE001 - a third-party method may raise anything
        return f"raises {type(error).__name__}: {error}"
    return None


def _one_finite_float(trial: Trial) -> None:
    batch = trial.problem.id_batch
    scores = trial.scores(batch)
    if scores.shape != (len(batch),):
        raise InvalidInputError(f"{len(batch)} images give scores of shape {tuple(scores.shape)}")
    if not scores.is_floating_point():
        raise InvalidInputError(f"the scores are {scores.dtype}")
    _finite(scores)


def _id_higher(trial: Trial) -> None:
    problem = trial.problem
    id_scores, ood_scores = (
        trial.scores(batch).detach().cpu().numpy()
        for batch in (problem.id_batch, problem.ood_batch)
    )
    auroc = evaluate(id_scores, ood_scores).auroc
    if not auroc > MIN_AUROC:
        raise InvalidInputError(
            f"AUROC {auroc:.3f} on images that every method separates"
            + ("; larger must mean in-distribution" if auroc < 1 - MIN_AUROC else "")
        )


def _row_order(trial: Trial) -> None:
    batch = trial.problem.id_batch
    order = _shuffled(len(batch))
    _same(trial.scores(batch.map(lambda values: values[order])), trial.scores(batch)[order])


def _batch_size(trial: Trial) -> None:
    batch = trial.problem.id_batch
    singles = [trial.scores(_row(batch, index)) for index in range(len(batch))]
    _same(torch.cat(singles), trial.scores(batch))


def _input_alone(trial: Trial) -> None:
    batch = trial.problem.id_batch
    before = {name: values.clone() for name, values in batch.arrays().items()}
    trial.scores(batch)
    for name, values in batch.arrays().items():
        if not torch.equal(values, before[name]):
            raise InvalidInputError(f"scoring writes to the {name.replace('_', ' ')}")


def _same_twice(trial: Trial) -> None:
    batch = trial.problem.id_batch
    if not torch.equal(trial.scores(batch), trial.scores(batch)):
        raise InvalidInputError("the scores differ the second time")


def _zero_features(trial: Trial) -> None:
    _finite(trial.scores(trial.problem.id_batch.map(torch.zeros_like)))


def _bank_order(trial: Trial) -> None:
    reference, batch = trial.problem.reference, trial.problem.id_batch
    order = _shuffled(len(reference.train))
    shuffled = replace(
        _reference(
            reference.head,
            _all_of(reference.train).map(lambda values: values[order]),
            _all_of(reference.jigsaw).map(lambda values: values[order]),
            reference.labels[order],
            reference.calibration_labels[order],
        ),
        load_words=reference.load_words,
    )
    again = Trial(trial.spec, Problem(shuffled, batch, trial.problem.ood_batch))
    _same(again.scores(batch), trial.scores(batch), relative=1e-4)


def _declared(trial: Trial) -> None:
    """Score again with NaN in all undeclared inputs, so that their use changes the scores."""
    inputs = trial.spec.inputs
    if not inputs:
        return  # a class without a registry entry declares nothing
    undeclared = [
        name.replace(" ", "_")
        for name in ("logits", "features", "block norms")
        if name not in inputs
    ]

    def masked(batch: Activations) -> Activations:
        arrays = batch.arrays()
        nan = {name: torch.full_like(arrays[name], torch.nan) for name in undeclared}
        return Activations.of({**arrays, **nan})

    whole = trial.problem.reference
    head = whole.head
    if "head" not in inputs:
        head = replace(head, weight=head.weight * torch.nan, bias=head.bias * torch.nan)
    loads = {
        "train": ("load_train", lambda: ActivationSet.of(masked(_all_of(whole.train)))),
        "labels": ("load_labels", lambda: whole.labels),
        "jigsaw": ("load_jigsaw", lambda: ActivationSet.of(masked(_all_of(whole.jigsaw)))),
        "jigsaw features": (
            "load_jigsaw_features",
            lambda: ActivationSet.of(masked(_all_of(whole.jigsaw_features))),
        ),
        "calibration": (
            "load_calibration",
            lambda: ActivationSet.of(masked(_all_of(whole.calibration))),
        ),
        "calibration labels": ("load_calibration_labels", lambda: whole.calibration_labels),
        "words": ("load_words", lambda: whole.words),
    }
    given = {key: load for name, (key, load) in loads.items() if name in inputs}
    bare = Reference(head=head, n_blocks=whole.n_blocks, **given)  # type: ignore[arg-type]
    batch = trial.problem.id_batch
    scores = trial.spec.fit(bare).detector.score(masked(batch))
    if not torch.equal(scores, trial.scores(batch)):
        raise InvalidInputError(
            f"it declares {', '.join(inputs)}, but its scores depend on other inputs"
        )


def _defined_or_refused(trial: Trial, problem: Problem) -> None:
    """Raise an error if scores of a degenerate fit are not finite, mostly tied or below chance.

    Ties and an AUROC that the method also has with sufficient data are accepted.
    """
    problem = problem_for(trial.spec, problem)
    try:
        curve = _curve(trial.spec.fit(problem.reference), problem)
    except UndefinedMethodError as refusal:
        if not any(letter.isdigit() for letter in str(refusal)):
            raise InvalidInputError(f"the error message has no numbers: {refusal}") from None
        return
    enough = toy_problem() if len(problem.reference.head.weight) < 100 else _many_classes(600)
    enough = problem_for(trial.spec, enough)
    usual = _curve(trial.spec.fit(enough.reference), enough)
    if curve.tied > max(MOSTLY_TIED, usual.tied):
        raise InvalidInputError(f"{100 * curve.tied:.0f} % of the scores are tied with another")
    if curve.auroc() < min(0.5, usual.auroc()):
        raise InvalidInputError(f"AUROC {curve.auroc():.3f}, below chance")


def _curve(fitted: Fitted, problem: Problem) -> Curve:
    pair = [fitted.detector.score(each).detach() for each in (problem.id_batch, problem.ood_batch)]
    _finite(torch.cat(pair))
    return Curve.of(*(each.cpu().numpy() for each in pair))


def _in_case(case: str) -> Callable[[Trial], None]:
    return lambda trial: _defined_or_refused(trial, DEGENERATE[case]())


CHECKS: Mapping[str, Callable[[Trial], None]] = MappingProxyType(
    {
        "give one finite float per image": _one_finite_float,
        "score in-distribution images higher": _id_higher,
        "not depend on the order of rows": _row_order,
        "not depend on the batch size": _batch_size,
        "not modify its input": _input_alone,
        "give the same scores twice": _same_twice,
        "give finite scores for zero features": _zero_features,
        "not depend on the order of training images": _bank_order,
        "use only its declared inputs": _declared,
        **{
            f"be refused with numbers, or separate ID from OOD, with {c}": _in_case(c)
            for c in DEGENERATE
        },
    }
)


def _some_wrong(labels: Tensor) -> Tensor:
    """Return labels of which one of twenty is wrong."""
    return torch.where(torch.arange(len(labels)) % 20 == 7, (labels + 1) % CLASSES, labels)


def _reference(
    head: Head,
    train: Activations,
    jigsaw: Activations,
    labels: Tensor,
    calibration_labels: Tensor | None = None,
) -> Reference:
    """Return a reference whose calibration images are its training images."""
    calibration_labels = labels if calibration_labels is None else calibration_labels
    return Reference(
        head=head,
        load_train=lambda: ActivationSet.of(train),
        load_jigsaw=lambda: ActivationSet.of(jigsaw),
        load_jigsaw_features=lambda: ActivationSet.of(jigsaw),
        load_calibration=lambda: ActivationSet.of(train),
        load_labels=lambda: labels,
        load_calibration_labels=lambda: calibration_labels,
        n_blocks=train.block_norms.shape[1],
    )


def _all_of(rows: ActivationSet) -> Activations:
    return next(rows.chunks(rows=len(rows)))


def _row(batch: Activations, index: int) -> Activations:
    return batch.map(lambda values: values[index : index + 1])


def _shuffled(n: int) -> Tensor:
    return torch.randperm(n, generator=torch.Generator().manual_seed(0))


def _finite(scores: Tensor) -> None:
    bad = int((~scores.isfinite()).sum())
    if bad:
        raise InvalidInputError(f"{bad} of {len(scores)} scores are not finite")


def _same(got: Tensor, wanted: Tensor, *, relative: float = 1e-5) -> None:
    if not torch.allclose(got, wanted, rtol=relative, atol=1e-5):
        off = float((got - wanted).abs().max())
        raise InvalidInputError(f"scores differ by up to {off:.2g}")
