"""``ood import``: all checks that do not need the network.

This module imports no torch, so that a wrong option, file or data set is reported at once.
"""

from oodcli.data.class_order import read_class_names
from oodcli.data.dataset import Dataset
from oodcli.data.run_data import check_size_options, find_divided
from oodcli.errors import InvalidInputError
from oodcli.progress import SILENT, Progress
from oodcli.sniffing import program_kind
from oodcli.store.run_names import new_name
from oodcli.store.store import Store
from oodcli.workflows.import_request import ImportRequest, ImportResult, Outputs, in_output_order
from oodcli.workflows.prompting import Prompting, prompting_for


def import_checkpoint(
    store: Store,
    request: ImportRequest,
    *,
    command: str = "",
    progress: Progress = SILENT,
) -> ImportResult:
    """Create a run from a checkpoint, without executing any code contained in the file.

    Parameters
    ----------
    store
        The store for the run.
    request
        What to import.
    command
        The command line, stored with the run.
    progress
        Receives notes on the sources of all settings, and warnings.

    Raises
    ------
    OodError
        If the file, the architecture or the data cannot be used or do not fit together.
    """
    dataset, outputs, prompting = _checked(store, request, progress)
    from oodcli.workflows.imported import imported_run

    return imported_run(
        store, request, dataset, outputs, prompting=prompting, command=command, progress=progress
    )


def _check_features_only(request: ImportRequest) -> None:
    """Refuse options for the last layer, which is ignored."""
    if request.probe:
        raise InvalidInputError(
            "--probe fits a last layer and --features-only ignores it; give one of them"
        )
    if request.by_order or request.classes is not None or request.logits == "all":
        raise InvalidInputError(
            "--features-only ignores the last layer; omit --keys, --classes and --logits"
        )


def _checked(
    store: Store, request: ImportRequest, progress: Progress
) -> tuple[Dataset, Outputs, Prompting | None]:
    """Check everything that needs no network.

    Returns
    -------
    dataset
        The data.
    outputs
        The expected outputs.
    prompting
        What a zero-shot classifier is asked with; None of any other network.
    """
    if request.mean is not None and not all(0 <= value <= 1 for value in request.mean):
        raise InvalidInputError(
            f"--mean {','.join(f'{value:g}' for value in request.mean)} is not between 0 and 1, "
            "the range of pixel values in ood; divide values for pixels from 0 to 255 by 255, "
            "also those of --std"
        )
    if request.std is not None and min(request.std) <= 0:
        raise InvalidInputError(
            f"--std must be positive, not {', '.join(f'{v:g}' for v in request.std)}"
        )
    check_size_options(request.image_size, request.resize)
    checkpoint = request.checkpoint
    if checkpoint is None and (request.key is not None or request.by_order):
        raise InvalidInputError("--key and --keys need a checkpoint file; give its path")
    if checkpoint is not None and not checkpoint.exists():
        raise InvalidInputError(f"there is no file {checkpoint}; name a checkpoint")
    _check_form(request)
    if request.name is not None:
        new_name(store, request.name, request.name)
    if request.probe and (request.by_order or request.logits == "all"):
        raise InvalidInputError(
            "--probe fits a last layer for the classes of the data; omit --keys and --logits"
        )
    if request.features_only:
        _check_features_only(request)
    names = None if request.classes is None else read_class_names(request.classes)
    dataset = find_divided(
        request.data,
        store,
        val=request.val_fraction,
        test=request.test_fraction,
        usual_test=0.0,
        window=request.window,
        progress=progress,
    )
    if not dataset.class_names:
        raise InvalidInputError(
            f"{dataset.name} at {dataset.location} has no labels; give labelled images of the "
            "classes that the network was trained on: --data"
        )
    classes, outputs = dataset.class_names, Outputs(len(dataset.class_names))
    if names is not None:
        dataset, outputs = in_output_order(
            dataset, names, where=str(request.classes), logits=request.logits
        )
    every = names if names is not None and outputs.places else dataset.class_names
    return dataset, outputs, prompting_for(request, classes, every)


def _check_form(request: ImportRequest) -> None:
    """Refuse weights without an architecture, and options of weights for a whole network."""
    if request.arch or request.checkpoint is None:
        return
    path = request.checkpoint
    kind = program_kind(path) if path.is_file() else None
    if kind is None:
        raise InvalidInputError(
            f"{path} does not say how its network computes (it is no ONNX file, program of "
            "torch.export or TorchScript); give the architecture: --arch ARCH"
        )
    if request.key is not None or request.by_order:
        raise InvalidInputError(
            f"--key and --keys say how weights are read, and {path} is a whole network; omit them"
        )
