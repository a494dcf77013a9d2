"""The Python API gives what the commands print as JSON, for the same request."""

import doctest
import inspect
import json
import shutil
import subprocess
import sys
from collections.abc import Callable, Mapping
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import oodcli
from oodcli import api, arguments
from oodcli.api import LoadedRun
from oodcli.errors import InvalidInputError, MissingArtifactError, OodError
from tests.support.cli import Ood, flat

Given = dict[str, Any]


@pytest.fixture
def run(tiny: Path, tmp_path: Path) -> LoadedRun:
    """Return the tiny run, in a copy of the store that commands use."""
    shutil.copytree(tmp_path / "store", tmp_path / "copy")
    return oodcli.load_run("tiny", store=tmp_path / "copy")


@pytest.fixture
def noise(tmp_path: Path) -> Path:
    return flat(tmp_path / "noise")


def same(record: Any, printed: str, but: tuple[str, ...] = ()) -> None:
    """Compare a record with the JSON object of a command, but for what differs by its time."""
    assert is_dataclass(record)
    assert record.__dataclass_params__.frozen  # type: ignore[attr-defined]
    got, wanted = json.loads(json.dumps(record.to_json())), json.loads(printed)
    assert {k: v for k, v in got.items() if k not in but} == {
        k: v for k, v in wanted.items() if k not in but
    }


def test_scores_and_reports_are_those_of_the_commands(
    ood: Ood, run: LoadedRun, noise: Path, tmp_path: Path
) -> None:
    code, out, err = ood(
        "score", "--method", "msp", "--method", "knn:k=3", "--ood", noise, "--limit", 6,
        "--export", tmp_path / "a.npz", "--format", "json",
    )  # fmt: skip
    assert code == 0, err
    found = run.score(method=["msp", "knn:k=3"], ood=noise, limit=6, export=tmp_path / "b.npz")
    same(found, out)
    with np.load(tmp_path / "a.npz") as one, np.load(tmp_path / "b.npz") as other:
        assert set(one) == set(other)
        for name in one:
            np.testing.assert_array_equal(one[name], other[name])
    code, out, err = ood(
        "report", "--ci", "--compare", "msp", "knn:k=3", "--convention", "openood", "--format",
        "json",
    )  # fmt: skip
    assert code == 0, err
    same(run.report(convention="openood", ci=True, compare=("msp", "knn:k=3")), out)
    code, out, err = ood("report", "--method", "knn:k=3", "--limit", 6, "--format", "json")
    assert code == 0, err
    table = run.report(method="knn:k=3", limit=6)
    same(table, out)
    assert {row.method for row in table.rows} == {"knn:k=3"}


def test_normratio_is_that_of_the_command(ood: Ood, run: LoadedRun) -> None:
    for argv, given in (
        ((), {}),
        (("--max-images", 9, "--no-normalise"), {"max_images": 9, "normalise": False}),
    ):
        code, out, err = ood("normratio", *argv, "--format", "json")
        assert code == 0, err
        same(run.normratio(**given), out)  # type: ignore[arg-type]


def test_the_recommendation_is_that_of_the_command(ood: Ood, run: LoadedRun) -> None:
    code, out, err = ood(
        "recommend", "--method", "msp", "--method", "knn:k=3", "--limit", 8, "--seed", 1,
        "--format", "json",
    )  # fmt: skip
    assert code == 0, err
    same(run.recommend(method=["msp", "knn:k=3"], limit=8, seed=1), out, but=("created",))


def test_the_exported_file_is_that_of_the_command(ood: Ood, run: LoadedRun, tmp_path: Path) -> None:
    pytest.importorskip("onnx")
    code, out, err = ood(
        "export", "--method", "energy", "--output", tmp_path / "a", "--tpr", "0.9", "--input",
        "float32", "--input-size", "20x24", "--format", "json",
    )  # fmt: skip
    assert code == 0, err
    found = run.export("energy", tmp_path / "b", tpr=0.9, input="float32", input_size=(20, 24))
    same(found, out, but=("created", "fitted", "folder", "file"))
    assert found.folder == tmp_path / "b"


def test_half_precision_detectors_are_those_of_amp(ood: Ood, run: LoadedRun, noise: Path) -> None:
    code, out, err = ood("predict", noise, "--method", "msp", "--amp", "--format", "jsonl")
    assert code == 0, err
    found = run.detector("msp", amp=True, device="cpu").predict(sorted(noise.iterdir()))
    assert found.score.tolist() == [row["score"] for row in map(json.loads, out.splitlines())]


def test_methods_that_are_not_defined_are_returned_with_the_reason(
    run: LoadedRun, noise: Path
) -> None:
    """The command prints its table and ends with an error; a program reads the same."""
    found = run.score(method=["msp", "vim:dim=16"], ood={"hiss": noise})
    assert {row.method for row in found.report.rows} == {"msp"}
    assert {row.dataset for row in found.report.rows} == {"hiss", "average"}
    assert found.undefined == ("vim:dim=16",)
    assert "vim is not defined for dim 16" in found.left_out["vim:dim=16"]


