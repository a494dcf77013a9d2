"""What is done wrong gets one line that names it, and the cure."""

import json
import math
import os
import pickle
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from oodcli.models import parse_architecture
from tests.support.cli import Ood, flat, tree


def says(ood: Ood, *argv: object) -> str:
    """Run a command that must fail, and return its one line."""
    code, out, err = ood(*argv)
    assert code == 1
    assert out == ""
    lines = [line for line in err.splitlines() if line.startswith("error: ")]
    assert len(lines) == 1
    assert err.splitlines()[-1] == lines[0]
    return lines[0].removeprefix("error: ")


def test_no_run_yet(ood: Ood, tmp_path: Path) -> None:
    cure = f"there is no finished run in {tmp_path / 'store'}; train one: ood train --data digits"
    for command in ("normratio", "score", "report"):
        assert says(ood, command) == cure


def test_a_misspelt_data_set(ood: Ood) -> None:
    assert says(ood, "train", "--data", "digit") == (
        "no data set 'digit'; did you mean 'digits'? (a path, or NAME=PATH, is also accepted)"
    )


def test_a_missing_folder(ood: Ood, tmp_path: Path) -> None:
    assert says(ood, "train", "--data", tmp_path / "none") == (
        f"no folder or file {tmp_path / 'none'}; check the path"
    )


def test_a_device_that_is_not_there(ood: Ood) -> None:
    if torch.cuda.is_available():
        assert "this machine has cuda:0" in says(
            ood, "train", "--data", "digits", "--device", "cuda:99"
        )
    else:
        assert says(ood, "train", "--data", "digits", "--device", "cuda") == (
            f"device cuda does not exist: torch {torch.__version__} finds no CUDA GPU; "
            "use --device cpu"
        )


@pytest.mark.parametrize("name", ["gpu", "cuda:x", "cpu:0", ""])
def test_a_device_that_cannot_be(ood: Ood, name: str) -> None:
    assert says(ood, "train", "--data", "digits", "--device", name) == (
        f"no device {name!r}; there are: auto, cpu, cuda, cuda:N for the N-th GPU, mps"
    )


def test_a_misspelt_architecture(ood: Ood) -> None:
    assert says(ood, "train", "--data", "digits", "--arch", "resnet-18") == (
        "no architecture 'resnet-18'; did you mean 'resnet18'?"
    )


def test_an_impossible_recipe(ood: Ood) -> None:
    assert says(ood, "train", "--data", "digits", "--epochs", 0) == (
        "--epochs must be at least 1, not 0"
    )


@pytest.mark.parametrize(
    ("argv", "option"),
    [
        (("--data", "digits", "--seed", 1, "--seeds", "0,1"), "--seed"),
        (("--data", "digits", "--run", "x"), "--run"),
        (("--data", "digits", "--resume", "--run", "x"), "--run"),
        (("--resume", "--run", "x", "--name", "y"), "--run"),
        (("--resume", "--run", "x", "--epochs", 3), "--epochs"),
        (("--resume", "--amp"), "--amp"),
    ],
)
def test_options_of_training_that_contradict_each_other(
    ood: Ood, tmp_path: Path, argv: tuple[object, ...], option: str
) -> None:
    code, out, err = ood("train", *argv)
    assert (code, out) == (2, "")
    assert f"Invalid value for {option}: " in err
    assert not (tmp_path / "store" / "runs").exists()


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (("train", "--seed", "x"), "Invalid value for '--seed': 'x' is not an integer."),
        (("train", "--seed", "-1"), "Invalid value for '--seed': must be at least 0, not -1."),
        (("train", "--lr", "1,5"), "Invalid value for '--lr': '1,5' is not a number."),
        (
            ("score", "--tune", "x"),
            "Invalid value for '--tune': 'x' is not one of 'openood', 'pseudo'.",
        ),
        (
            ("datasets", "download", "--jobs", "99"),
            "Invalid value for '--jobs': must be at most 16, not 99.",
        ),
        (("train",), "Missing option '--data': the data set to train on."),
        (("runs", "use"), "Give either a RUN or --last."),
    ],
)
def test_wrong_usage_is_one_clear_line(ood: Ood, argv: tuple[str, ...], message: str) -> None:
    code, out, err = ood(*argv)
    assert (code, out) == (2, "")
    assert err.splitlines()[-1] == f"Error: {message}"


