"""The network of an import: read, brought to its images, tried on some, and stored as a run."""

import re
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from oodcli.compute.compute import Compute
from oodcli.compute.devices import versions
from oodcli.data.class_order import logits_line
from oodcli.data.dataset import Dataset
from oodcli.errors import InvalidInputError
from oodcli.models import (
    ArchitectureSpec,
    Checkpoint,
    Network,
    Pretrained,
    builder_of,
    fitted,
    folder_class_names,
    is_foreign,
    parse_architecture,
    pretrained_state,
    published_configuration,
    read_checkpoint,
    save_weights,
    translated_state,
    with_output,
)
from oodcli.progress import Progress
from oodcli.specs import names_folder
from oodcli.store.runs import Job, Preprocess, Run, RunFolder, new_name, utc_now
from oodcli.store.store import Store, digest_of_file
from oodcli.text import printable
from oodcli.training.import_probe import check_probe_data, with_probe
from oodcli.training.plausibility import Plausibility, plausibility
from oodcli.training.preprocessing import Sizing, sizing_for
from oodcli.workflows.import_request import (
    ImportRequest,
    ImportResult,
    Outputs,
    Three,
    arranged,
)

_HALF: Three = (0.5, 0.5, 0.5)


@dataclass(frozen=True)
class _Normalisation:
    """Mean and standard deviation of the three channels, and what says so."""

    mean: Three
    std: Three
    mean_from: str
    std_from: str
    assumed: bool

    @property
    def line(self) -> str:
        """What was taken and why."""
        mean, std = (", ".join(f"{v:g}" for v in values) for values in (self.mean, self.std))
        if self.mean_from == self.std_from:
            return f"mean {mean} and std {std}: {self.mean_from}"
        return f"mean {mean}: {self.mean_from}; std {std}: {self.std_from}"


def imported_run(
    store: Store,
    request: ImportRequest,
    dataset: Dataset,
    outputs: Outputs,
    *,
    command: str,
    progress: Progress,
) -> ImportResult:
    """Make the run of an import whose options, file and data have been looked at.

    Parameters
    ----------
    store
        Where the run goes.
    request
        What to import.
    dataset
        The data, with the classes in the order of the outputs.
    outputs
        The outputs of the network, and which of them are the classes of the data.
    command
        The command line, kept with the run.
    progress
        Told what was taken from where, and of what looks wrong.

    Raises
    ------
    OodError
        If the file, the architecture or the data cannot be used or do not fit together.
    """
    device = Compute.of(request.device).device
    if request.probe:
        check_probe_data(dataset)
    if request.output is not None:
        request = replace(request, arch=with_output(request.arch, request.output))
    read = _read(request, dataset, outputs)
    dataset, network = read.dataset, read.network
    normalised = _normalisation(request, read.published)
    _check_grey(network, normalised)
    preprocess = Preprocess(read.sizing.size, read.sizing.resize, normalised.mean, normalised.std)
    for line in (*read.lines, normalised.line):
        progress.note(line)
    if request.probe:
        network = with_probe(network, dataset, preprocess, device=device, progress=progress)
    tried = plausibility(
        network,
        dataset,
        preprocess,
        read.checkpoint,
        assumed=normalised.assumed,
        device=device,
        progress=progress,
    )
    facts = _facts(request, read, normalised, tried)
    result = _stored(store, request, dataset, network, preprocess, imported=facts, command=command)
    _tell_outcome(result, tried, read.source, progress)
    return result


@dataclass(frozen=True)
class _Read:
    """A network with its weights, the size it is used at, and where all of it came from."""

    network: Network
    checkpoint: Checkpoint
    source: str
    published: Pretrained | None
    dataset: Dataset
    outputs: Outputs
    sizing: Sizing
    lines: tuple[str, ...]


def _read(request: ImportRequest, dataset: Dataset, outputs: Outputs) -> _Read:
    """Read the weights, and build their network for the images of the data."""
    spec = None if is_foreign(request.arch) else parse_architecture(request.arch)
    published = None
    if names_folder(request.arch):
        published = published_configuration(request.arch, download=request.download)
    dataset, outputs, order = _in_their_order(request, dataset, outputs)
    # The file comes first: timm takes seconds to load.
    source, checkpoint = _weights(request, dataset, outputs.count)
    if published is None:
        published = published_configuration(request.arch, request.checkpoint)

    def network_of(spec: ArchitectureSpec) -> tuple[Network, tuple[str, ...]]:
        return _network(spec, request, checkpoint, source, dataset, outputs=outputs)

    # What is known without a size is refused before a size is asked for.
    fitting = None if spec is None else network_of(spec)
    sizing = _sizing(request, dataset, published, outputs.count)
    network, names = fitting or network_of(parse_architecture(request.arch, side=sizing.side))
    network.check_image_size(*sizing.size)
    lines = (
        *checkpoint.remarks,
        *names,
        *network.remarks(),
        *order,
        f"{dataset.name}: images of {sizing.originals}",
        *sizing.lines,
    )
    return _Read(network, checkpoint, source, published, dataset, outputs, sizing, lines)


