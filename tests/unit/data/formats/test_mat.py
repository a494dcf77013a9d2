"""MATLAB files are read as SciPy reads them, and damage ends in an error, not in a crash."""

import contextlib
import struct
import zlib

import numpy as np
import pytest
from scipy.io import loadmat, savemat

from oodcli.data.formats.mat import read_mat

RNG = np.random.default_rng(0)
ARRAYS = {
    "X": RNG.integers(0, 256, (5, 4, 3, 7), dtype=np.uint8),
    "y": RNG.integers(1, 11, (7, 1)).astype(np.uint8),
    "d": RNG.normal(size=(3, 2)),
    "whole": np.arange(6.0).reshape(2, 3),
    "wide": RNG.integers(-(2**40), 2**40, (2, 2)),
    "single": RNG.normal(size=(1, 3)).astype(np.float32),
    "short": RNG.integers(-300, 300, (4, 1), dtype=np.int16),
    "none": np.zeros((0, 3)),
    "a_name_of_more_than_four_letters": np.ones((1, 1)),
}


@pytest.mark.parametrize("packed", [False, True])
def test_arrays_are_those_of_scipy(tmp_path, packed):
    path = tmp_path / "a.mat"
    savemat(path, ARRAYS, do_compression=packed)
    for name, values in loadmat(path).items():
        if name.startswith("__"):
            continue
        found = read_mat(path, name)
        assert found is not None
        assert (found.dtype, found.shape) == (values.dtype, values.shape)
        np.testing.assert_array_equal(found, values)
    assert read_mat(path, "Z") is None


@pytest.mark.parametrize(
    "value", ["text", np.ones((2, 2), complex), np.array([{}], dtype=object), {"a": 1}]
)
def test_other_kinds_of_values_are_refused(tmp_path, value):
    savemat(tmp_path / "a.mat", {"x": value})
    with pytest.raises(ValueError, match=r"values other than real numbers|do not fill"):
        read_mat(tmp_path / "a.mat", "x")


def test_other_files_are_refused(tmp_path):
    path = tmp_path / "a.mat"
    for content in (b"x", bytes(200), b"MATLAB 7.3 MAT-file".ljust(124) + b"\0\2IM" + bytes(99)):
        path.write_bytes(content)
        with pytest.raises(ValueError, match="does not start like a MATLAB file of version 5"):
            read_mat(path, "x")


@pytest.mark.parametrize("packed", [False, True])
def test_a_file_that_is_cut_anywhere_is_an_error_or_lacks_the_array(tmp_path, packed):
    path = tmp_path / "a.mat"
    savemat(path, {"y": ARRAYS["y"], "X": ARRAYS["X"]}, do_compression=packed)
    content = path.read_bytes()
    missing = 0
    for end in range(1, len(content)):
        path.write_bytes(content[:end])
        with contextlib.suppress(ValueError, struct.error, zlib.error):
            found = read_mat(path, "X")
            if found is None:
                missing += 1
            else:  # what fills the last element up to eight bytes is all that is missing
                assert len(content) - end < 8
                np.testing.assert_array_equal(found, ARRAYS["X"])
    assert 0 < missing <= 10


def test_a_small_file_does_not_unpack_to_a_large_array(tmp_path, monkeypatch):
    monkeypatch.setattr("oodcli.data.formats.mat.EXPANSION_SLACK_BYTES", 1000)
    savemat(tmp_path / "a.mat", {"X": np.zeros((2**10, 2**10), np.uint8)}, do_compression=True)
    with pytest.raises(ValueError, match="unpacks to far more than its size"):
        read_mat(tmp_path / "a.mat", "X")