def test_a_network_is_set_or_named(ood: Ood) -> None:
    argv = ("train", "--data", "digits", "--epochs", 1, "--set", "arch=resnet18:width=2")
    assert says(ood, *argv, "--arch", "vgg11") == (
        "--set arch and --arch contradict each other; remove one of them"
    )
    code, out, _ = ood(*argv)
    assert (code, out) == (0, "digits-resnet18-width-2-s0\n")


def test_a_share_that_is_not_held_out_is_reported(ood: Ood) -> None:
    argv = ("train", "--data", "digits", "--epochs", 1, "--arch", "resnet18:width=2")
    note = "digits has validation images, so --val-fraction has no effect\n"
    assert note in ood(*argv, "--val-fraction", 0.1)[2]


@pytest.mark.parametrize("share", ["1", "-0.5", "nan"])
@pytest.mark.parametrize(
    ("command", "option", "zero"),
    [
        ("train", "--val-fraction", "none are held out"),
        ("train", "--test-fraction", "no image is held out of training"),
        ("import", "--val-fraction", "none are held out"),
        ("import", "--test-fraction", "all images are test images"),
    ],
)
def test_a_share_out_of_range_is_refused_whatever_the_data(
    ood: Ood, command: str, option: str, zero: str, share: str
) -> None:
    argv = {"train": (), "import": ("--pretrained", "--arch", "torchvision:resnet18")}[command]
    # These data have test images, so that a share in range would change nothing.
    assert says(ood, command, *argv, "--data", "digits", f"{option}={share}") == (
        f"{option} must be from 0 ({zero}) to below 1, not {share}"
    )


def test_a_share_to_test_on_of_zero_says_what_it_leaves(ood: Ood, tmp_path: Path) -> None:
    whole = tree(tmp_path / "made", parts=("all",), n=10) / "all"
    argv = ("--arch", "resnet18:width=2", "--epochs", 1, "--test-fraction", 0)
    assert says(ood, "train", "--data", whole, *argv) == (
        "--test-fraction 0 takes all 20 images of all for testing and leaves none to train on; "
        "give the share to test on, such as 0.2"
    )
    only = tree(tmp_path / "only", parts=("train",), n=10)
    code, name, err = ood("train", "--data", only, *argv)
    assert code == 0, err
    assert (
        "only has no test images and none are held out, so that the run cannot be scored; to hold "
        "some out: --test-fraction 0.2\n" in err
    )
    assert json.loads(ood("runs", "show", name.strip())[1])["parts"] == {"train": 20}


def test_a_momentum_that_cannot_be(ood: Ood) -> None:
    assert says(ood, "train", "--data", "digits", "--momentum", 1.5) == (
        "--momentum must be below 1, not 1.5"
    )


def test_a_class_that_cannot_be_learnt(ood: Ood, tmp_path: Path) -> None:
    root = tree(tmp_path / "data")
    argv = ("train", "--data", root, "--arch", "resnet18:width=2", "--skip-unreadable")
    for image in (root / "train" / "red").iterdir():
        image.write_bytes(b"no image")
    assert says(ood, *argv) == (
        "class red of data has no training images left; add some, or remove it"
    )
    shutil.rmtree(root / "train" / "red")
    shutil.rmtree(root / "test" / "red")
    images = tmp_path / "store" / "images"
    before = sorted(images.rglob("*"))
    assert says(ood, *argv) == "data has one class; a classifier needs at least two"
    assert sorted(images.rglob("*")) == before  # none was decoded


def test_a_batch_that_cannot_be_normalised(ood: Ood, tmp_path: Path) -> None:
    argv = ("--arch", "torchvision:resnet18", "--image-size", 32, "--batch-size", 23)
    assert says(ood, "train", "--data", tree(tmp_path / "data"), *argv) == (
        "this network cannot normalise a batch of one image, such as the last one of an epoch or "
        "a process's share of it; change --batch-size, or use a larger --image-size"
    )


