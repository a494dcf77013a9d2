"""Image classifiers of Hugging Face's transformers, from a folder with their configuration.

A network without a classifier, such as ``Dinov2Model``, becomes the encoder of the image classifier
that transformers builds on it, whose features are the input of its last layer.

Their names are ``hf:FOLDER`` or ``hf:owner/name``. Only classes of the package itself are built:
code in a repository never runs. The configuration of the network is a JSON text, which is stored
with the weights of a run.
"""

import contextlib
import importlib
import json
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from oodcli.errors import InvalidInputError
from oodcli.files import reading, third_party_code
from oodcli.models.model_folders import CONFIG, ModelFolder

HUGGING_FACE = "hf"
PREPROCESSOR = "preprocessor_config.json"
_CURE = "give a folder with an image classifier of transformers"
# Settings of additional outputs. Keys with a leading underscore, such as the location of the
# folder, are ignored too.
_IGNORED = ("output_hidden_states", "output_attentions", "return_dict", "torchscript", "use_cache")
_SHOWN = 3
# Pillow's filters by number, as in preprocessor_config.json.
_FILTERS = {0: "nearest", 1: "lanczos", 2: "bilinear", 3: "bicubic", 4: "box", 5: "hamming"}
# From this side on, the processor of ConvNeXt and ResNet does not crop images.
_UNCROPPED = 384


def transformers_package() -> Any:  # noqa: ANN401 - an optional package
    """Import transformers.

    Raises
    ------
    InvalidInputError
        If transformers is not installed.
    """
    try:
        return importlib.import_module("transformers")
    except ModuleNotFoundError:
        raise InvalidInputError(
            'networks hf:… need the package transformers; install it: pip install "oodcli[hf]"'
        ) from None


def build_configuration(folder: ModelFolder) -> str:
    """Return the configuration that a network is built from, as JSON text.

    Parameters
    ----------
    folder
        Folder with ``config.json``.

    Raises
    ------
    InvalidInputError
        If the package is not installed, or the folder contains no image classifier, or one that
        needs its own code.
    """
    content = dict(folder.configuration)
    where = folder.name
    check_no_code(content, where)
    kind = content.get("model_type")
    if "architecture" in content and kind in (None, "timm_wrapper"):
        spelled = "hf-hub" if folder.of_hub else "local-dir"
        raise InvalidInputError(
            f"{where} contains a network of timm; use --arch timm:{spelled}:{where}"
        )
    known = _classifiers().get(kind) if isinstance(kind, str) else None
    named = content.get("architectures") or ()
    content_name = named[0] if isinstance(named, list) and named else f"model_type {kind!r}"
    names = (known,) if isinstance(known, str) else (known or ())
    listed = isinstance(named, list) and bool(named)
    if not names or (listed and not {*names, _encoder(kind)} & set(named)):
        raise InvalidInputError(f"{where} contains no image classifier ({content_name}); {_CURE}")
    used = {k: v for k, v in content.items() if k not in _IGNORED and not k.startswith("_")}
    return json.dumps(used, sort_keys=True)


def check_no_code(content: Mapping[str, Any], where: str) -> None:
    """Refuse a configuration that requires code in its repository.

    Raises
    ------
    InvalidInputError
        If the configuration has an ``auto_map``.
    """
    mapped = content.get("auto_map")
    if mapped is None:
        return
    code = next(iter(mapped.values()), "") if isinstance(mapped, dict) else mapped
    raise InvalidInputError(
        f"{where} requires its own code (auto_map: {code}), which ood does not run; build the "
        "network in your own module: --arch package.module:function"
    )


def _classifiers() -> Mapping[str, str | tuple[str, ...]]:
    """Return the class names of the image classifiers of transformers, by model type."""
    transformers_package()
    auto = importlib.import_module("transformers.models.auto.modeling_auto")
    return auto.MODEL_FOR_IMAGE_CLASSIFICATION_MAPPING_NAMES


def _encoder(kind: object) -> str | None:
    """Return the class name of a model type without a head, such as ``Dinov2Model``."""
    if not isinstance(kind, str):
        return None
    auto = importlib.import_module("transformers.models.auto.modeling_auto")
    found = auto.MODEL_MAPPING_NAMES.get(kind)
    return found if isinstance(found, str) else None


def is_encoder(text: str) -> bool:
    """Return whether a configuration is that of a network without a classifier.

    Parameters
    ----------
    text
        Configuration from :func:`build_configuration`.
    """
    content = json.loads(text)
    return _encoder(content["model_type"]) in (content.get("architectures") or ())


