"""``ood cluster``: groups of the OOD images of a file of verdicts, with a contact sheet of each."""

import contextlib
import csv
import io
import tempfile
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from oodcli.compute.compute import Compute
from oodcli.compute.devices import explain_out_of_memory
from oodcli.data.decoding.scaling import Resizing
from oodcli.data.incoming import decoded
from oodcli.data.sheet import contact_sheet
from oodcli.errors import InvalidInputError, MissingArtifactError, UnknownNameError
from oodcli.files import expanded
from oodcli.images import image_digest
from oodcli.models.extraction import ReadyNetwork
from oodcli.pools import open_pools
from oodcli.progress import SILENT, Progress
from oodcli.records import as_json
from oodcli.scoring.open_run import OpenRun
from oodcli.screening.clustering import clustered, unit_rows
from oodcli.screening.feature_file import feature_path, read_features
from oodcli.screening.finding_again import found_again
from oodcli.screening.merging import VerdictPart, open_part
from oodcli.screening.near_duplicates import difference_hash, near_duplicates
from oodcli.screening.verdict_file import Verdict, as_safe_text
from oodcli.store.store import Store, atomic_write, check_fresh_folder, open_output_file
from oodcli.text import counted, escaped, printable

CLUSTER_SCHEMA = 1
CSV_NAME = "clusters.csv"
MAX_CLUSTERS = 1000

_COLUMNS = ("path", "cluster", "duplicate_of", "distance", "class", "score")
_ON_SHEET = 60
_SIDE = 96
_BATCH = 64
_EXAMPLES = 3
_CAPTION = 13


@dataclass(frozen=True)
class ClusterRequest:
    """What to cluster, and how.

    Parameters
    ----------
    verdicts
        A file that ``ood predict --output`` wrote.
    run
        The run whose network gives the features, if they are not stored; that of the file if None.
    output
        Folder for contact sheets and ``clusters.csv``; nothing is written if None.
    overwrite
        Whether the folder may have files, of which those of the same names are replaced.
    clusters
        Number of clusters; None for the one with the best silhouette.
    seed
        Seed of k-means.
    compute
        Device, precision and batch size.
    """

    verdicts: Path
    run: str | None = None
    output: Path | None = None
    overwrite: bool = False
    clusters: int | None = None
    seed: int = 0
    compute: Compute = field(default_factory=Compute.of)


@dataclass(frozen=True)
class ClusteredImage:
    """An OOD image and its cluster.

    Parameters
    ----------
    path
        Its path in the file of verdicts.
    cluster
        Number of its cluster, from 1; None if it has no features.
    duplicate_of
        The first image that it is a near-duplicate of; None for that image itself.
    distance
        Squared distance between its unit feature and the centre of the cluster.
    predicted
        Name of the class that the network predicted.
    score
        Its score.
    missing
        Why it cannot be read any more; None if it could be.
    """

    path: str
    cluster: int | None
    duplicate_of: str | None
    distance: float | None
    predicted: str | None
    score: float | None
    missing: str | None = None


@dataclass(frozen=True)
class Cluster:
    """A cluster of OOD images.

    Parameters
    ----------
    number
        Its number, from 1; the largest first, near-duplicates not counted.
    size
        Number of its images.
    duplicates
        Number of those that are near-duplicates of another one.
    median_score
        Median of their scores.
    classes
        Number of its images by predicted class, the most frequent first.
    examples
        Paths of the images nearest to its centre.
    sheet
        File of its contact sheet in the output folder; None without one.
    """

    number: int
    size: int
    duplicates: int
    median_score: float
    classes: Mapping[str, int]
    examples: tuple[str, ...]
    sheet: str | None = None


@dataclass(frozen=True)
class ClusterResult:
    """The clusters of the OOD images of a file of verdicts.

    Parameters
    ----------
    verdicts
        The file.
    run
        Name of the run that judged the images.
    method
        Method of the verdicts.
    n_ood
        Number of OOD images in the file.
    silhouette
        Mean silhouette coefficient of the clusters, from -1 to 1; None for a single one.
    stored_features
        Whether the features were stored with the verdicts, so that no network ran.
    clusters
        The clusters.
    images
        All OOD images, in the order of the file.
    output
        The folder with contact sheets and ``clusters.csv``; None without one.
    """

    verdicts: str
    run: str
    method: str
    n_ood: int
    silhouette: float | None
    stored_features: bool
    clusters: tuple[Cluster, ...]
    images: tuple[ClusteredImage, ...]
    output: str | None = None

    @property
    def missing(self) -> tuple[ClusteredImage, ...]:
        """The images that cannot be read any more."""
        return tuple(each for each in self.images if each.missing is not None)

    def to_json(self) -> dict[str, Any]:
        """Return the versioned object that ``--format json`` prints."""
        images = [as_json(each) for each in self.images]
        for each in images:
            each["class"] = each.pop("predicted")
        return {
            "kind": "ood-clusters",
            "schema": CLUSTER_SCHEMA,
            **as_json(self),
            "images": images,
        }


