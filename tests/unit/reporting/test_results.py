"""Averages over data sets and over runs."""

import numpy as np
import pytest

from oodcli.metrics import Detection
from oodcli.reporting.results import (
    Calibration,
    Comparison,
    MeanRank,
    Report,
    ResultRow,
    RunSummary,
    over_runs,
    with_averages,
)


def row(
    dataset: str, group: str, value: float, *, method: str = "msp", run: str = "r"
) -> ResultRow:
    """Make a row whose four metrics are told from one value."""
    return ResultRow(
        detection=Detection(value, value + 0.01, value + 0.02, value + 0.03, n_id=10, n_ood=5),
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


def test_extras_are_averaged_where_all_have_them_and_intervals_are_not() -> None:
    from dataclasses import replace

    intervals = {"auroc": (0.1, 0.2)}
    first = replace(row("a", "near", 0.1), extras={"fpr80": 0.2, "aurc": 0.5}, intervals=intervals)
    second = replace(row("b", "near", 0.1), extras={"fpr80": 0.4}, intervals=intervals)
    average = next(r for r in with_averages([first, second]) if r.dataset == "average")
    assert average.extras == {"fpr80": pytest.approx(0.3)}
    assert average.intervals == {}
    merged = over_runs([[first], [replace(first, run="s", extras={"fpr80": 0.6, "aurc": 0.1})]])[0]
    assert merged.extras == {"fpr80": pytest.approx(0.4), "aurc": pytest.approx(0.3)}


def test_what_was_asked_for_is_added_to_the_json() -> None:
    from dataclasses import replace

    shown = replace(row("a", "near", 0.1), intervals={"auroc": (0.1, 0.3)}, extras={"aurc": 0.2})
    report = Report(
        convention="neutral",
        description="what it means",
        benchmark=None,
        runs=[],
        rows=[shown],
        comparisons=[comparison(0.02, 0.001)],
        mean_ranks=[MeanRank("r", "msp", 2, 3, 1.5, 1.0)],
        calibration=[Calibration("r", 0.05, 15, 0.9, 0.95, 100)],
    )
    content = report.to_json()
    assert content["rows"][0]["intervals"] == {"auroc": [0.1, 0.3]}
    assert content["rows"][0]["extras"] == {"aurc": 0.2}
    assert content["comparisons"][0]["significant"] is True
    assert content["comparisons"][0]["interval"] == [0.01, 0.03]
    assert content["comparisons"][0]["sentence"] == report.comparisons[0].sentence
    assert content["mean_ranks"] == [
        {
            "run": "r", "method": "msp", "n_methods": 2, "n_datasets": 3, "fpr95": 1.5,
            "auroc": 1.0,
        }
    ]  # fmt: skip
    assert content["calibration"][0]["ece"] == 0.05


def comparison(delta: float, p_holm: float, *, n_compared: int = 1) -> Comparison:
    """Make up a comparison."""
    return Comparison(
        run="r",
        method_a="energy",
        method_b="msp",
        dataset="svhn",
        group="far",
        delta=delta,
        interval=(0.01, 0.03),
        p=p_holm / n_compared,
        p_holm=p_holm,
        n_compared=n_compared,
    )


def test_a_comparison_says_in_words_what_it_found() -> None:
    assert comparison(0.02, 0.0123, n_compared=3).sentence == (
        "on svhn, energy separates better than msp: +2.00 points of AUROC (95 % interval +1.00 to "
        "+3.00), p = 0.0123 after Holm's correction for 3 comparisons"
    )
    assert comparison(-0.02, 0.00001).sentence == (
        "on svhn, energy separates worse than msp: -2.00 points of AUROC (95 % interval +1.00 to "
        "+3.00), p < 0.0001"
    )
    assert comparison(0.02, 0.05).sentence == (
        "on svhn, energy and msp do not differ significantly: +2.00 points of AUROC (95 % "
        "interval +1.00 to +3.00), p = 0.0500"
    )