def build(text: str, num_classes: int) -> nn.Module:
    """Build a randomly initialised network, in float32.

    Parameters
    ----------
    text
        Configuration from :func:`build_configuration`.
    num_classes
        Number of classes.
    """
    wanted = _configuration(text, num_classes)
    chooser = transformers_package().AutoModelForImageClassification
    return chooser.from_config(wanted, dtype=torch.float32)


def _class_of(text: str) -> Any:  # noqa: ANN401 - a class of an untyped package
    content = json.loads(text)
    known = _classifiers()[content["model_type"]]
    names = (known,) if isinstance(known, str) else known
    wanted = [name for name in content.get("architectures") or () if name in names] or names
    return getattr(transformers_package(), wanted[0])


def _configuration(text: str, num_classes: int | None = None) -> Any:  # noqa: ANN401 - as above
    content = json.loads(text)
    kind = content.pop("model_type")
    with _quiet():
        found = transformers_package().AutoConfig.for_model(kind, **content)
    if num_classes is not None:
        found.num_labels = num_classes
    return found


def class_names(text: str) -> tuple[str, ...]:
    """Return the names of the classes in the order of the logits; empty if they are only numbered.

    Parameters
    ----------
    text
        Configuration from :func:`build_configuration`.
    """
    labels = json.loads(text).get("id2label")
    if not isinstance(labels, dict):
        return ()
    names = [labels.get(str(index)) for index in range(len(labels))]
    named = tuple(name for name in names if isinstance(name, str))
    numbered = tuple(f"LABEL_{index}" for index in range(len(named)))
    return named if len(named) == len(names) and named != numbered else ()


def number_of_classes(text: str) -> int:
    """Return the number of classes of a configuration; 0 for a network without a classifier.

    Parameters
    ----------
    text
        Configuration from :func:`build_configuration`.
    """
    return 0 if is_encoder(text) else int(_configuration(text).num_labels)


def translate_weights(text: str, state: Mapping[str, Tensor], where: str) -> dict[str, Tensor]:
    """Translate the names of weights to those in the installed version of transformers.

    Parameters
    ----------
    text
        Configuration from :func:`build_configuration`.
    state
        Tensors by their names in the file, which are those of the version that wrote it.
    where
        The file, for messages.

    Returns
    -------
    dict
        The tensors; of a network without a classifier those of the image classifier that is built
        on it, without its last layer.

    Raises
    ------
    InvalidInputError
        If tensors are missing, unexpected or of another shape.
    """
    with _quiet(), reading(where, cure=_CURE, error=InvalidInputError):
        module, info = _class_of(text).from_pretrained(
            None,
            config=_configuration(text),
            state_dict=dict(state),
            output_loading_info=True,
            ignore_mismatched_sizes=True,
            dtype=torch.float32,
        )
    bare = is_encoder(text)
    absent = {each for each in info["missing_keys"] if bare and each.startswith("classifier.")}
    # What only the network without a classifier has.
    pooler = {each for each in info["unexpected_keys"] if bare and "pooler." in each}
    wrong = {
        "missing": sorted(set(info["missing_keys"]) - absent),
        "unexpected": sorted(set(info["unexpected_keys"]) - pooler),
        "of another shape": sorted(str(each[0]) for each in info["mismatched_keys"]),
    }
    lines = [f"{what}: {_first(names)}" for what, names in wrong.items() if names]
    if lines:
        raise InvalidInputError(
            f"{where} does not fit its {CONFIG} ({'; '.join(lines)}); give a folder with a trained "
            "classifier, as written by save_pretrained()"
        )
    return {
        name: tensor.detach().clone()
        for name, tensor in module.state_dict().items()
        if name not in absent
    }


