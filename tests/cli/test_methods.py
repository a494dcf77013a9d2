"""``ood methods``: the list, the page of one method, and its trial."""

import csv
import io
import json
from pathlib import Path

import pytest

from oodcli.methods import METHODS
from oodcli.methods.base import Method
from tests.support.cli import Ood


def test_the_list_names_every_method_with_its_cost(ood: Ood) -> None:
    code, out, err = ood("methods")
    assert (code, err) == (0, "")
    for name in METHODS:
        assert any(line.split()[:1] == [name] for line in out.splitlines())
    lines = out.splitlines()
    (at,) = [index for index, line in enumerate(lines) if line.split()[:1] == ["featurenorm"]]
    assert "2023" in lines[at]
    assert "block=auto" in lines[at]
    assert lines[at].endswith("1 pass; also training")
    assert lines[at + 1].split() == ["images,", "jigsaws"]
    assert max(map(len, lines)) <= 100


def test_the_list_as_json(ood: Ood) -> None:
    content = json.loads(ood("methods", "--format", "json")[1])
    assert content["schema"] == 1
    assert content["refused"] == {}
    found = {each["name"]: each for each in content["methods"]}
    assert list(found) == list(METHODS)
    assert found["energy"] == {
        "name": "energy",
        "title": "Energy",
        "paper": "Liu et al., NeurIPS 2020",
        "year": 2020,
        "kind": "logit scorer",
        "inputs": ["logits"],
        "parameters": [
            {
                "name": "temperature",
                "type": "number",
                "default": 1.0,
                "required": False,
                "grid": list(METHODS["energy"].grid.get("temperature", ())),
                "meaning": "``T`` below; 1 in the paper.",
                "given": 1.0,
            }
        ],
        "passes": 0.0,
        "train_passes": 0.0,
        "cost": "1 pass",
        "package": None,
        "needs": [],
    }
    assert found["rmds++"]["needs"][:2] == [
        "training images of at least 2 classes",
        "training features that differ from image to image",
    ]
    assert found["norm"]["kind"] == "shaper"
    assert found["featurenorm"]["kind"] == "detector"
    assert found["featurenorm"]["parameters"][0]["default"] is None


def test_the_list_as_csv_and_markdown(ood: Ood, tmp_path: Path) -> None:
    rows = list(csv.DictReader(io.StringIO(ood("methods", "--format", "csv")[1])))
    assert [row["method"] for row in rows] == list(METHODS)
    assert rows[0]["inputs"] == "logits"
    target = tmp_path / "methods.md"
    code, out, _ = ood("methods", "--format", "markdown", "--output", target)
    assert (code, out) == (0, "")
    lines = [line for line in target.read_text().splitlines() if line.startswith("| ")]
    assert len(lines) == 1 + len(METHODS)


def test_every_method_has_a_paper_with_a_year_and_documents_itself() -> None:
    """What ``show`` prints comes from the docstrings, so none may be wanting."""
    from oodcli.methods.pages import show_method

    for name, method in METHODS.items():
        (part,) = show_method(name).parts
        assert part.listed.year, name
        assert part.listed.inputs, name
        assert part.summary, name
        assert part.formula, name
        assert part.source, name
        wanting = [each.name for each in part.listed.parameters if not each.meaning]
        assert not wanting, f"{name}: {wanting} are not described under Parameters"
        assert set(method.grid) <= set(method.parameters()), name


def test_the_page_of_a_method(ood: Ood) -> None:
    code, out, err = ood("methods", "show", "msp:temperature=2")
    assert (code, err) == (0, "")
    lines = out.splitlines()
    assert lines[:2] == ["msp: MSP", "Largest class probability, as log-odds."]
    assert "  paper           Hendrycks and Gimpel, ICLR 2017" in lines
    assert "  temperature  T above; 1 in the paper (number; default 1; here 2)" in lines
    assert "  Return the log-odds in float64, or max_c softmax(z / T)_c, (n,)." in lines
    assert "arXiv:1610.02136" in out
    assert "the most confident images" in out[out.index("Caveats") :]
    assert "`" not in out


