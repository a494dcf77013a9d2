"""Download the files of data sets: in parallel, resumed after interruptions, and verified.

A file is downloaded under the name ``FILE.part`` beside its place and takes its own name when its
checksum is right. What lies at its place with another checksum is set aside as ``FILE.wrong``, not
removed.
"""

import contextlib
import hashlib
import os
import queue
import shutil
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from http import HTTPStatus
from pathlib import Path
from typing import TYPE_CHECKING

from oodcli.data.known import Download
from oodcli.data.registry import DATASETS
from oodcli.errors import DownloadError, InvalidInputError, MissingArtifactError, UnknownNameError
from oodcli.progress import SILENT, Progress, Task
from oodcli.store.store import Store, free_bytes

if TYPE_CHECKING:  # only what downloads imports them
    import http.client

JOBS = 4
ATTEMPTS = 4
BACK_OFF_S = 1.0
TIMEOUT_S = 30.0

_CHUNK_BYTES = 1 << 18
_WORTH_BYTES = 1 << 16
_HASHED_AT_ONCE = 1 << 22
_REDIRECTS = frozenset({300, 301, 302, 303, 307, 308})
_MAY_PASS = frozenset({408, 425, 429})
# Sizes in the registry are not all exact; a server that sends more than this beyond one is broken.
_SLACK_BYTES = 1 << 26


@dataclass(frozen=True, slots=True)
class WantedFile:
    """A file of a data set, and where it belongs.

    Parameters
    ----------
    dataset
        Name of the data set.
    source
        The file and its addresses.
    target
        Its place in the store.
    """

    dataset: str
    source: Download
    target: Path


@dataclass(frozen=True, slots=True)
class MissingFile:
    """A file that could not be downloaded.

    Parameters
    ----------
    dataset
        Name of the data set.
    file
        Name of the file.
    reason
        Why not, in one line.
    by_hand
        Where to download it by hand.
    place
        Where it belongs.
    """

    dataset: str
    file: str
    reason: str
    by_hand: str
    place: Path


class _FetchError(Exception):
    """One attempt failed.

    Parameters
    ----------
    reason
        What went wrong.
    may_pass
        Whether the same address may do better a moment later.
    """

    def __init__(self, reason: str, *, may_pass: bool) -> None:
        super().__init__(reason)
        self.may_pass = may_pass


def wanted_files(name: str, store: Store) -> tuple[WantedFile, ...]:
    """Return the files of a known data set; none for one that comes with the tool.

    Parameters
    ----------
    name
        Name of the data set.
    store
        Where the files belong.

    Raises
    ------
    UnknownNameError
        If no data set has the name.
    """
    if name not in DATASETS:
        raise UnknownNameError.among("data set", name, DATASETS)
    known = DATASETS[name]
    return tuple(WantedFile(name, source, known.place(store, source)) for source in known.sources)


def download(
    name: str,
    store: Store,
    *,
    progress: Progress = SILENT,
    sources: Sequence[Download] | None = None,
    back_off_s: float = BACK_OFF_S,
) -> Path:
    """Download all files of one data set that are not yet in the store.

    Parameters
    ----------
    name
        Name of the data set.
    store
        Where the files are stored.
    progress
        Reports the bytes received.
    sources
        Other files to fetch than those of the registry.
    back_off_s
        Pause before the second attempt at an address, in seconds; it doubles with each one.

    Returns
    -------
    folder
        The folder that holds the files.

    Raises
    ------
    UnknownNameError
        If no data set has the name.
    InvalidInputError
        If the data set comes with the tool.
    DownloadError
        If a file cannot be downloaded from any of its addresses, or is not the published one.
    """
    if sources is None:
        files = wanted_files(name, store)
    else:
        files = tuple(WantedFile(name, s, store.datasets / name / s.file) for s in sources)
    if not files:
        raise InvalidInputError(f"data set {name!r} comes with the tool; there is no download")
    missing = fetch(files, store, progress=progress, back_off_s=back_off_s)
    if missing:
        first = missing[0]
        raise DownloadError(
            f"cannot download {first.file}: {first.reason}; get it from {first.by_hand}, "
            f"and put it at {first.place}"
        )
    return files[0].target.parent


