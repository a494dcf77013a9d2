"""``ood doctor``: installed packages, devices, the store and a self-test, for bug reports.

Modules that may be broken are not imported at the top, so that the report works even then.
"""

import base64
import codecs
import importlib
import importlib.metadata
import io
import os
import platform
import sys
import time
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from oodcli.errors import CorruptArtifactError, InvalidInputError, OodError
from oodcli.records import as_json
from oodcli.version import __version__

if TYPE_CHECKING:
    from oodcli.store.runs import Run, RunFolder

DOCTOR_SCHEMA = 1

# Required packages: the name on PyPI, and the name of the module.
PACKAGES: Mapping[str, str] = {
    "torch": "torch",
    "torchvision": "torchvision",
    "numpy": "numpy",
    "pillow": "PIL",
    "scipy": "scipy",
    "scikit-learn": "sklearn",
    "safetensors": "safetensors",
    "matplotlib": "matplotlib",
    "filelock": "filelock",
    "platformdirs": "platformdirs",
    "rich": "rich",
    "threadpoolctl": "threadpoolctl",
    "tomlkit": "tomlkit",
    "typer": "typer",
}
# Optional packages, by the name of the extra.
EXTRAS: Mapping[str, tuple[str, ...]] = {
    "formats": ("pillow-heif", "pillow-jxl-plugin"),
    "hdf5": ("h5py",),
    "medical": ("pydicom", "nibabel"),
    "onnx": ("onnx", "onnxruntime", "onnxscript"),
    "parquet": ("pyarrow",),
    "remote": ("fsspec", "aiohttp", "s3fs"),
    "pytorch-ood": ("pytorch-ood",),
    "hf": ("transformers",),
    "clip": ("open_clip_torch",),
    "timm": ("timm",),
}
# Below this much free space, the activations of an ordinary run may not fit.
LOW_FREE_BYTES = 2**30
# Environment variables for the number of CPU threads, and for how they wait.
_SPINNING = ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT", "KMP_BLOCKTIME")
_THREADS = ("OMP_NUM_THREADS", *_SPINNING)

# 8 x 8 pixels: red increases to the right, green downwards, blue is a checkerboard.
IMAGE = (
    b"iVBORw0KGgoAAAANSUhEUgAAAAgAAAAICAIAAABLbSncAAAAJ0lEQVR42mNkYGBQYfivwsCIRrIwqPxnYGBkYEAn"
    b"WRhUsIgyDLAOAIUKIhXGy/WgAAAAAElFTkSuQmCC"
)


@dataclass(frozen=True)
class StoreState:
    """The state of the store.

    Parameters
    ----------
    path
        Path of its folder.
    exists
        Whether the folder exists.
    writable
        Whether files, or the folder itself, can be created.
    free_bytes
        Free space on its disk, in bytes; None if unknown.
    usage
        Size of each part in bytes.
    finished, unfinished
        Numbers of finished and of unfinished runs.
    damaged
        Why a run cannot be read, by its name.
    leftovers
        Size in bytes of files of killed processes, by path relative to the store.
    """

    path: str
    exists: bool
    writable: bool
    free_bytes: int | None
    usage: Mapping[str, int] = field(default_factory=dict)
    finished: int = 0
    unfinished: int = 0
    damaged: Mapping[str, str] = field(default_factory=dict)
    leftovers: Mapping[str, int] = field(default_factory=dict)


@dataclass(frozen=True)
class SelfTest:
    """The self-test on one device: decode an image, run a small network and two detectors.

    Parameters
    ----------
    device
        The device, as for ``--device``.
    passed
        Whether all results were correct.
    seconds
        Duration in seconds.
    reason
        Why it failed; empty if it passed.
    """

    device: str
    passed: bool
    seconds: float
    reason: str = ""


@dataclass(frozen=True)
class Device:
    """A device for computations.

    Parameters
    ----------
    name
        Name, as for ``--device``.
    description
        Model of the device and relevant settings.
    memory_bytes
        Memory in bytes; None if unknown.
    """

    name: str
    description: str
    memory_bytes: int | None


