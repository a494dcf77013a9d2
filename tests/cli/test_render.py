"""What is printed, letter by letter."""

import csv
import json
import re
from dataclasses import replace

import pytest

from oodcli.cli.console import write_result
from oodcli.cli.options import Format
from oodcli.cli.render.formats import human_bytes
from oodcli.cli.render.normratio import render_normratio
from oodcli.cli.render.report import render_report
from oodcli.metrics import Detection
from oodcli.reporting.results import Report, ResultRow, RunSummary, over_runs, with_averages
from oodcli.scoring.block_ratios import Block, NormRatioResult
from oodcli.version import __version__


def row(
    method: str, dataset: str, group: str, fpr: float, auroc: float, *, run: str = "r"
) -> ResultRow:
    """Make a row."""
    return ResultRow(
        detection=Detection(fpr, auroc, 0.75, 0.5, n_id=1000, n_ood=2500),
        run=run,
        method=method,
        params={"block": 6} if method == "featurenorm" else {"temperature": 1.0},
        dataset=dataset,
        group=group,
        id_accuracy=0.95061,
        convention="neutral",
    )


def rows(run: str = "r", shift: float = 0.0) -> list[ResultRow]:
    """Make the rows of two methods on a near and a far set."""
    return with_averages(
        [
            row("msp", "tin", "near", 0.5 + shift, 0.8, run=run),
            row("msp", "svhn", "far", 0.25 + shift, 0.9, run=run),
            row("featurenorm", "tin", "near", 0.6 + shift, 0.7, run=run),
            row("featurenorm", "svhn", "far", 0.125 + shift, 0.95, run=run),
        ]
    )


def report(table: list[ResultRow], *names: str, notes: tuple[str, ...] = ()) -> Report:
    """Wrap rows into a report."""
    runs = [RunSummary(n, "resnet18", "cifar10", 1000, 0.95061, 0) for n in names or ("r",)]
    return Report("neutral", "what it means", "bench", runs, table, notes)


TABLE = """\
r: resnet18, ID cifar10 (1,000 test images, accuracy 95.06 %)
benchmark bench, convention neutral: what it means; in percent
tabulated by ood {version}

 OOD set       Group  Method                 FPR95 ↓  AUROC ↑  AUPR-in ↑  AUPR-out ↑  Images
 ───────────────────────────────────────────────────────────────────────────────────────────
 tin           near   msp                      50.00    80.00      75.00       50.00   2,500
 tin           near   featurenorm (block 6)    60.00    70.00      75.00       50.00   2,500

 near average         msp                      50.00    80.00      75.00       50.00   2,500
 near average         featurenorm (block 6)    60.00    70.00      75.00       50.00   2,500

 svhn          far    msp                      25.00    90.00      75.00       50.00   2,500
 svhn          far    featurenorm (block 6)    12.50    95.00      75.00       50.00   2,500

 far average          msp                      25.00    90.00      75.00       50.00   2,500
 far average          featurenorm (block 6)    12.50    95.00      75.00       50.00   2,500

 average              msp                      37.50    85.00      75.00       50.00   5,000
 average              featurenorm (block 6)    36.25    82.50      75.00       50.00   5,000

note: a note
""".replace("{version}", __version__)

MARKDOWN = """\
r: resnet18, ID cifar10 (1,000 test images, accuracy 95.06 %)  
benchmark bench, convention neutral: what it means; in percent  
tabulated by ood {version}

| OOD set | Group | Method | FPR95 ↓ | AUROC ↑ | AUPR-in ↑ | AUPR-out ↑ | Images |
|---|---|---|---:|---:|---:|---:|---:|
| tin | near | msp | **50.00** | **80.00** | **75.00** | **50.00** | 2,500 |
| tin | near | featurenorm (block 6) | 60.00 | 70.00 | **75.00** | **50.00** | 2,500 |
""".replace("{version}", __version__)  # noqa: W291 - two blanks end a line in Markdown


def test_the_table_on_100_columns() -> None:
    shown = render_report(report(rows(), notes=("a note",)), Format.TABLE, to_file=False)
    assert shown == TABLE


