"""``ood doctor``: what is there, what is broken, and no traceback whatever is."""

import errno
import io
import json
import os
import re
import subprocess
import sys
import tempfile
import tomllib
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, NoReturn

import pytest

from oodcli.cli.app import main
from oodcli.store.runs import Job, RunFolder, TrainingRecord
from oodcli.store.store import write_json
from oodcli.training.recipe_choice import recipe_named
from oodcli.workflows import doctor

Ood = Callable[..., tuple[int, str, str]]
ROOT = Path(__file__).resolve().parents[2]


def found(ood: Ood, *argv: object) -> tuple[int, dict[str, Any]]:
    """Return the exit code and the object of ``ood doctor --format json``."""
    code, out, err = ood("doctor", "--format", "json", *argv)
    assert err == ""
    content = json.loads(out)
    assert content["schema"] == 1
    assert content["healthy"] is (code == 0)
    return code, content


def test_all_is_well_where_there_is_no_store_yet(ood: Ood, tmp_path: Path) -> None:
    code, out, err = ood("doctor")
    assert (code, err) == (0, "")
    assert "no problems found" in out
    assert "self-test on cpu" in out
    assert "does not exist" in out
    assert not (tmp_path / "store").exists()


def test_versions_devices_and_the_self_test_are_reported(
    ood: Ood, monkeypatch: pytest.MonkeyPatch
) -> None:
    import torch

    monkeypatch.setenv("OMP_WAIT_POLICY", "PASSIVE")
    code, content = found(ood)
    assert code == 0
    assert content["versions"]["torch"] == torch.__version__
    assert content["devices"][0]["name"] == "cpu"
    assert "OMP_WAIT_POLICY=PASSIVE" in content["devices"][0]["description"]
    tests = {test["device"]: test for test in content["self_tests"]}
    assert tests["cpu"]["passed"]
    assert tests["cpu"]["reason"] == ""


def test_it_knows_every_dependency_and_extra_of_the_project() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]

    def names(listed: list[str]) -> set[str]:
        return {re.split(r"[<>=]", each)[0] for each in listed}

    assert set(doctor.PACKAGES) == names(project["dependencies"])
    extras = {n: names(d) for n, d in project["optional-dependencies"].items() if n != "test"}
    assert {name: set(packages) for name, packages in doctor.EXTRAS.items()} == extras


def test_runs_are_counted_and_damaged_ones_named(ood: Ood, tiny: Path, tmp_path: Path) -> None:
    runs = tmp_path / "store" / "runs"
    for name in ("garbled", "headless", "short", "gone"):
        folder = runs / name
        folder.mkdir()
        for path in (runs / "tiny").glob("*.*"):
            (folder / path.name).write_bytes(path.read_bytes())
    (runs / "garbled" / "run.json").write_text("{")
    (runs / "headless" / "run.json").write_text('{"schema": 1}')
    weights = runs / "short" / "weights.safetensors"
    weights.write_bytes(weights.read_bytes()[:-40])
    (runs / "gone" / "weights.safetensors").unlink()
    job = Job("digits", "resnet18", recipe_named("digits").to_json(), seed=0)
    RunFolder(runs / "begun").begin(TrainingRecord(job, "ood train", "2026"))
    write_json(runs / "torn" / "training.json", {"created": "2026"})
    code, content = found(ood)
    assert code == 1
    state = content["store"]
    assert (state["finished"], state["unfinished"]) == (1, 1)
    assert set(state["damaged"]) == {"garbled", "headless", "short", "gone", "torn"}
    assert state["usage"]["runs"] > 0
    assert len(content["problems"]) == 5
    out = ood("doctor")[1]
    assert "1 finished, 1 unfinished, 5 damaged" in out
    assert "ood runs remove short" in " ".join(out.split())