@dataclass(frozen=True)
class Diagnosis:
    """The complete report of ``ood doctor``.

    Parameters
    ----------
    versions
        Versions of ood, Python and the required packages; None for a package that is not installed.
    system
        Operating system and processor architecture.
    python
        Path of the interpreter.
    devices
        Devices, ``cpu`` first.
    store
        State of the store; None if it cannot be opened.
    extras
        Versions of the packages of every extra; None for a package that is not installed.
    self_tests
        One for each kind of device; empty if torch cannot be imported.
    problems
        Errors, each with a suggestion.
    remarks
        Observations that may matter but are not errors.
    """

    versions: Mapping[str, str | None]
    system: str
    python: str
    devices: tuple[Device, ...]
    store: StoreState | None
    extras: Mapping[str, Mapping[str, str | None]]
    self_tests: tuple[SelfTest, ...]
    problems: tuple[str, ...]
    remarks: tuple[str, ...]

    @property
    def healthy(self) -> bool:
        """Whether there are no problems."""
        return not self.problems

    def to_json(self) -> dict[str, Any]:
        """Return the versioned object that ``--format json`` prints."""
        return {"schema": DOCTOR_SCHEMA, "healthy": self.healthy, **as_json(self)}


def diagnose(store: Path | None = None) -> Diagnosis:
    """Check everything that ood needs; every failure becomes a line of the report.

    Parameters
    ----------
    store
        The store; None for the default store of all commands.
    """
    problems: list[str] = []
    remarks: list[str] = []
    versions = {
        name: _imported_version(name, module, problems) for name, module in PACKAGES.items()
    }
    torch_works = "torch" in sys.modules and not any(p.startswith("torch ") for p in problems)
    devices = [_cpu()]
    if torch_works:
        with _ErrorsAsLines(problems, "devices cannot be listed"):
            devices += _accelerators()
    tests: list[SelfTest] = []
    if torch_works:
        kinds = {device.name.partition(":")[0]: device.name for device in reversed(devices)}
        tests = [_self_test(kinds[kind]) for kind in ("cpu", "cuda", "mps") if kind in kinds]
        problems += [
            f"the self-test on {each.device} failed: {each.reason}"
            for each in tests
            if not each.passed
        ]
    remarks += _environment_remarks()
    state = _store_state(store, problems, remarks)
    extras = {
        extra: {name: _version(name) for name in packages} for extra, packages in EXTRAS.items()
    }
    for extra, packages in extras.items():
        missing = [name for name, version in packages.items() if version is None]
        if missing and len(missing) < len(packages):
            remarks.append(
                f"extra {extra} lacks {', '.join(missing)}; complete it: "
                f'pip install "oodcli[{extra}]"'
            )
    return Diagnosis(
        versions={
            "ood": __version__,
            "python": platform.python_version(),
            **versions,
        },
        system=f"{platform.platform()}, {platform.machine()}",
        python=sys.executable,
        devices=tuple(devices),
        store=state,
        extras=extras,
        self_tests=tuple(tests),
        problems=tuple(problems),
        remarks=tuple(remarks),
    )


class _ErrorsAsLines:
    """Context manager that turns any exception into a line of a list."""

    def __init__(self, lines: list[str], what: str) -> None:
        self._lines = lines
        self._what = what

    def __enter__(self) -> None:
        pass

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> bool:
        if not isinstance(error, Exception):
            return False
        self._lines.append(f"{self._what}: {_one_line(error)}")
        return True


def _one_line(error: BaseException) -> str:
    """Return the message of an error in one line; with its type unless it is an OodError."""
    text = " ".join(str(error).split())
    return text if isinstance(error, OodError) else f"{type(error).__name__}: {text}"


def _version(name: str) -> str | None:
    """Return the version of an installed package; None if it is not installed."""
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None


def _imported_version(name: str, module: str, problems: list[str]) -> str | None:
    """Import a package and return its ``__version__``, which for torch includes the build."""
    try:
        package = importlib.import_module(module)
    except Exception as error:  # noqa: BLE001 - a broken package raises anything
        problems.append(
            f"{name} cannot be imported ({_one_line(error)}); "
            f"install it again: pip install --force-reinstall {name}"
        )
        return _version(name)
    own = getattr(package, "__version__", None)
    return str(own) if own else _version(name)


def _cpu() -> Device:
    memory = None
    with suppress(AttributeError, ValueError, OSError):
        memory = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    settings = [f"{name}={os.environ[name]}" for name in _THREADS if name in os.environ]
    return Device("cpu", ", ".join([f"{os.cpu_count() or 1} cores", *settings]), memory)


def _environment_remarks() -> list[str]:
    """Return remarks on settings of the environment that slow down commands or affect output."""
    lines = []
    spinning = [name for name in _SPINNING if _spins(name)]
    if spinning:
        given = ", ".join(f"{name}={os.environ[name]}" for name in spinning)
        lines.append(
            f"{given} makes waiting threads spin, and commands many times slower when other "
            f"programs use the same cores; unset {', '.join(spinning)}"
        )
    encoding = codecs.lookup(getattr(sys.stdout, "encoding", None) or "utf-8").name
    if encoding != "utf-8":
        lines.append(
            f"stdout is {encoding}: characters outside it are replaced or escaped; set "
            "PYTHONUTF8=1 to write all characters"
        )
    return lines


