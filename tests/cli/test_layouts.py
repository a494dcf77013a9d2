"""Which columns and rows the table of a report has, and what stands out in it."""

import csv
import io
import json
from dataclasses import replace

import pytest

from oodcli.cli.options import Format, Layout, Per
from oodcli.cli.render.report import render_report
from oodcli.cli.render.report_table import TableLayout
from oodcli.errors import InvalidInputError, UnknownNameError
from oodcli.metrics import Detection
from oodcli.reporting.results import (
    Report,
    ResultRow,
    RunSummary,
    SplitUsed,
    over_runs,
    with_averages,
)


def row(
    method: str,
    dataset: str,
    group: str,
    fpr: float,
    auroc: float,
    *,
    run: str = "r",
    convention: str = "neutral",
) -> ResultRow:
    """Make a row."""
    return ResultRow(
        detection=Detection(fpr, auroc, 0.75, 0.5, n_id=1000, n_ood=2500),
        run=run,
        method=method,
        params={},
        dataset=dataset,
        group=group,
        id_accuracy=0.9506,
        convention=convention,
        extras={"fpr90": fpr / 2, "threshold_95": 12.3456},
    )


VALUES = {
    ("svhn", "msp"): (0.30, 0.93),
    ("svhn", "energy"): (0.20, 0.95),
    ("svhn", "featurenorm"): (0.10, 0.97),
    ("isun", "msp"): (0.30, 0.90),
    ("isun", "energy"): (0.30, 0.92),
    ("isun", "featurenorm"): (0.50, 0.80),
}


def rows(run: str = "r", shift: float = 0.0, convention: str = "neutral") -> list[ResultRow]:
    """Make the rows of three methods on two sets."""
    return with_averages(
        [
            row(method, dataset, "ood", fpr + shift, auroc, run=run, convention=convention)
            for (dataset, method), (fpr, auroc) in VALUES.items()
        ]
    )


def report(table: list[ResultRow], *names: str, convention: str = "neutral") -> Report:
    """Wrap rows into a report."""
    runs = [RunSummary(n, "resnet18", "cifar10", 1000, 0.9506, 0) for n in names or ("r",)]
    return Report(convention, "what it means", None, runs, table)


def spectrum() -> Report:
    """Make a report with near, far and full-spectrum rows."""
    table = with_averages(
        [
            row(method, dataset, group, fpr, auroc)
            for method in ("msp", "energy")
            for dataset, group, fpr, auroc in (
                ("tiny-imagenet", "near", 0.5, 0.8),
                ("mnist-lossless", "far", 0.25, 0.9),
                ("tiny-imagenet", "fs-near", 0.75, 0.6),
                ("mnist-lossless", "fs-far", 0.5, 0.7),
            )
        ]
    )
    return report(table)


def cells(shown: str) -> list[list[str]]:
    """Read the cells of a table in Markdown."""
    lines = [line for line in shown.splitlines() if line.startswith("|")]
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]


def markdown(what: Report, layout: TableLayout, *others: Report) -> list[list[str]]:
    """Return the cells of a report in Markdown, the heading first, without the rule."""
    shown = cells(render_report(what, Format.MARKDOWN, to_file=True, layout=layout, others=others))
    return [shown[0], *shown[2:]]


def test_the_best_is_bold_and_the_second_best_underlined() -> None:
    table = markdown(report(rows()), TableLayout(columns=("fpr95", "auroc")))
    assert table[1:4] == [
        ["svhn", "msp", "30.00", "93.00"],
        ["svhn", "energy", "<ins>20.00</ins>", "<ins>95.00</ins>"],
        ["svhn", "featurenorm", "**10.00**", "**97.00**"],
    ]


