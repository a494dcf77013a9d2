"""State dicts wherever they lie in a file, and files of other kinds."""

import argparse
import collections
import datetime as dt
import enum
import io
import pickle
import tarfile
import zipfile
from pathlib import Path

import numpy as np
import pytest
import safetensors.torch
import torch
from torch import nn

from oodcli.errors import InvalidInputError
from oodcli.models.state_dicts import read_checkpoint


class Mode(enum.Enum):
    FAST = "fast"


class Settings:
    """A class that only the user's code has, as OmegaConf's are where it is not installed."""

    def __init__(self) -> None:
        self.content = {"lr": 0.1, "nested": [1, 2]}


def small() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(
        collections.OrderedDict(
            conv=nn.Conv2d(3, 4, 3), bn=nn.BatchNorm2d(4), fc=nn.Linear(4, 2, bias=False)
        )
    )


def refusal(path: Path, key: str | None = None) -> str:
    with pytest.raises(InvalidInputError) as error:
        read_checkpoint(path, key=key)
    assert "\n" not in str(error.value)
    return str(error.value)


def same(found, state) -> bool:
    return found.keys() == state.keys() and all(torch.equal(found[k], state[k]) for k in state)


def test_the_state_of_a_run_in_training_is_no_network(tmp_path):
    weights = small().state_dict()
    state = {f"module.{name}": each for name, each in weights.items()}
    folder = tmp_path / "my run"
    folder.mkdir()
    path = folder / "state-0003.safetensors"
    safetensors.torch.save_file(state, path)  # as of a data-parallel network
    assert same(read_checkpoint(path).state, weights)
    safetensors.torch.save_file(state | {"momentum.module.conv.weight": torch.zeros(4)}, path)
    resumed = f"{path} is the state of a run in training, not a network; resume the run instead: "
    assert refusal(path) == f"{resumed}ood train --resume --run RUN"
    (folder / "state.json").write_text("{}")
    assert refusal(path) == f"{resumed}ood train --resume --run 'my run'"


@pytest.mark.parametrize(
    "name",
    ["checkpoint.pth.tar", "pytorch_model.bin", "weights", "a.pkl", "a.safetensors", "a.zip"],
)
def test_a_file_is_what_it_holds_and_not_what_it_is_called(tmp_path, name):
    state = small().state_dict()
    for write in (
        lambda path: torch.save(state, path),
        lambda path: torch.save(state, path, _use_new_zipfile_serialization=False),
        lambda path: safetensors.torch.save_file(state, path),
        lambda path: path.write_bytes(pickle.dumps(state)),
    ):
        write(tmp_path / name)
        assert same(read_checkpoint(tmp_path / name).state, state)