def cluster(store: Store, request: ClusterRequest, *, progress: Progress = SILENT) -> ClusterResult:
    """Group the OOD images of a file of verdicts by their features.

    Near-duplicates are joined first, and each group takes part as its first image.

    Parameters
    ----------
    store
        The store that contains the run.
    request
        What to cluster, and how.
    progress
        Receives the progress of long work.

    Raises
    ------
    OodError
        If the file cannot be used or has no OOD image, no image has features, or the output folder
        has files.
    """
    _check(request)
    part = open_part(request.verdicts)
    rows, verdicts, total = _ood_rows(part)
    features = _stored_features(part, rows, total)
    with contextlib.ExitStack() as held:
        run = _open_run(store, request, part, held, progress, needed=features is None)
        looks = held.enter_context(
            _Looks.at(
                store,
                run,
                len(verdicts),
                compute=request.compute,
                columns=part.settings.get("columns", {}),
            )
        )
        looks.take([each.path for each in verdicts], extract=features is None, progress=progress)
        found = looks.features() if features is None else unit_rows(features)
        known = ~np.isnan(found).any(axis=1)
        if not known.any():
            raise InvalidInputError(
                f"none of {counted(len(verdicts), 'OOD image')} of {request.verdicts} has "
                f"features: {printable(verdicts[0].path)}: {looks.errors[0]}"
            )
        images, silhouette = _grouped(verdicts, looks, found, np.flatnonzero(known), request)
        clusters = _described(images)
        if request.output is not None:
            csv_safe = part.settings.get("csv_safe") is True
            clusters = _written(request.output, clusters, images, looks, csv_safe=csv_safe)
    return ClusterResult(
        verdicts=str(request.verdicts),
        run=str(part.settings.get("run")),
        method=str(part.settings.get("method")),
        n_ood=len(images),
        silhouette=silhouette,
        stored_features=features is not None,
        clusters=tuple(clusters),
        images=tuple(images),
        output=None if request.output is None else str(request.output),
    )


def _check(request: ClusterRequest) -> None:
    if request.clusters is not None and not 1 <= request.clusters <= MAX_CLUSTERS:
        raise InvalidInputError(
            f"--clusters must be auto or from 1 to {MAX_CLUSTERS:,}, not {request.clusters}"
        )
    if not 0 <= request.seed < 2**32:
        raise InvalidInputError(f"--seed must be from 0 to {2**32 - 1}, not {request.seed}")
    if request.output is not None:
        check_fresh_folder(request.output, overwrite=request.overwrite)


def _ood_rows(part: VerdictPart) -> tuple[list[int], list[Verdict], int]:
    """Return row numbers and verdicts of the OOD images, and the number of all rows."""
    rows: list[int] = []
    found: list[Verdict] = []
    total = 0
    with part.opened() as groups:
        for verdicts in groups:
            for each in verdicts:
                if each.verdict == "ood":
                    rows.append(total)
                    found.append(each)
                total += 1
    if not found:
        raise InvalidInputError(
            f"{part.path} has no OOD image among {counted(total, 'row')}; there is nothing to group"
        )
    return rows, found, total


def _stored_features(
    part: VerdictPart, rows: Sequence[int], total: int
) -> NDArray[np.float32] | None:
    """Return the stored features of the OOD images, ``(n, d)``; None if there are none."""
    # A file of features may be left over from other rows of the same name.
    stored = part.settings.get("features") == "stored"
    if not stored or not feature_path(expanded(part.path).resolve()).is_file():
        return None
    return np.asarray(read_features(part.path, rows=total)[rows])


def _open_run(
    store: Store,
    request: ClusterRequest,
    part: VerdictPart,
    held: contextlib.ExitStack,
    progress: Progress,
    *,
    needed: bool,
) -> OpenRun | None:
    """Open the run of the verdicts; None if it is gone and its network is not needed."""
    name = request.run or str(part.settings.get("run"))
    try:
        run = held.enter_context(OpenRun.open(store, name, request.compute, progress=progress))
    except (MissingArtifactError, UnknownNameError) as error:
        if request.run is not None:
            raise
        if not needed:
            return None
        raise MissingArtifactError(
            f"{error}; its network gives the features of the images, which ood predict --features "
            "stores with the verdicts"
        ) from None
    if run.record.network == part.settings.get("network"):
        return run.through(part.settings.get("window"))
    if needed or request.run is not None:
        raise InvalidInputError(
            f"run {run.name} has another network than the one that judged {part.path}; name the "
            "run: --run RUN"
        )
    return None


