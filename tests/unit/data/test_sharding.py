"""Shards: which images belong to which, and what schedulers say."""

import io
import os
import tarfile
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from oodcli.data.formats import webdataset
from oodcli.data.incoming import items
from oodcli.data.sharding import Shard, shard_of_job
from oodcli.errors import InvalidInputError
from oodcli.store.store import Store


def png(value: int) -> bytes:
    stream = io.BytesIO()
    Image.fromarray(np.full((4, 4, 3), value, np.uint8)).save(stream, format="PNG")
    return stream.getvalue()


def names(
    paths: Sequence[object], folder: Path, shard: Shard | None = None, listed: Sequence[str] = ()
) -> list[str]:
    store = Store(folder / "store")
    return [each.name for each in items([str(p) for p in paths], listed, store=store, shard=shard)]


def divided(
    paths: Sequence[object], folder: Path, count: int, listed: Sequence[str] = ()
) -> list[list[str]]:
    """Return the names of every shard; together they are those of all images, in order."""
    found = [names(paths, folder, Shard(i, count), listed) for i in range(1, count + 1)]
    whole = names(paths, folder, None, listed)
    assert Counter(whole) == Counter(name for part in found for name in part)
    for part in found:
        assert part == [name for name in whole if name in set(part)]
    return found


@pytest.mark.parametrize(
    ("name", "index"),
    [("a.png", 983), ("sub/b.jpg", 379), ("caf\u00e9.png", 672), ("caf\udce9.png", 701)],
)
def test_the_hash_is_the_same_for_ever(name: str, index: int) -> None:
    """The digests are those of coreutils: ``printf NAME | b2sum --length 64``, modulo 1,000."""
    assert [i for i in range(1, 1001) if Shard(i, 1000).owns(name)] == [index]


def test_names_are_spread_evenly() -> None:
    counts = Counter(
        next(i for i in range(1, 9) if Shard(i, 8).owns(f"{n:06d}.png")) for n in range(4000)
    )
    # Within five standard deviations of a binomial count.
    assert all(abs(counts[i] - 500) < 5 * 21 for i in range(1, 9))


def test_mount_points_do_not_matter(tmp_path: Path) -> None:
    for place in ("mnt", "data/deeper"):
        for number in range(20):
            file = tmp_path / place / "night" / f"{number % 3}" / f"{number}.png"
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_bytes(png(number))
    one, other = (divided([tmp_path / place / "night"], tmp_path, 3) for place in
                  ("mnt", "data/deeper"))  # fmt: skip
    for here, there in zip(one, other, strict=True):
        assert 0 < len(here) < 20
        assert [Path(n).name for n in here] == [Path(n).name for n in there]
    # Another folder beside it changes nothing.
    (tmp_path / "more").mkdir()
    both = divided([tmp_path / "mnt" / "night", tmp_path / "more"], tmp_path, 3)
    assert both == one


def test_lists_tables_and_stdin_are_divided_by_names(tmp_path: Path) -> None:
    (tmp_path / "i").mkdir()
    relative = [f"i/{number}.png" for number in range(30)]
    for number, name in enumerate(relative):
        (tmp_path / name).write_bytes(png(number))
    (tmp_path / "l.txt").write_text("\n".join(relative))
    (tmp_path / "t.csv").write_text("\n".join(["path", *relative]))
    expected = [[n for n in relative if Shard(i, 3).owns(n)] for i in (1, 2, 3)]
    for listing, first in (("l.txt", 1), ("t.csv", 2)):
        found = divided([tmp_path / listing], tmp_path, 3)
        lines = [[relative[int(n.rpartition(":")[2]) - first] for n in part] for part in found]
        assert lines == expected
    given = [*relative, "gone.png", "a\0b", str(tmp_path / "i"), "gone.tar"]
    found = divided(["-"], tmp_path, 3, given)
    assert [[n for n in part if n in relative] for part in found] == expected


@pytest.fixture
def shards(tmp_path: Path) -> Path:
    """Return a folder of six tar files of a WebDataset with five images each."""
    folder = tmp_path / "wds"
    folder.mkdir()
    for shard in range(6):
        with tarfile.open(folder / f"x-{shard:03d}.tar", "w") as archive:
            for row in range(5):
                for name, content in ((f"{row}.png", png(shard)), (f"{row}.cls", b"1")):
                    member = tarfile.TarInfo(name)
                    member.size = len(content)
                    archive.addfile(member, io.BytesIO(content))
    return folder


@pytest.mark.parametrize("given", ["folder", "pattern", "files"])
def test_whole_archives_belong_to_a_shard_in_turn(
    shards: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, given: str
) -> None:
    paths: dict[str, list[Path]] = {
        "folder": [shards],
        "pattern": [shards / "x-{000..005}.tar"],
        "files": sorted(shards.iterdir()),
    }
    indexed: list[str] = []
    original = webdataset.indexed

    def noted(path: Path, store: Store) -> webdataset.ShardIndex:
        indexed.append(path.name)
        return original(path, store)

    monkeypatch.setattr(webdataset, "indexed", noted)
    found = names(paths[given], tmp_path, Shard(2, 3))
    assert Counter(Path(n).parent.name for n in found) == {"x-001.tar": 5, "x-004.tar": 5}
    assert indexed == ["x-001.tar", "x-004.tar"]  # no other is opened
    divided(paths[given], tmp_path, 3)


