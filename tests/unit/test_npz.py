"""Arrays of others are read without trusting what their headers claim."""

import io
import tracemalloc
import zipfile

import numpy as np
import pytest

from oodcli.errors import CorruptArtifactError
from oodcli.npz import read_npz

VALUES = np.arange(600, dtype=np.float32).reshape(20, 30)


def read(path):
    return read_npz(path, cure="get it again", error=CorruptArtifactError)


def refused(path):
    with pytest.raises(CorruptArtifactError) as caught:
        read(path)
    return str(caught.value)


def stored(path, method=zipfile.ZIP_STORED, **members):
    with zipfile.ZipFile(path, "w", method) as archive:
        for name, content in members.items():
            archive.writestr(f"{name}.npy", content)
    return path


def npy(values):
    stream = io.BytesIO()
    np.save(stream, values)
    return stream.getvalue()


@pytest.mark.parametrize("method", [0, 8, 12, 14])
@pytest.mark.parametrize("values", [VALUES, np.asfortranarray(VALUES), VALUES[:0], np.array("é")])
def test_arrays_come_back_as_they_were(tmp_path, method, values):
    path = stored(tmp_path / "a.npz", method, a=npy(values), b=npy(VALUES))
    arrays = read(path)
    assert list(arrays) == ["a", "b"]
    assert arrays["a"].dtype == values.dtype
    np.testing.assert_array_equal(arrays["a"], values)


@pytest.mark.parametrize("method", [8, 12, 14])
def test_a_flipped_byte_is_refused_with_the_name_of_the_array(tmp_path, method):
    path = stored(tmp_path / "a.npz", method, a=npy(VALUES))
    content = bytearray(path.read_bytes())
    for at in range(60, len(content) - 100, 7):
        changed = bytearray(content)
        changed[at] ^= 0x55
        path.write_bytes(changed)
        assert refused(path).startswith(f"{path}: array 'a' cannot be read: ")


def test_an_encrypted_member_is_refused(tmp_path):
    path = stored(tmp_path / "a.npz", a=npy(VALUES))
    content = bytearray(path.read_bytes())
    for at in (6, content.rindex(b"PK\x01\x02") + 8):  # the flags, before and behind the member
        content[at] |= 1
    path.write_bytes(content)
    told = refused(path)
    assert told.startswith(f"{path}: array 'a' cannot be read: File ")
    assert "is encrypted, password required" in told


@pytest.mark.parametrize(
    ("shape", "kind"),
    [("1000000000000,", "<f8"), ("10, 0, 3", "<f8"), ("-1, -600", "<f4"), ("5,", "|S0")],
)
def test_a_header_that_claims_what_is_not_there_costs_no_memory(tmp_path, shape, kind):
    head = f"{{'descr': '{kind}', 'fortran_order': False, 'shape': ({shape}), }}".ljust(117) + "\n"
    content = b"\x93NUMPY\x01\x00" + len(head).to_bytes(2, "little") + head.encode() + bytes(2400)
    path = stored(tmp_path / "a.npz", a=content)
    tracemalloc.start()
    try:
        assert refused(path).startswith(f"{path}: array 'a' cannot be read: ")
        assert tracemalloc.get_traced_memory()[1] < 2**20
    finally:
        tracemalloc.stop()


def test_python_objects_are_not_read(tmp_path):
    path = stored(tmp_path / "a.npz", a=npy(np.array([None, {}], dtype=object)))
    assert refused(path).endswith("array 'a' cannot be read: it holds Python objects; get it again")


def test_a_small_file_does_not_unpack_to_a_large_array(tmp_path, monkeypatch):
    monkeypatch.setattr("oodcli.npz.EXPANSION_SLACK_BYTES", 1000)
    path = stored(tmp_path / "a.npz", zipfile.ZIP_DEFLATED, a=npy(np.zeros(2**20, np.uint8)))
    assert "bytes would unpack to 1,048,576; get it again" in refused(path)
    rng = np.random.default_rng(0)
    path = stored(tmp_path / "b.npz", zipfile.ZIP_DEFLATED, a=npy(rng.normal(size=2**16)))
    assert read(path)["a"].shape == (2**16,)