class _Looks:
    """What is kept of every OOD image: digests, a small picture, and the feature if it is needed.

    Parameters
    ----------
    store
        Holds named data sets.
    run
        The run; None if only small pictures are needed.
    n
        Number of images.
    scratch
        File for the small pictures.
    compute
        Device and batch size.
    columns
        The columns that were named of tables, by their paths.
    """

    def __init__(
        self,
        store: Store,
        run: OpenRun | None,
        n: int,
        scratch: Path,
        *,
        compute: Compute,
        columns: Mapping[str, str],
    ) -> None:
        self._store, self._run, self._compute = store, run, compute
        self._columns = columns
        pre = None if run is None else run.record.preprocess
        size = (_SIDE, _SIDE) if pre is None else pre.size
        self._resizing = Resizing(size, "shorter-crop" if pre is None else pre.resize)
        self._window = None if pre is None else pre.medical
        scale = min(1.0, _SIDE / max(size))
        self._small = tuple(max(1, round(scale * side)) for side in size)
        self.pictures = np.memmap(scratch, np.uint8, "w+", shape=(n, 3, *self._small))
        self.digests = np.zeros(n, np.uint64)
        self.hashes = np.zeros(n, np.uint64)
        self.errors: list[str | None] = [None] * n
        self._features: NDArray[np.float32] | None = None

    @classmethod
    @contextlib.contextmanager
    def at(
        cls,
        store: Store,
        run: OpenRun | None,
        n: int,
        *,
        compute: Compute,
        columns: Mapping[str, str],
    ) -> "Iterator[_Looks]":
        """Keep what is seen while the context lasts."""
        with tempfile.TemporaryDirectory() as folder:
            scratch = Path(folder) / "pictures"
            yield cls(store, run, n, scratch, compute=compute, columns=columns)

    def features(self) -> NDArray[np.float32]:
        """Return the unit features, ``(n, d)``; NaN for images that cannot be read."""
        return (
            np.full((len(self.errors), 1), np.nan, np.float32)
            if self._features is None
            else self._features
        )

    def take(self, names: Sequence[str], *, extract: bool, progress: Progress) -> None:
        """Read all images once, and run the network on them if features are needed."""
        places: dict[str, list[int]] = {}
        for row, name in reversed(list(enumerate(names))):
            places.setdefault(name, []).append(row)
        batch: list[tuple[int, NDArray[np.uint8]]] = []
        with (
            open_pools() as pools,
            progress.task("reading OOD images", total=len(names), unit="images") as task,
        ):
            wanted = found_again(names, self._store, self._window, self._columns)
            for item, image in decoded(wanted, self._resizing, pools.threads(), self._window):
                row = places[item.name].pop()
                task.advance(1)
                if isinstance(image, str):
                    self.errors[row] = image
                    continue
                self._see(row, image)
                if extract:
                    batch.append((row, image))
                if len(batch) == _BATCH:
                    self._extract(batch)
                    batch = []
            if batch:
                self._extract(batch)

    def _see(self, row: int, image: NDArray[np.uint8]) -> None:
        pixels = np.ascontiguousarray(image.transpose(2, 0, 1))
        self.digests[row] = np.frombuffer(image_digest(pixels), np.uint64)[0]
        self.hashes[row] = difference_hash(image)
        height, width = self._small
        small = Image.fromarray(np.ascontiguousarray(image)).resize(
            (width, height), Image.Resampling.BILINEAR
        )
        self.pictures[row] = np.asarray(small).transpose(2, 0, 1)

    def _extract(self, batch: Sequence[tuple[int, NDArray[np.uint8]]]) -> None:
        assert self._run is not None  # needed for features
        pre, compute = self._run.record.preprocess, self._compute
        pixels = np.stack([image for _, image in batch]).transpose(0, 3, 1, 2)
        with explain_out_of_memory(compute.device, "use a smaller --score-batch-size N"):
            (found,) = self._ready.extract(
                [np.ascontiguousarray(pixels)],
                mean=pre.mean,
                std=pre.std,
                batch_size=compute.batch_size,
            )
        units = unit_rows(found.features.numpy())
        if self._features is None:
            self._features = np.full((len(self.errors), units.shape[1]), np.nan, np.float32)
        self._features[[row for row, _ in batch]] = units

    @cached_property
    def _ready(self) -> ReadyNetwork:
        assert self._run is not None  # needed for features
        compute = self._compute
        return ReadyNetwork(
            self._run.activator.network, device=compute.device, precision=compute.precision
        )