def _facts(
    request: ImportRequest, read: _Read, normalised: _Normalisation, tried: Plausibility | None
) -> dict[str, Any]:
    """Return what the record of the run says about the import."""
    sizing = read.sizing
    facts: dict[str, Any] = {
        "source": read.source,
        "preprocess_from": {
            "size": sizing.size_from,
            "resize": sizing.resize_from,
            "filter": sizing.filter_from,
            "mean": normalised.mean_from,
            "std": normalised.std_from,
        },
        "as_published": sizing.as_published,
    }
    if request.probe:
        facts["last_layer"] = "linear probe"
    elif read.outputs.places:
        facts["logits"] = _logits(read.outputs, request.logits)
    return {**facts, "plausibility": {} if tried is None else tried.to_json()}


def _in_their_order(
    request: ImportRequest, dataset: Dataset, outputs: Outputs
) -> tuple[Dataset, Outputs, tuple[str, ...]]:
    """Bring the classes into the order that the folder of a network has them in, and say so.

    Names are compared without regard to case, to spaces and underscores, and to what follows a
    comma, as in ``tench, Tinca tinca``.
    """
    if request.classes is not None or request.probe:
        return dataset, outputs, ()
    names = folder_class_names(request.arch)
    if not names:
        return dataset, outputs, ()
    own = {_plain_name(name): name for name in dataset.class_names}
    theirs = [_plain_name(name) for name in names]
    unique = len(own) == len(dataset.class_names) and len(set(theirs)) == len(theirs)
    if not unique or not own.keys() <= set(theirs):
        lacking = next((name for plain, name in own.items() if plain not in theirs), "")
        line = (
            f"classes in the order of {dataset.name}, whose names the network's folder does not "
            f"have ({printable(lacking or 'some stand twice')}); if its outputs have another "
            "order: --classes FILE"
        )
        return dataset, outputs, (line,)
    listed = [own.get(plain, name) for plain, name in zip(theirs, names, strict=True)]
    moved, outputs = arranged(dataset, listed, where=request.arch, logits=request.logits)
    return moved, outputs, ("classes in the order of the network's folder",)


def _plain_name(name: str) -> str:
    first = name.partition(",")[0].strip() or name
    return first.casefold().replace("_", " ").replace("-", " ")


def _sizing(
    request: ImportRequest, dataset: Dataset, published: Pretrained | None, classes: int
) -> Sizing:
    """Return the size at which the network is used; its classes tell whose weights it has."""
    its_own = published is not None and published.classes == classes
    return sizing_for(
        "import",
        dataset,
        request.arch,
        published=published,
        certain=request.checkpoint is None or its_own,
        image_size=request.image_size,
        resize=request.resize,
    )


def _weights(request: ImportRequest, dataset: Dataset, classes: int) -> tuple[str, Checkpoint]:
    """Read the weights, and refuse those that cannot have so many classes."""
    path = request.checkpoint
    if path is None:
        published = published_configuration(request.arch, download=request.download)
        if not request.probe and published is not None and published.classes not in (None, classes):
            raise InvalidInputError(
                f"the published weights of {request.arch} have {published.classes} classes and "
                f"{dataset.name} has {classes}; name all classes of the network, one per line in "
                "the order of its outputs (--classes FILE), or train a last layer for these: "
                "ood train --pretrained "
                f"--arch {request.arch} --data DATA"
            )
        allowed = request.download or not names_folder(request.arch)
        found = pretrained_state(request.arch, download=allowed)
        return found.source, Checkpoint(found.state)
    checkpoint = read_checkpoint(path, key=request.key)
    # Two classes may be one logit, and some layers have a column for each output.
    fitting = {classes, 1} if classes == 2 else {classes}
    if (
        not request.probe
        and is_foreign(request.arch)
        and not any(fitting & set(tensor.shape[:2]) for tensor in checkpoint.state.values())
    ):
        raise InvalidInputError(
            f"the checkpoint {path} has no layer with an output for each of the {classes} classes "
            f"of {dataset.name}; name the data it was trained on: --data"
        )
    state = translated_state(request.arch, checkpoint.state, path)
    return str(path), replace(checkpoint, state=state)