def test_the_markdown_has_the_best_of_each_set_in_bold() -> None:
    shown = render_report(report(rows()), Format.MARKDOWN, to_file=False)
    assert shown.startswith(MARKDOWN)
    assert "| average |  | featurenorm (block 6) | **36.25** | 82.50 |" in shown


def test_a_narrow_window_loses_columns_and_never_digits(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "70")
    shown = render_report(report(rows()), Format.TABLE, to_file=False)
    assert max(len(line) for line in shown.splitlines() if line.startswith(" ")) <= 70
    assert "AUPR-out ↑" not in shown
    assert shown.endswith(
        "note: hidden, since the terminal is too narrow: Images, AUPR-out, AUPR-in\n"
    )
    assert "featurenorm (block 6)    12.50    95.00" in shown
    assert "…" not in shown


def test_several_runs_are_averaged_with_their_spread() -> None:
    merged = over_runs([rows("a"), rows("b", shift=0.02)])
    shown = render_report(report(merged, "a", "b"), Format.TABLE, to_file=False)
    assert "mean ± population standard deviation of 2 runs, accuracy 95.06 ± 0.00 %" in shown
    assert "51.00 ± 1.00" in shown


def test_the_mean_accuracy_of_several_runs_is_that_of_their_test_images() -> None:
    """Full-spectrum rows come last, and have the accuracy on other images."""

    def of_run(run: str, plain: float, full: float) -> list[ResultRow]:
        own = [
            replace(each, id_accuracy=full if each.group == "fs-near" else plain)
            for each in (
                row("msp", "tin", "near", 0.5, 0.8, run=run),
                row("msp", "tin", "fs-near", 0.7, 0.6, run=run),
            )
        ]
        return with_averages(own)

    merged = over_runs([of_run("a", 0.86, 0.44), of_run("b", 0.87, 0.43)])
    shown = render_report(report(merged, "a", "b"), Format.TABLE, to_file=False)
    assert (
        "mean ± population standard deviation of 2 runs, accuracy 86.50 ± 0.50 %, "
        "full-spectrum accuracy 43.50 ± 0.50 %\n"
    ) in shown
    # Runs one by one have both in their own lines; CSV has the spread of the accuracy.
    apart = render_report(report(of_run("a", 0.86, 0.44), "a"), Format.TABLE, to_file=False)
    assert re.search(
        r"^a: .*accuracy [0-9.]+ %, full-spectrum accuracy 44.00 %\)$", apart, re.MULTILINE
    )
    written = csv.DictReader(render_report(report(merged), Format.CSV, to_file=False).splitlines())
    spread = {row["group"]: (row["id_accuracy"], row["id_accuracy_std"]) for row in written}
    assert {key: tuple(map(float, ends)) for key, ends in spread.items()} == {
        "near": pytest.approx((0.865, 0.005)),
        "all": pytest.approx((0.865, 0.005)),
        "fs-near": pytest.approx((0.435, 0.005)),
    }
    plain = over_runs([of_run("a", 0.86, 0.44)[:2], of_run("b", 0.87, 0.43)[:2]])
    shown = render_report(report(plain, "a", "b"), Format.TABLE, to_file=False)
    assert "2 runs, accuracy 86.50 ± 0.50 %\n" in shown


def test_runs_that_are_not_averaged_have_a_column() -> None:
    shown = render_report(
        report([*rows("a"), *rows("b")], "a", "b"), Format.MARKDOWN, to_file=False
    )
    assert "| Run | OOD set |" in shown
    assert shown.count("| a | svhn |") == 2


def test_names_from_outside_are_not_taken_for_markup() -> None:
    name = "[red]a|b*c[/red]<b>`_x_~[l](u)\x1b[31m\n"
    evil = [row("msp", name, "ood", 0.5, 0.5)]
    shown = render_report(report(evil), Format.TABLE, to_file=False)
    assert r"[red]a|b*c[/red]<b>`_x_~[l](u)\x1b[31m " in shown
    shown = render_report(report(evil), Format.MARKDOWN, to_file=False)
    assert r"| [red]a\|b\*c[/red]\<b>\`\_x\_\~[l\](u)" in shown
    assert "\x1b" not in shown