def _grouped(
    verdicts: Sequence[Verdict],
    looks: _Looks,
    units: NDArray[np.float32],
    known: NDArray[np.int64],
    request: ClusterRequest,
) -> tuple[list[ClusteredImage], float | None]:
    """Return the images with their clusters, and the silhouette of these."""
    # An image without pixels is a near-duplicate of none.
    gone = [row for row, error in enumerate(looks.errors) if error is not None]
    seen = np.setdiff1d(known, gone)
    first = np.arange(len(verdicts))
    first[seen] = seen[near_duplicates(looks.digests[seen], looks.hashes[seen], units[seen])]
    own = known[first[known] == known]
    found = clustered(units[own], request.clusters, seed=request.seed)
    numbers = dict(zip(own.tolist(), found.numbers.tolist(), strict=True))
    distances = dict(zip(own.tolist(), found.distances.tolist(), strict=True))
    images = []
    for row, verdict in enumerate(verdicts):
        one = int(first[row])
        number = numbers.get(one)
        images.append(
            ClusteredImage(
                path=verdict.path,
                cluster=number,
                duplicate_of=None if one == row else verdicts[one].path,
                distance=None if number is None else round(distances[one], 6),
                predicted=verdict.predicted,
                score=verdict.score,
                missing=looks.errors[row],
            )
        )
    return images, found.silhouette


def _described(images: Sequence[ClusteredImage]) -> list[Cluster]:
    """Return the clusters of images."""
    by_number: dict[int, list[ClusteredImage]] = {}
    for each in images:
        if each.cluster is not None:
            by_number.setdefault(each.cluster, []).append(each)
    return [
        Cluster(
            number=number,
            size=len(some),
            duplicates=sum(each.duplicate_of is not None for each in some),
            median_score=float(np.median([each.score for each in some if each.score is not None])),
            classes=dict(
                Counter(each.predicted for each in some if each.predicted is not None).most_common()
            ),
            examples=tuple(each.path for each in _nearest_first(some)[:_EXAMPLES]),
        )
        for number, some in sorted(by_number.items())
    ]


def _nearest_first(images: Sequence[ClusteredImage]) -> list[ClusteredImage]:
    """Return images by their distance from the centre, near-duplicates of others last."""
    return sorted(images, key=lambda each: (each.duplicate_of is not None, each.distance))


def _written(
    output: Path,
    clusters: Sequence[Cluster],
    images: Sequence[ClusteredImage],
    looks: _Looks,
    *,
    csv_safe: bool,
) -> list[Cluster]:
    """Write contact sheets and the table of all images; return the clusters with their files."""
    folder = expanded(output)
    digits = max(2, len(str(len(clusters))))
    named = []
    for each in clusters:
        name = f"cluster-{each.number:0{digits}d}.png"
        with atomic_write(folder / name, cure="choose another folder: --output DIR") as stream:
            _sheet(each, len(clusters), images, looks).save(stream, "PNG")
        named.append(replace(each, sheet=name))
    text = io.StringIO()
    writer = csv.writer(
        text,
        lineterminator="\n",
        quoting=csv.QUOTE_NONNUMERIC if csv_safe else csv.QUOTE_MINIMAL,
    )
    writer.writerow(_COLUMNS)
    written = as_safe_text if csv_safe else escaped
    for image in images:
        values = (
            image.path, image.cluster, image.duplicate_of, image.distance, image.predicted,
            image.score,
        )  # fmt: skip
        writer.writerow(
            "" if value is None else written(value) if isinstance(value, str) else value
            for value in values
        )
    with open_output_file(folder / CSV_NAME) as stream:
        stream.write(text.getvalue().encode())
    return named


def _sheet(
    cluster: Cluster, of: int, images: Sequence[ClusteredImage], looks: _Looks
) -> Image.Image:
    """Draw the images nearest to the centre of a cluster."""
    rows = {
        id(each): row
        for row, each in enumerate(images)
        if each.cluster == cluster.number and each.missing is None
    }
    shown = _nearest_first([images[row] for row in rows.values()])[:_ON_SHEET]
    title = [f"cluster {cluster.number} of {of}: {counted(cluster.size, 'image')}"]
    if cluster.duplicates:
        title[0] += f", {counted(cluster.duplicates, 'near-duplicate')}"
    if cluster.classes:
        name, count = next(iter(cluster.classes.items()))
        title.append(f"most often seen as {printable(name)[:60]} ({count:,} of {cluster.size:,})")
    title.append(f"{len(shown):,} nearest to the centre" if shown else "no image can be read")
    if not shown:
        return contact_sheet(
            np.full((1, 3, _SIDE, _SIDE), 221, np.uint8), ["no pixels"], title=title
        )
    pixels = np.stack([looks.pictures[rows[id(each)]] for each in shown])
    captions = [_end(printable(each.path.replace("\\", "/").rpartition("/")[2])) for each in shown]
    return contact_sheet(pixels, captions, title=title)


def _end(name: str) -> str:
    """Return the end of a name, which tells rows of one file apart."""
    return name if len(name) <= _CAPTION else f"…{name[1 - _CAPTION :]}"
