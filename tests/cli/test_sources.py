"""What a query opens, and that everything is opened once."""

from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from oodcli.errors import InvalidInputError
from oodcli.reporting.sources import ScoreQuery, Sources
from oodcli.store.scores import read_scorings
from oodcli.store.store import Store
from oodcli.workflows.report import Statistics, report
from tests.support.cli import Ood, flat


@pytest.fixture
def opened(monkeypatch: pytest.MonkeyPatch) -> Counter[str]:
    """Count how often every file is read."""
    counts: Counter[str] = Counter()
    for name in ("read_bytes", "read_text"):
        original = getattr(Path, name)

        def read(path: Path, *args: object, original=original, **options: object) -> object:
            counts[str(path)] += 1
            return original(path, *args, **options)

        monkeypatch.setattr(Path, name, read)
    return counts


def test_a_report_with_conventions_tests_and_plots_reads_every_score_file_once(
    ood: Ood, tiny: Path, tmp_path: Path, opened: Counter[str]
) -> None:
    odd = flat(tmp_path / "odd")
    assert ood("score", "--method", "msp", "--method", "energy", "--ood", odd)[0] == 0
    opened.clear()
    code, _, err = ood(
        "report", "--convention", "neutral", "--convention", "knn", "--convention", "openood",
        "--ci", "--compare", "msp", "energy", "--published", "--plots", tmp_path / "plots",
        "--format", "html",
    )  # fmt: skip
    assert code == 0, err
    scores = tmp_path / "store" / "runs" / "tiny" / "scores"
    (scoring,) = read_scorings(scores)
    files = [str(path) for path in sorted((scores / scoring.key).glob("*.safetensors"))]
    # Two methods on two sets, labels, and predictions on two sets.
    assert len(files) == 7
    assert {opened[path] for path in files} == {1}


def test_an_index_is_read_once_for_all_conventions_and_plots(
    ood: Ood, tiny: Path, tmp_path: Path, opened: Counter[str]
) -> None:
    assert ood("score", "--method", "msp", "--ood", flat(tmp_path / "odd"))[0] == 0
    (index,) = (tmp_path / "store" / "runs" / "tiny" / "scores").glob("*/scoring.json")
    opened.clear()
    assert ood("report", "--convention", "neutral", "--convention", "knn")[0] == 0
    plain = opened[str(index)]
    opened.clear()
    plots = ("--plots", tmp_path / "plots")
    assert ood("report", "--convention", "neutral", "--convention", "knn", *plots)[0] == 0
    assert opened[str(index)] == plain == 1


def test_score_files_are_read_once(
    ood: Ood, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import oodcli.reporting.sources as module

    path = tmp_path / "mine.npz"
    rng = np.random.default_rng(0)
    np.savez(path, **{f"m/{name}": rng.normal(size=40) for name in ("id", "odd")})
    read: list[Path] = []
    original = module.read_score_file

    def counted(path: Path, **options: object) -> object:
        read.append(path)
        return original(path, **options)

    monkeypatch.setattr(module, "read_score_file", counted)
    code, _, err = ood(
        "report", "--scores", path, "--id", "id", "--convention", "neutral", "--convention", "knn",
        "--plots", tmp_path / "plots",
    )  # fmt: skip
    assert code == 0, err
    assert read == [path]


def test_one_opening_serves_several_conventions_with_the_values_of_each(
    ood: Ood, tiny: Path, tmp_path: Path
) -> None:
    assert ood("score", "--method", "msp", "--ood", flat(tmp_path / "odd"))[0] == 0
    store = Store(tmp_path / "store")
    query = ScoreQuery(runs=["tiny"])
    with Sources.open(store, query) as sources:
        together = [report(sources, name) for name in ("neutral", "knn", "openood")]
    for table in together:
        with Sources.open(store, query) as sources:
            assert report(sources, table.convention) == table


def test_arrays_that_several_tables_share_cannot_be_written_to(
    ood: Ood, tiny: Path, tmp_path: Path
) -> None:
    assert ood("score", "--method", "msp", "--ood", flat(tmp_path / "odd"))[0] == 0
    with Sources.open(Store(tmp_path / "store"), ScoreQuery()) as sources:
        run = sources.runs[0]
        scores = run.read("msp", run.scoring.id_set)
        assert scores is run.read("msp", run.scoring.id_set)
        assert scores is not None
        with pytest.raises(ValueError, match="read-only"):
            scores[0] = 0


def test_a_run_cannot_be_removed_while_its_scores_are_open(
    ood: Ood, tiny: Path, tmp_path: Path
) -> None:
    from oodcli.store.removal import remove_run

    assert ood("score", "--method", "msp", "--ood", flat(tmp_path / "odd"))[0] == 0
    store = Store(tmp_path / "store")
    with (
        Sources.open(store, ScoreQuery(runs=["tiny"])) as sources,
        pytest.raises(InvalidInputError, match="in use"),
    ):
        remove_run(store, "tiny")
    assert report(sources, statistics=Statistics(compare=())).rows
    remove_run(store, "tiny")
