"""Methods of others: packages that joined, and classes named by module."""

import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from textwrap import dedent

import pytest

from oodcli.activations import Activations, Reference
from oodcli.errors import InvalidInputError, OodError, UndefinedMethodError, UnknownNameError
from oodcli.methods import METHODS, parse_method, parse_methods
from oodcli.methods.contract import check
from oodcli.methods.third_party import load_third_party

Install = Callable[..., None]

GOOD = """
    from oodcli.methods.base import Method

    class Length:
        '''Length of the feature.'''

        def __init__(self, power):
            self.power = power

        @classmethod
        def fit(cls, reference: "Nowhere", *, power: float = 1.0) -> "Length":
            return cls(power)

        def score(self, batch):
            return batch.features.norm(dim=1) ** self.power

    class Doubled:
        @classmethod
        def fit(cls, reference):
            return cls()

        def logits(self, batch):
            return 2 * batch.logits

    class Largest:
        @classmethod
        def fit(cls, reference):
            return cls()

        def score_logits(self, logits):
            return logits.amax(dim=1)

        def score(self, batch):
            return self.score_logits(batch.logits)

    LENGTH = Method(Length, "Length", "Acme, ICML 2031", ("features",), grid={"power": (1.0, 2.0)})
"""


@pytest.fixture
def write(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., None]]:
    """Return a function that writes a module ``acme`` that can be imported."""
    folder = tmp_path / "modules"
    folder.mkdir()
    monkeypatch.syspath_prepend(folder)

    def put(text: str, name: str = "acme") -> None:
        (folder / f"{name}.py").write_text(dedent(text))

    before = set(sys.modules)
    yield put
    for name in set(sys.modules) - before:
        if name.startswith("acme"):
            del sys.modules[name]


@pytest.fixture
def install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Install:
    """Return a function that installs a package with entry points, as pip would leave it."""

    def put(package: str, **points: str) -> None:
        folder = tmp_path / package / f"{package.replace(chr(45), chr(95))}-1.2.dist-info"
        folder.mkdir(parents=True)
        (folder / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {package}\nVersion: 1.2\n")
        lines = [f"{name.replace('_', '-')} = {value}" for name, value in points.items()]
        (folder / "entry_points.txt").write_text("\n".join(["[ood.methods]", *lines]))
        monkeypatch.syspath_prepend(tmp_path / package)

    return put


def refusal(text: str) -> str:
    """Return why a method is refused."""
    with pytest.raises(OodError) as raised:
        parse_method(text)
    return str(raised.value)


def test_a_class_named_by_module_is_a_method(
    write: Callable[..., None], reference: Reference, id_batch: Activations
) -> None:
    write(GOOD)
    spec = parse_method("acme:Length:power=2.0")
    assert spec.canonical == "acme:Length:power=2"
    assert parse_method("acme:Length:power=1").canonical == "acme:Length"
    fitted = spec.fit(reference)
    assert fitted.params == {"power": 2.0}
    got = fitted.detector.score(id_batch)
    assert got.tolist() == pytest.approx(id_batch.features.square().sum(dim=1).tolist(), rel=1e-5)
    check("acme:Length")


def test_each_half_of_a_combination_may_be_one(
    write: Callable[..., None], reference: Reference, id_batch: Activations
) -> None:
    write(GOOD)
    for text in ("acme:Doubled+maxlogit", "acme:Doubled+acme:Largest"):
        fitted = parse_method(text).fit(reference)
        assert fitted.canonical == text
        got = fitted.detector.score(id_batch)
        assert got.tolist() == (2 * id_batch.logits.amax(dim=1)).tolist()
    assert parse_method("norm+acme:Largest").canonical == "norm+acme:Largest"
    assert parse_method("acme:Doubled").canonical == "acme:Doubled+energy"
    assert "'acme:Length' in 'norm+acme:Length' does not score logits" in refusal(
        "norm+acme:Length"
    )


def test_a_registry_entry_named_by_module_brings_its_paper(write: Callable[..., None]) -> None:
    write(GOOD)
    (part,) = parse_method("acme:LENGTH").parts
    assert (part.method.paper, part.method.inputs) == ("Acme, ICML 2031", ("features",))


def test_a_package_joins_by_its_entry_points(
    write: Callable[..., None], install: Install, reference: Reference, id_batch: Activations
) -> None:
    write(GOOD)
    install("acme-ood", length="acme:LENGTH", doubled="acme:Doubled")
    assert parse_method("length:power=2").canonical == "length:power=2"
    assert parse_method("doubled").canonical == "doubled+energy"
    offered = load_third_party(METHODS)
    assert set(offered.methods) == {"length", "doubled"}
    assert offered.packages["length"] == "package acme-ood 1.2"
    assert offered.refused == {}
    for texts in ([], ["all"]):
        names = [spec.canonical for spec in parse_methods(texts)]
        assert names[-2:] == ["length", "doubled+energy"]
    fitted = parse_method("length").fit(reference)
    assert fitted.detector.score(id_batch).shape == (len(id_batch),)
    assert refusal("lenght") == "no method 'lenght'; did you mean 'length'?"


def test_an_entry_point_that_fails_does_not_affect_others(
    write: Callable[..., None], install: Install, reference: Reference
) -> None:
    write(GOOD)
    write("raise RuntimeError('no licence\\nfor this machine')", "acme_broken")
    install("acme-ood", length="acme:LENGTH")
    install("acme-broken", sad="acme_broken:Sad", gone="acme_gone:Gone", odd="acme:GOOD")
    reason = (
        "method 'sad' of package acme-broken 1.2 cannot be loaded: RuntimeError: no licence; "
        "update the package, or remove it"
    )
    assert refusal("sad") == reason
    offered = load_third_party(METHODS)
    assert set(offered.methods) == {"length"}
    assert set(offered.refused) == {"sad", "gone", "odd"}
    assert "ModuleNotFoundError: No module named 'acme_gone'" in offered.refused["gone"]
    # In a group it is left out with the reason, and all others are there.
    specs = {spec.canonical: spec for spec in parse_methods([])}
    assert {"length", "sad", "msp"} <= set(specs)
    assert specs["sad"].optional
    with pytest.raises(UndefinedMethodError) as raised:
        specs["sad"].fit(reference)
    assert str(raised.value) == reason


def test_a_name_that_is_taken_stays_what_it_was(
    write: Callable[..., None], install: Install
) -> None:
    write(GOOD)
    install("acme-ood", msp="acme:Length", both="acme:Length", all="acme:Length")
    install("acme-two", both="acme:Largest")
    assert parse_method("msp").parts[0].method is METHODS["msp"]
    refused = load_third_party(METHODS).refused
    assert refused["msp"].startswith(
        "package acme-ood 1.2 provides a method 'msp', but ood has a method"
    )
    assert refused["both"].startswith("method 'both' is provided by packages ")
    assert "acme:Length" in refused["both"]
    assert "is not a valid name for --method; give the class itself: acme:Length" in refused["all"]


def test_a_module_that_is_not_there(write: Callable[..., None]) -> None:
    assert refusal("acme_none.deep:Mine") == (
        "there is no module 'acme_none' for method acme_none.deep:Mine; install its package, "
        "or give the folder that contains it: PYTHONPATH=FOLDER ood …"
    )


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("import acme_missing", "ModuleNotFoundError: No module named 'acme_missing'"),
        ("1 / 0", "ZeroDivisionError: division by zero"),
        ("def f(:", "SyntaxError: invalid syntax"),
    ],
)
def test_a_module_that_does_not_import(write: Callable[..., None], text: str, told: str) -> None:
    write(text)
    message = refusal("acme:Mine")
    assert message.startswith(f"module acme of method acme:Mine cannot be imported: {told}")
    assert message.endswith("; try: python -c 'import acme'")


