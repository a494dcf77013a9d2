"""``ood report`` from the command line: formats, layouts, published values."""

import csv
import io
import json
import re
import subprocess
import sys
from collections.abc import Callable
from html import unescape
from pathlib import Path

import numpy as np
import pytest

Ood = Callable[..., tuple[int, str, str]]
SETS = ("svhn", "textures", "lsun-crop", "lsun-resize", "isun", "places365-sample")
METRICS = ("fpr95", "auroc", "aupr_in", "aupr_out")


@pytest.fixture
def scores(tmp_path: Path) -> Path:
    """Write the scores of three methods on the sets of FeatureNorm's benchmark."""
    rng = np.random.default_rng(0)
    arrays = {}
    for strength, method in enumerate(("msp", "energy", "featurenorm"), start=1):
        arrays[f"{method}/cifar10"] = rng.normal(0, 1, 200)
        for index, name in enumerate(SETS):
            arrays[f"{method}/{name}"] = rng.normal(-strength - index / 10, 1, 150)
    path = tmp_path / "scores.npz"
    np.savez(path, **arrays)
    return path


def published_cells(shared: Path) -> dict[str, list[str]]:
    """Read the table that was printed of the shared scores: mean and spread by set."""
    manifest = (shared / "data" / "MANIFEST.md").read_text()
    table = manifest.split("`openood_scale_scores_cifar10.npz` (mean", 1)[1]
    lines = [line for line in table.splitlines() if line.startswith("| ") and "±" in line]
    cells = {}
    for line in lines[:8]:
        name, *values = (cell.strip() for cell in line.strip("|").split("|"))
        cells[{"near": "near average", "far": "far average"}.get(name, name)] = values
    return cells


def seen_in(how: str, text: str) -> dict[str, list[str]]:
    """Read set and values out of a table in one of the formats."""
    if how == "markdown":
        lines = [line.strip("|").split("|") for line in text.splitlines() if line.startswith("| ")]
    elif how == "latex":
        rows = text.replace(r"$\pm$", "±").splitlines()
        lines = [line.removesuffix(r" \\").split("&") for line in rows if line.count("&") > 3]
    else:
        rows = re.findall(r"<tr[^>]*>(.*?)</tr>", text)
        lines = [
            [re.sub(r'<span class="below">.*?</span>|<[^>]+>', "", cell) for cell in
             re.findall(r"<t[hd][^>]*>(.*?)</t[hd]>", row)]
            for row in rows
        ]  # fmt: skip
    found: dict[str, list[str]] = {}
    for line in lines:
        cells = [unescape(cell).strip() for cell in line]
        if any("±" in cell for cell in cells):
            found[cells[0]] = [cell.replace(" ", "") for cell in cells if "±" in cell]
    return found


@pytest.mark.parametrize("how", ["markdown", "latex", "html"])
def test_the_published_table_comes_back_in_every_cell(how: str, shared: Path, ood: Ood) -> None:
    file = shared / "data" / "openood_scale_scores_cifar10.npz"
    code, out, err = ood(
        "report", "--scores", f"scale={file}", "--id", "cifar10", "--format", how, "--no-pictures"
    )
    assert (code, err) == (0, "")
    wanted = published_cells(shared)
    assert len(wanted) == 8
    seen = seen_in(how, out)
    assert {name: seen[name] for name in wanted} == wanted


def test_published_values_are_the_same_and_within(shared: Path, ood: Ood) -> None:
    file = shared / "data" / "openood_scale_scores_cifar10.npz"
    arguments = ("report", "--scores", f"scale={file}", "--id", "cifar10", "--published")
    _, out, _ = ood(*arguments, "--format", "json")
    compared = json.loads(out)["published"]
    assert len(compared) == 8 * 2
    assert all(each["comparable"] for each in compared)
    assert max(abs(each["difference"]) for each in compared) < 0.00005 + 1e-9
    assert [each["within"] for each in compared if each["tolerance"]] == [True, True]
    _, out, _ = ood(*arguments, "--convention", "neutral")
    assert re.search(r"cifar100 +scale +FPR95 +54\.\d\d +81\.78 ± 3\.98 +not comparable \(1\)", out)
    assert "note: (1) convention: ours is neutral, theirs openood" in out


def test_published_in_csv_stands_beside_ours(scores: Path, ood: Ood) -> None:
    _, out, _ = ood(
        "report", "--scores", scores, "--id", "cifar10", "--published", "--format", "csv"
    )
    first = next(csv.DictReader(io.StringIO(out)))
    assert first["fpr95_published"] == "0.5212"
    assert float(first["fpr95_difference"]) == pytest.approx(float(first["fpr95"]) - 0.5212)
    assert "images: 200 in distribution here, 10,000 there" in first["fpr95_not_comparable"]


