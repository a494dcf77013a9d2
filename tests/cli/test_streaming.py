"""``ood train`` on images that are not held in memory, as a user sees it."""

import signal
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from safetensors.numpy import load_file

from oodcli.training import streaming
from tests.support.program import start_program

Ood = Callable[..., tuple[int, str, str]]
SIDE = 16


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    """Write two classes of images of different sizes, none of which is that of training."""
    chance = np.random.default_rng(0)
    for part, count in (("train", 20), ("val", 6), ("test", 6)):
        for label, name in enumerate(("blue", "red")):
            folder = tmp_path / "photos" / part / name
            folder.mkdir(parents=True)
            for index in range(count):
                height, width = chance.integers(20, 40, 2)
                pixels = chance.integers(0, 90, (height, width, 3), dtype=np.uint8)
                pixels[..., 2 - 2 * label] += 150
                Image.fromarray(pixels).save(folder / f"{index:02d}.png")
    return tmp_path / "photos"


@pytest.fixture
def store(tmp_path: Path) -> Path:
    """Return the store that commands use."""
    return tmp_path / "store"


def command(photos: Path, *more: object) -> tuple[object, ...]:
    return (
        "train", "--data", photos, "--arch", "resnet18:width=2", "--image-size", SIDE,
        "--resize", "shorter-crop:18", "--epochs", 3, "--batch-size", 8, "--lr", 0.05,
        *more,
    )  # fmt: skip


CROPPING = ("--recipe", "t2fnorm-imagenet200")


def weights(store: Path, name: str) -> dict[str, np.ndarray]:
    return load_file(store / "runs" / name / "weights.safetensors")


def assert_same(store: Path, first: str, second: str) -> None:
    wanted = weights(store, first)
    for name, tensor in weights(store, second).items():
        np.testing.assert_array_equal(tensor, wanted[name], err_msg=name)


@pytest.mark.parametrize("objective", ["cross-entropy", "supcon"])
def test_too_many_images_are_streamed_and_give_the_same_weights(
    ood: Ood, store: Path, photos: Path, monkeypatch: pytest.MonkeyPatch, objective: str
) -> None:
    line = (*command(photos), "--objective", objective, "--set", "augmentation=flip,crop")
    code, _, err = ood(*line, "--name", "held")
    assert code == 0, err
    assert "decoded on the fly" not in err
    monkeypatch.setattr(streaming, "MAX_BYTES_IN_MEMORY", 100)
    code, _, err = ood(*line, "--data-workers", 0, "--name", "streamed")
    assert code == 0, err
    assert (
        "training images are decoded on the fly by this process: they do not fit in memory"
    ) in err
    assert_same(store, "held", "streamed")


def test_a_crop_comes_out_of_the_original_where_that_has_another_size(
    ood: Ood, store: Path, photos: Path, tmp_path: Path
) -> None:
    code, _, err = ood(*command(photos, *CROPPING), "--data-workers", 0, "--name", "originals")
    assert code == 0, err
    assert "by this process: random crops are taken from the original images" in err
    code, _, err = ood(*command(photos, *CROPPING), "--data-workers", 2, "--name", "workers")
    assert code == 0, err
    assert "by 2 processes: random crops are taken from the original images" in err
    assert_same(store, "originals", "workers")
    # The same images at the size of training beforehand: the original is what is prepared.
    from oodcli.data.decoding.scaling import Resizing

    resizing = Resizing((SIDE, SIDE), "shorter-crop:18")
    for file in photos.rglob("*.png"):
        small = tmp_path / "small" / file.relative_to(photos)
        small.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(resizing.apply(np.asarray(Image.open(file)))).save(small)
    code, _, err = ood(*command(tmp_path / "small", *CROPPING), "--name", "small")
    assert code == 0, err
    assert "decoded on the fly" not in err
    assert any(
        not np.array_equal(tensor, weights(store, "originals")[name])
        for name, tensor in weights(store, "small").items()
    )