WRONG: list[tuple[Callable[[LoadedRun, Path], object], type[OodError], str]] = [
    (lambda run, _: run.score(limit=0, ood="x"), InvalidInputError, "limit must be at least 1"),
    (lambda run, _: run.report(), MissingArtifactError, "compute them: ood score --run tiny"),
    (lambda run, _: run.recommend(seed=-1), InvalidInputError, "seed must be at least 0, not -1"),
    (lambda run, _: run.normratio(max_images=0), InvalidInputError, "max_images must be at least"),
    (lambda run, at: run.export("msp", at, tpr=2), InvalidInputError, "tpr must be above 0"),
]


@pytest.mark.parametrize(("call", "kind", "told"), WRONG)
def test_errors_speak_of_arguments(
    run: LoadedRun,
    tmp_path: Path,
    call: Callable[[LoadedRun, Path], object],
    kind: type[OodError],
    told: str,
) -> None:
    with pytest.raises(kind) as caught:
        call(run, tmp_path / "out")
    assert told in str(caught.value)


def parameters(function: object) -> Mapping[str, inspect.Parameter]:
    return inspect.signature(function).parameters  # type: ignore[arg-type]


def test_options_that_messages_name_are_arguments() -> None:
    """Every option that an error translates is an argument, and every argument is translated."""
    methods = ("detector", "score", "report", "normratio", "recommend", "export")
    known = {name for each in methods for name in parameters(getattr(LoadedRun, each))}
    known |= set(parameters(oodcli.predict)) | set(parameters(oodcli.load_run))
    known |= set(parameters(oodcli.load_detector))
    translated = {name.replace("-", "_") for name in arguments.OPTIONS}
    # What has no option of its name, or none at all.
    assert known - translated == {
        "self",
        "name",
        "images",
        "errors",
        "progress",
        "normalise",
        "file",
    }
    assert translated - known == set()


def test_every_argument_is_described() -> None:
    for name in ("detector", "score", "report", "normratio", "recommend", "export"):
        method = getattr(LoadedRun, name)
        text = inspect.getdoc(method) or ""
        described = {
            word.strip()
            for line in text.partition("Parameters\n")[2].partition("Raises\n")[0].splitlines()
            if line and not line.startswith(" ")
            for word in line.split(",")
        }
        assert set(parameters(method)) - {"self"} <= described, name
        assert "Examples\n--------" in text, name


def test_the_examples_of_the_api_are_true(ood: Ood, tiny: Path, tmp_path: Path) -> None:
    pytest.importorskip("onnx")
    grey = np.full((5, 20, 24, 3), 128, np.uint8)
    np.savez(tmp_path / "grey.npz", images=grey)
    run = oodcli.load_run("tiny", store=tmp_path / "store")
    run.detector("energy", device="cpu")
    code, _, err = ood("detector", "pack", "--method", "energy", "--output", tmp_path / "packed")
    assert code == 0, err
    known = {
        "packed": tmp_path / "packed", "run": run, "store": tmp_path / "store", "folder": tmp_path,
        "grey": tmp_path / "grey.npz", "images": sorted((tiny / "test").glob("*/*.png"))[:8],
    }  # fmt: skip
    # In the order in which they stand, for what is reported has been scored before.
    tests = doctest.DocTestFinder(exclude_empty=True).find(api, extraglobs=known)
    tests = sorted((each for each in tests if each.examples), key=lambda each: each.lineno or 0)
    assert [each.name.rpartition(".")[2] for each in tests] == [
        "detector", "score", "report", "normratio", "recommend", "export", "load_run",
        "load_detector", "predict",
    ]  # fmt: skip
    runner = doctest.DocTestRunner(verbose=False)
    for each in tests:
        assert runner.run(each).failed == 0, each.name


def test_what_reads_stored_scores_loads_no_torch(
    ood: Ood, tiny: Path, noise: Path, tmp_path: Path
) -> None:
    code, _, err = ood("score", "--method", "msp", "--ood", noise)
    assert code == 0, err
    code_text = (
        "import sys, oodcli\n"
        f"run = oodcli.load_run('tiny', store={str(tmp_path / 'store')!r})\n"
        "print(len(run.report().rows))\n"
        "assert 'torch' not in sys.modules\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code_text], check=False, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) > 0


def test_records_of_the_api_are_described_field_by_field() -> None:
    from oodcli.reporting.results import Report
    from oodcli.scoring.block_ratios import NormRatioResult
    from oodcli.selection.recommendation import Recommendation
    from oodcli.workflows.export import Exported
    from oodcli.workflows.score import ScoreResult

    for record in (Report, ScoreResult, NormRatioResult, Recommendation, Exported):
        text = inspect.getdoc(record) or ""
        for field in fields(record):
            assert field.name in text, f"{record.__name__}.{field.name}"