def test_the_page_of_a_combination_has_both_halves(ood: Ood) -> None:
    out = ood("methods", "show", "norm:block=3+energy:temperature=2")[1]
    lines = out.splitlines()
    assert lines[0].startswith("norm:block=3+energy:temperature=2: 1 pass; also training images")
    assert "norm: selected norm" in lines
    assert "energy: Energy" in lines
    assert "here 3" in out
    assert "here 2" in out


def test_the_page_of_a_shaper_says_what_follows_it(ood: Ood) -> None:
    out = ood("methods", "show", "norm")[1]
    assert out.endswith(
        "Without a scorer, it is combined with energy; with another scorer of logits: norm+NAME\n"
    )
    assert "energy: Energy" not in out


def test_the_page_in_other_formats(ood: Ood) -> None:
    content = json.loads(ood("methods", "show", "norm+energy", "--format", "json")[1])
    assert (content["schema"], content["name"]) == (1, "norm+energy")
    assert [part["name"] for part in content["parts"]] == ["norm", "energy"]
    assert content["parts"][1]["type"] == "oodcli.methods.energy.Energy"
    rows = list(csv.DictReader(io.StringIO(ood("methods", "show", "energy", "--format", "csv")[1])))
    fields = {row["field"]: row["value"] for row in rows}
    assert fields["year"] == "2020"
    assert fields["parameter temperature"].endswith("(number; default 1)")
    page = ood("methods", "show", "energy", "--format", "markdown")[1]
    assert page.startswith("## energy: Energy\n")
    assert "### Source\n" in page


def test_a_method_that_is_not_there(ood: Ood) -> None:
    code, out, err = ood("methods", "show", "enrgy")
    assert (code, out) == (1, "")
    assert err == "error: no method 'enrgy'; did you mean 'energy'?\n"


@pytest.mark.parametrize(
    ("passes", "train_passes", "inputs", "cost"),
    [
        (0, 0, ("logits",), "1 pass"),
        (3, 0, ("logits", "network"), "4 passes"),
        (0.5, 0, ("logits", "network"), "1.5 passes"),
        (0, 0, ("features", "train", "labels"), "1 pass; also training images"),
        (2, 1, ("features", "network"), "3 passes; also training images ×2"),
        (0, 0, ("logits", "calibration"), "1 pass; also calibration images"),
        (0, 0, (), "not declared"),
    ],
)
def test_cost_in_words(
    monkeypatch: pytest.MonkeyPatch,
    passes: float,
    train_passes: float,
    inputs: tuple,
    cost: str,
) -> None:
    import oodcli.methods.pages
    from oodcli.methods.pages import list_methods

    made = Method(METHODS["msp"].type, "Made", "nobody 2030", inputs, {}, passes, train_passes)
    monkeypatch.setattr(oodcli.methods.pages, "METHODS", {"made": made})
    assert [each.cost for each in list_methods().methods] == [cost]


def test_a_trial_says_what_is_kept_and_fails_where_it_is_not(
    ood: Ood, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    code, out, _ = ood("methods", "check", "energy", "--format", "json")
    content = json.loads(out)
    assert code == 0
    assert (content["name"], content["sound"]) == ("energy", True)
    assert all(each["broken"] is None for each in content["checks"])
    (tmp_path / "upside_down.py").write_text(
        "class Upside:\n"
        "    @classmethod\n"
        "    def fit(cls, reference):\n"
        "        return cls()\n"
        "    def score(self, batch):\n"
        "        return -batch.logits.amax(dim=1)\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    code, out, _ = ood("methods", "check", "upside_down:Upside")
    assert code == 1
    (line,) = [line for line in out.splitlines() if " NO " in line]
    assert line.split("NO")[1].strip() == (
        "AUROC 0.000 on images that every method separates; larger must mean in-distribution"
    )


def test_an_entry_point_that_fails_is_named_in_the_list(
    ood: Ood, monkeypatch: pytest.MonkeyPatch
) -> None:
    from importlib.metadata import EntryPoint

    point = EntryPoint("sad", "no_such_module_of_acme:Sad", "ood.methods")
    monkeypatch.setattr("oodcli.methods.third_party.entry_points", lambda group: [point])
    code, out, _ = ood("methods")
    assert code == 0
    assert "note: without sad: method 'sad' of package of unknown name cannot be loaded" in out
    assert "energy" in out