def test_equal_in_every_printed_digit_is_equally_good() -> None:
    table = markdown(report(rows()), TableLayout(columns=("fpr95",)))
    assert [line[2] for line in table[4:7]] == ["**30.00**", "**30.00**", "<ins>50.00</ins>"]
    nearly = [row("a", "s", "ood", 0.30004, 0.9), row("b", "s", "ood", 0.30001, 0.9)]
    assert [line[2] for line in markdown(report(nearly), TableLayout(columns=("fpr95",)))[1:]] == [
        "**30.00**",
        "**30.00**",
    ]
    assert [
        line[2] for line in markdown(report(nearly), TableLayout(columns=("fpr95",), digits=3))[1:]
    ] == [
        "30.004",
        "**30.001**",
    ]


def test_one_method_alone_is_not_the_best() -> None:
    table = markdown(report([row("a", "s", "ood", 0.3, 0.9)]), TableLayout())
    assert "**" not in str(table)


def test_columns_come_in_the_order_asked_for() -> None:
    table = markdown(
        report(rows()), TableLayout(columns=("auroc", "method", "threshold_95", "fpr90"), digits=1)
    )
    assert table[0] == ["OOD set", "AUROC ↑", "Method", "Threshold", "FPR90 ↓"]
    assert table[1] == ["svhn", "93.0", "msp", "12.346", "15.0"]


def test_parameters_are_a_column_on_request() -> None:
    fitted = [replace(row, params={"k": 20, "temperature": 2.283456}) for row in rows()]
    table = markdown(report(fitted), TableLayout(columns=("method", "params", "auroc")))
    assert table[0] == ["OOD set", "Method", "Parameters", "AUROC ↑"]
    assert table[1][:3] == ["svhn", "msp", "k=20, temperature=2.283"]
    wide = markdown(report(fitted), TableLayout(columns=("params", "auroc"), transpose=True))
    assert wide[0][0] == "Method"


def test_an_unknown_column_is_refused() -> None:
    with pytest.raises(UnknownNameError, match="no column 'aurocs'; did you mean 'auroc'"):
        markdown(report(rows()), TableLayout(columns=("aurocs",)))


def test_digits_out_of_range_are_refused() -> None:
    with pytest.raises(InvalidInputError, match="digits must be from 0 to 10, not -1"):
        markdown(report(rows()), TableLayout(digits=-1))


def test_per_group_shows_averages_alone_and_per_set_none() -> None:
    groups = markdown(report(rows()), TableLayout(per=Per.GROUP))
    assert {line[0] for line in groups[1:]} == {"average"}
    sets = markdown(report(rows()), TableLayout(per=Per.SET))
    assert {line[0] for line in sets[1:]} == {"svhn", "isun"}


def test_nothing_left_to_show_is_refused() -> None:
    single = [row("a", "s", "ood", 0.3, 0.9)]
    with pytest.raises(InvalidInputError, match="no rows for --per group; use --per both"):
        markdown(report(single), TableLayout(per=Per.GROUP))


def test_methods_are_sorted_within_their_set_and_over_all_sets() -> None:
    table = markdown(report(rows()), TableLayout(sort="auroc"))
    assert [line[1] for line in table[1:4]] == ["featurenorm", "energy", "msp"]
    assert [line[1] for line in table[4:7]] == ["energy", "msp", "featurenorm"]
    wide = markdown(report(rows()), TableLayout(sort="auroc", transpose=True))
    assert [line[0] for line in wide[1:]] == ["energy", "msp", "featurenorm"]
    with pytest.raises(UnknownNameError, match="no metric to sort by 'images'"):
        markdown(report(rows()), TableLayout(sort="images"))


def test_transposed_has_a_row_per_method_and_a_pair_per_set() -> None:
    table = markdown(report(rows()), TableLayout(transpose=True))
    assert table[0] == [
        "Method", "svhn FPR95 ↓", "svhn AUROC ↑", "isun FPR95 ↓", "isun AUROC ↑",
        "average FPR95 ↓", "average AUROC ↑",
    ]  # fmt: skip
    assert table[2] == [
        "energy", "<ins>20.00</ins>", "<ins>95.00</ins>", "**30.00**", "**92.00**",
        "**25.00**", "**93.50**",
    ]  # fmt: skip


