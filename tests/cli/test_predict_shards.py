"""``ood predict --shard``: outputs of shards, and several processes of torchrun."""

import json
import os
from pathlib import Path

import pytest

from oodcli.compute.processes import Processes
from oodcli.errors import InvalidInputError
from oodcli.screening.merging import open_part
from oodcli.screening.verdict_file import Verdict
from oodcli.store.store import Store, read_json
from oodcli.workflows.predict import PredictRequest, VerdictOutputs, predict
from tests.support.cli import Ood, flat
from tests.support.torchrun import run_with_torchrun


def rows_of(path: Path) -> list[Verdict]:
    with open_part(path).opened() as groups:
        return [each for group in groups for each in group]


def rounded(rows: list[Verdict]) -> list[tuple[str, object, object]]:
    """Return rows whose scores may differ by the rounding of another batch."""
    kept = [(each.path, each.verdict, each.score and round(each.score, 4)) for each in rows]
    return sorted(kept, key=lambda each: each[0])


@pytest.fixture
def incoming(tiny: Path, tmp_path: Path) -> Path:
    root = flat(tmp_path / "incoming", n=30)
    (root / "broken.png").write_bytes(b"no image")
    return root


def test_shards_together_are_the_whole(ood: Ood, incoming: Path, tmp_path: Path) -> None:
    options = ("predict", incoming, "--method", "energy", "--threshold", "1e9")
    whole, one = tmp_path / "whole.jsonl", tmp_path / "v.jsonl"
    assert ood(*options, "--output", whole)[0] == 0
    parts, counts = [], []
    for index in range(1, 4):
        code, _, err = ood(
            *options, "--shard", f"{index}/3", "--output", one, "--copy-ood", tmp_path / "odd",
            "--summary", tmp_path / "s.json",
        )  # fmt: skip
        assert code == 0, err
        part = tmp_path / f"v-0000{index}-of-00003.jsonl"
        rows = rows_of(part)
        parts.append(part)
        counts.append(len(rows))
        summary = json.loads((tmp_path / f"s-0000{index}-of-00003.json").read_text())
        assert summary["images"]["total"] == len(rows)
        copied = {file.name for file in (tmp_path / f"odd-0000{index}-of-00003").iterdir()}
        assert copied == {Path(row.path).name for row in rows if row.error is None}
    assert all(counts)
    assert not one.exists()
    assert not (tmp_path / "odd").exists()
    assert rounded([row for part in parts for row in rows_of(part)]) == rounded(rows_of(whole))
    code, _, err = ood("verdicts", "merge", *parts, "--output", tmp_path / "merged.csv")
    assert code == 0, err
    assert rounded(rows_of(tmp_path / "merged.csv")) == rounded(rows_of(whole))
    # One shard is resumed for itself, by the command beside it.
    content = parts[1].read_bytes()
    parts[1].write_bytes(content[: len(content) // 2])
    command = read_json(Path(f"{parts[1]}.ood.json"))["command"].split()
    assert command[-2:] == ["--shard", "2/3"]
    code, _, err = ood(*command[1:])
    assert code == 0, err
    assert "rows: resuming after them" in err
    assert rounded(rows_of(parts[1])) == rounded(
        [row for row in rows_of(tmp_path / "merged.csv") if row.path in content.decode()]
    )


def test_a_shard_without_images_is_finished(ood: Ood, incoming: Path, tmp_path: Path) -> None:
    (tmp_path / "few").mkdir()
    (incoming / "0.png").rename(tmp_path / "few" / "a.png")
    options = ("predict", tmp_path / "few", "--method", "energy", "--output", tmp_path / "v.csv")
    for index, total in ((1, 0), (983, 1)):
        code, _, err = ood(*options, "--shard", f"{index}/1000", "--fail-on-ood")
        assert code == 0, err
        assert f"{total} image" in err
        part = tmp_path / f"v-{index:05d}-of-01000.csv"
        assert len(rows_of(part)) == total
        assert read_json(Path(f"{part}.ood.json"))["finished"] is True
    code, _, err = ood("verdicts", "summary", tmp_path / "v-00001-of-01000.csv")
    assert code == 0, err


def test_an_interrupted_shard_is_not_finished(
    ood: Ood, incoming: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(*arguments: object) -> object:
        raise KeyboardInterrupt

    options = ("predict", incoming, "--method", "energy", "--output", tmp_path / "v.csv")
    with monkeypatch.context() as patch:
        patch.setattr("oodcli.workflows.predict._verdicts", interrupted)
        code, _, err = ood(*options, "--shard", "1/2")
    assert code == 130
    assert "v-00001-of-00002.csv" in err
    settings = Path(f"{tmp_path / 'v-00001-of-00002.csv'}.ood.json")
    assert read_json(settings)["finished"] is False
    assert ood(*options, "--shard", "1/2")[0] == 0
    assert read_json(settings)["finished"] is True
    # A file that is added to is not finished before all is judged.
    with monkeypatch.context() as patch:
        patch.setattr("oodcli.workflows.predict._verdicts", interrupted)
        flat(incoming / "more", n=9)
        assert ood(*options, "--shard", "1/2")[0] == 130
    assert read_json(settings)["finished"] is False


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--shard", "0/4"), "there is no shard 0 of 4; they are counted from 1"),
        (("--shard", "5/4"), "there is no shard 5 of 4"),
        (("--shard", "a/b"), "--shard must be I/N, such as 7/100, or auto, not 'a/b'"),
        (("--shard", "1/0"), "the number of shards must be from 1 to 1,000,000, not 0"),
        (("--shard", "auto"), "--shard auto finds no task of a Slurm array"),
        (("--shards", "4"), "--shards is the number of shards for --shard auto"),
        (("--shard", "1/4", "--shards", "4"), "--shards is the number of shards"),
    ],
)
def test_wrong_usage_is_refused(
    ood: Ood, tiny: Path, monkeypatch: pytest.MonkeyPatch, options: tuple[str, ...], message: str
) -> None:
    for name in [each for each in os.environ if each.startswith(("SLURM_", "JOB_COMPLETION"))]:
        monkeypatch.delenv(name)
    code, _, err = ood("predict", tiny, *options)
    assert code == 2
    assert message in " ".join(err.split())


def test_an_index_of_a_job_names_the_shard(
    ood: Ood, incoming: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("JOB_COMPLETION_INDEX", "1")
    options = ("--method", "energy", "--output", tmp_path / "v.csv")
    code, _, err = ood("predict", incoming, *options, "--shard", "auto", "--shards", "3")
    assert code == 0, err
    assert (tmp_path / "v-00002-of-00003.csv").exists()


def test_processes_of_torchrun_divide_the_images(ood: Ood, incoming: Path, tmp_path: Path) -> None:
    options = ("predict", incoming, "--method", "energy", "--device", "cpu")
    whole = tmp_path / "whole.csv"
    assert ood(*options, "--output", whole)[0] == 0
    output, summary = tmp_path / "v.csv", tmp_path / "s.json"
    code, out, err = run_with_torchrun(*options, "--output", output, "--summary", summary)
    assert (code, out) == (0, ""), err
    assert err.count("share of OOD verdicts") == 1
    parts = [tmp_path / f"v-0000{index}-of-00002.csv" for index in (1, 2)]
    assert all(len(rows_of(part)) > 5 for part in parts)
    assert rounded([row for part in parts for row in rows_of(part)]) == rounded(rows_of(whole))
    assert json.loads(summary.read_text())["images"]["total"] == 31
    pattern = tmp_path / "v-*-of-00002.csv"
    assert f"ood verdicts merge '{pattern}' --output {output}" in err
    assert ood("verdicts", "merge", pattern, "--output", output)[0] == 0


@pytest.mark.parametrize(
    ("paths", "outputs", "message"),
    [
        (["-"], VerdictOutputs(), "cannot share stdin; write the paths to a file"),
        (["."], VerdictOutputs(format="csv"), "cannot write rows to one stdout; name a file"),
    ],
)
def test_what_several_processes_cannot_do_is_refused(
    tmp_path: Path, paths: list[str], outputs: VerdictOutputs, message: str
) -> None:
    request = PredictRequest(paths, outputs=outputs)
    with pytest.raises(InvalidInputError, match=message):
        predict(Store(tmp_path), request, processes=Processes(0, 2))