def _first(names: Sequence[str]) -> str:
    more = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
    return ", ".join(names[:_SHOWN]) + more


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Turn off the log messages and progress bars of transformers in the body of the context."""
    logs = importlib.import_module("transformers.utils.logging")
    before, bars = logs.get_verbosity(), logs.is_progress_bar_enabled()
    logs.set_verbosity(50)
    logs.disable_progress_bar()
    try:
        yield
    finally:
        logs.set_verbosity(before)
        if bars:
            logs.enable_progress_bar()


def config_side(text: str) -> int | None:
    """Return the ``image_size`` of a configuration, in pixels; None if it has none."""
    found = json.loads(text).get("image_size")
    whole = isinstance(found, int) and not isinstance(found, bool) and found > 0
    return found if whole else None


def preprocessing(folder: ModelFolder) -> dict[str, Any] | None:
    """Return the preprocessing in ``preprocessor_config.json``; None if there is no such file.

    Parameters
    ----------
    folder
        Folder with the file.

    Returns
    -------
    dict
        Fields of :class:`oodcli.models.pretrained.Pretrained`: ``mean``, ``std``, ``size``,
        ``resize`` and ``filter``.

    Raises
    ------
    InvalidInputError
        If ood does not support the preprocessing.

    Notes
    -----
    Fields that the file omits have the defaults of the processor that it names. One departure: a
    processor that resizes height and width independently before the centre crop (DeiT) is treated
    as one that keeps the aspect ratio.
    """
    content = folder.json(PREPROCESSOR)
    if content is None:
        return None
    where = f"{folder.name} ({PREPROCESSOR})"
    check_no_code(content, where)
    package = transformers_package()
    cure = "remove that file and specify: --image-size, --resize, --mean and --std"
    with _quiet(), third_party_code(f"{where} cannot be read", cure=cure):
        shown = package.AutoImageProcessor.from_pretrained(
            str(folder.path), local_files_only=True, trust_remote_code=False
        )
    if getattr(shown, "do_flip_channel_order", False):
        raise InvalidInputError(
            f"{where} swaps red and blue, which ood does not support; swap them in your own "
            "module: --arch package.module:function"
        )
    with reading(where, cure=cure, error=InvalidInputError):
        size, resize = _size(shown)
        mean, std = _normalisation(shown)
    number = getattr(shown, "resample", None)
    filter_ = None if number is None else _FILTERS.get(int(number), str(number))
    return {"mean": mean, "std": std, "size": size, "resize": resize, "filter": filter_}


def _size(shown: Any) -> tuple[tuple[int, int] | None, str | None]:  # noqa: ANN401 - untyped
    """Return height and width in pixels, and how images are resized to them."""
    if not shown.do_resize:
        return None, None
    kind = type(shown).__name__
    crop = getattr(shown, "crop_size", None) if getattr(shown, "do_center_crop", False) else None
    cut = None if crop is None else (int(crop["height"]), int(crop["width"]))
    shorter = shown.size.get("shortest_edge")
    if kind.startswith("ConvNext") and shorter is not None:
        side = int(shorter)
        small = side < _UNCROPPED
        return (side, side), f"shorter-crop:{int(side / shown.crop_pct)}" if small else "exact"
    if shorter is not None:
        side = _enlarged(shown, kind, int(shorter))
        if cut is not None and side < max(cut):
            raise InvalidInputError(
                f"{kind} pads images ({side} pixels to {max(cut)}), which ood does not support; "
                "remove the file and specify: --image-size, --mean and --std"
            )
        return cut or (int(shorter), int(shorter)), f"shorter-crop:{side}"
    size = int(shown.size["height"]), int(shown.size["width"])
    if kind.startswith("Perceiver") and cut is not None:
        return size, f"shorter-crop:{max(cut)}"  # it crops in this proportion, then resizes
    side = _enlarged(shown, kind, max(size))
    if side == max(size) and cut in (None, size):
        return size, "exact"
    return cut or size, f"shorter-crop:{side}"


def _enlarged(shown: Any, kind: str, side: int) -> int:  # noqa: ANN401 - as above
    """Return the side before the crop, in pixels, from the side in the file of a processor."""
    if kind.startswith("Levit"):
        return int(256 / 224 * side)
    share = getattr(shown, "crop_pct", None) if kind.startswith("PoolFormer") else None
    return int(side / share) if share else side


def _normalisation(shown: Any) -> tuple[tuple[float, ...], tuple[float, ...]]:  # noqa: ANN401
    """Return mean and standard deviation for pixel values from 0 to 1.

    Notes
    -----
    A pixel from 0 to 255 becomes ``(factor * pixel - offset - mean) / std``; the processor of
    EfficientNet divides by ``std`` a second time.
    """
    scale = 255 * float(shown.rescale_factor) if shown.do_rescale else 255.0
    offset = 1.0 if getattr(shown, "rescale_offset", False) else 0.0
    mean, std = [0.0] * 3, [1.0] * 3
    if shown.do_normalize:
        mean, std = _three(shown.image_mean), _three(shown.image_std)
    again = _three(shown.image_std) if getattr(shown, "include_top", False) else [1.0] * 3
    return (
        tuple((each + offset) / scale for each in mean),
        tuple(each * more / scale for each, more in zip(std, again, strict=True)),
    )


def _three(values: Any) -> list[float]:  # noqa: ANN401 - a number or a list of an untyped package
    numbers = [float(v) for v in values] if isinstance(values, list | tuple) else [float(values)]
    first, second, third = numbers if len(numbers) == 3 else numbers * 3
    return [first, second, third]