def test_conventions_stand_side_by_side() -> None:
    other = report(rows(shift=0.05, convention="openood"), convention="openood")
    table = markdown(report(rows()), TableLayout(columns=("fpr95", "images")), other)
    assert table[0] == ["OOD set", "Method", "neutral FPR95 ↓", "openood FPR95 ↓", "Images"]
    assert table[1][2:] == ["30.00", "35.00", "2,500"]
    wide = markdown(report(rows()), TableLayout(columns=("fpr95",), transpose=True), other)
    assert wide[0][1:3] == ["svhn, neutral FPR95 ↓", "svhn, openood FPR95 ↓"]
    content = json.loads(render_report(report(rows()), Format.JSON, to_file=True, others=[other]))
    assert [each["name"] for each in content["conventions"]] == ["neutral", "openood"]
    assert [row["convention"] for row in content["rows"]].count("openood") == len(rows())


def test_seeds_have_their_spread_in_both_shapes() -> None:
    merged = report(over_runs([rows("a"), rows("b", shift=0.02)]), "a", "b")
    assert markdown(merged, TableLayout())[1][2] == "31.00 ± 1.00"
    assert markdown(merged, TableLayout(transpose=True))[1][1] == "31.00 ± 1.00"


def test_the_layout_of_featurenorm() -> None:
    table = markdown(report(rows()), TableLayout(paper=Layout.FEATURENORM))
    assert table[0] == [
        "Network", "Method", "SVHN FPR95 ↓", "SVHN AUROC ↑", "iSUN FPR95 ↓", "iSUN AUROC ↑",
        "Average FPR95 ↓", "Average AUROC ↑",
    ]  # fmt: skip
    assert [line[:2] for line in table[1:]] == [
        ["resnet18", "MSP"], ["resnet18", "Energy"], ["resnet18", "FeatureNorm"],
    ]  # fmt: skip


def test_runs_of_one_architecture_are_distinguished_by_their_names() -> None:
    both = report([*rows("a"), *rows("b")], "a", "b")
    table = markdown(both, TableLayout(paper=Layout.FEATURENORM))
    assert table[0][:3] == ["Network", "Run", "Method"]
    assert [line[1] for line in table[1:]] == ["a", "a", "a", "b", "b", "b"]


def test_the_layout_of_mode_has_its_order_of_sets() -> None:
    table = [
        row("msp", name, "ood", 0.3, 0.9)
        for name in ("textures", "isun", "lsun-crop", "places365-test-sample", "svhn-10000")
    ]
    shown = markdown(report(with_averages(table)), TableLayout(paper=Layout.MODE))
    assert [heading.rsplit(" ", 2)[0] for heading in shown[0][1::2]] == [
        "SVHN", "Places365", "LSUN", "iSUN", "Texture", "Average",
    ]  # fmt: skip


def test_papers_name_a_shaper_that_energy_follows_by_itself() -> None:
    names = ("react+energy", "scale", "csd", "react+gen")
    table = [row(name, "isun", "ood", 0.3, 0.9) for name in names]
    shown = markdown(report(with_averages(table)), TableLayout(paper=Layout.MODE))
    assert [line[0] for line in shown[1:]] == ["ReAct", "SCALE", "MODE", "react+gen"]


def test_the_layout_of_openood_has_full_spectrum_columns_and_the_accuracy() -> None:
    table = markdown(spectrum(), TableLayout(paper=Layout.OPENOOD))
    assert table[0] == [
        "Method", "Near-OOD AUROC ↑", "Far-OOD AUROC ↑", "Near-OOD (full spectrum) AUROC ↑",
        "Far-OOD (full spectrum) AUROC ↑", "ID acc. ↑",
    ]  # fmt: skip
    assert [line[0] for line in table[1:]] == ["MSP", "EBO"]
    assert table[1][-1] == "95.06"
    pairs = markdown(
        spectrum(), TableLayout(paper=Layout.OPENOOD, columns=("fpr95", "auroc"), per=Per.BOTH)
    )
    assert pairs[0][1:5] == [
        "TIN FPR95 ↓", "TIN AUROC ↑", "Near-OOD FPR95 ↓", "Near-OOD AUROC ↑",
    ]  # fmt: skip