def test_leftovers_are_named_counted_and_repaired(ood: Ood, tiny: Path, tmp_path: Path) -> None:
    store = tmp_path / "store"
    assert found(ood)[1]["store"]["leftovers"] == {}
    rests = {
        "runs/gone": store / "runs" / "gone" / "normratio" / "normalised-all.json",
        f"activations/{'f' * 32}": store / "activations" / ("f" * 32) / "k" / "x.safetensors",
        "images/.ood-tmp-1": store / "images" / ".ood-tmp-1",
    }
    for path in rests.values():
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"12345")
    os.utime(rests["images/.ood-tmp-1"], (0, 0))
    code, content = found(ood)
    assert code == 0
    assert content["store"]["leftovers"] == dict.fromkeys(rests, 5)
    (remark,) = (each for each in content["remarks"] if "leftovers" in each)
    assert remark == (
        "0.0 MiB of the store are leftovers of killed processes that belong to no run "
        f"({', '.join(rests)}); remove them: ood doctor --repair"
    )
    code, out, _ = ood("runs", "list", "--format", "json")
    assert {each["path"]: each["bytes"] for each in json.loads(out)["leftovers"]} == dict.fromkeys(
        rests, 5
    )
    assert "15 B are leftovers that belong to no run: runs/gone" in ood("runs", "list")[1]
    code, out, err = ood("doctor", "--repair", "--format", "json")
    assert code == 0
    assert err.splitlines() == [f"removed {store / name}: 5 B" for name in rests]
    assert json.loads(out)["store"]["leftovers"] == {}
    assert not any(path.exists() for path in rests.values())
    assert [each["name"] for each in json.loads(ood("runs", "list", "--format", "json")[1])["runs"]]


def remarks_on_runs(content: dict[str, Any]) -> list[str]:
    """Return the remarks without those on extras, some of whose packages may be missing here."""
    return [text for text in content["remarks"] if not text.startswith("extra ")]