def _spins(name: str) -> bool:
    """Return whether an OpenMP variable makes waiting threads spin."""
    value = os.environ.get(name, "").strip().lower()
    if name == "OMP_WAIT_POLICY":
        return value == "active"
    # With a passive policy, libgomp spins only if a positive spin count is set.
    return value not in ("", "0")


def _accelerators() -> list[Device]:
    import torch

    found = []
    if torch.cuda.is_available():
        for index in range(torch.cuda.device_count()):
            known = torch.cuda.get_device_properties(index)
            text = f"{known.name}, CUDA {torch.version.cuda}"
            found.append(Device(f"cuda:{index}", text, int(known.total_memory)))
    if torch.backends.mps.is_available():
        found.append(Device("mps", "Apple GPU", None))
    return found


def _self_test(device: str) -> SelfTest:
    """Decode an image, run a network and two detectors on a device, and check the results."""
    start = time.perf_counter()
    reason = ""
    try:
        _one_image(device)
    except Exception as error:  # noqa: BLE001 - any failure is reported
        reason = _one_line(error)
    return SelfTest(device, not reason, round(time.perf_counter() - start, 3), reason)


def _one_image(device: str) -> None:
    """Run the self-test.

    Raises
    ------
    RuntimeError
        If a result is wrong.
    """
    import numpy as np
    import torch

    from oodcli.activations import ActivationSet, Reference
    from oodcli.data.decoding.files import decode_stream
    from oodcli.data.decoding.scaling import Resizing
    from oodcli.methods import parse_methods
    from oodcli.models import network_of, parse_architecture
    from oodcli.models.extraction import extract

    decoded = decode_stream(io.BytesIO(base64.b64decode(IMAGE)), where="of the self-test")
    y, x = np.mgrid[:8, :8]
    _check(
        np.array_equal(decoded, np.stack([36 * x, 36 * y, 255 * ((x + y) % 2)], axis=2)),
        "an image was decoded to wrong pixels",
    )
    pixels = Resizing((16, 16)).apply(decoded).transpose(2, 0, 1)[None]
    # The image and three variants of it.
    images = np.concatenate([pixels, pixels[..., ::-1], 255 - pixels, pixels[:, ::-1]])
    spec = parse_architecture("resnet18:width=2")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        network = network_of(spec, spec.build(4))
    mean = std = (0.5, 0.5, 0.5)
    passes = {
        place: next(extract(network, [images], mean=mean, std=std, device=place))
        for place in dict.fromkeys(("cpu", device))
    }
    _check(
        all(
            torch.allclose(values, passes["cpu"].arrays()[name], rtol=1e-3, atol=1e-4)
            for name, values in passes[device].arrays().items()
            if name != "predictions"
        ),
        "the activations of the network differ from those on the cpu",
    )
    activations = passes[device].map(lambda values: values.to(device))
    reference = Reference(
        head=network.head().to(device),
        load_train=lambda: ActivationSet.of(activations, device),
        n_blocks=len(network.blocks),
    )
    energy, knn = (spec.fit(reference).detector for spec in parse_methods(["energy", "knn:k=1"]))
    wanted = np.logaddexp.reduce(activations.logits.cpu().double().numpy(), axis=1)
    _check(
        np.allclose(energy.score(activations).cpu().numpy(), wanted, rtol=1e-4, atol=1e-4),
        "the scores of energy differ from its formula",
    )
    _check(
        bool((knn.score(activations).abs() < 1e-6).all()),
        "knn does not find an image among the images it was fitted on",
    )


def _check(condition: bool, message: str) -> None:  # noqa: FBT001 - reads like an assertion
    if not condition:
        raise RuntimeError(message)


def _store_state(root: Path | None, problems: list[str], remarks: list[str]) -> StoreState | None:
    """Return the state of the store, without changing it; None if it cannot be opened."""
    with _ErrorsAsLines(problems, "the store cannot be opened"):
        from oodcli.store.store import Store, free_bytes

        store = Store.at(root)
        exists = store.root.is_dir()
        writable = _writable(store.root)
        if not writable:
            problems.append(
                f"the store {store.root} is not writable; change its permissions, or use another "
                "store: --store DIR"
            )
        free = None
        with suppress(OSError):
            free = free_bytes(store.root)
        if free is not None and free < LOW_FREE_BYTES:
            remarks.append(
                f"little free space on the disk of the store: {free / 2**20:.0f} MiB; free some "
                "space, or use another store: --store DIR"
            )
        state = StoreState(str(store.root), exists, writable, free)
        if not exists:
            remarks.append(f"there is no store at {store.root} yet; the first command creates it")
            return state
        with _ErrorsAsLines(problems, f"the store {store.root} cannot be read"):
            return _state_with_runs(state, store, problems, remarks)
        return state
    return None


