"""Files of verdicts: read back, merged, summarised and refused."""

import csv
import json
import os
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from oodcli.errors import InvalidInputError
from oodcli.reporting.statistics import surplus_p
from oodcli.screening import merging
from oodcli.screening.discoveries import decide_file
from oodcli.screening.merging import find_parts, open_part
from oodcli.screening.thresholds import Threshold
from oodcli.screening.verdict_file import RowFormat, Verdict, settings_path, verdict_file
from oodcli.store.store import read_json, write_json
from oodcli.text import unescaped
from oodcli.workflows.verdicts import MergeRequest, merge, summarise

SETTINGS: dict[str, Any] = {
    "run": "r", "network": "n", "method": "knn", "params": {"k": 5}, "precision": "float32",
    "id_data": "colours", "id_part": "test", "id_images": 40, "id_digest": "d", "created": "2026",
    "threshold": 0.5, "tpr": 0.95, "threshold_stderr": 0.01, "id_below": 2, "copy_ood": None,
    "command": "ood predict new --output a.csv",
}  # fmt: skip
# Every kind of name that has broken a format or a terminal somewhere.
NAMES = (
    "plain.png", "=1+1.png", "+a", "-a", "@SUM(A1)", "'quoted", "''=x", "a,b;c\t\"d\".png", "\\n",
    "new\nline\r.png", "\x1b[31mred\x1b[0m", "[bold]b[/]", "\u202egnp.exe", os.fsdecode(b"caf\xe9"),
    "é\u0301\u2028.png", "a" * 4096, "C:\\x41\\x", " lead", " =1", "tail ",
    "\uff1d1", "l" * 200_000, "\x00", "#", "\U0001f600",
)  # fmt: skip


def verdicts(names: Sequence[str], *, start: int = 0) -> list[Verdict]:
    """Return verdicts; every third is OOD, every seventh is unreadable."""
    found = []
    for number, name in enumerate(names, start):
        score = (number * 37 % 100) / 100
        if number % 7 == 6:
            found.append(Verdict(name, error="not an image, \x1b[31m=1"))
        else:
            verdict = "ood" if score < 0.5 else "id"
            found.append(Verdict(name, "=red", 0.75, score, 0.5, 2.5 * number, 0.125, verdict))
    return found


def written(
    path: Path, rows: Sequence[Verdict], *, finished: bool = True, **settings: object
) -> Path:
    """Write a file as ood predict does."""
    kind: RowFormat = "jsonl" if path.suffix == ".jsonl" else "csv"
    with verdict_file(path, kind, SETTINGS | settings) as file:
        file.write(rows)
    if not finished:
        beside = settings_path(path)
        write_json(beside, read_json(beside) | {"finished": False})
    return path


def shards(folder: Path, sizes: Sequence[int], ending: str = "csv") -> list[Path]:
    """Write the files of a screening in shards of some sizes."""
    ends = np.cumsum(sizes)
    return [
        written(
            folder / f"v-{number:05d}-of-{len(sizes):05d}.{ending}",
            verdicts([f"{at}.png" for at in range(end - size, end)], start=end - size),
            shard=number,
            shards=len(sizes),
        )
        for number, (size, end) in enumerate(zip(sizes, ends.tolist(), strict=True), start=1)
    ]


def rows_of(path: Path) -> list[Verdict]:
    with open_part(path).opened() as groups:
        return [each for group in groups for each in group]


@pytest.mark.parametrize("safe", [False, True])
@pytest.mark.parametrize("ending", ["csv", "jsonl", "parquet"])
def test_every_name_is_read_back(tmp_path: Path, ending: str, safe: bool) -> None:
    if ending == "parquet":
        pytest.importorskip("pyarrow")
    rows = verdicts(NAMES)
    source = written(tmp_path / "v.csv", rows, csv_safe=safe)
    assert rows_of(source) == rows
    merged = tmp_path / f"merged.{ending}"
    merge(MergeRequest([source], merged, csv_safe=safe and ending == "csv"))
    assert rows_of(merged) == rows
    back = tmp_path / "back.jsonl"
    merge(MergeRequest([merged], back))
    assert [json.loads(line)["path"] for line in back.read_text().splitlines()] == list(NAMES)
    for text in (source.read_text(), back.read_text()):
        assert text.replace("\n", "").isprintable()


def test_no_text_of_safe_rows_is_a_formula(tmp_path: Path) -> None:
    path = written(tmp_path / "v.csv", verdicts(NAMES), csv_safe=True)
    with path.open(newline="") as stream:
        cells = list(csv.DictReader(stream))
    for row, name in zip(cells, NAMES, strict=True):
        for column in ("path", "class", "error"):
            assert row[column].lstrip(" ")[:1] not in tuple("=+-@"), row
        # As the manual says it: an apostrophe that is not part of the name, then the escapes.
        assert unescaped(row["path"].removeprefix("'")) == name
    # Programs that take another separator see no cell that begins with a formula either.
    assert all(line.startswith('"') for line in path.read_text().splitlines()[1:])


