"""Odd data, over the whole registry: a defined value, or a refusal that says why."""

import contextlib
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from oodcli.activations import Activations, ActivationSet, Head, Reference
from oodcli.errors import UndefinedMethodError
from oodcli.methods import METHODS, parse_method
from oodcli.methods.base import score_many
from oodcli.methods.contract import BLOCKS, CLASSES, WIDTH
from oodcli.methods.contract import toy_activations as activations
from oodcli.scoring.tune import parameter_settings

# Methods that need a network are held to the same in test_probe_contract.py, and those for text
# embeddings or kept heads, which learn nothing from images, in modules of their own.
NAMES = [
    name
    for name, method in METHODS.items()
    if not (method.needs_network or method.is_zero_shot or method.kept_head)
]


@pytest.fixture(params=NAMES)
def name(request: pytest.FixtureRequest) -> str:
    """Return each method in turn."""
    return request.param


def reference_of(train: Activations, labels: Tensor, head: Head) -> Reference:
    """Build a reference calibrated on its training images, of which some have another label."""
    other = (labels + 1) % len(head.weight)
    wrong = torch.where(torch.arange(len(labels)) % 20 == 7, other, labels)
    jigsaw = replace(train, block_norms=train.block_norms / torch.tensor([0.9, 1.4, 1.1]))
    return Reference(
        head=head,
        load_train=lambda: ActivationSet.of(train),
        load_labels=lambda: labels,
        load_jigsaw=lambda: ActivationSet.of(jigsaw),
        load_jigsaw_features=lambda: ActivationSet.of(jigsaw),
        load_calibration=lambda: ActivationSet.of(train),
        load_calibration_labels=lambda: wrong,
        n_blocks=BLOCKS,
    )


def rows(batch: Activations, index: Tensor) -> Activations:
    return batch.map(lambda values: values[index])


def defined_or_refused(name: str, reference: Reference, batch: Activations) -> None:
    """Scores are finite, or there is a reason why there are none."""
    try:
        scores = parse_method(name).fit(reference).detector.score(batch)
    except UndefinedMethodError as refusal:
        reason = str(refusal)
        scores = torch.zeros(len(batch)) if reason else torch.full((1,), float("nan"))
    assert scores.isfinite().all()


def test_a_class_without_training_images_is_skipped(
    name: str, head: Head, id_batch: Activations
) -> None:
    train = activations(200, strength=3.0, seed=3, head=head)
    labels = torch.arange(200) % CLASSES
    there = labels != 3
    reference = reference_of(rows(train, there), labels[there], head)
    scores = parse_method(name).fit(reference).detector.score(id_batch)
    assert scores.isfinite().all()


def test_how_the_training_images_are_cut_into_shards_does_not_matter(
    name: str, head: Head, id_batch: Activations
) -> None:
    train = activations(200, strength=3.0, seed=3, head=head)
    labels = torch.arange(200) % CLASSES
    whole = reference_of(train, labels, head)
    pieces = [rows(train, torch.arange(start, min(start + 7, 200))) for start in range(0, 200, 7)]

    def cut() -> ActivationSet:
        shards = [shard for piece in pieces for shard in ActivationSet.of(piece)._shards]
        return SmallChunks(shards)

    parts = replace(whole, load_train=cut, load_calibration=cut)
    first, second = (parse_method(name).fit(r).detector.score(id_batch) for r in (whole, parts))
    torch.testing.assert_close(first, second, rtol=1e-4, atol=1e-5)


class SmallChunks(ActivationSet):
    """Yields chunks of 7 rows."""

    def chunks(self, rows: int = 7) -> "object":  # type: ignore[override]
        """Yield small chunks whatever was asked for."""
        return super().chunks(min(rows, 7))


@pytest.mark.parametrize("value", [0.0, 1.0])
def test_constant_training_features_give_scores_or_a_reason(
    name: str, value: float, head: Head, id_batch: Activations
) -> None:
    features = torch.full((40, WIDTH), value)
    logits = head(features)
    train = Activations(logits, features, torch.ones(40, BLOCKS), logits.argmax(dim=1))
    reference = reference_of(train, torch.arange(40) % CLASSES, head)
    defined_or_refused(name, reference, id_batch)


def test_one_training_image_of_each_class_gives_scores_or_a_reason(
    name: str, head: Head, id_batch: Activations
) -> None:
    train = activations(CLASSES, strength=3.0, seed=3, head=head)
    reference = reference_of(train, torch.arange(CLASSES), head)
    defined_or_refused(name, reference, id_batch)


def test_ten_thousand_classes(name: str) -> None:
    generator = torch.Generator().manual_seed(0)
    head = Head(torch.randn(10_000, WIDTH, generator=generator), torch.zeros(10_000))
    train = activations(64, strength=3.0, seed=3, head=head)
    labels = train.predictions
    batch = activations(5, strength=3.0, seed=4, head=head)
    defined_or_refused(name, reference_of(train, labels, head), batch)


def test_a_value_that_is_not_a_number_is_not_hidden(
    name: str, reference: Reference, id_batch: Activations
) -> None:
    features = id_batch.features.clone()
    logits = id_batch.logits.clone()
    norms = id_batch.block_norms.clone()
    features[3], logits[3], norms[3] = float("nan"), float("nan"), float("nan")
    spoilt = Activations(logits, features, norms, id_batch.predictions)
    fitted = parse_method(name).fit(reference)
    try:
        scores = fitted.detector.score(spoilt)
    except UndefinedMethodError:
        return
    assert not scores[3].isfinite()
    good = torch.arange(len(scores)) != 3
    torch.testing.assert_close(scores[good], fitted.detector.score(id_batch)[good])


def test_settings_scored_together_score_as_each_does_alone(
    name: str, reference: Reference, id_batch: Activations
) -> None:
    detectors = [parse_method(name).fit(reference).detector]
    for setting in parameter_settings(parse_method(name)):
        with contextlib.suppress(UndefinedMethodError):
            detectors.append(setting.fit(reference).detector)
    together = score_many(detectors, id_batch)
    assert together.shape == (len(id_batch), len(detectors))
    for column, each in zip(together.unbind(dim=1), detectors, strict=True):
        torch.testing.assert_close(column.float(), each.score(id_batch).float())