def test_wrong_usage_ends_with_2(ood: Ood) -> None:
    for argv in (
        ["train"],
        ["nonsense"],
        ["report", "--format", "pdf"],
        ["import"],
        ["score", "--x"],
    ):
        code, out, err = ood(*argv)
        assert (code, out) == (2, ""), argv
        assert "Usage: ood" in err


def test_unknown_methods_sets_runs_and_benchmarks(ood: Ood, tiny: Path) -> None:
    assert says(ood, "score", "--method", "featurenom") == (
        "no method 'featurenom'; did you mean 'featurenorm'?"
    )
    assert says(ood, "score", "--run", "tony") == "no run 'tony'; did you mean 'tiny'?"
    assert says(ood, "score", "--benchmark", "digts") == (
        "no benchmark 'digts'; did you mean 'digits'?"
    )
    assert says(ood, "score", "--ood", "uniform_noise").startswith(
        "no data set 'uniform_noise'; did you mean 'uniform-noise'?"
    )
    assert says(ood, "score", "--method", "featurenorm:block=8") == (
        "there is no block 8: this network has blocks 0 to 7"
    )
    assert says(ood, "score", "--limit", 0) == "--limit must be at least 1, not 0"


def test_two_sets_of_one_name(ood: Ood, tiny: Path, tmp_path: Path) -> None:
    flat(tmp_path / "a" / "noise")
    flat(tmp_path / "b" / "noise")
    assert says(ood, "score", "--ood", tmp_path / "a/noise", "--ood", tmp_path / "b/noise") == (
        "two of the sets have the name 'noise'; rename one of them: NAME=PATH"
    )
    code, out, _ = ood(
        "score",
        "--method",
        "msp",
        "--ood",
        tmp_path / "a/noise",
        "--ood",
        f"fog={tmp_path}/b/noise",
    )
    assert code == 0
    assert "fog" in out


def test_a_truncated_image_is_named_and_can_be_skipped(
    ood: Ood, tiny: Path, tmp_path: Path
) -> None:
    folder = flat(tmp_path / "odd")
    content = (folder / "3.png").read_bytes()
    (folder / "3.png").write_bytes(content[: len(content) // 2])
    message = says(ood, "score", "--method", "msp", "--ood", folder)
    assert message.startswith(f"cannot read image {folder / '3.png'}: ")
    assert message.endswith("; replace it, or skip such images: --skip-unreadable")
    code, out, _ = ood("score", "--method", "msp", "--ood", folder, "--skip-unreadable")
    assert code == 0
    assert "odd: 1 unreadable image skipped" in out
    assert "odd: 1 unreadable image skipped" in ood("report")[1]


def test_a_class_folder_without_images(ood: Ood, tmp_path: Path) -> None:
    root = tree(tmp_path / "data")
    (root / "train" / "green").mkdir()
    assert f"{root / 'train' / 'green'}" in says(ood, "train", "--data", root)


@pytest.mark.parametrize(
    "arrays",
    [
        {"pictures": np.zeros((2, 8, 8), np.uint8)},
        {"images": np.zeros((2, 8, 8), np.float32)},
        {"images": np.zeros((2, 8, 8, 4), np.uint8)},
        {"images": np.zeros((8,), np.uint8)},
        {"images": np.zeros((0, 8, 8), np.uint8)},
        {"images": np.array([None, "x"], dtype=object)},
    ],
)
def test_arrays_that_are_no_images(
    ood: Ood, tiny: Path, tmp_path: Path, arrays: dict[str, np.ndarray]
) -> None:
    path = tmp_path / "set.npz"
    np.savez(path, **arrays)
    assert str(path) in says(ood, "score", "--method", "msp", "--ood", path)


def test_a_cut_off_npz(ood: Ood, tiny: Path, tmp_path: Path) -> None:
    path = tmp_path / "set.npz"
    np.savez(path, images=np.zeros((5, 8, 8), np.uint8))
    path.write_bytes(path.read_bytes()[:-40])
    assert str(path) in says(ood, "score", "--method", "msp", "--ood", path)


class _Bomb:
    def __reduce__(self) -> tuple[object, tuple[str]]:
        return os.system, ("touch bomb-went-off",)


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        (lambda state: state["fc.weight"].fill_(math.nan), "fc.weight contains NaN or infinity; "),
        (lambda state: state.update(extra=torch.zeros(1)), "the weights do not fit resnet18:"),
        (
            lambda state: state.update({"fc.bias": torch.zeros(10).char()}),
            "fc.bias is torch.int8; ",
        ),
    ],
)
@pytest.mark.parametrize("command", [("import",), ("train", "--init")])
def test_a_checkpoint_that_does_not_fit_is_named(
    ood: Ood, tmp_path: Path, command: tuple[str, ...], wrong: Callable[[Any], object], said: str
) -> None:
    path = tmp_path / "made.pt"
    state = parse_architecture("resnet18:width=2").build(10).state_dict()
    wrong(state)
    torch.save(state, path)
    argv = ("--arch", "resnet18:width=2", "--data", "digits")
    assert says(ood, *command, path, *argv).startswith(f"{path}: {said}")


