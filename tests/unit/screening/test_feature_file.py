"""Features beside verdicts: row for row, through interruptions."""

from pathlib import Path

import numpy as np
import pytest

from oodcli.errors import CorruptArtifactError, InvalidInputError
from oodcli.screening.feature_file import feature_path, read_features
from oodcli.screening.verdict_file import Verdict, settings_path, verdict_file
from oodcli.store.store import read_json, write_json

ROWS = [Verdict(path=f"{n}.png", score=float(n), verdict="id") for n in range(5)]
FEATURES = np.random.default_rng(0).normal(size=(5, 3)).astype(np.float32)


@pytest.fixture
def verdicts(tmp_path: Path) -> Path:
    """Return a file of five verdicts with features, one image unreadable."""
    path = tmp_path / "v.csv"
    features = FEATURES.copy()
    features[1] = np.nan
    with verdict_file(path, "csv", {}, with_features=True) as file:
        file.write([ROWS[0], Verdict(path="1.png", error="no")], features[:2])
        file.write(ROWS[2:], features[2:])
    return path


def write_on(path: Path, rows: slice) -> int:
    """Resume a file with the rows that it lacks; return how many it had."""
    with verdict_file(path, "csv", {}, with_features=True) as file:
        before = file.before.total
        file.write(ROWS[rows], FEATURES[rows])
    return before


def test_features_are_an_array_that_numpy_maps(verdicts: Path) -> None:
    found = read_features(verdicts)
    assert found.dtype == np.float32
    np.testing.assert_array_equal(np.delete(found, 1, 0), np.delete(FEATURES, 1, 0))
    assert np.isnan(found[1]).all()
    np.testing.assert_array_equal(np.load(feature_path(verdicts), mmap_mode="r"), found)


@pytest.mark.parametrize("extra", [0, 5, 12, 30])
def test_features_ahead_of_their_rows_are_cut(verdicts: Path, extra: int) -> None:
    lines = verdicts.read_bytes().splitlines(keepends=True)
    verdicts.write_bytes(b"".join(lines[:4]) + lines[4][:3])  # three rows and a piece
    with feature_path(verdicts).open("ab") as stream:
        stream.write(b"x" * extra)
    assert write_on(verdicts, slice(3, 5)) == 3
    assert verdicts.read_bytes() == b"".join(lines)
    np.testing.assert_array_equal(read_features(verdicts, rows=5)[2:], FEATURES[2:])


def test_rows_ahead_of_their_features_are_judged_again(verdicts: Path) -> None:
    whole = verdicts.read_bytes()
    path = feature_path(verdicts)
    path.write_bytes(path.read_bytes()[:-13])  # one row and a piece of another are lost
    assert write_on(verdicts, slice(3, 5)) == 3
    assert verdicts.read_bytes() == whole
    np.testing.assert_array_equal(read_features(verdicts, rows=5)[2:], FEATURES[2:])


def test_a_header_of_an_interrupted_call_does_not_count(verdicts: Path) -> None:
    path = feature_path(verdicts)
    content = path.read_bytes().replace(b"(5, 3)", b"(0, 3)")
    path.write_bytes(content)
    assert len(read_features(verdicts)) == 5


def test_missing_and_damaged_features_are_named(verdicts: Path, tmp_path: Path) -> None:
    path = feature_path(verdicts)
    with pytest.raises(CorruptArtifactError, match=r"has features of 5 images, .* has 6 rows"):
        read_features(verdicts, rows=6)
    path.write_bytes(b"no features" * 20)
    with pytest.raises(CorruptArtifactError, match="does not start like a file of features"):
        read_features(verdicts)
    path.unlink()
    with pytest.raises(InvalidInputError, match="ood predict --features stores features"):
        read_features(verdicts)
    content = verdicts.read_bytes()
    with (
        pytest.raises(CorruptArtifactError, match="with the features of 5 rows is missing"),
        verdict_file(verdicts, "csv", {}, with_features=True),
    ):
        pass
    assert verdicts.read_bytes() == content


def test_features_of_another_length_are_refused(verdicts: Path) -> None:
    with (
        pytest.raises(CorruptArtifactError, match="rows of 3 features, and the network gives 4"),
        verdict_file(verdicts, "csv", {}, with_features=True) as file,
    ):
        file.write([Verdict(path="new.png")], np.zeros((1, 4), np.float32))


def test_a_file_of_an_earlier_version_is_not_resumed(verdicts: Path, tmp_path: Path) -> None:
    beside = settings_path(verdicts)
    write_json(beside, {**read_json(beside), "schema": 1})
    with (
        pytest.raises(
            InvalidInputError,
            match=r"columns of another version of ood \(schema 1, now 2\), so it cannot be resumed",
        ),
        verdict_file(verdicts, "csv", {}),
    ):
        pass
