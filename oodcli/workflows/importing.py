"""A run made of a checkpoint from elsewhere."""

from dataclasses import dataclass
from pathlib import Path

from oodcli.errors import InvalidInputError
from oodcli.models import load_into, parse_architecture, read_state, save_weights
from oodcli.progress import Progress, Silent
from oodcli.runs import Run, RunFolder, new_name, now
from oodcli.store import Store, digest_of_bytes
from oodcli.workflows.devices import versions
from oodcli.workflows.run_data import find_dataset, preprocess_for


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
    checkpoint: Path,
    *,
    arch: str,
    data: str,
    name: str | None = None,
    mean: tuple[float, float, float] = (0.5, 0.5, 0.5),
    std: tuple[float, float, float] = (0.5, 0.5, 0.5),
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
        The file.
    arch
        Architecture with parameters.
    data
        The data set it was trained on.
    name
        Name of the run; that of the file if None.
    mean, std
        Normalisation it was trained with.
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
    if min(std) <= 0:
        raise InvalidInputError(f"--std must be positive, not {', '.join(f'{v:g}' for v in std)}")
    spec = parse_architecture(arch)
    network = load_into(spec, read_state(checkpoint))
    dataset = find_dataset(data, store, role="id", val_fraction=val_fraction, progress=watch)
    classes = len(dataset.class_names)
    if network.num_classes != classes:
        raise InvalidInputError(
            f"the checkpoint {checkpoint} has {network.num_classes} classes and {dataset.name} has "
            f"{classes}; name the data it was trained on: --data"
        )
    with store.lock("runs"):
        folder = RunFolder(store.runs / new_name(store, name, checkpoint.stem))
        save_weights(network, folder.weights)
        record = Run(
            origin="imported",
            created=now(),
            arch=spec.canonical,
            data=dataset.spec,
            data_name=dataset.name,
            class_names=tuple(dataset.class_names),
            preprocess=preprocess_for(dataset.name, mean=mean, std=std),
            blocks=tuple(network.blocks),
            network=network.digest,
            weights=digest_of_bytes(folder.weights.read_bytes()),
            parts={part: len(images) for part, images in dataset.parts.items()},
            val_fraction=val_fraction,
            versions=versions(),
            command=command,
        )
        folder.write(record)
    watch.note(f"run {folder.name}: {spec.canonical} with {classes} classes, from {checkpoint}")
    return ImportResult(folder.name, record)
