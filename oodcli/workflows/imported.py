"""``ood import``: read the network, choose its preprocessing, check it and store the run."""

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from oodcli.activations import Words
from oodcli.compute.compute import Compute
from oodcli.compute.devices import versions
from oodcli.data.class_order import logits_line
from oodcli.data.dataset import Dataset
from oodcli.errors import InvalidInputError
from oodcli.models import (
    ArchitectureSpec,
    Checkpoint,
    Clip,
    Network,
    Pretrained,
    builder_of,
    clip_network,
    folder_commit,
    is_external,
    load_with_remarks,
    names_classifier,
    parse_architecture,
    pretrained_state,
    published_configuration,
    read_checkpoint,
    read_program,
    save_weights,
    translated_state,
    with_output,
)
from oodcli.models.words import save_words
from oodcli.progress import Progress
from oodcli.sniffing import program_kind
from oodcli.specs import names_clip, names_folder
from oodcli.store.preprocess import Preprocess
from oodcli.store.run_names import new_name
from oodcli.store.runs import NO_CLASSIFIER, Job, Run, RunFolder, utc_now
from oodcli.store.store import Store, digest_of_file
from oodcli.training.import_probe import check_probe_data, with_probe
from oodcli.training.plausibility import Plausibility, plausibility
from oodcli.training.preprocessing import Sizing, sizing_for
from oodcli.windows import canonical
from oodcli.workflows.class_orders import hint, in_network_order
from oodcli.workflows.import_request import (
    ImportRequest,
    ImportResult,
    Outputs,
    Triple,
)
from oodcli.workflows.prompting import Prompting, WordList
from oodcli.workflows.zero_shot import ZeroShot, word_facts, zero_shot

_HALF: Triple = (0.5, 0.5, 0.5)
_WITHOUT = "fit a linear layer (--probe), or use its features alone (--features-only)"


@dataclass(frozen=True)
class _Normalisation:
    """Mean and standard deviation of the three channels, and their sources."""

    mean: Triple
    std: Triple
    mean_from: str
    std_from: str
    assumed: bool

    @property
    def line(self) -> str:
        """The values and their sources, for a note."""
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
    prompting: Prompting | None = None,
    command: str,
    progress: Progress,
) -> ImportResult:
    """Create the run of an import whose options, file and data have been checked.

    Parameters
    ----------
    store
        The store for the run.
    request
        What to import.
    dataset
        The data, with the classes in the order of the outputs.
    outputs
        The outputs of the network, and which of them are the classes of the data.
    prompting
        What a zero-shot classifier is asked with; None of any other network.
    command
        The command line, stored with the run.
    progress
        Receives notes on the sources of all settings, and warnings.

    Raises
    ------
    OodError
        If the file, the architecture or the data cannot be used or do not fit together.
    """
    device = Compute.of(request.device).device
    if request.probe:
        check_probe_data(dataset)
    if request.output is not None and request.arch:
        request = replace(request, arch=with_output(request.arch, request.output))

    def classifier(clip: Clip) -> ZeroShot:
        assert prompting is not None  # every CLIP network without a probe has it
        return zero_shot(clip, prompting, device=device, progress=progress)

    if request.arch:
        read = _read(request, dataset, outputs, classifier)
    else:
        read = _read_program(request, dataset, outputs)
    dataset, network = read.dataset, read.network
    normalised = _normalisation(request, read.published)
    _check_grey(network, normalised)
    preprocess = Preprocess(
        read.sizing.size,
        read.sizing.resize,
        normalised.mean,
        normalised.std,
        canonical(request.window),
    )
    for line in (*read.lines, normalised.line, *read.network.placement(device)):
        progress.note(line)
    if request.probe:
        network = with_probe(network, dataset, preprocess, device=device, progress=progress)
    tried = None
    if network.num_classes:
        tried = plausibility(
            network,
            dataset,
            preprocess,
            read.checkpoint,
            assumed=normalised.assumed,
            device=device,
            progress=progress,
        )
    imported = _import_fields(request, read, normalised, tried)
    if kept := network.kept_outputs:
        imported["kept_heads"] = kept
    if not network.num_classes:
        imported["last_layer"] = NO_CLASSIFIER
    result = _store_run(
        store, request, dataset, network, preprocess,
        imported=imported, words=None if read.zero_shot is None else read.zero_shot.words,
        lists=() if prompting is None else prompting.lists, command=command,
    )  # fmt: skip
    _report_outcome(result, tried, read.source, progress)
    return result


@dataclass(frozen=True)
class _ImportedNetwork:
    """A network with its weights and input size, and the sources of all of them."""

    network: Network
    checkpoint: Checkpoint
    source: str
    published: Pretrained | None
    dataset: Dataset
    outputs: Outputs
    sizing: Sizing
    lines: tuple[str, ...]
    zero_shot: ZeroShot | None = None