@pytest.mark.parametrize(
    ("content", "told"),
    [
        (b"\x89HDF\r\n\x1a\n" + b"\0" * 600, "is an HDF5 file"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:1\n", "is a pointer of Git LFS"),
        (b"\x1f\x8b\x08" + b"\0" * 60, "is compressed by gzip"),
        (b"\n<!DOCTYPE html><html>", "is a web page, downloaded instead of the file"),
        (b"\x08\x07\x12\x07pytorch", "is an ONNX graph"),
        (b"\x93NUMPY\x01\x00", "is a NumPy array"),
    ],
)
def test_files_of_other_kinds_are_called_by_name(tmp_path, content, told):
    (tmp_path / "model.pth").write_bytes(content)
    assert told in refusal(tmp_path / "model.pth")


@pytest.mark.filterwarnings("ignore::FutureWarning")
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_archives_of_other_kinds_are_called_by_name(tmp_path):
    path = tmp_path / "model.pt"
    np.savez(tmp_path / "a.npz", a=np.zeros(2))
    assert "is an archive of NumPy arrays" in refusal(tmp_path / "a.npz")
    torch.jit.save(torch.jit.trace(nn.Linear(2, 2), torch.zeros(1, 2)), path)
    assert "TorchScript, a program with its weights" in refusal(path)
    assert "torch.jit.load('model.pt').state_dict()" in refusal(path)
    with tarfile.open(path, "w") as archive:
        archive.addfile(tarfile.TarInfo("a"), io.BytesIO())
    assert "is a tar archive; unpack it" in refusal(path)
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("readme.txt", "x")
    assert "is an archive without a checkpoint of torch" in refusal(path)


def test_an_exported_program_is_called_by_name(tmp_path):
    torch.export.save(
        torch.export.export(nn.Linear(2, 2), (torch.zeros(1, 2),)), tmp_path / "a.pt2"
    )
    assert "is an exported program" in refusal(tmp_path / "a.pt2")


@pytest.mark.parametrize(
    ("wrap", "place"),
    [
        (lambda s: {"epoch": 3, "net": s}, "net"),
        (lambda s: {"model": {"state_dict": s}, "args": None}, "model.state_dict"),
        (lambda s: {"trainer": {"my_own_name": s}}, "trainer.my_own_name"),
        (lambda s: {"network": s, "optimizer": {"state": {0: s}}}, "network"),
        (lambda s: {"state_dict": s, "best_acc": 0.9, "curve": np.arange(3.0)}, "state_dict"),
    ],
)
def test_weights_are_found_where_they_lie(tmp_path, wrap, place):
    state = small().state_dict()
    torch.save(wrap(state), tmp_path / "a.pt")
    found = read_checkpoint(tmp_path / "a.pt")
    assert same(found.state, state)
    assert found.remarks == (f"weights: {place} of the file",)


def test_of_weights_and_their_average_the_weights_are_taken_and_the_other_offered(tmp_path):
    state, average = small().state_dict(), {"conv.weight": torch.ones(1, 1)}
    average = {name: tensor + 1 for name, tensor in state.items()}
    path = tmp_path / "a.pt"
    torch.save({"state_dict_ema": average, "state_dict": state}, path)
    found = read_checkpoint(path)
    assert same(found.state, state)
    assert found.remarks == (
        "weights: state_dict; also present: state_dict_ema; to use another: --key state_dict_ema",
    )
    chosen = read_checkpoint(path, key="state_dict_ema")
    assert same(chosen.state, average)
    assert chosen.remarks == ("weights: state_dict_ema; also present: state_dict",)
    assert refusal(path, key="model").endswith(
        "no state dict under 'model'; possible --key: state_dict_ema, state_dict"
    )


def test_wrappers_of_every_name_are_taken_off_and_said(tmp_path):
    state = small().state_dict()
    wrapped = {f"module._orig_mod.{name}": tensor for name, tensor in state.items()}
    torch.save(wrapped, tmp_path / "a.pt")
    found = read_checkpoint(tmp_path / "a.pt")
    assert same(found.state, state)
    assert found.remarks == ("names: 'module._orig_mod.' removed from 8 tensors",)


def test_averaged_models_are_read_and_their_count_passed_over(tmp_path):
    state = small().state_dict()
    torch.save(torch.optim.swa_utils.AveragedModel(small()).state_dict(), tmp_path / "a.pt")
    found = read_checkpoint(tmp_path / "a.pt")
    assert same(found.state, state)
    assert found.remarks[-1] == "ignored besides the weights: n_averaged"


@pytest.mark.parametrize("legacy", [False, True])
def test_inert_objects_beside_the_weights_are_passed_over(tmp_path, legacy):
    state = small().state_dict()
    beside = {
        "args": argparse.Namespace(lr=0.1, out=Path("x"), mode=Mode.FAST),
        "when": dt.datetime(2024, 1, 2, tzinfo=dt.UTC),
        "config": Settings(),
        "history": collections.defaultdict(list, {"acc": [1, 2]}),
        "top1": 91.5,
    }
    path = tmp_path / "a.pth"
    torch.save({"state_dict": state, **beside}, path, _use_new_zipfile_serialization=not legacy)
    found = read_checkpoint(path)
    assert same(found.state, state)
    assert (found.accuracy, found.accuracy_name) == (0.915, "top1")


class Net(nn.Module):
    """A network of the user's own, which importing this file would define and reading does not."""

    made = 0

    def __init__(self) -> None:
        super().__init__()
        type(self).made += 1
        self.body = small()
        self.register_buffer("scale", torch.full((3,), 2.0))
        self.register_buffer("cache", torch.zeros(3), persistent=False)
        self.register_parameter("nothing", None)


def test_the_weights_of_a_pickled_network_are_read_and_no_code_of_it_is_run(tmp_path, monkeypatch):
    network = Net()
    state = network.state_dict()
    torch.save({"model": network, "epoch": 3}, tmp_path / "a.pt")
    monkeypatch.setattr(Net, "__setstate__", lambda *_: pytest.fail("code was run"), raising=False)
    made = Net.made
    found = read_checkpoint(tmp_path / "a.pt")
    assert same(found.state, state)
    assert Net.made == made


@pytest.mark.parametrize(
    "name",
    ["builtins.eval", "os.system", "subprocess.Popen", "torch.hub.load", "io.open", "sys.exit"],
)
def test_functions_that_are_code_are_refused_by_name(tmp_path, name):
    module, _, function = name.rpartition(".")
    pickled = f"c{module}\n{function}\n(S'x'\ntR.".encode()
    with zipfile.ZipFile(tmp_path / "a.pt", "w") as archive:
        archive.writestr("a/data.pkl", b"\x80\x02" + pickled)
        archive.writestr("a/version", "3\n")
        archive.writestr("a/byteorder", "little")
    told = refusal(tmp_path / "a.pt")
    assert "contains code (pickled " in told
    assert function in told


def test_says_what_a_file_without_weights_holds(tmp_path):
    torch.save({"epoch": 3, "model": Settings(), "optimizer": {}}, tmp_path / "a.pt")
    assert "contains no state dict: it contains epoch (int), model (a pickled " in refusal(
        tmp_path / "a.pt"
    )
    torch.save(Settings(), tmp_path / "a.pt")
    assert "Settings, which is never run; save one: " in refusal(tmp_path / "a.pt")


def test_arrays_of_numpy_are_weights_too(tmp_path):
    state = small().state_dict()
    arrays = {name: tensor.numpy().astype(">f4") for name, tensor in state.items() if tensor.ndim}
    (tmp_path / "a.pkl").write_bytes(pickle.dumps({"model": arrays}))
    found = read_checkpoint(tmp_path / "a.pkl").state
    assert same(found, {name: tensor for name, tensor in state.items() if tensor.ndim})