def test_rows_of_fewer_archives_than_shards_are_divided(shards: Path, tmp_path: Path) -> None:
    array = tmp_path / "a.npz"
    np.savez(array, images=np.zeros((11, 4, 4, 3), np.uint8))
    found = divided([array], tmp_path, 4)
    assert found == [[f"{array}[{r}]" for r in Shard(i, 4).rows(11)] for i in range(1, 5)]
    # Seven files are enough for seven shards, but not for eight.
    assert [len(part) for part in divided([shards, array], tmp_path, 7)] == [5] * 6 + [11]
    pieces = (
        [Shard(i, 8).rows(30) for i in range(1, 9)],
        [Shard(i, 8).rows(11) for i in range(1, 9)],
    )
    lengths = [len(one) + len(other) for one, other in zip(*pieces, strict=True)]
    assert [len(part) for part in divided([shards, array], tmp_path, 8)] == lengths


def test_parquet_files_are_divided_by_order_and_those_with_parts_by_rows(tmp_path: Path) -> None:
    arrow = pytest.importorskip("pyarrow")
    parquet = pytest.importorskip("pyarrow.parquet")
    for name, parts in (("plain", False), ("parts", True)):
        for number in range(3):
            (tmp_path / name).mkdir(exist_ok=True)
            columns: dict[str, list[object]] = {"image": [png(row) for row in range(4)]}
            if parts:
                columns["split"] = ["train", "test", "test", "train"] if number else ["train"] * 4
            parquet.write_table(arrow.table(columns), tmp_path / name / f"{number}.parquet")
    plain = divided([tmp_path / "plain"], tmp_path, 3)
    assert [{Path(n).name[:9] for n in part} for part in plain] == [
        {"0.parquet"}, {"1.parquet"}, {"2.parquet"}
    ]  # fmt: skip
    assert [len(part) for part in divided([tmp_path / "parts"], tmp_path, 3)] == [1, 1, 2]


SLURM = {"SLURM_ARRAY_TASK_ID": "7", "SLURM_ARRAY_TASK_MIN": "3", "SLURM_ARRAY_TASK_COUNT": "5",
         "SLURM_ARRAY_TASK_STEP": "2"}  # fmt: skip
SRUN = {"SLURM_PROCID": "1", "SLURM_STEP_NUM_TASKS": "4"}


@pytest.mark.parametrize(
    ("environment", "shards", "expected"),
    [
        ({}, None, None),
        (SLURM, None, Shard(3, 5)),
        (SLURM, 100, Shard(7, 100)),
        ({"JOB_COMPLETION_INDEX": "0"}, 10, Shard(1, 10)),
        ({"JOB_COMPLETION_INDEX": "9"}, 10, Shard(10, 10)),
        (SRUN, None, Shard(2, 4)),
        (SLURM | SRUN, None, Shard(10, 20)),
        (SLURM | SRUN | {"RANK": "0"}, None, Shard(3, 5)),  # torchrun divides further itself
        ({"SLURM_PROCID": "0", "SLURM_NTASKS": "4"}, None, None),  # the script of a batch job
    ],
)
def test_schedulers_name_a_shard(
    environment: Mapping[str, str], shards: int | None, expected: Shard | None
) -> None:
    assert shard_of_job(environment, shards) == expected


@pytest.mark.parametrize(
    ("environment", "shards", "message"),
    [
        ({"JOB_COMPLETION_INDEX": "3"}, None, "give the number: --shard auto --shards N"),
        ({"JOB_COMPLETION_INDEX": "3"}, 3, "there is no shard 4 of 3"),
        (SLURM | {"SLURM_ARRAY_TASK_ID": "8"}, None, "is not one of 5 in steps of 2 from 3"),
        (SLURM | {"SLURM_ARRAY_TASK_ID": "0"}, 9, "counted from 1; submit it with --array=1-9"),
        ({"SLURM_ARRAY_TASK_ID": "7"}, None, "needs the variable SLURM_ARRAY_TASK_MIN"),
        (SRUN, 5, "srun started 4 tasks, but --shards is 5"),
    ],
)
def test_schedulers_that_do_not_say_enough_are_refused(
    environment: Mapping[str, str], shards: int | None, message: str
) -> None:
    with pytest.raises(InvalidInputError, match=message):
        shard_of_job(environment, shards)


def test_bytes_that_are_not_utf8_belong_to_a_shard(tmp_path: Path) -> None:
    name = os.fsdecode(b"caf\xe9.png")
    assert sum(Shard(i, 5).owns(name) for i in range(1, 6)) == 1
    assert sum(Shard(i, 5).owns("\ud800") for i in range(1, 6)) == 1
