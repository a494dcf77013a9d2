"""Published weights of networks from torchvision and timm."""

import contextlib
import hashlib
import json
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from http.client import HTTPException
from pathlib import Path
from typing import Any
from urllib.request import Request

import torch
from torch import Tensor

from oodcli.errors import (
    CorruptArtifactError,
    DownloadError,
    InvalidInputError,
    UnknownNameError,
)
from oodcli.files import check_file, reading
from oodcli.http_client import open_url
from oodcli.models import clip_sources
from oodcli.models.clip_sources import OPEN_CLIP, ClipSource, clip_source
from oodcli.models.clip_text import Clip, clip_of
from oodcli.models.external import (
    AUXILIARY,
    TIMM,
    TORCHVISION,
    check_builder,
    stated_preprocessing,
    timm_package,
)
from oodcli.models.folder_networks import config_of, folder_of, timm_configuration
from oodcli.models.hugging_face import (
    HUGGING_FACE,
    PREPROCESSOR,
    class_names,
    number_of_classes,
    preprocessing,
    translate_weights,
)
from oodcli.models.model_folders import CONFIG
from oodcli.models.registry import builder_of, is_external
from oodcli.models.state_dicts import read_state
from oodcli.specs import names_folder
from oodcli.store.store import atomic_write

Three = tuple[float, float, float]

# The weights that papers on OOD detection use.
_DEFAULT_SET = "IMAGENET1K_V1"
_MAX_CONFIGURATION_BYTES = 1 << 20
_TIMEOUT_S = 30.0
_CHUNK_BYTES = 1 << 18
_HASH = re.compile(r"-([0-9a-f]{8,})\.")
_IMAGENET_MEAN: Three = (0.485, 0.456, 0.406)
_IMAGENET_STD: Three = (0.229, 0.224, 0.225)
_HALF: Three = (0.5, 0.5, 0.5)
# The published weights of these networks expect mean and standard deviation 0.5; torchvision
# converts to that from ImageNet's constants inside its builder.
_BY_HALF = {f"{TORCHVISION}:{function}" for function in AUXILIARY}


@dataclass(frozen=True, eq=False)
class Pretrained:
    """Published weights, and the preprocessing that they expect.

    Parameters
    ----------
    source
        Source of the weights, as stored in the record of a run: a file, or the name of the weights.
    state
        Tensors by name.
    mean, std
        Normalisation of the three channels, for pixels from 0 to 1; for a file, that of the default
        weights of the network.
    size
        Height and width in pixels; None if unknown.
    resize
        How images are resized, see :class:`oodcli.store.runs.Preprocess`; None if unknown.
    filter
        Resampling filter used in evaluation, such as ``bicubic``; None if unknown.
    classes
        Number of classes of the published weights; None if unknown.
    configuration
        Source of the preprocessing, for messages; empty if it is not published.
    class_names
        What the classes of the published weights are called, in the order of the logits; empty if
        unknown.
    """

    source: str
    state: Mapping[str, Tensor]
    mean: Three = _IMAGENET_MEAN
    std: Three = _IMAGENET_STD
    size: tuple[int, int] | None = None
    resize: str | None = None
    filter: str | None = None
    classes: int | None = None
    configuration: str = ""
    class_names: tuple[str, ...] = ()


def published_configuration(
    arch: str, source: str | Path | None = None, *, download: bool = False
) -> Pretrained | None:
    """Return the preprocessing that published weights of a network expect, without the weights.

    Parameters
    ----------
    arch
        The architecture, as text.
    source
        A weight file, or the name of one of torchvision's weight sets. Torchvision's file names
        also identify its sets; None, or any other file: the default set. For timm, the
        ``config.json`` that it writes next to a weight file has precedence.
    download
        Whether a folder of the hub that is not in its cache may be downloaded.

    Returns
    -------
    Pretrained
        Its ``configuration`` is the source of the preprocessing; None if nothing is published.
        Networks of torchvision and timm are not built for this; a network in the user's own code
        is built, because it may have a configuration of timm.

    Raises
    ------
    InvalidInputError
        If timm is needed and not installed.
    UnknownNameError
        If there is no such network.
    """
    if not is_external(arch):
        return None
    package = arch.partition(":")[0]
    function, texts = builder_of(arch)
    if names_folder(arch):
        return _from_folder_config(package, function, download=download)
    check_builder(package, function, texts)
    if package not in (TORCHVISION, TIMM):
        shown, _ = stated_preprocessing(package, function, texts)
        title = f"the network that {package}:{function} builds"
        return _from_timm_config(title, shown) if shown else None
    if package == TIMM and source is not None:
        beside = _config_beside(Path(source), function)
        if beside is not None:
            return beside
    found = _published(package, function, source)
    return found if found.configuration else None