def _read(
    request: ImportRequest,
    dataset: Dataset,
    outputs: Outputs,
    classifier: Callable[[Clip], ZeroShot],
) -> _ImportedNetwork:
    """Read the weights and build the network for the images of the data."""
    spec = None if is_external(request.arch) else parse_architecture(request.arch)
    published = None
    if names_folder(request.arch) or request.checkpoint is None:
        published = published_configuration(request.arch, download=request.download)
    dataset, outputs, order = in_network_order(request, dataset, outputs, published)
    # The file is read first: the import of timm takes seconds.
    made: ZeroShot | None = None
    if names_clip(request.arch) and not (request.probe or request.features_only):
        source, checkpoint, made = _both_towers(request, classifier)
    else:
        source, checkpoint = _weights(request, dataset, outputs.count)
    if published is None:
        published = published_configuration(request.arch, request.checkpoint)

    def network_of(spec: ArchitectureSpec) -> tuple[Network, tuple[str, ...]]:
        return _network(spec, request, checkpoint, source, dataset, outputs=outputs)

    # Checks that need no image size come before those of the size.
    fitting = None if spec is None else network_of(spec)
    sizing = _sizing(request, dataset, published, outputs.count)
    network, names = fitting or network_of(parse_architecture(request.arch, side=sizing.side))
    network.check_image_size(*sizing.size)
    lines = (
        *checkpoint.remarks,
        *names,
        *network.remarks(),
        *order,
        *(() if made is None else made.lines),
        f"{dataset.name}: images of {sizing.originals}",
        *sizing.lines,
    )
    return _ImportedNetwork(
        network, checkpoint, source, published, dataset, outputs, sizing, lines, made
    )


def _read_program(request: ImportRequest, dataset: Dataset, outputs: Outputs) -> _ImportedNetwork:
    """Read a network with its forward pass from a file, for the images of the data."""
    path = request.checkpoint
    assert path is not None  # without an architecture there is a file
    kind = program_kind(path)
    assert kind is not None  # checked before
    program = read_program(path, kind)
    sizing = sizing_for(
        "import",
        dataset,
        request.arch,
        published=None,
        certain=True,
        image_size=request.image_size,
        resize=request.resize,
        jpeg_draft=request.jpeg_draft,
        side=program.side,
    )
    assert sizing.side is not None  # only published weights have other shapes
    network, remarks = program.network(sizing.side, output=request.output)
    network, kept = _for_classes(network, request, str(path), dataset, outputs)
    lines = (
        *network.remarks(),
        *remarks,
        *kept,
        f"{dataset.name}: images of {sizing.originals}",
        *sizing.lines,
    )
    return _ImportedNetwork(
        network, Checkpoint({}), str(path), None, dataset, outputs, sizing, lines
    )


def _import_fields(
    request: ImportRequest,
    read: _ImportedNetwork,
    normalised: _Normalisation,
    tried: Plausibility | None,
) -> dict[str, Any]:
    """Return the object ``imported`` of the record of the run."""
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
    if commit := folder_commit(request.arch):
        facts["commit"] = commit
    if request.probe:
        facts["last_layer"] = "linear probe"
    elif read.zero_shot is not None:
        facts["zero_shot"] = read.zero_shot.facts
    if not request.probe and read.outputs.places:
        facts["logits"] = _logits(read.outputs, request.logits)
    return {**facts, "plausibility": {} if tried is None else tried.to_json()}


def _sizing(
    request: ImportRequest, dataset: Dataset, published: Pretrained | None, classes: int
) -> Sizing:
    """Return the input size; an equal number of classes indicates the published weights."""
    same_classes = published is not None and published.classes in (classes, 0)
    return sizing_for(
        "import",
        dataset,
        request.arch,
        published=published,
        certain=request.checkpoint is None or same_classes or names_clip(request.arch),
        image_size=request.image_size,
        resize=request.resize,
        jpeg_draft=request.jpeg_draft,
    )


def _both_towers(
    request: ImportRequest, classifier: Callable[[Clip], ZeroShot]
) -> tuple[str, Checkpoint, ZeroShot]:
    """Read a CLIP network, and make a classifier of it; the text tower is dropped then."""
    given, path = Checkpoint({}), request.checkpoint
    if path is not None:
        given = read_checkpoint(path, key=request.key)
    clip, source = clip_network(
        request.arch,
        None if path is None else (path, given.state),
        download=request.download,
    )
    made = classifier(clip)
    return source, replace(given, state=made.state), made


