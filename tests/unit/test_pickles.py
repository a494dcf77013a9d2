"""Foreign pickles are read without running anything in them."""

import collections
import contextlib
import functools
import os
import pickle
import tracemalloc

import numpy as np
import pytest

from oodcli.errors import CorruptArtifactError
from oodcli.pickles import MAX_DEPTH, load_pickle


def loads(value, protocol=2):
    return load_pickle(pickle.dumps(value, protocol=protocol), where="batch")


@pytest.mark.parametrize("protocol", range(6))
@pytest.mark.parametrize("dtype", ["u1", "<i8", ">i4", "f4", "f8", "?", "S3", "U2"])
def test_arrays_come_back_as_they_were(protocol, dtype):
    array = np.arange(24).reshape(2, 3, 4).astype(dtype)
    for kept in (array, np.asfortranarray(array), array[:, ::2], array[:0]):
        loaded = loads({b"data": kept}, protocol)[b"data"]
        assert type(loaded) is np.ndarray
        assert loaded.dtype == kept.dtype
        np.testing.assert_array_equal(loaded, kept)
        assert loaded.flags.writeable


@pytest.mark.parametrize("protocol", range(3, 6))
def test_plain_values_come_back_as_they_were(protocol):
    value = {"a": [1, 2.5, True, None, (3, "text")], b"b": {1: b"bytes"}, "c": 10**30, "d": []}
    assert loads(value, protocol) == value


def test_numpy_numbers_become_python_numbers():
    loaded = loads([np.float64(0.5), np.int64(7)])
    assert loaded == [0.5, 7]
    assert [type(number) for number in loaded] == [float, int]


def test_batch_of_python_2_is_read():
    """A pickle as Python 2 wrote CIFAR's: text is bytes, and NumPy has its old names."""
    pixels = bytes(range(6))
    old = (
        b"\x80\x02}q\x01(U\x04dataq\x02cnumpy.core.multiarray\n_reconstruct\nq\x03cnumpy\nndarray\n"
        b"q\x04K\x00\x85U\x01b\x87Rq\x05(K\x01K\x02K\x03\x86cnumpy\ndtype\nq\x06U\x02u1K\x00K\x01"
        b"\x87Rq\x07(K\x03U\x01|NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\x00tb\x89U\x06"
        + pixels
        + b"tbU\x06labelsq\x08]q\x09(K\x05K\x06eU\x05batchU\x04n\xc3\xa4!u."
    )
    loaded = load_pickle(old, where="batch")
    np.testing.assert_array_equal(loaded[b"data"], [[0, 1, 2], [3, 4, 5]])
    assert loaded[b"data"].dtype == np.uint8
    assert loaded[b"labels"] == [5, 6]
    assert loaded[b"batch"] == "nä!".encode()


class Evil:
    def __init__(self, call, *arguments):
        self.made_by = (call, arguments)

    def __reduce__(self):
        return self.made_by


@pytest.mark.parametrize(
    ("call", "arguments"),
    [
        (os.system, ("touch owned",)),
        (eval, ("open('owned', 'w')",)),
        (functools.partial, (print,)),
        (np.save, ("owned.npy", 1)),
        (getattr, ("text", "upper")),
        (collections.OrderedDict, ()),
    ],
)
@pytest.mark.parametrize("protocol", [0, 2, 4])
def test_other_names_are_refused_and_not_called(tmp_path, monkeypatch, call, arguments, protocol):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(CorruptArtifactError, match=rf"it refers to \w+\.{call.__name__};"):
        loads([Evil(call, *arguments)], protocol)
    assert list(tmp_path.iterdir()) == []


def test_refusal_of_a_system_call_is_one_line():
    with pytest.raises(CorruptArtifactError) as caught:
        loads(Evil(os.system, "true"))
    assert str(caught.value) == (
        f"batch is not a pickle of arrays and plain values: it refers to {os.system.__module__}."
        "system; get the file again"
    )