def _network(
    spec: ArchitectureSpec,
    request: ImportRequest,
    checkpoint: Checkpoint,
    source: str,
    dataset: Dataset,
    *,
    outputs: Outputs,
) -> tuple[Network, tuple[str, ...]]:
    """Build the network with lines on its weights, and refuse one without the data's classes."""
    if request.probe:
        spec.architecture.check_trainable()
        return fitted(spec, checkpoint.state, source=source, headless=True)
    network, remarks = fitted(spec, checkpoint.state, by_order=request.by_order, source=source)
    if network.num_classes != outputs.count:
        named = f"{request.classes} names" if outputs.places else f"{dataset.name} has"
        raise InvalidInputError(
            f"the checkpoint {source} has {network.num_classes} classes and {named} "
            f"{outputs.count}; name the data it was trained on: --data; or all classes of the "
            "network, one per line in the order of its outputs: --classes FILE"
        )
    if outputs.places and request.logits == "data":
        network = network.restricted(outputs.places)
    return network, (*remarks, *_kept(outputs, request.logits))


def _logits(outputs: Outputs, logits: str) -> dict[str, Any]:
    return {"kept": logits, "classes": len(outputs.places), "outputs": outputs.count}


def _kept(outputs: Outputs, logits: str) -> tuple[str, ...]:
    """Say which logits of a network with more classes than the data count."""
    if not outputs.places:
        return ()
    return (f"logits: {logits_line(_logits(outputs, logits))}",)


def _normalisation(request: ImportRequest, published: Pretrained | None) -> _Normalisation:
    """Return what was asked for, else what published weights want, else one half."""
    usual = "not stated anywhere, so one half is assumed"
    mean, std, source = _HALF, _HALF, usual
    if published is not None:
        mean, std, source = published.mean, published.std, published.configuration
    return _Normalisation(
        request.mean or mean,
        request.std or std,
        source if request.mean is None else "--mean",
        source if request.std is None else "--std",
        assumed=published is None and request.mean is None,
    )


def _check_grey(network: Network, normalised: _Normalisation) -> None:
    """Refuse several means or deviations for a network of one channel."""
    if network.spec.architecture.channels == 1 and not (
        len(set(normalised.mean)) == 1 and len(set(normalised.std)) == 1
    ):
        raise InvalidInputError(
            f"{network.spec} takes images of one channel, which has one mean and one deviation, "
            f"not those of {normalised.line}; give one number each: --mean 0.5 --std 0.5"
        )


def _tell_outcome(
    result: ImportResult, tried: Plausibility | None, source: str, progress: Progress
) -> None:
    record = result.record
    if tried is not None:
        progress.note(tried.line)
    for warning in record.warnings:
        progress.note(f"warning: {warning}")
    progress.note(
        f"run {result.run}: {record.arch} with {len(record.class_names)} classes, from {source}"
    )


def _bare(name: str) -> str:
    """Return the name of a file without the endings of checkpoints, such as ``.pth.tar``."""
    bare = re.sub(r"(\.(?:pth?|th|ckpt|tar|bin|pkl|pickle|safetensors))+$", "", name)
    return bare or name


def _stored(
    store: Store,
    request: ImportRequest,
    dataset: Dataset,
    network: Network,
    preprocess: Preprocess,
    *,
    imported: dict[str, Any],
    command: str,
) -> ImportResult:
    """Write weights and record."""
    arch = network.spec.canonical
    path: Path | None = request.checkpoint
    if path is None and names_folder(arch):
        path = Path(builder_of(arch)[0])  # its last part is a name
    with store.lock("runs"):
        folder = RunFolder(
            store.runs / new_name(store, request.name, arch if path is None else _bare(path.name))
        )
        save_weights(network, folder.weights)
        record = Run(
            origin="imported",
            created=utc_now(),
            job=Job(
                data=dataset.spec,
                arch=arch,
                val_fraction=request.val_fraction,
                test_fraction=dataset.test_fraction,
                division=dataset.division,
                skip_unreadable=request.skip_unreadable,
                preprocess=preprocess,
            ),
            data_name=dataset.name,
            class_names=tuple(dataset.class_names),
            blocks=tuple(network.blocks),
            network=network.digest,
            weights=digest_of_file(folder.weights),
            parts={part: len(images) for part, images in dataset.parts.items()},
            versions=versions(),
            command=command,
            imported=imported,
        )
        folder.write(record)
    return ImportResult(folder.name, record)
