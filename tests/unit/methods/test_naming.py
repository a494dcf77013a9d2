"""Methods as they are written on the command line."""

import pytest

from oodcli.errors import InvalidInputError, OodError, UnknownNameError
from oodcli.method_names import ALIASES
from oodcli.methods import METHODS, parse_method, parse_methods
from oodcli.methods._needs import KEPT_HEADS
from oodcli.methods.base import Method
from oodcli.methods.base import parse_method as parse_with


@pytest.mark.parametrize(
    ("written", "canonical"),
    [
        ("energy:temperature=1", "energy"),
        ("energy:temperature=2.0", "energy:temperature=2"),
        ("energy:temperature=0.5", "energy:temperature=0.5"),
        ("featurenorm:block=06", "featurenorm:block=6"),
        ("norm:block=3+energy:temperature=1", "norm:block=3+energy"),
        ("norm + msp", "norm+msp"),
    ],
)
def test_the_canonical_name_leaves_defaults_out(written: str, canonical: str) -> None:
    assert parse_method(written).canonical == canonical


def test_no_name_stands_for_every_method_of_the_ordinary_pass() -> None:
    plain, every = (
        {spec.parts[0].name for spec in parse_methods(texts)} for texts in ([], ["all"])
    )
    needy = {n for n, m in METHODS.items() if m.needs_network or m.on_request}
    texts = {n for n, m in METHODS.items() if m.is_zero_shot}
    assert texts == {"mcm", "glmcm", "neglabel"}
    kept = {n for n, m in METHODS.items() if m.kept_head}
    assert plain == set(METHODS) - needy - texts - kept
    assert every == set(METHODS) - texts - kept
    plain, every = (
        {spec.parts[0].name for spec in parse_methods(names, zero_shot=True, kept=KEPT_HEADS)}
        for names in ([], ["all"])
    )
    assert plain == set(METHODS) - needy
    assert every == set(METHODS)
    assert all(spec.optional for spec in parse_methods([]))


def test_the_selected_norm_of_a_group_meets_every_logit_scorer() -> None:
    scorers = {name for name, method in METHODS.items() if method.is_logit_scorer}
    names = [spec.canonical for spec in parse_methods([])]
    assert {name.split("+")[1] for name in names if name.startswith("norm+")} == scorers


def test_a_method_asked_for_by_name_must_not_be_skipped() -> None:
    optional = {spec.canonical: spec.optional for spec in parse_methods(["all", "energy"])}
    assert not optional["energy"]
    assert optional["msp"]


def test_a_method_asked_for_twice_is_scored_once() -> None:
    specs = parse_methods(["energy", "energy:temperature=1", "msp"])
    assert [spec.canonical for spec in specs] == ["energy", "msp"]


@pytest.mark.parametrize(
    ("written", "error", "message"),
    [
        ("enrgy", UnknownNameError, "no method 'enrgy'; did you mean 'energy'?"),
        ("KNN", UnknownNameError, "no method 'KNN'; did you mean 'knn'?"),
        ("mls", UnknownNameError, "no method 'mls'; did you mean 'maxlogit'?"),
        ("react+mls", UnknownNameError, "no method 'mls'; did you mean 'maxlogit'?"),
        ("Temp_Scaling", UnknownNameError, "no method 'Temp_Scaling'; did you mean 'tempscale'?"),
        (
            "energy:temprature=2",
            UnknownNameError,
            "no parameter of energy 'temprature'; did you mean 'temperature'?",
        ),
        (
            "energy:temperature=hot",
            InvalidInputError,
            "energy:temperature must be a number, not 'hot'",
        ),
        (
            "featurenorm:block=1.5",
            InvalidInputError,
            "featurenorm:block must be a whole number, not '1.5'",
        ),
        (
            "maxlogit:k=3",
            InvalidInputError,
            "method 'maxlogit' has no parameters, so not 'k' either",
        ),
        ("energy:2", InvalidInputError, "'2' in method 'energy:2' is not KEY=VALUE"),
        ("energy:", InvalidInputError, "'' in method 'energy:' is not KEY=VALUE"),
        (
            "energy:temperature=1,temperature=2",
            InvalidInputError,
            "parameter 'temperature' appears twice in method 'energy:temperature=1,temperature=2'",
        ),
        (
            "msp+energy",
            InvalidInputError,
            "'msp' in 'msp+energy' does not compute logits; before the +, use one of: "
            + ", ".join(name for name, method in METHODS.items() if method.is_shaper),
        ),
        (
            "norm+featurenorm",
            InvalidInputError,
            "'featurenorm' in 'norm+featurenorm' does not score logits; after the +, use one of: "
            + ", ".join(
                name
                for name, method in METHODS.items()
                if method.is_logit_scorer or method.follows_shapers
            ),
        ),
        (
            "norm+msp+msp",
            InvalidInputError,
            "method 'norm+msp+msp' has 3 parts; write SHAPER+SCORER",
        ),
        (
            "",
            UnknownNameError,
            f"no method ''; there are: {', '.join(sorted(METHODS))}",
        ),
    ],
)
def test_what_cannot_be_is_refused(written: str, error: type[OodError], message: str) -> None:
    with pytest.raises(error) as raised:
        parse_method(written)
    assert str(raised.value) == message


def test_every_alias_stands_for_a_method_and_is_none() -> None:
    assert set(ALIASES.values()) <= set(METHODS)
    assert not set(ALIASES) & set(METHODS)


class _Toy:
    """A detector with a parameter of every type."""

    @classmethod
    def fit(
        cls, reference: object, *, flag: bool = True, metric: str = "l2", k: int | None = None
    ) -> "_Toy":
        """Learn nothing."""
        return cls()

    def score(self, batch: object) -> object:
        """Score nothing."""
        return batch


TOY = {"toy": Method(_Toy, "Toy", "nobody", ("logits",))}  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("written", "canonical"),
    [
        ("toy:flag=TRUE", "toy"),
        ("toy:flag=false", "toy:flag=false"),
        ("toy:metric=cosine,flag=False", "toy:flag=false,metric=cosine"),
        ("toy:k=7", "toy:k=7"),
    ],
)
def test_parameters_of_every_type(written: str, canonical: str) -> None:
    assert parse_with(written, TOY).canonical == canonical


def test_a_flag_is_true_or_false() -> None:
    with pytest.raises(InvalidInputError, match="toy:flag must be true or false, not 'yes'"):
        parse_with("toy:flag=yes", TOY)