@pytest.mark.parametrize("value", [{1, 2}, frozenset({1}), bytearray(b"x"), slice(1)])
def test_other_kinds_of_values_are_refused(value):
    with pytest.raises(CorruptArtifactError, match=r"it contains a|it refers to"):
        loads(value, 5)


@pytest.mark.parametrize(
    "array",
    [
        np.array([1, None], dtype=object),
        np.zeros(2, dtype=[("a", "u1"), ("b", "O")]),
        np.zeros(2, dtype="M8[s]"),
    ],
)
def test_arrays_of_other_types_are_refused(array):
    with pytest.raises(CorruptArtifactError, match="is not a pickle of arrays and plain values"):
        loads(array)


def test_array_that_lies_about_its_size_is_refused():
    honest = pickle.dumps(np.zeros((2, 3), dtype=np.uint8), protocol=2)
    lying = honest.replace(b"K\x02K\x03\x86", b"K\x02K\x09\x86")
    assert lying != honest
    with pytest.raises(CorruptArtifactError, match=r"6 bytes do not match an array \(2, 9\) of"):
        load_pickle(lying, where="batch")


def test_shared_values_are_read_and_shared_lists_do_not_multiply():
    row = [1, 2]
    assert loads({"a": row, "b": [row, row]}) == {"a": [1, 2], "b": [[1, 2], [1, 2]]}
    value = [1] * 10
    for _ in range(9):  # 10 kB that would be 10⁹ values in an array
        value = [value] * 10
    with pytest.raises(
        CorruptArtifactError, match=r"it expands to more than 1,\d\d\d,\d\d\d values"
    ):
        loads(value)


def test_shared_bytes_are_not_copied_without_end():
    """A thousand bytes objects on the same megabyte are refused before they are made."""
    shared = b"\x80\x02(X" + (2**20).to_bytes(4, "little") + bytes(2**20) + b"r\0\0\1\x000"
    shared += b"c_codecs\nencode\nr\1\0\1\x000X\x06\0\0\0latin1r\2\0\1\x000"
    shared += b"j\1\0\1\0j\0\0\1\0j\2\0\1\0\x86R" * 1000 + b"t."
    with pytest.raises(CorruptArtifactError, match="it expands to more than"):
        load_pickle(shared, where="batch")


def test_values_that_contain_themselves_or_nest_deeply_are_refused():
    value = []
    value.append(value)
    with pytest.raises(CorruptArtifactError, match="it contains itself"):
        loads(value)
    table = {}
    table["again"] = [table]
    with pytest.raises(CorruptArtifactError, match="it contains itself"):
        loads(table)
    deep = 1
    for _ in range(MAX_DEPTH):
        deep = [deep]
    assert loads(deep) == deep
    with pytest.raises(CorruptArtifactError, match="it is nested too deeply"):
        loads([deep])
    very = b"\x80\x02" + b"(" * 10**5 + b"t" * 10**5 + b"."
    with pytest.raises(CorruptArtifactError, match="it is nested too deeply"):
        load_pickle(very, where="batch")


@pytest.mark.parametrize(
    "content",
    [
        b"\x80\x02Nr\xff\xff\xff\x0f.",  # a memo of 2²⁸ places
        b"\x80\x02Np99999999999\n.",
        b"\x80\x04\x8e\xff\xff\xff\xff\xff\0\0\0.",  # 2⁴⁰ bytes
        b"\x80\x05\x96\xff\xff\xff\xff\xff\0\0\0.",
        b"\x80\x04\x95\xff\xff\xff\xff\xff\0\0\0N.",
        b"\x80\x02\x8b\xff\xff\xff\x7f.",
    ],
)
def test_memory_is_in_proportion_to_the_file(content):
    tracemalloc.start()
    try:
        with contextlib.suppress(CorruptArtifactError):
            assert load_pickle(content, where="batch") is None
        assert tracemalloc.get_traced_memory()[1] < 2**20
    finally:
        tracemalloc.stop()


