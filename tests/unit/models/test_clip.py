"""CLIP networks of open_clip, from folders that the tests write."""

import importlib.util
import json
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn.functional import multi_head_attention_forward, normalize

from oodcli.errors import InvalidInputError, OodError, UnknownNameError
from oodcli.models import (
    load_into,
    load_with_remarks,
    parse_architecture,
    pretrained_state,
    published_configuration,
    translated_state,
)
from oodcli.models.checkpoint import load_head, load_run_network, save_weights
from oodcli.models.clip_tower import ImageTower
from oodcli.models.pretrained import clip_network
from tests.support.clip import RESNET, SIDE, VIT, save_clip

# Importing it takes seconds, which only the tests that run need.
pytestmark = pytest.mark.skipif(
    importlib.util.find_spec("open_clip") is None,
    reason="networks written open_clip:… need open_clip_torch: pip install oodcli[clip]",
)
CPU = torch.device("cpu")
NAMES = ("red ball", "blue sky", "cat")


@pytest.fixture(autouse=True)
def no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_args: object) -> None:
        raise AssertionError("something went to the network")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)


def refusal(action: Callable[[], object]) -> str:
    with pytest.raises(OodError) as caught:
        action()
    assert "\n" not in str(caught.value)
    return str(caught.value)


def classifier(folder: Path, side: int = SIDE) -> Any:
    """Return a zero-shot classifier as an import makes it."""
    arch = f"open_clip:{folder}"
    clip, _ = clip_network(arch, None, download=False)
    texts = clip.embed_names(NAMES, ("a photo of a {}.", "a {}"), device=CPU)
    state = {
        **clip.image_tower(),
        "head.weight": clip.logit_scale * texts,
        "head.bias": torch.zeros(3),
        "head.logit_scale": torch.tensor(clip.logit_scale),
    }
    return load_into(parse_architecture(arch, side=side), state), clip


