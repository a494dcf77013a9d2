"""Objectives, recipes, seeds and starts, as a user types them, on the embedded digits."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.numpy import load_file, save_file

from tests.support.program import start_program

Ood = Callable[..., tuple[int, str, str]]
DIGITS = ("train", "--data", "digits", "--image-size", 16, "--resize", "exact")
SMALL = (*DIGITS, "--arch", "resnet18:width=4")


def record(store: Path, name: str) -> dict:
    """Return the record of a run."""
    return json.loads((store / "runs" / name / "run.json").read_text())


def weights(store: Path, name: str) -> dict[str, np.ndarray]:
    """Return the weights of a run."""
    return load_file(store / "runs" / name / "weights.safetensors")


@pytest.fixture
def store(tmp_path: Path) -> Path:
    """Return the store that commands use."""
    return tmp_path / "store"


@pytest.mark.parametrize(
    ("objective", "epochs", "lr"),
    # Short training wants a smaller rate where gradients are larger: by a power of e for ISH, by
    # the short logits of the first steps for LogitNorm.
    [("logitnorm", 5, 0.02), ("ish", 5, 0.01), ("supcon", 3, 0.1), ("alpa", 2, 0.1)],
)
def test_every_objective_trains_a_classifier(
    ood: Ood, store: Path, objective: str, epochs: int, lr: float
) -> None:
    options = ("--epochs", epochs, "--lr", lr, "--objective", objective)
    code, out, err = ood(*SMALL, *options, "--name", "o")
    assert (code, out) == (0, "o\n"), err
    assert f", {objective}" in err
    kept = record(store, "o")
    assert kept["recipe"]["objective"] == objective
    assert kept["training"]["val_accuracy"] > 0.6
    assert set(weights(store, "o")) == plain_names()
    training = err
    code, out, err = ood("score", "--method", "msp", "--limit", 60)
    assert code == 0, err
    probe = objective in ("supcon", "alpa")
    assert kept["training"]["last_layer"] == ("linear probe" if probe else "trained")
    assert ("fitting a linear probe" in training) is probe
    assert ("is a linear probe, fitted after training" in ood("report")[1]) is probe


def plain_names() -> set[str]:
    """Return the names of the tensors of an ordinary network."""
    from oodcli.models import parse_architecture

    return set(parse_architecture("resnet18:width=4").build(6).state_dict())


def test_t2fnorm_predicts_normalised_and_scores_as_it_is(
    ood: Ood, store: Path, tmp_path: Path
) -> None:
    code, _, err = ood(*SMALL, "--epochs", 3, "--objective", "t2fnorm:tau=0.05", "--name", "t")
    assert code == 0, err
    kept = weights(store, "t")
    assert kept["fc.tau"] == pytest.approx(0.05)
    assert kept["fc.scoring_tau"] == pytest.approx(0.05)
    export = tmp_path / "scores.npz"
    assert ood("score", "--method", "maxlogit", "--export", export)[0] == 0
    accuracy = json.loads(ood("report", "--format", "json")[1])["runs"][0]["id_accuracy"]
    (shard,) = [
        arrays
        for path in (store / "activations").rglob("*.safetensors")
        if len((arrays := load_file(path))["logits"]) == 217
    ]
    unit = shard["features"] / np.linalg.norm(shard["features"], axis=1, keepdims=True)
    own = unit / 0.05 @ kept["fc.weight"].T + kept["fc.bias"]
    assert np.array_equal(shard["predictions"], own.argmax(axis=1))
    with np.load(export) as stored:
        assert np.mean(own.argmax(axis=1) == stored["@labels/digits"]) == pytest.approx(accuracy)
        scored = shard["features"] / 0.05 @ kept["fc.weight"].T + kept["fc.bias"]
        assert stored["maxlogit/digits"] == pytest.approx(scored.max(axis=1), rel=1e-4, abs=1e-5)


def test_the_best_checkpoint_counts_where_the_recipe_says_so(ood: Ood, store: Path) -> None:
    """At a constant rate, the weights after an epoch do not depend on how many follow."""
    steady = ("--set", "schedule=step", "--set", "milestones=1", "--lr", "0.3", "--seed", 1)
    steady = (*steady, "--set", "augmentation=crop", "--set", "weight_decay=5e-4")
    code, _, err = ood(*SMALL, *steady, "--epochs", 5, "--name", "b", "--set", "keep=best")
    assert code == 0, err
    lines = (store / "runs/b/history.jsonl").read_text().splitlines()
    values = [json.loads(line)["val_accuracy"] for line in lines]
    best = max(epoch for epoch, value in enumerate(values, 1) if value == max(values))
    assert best < 5
    kept = record(store, "b")["training"]
    assert (kept["checkpoint"], kept["val_accuracy"]) == (best, max(values))
    assert f"the checkpoint of epoch {best} is used" in err
    assert not list((store / "runs" / "b").glob("best-*"))
    assert ood(*SMALL, *steady, "--epochs", best, "--name", "c")[0] == 0
    for name, tensor in weights(store, "b").items():
        assert np.array_equal(tensor, weights(store, "c")[name]), name


def test_a_loss_that_is_not_finite_leaves_the_last_good_weights(ood: Ood, store: Path) -> None:
    exploding = (*SMALL, "--epochs", 4, "--set", "schedule=step", "--set", "milestones=1")
    # The rate of the first epoch is that of a warm-up, which ends far too high.
    rising = ("--set", "warm_up=0.5", "--set", "warm_up_lr=0.001", "--lr", "1e30")
    code, out, err = ood(*exploding, *rising, "--name", "x")
    assert (code, out) == (1, "")
    assert "the loss is nan at step" in err or "the loss is inf at step" in err


def test_a_spoiled_run_can_be_started_from(ood: Ood, store: Path) -> None:
    """What was kept before the loss was NaN is good to begin another run with."""
    from oodcli.store.store import Store
    from oodcli.training import session as workflow

    original = workflow.Trainer.epochs

    def failing(self: object, *args: object, **kwargs: object) -> object:
        from oodcli.training.loop import NotFiniteError

        for stats in original(self, *args, **kwargs):  # type: ignore[arg-type]
            yield stats
            if stats.epoch == 2:
                raise NotFiniteError(float("nan"), epoch=3, step=5, lr=0.1)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(workflow.Trainer, "epochs", failing)
        code, _, err = ood(*SMALL, "--epochs", 4, "--name", "x")
    assert code == 1
    assert "the weights after epoch 2 are stored; to start from them: --init x" in err
    assert len(list((store / "runs" / "x").glob("state-*"))) == 2
    assert len((store / "runs/x/history.jsonl").read_text().splitlines()) == 2
    code, _, err = ood(*DIGITS, "--init", "x", "--epochs", 1, "--name", "y")
    assert code == 0, err
    assert record(store, "y")["arch"] == "resnet18:width=4"
    assert Store.at(store).root == store


def test_training_starts_from_a_run_or_a_checkpoint(ood: Ood, store: Path, tmp_path: Path) -> None:
    ood(*SMALL, "--epochs", 2, "--name", "first")
    tiny_rate = ("--epochs", 1, "--lr", "1e-9")
    code, _, err = ood(*DIGITS, "--init", "first", *tiny_rate, "--name", "again")
    assert code == 0, err
    assert ", from first" in err
    before, after = weights(store, "first"), weights(store, "again")
    for name in before:
        if not name.endswith(("running_mean", "running_var", "tracked")):
            np.testing.assert_allclose(after[name], before[name], atol=1e-4)
    assert record(store, "again")["training"]["init"]["source"] == "first"
    path = tmp_path / "foreign.safetensors"
    save_file({f"module.{k}": v for k, v in before.items()}, path)
    code, _, err = ood(*SMALL, "--init", path, *tiny_rate, "--name", "foreign")
    assert code == 0, err
    for name, tensor in weights(store, "foreign").items():
        assert np.array_equal(tensor, after[name]), name
    other = {
        **before,
        "fc.weight": np.zeros((9, 32), np.float32),
        "fc.bias": np.zeros(9, np.float32),
    }
    save_file(other, path)
    assert ood(*SMALL, "--init", path, *tiny_rate, "--name", "classes")[0] == 0
    code, _, err = ood(*DIGITS, "--arch", "resnet20", "--init", "first")
    assert code == 1
    assert "the weights do not fit resnet20" in err
    code, _, err = ood(*SMALL, "--init", "nobody")
    assert code == 1
    assert "--init nobody is neither a run nor a file; existing runs:" in err


def test_fine_tuning_asks_for_a_network(ood: Ood) -> None:
    code, _, err = ood(*SMALL, "--recipe", "mode-finetune")
    assert code == 1
    assert err == (
        "error: recipe mode-finetune starts from a trained network; specify one: --init RUN, "
        "--init FILE or --pretrained, or start from random weights: --set start=random\n"
    )


def test_alpa_fine_tunes_a_cross_entropy_network(ood: Ood, store: Path) -> None:
    ood(*SMALL, "--epochs", 2, "--name", "base")
    fine = ("--recipe", "mode-finetune", "--init", "base", "--epochs", 1, "--lr", "0.01")
    code, _, err = ood(*DIGITS, *fine, "--name", "fine")
    assert code == 0, err
    kept = record(store, "fine")
    assert kept["recipe"]["name"] == "mode-finetune"
    assert kept["training"]["last_layer"] == "linear probe"
    assert kept["training"]["val_accuracy"] > 0.5


def test_three_seeds_are_reported_with_their_spread(ood: Ood) -> None:
    code, out, err = ood(*SMALL, "--epochs", 1, "--seeds", "0,1,2", "--name", "s")
    assert (code, out) == (0, "s-s0\ns-s1\ns-s2\n"), err
    assert "ood report --run s-s0 --run s-s1 --run s-s2" in err
    for name in out.split():
        assert ood("score", "--run", name, "--method", "msp", "--limit", 30)[0] == 0
    code, out, _ = ood("report", "--run", "s-s0", "--run", "s-s1", "--run", "s-s2")
    assert code == 0
    assert "±" in out
    assert ood(*SMALL, "--seeds", "1,1")[2].startswith(
        "error: --seeds must be distinct non-negative integers"
    )
    assert ood(*SMALL, "--seeds", "one")[0] == 2


@pytest.mark.parametrize("objective", ["alpa", "t2fnorm"])
def test_a_kill_changes_nothing(ood: Ood, store: Path, objective: str) -> None:
    long = (*SMALL, "--objective", objective, "--epochs", "5", "--set", "keep=best")
    ood(*long, "--name", "whole")
    program = start_program(*long, "--name", "cut")
    program.wait_until((store / "runs" / "cut" / "state.json").is_file)
    program.send_signal(signal.SIGKILL)
    assert program.ended()[0] == -signal.SIGKILL
    code, _, err = ood("train", "--resume", "--run", "cut")
    assert code == 0, err
    assert "resuming after epoch" in err
    whole, cut = weights(store, "whole"), weights(store, "cut")
    for name, tensor in whole.items():
        assert np.array_equal(tensor, cut[name]), name


@pytest.mark.slow
def test_twenty_kills_in_a_row_change_nothing(ood: Ood, store: Path) -> None:
    long = (*SMALL, "--objective", "t2fnorm", "--epochs", "40", "--set", "keep=best")
    ood(*long, "--name", "whole")
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}
    moments = np.random.default_rng(0).uniform(0.5, 6.0, 20)
    started = False
    for moment in moments:
        start_program = (store / "runs" / "cut" / "training.json").is_file()
        argv = ("train", "--resume", "--run", "cut") if start_program else (*long, "--name", "cut")
        process = subprocess.Popen(
            [sys.executable, "-m", "oodcli", *map(str, argv)],
            env=environment, stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL,
        )  # fmt: skip
        time.sleep(moment)
        process.kill()
        process.wait()
        started = started or start_program
    assert started
    code, _, err = ood("train", "--resume", "--run", "cut")
    assert code == 0, err
    for name, tensor in weights(store, "whole").items():
        assert np.array_equal(tensor, weights(store, "cut")[name]), name


def test_a_damaged_state_falls_back_on_the_one_before(ood: Ood, store: Path) -> None:
    from oodcli.training import session as workflow

    original = workflow.save_state
    whole = (*SMALL, "--epochs", 4)
    ood(*whole, "--name", "whole")

    def dying(folder: object, trainer: object, history: list, **rest: object) -> object:
        done = original(folder, trainer, history, **rest)  # type: ignore[arg-type]
        if len(history) == 3:
            raise KeyboardInterrupt
        return done

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(workflow, "save_state", dying)
        assert ood(*whole, "--name", "cut")[0] == 130
    states = sorted((store / "runs" / "cut").glob("state-*"))
    assert [path.name for path in states] == ["state-0002.safetensors", "state-0003.safetensors"]
    states[1].write_bytes(states[1].read_bytes()[:-1] + b"!")
    code, _, err = ood("train", "--resume", "--run", "cut")
    assert code == 0
    assert "the state of run cut after epoch 3 is damaged" in err
    assert "resuming after epoch 2" in err
    for name, tensor in weights(store, "whole").items():
        assert np.array_equal(tensor, weights(store, "cut")[name]), name


def test_images_may_have_another_size(ood: Ood, store: Path) -> None:
    code, _, err = ood(
        *SMALL, "--epochs", 1, "--image-size", 20, "--resize", "exact", "--name", "i"
    )
    assert code == 0, err
    assert record(store, "i")["preprocess"]["size"] == [20, 20]
    assert ood("score", "--method", "msp", "--limit", 20)[0] == 0
    code, _, err = ood(*SMALL, "--resize", "stretch")
    assert "--resize must be exact, shorter-crop or shorter-crop:SIDE, not 'stretch'" in err
    assert torch.get_num_threads() == 1


def test_networks_of_the_users_own_are_trained_and_aligned(
    ood: Ood, store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its blocks and last layer are found, and objectives may change them."""
    (tmp_path / "ownnet.py").write_text(
        "from torch import nn\n"
        "def small(num_classes):\n"
        "    return nn.Sequential(\n"
        "        nn.Conv2d(3, 8, 3, stride=2), nn.ReLU(),\n"
        "        nn.Conv2d(8, 16, 3, stride=2), nn.ReLU(),\n"
        "        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(16, num_classes))\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    own = (*DIGITS, "--arch", "ownnet:small", "--epochs", 1)
    for objective in ("t2fnorm", "alpa"):
        code, _, err = ood(*own, "--objective", objective, "--name", objective)
        assert code == 0, err
    assert weights(store, "t2fnorm")["6.tau"] == pytest.approx(0.1)
    assert record(store, "alpa")["training"]["last_layer"] == "linear probe"
    code, _, err = ood("score", "--run", "t2fnorm", "--method", "msp", "--limit", 20)
    assert code == 0, err


def test_the_whole_job_takes_an_objective(ood: Ood, store: Path) -> None:
    code, out, err = ood(
        "run", "--arch", "resnet18:width=4", "--objective", "t2fnorm:tau=0.05", "--epochs", 1,
        "--set", "augmentation=flip", "--format", "json",
    )  # fmt: skip
    assert code == 0, err
    assert {"knn", "featurenorm"} <= {row["method"] for row in json.loads(out)["rows"]}
    (name,) = (path.name for path in (store / "runs").iterdir())
    recipe = record(store, name)["recipe"]
    assert recipe["objective"] == "t2fnorm:tau=0.05"
    assert recipe["augmentation"] == ["flip"]
