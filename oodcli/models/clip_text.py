"""The text tower of a CLIP network, which runs only at import and is not stored."""

import contextlib
import importlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F  # noqa: N812 - the name that torch's own documentation gives it
from torch import Tensor, nn

from oodcli.errors import InvalidInputError
from oodcli.files import third_party_code
from oodcli.models.clip_sources import OPEN_CLIP, ClipSource, open_clip_package
from oodcli.text import printable

_BATCH = 256
_SHOWN = 3
# Possible files of a tokenizer on the hub.
_TOKENIZER = (
    "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "vocab.txt",
    "vocab.json", "merges.txt", "added_tokens.json", "sentencepiece.bpe.model", "spiece.model",
    "tokenizer.model",
)  # fmt: skip
# Entries of OpenAI's archives that are not weights, and a buffer of older versions of transformers.
_IGNORED = ("input_resolution", "context_length", "vocab_size")
_POSITIONS = "text.transformer.embeddings.position_ids"


@dataclass(frozen=True, eq=False)
class Clip:
    """A CLIP network with both towers.

    Parameters
    ----------
    model
        The network, in evaluation mode, float32.
    tokenizer
        Converts ``n`` texts to tokens ``(n, t)``.
    """

    model: Any
    tokenizer: Callable[[list[str]], Tensor]

    @property
    def logit_scale(self) -> float:
        """Factor of the cosine similarities."""
        return float(self.model.logit_scale.detach().double().exp())

    @property
    def logit_bias(self) -> float:
        """Constant added to every logit; 0 for networks without it (all except SigLIP)."""
        bias = self.model.logit_bias
        return 0.0 if bias is None else float(bias.detach())

    def image_tower(self) -> dict[str, Tensor]:
        """Return the weights of the image tower, by their names in ``ImageTower``."""
        return {
            f"visual.{name}": tensor.detach().cpu().clone()
            for name, tensor in self.model.visual.state_dict().items()
        }

    def embed(
        self,
        texts: Sequence[str],
        *,
        device: torch.device,
        advance: Callable[[int], None] = lambda _done: None,
    ) -> Tensor:
        """Return the unit embeddings of texts, ``(n, d)``, float32, on the CPU.

        Parameters
        ----------
        texts
            The texts; the tokenizer truncates those that exceed the context of the tower.
        device
            The device that computes.
        advance
            Called with the number of texts of every finished batch.

        Raises
        ------
        InvalidInputError
            If an embedding is not finite, or its length is 0.
        """
        self.model.to(device)
        parts = []
        try:
            for at in range(0, len(texts), _BATCH):
                batch = list(texts[at : at + _BATCH])
                with third_party_code("texts cannot be embedded", cure="use other weights"):
                    tokens = self.tokenizer(batch).to(device)
                    with torch.inference_mode():
                        made = self.model.encode_text(tokens).float()
                parts.append(made.cpu().clone())
                advance(len(batch))
        finally:
            self.model.to("cpu")
        rows = torch.cat(parts)
        if not rows.isfinite().all() or not bool((rows.norm(dim=1) > 0).all()):
            raise InvalidInputError("text embeddings are not finite, or 0; use other weights")
        return F.normalize(rows, dim=1)

    def embed_names(
        self,
        names: Sequence[str],
        templates: Sequence[str],
        *,
        device: torch.device,
        advance: Callable[[int], None] = lambda _done: None,
    ) -> Tensor:
        """Return the embedding of each name: the normalised mean over templates, ``(n, d)``.

        Parameters
        ----------
        names
            The names, which replace ``{}``.
        templates
            Texts with ``{}`` in place of the name.
        device, advance
            As for :meth:`embed`.
        """
        texts = [template.replace("{}", name) for name in names for template in templates]
        rows = self.embed(texts, device=device, advance=advance)
        return F.normalize(rows.view(len(names), len(templates), -1).mean(dim=1), dim=1)


def imagenet_templates() -> tuple[tuple[str, ...], str]:
    """Return the 80 templates of the authors of CLIP for ImageNet, and their source."""
    package = open_clip_package()
    templates = tuple(template("{}") for template in package.OPENAI_IMAGENET_TEMPLATES)
    return templates, f"OPENAI_IMAGENET_TEMPLATES of open_clip {package.__version__}"