@pytest.mark.parametrize(("vision", "side"), [(VIT, SIDE), (RESNET, 64)], ids=["vit", "resnet"])
def test_logits_are_those_of_open_clip_and_local_embeddings_those_of_the_paper(
    vision: dict[str, Any], side: int, tmp_path: Path
) -> None:
    import open_clip

    theirs = save_clip(tmp_path, vision)
    network, _ = classifier(tmp_path, side)
    tokenizer = open_clip.get_tokenizer(f"local-dir:{tmp_path}")
    images = torch.randn(3, 3, side, side)
    zero_shot = open_clip.build_zero_shot_classifier(
        theirs, tokenizer, NAMES, ["a photo of a {}.", "a {}"]
    )
    maps: list[Tensor] = []
    tower = network.module
    assert isinstance(tower, ImageTower)
    hook = tower.get_submodule(tower.local_path).register_forward_hook(
        lambda _module, _inputs, output: maps.append(output)
    )
    with torch.inference_mode():
        embedded = theirs.encode_image(images, normalize=True)
        wanted = theirs.logit_scale.exp() * embedded @ zero_shot
        logits = tower(images)
        hook.remove()
        block = next(name for name, path in network.blocks.items() if path == tower.local_path)
        local = tower.local_embeddings(network.layout(block).maps(maps[0]))
        assert wanted.std() > 0.1
        torch.testing.assert_close(logits, wanted, rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(local, oracle(theirs.visual, maps[0]), rtol=1e-4, atol=1e-5)
    head = network.head()
    assert head.scale == pytest.approx(float(np.exp(3)), rel=1e-6)
    torch.testing.assert_close(head.texts, zero_shot.T, rtol=1e-4, atol=1e-6)
    kinds = {type(tower.get_submodule(path)).__name__ for path in network.blocks.values()}
    found = (kinds, len(network.blocks))
    assert found == (({"ResidualAttentionBlock"}, 3) if vision is VIT else ({"Bottleneck"}, 5))


def oracle(visual: Any, given: Tensor) -> Tensor:
    """Return local embeddings by attention, in which every position sees itself alone."""
    if given.dim() == 3:
        others = ~torch.eye(given.shape[1], dtype=torch.bool)
        block = visual.transformer.resblocks[-1]
        normed = block.ln_1(given)
        alone = block.attn(normed, normed, normed, need_weights=False, attn_mask=others)[0]
        tokens = given + alone
        tokens = tokens + block.mlp(block.ln_2(tokens))
        return visual.ln_post(tokens)[:, 1:] @ visual.proj
    pool = visual.attnpool
    positions = given.flatten(2).mT.flatten(0, 1)[None]  # a sequence of one for each position
    out, _ = multi_head_attention_forward(
        positions, positions, positions, positions.shape[2], pool.num_heads,
        q_proj_weight=pool.q_proj.weight, k_proj_weight=pool.k_proj.weight,
        v_proj_weight=pool.v_proj.weight, in_proj_weight=None,
        in_proj_bias=torch.cat([pool.q_proj.bias, pool.k_proj.bias, pool.v_proj.bias]),
        bias_k=None, bias_v=None, add_zero_attn=False, dropout_p=0.0,
        out_proj_weight=pool.c_proj.weight, out_proj_bias=pool.c_proj.bias,
        use_separate_proj_weight=True, training=False, need_weights=False,
    )  # fmt: skip
    return out[0].view(len(given), -1, out.shape[2])


def test_a_run_needs_neither_its_folder_nor_the_text_tower(tmp_path: Path) -> None:
    folder, path = tmp_path / "net", tmp_path / "weights.safetensors"
    save_clip(folder, quick_gelu=True)
    network, _ = classifier(folder)
    save_weights(network, path)
    (folder / "open_clip_config.json").unlink()
    arch = str(network.spec)
    again = load_run_network(path, arch, 3, size=(SIDE, SIDE), blocks=tuple(network.blocks))
    images = torch.randn(2, 3, SIDE, SIDE)
    with torch.inference_mode():
        assert torch.equal(again.module(images), network.module(images))
    assert again.digest == network.digest
    names = again.module.state_dict()
    assert all(name.startswith(("visual.", "head.")) for name in names)
    assert "QuickGELU" in repr(again.module)
    head = load_head(path, arch)
    assert head.scale == network.head().scale
    assert torch.equal(head.weight, network.head().weight)
    # Fewer classes are still text embeddings; a linear probe is not.
    assert again.restricted([2, 0]).head().scale == head.scale
    probed, _ = load_with_remarks(again.spec, names, classifier="aside")
    assert probed.num_classes == 0


def test_images_are_made_ready_as_by_open_clip_to_the_bit(tmp_path: Path) -> None:
    import open_clip
    from PIL import Image

    from oodcli.data.decoding.prepare import Resizing

    save_clip(tmp_path)
    config = json.loads((tmp_path / "open_clip_config.json").read_text())
    rng = np.random.default_rng(0)
    small = Image.fromarray(rng.integers(0, 256, (9, 12, 3), dtype=np.uint8))
    photo = small.resize((80, 60), Image.Resampling.BICUBIC)
    for mode, filter_, how in (
        ("shortest", "bicubic", "shorter-crop:32"), ("squash", "bilinear", "exact")
    ):  # fmt: skip
        config["preprocess_cfg"] |= {"resize_mode": mode, "interpolation": filter_}
        (tmp_path / "open_clip_config.json").write_text(json.dumps(config))
        found = published_configuration(f"open_clip:{tmp_path}")
        assert found is not None
        assert (found.size, found.resize, found.filter) == ((SIDE, SIDE), how, filter_)
        assert (found.mean, found.std) == ((0.4, 0.5, 0.6), (0.2, 0.3, 0.25))
        transform = open_clip.transform.image_transform_v2(
            open_clip.transform.PreprocessCfg(size=SIDE, **config["preprocess_cfg"]), is_train=False
        )
        ours = Resizing(found.size, f"{how}:{filter_}").apply(np.asarray(photo))
        mean, std = (np.array(each, np.float32)[:, None, None] for each in (found.mean, found.std))
        pixels = (ours.transpose(2, 0, 1) / np.float32(255) - mean) / std
        np.testing.assert_allclose(pixels, transform(photo).numpy(), rtol=0, atol=1e-6)
    config["preprocess_cfg"]["resize_mode"] = "longest"
    (tmp_path / "open_clip_config.json").write_text(json.dumps(config))
    message = refusal(lambda: published_configuration(f"open_clip:{tmp_path}"))
    assert "resize_mode longest" in message
    config["model_cfg"]["vision_cfg"]["timm_model_name"] = "hf-hub:who/net"
    (tmp_path / "open_clip_config.json").write_text(json.dumps(config))
    message = refusal(lambda: published_configuration(f"open_clip:{tmp_path}"))
    assert "is hf-hub:who/net, which lies elsewhere" in message


def test_models_tags_and_folders_are_distinguished(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    save_clip(tmp_path / "net")
    monkeypatch.setattr(
        "huggingface_hub.try_to_load_from_cache", lambda _name, _file, **_more: None
    )

    def found(name: str) -> str:
        return refusal(lambda: published_configuration(f"open_clip:{name}"))

    assert "did you mean 'ViT-B-32'?" in found("ViT-B-33:openai")
    assert "no folder or pretrained tag of ViT-B-32 'opena'; did you mean 'openai'?" in found(
        "ViT-B-32:opena"
    )
    assert "--pretrained --arch open_clip:ViT-B-32:openai" in found("ViT-B-32:openai")
    assert "who/net is not in the cache of the hub" in found("who/net")
    assert "has no open_clip_config.json" in found(str(tmp_path))
    assert f"--arch open_clip:{tmp_path / 'net'}" in found(f"ViT-B-32:{tmp_path / 'net'}")
    with pytest.raises(UnknownNameError):
        published_configuration("open_clip:nothing")
    known = published_configuration("open_clip:ViT-B-16-SigLIP")
    assert known is not None
    assert (known.size, known.mean[0]) == ((224, 224), pytest.approx(0.48145466))
    assert "names no weights" in refusal(lambda: pretrained_state("open_clip:ViT-B-32"))


def test_a_tag_is_read_from_the_cache_with_the_activation_it_was_trained_with(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import open_clip

    save_clip(tmp_path)
    config = json.loads((tmp_path / "open_clip_config.json").read_text())["model_cfg"]
    (tmp_path / "open_clip_config.json").unlink()  # open_clip brings the weights of a tag alone
    monkeypatch.setattr(open_clip, "list_models", lambda: ["tiny"])
    monkeypatch.setattr(open_clip, "get_model_config", lambda _name: json.loads(json.dumps(config)))
    tag = {
        "hf_hub": "who/tiny/", "mean": (0.5,) * 3, "std": (0.25,) * 3, "interpolation": "bilinear",
        "resize_mode": "squash", "quick_gelu": True,
    }  # fmt: skip
    monkeypatch.setattr(open_clip, "get_pretrained_cfg", lambda _name, tag_: tag)
    monkeypatch.setattr(open_clip, "list_pretrained_tags_by_model", lambda _name: ["first"])
    asked = []

    def cached(name: str, file: str) -> str | None:
        asked.append((name, file))
        path = tmp_path / file
        return str(path) if path.exists() else None

    monkeypatch.setattr("huggingface_hub.try_to_load_from_cache", cached)
    found = pretrained_state("open_clip:tiny:first", download=False)
    assert asked[0] == ("who/tiny", "open_clip_model.safetensors")
    assert (found.size, found.resize, found.filter) == ((SIDE, SIDE), "exact", "bilinear")
    assert found.source == str(tmp_path / "open_clip_model.safetensors")
    spec = parse_architecture("open_clip:tiny:FIRST", side=SIDE)
    assert str(spec) == "open_clip:tiny:first"
    assert "QuickGELU" in repr(spec.build(2))


def test_weights_of_a_file_are_those_of_both_towers(tmp_path: Path) -> None:
    theirs = save_clip(tmp_path)
    arch = f"open_clip:{tmp_path}"
    state = {f"module.{name}": each.half() for name, each in theirs.state_dict().items()}
    state["input_resolution"] = torch.tensor(SIDE)  # as OpenAI's archives have it
    tower = translated_state(arch, state, "file")
    assert set(tower) == {f"visual.{name}" for name in theirs.visual.state_dict()}
    assert tower["visual.proj"].dtype == torch.float32
    clip, source = clip_network(arch, (Path("file"), state), download=False)
    assert (source, clip.logit_bias) == ("file", 0.0)
    wrong = {**theirs.state_dict(), "odd": torch.zeros(1), "logit_scale": torch.zeros(2, 2)}
    del wrong["text_projection"]
    wrong.pop("logit_scale")
    wrong["visual.proj"] = torch.zeros(2, 2)
    message = refusal(lambda: translated_state(arch, wrong, "file"))
    assert "missing: text_projection, logit_scale" in message
    assert "unexpected: odd" in message
    assert "visual.proj (2, 2), not (16, 12)" in message


def test_embeddings_are_means_over_templates_made_unit_vectors(tmp_path: Path) -> None:
    theirs = save_clip(tmp_path, init_logit_bias=-2.0)
    import open_clip

    clip, _ = clip_network(f"open_clip:{tmp_path}", None, download=False)
    done: list[int] = []
    got = clip.embed_names(["a b", "c"], ["{}", "the {}."], device=CPU, advance=done.append)
    with torch.inference_mode():
        rows = theirs.encode_text(
            open_clip.get_tokenizer(f"local-dir:{tmp_path}")(["a b", "the a b.", "c", "the c."])
        )
    wanted = normalize(normalize(rows, dim=1).view(2, 2, -1).mean(dim=1), dim=1)
    torch.testing.assert_close(got, wanted)
    assert (sum(done), clip.logit_bias) == (4, pytest.approx(-2, abs=0.5))


def test_the_package_that_is_missing_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = importlib.import_module

    def without(name: str, *args: Any) -> Any:
        if name == "open_clip":
            raise ModuleNotFoundError(name="open_clip")
        return real(name, *args)

    monkeypatch.setattr(importlib, "import_module", without)
    with pytest.raises(InvalidInputError, match=r'pip install "oodcli\[clip\]"'):
        parse_architecture(f"open_clip:{tmp_path}")