def test_rows_for_spreadsheets_are_csv(tmp_path: Path) -> None:
    source = written(tmp_path / "v.csv", verdicts(["a"]))
    for output in (None, tmp_path / "o.jsonl", tmp_path / "o.parquet"):
        with pytest.raises(InvalidInputError, match="--csv-safe changes rows in CSV only"):
            merge(MergeRequest([source], output, csv_safe=True))
    with (
        pytest.raises(InvalidInputError, match=r"another csv safe \(null, now true\)"),
        verdict_file(source, "csv", SETTINGS | {"csv_safe": True}),
    ):
        pass


@pytest.mark.parametrize("safe", [False, True])
def test_a_resumed_file_recognises_every_name(tmp_path: Path, safe: bool) -> None:
    path = written(tmp_path / "v.csv", verdicts(NAMES), csv_safe=safe)
    with verdict_file(path, "csv", SETTINGS | {"csv_safe": safe}) as file:
        assert all(file.done.take(name) for name in NAMES)
        assert not any(file.done.take(name) for name in NAMES)


def test_shards_are_merged_in_order_and_summarised(tmp_path: Path) -> None:
    parts = shards(tmp_path, (30, 0, 25))
    output = tmp_path / "all.jsonl"
    result = merge(MergeRequest([parts[2], parts[0], parts[1]], output))
    expected = verdicts([f"{number}.png" for number in range(55)])
    assert rows_of(output) == expected
    ood = sum(each.verdict == "ood" for each in expected)
    read = sum(each.error is None for each in expected)
    assert (result.counts.ood, result.counts.judged, result.counts.total) == (ood, read, 55)
    assert result.share == ood / read
    assert result.p == surplus_p(ood, read, below=2, of=40)
    lowest = sorted(e.score for e in expected if e.verdict == "ood" and e.score is not None)
    assert [row.score for row in result.rows if row.error is None] == lowest
    assert result.expected == 2 / 40
    # The merged file is summarised as its parts are, and can be merged itself.
    again = summarise(output)
    assert replace(again, files=()) == replace(result, files=())
    assert read_json(settings_path(output))["merged"] == 3
    assert merge(MergeRequest([output])).counts == result.counts


def test_a_folder_and_a_pattern_stand_for_their_files(tmp_path: Path) -> None:
    parts = shards(tmp_path, (2, 2))
    (tmp_path / "notes.txt").write_text("no verdicts")
    output = tmp_path / "all.csv"
    for given in ([tmp_path], [tmp_path / "v-*"], [parts[0], tmp_path / "v-*.csv"]):
        # The second time, the merged file itself is in the folder.
        assert merge(MergeRequest(given, output)).counts.total == 4
    with pytest.raises(InvalidInputError, match="both read and written"):
        merge(MergeRequest([output], output))


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"method": "msp"}, r"have another method \(knn and msp\)"),
        ({"threshold": 0.25}, r"have another threshold \(0.5 and 0.25\)"),
        ({"network": "m"}, r"have another network"),
        ({"shards": 3}, r"is shard 1 of 2, and .* is shard 2 of 3"),
        ({"shard": None, "shards": None}, r"is shard 1 of 2, and .* is no shard"),
        ({"shard": 1}, r"are both shard 1 of 2; give one of them"),
        ({"finished": False, "command": "ood predict x --shard 2/2"},
         r"1 file of 2 not finished: .*: resume it with: ood predict x --shard 2/2$"),
    ],
)  # fmt: skip
def test_files_that_do_not_belong_together_are_refused(
    tmp_path: Path, changed: dict[str, object], message: str
) -> None:
    parts = shards(tmp_path, (2, 2))
    beside = settings_path(parts[1])
    write_json(beside, read_json(beside) | changed)
    output = tmp_path / "all.csv"
    with pytest.raises(InvalidInputError, match=message):
        merge(MergeRequest(parts, output))
    assert not output.exists()


def test_missing_shards_are_named(tmp_path: Path) -> None:
    parts = shards(tmp_path, (1,) * 9)
    message = "8 shards of 9 missing: 1, 2, 4, 5, 6 and 3 more; .* --shard 1/9"
    with pytest.raises(InvalidInputError, match=message):
        merge(MergeRequest([parts[2]]))


