"""A run made of a checkpoint from elsewhere."""

from dataclasses import dataclass, replace
from pathlib import Path

from oodcli.data.prepare import Resizing
from oodcli.errors import InvalidInputError
from oodcli.models import (
    Pretrained,
    is_foreign,
    load_into,
    parse_architecture,
    pretrained_state,
    read_state,
    save_weights,
)
from oodcli.progress import Progress, Silent
from oodcli.runs import Preprocess, Run, RunFolder, new_name, now
from oodcli.store import Store, digest_of_file
from oodcli.workflows.devices import versions
from oodcli.workflows.run_data import find_dataset, preprocess_for

_HALF = (0.5, 0.5, 0.5)


@dataclass(frozen=True)
class ImportResult:
    """What an import made.

    Parameters
    ----------
    run
        Name of the run.
    record
        Its record.
    """

    run: str
    record: Run


def import_checkpoint(
    store: Store,
    checkpoint: Path | None,
    *,
    arch: str,
    data: str,
    name: str | None = None,
    mean: tuple[float, float, float] | None = None,
    std: tuple[float, float, float] | None = None,
    image_size: int | None = None,
    resize: str | None = None,
    val_fraction: float = 0.0,
    command: str = "",
    progress: Progress | None = None,
) -> ImportResult:
    """Make a run of a state dict, read without running any code that may be in the file.

    Parameters
    ----------
    store
        Where the run goes.
    checkpoint
        The file; None for the published weights of a network from torchvision or timm.
    arch
        Architecture with parameters.
    data
        The data set it was trained on.
    name
        Name of the run; that of the file or network if None.
    mean, std
        Normalisation it was trained with; 0.5, or that of the published weights, if None.
    image_size
        Height and width of images in pixels; that of the published weights, or else of the data
        set, if None.
    resize
        How images get there: ``exact``, ``shorter-crop`` or ``shorter-crop:SIDE``.
    val_fraction
        Share of the training images to hold out for calibration.
    command
        The command line, kept with the run.
    progress
        Told what was made.

    Raises
    ------
    OodError
        If the file, the architecture or the data cannot be used or do not fit together.
    """
    watch = progress or Silent()
    if std is not None and min(std) <= 0:
        raise InvalidInputError(f"--std must be positive, not {', '.join(f'{v:g}' for v in std)}")
    spec = parse_architecture(arch)
    if checkpoint is None:
        weights = pretrained_state(spec)
    else:
        weights = Pretrained(str(checkpoint), read_state(checkpoint), mean=_HALF, std=_HALF)
    network = load_into(spec, weights.state)
    dataset = find_dataset(data, store, role="id", val_fraction=val_fraction, progress=watch)
    classes = len(dataset.class_names)
    if network.num_classes != classes:
        raise InvalidInputError(
            f"the checkpoint {weights.source} has {network.num_classes} classes and "
            f"{dataset.name} has {classes}; name the data it was trained on: --data"
        )
    preprocess = _preprocess(
        dataset.name,
        weights,
        mean=mean or weights.mean,
        std=std or weights.std,
        image_size=image_size,
        resize=resize,
    )
    network.check_image_size(*preprocess.size)
    with store.lock("runs"):
        default = spec.canonical if checkpoint is None else checkpoint.stem
        folder = RunFolder(store.runs / new_name(store, name, default))
        save_weights(network, folder.weights)
        record = Run(
            origin="imported",
            created=now(),
            arch=spec.canonical,
            data=dataset.spec,
            data_name=dataset.name,
            class_names=tuple(dataset.class_names),
            preprocess=preprocess,
            blocks=tuple(network.blocks),
            network=network.digest,
            weights=digest_of_file(folder.weights),
            parts={part: len(images) for part, images in dataset.parts.items()},
            val_fraction=val_fraction,
            versions=versions(),
            command=command,
        )
        folder.write(record)
    for line in network.remarks():
        watch.note(line)
    if mean is None and checkpoint is not None and is_foreign(arch):
        watch.note(
            "images are normalised by 0.5; if these are published weights, name theirs: "
            "--mean 0.485,0.456,0.406 --std 0.229,0.224,0.225"
        )
    watch.note(f"run {folder.name}: {spec.canonical} with {classes} classes, from {weights.source}")
    return ImportResult(folder.name, record)


def _preprocess(
    data_name: str,
    weights: Pretrained,
    *,
    mean: tuple[float, float, float],
    std: tuple[float, float, float],
    image_size: int | None,
    resize: str | None,
) -> Preprocess:
    """Return what was asked for, else what the weights want, else what the data set has."""
    if image_size is not None and image_size < 1:
        raise InvalidInputError(f"--image-size must be at least 1, not {image_size}")
    usual = preprocess_for(data_name, mean=mean, std=std)
    if weights.size is not None:
        usual = replace(usual, size=weights.size, resize=weights.resize or usual.resize)
    if image_size is not None:
        # A side that belongs to another size means nothing at this one.
        usual = replace(usual, size=(image_size, image_size), resize=usual.resize.partition(":")[0])
    chosen = replace(usual, resize=resize or usual.resize)
    Resizing(chosen.size, chosen.resize)  # refuses what cannot be
    return chosen