def folder_class_names(arch: str) -> tuple[str, ...]:
    """Return the class names in the folder of a network, in the order of the logits.

    Parameters
    ----------
    arch
        The architecture, as text.

    Returns
    -------
    tuple
        Empty if the architecture is not a folder, or its classes are only numbered.

    Raises
    ------
    OodError
        If the folder cannot be used.
    """
    if not names_folder(arch):
        return ()
    package = arch.partition(":")[0]
    if package == OPEN_CLIP:
        return ()
    folder = folder_of(package, builder_of(arch)[0])
    if package == HUGGING_FACE:
        return class_names(config_of(package, folder))
    names = timm_configuration(folder).get("label_names") or ()
    return tuple(map(str, names if isinstance(names, list | tuple) else names.values()))


def folder_commit(arch: str) -> str:
    """Return the commit of the repository of the hub that a network is read from; else empty.

    Parameters
    ----------
    arch
        The text of an architecture.

    Raises
    ------
    OodError
        If the folder no longer exists.
    """
    if not names_folder(arch):
        return ""
    package, function = arch.partition(":")[0], builder_of(arch)[0]
    if package == OPEN_CLIP:
        folder = clip_source(function).folder
        return "" if folder is None else folder.commit
    return folder_of(package, function).commit


def pretrained_state(
    arch: str, source: str | Path | None = None, *, download: bool = True
) -> Pretrained:
    """Read or download published weights of a network.

    Parameters
    ----------
    arch
        The architecture, as text: of torchvision or timm, or any architecture with a file.
    source
        A weight file, or the name of one of torchvision's sets, such as ``IMAGENET1K_V2``. None:
        ``IMAGENET1K_V1`` or the only set of torchvision, the default of timm, or the weights in the
        folder of the network.
    download
        Whether weights of a folder of the hub that are not in its cache may be downloaded.

    Returns
    -------
    Pretrained
        Weights for the classes that they were trained on; :func:`oodcli.models.load_into` builds
        a network with them.

    Raises
    ------
    UnknownNameError
        If torchvision has no such set of weights.
    InvalidInputError
        If the file cannot be used, or the architecture has no published weights.
    DownloadError
        If the weights are not in the cache, and the download fails.
    CorruptArtifactError
        If a cached file differs from the published one.

    Notes
    -----
    Torchvision's weights are searched in the cache of torch (``TORCH_HOME``), verified with the
    digest in their name, and read without running any code.
    """
    package, _, rest = arch.partition(":")
    if names_folder(arch):
        return _of_folder(package, builder_of(arch)[0], source, download=download)
    function = rest.partition(":")[0]
    if source is not None and Path(source).is_file():
        path = Path(source).resolve()
        found = _published(package, function, path)
        return replace(found, source=str(path), state=read_state(path))
    if package == TORCHVISION:
        return _of_torchvision(function, None if source is None else str(source))
    if package == TIMM and source is None:
        return _of_timm(function)
    if source is not None:
        raise InvalidInputError(f"there is no file {source}; give a file with weights of {arch}")
    raise InvalidInputError(
        f"{arch} has no published weights; give a file: --init FILE, or use a network of "
        f"{TORCHVISION} or {TIMM}"
    )


def _of_folder(
    package: str, function: str, source: str | Path | None, *, download: bool
) -> Pretrained:
    """Read the weights of a folder, or of a weight file for its network."""
    if package == OPEN_CLIP:
        source_, path, clip = _clip(function, source, download=download)
        return replace(_from_clip_source(source_), source=str(path), state=clip.image_tower())
    folder = folder_of(package, function, download=download)
    config = config_of(package, folder)
    listed = source is not None and str(source).endswith(".index.json")
    path, state = folder.weights() if source is None or listed else _file_of(source)
    if package == HUGGING_FACE:
        state = translate_weights(config, state, str(path))
    found = _from_folder_config(package, function, download=download) or Pretrained("", {})
    return replace(found, source=str(path), state=state)


def translated_state(
    arch: str, state: Mapping[str, Tensor], source: str | Path
) -> Mapping[str, Tensor]:
    """Translate weights of a user's file to the names of a Hugging Face or open_clip network.

    Parameters
    ----------
    arch
        The architecture, as text; for others than ``hf:…`` and ``open_clip:…`` the weights are
        returned unchanged.
    state
        Tensors by name; returned unchanged if transformers cannot translate all of them. If they
        are those of both towers of a CLIP network, only those of the image tower are returned.
    source
        The file, for messages.

    Raises
    ------
    InvalidInputError
        If they are not the weights of the given CLIP network.
    """
    package = arch.partition(":")[0]
    if package == OPEN_CLIP:
        named = clip_source(builder_of(arch)[0])
        return clip_of(named, state, str(source)).image_tower()
    if package != HUGGING_FACE or not names_folder(arch):
        return state
    config = config_of(package, folder_of(package, builder_of(arch)[0]))
    with contextlib.suppress(InvalidInputError):
        return translate_weights(config, state, str(source))
    return state