def test_each_convention_is_compared_by_itself(shared: Path, ood: Ood) -> None:
    file = shared / "data" / "openood_scale_scores_cifar10.npz"
    _, out, _ = ood(
        "report", "--scores", f"scale={file}", "--id", "cifar10", "--published", "--format", "csv",
        "--convention", "openood", "--convention", "knn", "--columns", "fpr95,aupr_in",
    )  # fmt: skip
    rows = [row for row in csv.DictReader(io.StringIO(out)) if row["dataset"] == "cifar100"]
    assert [row["convention"] for row in rows] == ["openood", "knn"]
    assert "auroc_published" not in rows[0]
    assert abs(float(rows[0]["aupr_in_difference"])) < 0.00006
    assert rows[0]["fpr95_not_comparable"] == ""
    assert rows[1]["fpr95_not_comparable"] == "convention: ours is knn, theirs openood"


def test_nothing_published_is_said(tmp_path: Path, ood: Ood) -> None:
    path = tmp_path / "own.npz"
    np.savez(path, **{"mine/photos": np.arange(9.0), "mine/fog": np.arange(9.0) - 5})
    _, out, _ = ood("report", "--scores", path, "--id", "photos", "--published")
    assert "note: no published values are known for these methods and sets" in out


@pytest.mark.parametrize("how", ["table", "markdown", "latex", "html"])
def test_every_format_takes_every_layout(how: str, scores: Path, ood: Ood) -> None:
    for options in (
        ("--layout", "featurenorm"),
        ("--layout", "openood", "--per", "both"),
        ("--transpose", "--columns", "auroc,accuracy"),
        ("--convention", "openood", "--convention", "featurenorm", "--digits", "1"),
    ):
        code, out, err = ood(
            "report", "--scores", scores, "--id", "cifar10", "--format", how, "--no-pictures",
            *options,
        )  # fmt: skip
        assert (code, err) == (0, ""), options
        assert "energy" in out.lower() or "EBO" in out


def test_methods_and_sets_can_be_chosen_and_ordered(scores: Path, ood: Ood) -> None:
    _, out, _ = ood(
        "report", "--scores", scores, "--id", "cifar10", "--format", "csv",
        "--method", "energy", "--method", "msp", "--set", "isun",
    )  # fmt: skip
    rows = list(csv.DictReader(io.StringIO(out)))
    assert {row["dataset"] for row in rows} == {"isun", "average"}
    assert {row["method"] for row in rows} == {"energy", "msp"}


def test_one_method_is_compared_with_all_others(scores: Path, ood: Ood) -> None:
    _, out, _ = ood(
        "report", "--scores", scores, "--id", "cifar10", "--compare", "featurenorm", "all"
    )
    lines = [line for line in out.splitlines() if line.endswith("separates better")]
    assert len(lines) > 6
    assert "p after Holm's correction for 12 comparisons" in out
    assert "mean rank among 3 methods over 6 OOD sets; 1 is best" in out
    _, out, _ = ood(
        "report", "--scores", scores, "--id", "cifar10", "--compare", "all", "all",
        "--format", "json",
    )  # fmt: skip
    assert len(json.loads(out)["comparisons"]) == 3 * 6


def test_intervals_stand_beside_their_values(scores: Path, ood: Ood) -> None:
    _, out, _ = ood(
        "report", "--scores", scores, "--id", "cifar10", "--ci", "--columns", "auroc",
        "--format", "markdown",
    )  # fmt: skip
    cell = re.search(r"\| svhn \| msp \| (\d\d\.\d\d) \[(\d\d\.\d\d), (\d\d\.\d\d)\] \|", out)
    assert cell
    value, low, high = map(float, cell.groups())
    assert low < value < high


def test_plots_go_into_a_folder_and_into_the_page(scores: Path, ood: Ood, tmp_path: Path) -> None:
    _, out, err = ood(
        "report", "--scores", scores, "--id", "cifar10", "--method", "msp", "--format", "html",
        "--plots", tmp_path / "plots", "--plot-format", "svg", "--plot-format", "png",
    )  # fmt: skip
    written = sorted((tmp_path / "plots").iterdir())
    assert {path.suffix for path in written} == {".svg", ".png"}
    assert err.count("wrote ") == len(written)
    assert out.count(' src="data:image/svg+xml;base64,') == len(written) / 2


def test_pictures_of_a_page_have_a_limit(monkeypatch: pytest.MonkeyPatch, capsys) -> None:
    import numpy as np

    from oodcli.cli import report
    from oodcli.reporting.plots import block_auroc, encoded
    from oodcli.reporting.sheets import Thumbnail, picture_sheet

    noise = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    sheet = picture_sheet("msp", {"svhn": [Thumbnail(noise, "0.5")] * 6})
    lines = [block_auroc(f"run {at}", {"svhn": [0.5, 0.9]}) for at in range(2)]
    svg, large = len(encoded(lines[0], "svg")), len(encoded(sheet, "webp"))
    assert len(encoded(sheet, "svg")) > large > svg
    monkeypatch.setattr(report, "_PICTURE_BYTES", svg)
    found = report._embedded_pictures([sheet, *lines], svg + 100)
    assert [(each.title, each.kind) for each in found] == [(lines[0].title, "svg")]
    assert "no room in the page for the pictures images-msp, blocks; write them" in (
        capsys.readouterr().err
    )
    monkeypatch.setattr(report, "_PICTURE_BYTES", len(encoded(lines[0], "png")))
    assert [each.kind for each in report._embedded_pictures(lines[:1], svg)] == ["png"]
    monkeypatch.setattr(report, "_PICTURE_BYTES", large)
    assert [each.kind for each in report._embedded_pictures([sheet], large)] == ["webp"]