def test_a_wide_table_loses_single_sets_before_averages(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "52")
    shown = render_report(
        report(rows()), Format.TABLE, to_file=True, layout=TableLayout(transpose=True)
    )
    lines = [line for line in shown.splitlines() if line.startswith(" ")]
    assert max(map(len, lines)) <= 52
    assert lines[0].split() == ["svhn", "svhn", "average", "average"]
    assert "note: hidden, since the terminal is too narrow: isun" in shown
    monkeypatch.setenv("COLUMNS", "24")
    shown = render_report(
        report(rows()), Format.TABLE, to_file=True, layout=TableLayout(transpose=True)
    )
    assert " featurenorm    88.50" in shown
    assert "note: hidden, since the terminal is too narrow: isun, svhn, average FPR95" in shown


def test_bars_are_drawn_where_there_is_room(monkeypatch: pytest.MonkeyPatch) -> None:
    layout = TableLayout(columns=("auroc",))
    monkeypatch.setenv("COLUMNS", "60")
    shown = render_report(report(rows()), Format.TABLE, to_file=True, layout=layout)
    assert f" svhn     featurenorm    97.00  {'▇' * 19}\n" in shown
    assert f" isun     featurenorm    80.00  {'▇' * 16}\n" in shown
    monkeypatch.setenv("COLUMNS", "39")
    assert "▇" not in render_report(report(rows()), Format.TABLE, to_file=True, layout=layout)
    assert "▇" not in render_report(report(rows()), Format.MARKDOWN, to_file=True, layout=layout)


def test_names_give_way_on_a_terminal_and_numbers_do_not(monkeypatch: pytest.MonkeyPatch) -> None:
    table = [row("a-method-with-quite-a-long-name", "a-set-with-a-long-name", "ood", 0.3, 0.9)]
    monkeypatch.setenv("COLUMNS", "50")
    monkeypatch.setattr("sys.stdout.isatty", lambda: True)
    shown = render_report(report(table), Format.TABLE, to_file=False)
    lines = [line for line in shown.splitlines() if "a-" in line]
    assert all(len(line) <= 50 for line in lines)
    assert "a-metho…" in lines[0]
    assert lines[0].endswith("30.00    90.00")
    whole = render_report(report(table), Format.TABLE, to_file=True)
    assert "a-method-with-quite-a-long-name" in whole


def test_bold_and_underlined_reach_a_terminal_and_no_pipe(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("NO_COLOR")
    monkeypatch.setenv("TERM", "xterm")
    assert "\x1b" not in render_report(report(rows()), Format.TABLE, to_file=False)
    monkeypatch.setattr("sys.stdout.isatty", lambda: True)
    shown = render_report(report(rows()), Format.TABLE, to_file=False)
    assert "  \x1b[1m10.00\x1b[0m  " in shown
    assert "  \x1b[4m20.00\x1b[0m  " in shown


def test_the_header_says_what_it_is_of() -> None:
    runs = [RunSummary("r", "resnet18", "cifar10", 1000, 0.9506, 0, {"torch": "2.6"})]
    splits = {"tin": SplitUsed("cifar10/test_tin", "0123456789abcdef")}
    what = Report("neutral", "what it means", "bench", runs, rows(), splits=splits)
    shown = render_report(what, Format.MARKDOWN, to_file=True)
    assert "resnet18, ID cifar10 (1,000 test images, accuracy 95.06 %)" in shown
    assert "lists (sha256): tin 01234567" in shown
    assert "benchmark bench, convention neutral: what it means; in percent" in shown
    assert "run created by torch 2.6" in shown


def test_csv_has_a_line_per_run_method_and_set_whatever_the_layout() -> None:
    layout = TableLayout(columns=("auroc",), transpose=True, per=Per.GROUP)
    text = render_report(report(rows()), Format.CSV, to_file=True, layout=layout)
    lines = list(csv.DictReader(io.StringIO(text)))
    assert len(lines) == len(rows())
    assert lines[0]["fpr90"] == "0.15"
    assert lines[0]["threshold_95"] == "12.3456"
