"""MCM, GL-MCM and NegLabel: values worked out by hand, and the authors' steps written out."""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn.functional import normalize

from oodcli.activations import Activations, Head, Reference, Words
from oodcli.errors import InvalidInputError, UndefinedMethodError
from oodcli.methods import parse_method
from oodcli.methods.glmcm import LocalMatch
from oodcli.methods.neglabel import NegLabel, mined
from oodcli.models.extraction import extract
from tests.support.clip import SIDE, Tower, zero_shot_network

# Two classes along the axes, a logit scale of 10, and the bias of SigLIP.
HEAD = Head(10 * torch.eye(2), torch.full((2,), -3.0), scale=10.0)


def batch_of(features: Tensor, head: Head = HEAD, **extra: Tensor) -> Activations:
    logits = head(features)
    return Activations(logits, features, torch.ones(len(logits), 1), logits.argmax(1), extra=extra)


IMAGE = batch_of(torch.tensor([[0.6, 0.8]]))


def score(name: str, reference: Reference, batch: Activations = IMAGE) -> list[float]:
    return parse_method(name).fit(reference).detector.score(batch).tolist()


def test_mcm_is_the_softmax_of_plain_cosines() -> None:
    reference = Reference(HEAD)
    assert score("mcm", reference) == pytest.approx([0.2], abs=1e-6)
    assert score("mcm:temperature=0.1", reference) == pytest.approx([2.0], abs=1e-5)
    p = 1 / (1 + math.exp(-0.2))
    assert score("mcm:scale=probability", reference) == pytest.approx([p], abs=1e-7)
    # With the logit scale it is the softmax of the logits.
    assert score("msp", reference) == pytest.approx([2.0], abs=1e-5)
    with pytest.raises(InvalidInputError, match="mcm:temperature must be a positive number, not 0"):
        parse_method("mcm:temperature=0").fit(reference)


def test_glmcm_adds_the_probability_of_the_best_region() -> None:
    reference = Reference(HEAD)
    whole, local = 1 / (1 + math.exp(-0.2)), 1 / (1 + math.exp(-0.6))
    region = {"glmcm(temperature=1.0)": torch.tensor([0.6])}
    batch = batch_of(torch.tensor([[0.6, 0.8]]), **region)
    assert score("glmcm", reference, batch) == pytest.approx([whole + local])
    assert score("glmcm:lambda_local=0.5", reference, batch) == pytest.approx([whole + local / 2])
    none = score("glmcm:lambda_local=0", reference, batch)
    assert none == pytest.approx(score("mcm:scale=probability", reference))


class _Regions:
    """A network whose map are the local embeddings themselves."""

    local_path = "map"

    def local_embeddings(self, maps: Tensor) -> Tensor:
        """Return the positions."""
        return maps.flatten(2).mT


def test_the_best_region_is_the_one_whose_largest_probability_is_largest() -> None:
    from oodcli.probes import Output

    # Three regions: cosines (1, 0), (0.6, 0.8), (-0.6, 0.8); leads 1, 0.2 and 1.4.
    maps = torch.tensor([[[2.0, 3.0, -3.0], [0.0, 4.0, 4.0]]])[:, :, :, None]
    output = Output(torch.zeros(1, 2), torch.zeros(1, 2), {"map": maps})
    probe = LocalMatch(HEAD, 0.5)
    found = probe.observe(_Regions(), torch.zeros(1), output)  # type: ignore[arg-type]
    assert found.tolist() == pytest.approx([1.4 / 0.5])
    with pytest.raises(UndefinedMethodError, match="glmcm is not defined for this network"):
        probe.maps(type("Trained", (), {"local_path": ""})())


def test_local_embeddings_are_those_of_tokens_that_attend_to_themselves_alone() -> None:
    network = zero_shot_network(3)
    fitted = parse_method("glmcm:temperature=0.5").fit(Reference(network.head()))
    pixels = np.random.default_rng(0).integers(0, 256, (4, 3, SIDE, SIDE), dtype=np.uint8)
    (batch,) = extract(network, [pixels], mean=(0.5,) * 3, std=(0.5,) * 3, probes=fitted.probes)
    tower = network.module.visual
    assert isinstance(tower, Tower)
    images = torch.from_numpy(pixels).float() / 255 / 0.5 - 1
    with torch.inference_mode():
        tokens = tower.before(images)
        others = ~torch.eye(tokens.shape[1], dtype=torch.bool)  # where True, there is no attention
        alone = tower.transformer.resblocks[1](tokens, others)
        local = normalize(tower.ln_post(alone)[:, 1:] @ tower.proj, dim=2)
        whole = normalize(tower(images), dim=1)
    texts = network.head().texts
    best = [(each @ texts.T / 0.5).softmax(-1).flatten(1).amax(1) for each in (whole, local)]
    torch.testing.assert_close(
        fitted.detector.score(batch).float(), best[0] + best[1], rtol=1e-5, atol=1e-6
    )
    assert batch.features.norm(dim=1).tolist() == pytest.approx([1.0] * 4)


# A class along the first axis, and two words.
ONE = Head(10 * torch.eye(2)[:1], torch.zeros(1), scale=10.0)
TWO_WORDS = Words(torch.tensor([[0.0, 1.0], [-1.0, 0.0]]), (2,))