def test_keys_are_such_that_they_are_hashed_at_once():
    """The hash of pairs of pairs of … takes twice as long at every level."""
    nested = b"K\x01" + b"2\x86" * 60  # a pair of the same pair, 60 times
    with pytest.raises(CorruptArtifactError, match="it has a nested key"):
        load_pickle(b"\x80\x02}" + nested + b"Ns.", where="batch")
    assert loads({(1, "a"): 2}) == {(1, "a"): 2}
    with pytest.raises(CorruptArtifactError, match="an integer key of more than 64 bits"):
        loads({2**64: 1})


@pytest.mark.parametrize("name", ["cnumpy\ndtype\n", "cnumpy\nndarray\n", "c_codecs\nencode\n"])
@pytest.mark.parametrize("state", ["}X\x04\0\0\0codeK\x01s", "N}X\x05\0\0\0arrayNs\x86", ")"])
def test_a_pickle_cannot_alter_the_reader(name, state):
    """BUILD on a name is refused; the next file is read as before."""
    with pytest.raises(CorruptArtifactError, match="it sets the state of a Name"):
        load_pickle(f"\x80\x02{name}{state}b.".encode("latin1"), where="batch")
    np.testing.assert_array_equal(loads([np.arange(3)])[0], [0, 1, 2])


def test_damaged_pickle_is_never_a_crash():
    content = pickle.dumps({b"data": np.arange(12, dtype=np.uint8), b"labels": [1, 2]}, protocol=2)
    refused = 0
    for at in range(len(content)):
        for damaged in (content[:at], content[:at] + b"\x80" + content[at + 1 :]):
            try:
                load_pickle(damaged, where="batch")
            except CorruptArtifactError:
                refused += 1
    assert refused > len(content)


@pytest.mark.parametrize("protocol", [2, 4, 5])
@pytest.mark.parametrize("kind", ["int64", "float32", "float64", "uint8", "bool", "float16"])
def test_tensors_become_arrays_where_they_are_asked_for(protocol, kind):
    import torch

    tensor = torch.arange(12).reshape(3, 4).to(getattr(torch, kind))
    content = pickle.dumps({"id_preds": tensor, "part": tensor[1:]}, protocol=protocol)
    loaded = load_pickle(content, where="scores", tensors=True)
    np.testing.assert_array_equal(loaded["id_preds"], tensor.numpy())
    np.testing.assert_array_equal(loaded["part"], tensor[1:].numpy())
    assert loaded["part"].dtype == kind
    with pytest.raises(
        CorruptArtifactError, match=r"it refers to torch\._utils\._rebuild_tensor_v2"
    ):
        load_pickle(content, where="scores")


def test_tensor_of_another_layout_is_refused():
    import torch

    content = pickle.dumps(torch.zeros(3, 4).t(), protocol=2)
    with pytest.raises(CorruptArtifactError, match="is not contiguous"):
        load_pickle(content, where="scores", tensors=True)


def test_storage_of_a_tensor_may_ask_for_nothing_else(tmp_path, monkeypatch):
    """What stands inside a storage is a pickle too."""
    import torch
    from torch.storage import _load_from_bytes

    monkeypatch.chdir(tmp_path)
    inner = pickle.dumps(Evil(os.system, "touch owned"), protocol=2)
    outer = pickle.dumps(Evil(_load_from_bytes, inner), protocol=2)
    with pytest.raises(CorruptArtifactError, match=r"it refers to \w+\.system"):
        load_pickle(outer, where="scores", tensors=True)
    evil = pickle.dumps([torch.zeros(2), Evil(os.system, "touch owned")], protocol=2)
    with pytest.raises(CorruptArtifactError, match=r"it refers to \w+\.system"):
        load_pickle(evil, where="scores", tensors=True)
    assert list(tmp_path.iterdir()) == []


def test_damaged_tensor_is_never_a_crash():
    import torch

    content = pickle.dumps(torch.arange(5), protocol=2)
    refused = 0
    for at in range(0, len(content), 3):
        for damaged in (content[:at], content[:at] + b"\xff" + content[at + 1 :]):
            try:
                load_pickle(damaged, where="scores", tensors=True)
            except CorruptArtifactError:
                refused += 1
    assert refused > len(content) // 3
