"""Training and scoring by two processes, as a user starts them with torchrun."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file

from tests.support import unstored
from tests.support.cli import flat, tree
from tests.support.program import OOD
from tests.support.torchrun import run_with_torchrun, start_with_torchrun, worker
from tests.support.unstored import COUNTS

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="finds processes in /proc")

Ood = Callable[..., tuple[int, str, str]]
NETWORKS = """
from torch import nn
from oodcli.models.vgg import VGG11

def vgg(num_classes):
    network = VGG11(num_classes)
    for module in network.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
    return network

def small(num_classes):
    return nn.Sequential(
        nn.Conv2d(3, 8, 3, stride=2), nn.ReLU(),
        nn.Conv2d(8, 16, 3, stride=2), nn.ReLU(),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(16, num_classes))
"""


@pytest.fixture
def store(tmp_path: Path) -> Path:
    """Return the store that commands use."""
    return tmp_path / "store"


@pytest.fixture(autouse=True)
def networks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Put networks without batch norm and dropout where all processes find them."""
    folder = tmp_path / "own"
    folder.mkdir()
    (folder / "ownnets.py").write_text(NETWORKS)
    monkeypatch.syspath_prepend(folder)
    monkeypatch.setenv("PYTHONPATH", str(folder))


def pictures(path: Path, *, train: int, test: int, size: int = 32) -> Path:
    """Write images of three classes that differ by their bright channel."""
    generator = np.random.default_rng(0)
    arrays = {}
    for part, n in (("train", train), ("test", test)):
        labels = np.arange(n) % 3
        images = generator.integers(0, 150, (n, size, size, 3), dtype=np.uint8)
        images[np.arange(n), :, :, labels] += 60
        arrays |= {f"{part}_images": images, f"{part}_labels": labels}
    np.savez(path, **arrays)
    return path


def history(store: Path, name: str) -> list[dict]:
    """Return what was kept of every epoch."""
    lines = (store / f"runs/{name}/history.jsonl").read_text().splitlines()
    return [json.loads(line) for line in lines]


def weights(store: Path, name: str) -> dict[str, np.ndarray]:
    """Return the weights of a run."""
    return load_file(store / "runs" / name / "weights.safetensors")


def test_vgg11_has_the_loss_curve_of_one_process(ood: Ood, store: Path, tmp_path: Path) -> None:
    data = pictures(tmp_path / "three.npz", train=51, test=20)
    argv = (
        "train", "--data", data, "--arch", "ownnets:vgg", "--epochs", 3, "--batch-size", 16,
        "--lr", "0.02", "--device", "cpu",
    )  # fmt: skip
    code, out, err = run_with_torchrun(*argv, "--name", "both")
    assert (code, out) == (0, "both\n"), err
    assert "on 2 processes, each batch divided among them" in err
    assert err.count("training ownnets:vgg") == err.count("run both is ready") == 1
    assert ood(*argv, "--name", "one")[0] == 0
    both, one = history(store, "both"), history(store, "one")
    assert one[-1]["loss"] < one[0]["loss"]
    for ours, theirs in zip(both, one, strict=True):
        assert ours["loss"] == pytest.approx(theirs["loss"], rel=1e-3)
        assert ours["lr"] == theirs["lr"]
    for name, tensor in weights(store, "one").items():
        np.testing.assert_allclose(weights(store, "both")[name], tensor, atol=2e-4, err_msg=name)
    record = json.loads((store / "runs/both/run.json").read_text())
    assert record["training"]["processes"] == 2