def test_a_kill_changes_nothing_and_leaves_no_worker(ood: Ood, store: Path, photos: Path) -> None:
    long = command(photos, *CROPPING, "--epochs", 4)
    code, _, err = ood(*long, "--data-workers", 0, "--name", "whole")
    assert code == 0, err
    program = start_program(*long, "--data-workers", 1, "--name", "cut")
    program.wait_until((store / "runs" / "cut" / "state.json").is_file)
    children = Path(f"/proc/{program.pid}/task/{program.pid}/children").read_text().split()
    program.send_signal(signal.SIGKILL)
    assert program.ended()[0] == -signal.SIGKILL
    assert children
    deadline = time.monotonic() + 120
    while any(map(_lives, children)):
        assert time.monotonic() < deadline
        time.sleep(0.02)
    code, _, err = ood("train", "--resume", "--run", "cut", "--data-workers", 1)
    assert code == 0, err
    assert "resuming after epoch" in err
    assert_same(store, "whole", "cut")


def _lives(process: str) -> bool:
    try:
        return Path(f"/proc/{process}/stat").read_text().split()[2] != "Z"
    except FileNotFoundError:
        return False


@pytest.mark.slow
def test_two_processes_stream_as_one(
    ood: Ood, store: Path, photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from tests.support.torchrun import run_with_torchrun

    (tmp_path / "streamnets.py").write_text(
        "from torch import nn\n"
        "def small(num_classes):\n"
        "    return nn.Sequential(\n"
        "        nn.Conv2d(3, 8, 3, stride=2), nn.ReLU(), nn.Conv2d(8, 16, 3, stride=2),\n"
        "        nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(16, num_classes))\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    line = command(photos, *CROPPING, "--arch", "streamnets:small", "--device", "cpu")
    code, _, err = ood(*line, "--data-workers", 0, "--name", "alone")
    assert code == 0, err
    code, _, err = run_with_torchrun(*line, "--data-workers", 1, "--store", store, "--name", "both")
    assert code == 0, err
    assert err.count("random crops are taken from the original images") == 1
    both = weights(store, "both")
    for name, tensor in weights(store, "alone").items():
        np.testing.assert_allclose(both[name], tensor, rtol=2e-4, atol=2e-5, err_msg=name)
    (photos / "train" / "red" / "07.png").write_bytes(b"no image")
    code, _, err = run_with_torchrun(*line, "--data-workers", 0, "--store", store, "--name", "bad")
    assert code != 0
    assert err.count("07.png: not an image file; replace it, or skip such images") == 1
    assert not (store / "runs" / "bad").exists()  # every process has the same error


def test_unreadable_images_are_reported_or_skipped(ood: Ood, photos: Path) -> None:
    (photos / "train" / "red" / "07.png").write_bytes(b"no image")
    line = command(photos, *CROPPING, "--data-workers", 0, "--epochs", 1)
    code, out, err = ood(*line)
    assert (code, out) == (1, "")
    assert "07.png: not an image file; replace it, or skip such images: --skip-unreadable" in err
    code, _, err = ood(*line, "--skip-unreadable")
    assert code == 0, err
    assert "on 39 images" in err


def test_an_image_that_vanishes_while_training_is_named(
    ood: Ood, photos: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from oodcli.training import session as workflow

    gone = photos / "train" / "red" / "07.png"
    original = workflow.place_images

    def unlinking(*args: object, **rest: object) -> object:
        gone.unlink()
        return original(*args, **rest)

    monkeypatch.setattr(workflow, "place_images", unlinking)
    code, out, err = ood(*command(photos, *CROPPING, "--data-workers", 1))
    assert (code, out) == (1, "")
    assert err.count("\n") < 20
    assert "07.png: the file no longer exists" in err
    assert "Traceback" not in err


def test_much_waiting_for_images_is_reported_once(
    ood: Ood, photos: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(streaming.StreamedImages, "waited", 1e6)
    code, _, err = ood(*command(photos, *CROPPING, "--data-workers", 0))
    assert code == 0, err
    assert err.count("waiting for images took ") == 1
    assert "use more cores (with --data-workers N) or smaller images" in err
    lines = [line for line in err.splitlines() if line.startswith("training: epoch")]
    assert len(lines) == 3
    assert all("waiting " in line and "images/s" in line for line in lines)


def test_a_number_of_workers_below_none_is_refused(ood: Ood, photos: Path) -> None:
    code, out, err = ood(*command(photos, "--data-workers", -1))
    assert (code, out) == (2, "")
    assert "--data-workers" in err
    assert ood(*command(photos, "--data-workers", "two"))[0] == 2
