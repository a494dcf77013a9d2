"""The sets that a run is scored on, and the validation images for tuning."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from oodcli.data.benchmarks import BENCHMARKS, Benchmark, benchmark_of, own_benchmark
from oodcli.data.dataset import Dataset, take
from oodcli.data.formats.openood import OpenOODTree
from oodcli.data.run_data import find_dataset, missing_sets, say_which
from oodcli.data.splits import Split, split
from oodcli.data.views import View
from oodcli.errors import (
    InvalidInputError,
    MissingArtifactError,
    UnknownNameError,
    UnreadableImageError,
)
from oodcli.images import ImageSet, ImageShard, Part, evenly_spaced
from oodcli.scoring.open_run import OpenRun
from oodcli.scoring.tune import ValidationSet
from oodcli.store.scores import AVERAGE, first_duplicate
from oodcli.store.searches import Tuning

# Number of images that are checked to detect whether a set is grey.
_SAMPLED = 64


@dataclass(frozen=True)
class NamedSets:
    """Data sets that a call names, by how they relate to the classes of the network.

    Parameters
    ----------
    near, far
        OOD sets close to the classes, and far from them.
    ood
        OOD sets that are not divided into near and far.
    shifted
        Covariate-shifted ID sets: images of the classes, with labels, from another distribution.
    """

    near: Sequence[str] = ()
    far: Sequence[str] = ()
    ood: Sequence[str] = ()
    shifted: Sequence[str] = ()

    @property
    def have_ood(self) -> bool:
        """Whether an OOD set is named."""
        return bool(self.near or self.far or self.ood)

    @property
    def by_group(self) -> tuple[tuple[str, Sequence[str]], ...]:
        """The sets of each group, in the order of a table."""
        return (
            ("near", self.near),
            ("far", self.far),
            ("ood", self.ood),
            ("shifted", self.shifted),
        )


@dataclass(frozen=True)
class WantedSet:
    """A set that is scored in addition to the ID test images.

    Parameters
    ----------
    dataset
        The data set.
    group
        ``near``, ``far``, ``ood``, or ``shifted`` for a covariate-shifted ID set.
    benchmark
        Name of the benchmark that it belongs to, if any.
    split
        The list of the benchmark that names its images, if any.
    """

    dataset: Dataset
    group: str
    benchmark: str | None
    split: Split | None = None

    def images(self, run: OpenRun, seen: Callable[[ImageShard], None] | None = None) -> ImageSet:
        """Return the images at the input size of a run; see :meth:`OpenRun.limited`."""
        return run.limited(self.dataset.ood_part, name=self.dataset.name, seen=seen)


def benchmark_to_score(
    run: OpenRun, named: str | None, sets: NamedSets, *, allow_missing: bool
) -> Benchmark | None:
    """Return the benchmark to score a run on, if any.

    Parameters
    ----------
    run
        The run.
    named
        Name of the requested benchmark, if any.
    sets
        Sets that were named; OOD sets among them replace the benchmark of the run's data.
    allow_missing
        Whether sets of a named benchmark may be missing.

    Raises
    ------
    UnknownNameError
        If the benchmark does not exist.
    InvalidInputError
        If the benchmark is for other ID data.
    MissingArtifactError
        If OOD sets of the requested benchmark are missing.
    """
    if named is not None:
        return _named_benchmark(run, named, sets, allow_missing=allow_missing)
    own = None if sets.have_ood else benchmark_of(run.record.job.data)
    if own is None:
        return None
    missing = missing_sets(own, run.store)
    get = f"get them: ood datasets download --benchmark {own.name}"
    if not _ood_sets(own, missing):
        run.progress.note(
            f"no OOD set of benchmark {own.name} is in the store: scoring on the photographs and "
            f"noise included in ood; {get}"
        )
        return None
    if missing:
        run.progress.note(f"continuing without {', '.join(missing)} of {own.name}; {get}")
    return _without_missing_lists(own, missing, run)


def _named_benchmark(run: OpenRun, name: str, sets: NamedSets, *, allow_missing: bool) -> Benchmark:
    id_name = run.record.data_name
    if name not in BENCHMARKS:
        raise UnknownNameError.among("benchmark", name, BENCHMARKS)
    benchmark = BENCHMARKS[name]
    if benchmark.id_set != id_name:
        raise InvalidInputError(
            f"benchmark {benchmark.name} is for networks trained on {benchmark.id_set}, "
            f"and run {run.name} was trained on {id_name}; name its sets: --near, --far or --ood"
        )
    missing = missing_sets(benchmark, run.store)
    if not _ood_sets(benchmark, missing) and not sets.have_ood:
        raise MissingArtifactError(
            f"no OOD set of benchmark {benchmark.name} is in the store; get them: "
            f"ood datasets download --benchmark {benchmark.name}, or use sets of your own "
            "instead: --ood NAME|FOLDER"
        )
    if missing and not allow_missing:
        raise MissingArtifactError(
            f"benchmark {benchmark.name} lacks {', '.join(missing)}; get them: "
            f"ood datasets download --benchmark {benchmark.name}, "
            "or score the others: --allow-missing"
        )
    return _without_missing_lists(benchmark, missing, run)


def _without_missing_lists(benchmark: Benchmark, missing: Sequence[str], run: OpenRun) -> Benchmark:
    """Return whole sets instead of a benchmark whose lists are not in the store."""
    if not set(benchmark.needs) & set(missing):
        return benchmark
    shifted = f", without {', '.join(benchmark.shifted)}" if benchmark.shifted else ""
    run.progress.note(
        f"warning: the lists of {benchmark.name} are not in the store, so that all images of each "
        f"set are scored{shifted}; results are not those of the benchmark; get the lists: "
        f"ood datasets download {' '.join(benchmark.needs)}"
    )
    return benchmark.without_lists()


def _ood_sets(benchmark: Benchmark, missing: Sequence[str]) -> list[str]:
    """Return the OOD sets of a benchmark that are in the store."""
    return [name for names in benchmark.groups.values() for name in names if name not in missing]


def wanted_sets(run: OpenRun, named: NamedSets) -> tuple[WantedSet, ...]:
    """Open the sets that a run is scored on: those of its benchmark, and those that were named.

    Without OOD sets in either, photographs and noise that come with ood are added.

    Raises
    ------
    InvalidInputError
        If two sets have the same name, a name is reserved, or a covariate-shifted ID set has no
        labels or other classes than the network.
    OodError
        If a set cannot be opened.
    """
    wanted = [] if run.benchmark is None else _benchmark_sets(run, run.benchmark)
    if run.benchmark is None and not named.have_ood:
        wanted = _own_sets(run)
    for group, specs in named.by_group:
        for spec in specs:
            say_which(spec, run.store, run.progress)
            if group == "shifted":
                opened = run.data.shifted(spec, run.record.preprocess.medical)
            else:
                opened = _open_ood(run, spec)
            wanted.append(WantedSet(opened, group, None))
    names = [each.dataset.name for each in wanted]
    if AVERAGE in names:
        raise InvalidInputError(
            f"the name {AVERAGE!r} is reserved for the mean over sets; give the set another name: "
            "NAME=PATH"
        )
    twice = first_duplicate([run.data_name, *names])
    if twice is not None:
        raise InvalidInputError(
            f"two of the sets have the name {twice!r}; rename one of them: NAME=PATH"
        )
    return tuple(wanted)


def _open_ood(run: OpenRun, spec: str) -> Dataset:
    window = run.record.preprocess.medical
    return find_dataset(spec, run.store, role="ood", window=window, progress=run.progress)


def _benchmark_sets(run: OpenRun, benchmark: Benchmark) -> list[WantedSet]:
    missing = missing_sets(benchmark, run.store)
    wanted = []
    for group, names in (*benchmark.groups.items(), ("shifted", benchmark.shifted)):
        for name in names:
            if name not in missing:
                dataset, chosen = _listed(run, name, benchmark.lists.get(name, ""))
                wanted.append(WantedSet(dataset, group, benchmark.name or None, chosen))
    return wanted


def _listed(run: OpenRun, name: str, key: str) -> tuple[Dataset, Split | None]:
    """Open a set of a benchmark, and choose the images that its list names, if it has one.

    Images in OpenOOD's folder come before published archives.
    """
    tree = OpenOODTree.of(run.store)
    if tree is not None and key and tree.has(key):
        dataset = tree.dataset(name, key)
        if name.endswith("-lossless"):
            run.progress.note(
                f"{name}: OpenOOD's own copy in {tree.root}, which is compressed as JPEG"
            )
    else:
        dataset = _open_ood(run, name)
    if not key:
        return dataset, None
    chosen = split(dataset, key, run.store)
    return replace(dataset, parts={"test": chosen.part}), chosen


def _own_sets(run: OpenRun) -> list[WantedSet]:
    grey = _is_grey(run.data.dataset.id_test)
    return [
        WantedSet(_open_ood(run, dataset), group, None)
        for group, datasets in own_benchmark(grey=grey).groups.items()
        for dataset in datasets
    ]


def _is_grey(part: Part) -> bool:
    """Return whether a sample of evenly spaced images has no colour."""
    some = take(part, evenly_spaced(len(part), _SAMPLED)).source
    return all(
        isinstance(image, UnreadableImageError) or bool((image == image[:, :, :1]).all())
        for image in some.read(0, len(some))
    )


def check_validation(run: OpenRun, tune: Sequence[Tuning], named: str | None) -> None:
    """Check, before any forward pass, that the validation images for tuning exist.

    Parameters
    ----------
    run
        The run, on its benchmark.
    tune
        How parameters are tuned.
    named
        Requested OOD validation images, if any.

    Raises
    ------
    InvalidInputError
        If ID or OOD validation images are missing.
    """
    if tune and run.calibration_part != "val":
        raise InvalidInputError(
            f"--tune needs validation images, and {run.data_name} has none; hold some out of "
            "training: ood train --val-fraction 0.1 (or ood import --val-fraction 0.1)"
        )
    benchmark = run.benchmark
    has_some = named is not None or (benchmark is not None and benchmark.ood_val)
    if "openood" in tune and not has_some:
        raise InvalidInputError(
            "--tune openood needs OOD validation images, and no benchmark defines them here; "
            "give a set that is not scored: --tune-ood NAME|FOLDER, or use --tune pseudo"
        )


def validation_sets(
    run: OpenRun,
    tuning: Tuning,
    named: str | None,
    scored: Sequence[WantedSet],
    *,
    observes: bool,
) -> tuple[ValidationSet, ValidationSet]:
    """Return the ID validation images, and the images that a search separates them from.

    Parameters
    ----------
    run
        The run, checked by :func:`check_validation`.
    tuning
        How parameters are tuned.
    named
        Requested OOD validation images, if any.
    scored
        The sets that are scored.
    observes
        Whether methods need probes.

    Raises
    ------
    InvalidInputError
        If the OOD validation images are among those that are scored.
    """
    views = (View("framed"), View("jigsaw")) if tuning == "pseudo" else (View(),)
    # Probes need a later pass, which also gives the ordinary activations.
    seen = None if observes else run.while_decoding("val", dict.fromkeys(views, False))
    name, images = run.data_name, run.calibration(seen)
    if tuning == "pseudo":
        return (
            _validation(run, images, View("framed"), f"{name} val"),
            _validation(run, images, View("jigsaw"), f"jigsaws of {name} val"),
        )
    ood = _ood_validation_images(run, named, scored, observes=observes)
    return (
        _validation(run, images, View(), f"{name} val"),
        _validation(run, ood, View(), ood.name),
    )


def _ood_validation_images(
    run: OpenRun, named: str | None, scored: Sequence[WantedSet], *, observes: bool
) -> ImageSet:
    if named is not None:
        say_which(named, run.store, run.progress)
        dataset = _open_ood(run, named)
    else:
        assert run.benchmark is not None  # ensured by check_validation
        dataset, _ = _listed(run, run.benchmark.ood_val, run.benchmark.ood_val_list)
        dataset = replace(dataset, name=f"{dataset.name} val")
    seen = None if observes else run.activator.while_decoding(dataset.name, {View(): False})
    images = run.data.prepared(dataset.ood_part, name=dataset.name, seen=seen)
    for each in scored:
        if each.images(run).digest == images.digest:
            raise InvalidInputError(
                f"--tune-ood {named} has the same images as {each.dataset.name}, which is "
                "scored; parameters must not be tuned on test images"
            )
    return images


def _validation(run: OpenRun, images: ImageSet, view: View, name: str) -> ValidationSet:
    return ValidationSet(
        name,
        len(images),
        lambda probes: run.activator.activations(images, view=view, probes=probes),
    )
