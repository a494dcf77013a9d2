"""A run in use is neither removed nor renamed; real processes and real kills."""

import json
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from oodcli.store.removal import leftovers
from oodcli.store.store import Store
from tests.support.cli import Ood, flat
from tests.support.program import start_program

IN_USE = "error: run tiny is in use by another ood process; stop it, or wait until it has ended\n"


@pytest.mark.parametrize("change", [("remove", "tiny"), ("rename", "tiny", "other")])
def test_a_run_that_is_scored_stays_until_it_is_scored(
    ood: Ood, tiny: Path, tmp_path: Path, change: tuple[str, ...]
) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (4000, 32, 32, 3), dtype=np.uint8)
    np.savez(tmp_path / "noise.npz", images=pixels)
    program = start_program(
        "score", "--run", "tiny", "--ood", tmp_path / "noise.npz", "--method", "featurenorm",
        "--method", "knn:k=3", "--format", "json", "--device", "cpu",
    )  # fmt: skip
    program.wait_until(lambda: "forward pass" in program.err)
    program.send_signal(signal.SIGSTOP)  # it must not end before the other command is refused
    assert ood("runs", *change) == (1, "", IN_USE)
    assert program.runs
    program.send_signal(signal.SIGCONT)
    code, out, err = program.ended()
    assert code == 0, err
    assert json.loads(out)["rows"][0]["n_ood"] == 4000
    assert ood("runs", *change)[0] == 0
    assert leftovers(Store(tmp_path / "store")) == []


def test_a_killed_process_holds_nothing_and_all_it_left_is_removed(
    ood: Ood, tiny: Path, tmp_path: Path
) -> None:
    (image, *_) = sorted(flat(tmp_path / "odd").iterdir())
    argv = ("predict", "-", "--run", "tiny", "--method", "msp", "--format", "jsonl")
    process = subprocess.Popen(
        [sys.executable, "-m", "oodcli", *argv],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    assert process.stdin is not None
    assert process.stdout is not None
    process.stdin.write(f"{image}\n")
    process.stdin.flush()
    assert ood("runs", "list")[0] == 0
    while not (tmp_path / "store" / "runs" / "tiny" / "detectors").is_dir():
        assert process.poll() is None, process.communicate()
    assert ood("runs", "remove", "tiny") == (1, "", IN_USE)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    code, _, err = ood("runs", "remove", "tiny")
    assert code == 0
    assert err.startswith("removed tiny: ")
    store = Store(tmp_path / "store")
    assert not (store.runs / "tiny").exists()
    assert leftovers(store) == []