def test_a_page_is_one_file(scores: Path, ood: Ood, tmp_path: Path) -> None:
    page = tmp_path / "page.html"
    code, out, _ = ood(
        "report", "--scores", scores, "--id", "cifar10", "--format", "html", "--output", page,
        "--no-pictures",
    )  # fmt: skip
    assert (code, out) == (0, "")
    assert {path.name for path in tmp_path.iterdir()} == {"page.html", "scores.npz"}
    assert page.read_text().startswith("<!DOCTYPE html>")


def test_scores_that_are_larger_for_ood_images_are_turned_on_request(
    scores: Path, ood: Ood, tmp_path: Path
) -> None:
    with np.load(scores) as arrays:
        opposite = {name: -values for name, values in arrays.items()}
    # Unsigned numbers have no negative: 255 stands for the most OOD.
    opposite["bytes/cifar10"] = np.arange(200, dtype=np.uint8)
    opposite |= {f"bytes/{name}": np.arange(50, 200, dtype=np.uint8) for name in SETS}
    np.savez(tmp_path / "opposite.npz", **opposite)
    given = ("report", "--scores", tmp_path / "opposite.npz", "--id", "cifar10")
    code, out, _ = ood(*given, "--format", "json")
    assert code == 0
    assert (
        "every AUROC of msp, energy, featurenorm, bytes is below 50; if larger scores in the file "
        "are of OOD images: --higher-is-ood" in json.loads(out)["notes"]
    )
    code, out, _ = ood(*given, "--higher-is-ood", "--format", "json")
    turned = json.loads(out)
    assert not any("below 50" in note for note in turned["notes"])
    assert (
        "larger scores in the files are of OOD images: their signs were changed" in turned["notes"]
    )
    code, out, _ = ood("report", "--scores", scores, "--id", "cifar10", "--format", "json")
    plain = json.loads(out)
    assert not any("below 50" in note or "signs" in note for note in plain["notes"])
    found, expected = (
        {(row["method"], row["dataset"]): row["auroc"] for row in table["rows"]}
        for table in (turned, plain)
    )
    # P(ID < OOD) of 0…199 and 50…199, ties counted half.
    assert found["bytes", SETS[0]] == pytest.approx((50 + 150 / 2) / 200)
    assert {key: value for key, value in found.items() if key[0] != "bytes"} == expected


def test_what_does_not_go_together_is_refused(scores: Path, ood: Ood) -> None:
    code, out, err = ood("report", "--scores", scores, "--run", "r")
    assert (code, out) == (1, "")
    assert err == ("error: --scores replaces --run and --limit; give one or the other\n")
    code, _, err = ood("report", "--id", "cifar10")
    assert (code, err) == (1, "error: --id is the ID set of --scores; a run records its own\n")
    code, _, err = ood("report", "--higher-is-ood")
    assert (code, err) == (
        1, "error: --higher-is-ood is for --scores; in a run larger scores are ID\n",
    )  # fmt: skip
    code, _, err = ood("report", "--scores", scores, "--id", "cifar10", "--columns", "aurocs")
    assert (code, err) == (1, "error: no column 'aurocs'; did you mean 'auroc'?\n")


@pytest.mark.parametrize("how", ["table", "markdown", "latex", "csv", "json", "html"])
def test_a_report_starts_without_what_is_slow(how: str, scores: Path) -> None:
    slow = ("torch", "torchvision", "sklearn", "scipy", "matplotlib")
    code = (
        "import sys\n"
        "from oodcli.cli.app import main\n"
        "try:\n"
        f"    main(['report', '--scores', {str(scores)!r}, '--id', 'cifar10', '--published',\n"
        f"        '--no-pictures', '--format', {how!r}])\n"
        "except SystemExit as end:\n"
        "    assert not end.code\n"
        f"print('LOADED', *[m for m in {slow!r} if m in sys.modules])\n"
    )
    done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    assert done.stdout.rsplit("LOADED", 1)[1].split() == []


def test_other_commands_write_pages_and_latex(tiny: Path, ood: Ood) -> None:
    for command in (("normratio", "--run", "tiny"), ("runs", "list"), ("datasets", "list")):
        _, page, _ = ood(*command, "--format", "html")
        assert page.startswith("<!DOCTYPE html>")
        assert page.endswith("</html>\n")
        _, source, _ = ood(*command, "--format", "latex")
        assert source.startswith("% needs \\usepackage{booktabs}\n")