def test_one_set_has_no_average_in_print_and_has_it_in_json() -> None:
    one = report(with_averages([row("msp", "a", "ood", 0.5, 0.5)]))
    assert "average" not in render_report(one, Format.TABLE, to_file=False)
    content = json.loads(render_report(one, Format.JSON, to_file=False))
    assert [(r["dataset"], r["group"]) for r in content["rows"]] == [
        ("a", "ood"),
        ("average", "ood"),
        ("average", "all"),
    ]


def test_csv_keeps_every_digit() -> None:
    third = [row("featurenorm", "a, b", "ood", 1 / 3, 0.5)]
    lines = render_report(report(third), Format.CSV, to_file=False).splitlines()
    assert lines[0].startswith("run,method,params,dataset,group,fpr95,auroc,aupr_in,aupr_out,n_id")
    assert lines[1].startswith('r,featurenorm,"{""block"": 6}","a, b",ood,0.3333333333333333,0.5,')


def test_what_is_written_to_a_file_goes_to_no_screen(tmp_path, capsys) -> None:
    write_result("text\n", tmp_path / "file")
    assert (tmp_path / "file").read_text() == "text\n"
    assert capsys.readouterr().out == ""
    write_result("text\n", None)
    assert capsys.readouterr().out == "text\n"


def ratios(*, clear: bool = True, excluded: int = 0) -> NormRatioResult:
    """Make the NormRatio of three blocks."""
    blocks = tuple(
        Block(i, name, (8, 4, 4), ratio, stderr, excluded * (i == 0))
        for i, (name, ratio, stderr) in enumerate(
            [("1.1", 0.9, 0.001), ("2.1", 1.25, None), ("3.1", None, None)]
        )
    )
    return NormRatioResult(
        run="r", arch="resnet18", data="digits", blocks=blocks, selected=1, clear=clear,
        n_images=50, of_images=758, normalised=False,
    )  # fmt: skip


NORMRATIO = """\
r: resnet18
NormRatio of 50 of 758 training images of digits, not normalised (as in the released script)

 Block  Name  Shape  NormRatio  Std. error
 ─────────────────────────────────────────────────────────────────────────
     0  1.1   8×4×4     0.9000      0.0010  ▇▇▇▇▇▇▇▇▇▇▇▇▇▇
     1  2.1   8×4×4     1.2500           -  ▇▇▇▇▇▇▇▇▇▇▇▇▇▇▇▇▇▇▇▇  selected
     2  3.1   8×4×4          -           -

note: the selection is not clear: its lead is within two standard errors
note: block 0: 2 images excluded, since the norm of their jigsaw puzzle is zero
"""


def test_normratio_on_the_terminal() -> None:
    shown = render_normratio(ratios(clear=False, excluded=2), Format.TABLE, to_file=False)
    assert shown == NORMRATIO


def test_normratio_in_other_formats() -> None:
    content = json.loads(render_normratio(ratios(), Format.JSON, to_file=False))
    assert content["schema"] == 1
    assert content["selected"] == 1
    assert content["clear"] is True
    assert content["blocks"][2]["ratio"] is None
    assert content["blocks"][0]["shape"] == [8, 4, 4]
    lines = render_normratio(ratios(), Format.CSV, to_file=False).splitlines()
    assert lines[2] == "1,2.1,8x4x4,1.25,,0,1"
    marked = render_normratio(ratios(), Format.MARKDOWN, to_file=False)
    assert "| **1** | **2.1** | **8×4×4** | **1.2500** | **-** | **selected** |" in marked


@pytest.mark.parametrize(
    ("size", "text"),
    [(0, "0 B"), (999, "999 B"), (1500, "1.5 kB"), (170_498_071, "170 MB"), (2e12, "2.0 TB")],
)
def test_sizes(size: float, text: str) -> None:
    assert human_bytes(size) == text