def repair_store(root: Path | None = None) -> list[tuple[str, int]]:
    """Remove files and folders of killed processes that belong to no run.

    Parameters
    ----------
    root
        The store; None for the default store of all commands.

    Returns
    -------
    list
        Path and size in bytes of everything removed. What another process uses is not removed.

    Raises
    ------
    OodError
        If the store cannot be opened.
    """
    from oodcli.store.removal import leftovers, remove_leftover
    from oodcli.store.store import Store

    store = Store.at(root)
    removed = []
    for each in leftovers(store):
        with suppress(OodError):
            remove_leftover(store, each)
            removed.append((str(each.path), each.bytes))
    return removed


def _state_with_runs(
    state: StoreState,
    store: Any,  # noqa: ANN401 - importing its module may fail
    problems: list[str],
    remarks: list[str],
) -> StoreState:
    """Return the state of a store with its runs, disk usage and leftovers."""
    from oodcli.store.ensembles import read_ensemble
    from oodcli.store.removal import leftovers
    from oodcli.store.run_names import find_run, run_folders

    finished = unfinished = 0
    damaged: dict[str, str] = {}
    for folder in run_folders(store):
        try:
            if folder.finished:
                record = folder.read()
                _check_weights(folder.weights)
                remarks += _run_remarks(folder, record)
            elif folder.is_ensemble:
                read_ensemble(folder)
                continue
            else:
                folder.read_training()
        except (OodError, OSError, ValueError) as error:
            damaged[folder.name] = _one_line(error)
            problems.append(f"run {folder.name} is damaged: {_one_line(error)}")
            continue
        finished += folder.finished
        unfinished += not folder.finished
    try:
        find_run(store, None)
    except (OodError, OSError) as error:
        if finished:
            remarks.append(f"commands without --run are refused: {_one_line(error)}")
    sizes = {each.path.relative_to(store.root).as_posix(): each.bytes for each in leftovers(store)}
    if sizes:
        remarks.append(
            f"{sum(sizes.values()) / 2**20:.1f} MiB of the store are leftovers of killed "
            f"processes that belong to no run ({', '.join(sizes)}); remove them: ood doctor "
            "--repair"
        )
    return StoreState(
        state.path, state.exists, state.writable, state.free_bytes,
        store.usage(), finished, unfinished, damaged, sizes,
    )  # fmt: skip


def _run_remarks(folder: "RunFolder", record: "Run") -> list[str]:
    """Return reasons to doubt the results of a run, and results that must be recomputed.

    Parameters
    ----------
    folder
        Folder of a finished run.
    record
        Record of the run.
    """
    from oodcli.store.store import read_json

    name = folder.name
    lines = [f"when run {name} was imported, {warning}" for warning in record.warnings]
    tested = record.training.get("test") or {}
    if tested.get("chance") is not None:
        lines.append(
            f"run {name} classifies {100 * tested['accuracy']:.2f} % of {tested['n']:,} test "
            f"images correctly, hardly better than chance ({100 * tested['chance']:.2f} %); train "
            "it longer, or with other settings"
        )
    for path in sorted(folder.path.rglob("*.json")):
        try:
            content = read_json(path, cure="commands recompute it, or report an error")
        except FileNotFoundError:
            continue  # another process has just removed it
        except (OodError, OSError) as error:
            lines.append(f"run {name}: {_one_line(error)}")
            continue
        if path == folder.recommendation and content.get("weights") != record.weights:
            lines.append(
                f"the recommendation of run {name} was made for other weights and is not used; "
                f"choose again: ood recommend --run {name}"
            )
    return lines


def _check_weights(path: Path) -> None:
    """Check that a weights file exists and is complete, without computing its digest.

    Computing the digests would take about a minute per hundred runs.

    Raises
    ------
    CorruptArtifactError
        If the file is missing or cannot be opened.
    """
    from safetensors import SafetensorError, safe_open

    cure = f"remove the run and create it again: ood runs remove {path.parent.name}"
    if not path.is_file():
        raise CorruptArtifactError(f"{path} is missing; {cure}")
    try:
        with safe_open(path, framework="numpy") as weights:
            weights.keys()
    except SafetensorError as error:
        raise CorruptArtifactError(f"{path} is damaged ({error}); {cure}") from None


def _writable(root: Path) -> bool:
    """Return whether a file can be created in a folder, or in its parent if it does not exist."""
    from oodcli.store.store import check_output_folder

    try:
        check_output_folder(root, option="--store", parents=True)
    except InvalidInputError:
        return False
    return True
