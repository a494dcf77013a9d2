"""``ood score --activations`` and ``--export-activations``."""

import json
from pathlib import Path

import numpy as np
import pytest

from tests.support.cli import Ood, flat


def test_what_is_exported_gives_the_same_scores(ood: Ood, tiny: Path, tmp_path: Path) -> None:
    flat(tmp_path / "noise")
    methods = [
        option for name in ("energy", "featurenorm", "norm+msp") for option in ("--method", name)
    ]
    acts, one, two = tmp_path / "acts.npz", tmp_path / "one.npz", tmp_path / "two.npz"
    code, out, _ = ood(
        "score",
        *methods,
        *("--ood", tmp_path / "noise", "--export-activations", acts, "--export", one),
        *("--format", "json"),
    )
    assert code == 0
    code, again, err = ood(
        "score", *methods, "--activations", acts, "--export", two, "--format", "json"
    )
    assert code == 0, err
    with np.load(one) as run, np.load(two) as file, np.load(acts) as stored:
        assert {"train/features", "train/labels", "test/labels", "noise/logits"} <= set(stored)
        assert stored["jigsaw/block_norms"].shape == stored["train/block_norms"].shape
        assert stored["noise/features"].dtype == np.float32
        test = next(name.partition("/")[2] for name in run if name.startswith("@labels"))
        for name in run:
            new = name.removesuffix(test) + "test" if name.endswith(f"/{test}") else name
            np.testing.assert_array_equal(file[new], run[name], err_msg=name)
        assert len(file.files) == len(run.files)
    rows, others = (
        {(row["method"], row["dataset"]): row for row in json.loads(text)["rows"]}
        for text in (out, again)
    )
    for key, row in rows.items():
        for metric in ("fpr95", "auroc", "aupr_in", "id_accuracy"):
            assert others[key][metric] == row[metric]
    assert others["featurenorm", "noise"]["params"] == rows["featurenorm", "noise"]["params"]


def test_a_set_of_a_reserved_name_is_refused_before_anything_is_done(
    ood: Ood, tiny: Path, tmp_path: Path
) -> None:
    flat(tmp_path / "noise")
    code, out, err = ood(
        "score",
        *("--method", "msp", "--ood", f"test={tmp_path / 'noise'}"),
        *("--export-activations", tmp_path / "acts.npz"),
    )
    assert (code, out) == (1, "")
    assert err.splitlines()[-1] == (
        "error: the name 'test' is reserved in files of activations; give the OOD set another "
        "name: --ood NAME=PATH"
    )
    assert not (tmp_path / "acts.npz").exists()


@pytest.mark.parametrize(
    ("option", "value"),
    [
        ("--run", ["tiny"]),
        ("--ood", ["noise"]),
        ("--limit", ["3"]),
        ("--dry-run", []),
        ("--amp", []),
        ("--export-activations", ["other.npz"]),
        ("--tune", ["pseudo"]),
    ],
)
def test_options_that_mean_nothing_for_a_file(ood: Ood, option: str, value: list[str]) -> None:
    code, out, err = ood("score", "--activations", "acts.npz", option, *value)
    assert (code, out) == (1, "")
    assert err == (f"error: {option} has no effect on activations from a file; remove it\n")


def test_a_file_without_val_says_what_methods_are_calibrated_on(ood: Ood, tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    arrays = {"weight": np.eye(2, 3, dtype=np.float32), "bias": np.zeros(2, np.float32)}
    for name in ("train", "test", "noise"):
        arrays[f"{name}/features"] = rng.random((10, 3), dtype=np.float32)
        arrays[f"{name}/labels"] = np.arange(10) % 2
    np.savez(tmp_path / "acts.npz", **arrays)
    code, out, err = ood("score", "--activations", tmp_path / "acts.npz", "--method", "energy")
    assert code == 0
    assert "acts.npz has no set val: methods are calibrated on a fixed tenth of train" in err
    assert out.startswith("acts: 3 features, 2 classes, ID test (10 test images, accuracy ")
    assert "noise" in out