def test_runs_whose_results_are_doubtful_are_remarks(
    ood: Ood, tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = RunFolder(tmp_path / "store" / "runs" / "tiny")
    record = folder.read()
    right = {"n": 24, "accuracy": 1.0, "chance": None, "by_class": []}
    folder.write(replace(record, training={"test": right}))
    write_json(folder.recommendation, {"weights": record.weights})
    monkeypatch.delenv("OOD_RUN", raising=False)
    assert remarks_on_runs(found(ood)[1]) == []

    warning = "accuracy was 1.00 %, no better than chance (50.00 %)"
    doubtful = replace(
        record,
        imported={"plausibility": {"warnings": [warning]}},
        training={"test": {**right, "accuracy": 0.5, "chance": 0.5}},
    )
    folder.write(doubtful)
    write_json(folder.recommendation, {"weights": "of another network"})
    edited = folder.path / "scores" / "all" / "scoring.json"
    write_json(edited, {"id_accuracy": 0.9})
    edited.write_text(edited.read_text().replace("0.9", "0.1"))
    monkeypatch.setenv("OOD_RUN", "gone")
    code, content = found(ood)
    assert code == 0
    assert remarks_on_runs(content) == [
        f"when run tiny was imported, {warning}",
        "run tiny classifies 50.00 % of 24 test images correctly, hardly better than chance "
        "(50.00 %); train it longer, or with other settings",
        "the recommendation of run tiny was made for other weights and is not used; choose again: "
        "ood recommend --run tiny",
        f"run tiny: {edited} is damaged or was edited: its content does not match its seal; "
        "commands recompute it, or report an error",
        f"commands without --run are refused: there is no run 'gone' in {tmp_path / 'store'} "
        "(the default, set by OOD_RUN); set OOD_RUN to another run, or unset it",
    ]


@pytest.mark.parametrize(
    ("name", "value", "spins"),
    [
        ("OMP_WAIT_POLICY", "ACTIVE", True),
        ("OMP_WAIT_POLICY", "PASSIVE", False),
        ("GOMP_SPINCOUNT", "infinity", True),
        ("GOMP_SPINCOUNT", "0", False),
        ("KMP_BLOCKTIME", "200", True),
        ("KMP_BLOCKTIME", "0", False),
    ],
)
def test_threads_that_are_made_to_spin_are_a_remark(
    name: str, value: str, *, spins: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    for each in ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT", "KMP_BLOCKTIME"):
        monkeypatch.delenv(each, raising=False)
    monkeypatch.setenv(name, value)
    remarks = [each for each in doctor.diagnose().remarks if "spin" in each]
    assert [each.startswith(f"{name}={value} makes waiting threads spin") for each in remarks] == (
        [True] if spins else []
    )


def test_a_stdout_that_lacks_characters_is_a_remark(monkeypatch: pytest.MonkeyPatch) -> None:
    written = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(written, encoding="latin-1"))
    with pytest.raises(SystemExit) as end:
        main(["doctor"])
    assert not end.value.code
    sys.stdout.flush()
    said = b"note: stdout is iso8859-1: characters outside it are replaced or escaped"
    assert said in written.getvalue()


def test_a_store_that_is_a_file_is_a_line(ood: Ood, tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_text("")
    code, content = found(ood, "--store", path)
    assert code == 1
    assert content["store"] is None
    assert content["problems"] == [
        f"the store cannot be opened: the store {path} is not a folder; name another: --store DIR"
    ]
    assert ood("doctor", "--store", path)[0] == 1


def test_a_store_that_cannot_be_written_is_a_line(
    ood: Ood, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "store").mkdir()

    def refuse(*, dir: Path, prefix: str) -> NoReturn:  # noqa: A002 - its names there
        raise OSError(errno.EROFS, "Read-only file system")

    monkeypatch.setattr(tempfile, "TemporaryFile", refuse)
    code, content = found(ood)
    assert code == 1
    assert content["store"]["writable"] is False
    assert "is not writable" in content["problems"][0]


def test_little_room_is_worth_a_remark(ood: Ood, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("oodcli.store.store.free_bytes", lambda path: 5 * 2**20)
    code, content = found(ood)
    assert code == 0
    assert any("5 MiB" in remark for remark in content["remarks"])


def test_a_wrong_network_fails_the_self_test(ood: Ood, monkeypatch: pytest.MonkeyPatch) -> None:
    from oodcli.methods.energy import Energy

    monkeypatch.setattr(Energy, "score", lambda self, batch: batch.logits.amax(dim=1))
    code, content = found(ood)
    assert code == 1
    assert content["problems"] == [
        "the self-test on cpu failed: RuntimeError: the scores of energy differ from its formula"
    ]
    code, out, _ = ood("doctor")
    assert code == 1
    assert "failed in" in out


def test_an_image_decoded_wrongly_fails_the_self_test(monkeypatch: pytest.MonkeyPatch) -> None:
    from PIL import Image

    monkeypatch.setattr(Image, "open", lambda stream, formats: Image.new("RGB", (8, 8)))
    (problem,) = doctor.diagnose().problems
    assert "wrong pixels" in problem


def test_an_extra_that_is_there_in_part_is_reported(
    ood: Ood, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(doctor, "EXTRAS", {"onnx": ("numpy", "no-such-package")})
    code, content = found(ood)
    assert code == 0
    assert 'onnx lacks no-such-package; complete it: pip install "oodcli[onnx]"' in str(
        content["remarks"]
    )


def test_torch_that_cannot_be_imported_is_a_line(tmp_path: Path) -> None:
    fake = tmp_path / "fake" / "torch"
    fake.mkdir(parents=True)
    (fake / "__init__.py").write_text("raise OSError('libtorch.so: cannot open\\nshared object')\n")
    paths = os.pathsep.join([str(fake.parent), str(ROOT)])
    done = subprocess.run(
        [sys.executable, "-m", "oodcli", "doctor", "--format", "json"],
        check=False, capture_output=True, text=True, env={**os.environ, "PYTHONPATH": paths},
    )  # fmt: skip
    assert (done.returncode, done.stderr) == (1, "")
    content = json.loads(done.stdout)
    assert content["self_tests"] == []
    assert content["problems"][0] == (
        "torch cannot be imported (OSError: libtorch.so: cannot open shared object); "
        "install it again: pip install --force-reinstall torch"
    )