def fetch(
    files: Sequence[WantedFile],
    store: Store,
    *,
    origin: str | None = None,
    jobs: int = JOBS,
    progress: Progress = SILENT,
    back_off_s: float = BACK_OFF_S,
    timeout_s: float = TIMEOUT_S,
) -> tuple[MissingFile, ...]:
    """Download several files in parallel; one that fails does not stop the others.

    Parameters
    ----------
    files
        The files; those in place with the right checksum are not downloaded again.
    store
        Whose locks keep two processes from fetching one file at once.
    origin
        A folder of files downloaded by hand, or the address of a mirror, to be used in place of the
        published addresses. It may hold ``FILE`` or ``DATASET/FILE``.
    jobs
        The largest number of parallel downloads.
    progress
        Reports the bytes received.
    back_off_s
        Pause before the second attempt at an address, in seconds; it doubles with each one.
    timeout_s
        How long a server may send nothing, in seconds; it may send fewer than 1,000 bytes/s for
        twice as long.

    Returns
    -------
    missing
        Files that could not be downloaded, in the order of ``files``.

    Raises
    ------
    MissingArtifactError
        If ``origin`` is a folder that does not exist.
    InvalidInputError
        If ``origin`` is neither a folder nor an address.
    OSError
        If the disk is full or the store cannot be written.
    """
    job = _Job(store, _origin(origin), progress, back_off_s, timeout_s)
    once = list({file.target: file for file in files}.values())
    reasons = _side_by_side(job.bring, once, threads=jobs)
    failed = {file.target: reason for file, reason in zip(once, reasons, strict=True) if reason}
    return tuple(
        MissingFile(
            dataset=file.dataset,
            file=file.source.file,
            reason=failed[file.target],
            by_hand=by_hand(file.source),
            place=file.target,
        )
        for file in files
        if file.target in failed
    )


def by_hand(source: Download) -> str:
    """Return where to download a file by hand."""
    return source.by_hand or next(iter(source.urls), "its authors")


def md5_of(path: Path, task: Task | None = None) -> str:
    """Return the md5 of a file, as data sets are published with.

    Parameters
    ----------
    path
        The file.
    task
        Reports the bytes read.
    """
    state = hashlib.md5(usedforsecurity=False)
    with path.open("rb", buffering=0) as file:
        while chunk := file.read(_HASHED_AT_ONCE):
            state.update(chunk)
            if task is not None:
                task.advance(len(chunk))
    return state.hexdigest()


def _origin(text: str | None) -> Path | str | None:
    """Tell the address of a mirror from a folder."""
    if text is None:
        return None
    if text.startswith(("http://", "https://")):
        return text.rstrip("/")
    if "://" in text:
        raise InvalidInputError(
            f"--from {text} is not an http or https address; name one, or a folder"
        )
    folder = Path(os.path.expanduser(text)).absolute()  # noqa: PTH111 - Path raises on unknown users
    if not folder.is_dir():
        raise MissingArtifactError(f"--from {text} is not a folder; check the path")
    return folder


def _side_by_side(
    work: Callable[[WantedFile], str | None], files: Sequence[WantedFile], *, threads: int
) -> list[str | None]:
    """Do the work for all files in threads that end with the process, and so with Ctrl-C."""
    waiting: queue.SimpleQueue[int] = queue.SimpleQueue()
    for at in range(len(files)):
        waiting.put(at)
    results: list[str | None] = [None] * len(files)
    failures: list[BaseException] = []

    def run() -> None:
        with contextlib.suppress(queue.Empty):
            while not failures:
                at = waiting.get_nowait()
                try:
                    results[at] = work(files[at])
                except BaseException as error:  # noqa: BLE001 - raised again by the caller
                    failures.append(error)

    workers = range(min(threads, len(files)))
    pool = [threading.Thread(target=run, name="ood-download", daemon=True) for _ in workers]
    for thread in pool:
        thread.start()
    for thread in pool:
        thread.join()
    if failures:
        raise failures[0]
    return results


