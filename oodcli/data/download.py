"""Fetch the files of a data set: resumed where they broke off, checked before they count."""

import hashlib
import http.client
import time
import urllib.error
import urllib.request
from collections.abc import Sequence
from pathlib import Path

from oodcli.data.registry import DATASETS, Source
from oodcli.errors import DownloadError, InvalidInputError, UnknownNameError
from oodcli.progress import Progress, Silent
from oodcli.store import Store

ATTEMPTS = 4
BACK_OFF_S = 1.0
TIMEOUT_S = 30.0

_CHUNK_BYTES = 1 << 18


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


def download(
    name: str,
    store: Store,
    *,
    progress: Progress | None = None,
    sources: Sequence[Source] | None = None,
    back_off_s: float = BACK_OFF_S,
) -> Path:
    """Fetch all files of a data set that are not yet in the store.

    Parameters
    ----------
    name
        Name of the data set.
    store
        Where the files are kept.
    progress
        Told of the bytes received.
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
        If a file can be had from none of its addresses, or is not the published one.
    """
    if name not in DATASETS:
        raise UnknownNameError.among("data set", name, DATASETS)
    wanted = DATASETS[name].sources if sources is None else sources
    if not wanted:
        raise InvalidInputError(f"data set {name!r} comes with the tool; there is no download")
    progress = progress or Silent()
    folder = store.datasets / name
    with store.lock(f"datasets/{name}", progress=progress):
        folder.mkdir(parents=True, exist_ok=True)
        for source in wanted:
            target = folder / source.file
            if not (target.is_file() and _md5(target) == source.md5):
                _fetch(source, target, name=name, progress=progress, back_off_s=back_off_s)
    return folder


def _fetch(
    source: Source, target: Path, *, name: str, progress: Progress, back_off_s: float
) -> None:
    """Try every address in turn, each a few times, until the file is whole and right."""
    part = target.with_name(f"{target.name}.part")
    failures = []
    for url in source.urls:
        for attempt in range(ATTEMPTS):
            if attempt:
                time.sleep(back_off_s * 2 ** (attempt - 1))
            try:
                _attempt(url, part, source, name=name, progress=progress)
            except _FetchError as error:
                failure = f"{url}: {error}"
                if not error.may_pass:
                    break
            else:
                part.replace(target)
                return
        failures.append(failure)
    raise DownloadError(
        f"cannot download {'; '.join(failures)}; try again later, or put the file by hand at "
        f"{target}"
    )


def _attempt(url: str, part: Path, source: Source, *, name: str, progress: Progress) -> None:
    """Receive what is missing of a file and check the whole."""
    start = part.stat().st_size if part.is_file() else 0
    resumed = _receive(url, part, start, name=name, progress=progress)
    md5 = _md5(part)
    if md5 != source.md5:
        part.unlink()
        # What was there before may be to blame; a whole file of the same address is not.
        raise _FetchError(
            f"the file has md5 {md5}, not {source.md5}, and was removed", may_pass=resumed
        )


def _receive(url: str, part: Path, start: int, *, name: str, progress: Progress) -> bool:
    """Append to a file what a server has beyond its first ``start`` bytes.

    Returns
    -------
    resumed
        Whether the first bytes are those of an earlier attempt.
    """
    headers = {"User-Agent": "ood", "Accept-Encoding": "identity"}
    if start:
        headers["Range"] = f"bytes={start}-"
    request = urllib.request.Request(url, headers=headers)  # noqa: S310 - addresses of the registry
    try:
        response = urllib.request.urlopen(request, timeout=TIMEOUT_S)  # noqa: S310 - the same
    except urllib.error.HTTPError as error:
        error.close()
        if error.code == http.HTTPStatus.REQUESTED_RANGE_NOT_SATISFIABLE and start:
            # There is nothing beyond: the file is whole already, or longer than the server's.
            return True
        raise _FetchError(
            f"the server answers {error.code} {error.reason}",
            may_pass=error.code >= 500 or error.code in (408, 425, 429),
        ) from None
    except (OSError, http.client.HTTPException) as error:
        raise _FetchError(_reason(error), may_pass=True) from None
    with response:
        resumed = response.status == http.HTTPStatus.PARTIAL_CONTENT
        length = response.headers.get("Content-Length", "")
        left = int(length) if length.isdigit() else None
        done = start if resumed else 0
        total = None if left is None else done + left
        with (
            progress.task(f"downloading {name}", total=total, unit="bytes") as task,
            part.open("ab" if resumed else "wb") as file,
        ):
            task.advance(done)
            while chunk := _chunk(response):
                file.write(chunk)
                task.advance(len(chunk))
            received = file.tell()
    if total is not None and received < total:
        raise _FetchError(f"the connection ended {total - received} bytes early", may_pass=True)
    return resumed


def _chunk(response: http.client.HTTPResponse) -> bytes:
    try:
        return response.read(_CHUNK_BYTES)
    except (OSError, http.client.HTTPException) as error:
        raise _FetchError(_reason(error), may_pass=True) from None


def _reason(error: Exception) -> str:
    """Say in one line why a connection failed."""
    cause = getattr(error, "reason", error)
    return " ".join(str(cause).split()) or type(error).__name__


def _md5(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, lambda: hashlib.md5(usedforsecurity=False)).hexdigest()
