"""``ood explain``: why images are, or are not, out of distribution, with a picture of each."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

from oodcli.compute.compute import Compute
from oodcli.data.incoming import STDIN, at_least_one, distinct, items
from oodcli.errors import InvalidInputError
from oodcli.files import expanded
from oodcli.methods import parse_method
from oodcli.methods.ensemble import AUTO
from oodcli.progress import SILENT, Progress
from oodcli.records import as_json
from oodcli.reporting.explanation_picture import explanation_picture, thumbnail
from oodcli.reporting.explanations import Explanation, ExplanationPixels
from oodcli.reporting.pictures import encoded, file_name
from oodcli.scoring.open_run import OpenRun
from oodcli.screening.explaining import Explainer, ExplainSettings
from oodcli.screening.thresholds import Threshold, ThresholdRule
from oodcli.store.store import Store, atomic_write, check_fresh_folder
from oodcli.text import counted, printable
from oodcli.workflows.recommend import resolve_detector

EXPLAIN_SCHEMA = 1
INDEX = "index.html"
MAX_NEIGHBOURS = 10
# Small pictures stand in the index of up to this many images.
_THUMBNAILS = 500

PictureFormat = Literal["png", "svg", "pdf", "html"]


@dataclass(frozen=True)
class ExplainRequest:
    """What to explain, and how.

    Parameters
    ----------
    paths
        Image files, folders, archives, arrays and lists.
    run
        Name of the run; the default run if None.
    method
        The method of the verdict, as for ``ood predict``.
    rule
        Rule for the threshold.
    settings
        What an explanation consists of.
    output
        Folder for pictures and their index; nothing is written if None.
    picture
        ``png``, ``svg`` or ``pdf``, or ``html`` for pages.
    overwrite
        Whether the folder may have files, of which those of the same names are replaced.
    compute
        Device, precision and batch size.
    skip_unreadable
        Whether fitting skips images of the run's own data that cannot be decoded.
    window
        Which values of medical images are black and white, where the run does not say so.
    jpeg_draft
        Whether it is expected that JPEG files are decoded at a reduced size; refused if the run
        does not say so.
    """

    paths: Sequence[str]
    run: str | None = None
    method: str | None = None
    rule: ThresholdRule = field(default_factory=ThresholdRule)
    settings: ExplainSettings = field(default_factory=ExplainSettings)
    output: Path | None = None
    picture: PictureFormat = "png"
    overwrite: bool = False
    compute: Compute = field(default_factory=Compute.of)
    skip_unreadable: bool = False
    window: str | None = None
    jpeg_draft: bool = False


@dataclass(frozen=True)
class ExplainResult:
    """The explanations of images.

    Parameters
    ----------
    detector
        Run, method, and the ID images behind the threshold.
    threshold
        The threshold of the method.
    images
        One explanation per image, in order.
    thumbnails
        A small PNG of every image that has a file, by the name of the file.
    output
        The folder with pictures and index; None without one.
    """

    detector: dict[str, Any]
    threshold: Threshold
    images: tuple[Explanation, ...]
    thumbnails: dict[str, bytes] = field(default_factory=dict)
    output: Path | None = None

    @property
    def fault(self) -> str | None:
        """Why no image could be explained; None if at least one was."""
        if any(each.error is None for each in self.images):
            return None
        first = self.images[0]
        return (
            f"none of {counted(len(self.images), 'image')} could be explained, because none can be "
            f"read, such as {printable(first.path)}: {first.error}; check that the files are "
            "complete"
        )

    def to_json(self) -> dict[str, Any]:
        """Return the versioned object that ``--format json`` prints."""
        return {
            "kind": "ood-explanations",
            "schema": EXPLAIN_SCHEMA,
            **self.detector,
            "threshold": as_json(self.threshold),
            "images": [each.to_json() for each in self.images],
            "output": None if self.output is None else str(self.output),
        }


def explain(
    store: Store,
    request: ExplainRequest,
    *,
    page: Callable[[Explanation, str, bytes], str],
    progress: Progress = SILENT,
) -> ExplainResult:
    """Explain images, and write the picture of each as soon as it is drawn.

    Parameters
    ----------
    store
        The store that contains the run.
    request
        What to explain, and how.
    page
        Function that returns the HTML page of an explanation, given the text alternative and the
        PNG file of its picture.
    progress
        Receives the progress of long work.

    Raises
    ------
    OodError
        If the run, the method, the device or a path cannot be used, there is no image, or the
        output folder has files. An image that cannot be read is an explanation with the reason.
    """
    _check(request)
    with OpenRun.open(
        store,
        request.run,
        request.compute,
        skip_unreadable=request.skip_unreadable,
        progress=progress,
    ) as run:
        through = run.through(request.window, jpeg_draft=request.jpeg_draft)
        window = through.record.preprocess.medical
        paths = distinct(request.paths, progress)
        wanted = at_least_one(items(paths, store=store, window=window), paths)
        main = resolve_detector(run, request.method, request.rule)
        explainer = Explainer.of(run, main, request.settings)
        files = _Files(request.output, request.picture, page)
        found: list[Explanation] = []
        with (
            progress.task("explaining", total=None, unit="images") as task,
            explainer.explain(wanted, window) as explained,
        ):
            for explanation, pixels in explained:
                found.append(explanation if pixels is None else files.write(explanation, pixels))
                task.advance(1)
        folder = None if request.output is None else expanded(request.output)
        return ExplainResult(main.origin(), main.threshold, tuple(found), files.thumbnails, folder)


@dataclass(frozen=True)
class _Files:
    """The pictures or pages in the output folder."""

    folder: Path | None
    kind: PictureFormat
    page: Callable[[Explanation, str, bytes], str]
    thumbnails: dict[str, bytes] = field(default_factory=dict)
    _names: set[str] = field(default_factory=lambda: {"index"})

    def write(self, explanation: Explanation, pixels: ExplanationPixels) -> Explanation:
        """Write the picture of an explanation, and return it with the name of the file."""
        if self.folder is None:
            return explanation
        named = replace(explanation, file=f"{self._free(explanation.path)}.{self.kind}")
        assert named.file is not None
        picture = explanation_picture(named, pixels)
        content = encoded(picture, "png" if self.kind == "html" else self.kind)
        if self.kind == "html":
            content = self.page(named, picture.alt, content).encode()
        target = expanded(self.folder) / named.file
        with atomic_write(target, cure="choose another folder: --output DIR") as stream:
            stream.write(content)
        if len(self.thumbnails) < _THUMBNAILS:
            self.thumbnails[named.file] = thumbnail(pixels.image)
        return named

    def _free(self, path: str) -> str:
        """Return a name that no other file of this call has, on any file system."""
        stem = file_name(Path(path.replace("\\", "/")).stem or "image")
        name, number = stem, 1
        while name.lower() in self._names:
            number += 1
            name = f"{stem}-{number}"
        self._names.add(name.lower())
        return name


def _check(request: ExplainRequest) -> None:
    """Check the request before anything is opened."""
    if not request.paths:
        raise InvalidInputError("no images are given; give files or folders")
    if STDIN in request.paths:
        raise InvalidInputError("paths are not read from stdin here; give files or folders")
    if not 1 <= request.settings.neighbours <= MAX_NEIGHBOURS:
        raise InvalidInputError(
            f"--neighbours must be from 1 to {MAX_NEIGHBOURS}, not {request.settings.neighbours}"
        )
    if request.method not in (None, AUTO):
        parse_method(request.method)
    if request.output is not None:
        check_fresh_folder(request.output, overwrite=request.overwrite)