@dataclass(frozen=True)
class _Job:
    """How files are brought to their places."""

    store: Store
    origin: Path | str | None
    progress: Progress
    back_off_s: float
    timeout_s: float

    def bring(self, file: WantedFile) -> str | None:
        """Bring one file to its place; return why that could not be done."""
        with self.store.lock(f"{file.dataset}/{file.source.file}", progress=self.progress):
            file.target.parent.mkdir(parents=True, exist_ok=True)
            if _is_right(file.target, file.source):
                return None
            if isinstance(self.origin, Path):
                return self._take(file, self.origin)
            if self.origin is None and file.source.is_manual:
                return "it must be downloaded by hand"
            return self._fetch(file)

    def _take(self, file: WantedFile, folder: Path) -> str | None:
        """Link or copy a file from a folder of the user's, which stays as it is."""
        reason = f"{file.source.file} is not in {folder}"
        for found in (folder / file.source.file, folder / file.dataset / file.source.file):
            if not found.is_file():
                continue
            reason = _wrong_sum(found, file.source)
            if not reason:
                part = part_of(file.target)
                part.unlink(missing_ok=True)
                try:
                    os.link(found.resolve(), part)
                except OSError:
                    # Another disk, or one without links.
                    shutil.copyfile(found, part)
                self._finish(part, file)
                return None
        return reason

    def _fetch(self, file: WantedFile) -> str | None:
        """Try every address in turn, each a few times, until the file is whole and right."""
        urls = file.source.urls
        if isinstance(self.origin, str):
            name = file.source.file
            urls = (f"{self.origin}/{name}", f"{self.origin}/{file.dataset}/{name}")
        failures = []
        for url in urls:
            failed = 0
            while failed < ATTEMPTS:
                if failed:
                    time.sleep(self.back_off_s * 2 ** (failed - 1))
                before = _size(part_of(file.target))
                try:
                    self._attempt(url, file)
                except _FetchError as error:
                    failure = f"{url}: {error}"
                    if not error.may_pass:
                        break
                    # A connection that breaks often may still bring a large file here in the end.
                    gained = _size(part_of(file.target)) - before
                    is_worth_it = gained > max(_WORTH_BYTES, file.source.size_bytes // 100)
                    failed = 1 if is_worth_it else failed + 1
                else:
                    return None
            failures.append(failure)
        return "; ".join(failures)

    def _attempt(self, url: str, file: WantedFile) -> None:
        """Receive what is missing of a file and check the whole."""
        part = part_of(file.target)
        start = _size(part)
        resumed = self._receive(url, part, start, file)
        reason = _wrong_sum(part, file.source)
        if reason:
            # A whole file that is wrong is of no use to a second attempt.
            part.unlink()
            # What was there before may be to blame; a whole file of the same address is not.
            raise _FetchError(f"{reason}; it was removed", may_pass=resumed)
        self._finish(part, file)

    def _finish(self, part: Path, file: WantedFile) -> None:
        """Give a checked file its name; what had the name before is kept under another."""
        if file.target.exists():
            aside = file.target.with_name(f"{file.target.name}.wrong")
            file.target.replace(aside)
            self.progress.note(f"{file.target} was not the published file; it is now {aside.name}")
        part.replace(file.target)

    def _receive(self, url: str, part: Path, start: int, file: WantedFile) -> bool:
        """Append to a file what a server has beyond its first ``start`` bytes.

        Returns
        -------
        resumed
            Whether the first bytes are those of an earlier attempt.
        """
        response = self._ask(url, start)
        if response is None:
            # There is nothing beyond: the file is whole already, or longer than the server's.
            return True
        with response:
            resumed = response.status == HTTPStatus.PARTIAL_CONTENT
            done = start if resumed else 0
            if resumed and not _continues(response, start):
                part.unlink(missing_ok=True)
                raise _FetchError(
                    "the server sends a different part from the requested one", may_pass=True
                )
            length = response.headers.get("Content-Length", "")
            total = done + int(length) if length.isdigit() else None
            _check_room(part, file.source, done=done, total=total)
            first = self._chunk(response)
            _check_kind(response, first, resumed=resumed)
            with (
                self.progress.task(
                    f"{file.dataset}/{file.source.file}", total=total, unit="bytes"
                ) as task,
                part.open("ab" if resumed else "wb", buffering=0) as stream,
            ):
                task.advance(done)
                chunk = first
                while chunk:
                    stream.write(chunk)
                    task.advance(len(chunk))
                    if _is_too_much(stream.tell(), file.source):
                        break
                    chunk = self._chunk(response)
                received = stream.tell()
        if _is_too_much(received, file.source):
            part.unlink()
            raise _FetchError(
                f"the server sends more than {received:,} bytes, where the file has "
                f"{file.source.size_bytes:,}",
                may_pass=False,
            )
        if total is not None and received < total:
            raise _FetchError(
                f"the connection ended {total - received:,} bytes early", may_pass=True
            )
        return resumed

    def _ask(self, url: str, start: int) -> "http.client.HTTPResponse | None":
        """Open an address; None if it has nothing beyond the first ``start`` bytes."""
        import http.client
        import urllib.error
        import urllib.request

        from oodcli.http_client import open_url

        headers = {"User-Agent": "ood", "Accept-Encoding": "identity"}
        if start:
            headers["Range"] = f"bytes={start}-"
        try:
            request = urllib.request.Request(url, headers=headers)  # noqa: S310 - the registry's, or --from's, http alone
            return open_url(request, timeout_s=self.timeout_s)
        except urllib.error.HTTPError as error:
            error.close()
            if error.code == HTTPStatus.REQUESTED_RANGE_NOT_SATISFIABLE and start:
                return None
            if error.code in _REDIRECTS:
                raise _FetchError(
                    "the server redirects in a circle or to nowhere", may_pass=False
                ) from None
            raise _FetchError(
                f"the server answers {error.code} {error.reason}",
                may_pass=error.code >= 500 or error.code in _MAY_PASS,
            ) from None
        except (OSError, http.client.HTTPException, ValueError) as error:
            raise _FetchError(self._reason(error), may_pass=isinstance(error, OSError)) from None

    def _chunk(self, response: "http.client.HTTPResponse") -> bytes:
        """Return what has come, without waiting for more."""
        import http.client

        try:
            return response.read1(_CHUNK_BYTES)
        except (OSError, http.client.HTTPException, ValueError) as error:
            raise _FetchError(self._reason(error), may_pass=True) from None

    def _reason(self, error: Exception) -> str:
        """Say in one line why a connection failed."""
        from oodcli.http_client import SlowServerError

        cause = getattr(error, "reason", error)
        if isinstance(cause, TimeoutError) and not isinstance(cause, SlowServerError):
            return f"the server sent nothing for {self.timeout_s:g} seconds"
        return " ".join(str(cause).split()) or type(error).__name__


def part_of(target: Path) -> Path:
    """Return the name of a file until its download is complete."""
    return target.with_name(f"{target.name}.part")


def _size(path: Path) -> int:
    return path.stat().st_size if path.is_file() else 0


def _is_right(path: Path, source: Download) -> bool:
    return path.is_file() and not _wrong_sum(path, source)


def _wrong_sum(path: Path, source: Download) -> str:
    """Say what is wrong with the checksum of a file; nothing if it is right or none is known."""
    if source.md5 is None:
        return ""
    md5 = md5_of(path)
    size = path.stat().st_size
    return "" if md5 == source.md5 else f"{size:,} bytes with md5 {md5}, not {source.md5}"


def _is_too_much(received: int, source: Download) -> bool:
    return bool(source.size_bytes) and received > 2 * source.size_bytes + _SLACK_BYTES


def _continues(response: "http.client.HTTPResponse", start: int) -> bool:
    """Tell whether a partial answer begins with the byte that was asked for."""
    return response.headers.get("Content-Range", "").startswith(f"bytes {start}-")


def _check_room(part: Path, source: Download, *, done: int, total: int | None) -> None:
    """Refuse what would not fit on the disk."""
    needed = (total if total is not None else source.size_bytes) - done
    free = free_bytes(part.parent)
    if needed > free:
        raise _FetchError(
            f"{needed:,} more bytes are needed, and the disk has room for {free:,}", may_pass=False
        )


def _check_kind(response: "http.client.HTTPResponse", first: bytes, *, resumed: bool) -> None:
    """Refuse a web page, such as an error or a log-in, that comes in place of the file."""
    says_page = response.headers.get_content_type() in ("text/html", "application/xhtml+xml")
    is_page = first.lstrip()[:15].lower().startswith((b"<!doctype html", b"<html"))
    if says_page or (is_page and not resumed):
        raise _FetchError("the server sends a web page, not the file", may_pass=False)