def test_a_class_that_is_not_there(write: Callable[..., None]) -> None:
    write(GOOD)
    with pytest.raises(UnknownNameError, match="no class in acme 'Lenght'; did you mean 'Length'"):
        parse_method("acme:Lenght")


@pytest.mark.parametrize(
    ("body", "told"),
    [
        ("Mine = 3", "acme:Mine is a int, not a class"),
        ("class Mine:\n    pass", "acme:Mine has no fit; define: @classmethod"),
        (
            "class Mine:\n    def fit(self, reference): ...\n    def score(self, batch): ...",
            "fit of acme:Mine is not a classmethod",
        ),
        (
            "class Mine:\n    @classmethod\n    def fit(cls): ...\n    def score(self, batch): ...",
            "fit of acme:Mine has the parameters (); it must take the reference",
        ),
        (
            "class Mine:\n    @classmethod\n    def fit(cls, reference, k=3): ...",
            "fit of acme:Mine has the parameters (reference, k=3); it must take the reference",
        ),
        (
            "class Mine:\n    @classmethod\n    def fit(cls, reference, **other): ...",
            "fit of acme:Mine has the parameters (reference, **other)",
        ),
        (
            "class Mine:\n    @classmethod\n    def fit(cls, reference, *, k: int): ...",
            "parameter 'k' of fit of acme:Mine has no default",
        ),
        (
            "class Mine:\n    @classmethod\n    def fit(cls, reference, *, k=3): ...",
            "parameter 'k' of fit of acme:Mine has a type that --method does not",
        ),
        (
            "class Mine:\n    @classmethod\n    def fit(cls, reference, *, k: list = ()): ...",
            "parameter 'k' of fit of acme:Mine has a type that --method does not",
        ),
        (
            "class Mine:\n    @classmethod\n    def fit(cls, reference, *, k: 'Nowhere' = 1): ...",
            "the annotations of fit of acme:Mine cannot be resolved: name 'Nowhere' is not defined",
        ),
        (
            "class Mine:\n    @classmethod\n    def fit(cls, reference): ...",
            "acme:Mine has no score; define: def score(self, batch)",
        ),
        (
            "class Mine:\n    @classmethod\n    def fit(cls, reference): ...\n"
            "    def score(self): ...",
            "score of acme:Mine has the parameters (self); it must take self and the batch",
        ),
        (
            "class Mine:\n    @classmethod\n    def fit(cls, reference): ...\n"
            "    def score(self, batch): ...\n    def score_logits(self, a, b): ...",
            "score_logits of acme:Mine has the parameters (self, a, b); it must take self and the "
            "logits",
        ),
    ],
)
def test_what_has_not_the_shape_of_a_method(
    write: Callable[..., None], body: str, told: str
) -> None:
    write(body)
    with pytest.raises(InvalidInputError) as raised:
        parse_method("acme:Mine")
    assert told in str(raised.value)


def test_types_may_be_written_in_every_way(write: Callable[..., None]) -> None:
    write("""
        from __future__ import annotations
        from typing import Literal, Optional, Union

        class Mine:
            @classmethod
            def fit(cls, reference, *, k: Optional[int] = None, p: Union[float, None] = 1,
                    how: Literal["a", "b"] | None = None):
                return cls()

            def score(self, batch): ...
    """)
    spec = parse_method("acme:Mine:k=3,p=0.5,how=b")
    assert spec.parts[0].given == {"k": 3, "p": 0.5, "how": "b"}
    assert refusal("acme:Mine:k=x") == "acme:Mine:k must be a whole number, not 'x'"
    assert refusal("acme:Mine:how=c") == "acme:Mine:how must be a or b, not 'c'"