def _weights(request: ImportRequest, dataset: Dataset, classes: int) -> tuple[str, Checkpoint]:
    """Read the weights; raise an error if they cannot have this number of classes."""
    path = request.checkpoint
    if path is None:
        published = published_configuration(request.arch, download=request.download)
        aside = request.probe or request.features_only
        if not aside and published is not None and published.classes not in (None, 0, classes):
            raise InvalidInputError(
                f"the published weights of {request.arch} have {published.classes} classes and "
                f"{dataset.name} has {classes}; name all classes of the network, one per line in "
                "the order of its outputs (--classes FILE), or train a last layer for these: "
                "ood train --pretrained "
                f"--arch {request.arch} --data DATA; or else, {_WITHOUT}"
            )
        allowed = request.download or not names_folder(request.arch)
        found = pretrained_state(request.arch, download=allowed)
        return found.source, Checkpoint(found.state)
    checkpoint = read_checkpoint(path, key=request.key)
    # Two classes may share one logit, and some layers have one column per output.
    fitting = {classes, 1} if classes == 2 else {classes}
    if (
        not (request.probe or request.features_only)
        and is_external(request.arch)
        and names_classifier(checkpoint.state)
        and not any(fitting & set(tensor.shape[:2]) for tensor in checkpoint.state.values())
    ):
        raise InvalidInputError(
            f"the checkpoint {path} has no layer with an output for each of the {classes} classes "
            f"of {dataset.name}; name the data it was trained on: --data; {hint(dataset, None)}; "
            f"or else, {_WITHOUT}"
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
    """Build the network and notes on its weights; raise an error if its classes do not match."""
    if request.probe or request.features_only:
        return load_with_remarks(spec, checkpoint.state, source=source, classifier="aside")
    if spec.architecture.bare and spec.architecture.width == outputs.count:
        raise InvalidInputError(f"{spec.architecture.bare}; or else, {_WITHOUT}")
    network, remarks = load_with_remarks(
        spec,
        checkpoint.state,
        by_order=request.by_order,
        source=source,
        classifier="needed" if request.by_order else "if there",
    )
    if network.num_classes == 0:
        return network, (*remarks, _no_classifier(source))
    network, kept = _for_classes(network, request, source, dataset, outputs)
    return network, (*remarks, *kept)


def _for_classes(
    network: Network, request: ImportRequest, source: str, dataset: Dataset, outputs: Outputs
) -> tuple[Network, tuple[str, ...]]:
    """Return the network with the logits that are used; raise an error if classes do not match."""
    if request.probe:
        return network, ()
    if request.features_only:
        return network.without_classifier(), ()
    if network.num_classes != outputs.count:
        named = f"{request.classes} has" if outputs.places else f"{dataset.name} has"
        raise InvalidInputError(
            f"the checkpoint {source} has {network.num_classes} classes and {named} "
            f"{outputs.count}; name the data it was trained on: --data; "
            f"{hint(dataset, network.num_classes)}; or else, {_WITHOUT}"
        )
    if outputs.places and request.logits == "data":
        network = network.restricted(outputs.places)
    return network, _logits_note(outputs, request.logits)


def _no_classifier(source: str) -> str:
    """Say that the weights have no last layer."""
    return (
        f"no classifier in {source}: only methods that need no logits are available; to fit a "
        "linear layer: --probe"
    )


def _logits(outputs: Outputs, logits: str) -> dict[str, Any]:
    return {"kept": logits, "classes": len(outputs.places), "outputs": outputs.count}


def _logits_note(outputs: Outputs, logits: str) -> tuple[str, ...]:
    """Return a note on the logits in use, if the network has more classes than the data."""
    if not outputs.places:
        return ()
    return (f"logits: {logits_line(_logits(outputs, logits))}",)


def _normalisation(request: ImportRequest, published: Pretrained | None) -> _Normalisation:
    """Return the requested normalisation, else that of the published weights, else one half."""
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
    """Check that a network with one input channel has one mean and one standard deviation."""
    if network.spec.architecture.channels == 1 and not (
        len(set(normalised.mean)) == 1 and len(set(normalised.std)) == 1
    ):
        raise InvalidInputError(
            f"{network.spec} takes images of one channel, so --mean and --std must be one number "
            f"each, not {normalised.line}; for example: --mean 0.5 --std 0.5"
        )


def _report_outcome(
    result: ImportResult, tried: Plausibility | None, source: str, progress: Progress
) -> None:
    record = result.record
    if tried is not None:
        progress.note(tried.line)
    for warning in record.warnings:
        progress.note(f"warning: {warning}")
    classes = f"with {len(record.class_names)} classes" if record.outputs else "without classifier"
    progress.note(f"run {result.run}: {record.arch} {classes}, from {source}")


def _without_extensions(name: str) -> str:
    """Return the name of a file without the extensions of checkpoints, such as ``.pth.tar``."""
    stem = re.sub(
        r"(\.(?:pth?|th|ckpt|tar|bin|pkl|pickle|safetensors|onnx|pt2|ts|torchscript))+$", "", name
    )
    return stem or name


def _store_run(
    store: Store,
    request: ImportRequest,
    dataset: Dataset,
    network: Network,
    preprocess: Preprocess,
    *,
    imported: dict[str, Any],
    words: Words | None,
    lists: Sequence[WordList],
    command: str,
) -> ImportResult:
    """Write the weights, the negative words and the record of the run."""
    arch = network.spec.canonical
    path: Path | None = request.checkpoint
    if path is None and names_folder(arch):
        path = Path(builder_of(arch)[0])  # its last component is the name
    with store.lock("runs"):
        folder = RunFolder(
            store.runs
            / new_name(
                store, request.name, arch if path is None else _without_extensions(path.name)
            )
        )
        save_weights(network, folder.weights)
        if words is not None:
            save_words(words, folder.words)
            known = word_facts(lists, digest_of_file(folder.words))
            zero_shot_facts = {**imported["zero_shot"], "negative_words": known}
            imported = {**imported, "zero_shot": zero_shot_facts}
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
