"""The last layer of a zero-shot classifier, made of the names of its classes by the text tower."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from oodcli.activations import Words
from oodcli.compute.devices import explain_out_of_memory
from oodcli.models import Clip, imagenet_templates
from oodcli.progress import Progress
from oodcli.text import counted, printable
from oodcli.workflows.prompting import Prompting, WordList

_SHOWN = 2


@dataclass(frozen=True, eq=False)
class ZeroShot:
    """A zero-shot classifier: what a run stores of it.

    Parameters
    ----------
    state
        Weights of the image tower and of the last layer, which is the text embeddings times the
        logit scale.
    facts
        What the record of the run says of it.
    words
        Embeddings of negative words; None where there are none.
    lines
        What to tell the user.
    """

    state: Mapping[str, Tensor]
    facts: dict[str, Any]
    words: Words | None
    lines: tuple[str, ...]


def zero_shot(
    clip: Clip, prompting: Prompting, *, device: torch.device, progress: Progress
) -> ZeroShot:
    """Embed the names of the classes and the negative words, once and for all.

    Parameters
    ----------
    clip
        Both towers.
    prompting
        What it is asked with.
    device
        Where to compute.
    progress
        Receives progress of the text tower.

    Raises
    ------
    OodError
        If the tower cannot compute on the device, or gives embeddings that are not finite.
    """
    templates, templates_from = prompting.templates, prompting.templates_from
    if not templates:
        templates, templates_from = imagenet_templates()
    total = len(prompting.names) * len(templates) + sum(len(e.words) for e in prompting.lists)
    with (
        progress.task("text tower", total=total, unit="texts", passing=True) as task,
        explain_out_of_memory(device, "use another device: --device cpu"),
    ):
        texts = clip.embed_names(prompting.names, templates, device=device, advance=task.advance)
        embedded = [
            clip.embed_names(each.words, (each.template,), device=device, advance=task.advance)
            for each in prompting.lists
        ]
    scale, bias = clip.logit_scale, clip.logit_bias
    state = {
        **clip.image_tower(),
        "head.weight": scale * texts,
        "head.bias": torch.full((len(texts),), bias),
        "head.logit_scale": torch.tensor(scale),
    }
    words = None
    if embedded:
        words = Words(torch.cat(embedded), tuple(map(len, embedded)))
    facts = {
        "templates": list(templates),
        "templates_from": templates_from,
        "names": list(prompting.names),
        "names_from": prompting.names_from,
        "logit_scale": scale,
        "logit_bias": bias,
    }
    lines = (_in_words(prompting, templates, templates_from), *_alike(prompting.names))
    return ZeroShot(state, facts, words, (*lines, *map(_of_list, prompting.lists)))


def word_facts(lists: Sequence[WordList], digest: str) -> dict[str, Any]:
    """Return what the record of a run says of its negative words.

    Parameters
    ----------
    lists
        The words.
    digest
        Of the file that holds their embeddings.
    """
    return {
        "digest": digest,
        "lists": [
            {"file": each.file, "template": each.template, "words": len(each.words)}
            for each in lists
        ],
    }


def _in_words(prompting: Prompting, templates: Sequence[str], templates_from: str) -> str:
    shown = [templates[0].replace("{}", name) for name in prompting.names[:_SHOWN]]
    more = f" and {len(templates) - 1} more templates" if len(templates) > 1 else ""
    return (
        f"zero-shot classifier of {counted(len(prompting.names), 'class', 'classes')}: "
        f"{', '.join(repr(printable(text)) for text in shown)}, …{more}; names from "
        f"{prompting.names_from}, templates from {templates_from}"
    )


def _alike(names: Sequence[str]) -> tuple[str, ...]:
    """Say which two classes cannot be told apart, where there are such."""
    first: dict[str, int] = {}
    for at, name in enumerate(names):
        if name in first:
            return (
                f"warning: classes {first[name]} and {at} are both called {printable(name)!r}, so "
                "that no image is predicted as the second: --class-names FILE",
            )
        first[name] = at
    return ()


def _of_list(each: WordList) -> str:
    shown = printable(each.template.replace("{}", each.words[0]))
    return f"negative words: {len(each.words):,} of {each.file}, as in {shown!r}"