def clip_network(
    arch: str, checkpoint: tuple[Path, Mapping[str, Tensor]] | None, *, download: bool
) -> tuple[Clip, str]:
    """Load both towers of a CLIP network; return also the source of the weights.

    Parameters
    ----------
    arch
        The architecture, as text, ``open_clip:…``.
    checkpoint
        A file of the user with the weights of both towers, and its tensors by name; None: the
        weights of the source.
    download
        Whether files that are not in the cache of the hub may be downloaded.

    Raises
    ------
    OodError
        If there is no such network, or the weights cannot be used.
    """
    function = builder_of(arch)[0]
    if checkpoint is None:
        _, path, clip = _clip(function, None, download=download)
        return clip, str(path)
    path, state = checkpoint
    return clip_of(clip_source(function, download=download), state, str(path)), str(path)


def _clip(
    function: str, file: str | Path | None, *, download: bool
) -> tuple[ClipSource, Path, Clip]:
    source = clip_source(function, download=download)
    path, state = source.weights() if file is None else _file_of(file)
    return source, path, clip_of(source, state, str(path))


def _from_clip_source(source: ClipSource) -> Pretrained:
    return Pretrained("", {}, **clip_sources.preprocessing(source), configuration=source.said_by)


def _file_of(source: str | Path) -> tuple[Path, dict[str, Tensor]]:
    path = Path(source).resolve()
    check_file(path, "give a weight file")
    return path, read_state(path)


def _from_folder_config(package: str, function: str, *, download: bool) -> Pretrained | None:
    """Return the preprocessing and number of classes of a folder; None without preprocessing."""
    if package == OPEN_CLIP:
        return _from_clip_source(clip_source(function, download=download))
    folder = folder_of(package, function, download=download)
    config = config_of(package, folder)
    if package == TIMM:
        check_builder(package, function, {})
        shown = timm_configuration(folder)
        title = str(folder.path / CONFIG)
        with reading(title, cure="give a folder as written by timm", error=InvalidInputError):
            found = _from_timm_config(title, shown)
        return replace(found, configuration=title)
    images = preprocessing(folder)
    if images is None:
        return None
    return Pretrained(
        "",
        {},
        **images,
        classes=number_of_classes(config),
        configuration=str(folder.path / PREPROCESSOR),
    )


def _config_beside(file: Path, function: str) -> Pretrained | None:
    """Return the preprocessing in the ``config.json`` beside a file, if timm wrote it for it."""
    path = file.parent / "config.json"
    try:
        if not file.is_file() or path.stat().st_size > _MAX_CONFIGURATION_BYTES:
            return None
        content = json.loads(path.read_text("utf-8"))
        if content["architecture"] != function.partition(".")[0]:
            return None
        found = _from_timm_config(function, content["pretrained_cfg"])
    except (
        OSError, ValueError, LookupError, TypeError, AttributeError, ZeroDivisionError,
        RecursionError,
    ):  # fmt: skip
        return None  # a file of another program
    classes = content.get("num_classes", found.classes)
    return replace(found, classes=classes, configuration=str(path))


def _of_torchvision(function: str, wanted: str | None) -> Pretrained:
    from torchvision import models

    sets = {each.name: each for each in models.get_model_weights(function)}
    if wanted is None:
        wanted = _default_set(sets)
    if wanted not in sets:
        raise UnknownNameError.among(f"file or weights of {TORCHVISION}:{function}", wanted, sets)
    weights = sets[wanted]
    return replace(
        _from_torchvision(function, weights),
        source=f"{TORCHVISION}:{function} {wanted}",
        state=read_state(_cached(weights.url)),
    )


def _published(package: str, function: str, source: str | Path | None = None) -> Pretrained:
    """Return the preprocessing that published weights of a network expect, without the weights."""
    if package == TORCHVISION:
        from torchvision import models

        sets = {each.name: each for each in models.get_model_weights(function)}
        if sets:
            named = None if source is None else _set_called(str(source), sets)
            return _from_torchvision(function, sets[named or _default_set(sets)])
    if package == TIMM:
        shown = timm_package().get_pretrained_cfg(function)
        if shown is not None:
            return _from_timm_config(function, shown.to_dict())
    return Pretrained("", {})


def _default_set(sets: Mapping[str, object]) -> str:
    return _DEFAULT_SET if _DEFAULT_SET in sets else next(iter(sets))


