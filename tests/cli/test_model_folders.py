"""Networks in folders of Hugging Face, from the folder to scores, verdicts and an export."""

import json
import shutil
from pathlib import Path

import pytest
import torch

from tests.support.cli import Ood, flat, tree

transformers = pytest.importorskip(
    "transformers", reason="networks written hf:… need transformers: pip install oodcli[hf]"
)


def folder_of_vit(folder: Path) -> Path:
    """Save a tiny network whose classes stand in another order than in the data."""
    torch.manual_seed(0)
    config = transformers.ViTConfig(
        hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=32,
        image_size=32, patch_size=8, id2label={0: "Red", 1: "Blue"}, label2id={"Red": 0, "Blue": 1},
    )  # fmt: skip
    transformers.ViTForImageClassification(config).save_pretrained(folder)
    transformers.ViTImageProcessor(
        size={"height": 32, "width": 32}, resample=3, image_mean=[0.4] * 3, image_std=[0.2] * 3
    ).save_pretrained(folder)
    return folder


def test_a_folder_is_imported_scored_predicted_and_exported_without_it(
    ood: Ood, tmp_path: Path
) -> None:
    folder = folder_of_vit(tmp_path / "my-vit")
    data, odd = tree(tmp_path / "colours"), flat(tmp_path / "odd")
    code, out, err = ood("import", "--arch", f"hf:{folder}", "--data", data)
    assert (code, out) == (0, "my-vit\n"), err
    record = json.loads(ood("runs", "show", "my-vit")[1])
    assert record["class_names"] == ["red", "blue"]
    pre = record["preprocess"]
    assert (pre["size"], pre["resize"]) == ([32, 32], "exact:bicubic")
    assert (pre["mean"], pre["std"]) == ([0.4] * 3, [0.2] * 3)
    assert record["imported"]["source"] == str(folder / "model.safetensors")
    assert record["blocks"] == ["vit.layers.0", "vit.layers.1"]
    shutil.rmtree(folder)
    code, out, err = ood("score", "--method", "energy", "--ood", odd, "--format", "json")
    assert code == 0, err
    code, out, err = ood("predict", "--method", "energy", odd)
    assert code in (0, 3), err
    code, _, err = ood("export", "--method", "energy", "--output", tmp_path / "exported")
    assert code == 0, err
    assert (tmp_path / "exported" / "model.onnx").is_file()
    code, _, err = ood("train", "--init", "my-vit", "--data", data, "--epochs", 1)
    assert code == 1
    assert str(folder) in err


def test_a_file_in_the_names_of_the_hub_goes_into_the_network_of_a_folder(
    ood: Ood, tmp_path: Path
) -> None:
    folder, data = folder_of_vit(tmp_path / "my-vit"), tree(tmp_path / "colours")
    (folder / "model.safetensors").rename(tmp_path / "best.safetensors")
    argv = ["import", "--arch", f"hf:{folder}", "--data", data]
    code, _, err = ood(*argv)
    assert code == 1
    assert "has no weights (model.safetensors or pytorch_model.bin)" in err
    code, out, err = ood(*argv, tmp_path / "best.safetensors")
    assert (code, out) == (0, "best\n"), err
    assert json.loads(ood("runs", "show", "best")[1])["class_names"] == ["red", "blue"]


def test_a_folder_needs_no_checkpoint_and_every_other_network_does(
    ood: Ood, tmp_path: Path
) -> None:
    data = tree(tmp_path / "colours")
    code, _, err = ood("import", "--arch", "resnet18", "--data", data)
    assert code == 2
    assert "--pretrained or --arch hf:FOLDER" in " ".join(err.split())
    code, _, err = ood("import", "--arch", f"hf:{tmp_path / 'gone'}", "--data", data)
    assert code == 1
    assert "there is no folder" in err
