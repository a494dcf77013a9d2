"""Averages over data sets and over runs."""

import numpy as np
import pytest

from oodcli.metrics import Detection
from oodcli.results import Report, ResultRow, RunSummary, best_of, over_runs, with_averages


def row(
    dataset: str, group: str, value: float, *, method: str = "msp", run: str = "r"
) -> ResultRow:
    """Make a row whose four metrics are told from one value."""
    return ResultRow.of(
        Detection(value, value + 0.01, value + 0.02, value + 0.03, n_id=10, n_ood=5),
        run=run,
        method=method,
        params={"temperature": 1.0},
        dataset=dataset,
        group=group,
        id_accuracy=0.9,
        convention="neutral",
    )


def test_a_group_average_is_the_unweighted_mean_over_its_sets() -> None:
    rows = with_averages([row("a", "near", 0.1), row("b", "near", 0.3), row("c", "far", 0.5)])
    averages = {r.group: r for r in rows if r.dataset == "average"}
    assert set(averages) == {"near", "far", "all"}
    assert averages["near"].fpr95 == pytest.approx(0.2)
    assert averages["far"].auroc == pytest.approx(0.51)
    assert averages["all"].aupr_out == pytest.approx(np.mean([0.1, 0.3, 0.5]) + 0.03)
    assert averages["near"].n_ood == 10
    assert averages["all"].n_ood == 15


def test_rows_go_near_far_then_all_with_methods_in_the_order_given() -> None:
    given = [
        row("c", "far", 0.5, method="msp"),
        row("a", "near", 0.1, method="msp"),
        row("c", "far", 0.5, method="energy"),
        row("a", "near", 0.1, method="energy"),
    ]
    got = [(r.dataset, r.group, r.method) for r in with_averages(given)]
    assert got == [
        ("a", "near", "msp"),
        ("a", "near", "energy"),
        ("average", "near", "msp"),
        ("average", "near", "energy"),
        ("c", "far", "msp"),
        ("c", "far", "energy"),
        ("average", "far", "msp"),
        ("average", "far", "energy"),
        ("average", "all", "msp"),
        ("average", "all", "energy"),
    ]


def test_spread_over_runs_is_that_of_a_population() -> None:
    merged = over_runs([[row("a", "near", v, run=f"r{i}")] for i, v in enumerate((0.1, 0.2, 0.6))])
    assert len(merged) == 1
    assert merged[0].run == "r0, r1, r2"
    assert merged[0].n_runs == 3
    assert merged[0].fpr95 == pytest.approx(0.3)
    assert merged[0].std["fpr95"] == pytest.approx(np.std([0.1, 0.2, 0.6], ddof=0))
    assert merged[0].std["id_accuracy"] == 0.0


def test_only_rows_of_all_runs_are_averaged() -> None:
    merged = over_runs([[row("a", "near", 0.1), row("b", "near", 0.1)], [row("a", "near", 0.3)]])
    assert [r.dataset for r in merged] == ["a"]


def test_parameters_that_differ_between_runs_become_lists() -> None:
    from dataclasses import replace

    first, second = row("a", "near", 0.1), row("a", "near", 0.2)
    merged = over_runs(
        [
            [replace(first, params={"block": 6, "x": 1})],
            [replace(second, params={"block": 7, "x": 1})],
        ]
    )
    assert merged[0].params == {"block": [6, 7], "x": 1}


def test_accuracy_that_one_run_lacks_is_not_averaged() -> None:
    from dataclasses import replace

    merged = over_runs(
        [[row("a", "near", 0.1)], [replace(row("a", "near", 0.2), id_accuracy=None)]]
    )
    assert merged[0].id_accuracy is None
    assert "id_accuracy" not in merged[0].std


def test_the_best_is_the_smallest_fpr_and_the_largest_of_the_others() -> None:
    best = best_of([row("a", "near", 0.1), row("a", "near", 0.4)], lambda r: r.dataset)
    assert best["a", "fpr95"] == 0.1
    assert best["a", "auroc"] == pytest.approx(0.41)


def test_the_json_of_a_report_is_the_documented_one() -> None:
    report = Report(
        convention="neutral",
        description="what it means",
        benchmark="digits",
        runs=[RunSummary("r", "resnet18", "digits", 10, 0.9, 0)],
        rows=[row("a", "near", 0.1)],
        notes=["a note"],
    )
    content = report.to_json()
    assert content["schema"] == 1
    assert list(content) == [
        "schema", "benchmark", "convention", "runs", "notes", "splits", "rows",
    ]  # fmt: skip
    assert list(content["rows"][0]) == [
        "run", "method", "params", "dataset", "group", "fpr95", "auroc", "aupr_in", "aupr_out",
        "n_id", "n_ood", "id_accuracy", "convention",
    ]  # fmt: skip
    merged = over_runs([report.rows, report.rows])[0].to_json()
    assert merged["n_runs"] == 2
    assert set(merged["std"]) == {"fpr95", "auroc", "aupr_in", "aupr_out", "id_accuracy"}
