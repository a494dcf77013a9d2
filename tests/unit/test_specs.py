"""The one grammar of methods, objectives and architectures."""

import pytest

from oodcli.errors import OodError
from oodcli.methods import parse_method
from oodcli.models import parse_architecture
from oodcli.training.objectives.registry import parse_objective


@pytest.mark.parametrize(
    ("parse", "kind", "name", "key"),
    [
        (parse_method, "method", "knn", "k"),
        (parse_objective, "objective", "t2fnorm", "tau"),
        (parse_architecture, "architecture", "resnet18", "width"),
    ],
)
def test_all_three_refuse_the_same_in_the_same_words(parse, kind: str, name: str, key: str) -> None:
    def refusal(text: str) -> str:
        with pytest.raises(OodError) as caught:
            parse(text)
        return str(caught.value)

    assert refusal(f"{name}:") == f"'' in {kind} '{name}:' is not KEY=VALUE"
    assert refusal(f"{name}:{key}") == f"'{key}' in {kind} '{name}:{key}' is not KEY=VALUE"
    twice = f"{name}:{key}=8,{key}=9"
    assert refusal(twice) == f"parameter '{key}' appears twice in {kind} '{twice}'"
    assert refusal(f"{name}:xx=8").startswith(f"no parameter of {name} 'xx'")