def clip_of(source: ClipSource, state: Mapping[str, Tensor], where: str) -> Clip:
    """Build both towers, and load their weights.

    Parameters
    ----------
    source
        The network.
    state
        Tensors of both towers, by name.
    where
        File of the weights, for messages.

    Raises
    ------
    InvalidInputError
        If the network cannot be built, tensors are missing, unexpected or of another shape, or the
        tokenizer is missing.
    """
    model = _model(source)
    fitting = _in_their_names(model, state)
    own = {name: tuple(each.shape) for name, each in model.state_dict().items()}
    wrong = {
        "missing": [name for name in own if name not in fitting],
        "unexpected": [printable(name) for name in fitting if name not in own],
        "of another shape": [
            f"{name} {tuple(each.shape)}, not {own[name]}"
            for name, each in fitting.items()
            if name in own and tuple(each.shape) != own[name]
        ],
    }
    found = "; ".join(f"{what}: {_first(names)}" for what, names in wrong.items() if names)
    if found:
        raise InvalidInputError(
            f"{where} does not fit {OPEN_CLIP}:{source.name} ({found}); specify the model of these "
            "weights, and give weights of both towers"
        )
    model.load_state_dict(fitting)
    return Clip(model.eval(), _tokenizer(source))


def _first(names: Sequence[str]) -> str:
    more = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
    return ", ".join(names[:_SHOWN]) + more


def _model(source: ClipSource) -> Any:  # noqa: ANN401 - a class of an untyped package
    """Build both towers, randomly initialised, as open_clip's factory does."""
    package = open_clip_package()
    content = {**source.network}
    custom = content.pop("custom_text", False)
    content["vision_cfg"] = {**content["vision_cfg"], "timm_model_pretrained": False}
    content["text_cfg"] = {**content["text_cfg"], "hf_model_pretrained": False}
    kind = package.CLIP
    if "multimodal_cfg" in content:
        kind = package.CoCa
    elif custom or content["text_cfg"].get("hf_model_name"):
        kind = package.CustomTextCLIP
    with (
        _hub_offline(source),
        third_party_code(
            f"{OPEN_CLIP}:{source.name} cannot be built", cure="check its configuration"
        ),
    ):
        model: nn.Module = kind(**content)
    return model


def _in_their_names(model: Any, state: Mapping[str, Tensor]) -> dict[str, Tensor]:  # noqa: ANN401
    """Translate weights to the names of a network of open_clip, as its own reader does."""
    convert = importlib.import_module("open_clip.convert")
    names = importlib.import_module("open_clip.model")
    ours = {name.removeprefix("module."): each for name, each in state.items()}
    ours = {name: each for name, each in ours.items() if name not in _IGNORED}
    if ours:
        ours = dict(convert.convert_state_dict(model, ours))
    if "positional_embedding" in ours and not hasattr(model, "positional_embedding"):
        ours = dict(names.convert_to_custom_text_state_dict(ours))
    for name in ("logit_scale", "logit_bias"):
        own = getattr(model, name)
        if own is not None and name in ours:
            ours[name] = ours[name].reshape(own.shape)
    ours.pop(_POSITIONS, None)
    return ours


def _tokenizer(source: ClipSource) -> Callable[[list[str]], Tensor]:
    package = open_clip_package()
    name = source.tokenizer
    if not name:
        assert source.folder is not None  # a model without a name is in a folder
        name = f"local-dir:{source.folder.path}"
        if source.network["text_cfg"].get("hf_tokenizer_name"):
            for file in _TOKENIZER:
                source.folder.file(file)  # downloads it into the cache if allowed
    cure = "get the whole folder, or allow the download: --pretrained"
    with (
        _hub_offline(source),
        third_party_code(f"{OPEN_CLIP}:{source.name} has no tokenizer here", cure=cure),
    ):
        made: Callable[[list[str]], Tensor] = package.get_tokenizer(name)
    return made


@contextlib.contextmanager
def _hub_offline(source: ClipSource) -> Iterator[None]:
    """Prevent open_clip and transformers from downloading, unless a download was requested."""
    if source.folder is not None and source.folder.download:
        yield
        return
    try:
        constants: Any = importlib.import_module("huggingface_hub.constants")
    except ModuleNotFoundError:
        yield
        return
    before = constants.HF_HUB_OFFLINE
    constants.HF_HUB_OFFLINE = True
    try:
        yield
    finally:
        constants.HF_HUB_OFFLINE = before