def test_activations_are_those_of_one_process(
    ood: Ood, store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Names of stored shards have digests of their content, so equal names are equal bits."""
    data = pictures(tmp_path / "three.npz", train=2100, test=2500, size=16)
    ood_data = pictures(tmp_path / "other.npz", train=3, test=1100, size=16)
    argv = ("--data", data, "--arch", "resnet18:width=4", "--image-size", 16, "--batch-size", 500)
    assert ood("train", *argv, "--epochs", 1, "--name", "n", "--device", "cpu")[0] == 0
    scored = ["score", "--run", "n", "--ood", f"other={ood_data}", "--device", "cpu"]
    for method in ("msp", "knn", "featurenorm", "odin"):
        scored += ["--method", method]
    code, out, err = run_with_torchrun(*scored)
    assert code == 0, err
    assert err.count("forward pass: three: 2,500 images") == 1
    kept = store / "activations"
    ours = sorted(path.relative_to(kept) for path in kept.rglob("*.safetensors"))
    # Three shards of training images and their jigsaws, three of the test images, two of the
    # others, and what odin observes of the last two.
    assert len(ours) == 3 + 3 + 3 + 2 + 3 + 2
    kept.rename(tmp_path / "both")
    code, alone, err = ood(*scored)
    assert code == 0, err
    assert sorted(path.relative_to(kept) for path in kept.rglob("*.safetensors")) == ours
    assert alone == out
    # With all of it stored, no process has anything to do.
    code, again, err = run_with_torchrun(*scored)
    assert (code, again) == (0, out), err
    assert "no forward pass: all" in err


@pytest.mark.parametrize("rank", [0, 1])
def test_a_killed_process_ends_the_other_and_leaves_a_run(
    ood: Ood, store: Path, tmp_path: Path, rank: int
) -> None:
    data = pictures(tmp_path / "three.npz", train=600, test=30)
    argv = (
        "train", "--data", data, "--arch", "ownnets:small", "--epochs", 12, "--batch-size", 16,
        "--device", "cpu",
    )  # fmt: skip
    job = start_with_torchrun(OOD, *argv, "--name", "cut")
    job.wait_until((store / "runs" / "cut" / "state.json").is_file)
    os.kill(worker(job, rank), signal.SIGKILL)
    started = time.monotonic()
    code, out, err = job.ended()
    assert (code, out) == (1, "")
    assert time.monotonic() - started < 30
    assert (
        "error: a process of this job has ended, so the others end too; the run resumes after its "
        "last finished epoch, with any number of processes: ood train --resume --run cut\n"
    ) in err
    assert err.count("error: a process of this job has ended") == 1
    code, _, err = ood("train", "--resume", "--run", "cut", "--device", "cpu")
    assert code == 0, err
    assert "resuming after epoch" in err
    assert ood(*argv, "--name", "whole")[0] == 0
    for name, tensor in weights(store, "whole").items():
        np.testing.assert_allclose(weights(store, "cut")[name], tensor, atol=1e-3, err_msg=name)


def test_what_all_find_wrong_is_reported_once(tmp_path: Path) -> None:
    code, out, err = run_with_torchrun("train", "--data", tmp_path / "nowhere")
    assert (code, out) == (1, "")
    lines = [line for line in err.splitlines() if line.startswith("error: ")]
    assert len(lines) == 1, err
    assert "nowhere" in lines[0]
    assert "oodcli/cli" not in err  # the only traceback is torchrun's own


def test_what_is_not_shared_is_done_once(ood: Ood) -> None:
    torchrun = ("torch.distributed.run", "--standalone", "--nproc-per-node", "2")
    done = subprocess.run(
        [sys.executable, "-m", *torchrun, "-m", "oodcli", "recipes", "list"],
        check=False, capture_output=True, text=True,
    )  # fmt: skip
    assert (done.returncode, done.stdout) == (0, ood("recipes", "list")[1]), done.stderr


def test_two_processes_may_take_a_batch_each(store: Path, tmp_path: Path) -> None:
    data = pictures(tmp_path / "three.npz", train=60, test=30)
    argv = ("--data", data, "--arch", "ownnets:small", "--epochs", 1, "--batch-size", 8)
    code, _, err = run_with_torchrun(
        "train", *argv, "--lr", "0.05", "--scale-batch", "--name", "n", "--device", "cpu"
    )
    assert code == 0, err
    expected = "linear scaling: batch size 8 becomes 16, and learning rate 0.05 becomes 0.1\n"
    assert err.count(expected) == 1
    recipe = json.loads((store / "runs/n/run.json").read_text())["recipe"]
    assert (recipe["batch_size"], recipe["lr"]) == (16, 0.1)
    code, _, err = run_with_torchrun("train", *argv, "--batch-size", 1, "--device", "cpu")
    assert code == 1
    assert "a batch of 1 images cannot be divided among 2 processes" in err
    assert [path.name for path in (store / "runs").iterdir()] == ["n"]


def test_a_loss_that_is_not_finite_ends_all_and_is_reported_once(store: Path) -> None:
    argv = ("--data", "digits", "--arch", "ownnets:small", "--epochs", 2, "--lr", "1e30")
    code, out, err = run_with_torchrun("train", *argv, "--device", "cpu")
    assert (code, out) == (1, "")
    lines = [line for line in err.splitlines() if line.startswith("error: ")]
    assert len(lines) == 1, err
    assert "error: the loss is " in lines[0]
    assert "in epoch 1; lower the learning rate" in lines[0]
    assert not list((store / "runs").iterdir())


def test_supcon_of_two_processes_ends_with_one_probe(ood: Ood, store: Path, tmp_path: Path) -> None:
    data = pictures(tmp_path / "three.npz", train=75, test=30)
    argv = (
        "train", "--data", data, "--arch", "ownnets:small", "--objective", "supcon",
        "--epochs", 2, "--batch-size", 16, "--lr", "0.05", "--device", "cpu",
    )  # fmt: skip
    code, out, err = run_with_torchrun(*argv, "--name", "both")
    assert (code, out) == (0, "both\n"), err
    assert err.count("fitting a linear probe") == 1
    assert "find_unused_parameters" not in err
    assert ood(*argv, "--name", "one")[0] == 0
    for name, tensor in weights(store, "one").items():
        ours = weights(store, "both")[name]
        # The probe magnifies what rounding has left of a difference.
        tolerance = 0.02 * np.abs(tensor).max() if name.startswith("6.") else 1e-3
        np.testing.assert_allclose(ours, tensor, atol=tolerance, err_msg=name)


def test_images_that_are_not_stored_are_decoded_once_by_all_processes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data, counts = tree(tmp_path / "data"), tmp_path / "counts"
    monkeypatch.setenv(COUNTS, str(counts))
    far = flat(tmp_path / "far")

    def decoded(*argv: object) -> Counter[str]:
        counts.mkdir()
        code, _, err = start_with_torchrun(unstored.__file__, *argv).ended()
        assert code == 0, err
        found = [line for file in counts.iterdir() for line in file.read_text().splitlines()]
        shutil.rmtree(counts)
        return Counter(found)

    train = decoded(
        "train", "--data", data, "--arch", "resnet18:width=2", "--image-size", 16, "--epochs", 1,
        "--batch-size", 8, "--data-workers", 0, "--name", "m", "--device", "cpu",
    )  # fmt: skip
    tests = [str(path) for path in (data / "test").rglob("*.png")]
    assert [train[path] for path in tests] == [1] * len(tests)
    methods = ("--method", "msp", "--method", "knn", "--method", "featurenorm")
    scored = decoded("score", "--ood", far, *methods, "--device", "cpu")
    wanted = [str(path) for folder in (data / "train", far) for path in folder.rglob("*.png")]
    assert scored == dict.fromkeys(wanted, 1)