def test_an_image_in_two_files_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(merging, "_ROUND", 8)  # several rounds over the digests
    names = [f"{number}.png" for number in range(40)]
    one = written(tmp_path / "one.csv", verdicts([*names[:20], names[3]]))  # twice in one file
    two = written(tmp_path / "two.csv", verdicts(names[20:]))
    assert merge(MergeRequest([one, two])).counts.total == 41
    three = written(tmp_path / "three.jsonl", verdicts(["a", names[7], "b"]))
    with pytest.raises(InvalidInputError, match=r"7\.png has a row in .*one.csv and in .*three"):
        merge(MergeRequest([one, two, three]))
    # Names are compared where their digests are equal.
    monkeypatch.setattr(merging, "path_digest", lambda path: np.uint64(len(path)))
    assert merge(MergeRequest([one, two])).counts.total == 41


def test_damaged_rows_are_named_and_nothing_is_written(tmp_path: Path) -> None:
    path = written(tmp_path / "v.csv", verdicts([f"{n}.png" for n in range(9)]))
    good = path.read_bytes()
    lines = good.splitlines(keepends=True)
    output = tmp_path / "all.csv"
    for wrong in (b"hello\n", lines[3].replace(b"0.5", b"nan"), lines[3].replace(b"id", b"idd")):
        path.write_bytes(b"".join([*lines[:3], wrong, *lines[4:]]))
        if path.read_bytes() == good:
            continue
        with pytest.raises(InvalidInputError, match=r"line 4 of .*v.csv is not a row"):
            merge(MergeRequest([path]))
    path.write_bytes(good[:-3])
    with pytest.raises(InvalidInputError, match=r"line 10 of"):
        merge(MergeRequest([path], output))
    assert not output.exists()


def test_an_unfinished_file_is_summarised_up_to_its_last_line(tmp_path: Path) -> None:
    path = written(tmp_path / "v.jsonl", verdicts(["a", "b", "c"]), finished=False)
    path.write_bytes(path.read_bytes()[:-5])
    assert summarise(path).counts.total == 2


def test_files_without_settings_are_refused(tmp_path: Path) -> None:
    with pytest.raises(InvalidInputError, match=r"there is no file .*none.csv; give files that"):
        open_part(tmp_path / "none.csv")
    (tmp_path / "own.csv").write_text("path\n")
    with pytest.raises(InvalidInputError, match=r"there is no file .*own.csv.ood.json; give"):
        open_part(tmp_path / "own.csv")
    write_json(tmp_path / "own.csv.ood.json", {"kind": "other"})
    with pytest.raises(InvalidInputError, match="has no settings of verdicts"):
        open_part(tmp_path / "own.csv")
    (tmp_path / "own.csv.ood.json").write_text("{}")
    with pytest.raises(InvalidInputError, match="does not match its seal; remove it, and run"):
        open_part(tmp_path / "own.csv")
    (tmp_path / "empty").mkdir()
    with pytest.raises(InvalidInputError, match="has no files of verdicts"):
        find_parts([tmp_path / "empty"])


def test_values_that_depend_on_all_rows_are_revised(tmp_path: Path) -> None:
    class Ranks:
        def __init__(self) -> None:
            self.scores: list[float] = []

        def see(self, some: Sequence[Verdict]) -> None:
            self.scores += [each.score for each in some if each.score is not None]

        def revise(self, some: Sequence[Verdict]) -> list[Verdict]:
            last = max(self.scores)
            return [replace(each, verdict="id" if each.score == last else "ood") for each in some]

        def settings(self) -> dict[str, object]:
            return {"fdr": 0.05}

    output = tmp_path / "all.csv"
    result = merge(MergeRequest(shards(tmp_path, (5, 8)), output), revision=Ranks())
    assert result.counts.id == 1
    assert [row.verdict for row in rows_of(output)].count("id") == 1
    assert read_json(settings_path(output))["fdr"] == 0.05


def test_a_merged_file_is_not_resumed(tmp_path: Path) -> None:
    output = tmp_path / "all.csv"
    merge(MergeRequest(shards(tmp_path, (1, 1)), output))
    with (
        pytest.raises(InvalidInputError, match="was written by ood verdicts merge"),
        verdict_file(output, "csv", SETTINGS),
    ):
        pass


@pytest.mark.parametrize("ending", ["csv", "jsonl"])
def test_a_decision_over_all_rows_keeps_every_name(tmp_path: Path, ending: str) -> None:
    rows = [replace(each, p_value=None if each.error else 0.5) for each in verdicts(NAMES)]
    safe = ending == "csv"
    path = written(tmp_path / f"v.{ending}", rows, csv_safe=safe)
    threshold = Threshold(0.5, 0.95, 40, 2, fdr=0.1)
    decide_file(path, "csv" if safe else "jsonl", threshold, csv_safe=safe)
    assert [each.path for each in rows_of(path)] == list(NAMES)