def test_a_checkpoint_that_holds_code_is_not_run(
    ood: Ood, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "bad.pt"
    path.write_bytes(pickle.dumps({"state_dict": _Bomb()}))
    assert "bad.pt" in says(ood, "import", path, "--arch", "resnet18", "--data", "digits")
    torch.save({"model": _Bomb()}, path)
    assert "bad.pt" in says(ood, "import", path, "--arch", "resnet18", "--data", "digits")
    assert not (tmp_path / "bomb-went-off").exists()
    assert not (tmp_path / "store" / "runs").exists()


def test_a_checkpoint_of_another_network_or_class_count(
    ood: Ood, tiny: Path, tmp_path: Path
) -> None:
    weights = tmp_path / "store" / "runs" / "tiny" / "weights.safetensors"
    message = says(ood, "import", weights, "--arch", "resnet34:width=2", "--data", tiny)
    assert "resnet18" in message
    message = says(ood, "import", weights, "--arch", "resnet18:width=2", "--data", "digits")
    assert message.endswith(
        "has 2 classes and digits has 6; name the data it was trained on: --data; or all classes "
        "of the network, one per line in the order of its outputs: --classes FILE; or else, fit a "
        "linear layer (--probe), or use its features alone (--features-only)"
    )
    assert sorted(p.name for p in (tmp_path / "store" / "runs").iterdir()) == ["tiny"]


@pytest.mark.parametrize("value", ["0.5,0.5", "a", "nan", ""])
def test_a_mean_that_is_not_one_or_three_numbers(ood: Ood, tmp_path: Path, value: str) -> None:
    assert says(
        ood, "import", tmp_path / "x.pt", "--arch", "resnet18", "--data", "digits", "--mean", value
    ) == (f"--mean must be one number or three, such as 0.5 or 0.485,0.456,0.406, not {value!r}")


def test_a_store_that_is_a_file(ood: Ood, tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_text("x")
    assert says(ood, "runs", "list", "--store", path) == (
        f"the store {path} is not a folder; name another: --store DIR"
    )


@pytest.mark.skipif(os.name != "posix" or not Path("/proc").is_dir(), reason="needs Linux's /proc")
def test_a_store_that_cannot_be_written(ood: Ood) -> None:
    """Nobody, not even root, can make a folder there."""
    assert says(ood, "train", "--data", "digits", "--store", "/proc/ood").startswith(
        "cannot use /proc"
    )


def test_images_that_moved_away(ood: Ood, tmp_path: Path) -> None:
    root = tree(tmp_path / "data")
    assert ood("train", "--data", root, "--arch", "resnet18:width=2", "--epochs", 1)[0] == 0
    root.rename(tmp_path / "elsewhere")
    message = says(ood, "score")
    assert message.startswith(
        "the data of run data-resnet18-width-2-s0 cannot be opened: no folder"
    )


def test_a_full_disk_leaves_nothing_half_written(tmp_path: Path) -> None:
    """A limit on file sizes stands for the full disk: weights of the network are above it."""
    store = tmp_path / "store"
    script = (
        "import resource, sys\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (200_000, 200_000))\n"
        "from oodcli.cli.app import main\n"
        "main(sys.argv[1:])\n"
    )
    argv = ["train", "--data", "digits", "--arch", "resnet18:width=8", "--epochs", "1"]
    done = subprocess.run(
        [sys.executable, "-c", script, *argv, "--store", str(store)],
        check=False, capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 1
    last = done.stderr.splitlines()[-1]
    assert re.fullmatch(
        f"error: cannot use {store}/.+: file too large; the limit on file sizes is too low: .+",
        last,
    )
    assert "Traceback" not in done.stderr
    left = [path.name for path in store.rglob("*") if path.is_file() and "tmp" in path.name]
    assert left == []


def test_a_file_for_the_result_is_taken_as_the_user_means_it(
    ood: Ood, tiny: Path, tmp_path: Path
) -> None:
    """A link is followed, a device is written to, a folder and a missing folder are refused."""
    ood("score", "--method", "msp", "--ood", "uniform-noise")
    (tmp_path / "real.csv").write_text("old")
    (tmp_path / "link.csv").symlink_to("real.csv")
    assert ood("report", "--format", "csv", "--output", tmp_path / "link.csv")[0] == 0
    assert (tmp_path / "link.csv").is_symlink()
    assert (tmp_path / "real.csv").read_text().startswith("run,method")
    assert says(ood, "report", "--output", tmp_path) == (
        f"{tmp_path} is a folder; name a file in it"
    )
    assert says(ood, "report", "--output", tmp_path / "no" / "x.csv") == (
        f"there is no folder {tmp_path / 'no'} for x.csv; create it first"
    )
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    reader = subprocess.Popen(["cat", str(pipe)], stdout=subprocess.PIPE, text=True)
    assert ood("report", "--format", "csv", "--output", pipe)[0] == 0
    assert reader.communicate()[0].startswith("run,method")
    assert pipe.is_fifo()


def test_weights_that_were_changed_are_not_believed(ood: Ood, tiny: Path, tmp_path: Path) -> None:
    """One flipped bit: the activations of the old weights must not stand beside new ones."""
    assert ood("score", "--method", "energy", "--ood", "uniform-noise")[0] == 0
    weights = tmp_path / "store" / "runs" / "tiny" / "weights.safetensors"
    content = bytearray(weights.read_bytes())
    content[-50] ^= 0x40
    weights.write_bytes(content)
    for command in ("score", "normratio"):
        assert says(ood, command) == (
            "the weights of run tiny have changed since they were written; remove it (ood runs "
            "remove tiny) and create it again"
        )
    weights.unlink()
    assert "have changed since they were written" in says(ood, "score")


def test_a_set_cannot_be_called_average(ood: Ood, tiny: Path, tmp_path: Path) -> None:
    folder = flat(tmp_path / "average")
    assert says(ood, "score", "--method", "msp", "--ood", folder) == (
        "the name 'average' is reserved for the mean over sets; give the set another name: "
        "NAME=PATH"
    )


def test_training_that_cannot_begin_leaves_nothing_in_the_way(ood: Ood, tmp_path: Path) -> None:
    root = tree(tmp_path / "data")
    (root / "train" / "red" / "00.png").write_bytes(b"no image")
    argv = ("train", "--data", root, "--arch", "resnet18:width=2", "--epochs", 1, "--name", "x")
    assert "00.png" in says(ood, *argv)
    assert not (tmp_path / "store" / "runs" / "x").exists()
    assert ood(*argv, "--skip-unreadable")[:2] == (0, "x\n")
    # What was trained without an image is scored without it, too.
    assert ood("score", "--method", "featurenorm")[0] == 0


def test_the_name_of_an_unfinished_run_is_not_given_away(ood: Ood, tmp_path: Path) -> None:
    folder = tmp_path / "store" / "runs" / "x"
    folder.mkdir(parents=True)
    (folder / "training.json").write_text("{}")
    assert says(ood, "train", "--data", "digits", "--name", "x") == (
        "run x is not finished; resume it (ood train --resume --run x) or choose another name: "
        "--name RUN"
    )


def test_a_closed_stdout_is_reported() -> None:
    command = f"{sys.executable} -m oodcli report >&-"
    done = subprocess.run(command, shell=True, check=False, capture_output=True, text=True)  # noqa: S602
    assert done.returncode == 1
    assert done.stderr == "error: stdout is closed, but the result is written there; keep it open\n"


@pytest.mark.skipif(not Path("/dev/full").is_char_device(), reason="needs /dev/full")
def test_a_full_stdout_is_reported(tiny: Path) -> None:
    command = f"{sys.executable} -m oodcli runs list > /dev/full"
    done = subprocess.run(command, shell=True, check=False, capture_output=True, text=True)  # noqa: S602
    assert done.returncode == 1
    assert done.stderr == "error: cannot write to stdout: No space left on device\n"


def test_a_limit_that_cuts_nothing_is_no_quick_look(ood: Ood, tiny: Path) -> None:
    code, out, _ = ood("score", "--method", "msp", "--ood", "uniform-noise", "--limit", 5000)
    assert code == 0
    assert "quick look" not in out
    # That is stored as what it is, so that the advice to score so would lead back here.
    assert says(ood, "report", "--limit", 5000) == (
        "run tiny has no scores of 5,000 images of each set, but of all images: its largest set "
        "has 1,000 images; omit --limit"
    )
    assert says(ood, "report", "--limit", 500) == (
        "run tiny has no scores of 500 images of each set; compute them: ood score --run tiny "
        "--limit 500"
    )


def _options() -> list[tuple[tuple[str, ...], str, str]]:
    """Return every option of every command that names a file or folder for results."""
    from typer.main import get_command

    from oodcli.cli.app import app

    found = []

    def walk(command: Any, names: tuple[str, ...]) -> None:
        for name, each in getattr(command, "commands", {}).items():
            walk(each, (*names, name))
        for param in command.params:
            names_a_place = param.metavar != "NAME"  # which output of a network, for one
            if names_a_place and param.opts[0] in (
                "--output", "--plots", "--export", "--export-activations", "--copy-ood"
            ):  # fmt: skip
                needed = ["x"] * sum(
                    p.required and p.param_type_name == "argument" for p in command.params
                )
                found.append(((*names, *needed), param.opts[0], str(param.metavar)))

    walk(get_command(app), ())
    return found


def test_outputs_are_checked_before_anything_else(ood: Ood, tmp_path: Path) -> None:
    """The commands have no run and no data; that is not what they complain of."""
    (tmp_path / "file").write_text("x")
    options = _options()
    assert len(options) >= 14
    for argv, option, metavar in options:
        if metavar == "DIR":
            wrong, said = tmp_path / "file", f"{tmp_path / 'file'} is not a folder; name one"
        else:
            wrong, said = tmp_path, f"{tmp_path} is a folder; name a file in it"
        assert said in says(ood, *argv, option, wrong), (argv, option)
        absent = f"there is no folder {tmp_path / 'no'}"
        assert absent in says(ood, *argv, option, tmp_path / "no" / "new"), (argv, option)
    assert not (tmp_path / "no").exists()


def test_help_shows_what_the_option_of_a_command_shows(ood: Ood) -> None:
    for words in ((), ("score",), ("runs", "list")):
        assert ood("help", *words) == ood(*words, "--help")
    code, out, err = ood("help", "runs", "lits")
    assert (code, out) == (2, "")
    assert "No such command 'lits'. Did you mean 'list'?" in err


@pytest.mark.skipif(not Path("/proc/self").exists(), reason="needs /proc")
@pytest.mark.parametrize(
    "command",
    [
        ("run", "--output"),
        ("score", "--output"),
        ("score", "--export"),
        ("score", "--export-activations"),
        ("report", "--output"),
        ("report", "--plots"),
        ("normratio", "--output"),
        ("recommend", "--output"),
        ("tuning", "--output"),
        ("predict", ".", "--output"),
        ("predict", ".", "--summary"),
        ("predict", ".", "--copy-ood"),
        ("export", "--method", "msp", "--output"),
        ("datasets", "show", "digits", "--output"),
    ],
)
def test_an_output_that_cannot_be_written_is_refused_first(
    ood: Ood, command: tuple[str, ...]
) -> None:
    # The permissions of /proc say that root may write there. There is no run to work on either.
    assert says(ood, *command, "/proc/new.csv").startswith(
        "cannot write /proc/new.csv: the folder /proc is not writable ("
    )
