"""A small image tower with the parts that open_clip's ViT has, and a zero-shot network of it."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from oodcli.models import Network, network_of
from oodcli.models.architecture import Architecture
from oodcli.models.clip_tower import ImageTower
from oodcli.models.heads import text_embeddings
from oodcli.models.layout import Layout

SIDE, PATCH, WIDTH, EMBEDDED = 32, 8, 12, 8
# What open_clip builds tiny networks from.
TEXT = {"context_length": 24, "vocab_size": 49408, "width": 8, "heads": 2, "layers": 2}
VIT = {"image_size": SIDE, "layers": 3, "width": 16, "head_width": 8, "patch_size": 8}
RESNET = {"image_size": 64, "layers": [1, 2, 1, 1], "width": 8, "head_width": 32}
IMAGES = {"mean": [0.4, 0.5, 0.6], "std": [0.2, 0.3, 0.25], "interpolation": "bicubic"}


class _Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.ln_1, self.ln_2 = nn.LayerNorm(WIDTH), nn.LayerNorm(WIDTH)
        self.attn = nn.MultiheadAttention(WIDTH, 2, batch_first=True)
        self.ls_1 = self.ls_2 = nn.Identity()
        self.mlp = nn.Sequential(nn.Linear(WIDTH, 24), nn.GELU(), nn.Linear(24, WIDTH))

    def forward(self, tokens: Tensor, mask: Tensor | None = None) -> Tensor:
        """Attend, with a mask if there is one."""
        given = self.ln_1(tokens)
        tokens = tokens + self.attn(given, given, given, need_weights=False, attn_mask=mask)[0]
        return tokens + self.mlp(self.ln_2(tokens))


class Tower(nn.Module):
    """A ViT with a class token and two blocks."""

    pool_type = "tok"
    attn_pool = None

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, WIDTH, PATCH, PATCH, bias=False)
        self.token = nn.Parameter(torch.randn(WIDTH))
        self.places = nn.Parameter(0.3 * torch.randn((SIDE // PATCH) ** 2 + 1, WIDTH))
        self.transformer = nn.Module()
        self.transformer.resblocks = nn.ModuleList([_Block(), _Block()])
        self.ln_post = nn.LayerNorm(WIDTH)
        self.proj = nn.Parameter(torch.randn(WIDTH, EMBEDDED))

    def before(self, images: Tensor) -> Tensor:
        """Return the tokens that the last block is given, ``(n, 1 + p, c)``."""
        patches = self.conv1(images).flatten(2).mT
        first = self.token.expand(len(images), 1, -1)
        return self.transformer.resblocks[0](torch.cat([first, patches], dim=1) + self.places)

    def forward(self, images: Tensor) -> Tensor:
        """Return the embeddings ``(n, d)``."""
        tokens = self.transformer.resblocks[1](self.before(images))
        return self.ln_post(tokens)[:, 0] @ self.proj


def zero_shot_network(classes: int, *, scale: float = 10.0) -> Network:
    """Return a network with random weights and random text embeddings."""
    torch.manual_seed(0)
    module = ImageTower(Tower(), EMBEDDED, classes)
    text_embeddings(module, "head")
    texts = nn.functional.normalize(torch.randn(classes, EMBEDDED), dim=1)
    with torch.no_grad():
        module.head.weight.copy_(scale * texts)
        module.head.bias.zero_()
        module.head.logit_scale.fill_(scale)
    paths = [f"visual.transformer.resblocks.{index}" for index in range(2)]
    known = Architecture(
        "tower",
        lambda count: ImageTower(Tower(), EMBEDDED, count),
        lambda _module: {path: path for path in paths},
        head="head",
        layouts={path: Layout("tokens", 1) for path in paths},
    )
    return network_of(known.spec({}), module)


def save_clip(folder: Path, vision: Mapping[str, Any] = VIT, **more: Any) -> Any:
    """Save a tiny network of open_clip with random weights, as open_clip does; return it."""
    import open_clip
    from safetensors.torch import save_file

    torch.manual_seed(0)
    content = {"embed_dim": 12, "vision_cfg": dict(vision), "text_cfg": dict(TEXT), **more}
    model = open_clip.CLIP(**content).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
        model.logit_scale.fill_(3.0)
    folder.mkdir(parents=True, exist_ok=True)
    save_file(model.state_dict(), folder / "open_clip_model.safetensors")
    config = {"model_cfg": content, "preprocess_cfg": IMAGES}
    (folder / "open_clip_config.json").write_text(json.dumps(config))
    return model
