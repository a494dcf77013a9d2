"""Augmentation words on the command line: what is refused, recorded and named, and resumed."""

import json
from pathlib import Path

import pytest

from oodcli.data.formats import fractals
from tests.support.cli import Ood, flat, tree

TRAIN = (
    "train", "--arch", "resnet18:width=2", "--recipe", "pixmix-cifar", "--image-size", 16,
    "--epochs", 2, "--batch-size", 12, "--set", "keep=last",
)  # fmt: skip


@pytest.fixture
def data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Make a small data set, and fractals few."""
    monkeypatch.setattr(fractals, "COUNT", 6)
    monkeypatch.setattr(fractals, "SIDE", 20)
    return tree(tmp_path / "colours")


def test_what_cannot_be_combined_is_refused_before_anything_is_stored(
    ood: Ood, data: Path, tmp_path: Path
) -> None:
    pictures = flat(tmp_path / "pictures")
    for options, message in (
        (("--set", "augmentation=pixmix,flip"), "flip acts before pixmix"),
        (("--set", "augmentation=mixup,cutmix"), "use mixup or cutmix"),
        (("--set", "augmentation=mixmix"), "did you mean 'pixmix'?"),
        (
            ("--set", "augmentation=flip,crop,mixup", "--objective", "supcon"),
            "objective supcon needs one class per image",
        ),
        (
            ("--set", "augmentation=flip,augmix", "--objective", "supcon"),
            "omit that loss: --set jsd_weight=0",
        ),
        (
            ("--set", "augmentation=flip", "--mixing-set", pictures),
            "--mixing-set is for recipes with the augmentation pixmix",
        ),
        (("--mixing-set", tmp_path / "gone"), "no folder or file"),
        (("--set", "regmixup_alpha=0"), "--set regmixup_alpha must be positive"),
    ):
        code, out, err = ood(*TRAIN, "--data", data, *options)
        assert (code, out) == (1, ""), message
        assert message in err
        assert len(err.strip().splitlines()[-1]) < 400
    runs = tmp_path / "store" / "runs"
    assert not runs.exists() or not list(runs.iterdir())


def test_the_mixing_set_is_recorded_and_named_in_every_table(
    ood: Ood, data: Path, tmp_path: Path
) -> None:
    pictures = flat(tmp_path / "pictures")
    stands_in = "computed by ood; not the published mixing set of PixMix"
    code, out, err = ood(*TRAIN, "--data", data, "--name", "own", "--mixing-set", pictures)
    assert (code, out.strip()) == (0, "own"), err
    assert "mixing set: pictures" in err
    assert stands_in not in err
    code, _, err = ood(*TRAIN, "--data", data, "--name", "made")
    assert code == 0, err
    assert stands_in in err
    records = {
        name: json.loads((tmp_path / "store" / "runs" / name / "run.json").read_text())
        for name in ("own", "made")
    }
    mixing = {name: record["training"]["mixing"] for name, record in records.items()}
    assert (mixing["own"]["name"], mixing["own"]["made"]) == ("pictures", False)
    assert (mixing["made"]["source"], mixing["made"]["images"]) == ("fractals", 6)
    assert all(len(each["digest"]) == 32 for each in mixing.values())
    assert records["own"]["weights"] != records["made"]["weights"]
    code, _, err = ood("score", "--run", "made", "--ood", pictures, "--method", "msp")
    assert code == 0, err
    table = ood("report", "--run", "made")[1]
    assert "run made was trained by PixMix with the mixing set fractals test, 6 images" in table
    assert stands_in in " ".join(table.split())
    told = json.loads(ood("report", "--run", "made", "--format", "json")[1])
    assert told["runs"][0]["mixing"] == mixing["made"]


def test_an_interrupted_training_resumes_with_the_same_pictures(
    ood: Ood, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from oodcli.training import session
    from oodcli.training.state import save_state

    pictures = flat(tmp_path / "pictures")
    whole = ("--data", data, "--mixing-set", pictures)
    assert ood(*TRAIN, *whole, "--name", "whole")[0] == 0

    def cut(*arguments: object, **options: bool) -> None:
        save_state(*arguments, **options)  # type: ignore[arg-type]
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(session, "save_state", cut)
        assert ood(*TRAIN, *whole, "--name", "cut")[0] != 0
    first, *_, last = sorted(pictures.iterdir())
    kept = first.read_bytes()
    first.write_bytes(last.read_bytes())
    code, _, err = ood("train", "--resume", "--run", "cut")
    assert code == 1
    assert "the pictures of the mixing set pictures" in err
    first.write_bytes(kept)
    code, _, err = ood("train", "--resume", "--run", "cut")
    assert code == 0, err
    runs = tmp_path / "store" / "runs"
    digests = [
        json.loads((runs / name / "run.json").read_text())["weights"] for name in ("whole", "cut")
    ]
    assert digests[0] == digests[1]
