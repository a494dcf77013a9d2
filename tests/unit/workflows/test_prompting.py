"""What a zero-shot classifier is asked with, from options and files."""

from pathlib import Path
from typing import Any

import pytest

from oodcli.errors import InvalidInputError
from oodcli.workflows.import_request import ImportRequest
from oodcli.workflows.prompting import Prompting, prompting_for

CLASSES = ("aquarium_fish", "sea lion")


def asked(
    classes: tuple[str, ...] = CLASSES, outputs: tuple[str, ...] | None = None, **given: Any
) -> Prompting:
    arch = given.pop("arch", "open_clip:ViT-B-32:openai")
    request = ImportRequest(None, arch=arch, data="data", **given)
    found = prompting_for(request, classes, outputs or classes)
    assert found is not None
    return found


def refusal(**given: Any) -> str:
    with pytest.raises(InvalidInputError) as caught:
        asked(**given)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def file(path: Path, *lines: str) -> Path:
    path.write_text("\n".join(lines))
    return path


def test_by_default_classes_are_called_as_in_the_data_in_the_usual_template() -> None:
    found = asked()
    assert found.names == ("aquarium fish", "sea lion")
    assert (found.templates, found.templates_from) == (("a photo of a {}.",), "default")
    assert found.lists == ()


def test_names_are_given_in_order_or_by_class(tmp_path: Path) -> None:
    in_order = file(tmp_path / "order.txt", "goldfish", "", "goldfish")
    assert asked(class_names=in_order).names == ("goldfish", "goldfish")
    by_class = file(tmp_path / "by.txt", "n02 sea lion", "n03 cat", "n01 tench, Tinca tinca")
    found = asked(("n01", "n02"), class_names=by_class)
    assert found.names == ("tench, Tinca tinca", "sea lion")
    assert found.names_from == str(by_class)
    assert "has 2 lines for 3 classes" in refusal(
        classes=("a", "b", "c"), class_names=file(tmp_path / "two.txt", "x", "y")
    )
    assert "has no names of classes" in refusal(class_names=file(tmp_path / "none.txt", " "))


def test_identifiers_are_no_names(tmp_path: Path) -> None:
    message = refusal(classes=("n01440764", "n01443537"))
    assert "n01440764, …, identifiers" in message
    assert "--class-names FILE" in message
    # Lists that name them, as --classes may.
    found = asked(("n01440764",), ("n01440764 tench", "n01443537 goldfish"))
    assert found.names == ("tench", "goldfish")


def test_templates_are_a_file_or_one_or_those_of_the_authors(tmp_path: Path) -> None:
    path = file(tmp_path / "t.txt", "a {}.", "the {}", "a {}.", "")
    assert asked(prompts=str(path)).templates == ("a {}.", "the {}")
    assert asked(prompts="art of {}").templates == ("art of {}",)
    found = asked(prompts="imagenet80")
    assert (found.templates, found.templates_from) == ((), "imagenet80")
    for text in ("gone.txt", "a photo"):
        assert f"--prompts {text!r} is no file of templates" in refusal(prompts=text)
    assert "a template has {} once" in refusal(prompts="a {} and a {}")
    assert "'a photo' has not" in refusal(prompts=str(file(tmp_path / "w.txt", "{}", "a photo")))


def test_negative_words_come_in_lists_with_their_templates(tmp_path: Path) -> None:
    nouns = file(tmp_path / "nouns.txt", "sun", "moon", "sun")
    adjectives = file(tmp_path / "adj.txt", "moon", "red")
    both = {"negative_words": (nouns, adjectives)}
    found = asked(**both, negative_prompts=("the nice {}", "a {} photo")).lists
    assert [(e.file, e.template, e.words) for e in found] == [
        (str(nouns), "the nice {}", ("sun", "moon")),
        (str(adjectives), "a {} photo", ("red",)),
    ]
    assert {e.template for e in asked(**both, prompts="the {}").lists} == {"the {}"}
    # Of an ensemble, words get the usual one.
    assert {e.template for e in asked(**both, prompts="imagenet80").lists} == {"a photo of a {}."}
    assert {e.template for e in asked(**both, negative_prompts=("{}",)).lists} == {"{}"}
    assert "3 times for 2 lists" in refusal(**both, negative_prompts=("{}",) * 3)
    assert "1 times for 0 lists" in refusal(negative_prompts=("{}",))
    assert "all words of" in refusal(negative_words=(nouns, file(tmp_path / "s.txt", "sun")))
    assert "there is no file" in refusal(negative_words=(tmp_path / "gone.txt",))


def test_options_of_prompts_are_refused_for_other_networks() -> None:
    request = ImportRequest(None, arch="resnet18", data="data")
    assert prompting_for(request, CLASSES, CLASSES) is None
    assert "--prompts is for the text embeddings" in refusal(arch="resnet18", prompts="{}")
    message = refusal(probe=True, class_names=Path("x"))
    assert "--class-names is for the text embeddings" in message
    assert "--probe fits a last layer to images" in message
    assert "--features-only has no last layer" in refusal(features_only=True, prompts="{}")
