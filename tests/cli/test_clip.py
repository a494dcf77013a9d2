"""Zero-shot classifiers of open_clip, from a folder to scores, verdicts and an export."""

import importlib.util
import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from tests.support.cli import Ood, flat, tree
from tests.support.clip import RESNET, VIT, save_clip

pytestmark = pytest.mark.skipif(
    importlib.util.find_spec("open_clip") is None,
    reason="networks written open_clip:… need open_clip_torch: pip install oodcli[clip]",
)


def test_a_zero_shot_classifier_is_imported_scored_and_predicted_with(
    ood: Ood, tmp_path: Path
) -> None:
    folder, data = (
        tmp_path / "tiny-clip",
        tree(tmp_path / "colours", parts=("train", "val", "test")),
    )
    odd = flat(tmp_path / "odd")
    save_clip(folder)
    words = tmp_path / "words.txt"
    words.write_text("\n".join(f"word {index}" for index in range(120)))
    argv = ["import", "--arch", f"open_clip:{folder}", "--data", data]
    code, out, err = ood(*argv, "--negative-words", words, "--negative-prompt", "the nice {}")
    assert (code, out) == (0, "tiny-clip\n"), err
    assert "'a photo of a blue.', 'a photo of a red.'" in err
    record = json.loads(ood("runs", "show", "tiny-clip")[1])
    asked = record["imported"]["zero_shot"]
    assert asked["names"] == record["class_names"] == ["blue", "red"]
    assert asked["templates"] == ["a photo of a {}."]
    assert asked["negative_words"]["lists"] == [
        {"file": str(words), "template": "the nice {}", "words": 120}
    ]
    assert record["preprocess"]["resize"] == "shorter-crop:32:bicubic"
    assert record["blocks"] == [f"visual.transformer.resblocks.{index}" for index in range(3)]
    shutil.rmtree(folder)
    words.unlink()
    methods = [part for name in ("mcm", "glmcm", "neglabel", "knn") for part in ("--method", name)]
    code, out, err = ood("score", *methods, "--ood", odd, "--format", "json")
    assert code == 0, err
    content = json.loads(out)
    rows = {row["method"]: row for row in content["rows"]}
    assert set(rows) == {"mcm", "glmcm", "neglabel", "knn"}
    assert (rows["neglabel"]["params"]["words"], rows["neglabel"]["params"]["groups"]) == (100, 100)
    note = (
        "run tiny-clip is a zero-shot classifier: its last layer is the text embeddings of class "
        "names in the template 'a photo of a {}.'"
    )
    assert note in content["notes"]
    assert note in " ".join(ood("report")[1].split())
    code, out, err = ood("predict", "--method", "neglabel", "--format", "jsonl", odd)
    assert code in (0, 3), err
    assert len([line for line in out.splitlines() if "score" in json.loads(line)]) == 7


@pytest.mark.slow
@pytest.mark.parametrize("vision", [VIT, RESNET], ids=["vit", "resnet"])
def test_a_zero_shot_classifier_is_exported(
    ood: Ood, tmp_path: Path, vision: Mapping[str, Any]
) -> None:
    pytest.importorskip("onnxscript", reason="needs the extra onnx")
    save_clip(tmp_path / "net", vision)
    words = tmp_path / "words.txt"
    words.write_text("\n".join(f"word {index}" for index in range(120)))
    code, _, err = ood(
        "import", "--arch", f"open_clip:{tmp_path / 'net'}", "--data", tree(tmp_path / "colours"),
        "--negative-words", words,
    )  # fmt: skip
    assert code == 0, err
    # The export compares itself with the results of the run.
    for method in ("mcm", "neglabel"):
        code, _, err = ood("export", "--method", method, "--output", tmp_path / method)
        assert code == 0, err
        described = json.loads((tmp_path / method / "model.json").read_text())
        assert described["method"] == method


def test_every_method_of_the_group_is_tried_and_recommended(ood: Ood, tmp_path: Path) -> None:
    data = tree(tmp_path / "colours", parts=("train", "val", "test"), n=6)
    save_clip(tmp_path / "net")
    names = tmp_path / "names.txt"
    names.write_text("azure\ncrimson\n")
    code, _, err = ood(
        "import", "--arch", f"open_clip:{tmp_path / 'net'}", "--data", data, "--name", "z",
        "--class-names", names, "--prompts", "imagenet80",
    )  # fmt: skip
    assert code == 0, err
    assert "79 more templates" in err
    code, out, err = ood("score", "--ood", flat(tmp_path / "odd"), "--format", "json")
    assert code == 0, err
    content = json.loads(out)
    assert {"mcm", "msp"} <= {row["method"] for row in content["rows"]}
    notes = " ".join(content["notes"])
    assert "class names in 80 templates (OPENAI_IMAGENET_TEMPLATES of open_clip" in notes
    assert "without neglabel: neglabel is not defined here: it needs negative words" in notes
    code, out, err = ood("recommend", "--format", "json", "--method", "mcm", "--method", "msp")
    assert code == 0, err
    assert {each["method"] for each in json.loads(out)["candidates"]} == {"mcm", "msp"}
    # Trained on, its last layer is no longer made of text.
    code, out, err = ood("train", "--init", "z", "--data", data, "--epochs", 1, "--name", "t")
    assert code == 0, err
    code, _, err = ood("score", "--run", "t", "--method", "mcm", "--ood", tmp_path / "odd")
    assert code == 1
    assert "mcm is not defined here: it needs a last layer of text embeddings" in err


def test_negative_words_that_changed_are_not_used(ood: Ood, tmp_path: Path) -> None:
    data, odd = tree(tmp_path / "colours", n=3), flat(tmp_path / "odd", n=2)
    save_clip(tmp_path / "net")
    words = tmp_path / "words.txt"
    words.write_text("sun\nmoon\n")
    arch = f"open_clip:{tmp_path / 'net'}"
    code, out, err = ood("import", "--arch", arch, "--data", data, "--negative-words", words)
    assert code == 0, err
    folder = Path(json.loads(ood("runs", "show", out.strip())[1])["folder"])
    stored = folder / "words.safetensors"
    stored.write_bytes(stored.read_bytes()[:-4] + b"abcd")
    code, _, err = ood("score", "--method", "neglabel", "--ood", odd)
    assert code == 1
    assert "have changed since they were written" in err
    code, out, err = ood("runs", "remove", folder.name)
    assert not folder.exists(), (out, err)