def test_neglabel_is_the_mean_probability_of_the_classes_over_groups() -> None:
    reference = Reference(ONE, load_words=lambda: TWO_WORDS)
    image = batch_of(torch.tensor([[0.6, 0.8]]), ONE)
    # Cosines: 0.6 to the class, 0.8 and -0.6 to the words.
    apart = (1 / (1 + math.exp(0.2)) + 1 / (1 + math.exp(-1.2))) / 2
    name = "neglabel:temperature=1"
    assert score(f"{name},scale=probability", reference, image) == pytest.approx([apart])
    assert score(name, reference, image) == pytest.approx([math.log(apart / (1 - apart))])
    one = math.exp(0.6) / (math.exp(0.6) + math.exp(0.8) + math.exp(-0.6))
    whole = score(f"{name},groups=1,scale=probability", reference, image)
    assert whole == pytest.approx([one])
    # Of the two, the one opposite to the class is the less similar.
    least = score(f"{name},words=1,scale=probability", reference, image)
    assert least == pytest.approx([1 / (1 + math.exp(-1.2))])


def test_words_are_chosen_by_a_percentile_of_their_similarities_each_list_its_share() -> None:
    classes = torch.eye(3)
    near, far = [0.6, 0.0, 0.8], [-0.6, 0.0, -0.8]
    rows = torch.tensor([near, far, [0.0, 0.0, 1.0], near, [0.0, -1.0, 0.0], far])
    known = Words(rows, (4, 2))
    # Medians of the cosines: 0.6, -0.6, 0, 0.6 | 0, -0.6.
    assert mined(known, classes, words=6, percentile=50) == [1, 2, 0, 3, 5, 4]
    assert mined(known, classes, words=3, percentile=50) == [1, 2, 5]
    # Largest ones: 0.8, 0, 1, 0.8 | 0, 0.
    assert mined(known, classes, words=99, percentile=100) == [1, 0, 3, 2, 4, 5]


def test_neglabel_does_what_the_authors_do() -> None:
    generator = torch.Generator().manual_seed(0)
    rows = normalize(torch.randn(400, 16, generator=generator), dim=1)
    texts, nouns, adjectives, images = rows[:20], rows[20:220], rows[220:300], rows[300:]
    head = Head(50 * texts, torch.zeros(20), scale=50.0)
    words = Words(torch.cat([nouns, adjectives]), (200, 80))
    reference = Reference(head, load_words=lambda: words)
    fitted = parse_method("neglabel:words=141,groups=10").fit(reference)
    assert isinstance(fitted.detector, NegLabel)
    chosen = []
    for each in (nouns, adjectives):
        nearness = torch.quantile(each @ texts.T, 0.95, dim=1)
        chosen.append(each[nearness.argsort()[: int(len(each) * 141 / 280)]])
    negatives = torch.cat(chosen)
    assert len(negatives) == 100 + 40
    order = torch.randperm(140, generator=torch.Generator().manual_seed(0))
    groups = negatives[order].reshape(10, 14, -1)
    wanted = []
    for group in groups:
        logits = (images @ torch.cat([texts, group]).T).double() / 0.01
        wanted.append(logits.softmax(dim=1)[:, :20].sum(dim=1))
    p = torch.stack(wanted).mean(dim=0)
    got = fitted.detector.score(batch_of(images, head))
    torch.testing.assert_close(got, p.logit(), rtol=1e-5, atol=1e-5)
    assert fitted.params["words"] == 140
    assert torch.equal(got.argsort(), p.argsort())


def test_words_that_do_not_fill_the_groups_are_skipped_at_the_end() -> None:
    generator = torch.Generator().manual_seed(1)
    rows = normalize(torch.randn(12, 4, generator=generator), dim=1)
    reference = Reference(
        Head(rows[:2], torch.zeros(2), scale=1.0), load_words=lambda: Words(rows[2:], (10,))
    )
    fitted = parse_method("neglabel:groups=4").fit(reference)
    assert (fitted.params["words"], fitted.params["groups"]) == (8, 4)
    fitted = parse_method("neglabel").fit(reference)
    assert (fitted.params["words"], fitted.params["groups"]) == (10, 10)
    with pytest.raises(InvalidInputError, match="neglabel:percentile must be from 0 to 100"):
        parse_method("neglabel:percentile=101").fit(reference)
    two = replace(reference, load_words=lambda: Words(rows[2:], (5, 5)))
    with pytest.raises(InvalidInputError, match="neglabel:words=1 leaves none of 2 lists"):
        parse_method("neglabel:words=1").fit(two)


def test_neglabel_without_words_is_refused() -> None:
    with pytest.raises(UndefinedMethodError) as refused:
        parse_method("neglabel").fit(Reference(HEAD))
    assert "it needs negative words, but the run has 0" in str(refused.value)
    assert "ood import --negative-words FILE" in str(refused.value)


@pytest.mark.parametrize("name", ["mcm", "neglabel"])
def test_odd_images_and_confident_ones(name: str) -> None:
    reference = Reference(HEAD, load_words=lambda: TWO_WORDS)
    odd = batch_of(torch.tensor([[torch.nan, 0.0], [0.6, 0.8], [0.0, 0.0]]))
    scores = parse_method(name).fit(reference).detector.score(odd)
    assert scores.isnan().tolist() == [True, False, False]
    # At a temperature of 1e-4 probabilities would round to 1.
    angles = torch.linspace(0.1, 0.3, 50)
    sure = batch_of(torch.stack([angles.cos(), angles.sin()], dim=1))
    sharp = parse_method(f"{name}:temperature=0.0001").fit(reference).detector.score(sure)
    assert sharp.unique().numel() == 50
