"""What a zero-shot classifier is asked with: names of classes, prompts, and negative words.

This module loads no torch, so that a wrong file is answered at once.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from oodcli.data.class_order import read_lines
from oodcli.errors import InvalidInputError
from oodcli.files import expanded
from oodcli.specs import names_clip
from oodcli.workflows.import_request import ImportRequest

DEFAULT_TEMPLATE = "a photo of a {}."
# Stands for the 80 templates of CLIP's authors, which the package open_clip has.
IMAGENET = "imagenet80"
_PLACE = "{}"
# Of WordNet, as folders of ImageNet are called.
_IDENTIFIER = re.compile(r"n\d{8}", re.ASCII)


@dataclass(frozen=True)
class WordList:
    """Words that name no class, from one file.

    Parameters
    ----------
    file
        The file.
    template
        What each is written into.
    words
        The words, each once in all lists.
    """

    file: str
    template: str
    words: tuple[str, ...]


@dataclass(frozen=True)
class Prompting:
    """What a zero-shot classifier is asked with.

    Parameters
    ----------
    names
        What every output is called in the prompts, in order.
    names_from
        What says so, for people to read.
    templates
        Texts with ``{}`` in place of a name; empty for those of CLIP's authors.
    templates_from
        What says so.
    lists
        Negative words.
    """

    names: tuple[str, ...]
    names_from: str
    templates: tuple[str, ...]
    templates_from: str
    lists: tuple[WordList, ...] = ()


def prompting_for(
    request: ImportRequest, classes: Sequence[str], outputs: Sequence[str]
) -> Prompting | None:
    """Return what a zero-shot classifier is asked with, or None where none is imported.

    Parameters
    ----------
    request
        What to import.
    classes
        Names of the classes of the data.
    outputs
        Names of the outputs in order: those of the data, and of further classes.

    Raises
    ------
    InvalidInputError
        If a file cannot be used, or an option means nothing here.
    """
    given = {
        "--class-names": request.class_names,
        "--prompts": request.prompts,
        "--negative-words": request.negative_words,
        "--negative-prompt": request.negative_prompts,
    }
    named = next((option for option, value in given.items() if value), None)
    if not names_clip(request.arch) or request.probe or request.features_only:
        if named is not None:
            why = "this one was trained"
            if request.probe:
                why = "--probe fits a last layer to images"
            elif request.features_only:
                why = "--features-only has no last layer"
            raise InvalidInputError(
                f"{named} is for the text embeddings of a zero-shot classifier, and {why}; leave "
                "it out, or name a CLIP network: --arch open_clip:MODEL:TAG"
            )
        return None
    names, names_from = _names(request.class_names, classes, outputs)
    templates, templates_from = _templates(request.prompts)
    return Prompting(names, names_from, templates, templates_from, _lists(request, templates))


def _names(
    path: Path | None, classes: Sequence[str], outputs: Sequence[str]
) -> tuple[tuple[str, ...], str]:
    """Return what every output is called, and what says so."""
    if path is None:
        firsts = {name.split(maxsplit=1)[0]: name for name in outputs if len(name.split()) > 1}
        if set(classes) - set(outputs) and set(classes) <= set(firsts):
            return tuple(name.split(maxsplit=1)[-1] for name in outputs), "--classes"
        if all(_IDENTIFIER.fullmatch(name) for name in outputs):
            raise InvalidInputError(
                f"the classes are called {outputs[0]}, …, identifiers that no text says anything "
                "of; write their names, one per line in the order of the classes, or lines of "
                f"{outputs[0]} NAME: --class-names FILE"
            )
        return tuple(" ".join(name.split("_")).strip() for name in outputs), "the data"
    lines = read_lines(path, option="--class-names", what="names of classes")
    called: Mapping[str, str] = {}
    if all(len(line.split()) > 1 for line in lines):
        pairs = (line.split(maxsplit=1) for line in lines)
        called = {key: rest for key, rest in pairs}  # noqa: C416 - two of a list, for mypy
    if called and len(called) == len(lines) and set(outputs) <= set(called):
        return tuple(called[name] for name in outputs), str(path)
    if len(lines) != len(outputs):
        raise InvalidInputError(
            f"{path} has {len(lines):,} lines for {len(outputs):,} classes; write the name of one "
            "class per line, in the order of the classes, or lines of CLASS NAME in any order: "
            "--class-names FILE"
        )
    return lines, str(path)


def _templates(text: str | None) -> tuple[tuple[str, ...], str]:
    """Return the templates, none for those of the package open_clip, and what says so."""
    if text is None:
        return (DEFAULT_TEMPLATE,), "default"
    path = expanded(Path(text))
    if not path.exists() and _PLACE in text:
        return (_template(text, "--prompts"),), "--prompts"
    if not path.exists() and text == IMAGENET:
        return (), IMAGENET
    if not path.exists():
        raise InvalidInputError(
            f"--prompts {text!r} is no file of templates, one per line, and no template, which has "
            f"{{}} in place of the class, as in {DEFAULT_TEMPLATE!r}; name one; {IMAGENET} stands "
            "for the 80 of CLIP's authors"
        )
    lines = read_lines(path, option="--prompts", what="templates")
    return tuple(_template(line, str(path)) for line in dict.fromkeys(lines)), str(path)


def _template(text: str, where: str) -> str:
    if text.count(_PLACE) != 1:
        raise InvalidInputError(
            f"{where}: a template has {{}} once, in place of the name, which {text!r} has not; "
            f"write it as in {DEFAULT_TEMPLATE!r}"
        )
    return text


def _lists(request: ImportRequest, templates: Sequence[str]) -> tuple[WordList, ...]:
    """Read negative words; a word in two lists counts in the first."""
    files, prompts = request.negative_words, request.negative_prompts
    if len(prompts) not in (0, 1, len(files)) or (prompts and not files):
        raise InvalidInputError(
            f"--negative-prompt is given {len(prompts)} times for {len(files)} lists of "
            "--negative-words; give it once, or once for each"
        )
    usual = templates[0] if len(templates) == 1 else DEFAULT_TEMPLATE
    chosen = [_template(text, "--negative-prompt") for text in prompts] or [usual]
    chosen = chosen * len(files) if len(chosen) == 1 else chosen
    seen: set[str] = set()
    lists = []
    for path, template in zip(files, chosen, strict=True):
        lines = read_lines(path, option="--negative-words", what="words")
        words = tuple(word for word in dict.fromkeys(lines) if word not in seen)
        seen.update(words)
        if not words:
            raise InvalidInputError(
                f"all words of {path} are in the lists before it; leave it out: --negative-words"
            )
        lists.append(WordList(str(path), template, words))
    return tuple(lists)
