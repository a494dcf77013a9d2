"""NegLabel: the probability of the class names against thousands of words that name no class."""

from dataclasses import dataclass
from typing import Self

import torch
from torch import Tensor

from oodcli.activations import Activations, Reference, Words
from oodcli.errors import InvalidInputError
from oodcli.methods._softmax import Scale, log_sum
from oodcli.methods.base import at_least
from oodcli.specs import format_value, positive

# Similarities that are computed at a time in the search for words.
_SIMILARITIES = 2**22
# Words that an image is compared with at a time.
_COLUMNS = 1024
_SEED = 0


@dataclass(frozen=True, slots=True)
class NegLabel:
    """Probability that an image shows one of the classes, not one of many negative words.

    ``log(p / (1 - p))`` with ``p`` the mean over groups ``g`` of
    ``Σ_c exp(s_c / T) / (Σ_c exp(s_c / T) + Σ_{w in g} exp(s_w / T))``, which ranks images as ``p``
    does; ``s_c`` and ``s_w`` are the cosines between the image embedding and the text embeddings of
    class ``c`` and of word ``w``.

    Parameters
    ----------
    classes
        Text embeddings of the classes, unit vectors, ``(k, d)``.
    negatives
        Those of the chosen words, group after group, ``(words, d)``.
    words
        How many words were chosen: a multiple of ``groups``.
    groups
        How many groups they are in.
    temperature
        ``T`` above.
    scale
        How the probability is written.

    References
    ----------
    Jiang, Liu, Fang, Chen, Liu, Zheng, Han. "Negative Label Guided OOD Detection with Pretrained
    Vision-Language Models". ICLR 2024, arXiv:2403.20078; checked against the authors' code.

    Notes
    -----
    The words are those that the network was imported with (``ood import --negative-words``). Those
    are chosen whose similarity to the classes, the 95th percentile of the cosines to all of them,
    is smallest; of several lists, each gives its share, as nouns and adjectives do in the authors'
    code. Words at the end, the least negative of the last list, are left out so that groups are
    equal; the others are put into groups at random. All this is as in the authors' code, but for
    the seed: its random order comes from a GPU, this one from torch's generator on the CPU with
    seed 0.

    The authors choose 15 % of WordNet's nouns and adjectives, about 10,000 words, written as "the
    nice NOUN" and "This is a ADJECTIVE photo", and compare ``p`` in float32;
    ``scale=probability`` gives that.
    """

    classes: Tensor
    negatives: Tensor
    words: int
    groups: int
    temperature: float
    scale: Scale = "log-odds"

    @classmethod
    def fit(
        cls,
        reference: Reference,
        *,
        words: int = 10_000,
        percentile: float = 95.0,
        groups: int = 100,
        temperature: float = 0.01,
        scale: Scale = "log-odds",
    ) -> Self:
        """Choose the words that are least similar to the classes.

        Parameters
        ----------
        reference
            Has the last layer and the words.
        words
            How many are chosen; all if there are fewer.
        percentile
            Which of the similarities of a word to all classes counts.
        groups
            Number of groups of equal size; one for each word if there are fewer words.
        temperature
            What cosines are divided by.
        scale
            How the probability is written: ``probability`` as published.
        """
        at_least("neglabel:words", words, 1)
        at_least("neglabel:groups", groups, 1)
        if not 0 <= percentile <= 100:
            raise InvalidInputError(
                f"neglabel:percentile must be from 0 to 100, not {format_value(percentile)}"
            )
        known = reference.words
        assert known is not None  # the method needs words
        classes = reference.head.texts
        chosen = mined(known, classes, words=words, percentile=percentile)
        if not chosen:
            raise InvalidInputError(
                f"neglabel:words={words} leaves none of {len(known.counts)} lists; choose more"
            )
        groups = min(groups, len(chosen))
        kept = len(chosen) - len(chosen) % groups
        order = torch.randperm(kept, generator=torch.Generator().manual_seed(_SEED))
        rows = torch.tensor(chosen[:kept])[order].to(known.embeddings.device)
        negatives = known.embeddings[rows]
        temperature = float(positive("neglabel:temperature", temperature))
        return cls(classes, negatives, kept, groups, temperature, scale)

    def score(self, batch: Activations) -> Tensor:
        """Return the log-odds of the classes, or their probability, float64, ``(n,)``."""
        images = batch.features.double() / self.temperature
        known = log_sum(images @ self.classes.double().T)  # (n, 1)
        size = self.words // self.groups
        step = size * max(1, _COLUMNS // size)
        parts = [
            log_sum((images @ block.double().T).reshape(-1, size)).reshape(-1, len(block) // size)
            for block in self.negatives.split(step)
        ]
        margins = known - torch.cat(parts, dim=1)  # (n, groups)
        if self.scale == "probability":
            return margins.sigmoid().mean(dim=1)
        return (log_sum(_log_sigmoid(margins)) - log_sum(_log_sigmoid(-margins)))[:, 0]


def mined(known: Words, classes: Tensor, *, words: int, percentile: float) -> list[int]:
    """Return the words that are least similar to the classes, list after list (NegMining).

    Parameters
    ----------
    known
        The words, of which list ``i`` gives the share ``words / m`` of its own.
    classes
        Text embeddings of the classes, ``(k, d)``.
    words
        How many are wanted of all ``m``.
    percentile
        Which of the similarities of a word to all classes counts.

    Returns
    -------
    list
        Rows of ``known.embeddings``; in each list, from the least similar on.
    """
    rows = max(1, _SIMILARITIES // len(classes))
    nearness = torch.cat(
        [
            torch.quantile(part @ classes.T, percentile / 100, dim=1)
            for part in known.embeddings.split(rows)
        ]
    )
    total, first = sum(known.counts), 0
    chosen: list[int] = []
    for count in known.counts:
        order = torch.argsort(nearness[first : first + count], stable=True)
        share = min(words, total) * count // total
        chosen += (first + order[:share]).tolist()
        first += count
    return chosen


def _log_sigmoid(values: Tensor) -> Tensor:
    """Return ``log(1 / (1 + exp(-x)))``; torch's own is not in graphs."""
    return values.clamp(max=0) - (-values.abs()).exp().log1p()
