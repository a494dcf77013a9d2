"""Every method is read back from a file as it was, to the bit."""

import io
import json
import math
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch

from oodcli.activations import Activations, ActivationSet, Reference
from oodcli.errors import CorruptArtifactError
from oodcli.methods import METHODS, Fitted, parse_method
from oodcli.methods._bank import Bank
from oodcli.methods._stored import UnstorableError, known_classes, pack, read_tensors, unpack
from oodcli.methods._stored import write_arrays as write
from oodcli.methods.contract import Problem, problem_for
from oodcli.methods.knn import KNN

PLAIN = {n: m for n, m in METHODS.items() if not m.needs_network}
SHAPERS = [name for name, method in PLAIN.items() if method.is_shaper]
EVERY = [name for name in PLAIN if name not in SHAPERS] + [f"{name}+gen" for name in SHAPERS]


def again(value: object, folder: Path) -> object:
    """Write a value, and read it back."""
    structure, arrays = pack(value)
    path = folder / "fitted.safetensors"
    with path.open("wb") as stream:
        write(stream, arrays)
    return unpack(json.loads(json.dumps(structure)), read_tensors(path))


@pytest.mark.parametrize("name", EVERY)
def test_a_stored_method_gives_the_same_scores(name: str, problem: Problem, tmp_path: Path) -> None:
    problem = problem_for(parse_method(name), problem)
    fitted = parse_method(name).fit(problem.reference).detector
    read = again(fitted, tmp_path)
    assert type(read) is type(fitted)
    for batch in (problem.id_batch, problem.ood_batch):
        torch.testing.assert_close(read.score(batch), fitted.score(batch), rtol=0, atol=0)  # type: ignore[attr-defined]


def test_every_class_that_a_method_consists_of_is_known() -> None:
    missing = [
        name
        for name, method in METHODS.items()
        if f"{method.type.__module__}:{method.type.__qualname__}" not in known_classes()
    ]
    assert missing == []


def test_values_come_back_as_they_were(tmp_path: Path) -> None:
    value = {
        "numbers": (1, 2.5, True, None, "x"),
        3: [math.inf, -math.inf, 0.1],
        "array": np.arange(6, dtype=np.int32).reshape(2, 3),
        "scalar": np.float64(0.1),
        "dtype": torch.bfloat16,
        "empty": torch.zeros(0, 4),
        "single": torch.tensor(2.0),
        "half": torch.ones(3, dtype=torch.bfloat16),
        "flags": torch.tensor([True, False]),
    }
    read = again(value, tmp_path)
    assert isinstance(read, dict)
    assert list(read) == list(value)
    for key in ("numbers", 3, "scalar", "dtype"):
        assert read[key] == value[key]
    np.testing.assert_array_equal(read["array"], value["array"])
    assert read["array"].dtype == np.int32
    for key in ("empty", "single", "half", "flags"):
        assert read[key].dtype == value[key].dtype
        assert read[key].shape == value[key].shape
        assert torch.equal(read[key], value[key])
    assert math.isnan(again(math.nan, tmp_path))  # type: ignore[arg-type]


def test_axes_keep_their_order_in_memory(tmp_path: Path) -> None:
    matrix = torch.arange(12.0).view(3, 4).T
    read = again(matrix, tmp_path)
    assert isinstance(read, torch.Tensor)
    assert torch.equal(read, matrix)
    assert read.stride() == matrix.stride()


def test_what_is_shared_is_written_once() -> None:
    tensor = torch.ones(5)
    assert len(pack([tensor, tensor, tensor.clone()])[1]) == 2


def test_arrays_begin_at_multiples_of_64_bytes(tmp_path: Path) -> None:
    for size in (1, 5, 16, 100):
        read = again([torch.ones(size), torch.ones(7), torch.ones(3)], tmp_path)
        assert isinstance(read, list)
        assert all(each.data_ptr() % 64 == 0 for each in read)


def test_a_bank_that_is_streamed_is_written_block_by_block(
    problem: Problem, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    held = KNN.fit(problem.reference)
    monkeypatch.setattr("oodcli.methods._bank.free_memory", lambda _device: 0)
    fresh = Reference(
        problem.reference.head,
        load_train=lambda: ActivationSet.of(next(problem.reference.train.chunks())),
    )
    streamed = KNN.fit(fresh)
    assert streamed.bank.held is None
    read = again(streamed, tmp_path)
    assert isinstance(read, KNN)
    assert torch.equal(read.score(problem.ood_batch), held.score(problem.ood_batch))


@dataclass
class _Own:
    value: int = 0


@pytest.mark.parametrize("value", [_Own(), io.BytesIO(), Bank, np.array([object()]), 1j])
def test_what_is_not_of_the_package_is_not_stored(value: object) -> None:
    with pytest.raises(UnstorableError):
        pack([value])


@pytest.mark.parametrize(
    "structure",
    [
        {"class": "os:system", "fields": {"command": "true"}},
        {"class": "oodcli.methods._stored:pack", "fields": {"value": 1}},
        {"class": "oodcli.methods.msp:MSP", "fields": {"nothing": 1}},
        {"class": "oodcli.methods._bank:Bank", "fields": {"vectors": "text"}},
        {"class": "oodcli.methods._bank:Bank", "fields": {}},
        {"tensor": "missing"},
        {"other": 1},
        [1],
        {"dtype": "object"},
    ],
)
def test_another_structure_is_refused(structure: object) -> None:
    with pytest.raises(CorruptArtifactError, match="damaged"):
        unpack(structure, {})


def test_a_file_that_was_cut_is_reported(tmp_path: Path) -> None:
    path = tmp_path / "cut.safetensors"
    with path.open("wb") as stream:
        write(stream, pack([torch.ones(100)])[1])
    path.write_bytes(path.read_bytes()[:-8])
    with pytest.raises(CorruptArtifactError, match=r"cut\.safetensors is damaged"):
        read_tensors(path)


def test_fitted_keeps_its_probes(problem: Problem, tmp_path: Path) -> None:
    from oodcli.methods.odin import ODIN, PerturbedLogits

    odin = ODIN.fit(problem.reference)
    read = again(odin, tmp_path)
    assert read == odin
    assert Fitted("odin", {}, read).probes == odin.probes  # type: ignore[arg-type]
    assert isinstance(odin.probes[0], PerturbedLogits)
    extra = {odin.probes[0].key: torch.randn(4, 3)}
    batch = Activations(*(torch.ones(4, 3) for _ in range(3)), torch.zeros(4), extra=extra)
    assert torch.equal(read.score(batch), odin.score(batch))  # type: ignore[attr-defined]