def _set_called(source: str, sets: Mapping[str, Any]) -> str | None:
    """Return the name of the weight set with this name, or with this file name; else None."""
    if source in sets:
        return source
    file = Path(source).name
    return next((name for name, each in sets.items() if each.url.rpartition("/")[2] == file), None)


def _from_torchvision(function: str, weights: Any) -> Pretrained:  # noqa: ANN401 - an enumeration of an untyped package
    shown = weights.transforms()
    by_half = f"{TORCHVISION}:{function}" in _BY_HALF
    meta = getattr(weights, "meta", {})
    filter_ = getattr(shown, "interpolation", None)
    return Pretrained(
        "",
        {},
        _HALF if by_half else _three(shown.mean),
        _HALF if by_half else _three(shown.std),
        (shown.crop_size[0], shown.crop_size[0]),
        f"shorter-crop:{shown.resize_size[0]}",
        filter=None if filter_ is None else str(filter_.value),
        classes=len(meta["categories"]) if "categories" in meta else None,
        configuration=f"torchvision's configuration of {function} {weights.name}",
        class_names=tuple(meta.get("categories", ())),
    )


def _three(values: Any) -> Three:  # noqa: ANN401 - a list or tuple of an untyped package
    first, second, third = values
    return float(first), float(second), float(third)


def _cached(url: str) -> Path:
    """Return the file of a URL in torch's cache; it is downloaded if missing.

    Raises
    ------
    DownloadError
        If the download fails.
    CorruptArtifactError
        If the cached file does not match the digest in its name.
    """
    name = url.rpartition("/")[2]
    path = Path(torch.hub.get_dir()) / "checkpoints" / name
    found = _HASH.search(name)
    digest = found[1] if found else None
    if not path.is_file():
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            _download(url, path, digest)
        except (OSError, HTTPException, ValueError) as error:
            raise DownloadError(
                f"cannot get {url} ({error}); put it at {path}, or give a file: "
                "ood train --pretrained --init FILE"
            ) from None
    if digest is not None and not _sha256(path).startswith(digest):
        raise CorruptArtifactError(
            f"{path} differs from the file published under that name; remove it to download it "
            "again"
        )
    return path


def _download(url: str, path: Path, digest: str | None) -> None:
    """Download a file atomically, and verify its digest.

    Raises
    ------
    OSError, HTTPException
        If the server does not provide the file, does not respond or is too slow.
    ValueError
        If the digest does not match.
    """
    request = Request(url, headers={"User-Agent": "ood"})  # noqa: S310 - torchvision's, https alone
    with open_url(request, timeout_s=_TIMEOUT_S) as response, atomic_write(path) as stream:
        state = hashlib.sha256()
        while chunk := response.read1(_CHUNK_BYTES):
            state.update(chunk)
            stream.write(chunk)
        if digest is not None and not state.hexdigest().startswith(digest):
            raise ValueError(
                f"its sha256 is {state.hexdigest()}, which does not start with {digest}"
            )


def _sha256(path: Path) -> str:
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def _of_timm(function: str) -> Pretrained:
    timm = timm_package()
    try:
        module = timm.create_model(function, pretrained=True)
    except (OSError, RuntimeError, ValueError) as error:
        reason = str(error).partition("\n")[0]
        raise DownloadError(
            f"timm cannot get its weights of {function} ({reason}); give a file: "
            "ood train --pretrained --init FILE"
        ) from None
    shown = module.pretrained_cfg
    tag = shown.get("tag") or "default"
    return replace(
        _from_timm_config(function, shown),
        source=f"{TIMM}:{function} {tag}",
        state=module.state_dict(),
    )


def _from_timm_config(function: str, shown: Mapping[str, Any]) -> Pretrained:
    """Read a configuration of timm.

    Raises
    ------
    ValueError
        If the crop is not possible.

    Notes
    -----
    The larger ``test_input_size`` is ignored. A ``crop_pct`` above 1, which two families have and
    for which timm pads images with black, is treated as 1.
    """
    height, width = (int(side) for side in shown["input_size"][1:])
    share = min(float(shown.get("crop_pct") or 1.0), 1.0)
    if not (share > 0 and min(height, width) > 0):
        raise ValueError(f"a crop of {share} to {height} x {width} pixels is not possible")
    tag = shown.get("tag")
    squashed = shown.get("crop_mode") == "squash" and share == 1.0
    return Pretrained(
        "",
        {},
        _three(shown["mean"]),
        _three(shown["std"]),
        (height, width),
        "exact" if squashed else f"shorter-crop:{math.floor(max(height, width) / share)}",
        filter=shown.get("interpolation"),
        classes=shown.get("num_classes"),
        configuration=f"timm's configuration of {function}" + (f" ({tag})" if tag else ""),
    )
