"""Requests to servers through fsspec, with bounded tries and times.

Everything runs in the event loop of fsspec, so that many ranges are under way at once without
threads. A process that was forked has no loop and gets its own. Only this module imports fsspec. It
is imported with the first request, for most commands make none.

References
----------
RFC 9110, "HTTP Semantics", section 14, for ranges.
"""

import asyncio
import importlib
import logging
import os
import threading
import time
from collections.abc import Awaitable, Callable, Coroutine, Iterable, Mapping
from concurrent.futures import Future
from typing import Any, TypeVar

from oodcli.errors import InvalidInputError
from oodcli.http_client import MIN_BYTES_PER_S, SLOW_TIMEOUTS
from oodcli.remote.addresses import PACKAGES, WEB, complete, redacted
from oodcli.remote.errors import Kind, RemoteError, of_exception, of_status
from oodcli.remote.state import State
from oodcli.version import __version__

TIMEOUT_S = 30.0
"""How long a server may send nothing."""
TRIES = 3
WAIT_S = 0.5
"""How long to wait before the second try; twice as long before each further one."""
MAX_WHOLE_BYTES = 1 << 24
"""Largest file that is read from a server that sends no ranges."""
AT_ONCE = 16
_MAX_REDIRECTS = 5
_PERSISTENT = ("gs://",)  # gcsfs itself tries six times, for at least 31 s
_VERSIONS = ("ETag", "etag", "VersionId", "generation", "md5Hash", "Content-MD5", "blob_id",
             "LastModified", "Last-Modified", "mtime", "updated", "created")  # fmt: skip

_LOGGERS = ("fsspec", "s3fs", "gcsfs", "huggingface_hub", "aiobotocore", "google", "asyncio")

_Result = TypeVar("_Result")


class Transport:
    """The connections of one process.

    Raises
    ------
    InvalidInputError
        If fsspec is not installed.
    """

    def __init__(self) -> None:
        self.process = os.getpid()
        asyn = package("fsspec.asyn", "fsspec", "fsspec")
        self._loop: asyncio.AbstractEventLoop = asyn.get_loop()
        self._systems: dict[str, Any] = {}
        self._lock = threading.Lock()
        self._few = asyncio.Semaphore(AT_ONCE)

    def start(self, work: Coroutine[Any, Any, _Result]) -> "Future[_Result]":
        """Begin some work in the loop."""
        return asyncio.run_coroutine_threadsafe(work, self._loop)

    def state(self, address: str) -> State:
        """Return what the server says of a file.

        Raises
        ------
        RemoteError
            If there is none, or it cannot be had.
        """
        self.system(address)
        return self.start(self._state(address)).result()

    async def state_soon(self, address: str) -> State:
        """Return what the server says of a file, in the loop."""
        return await self._state(address)

    def states(self, addresses: Iterable[str]) -> list[State | RemoteError]:
        """Return what servers say of several files, asked at once."""
        each = [self.start(self._state(address)) for address in addresses if self.system(address)]
        found: list[State | RemoteError] = []
        for one in each:
            try:
                found.append(one.result())
            except RemoteError as error:
                found.append(error)
        return found

    def listing(self, address: str) -> dict[str, State]:
        """Return all files below a folder, by their paths relative to it, sorted.

        Raises
        ------
        RemoteError
            If it cannot be listed.
        """
        system = self.system(address)
        found = self.start(self._again(address, lambda: self._listing(address))).result()
        prefix = str(system._strip_protocol(address)).rstrip("/") + "/"  # noqa: SLF001 - documented
        below = {
            name.removeprefix(prefix): _state_of(info)
            for name, info in found.items()
            if name.startswith(prefix) and info.get("type") == "file"
        }
        return dict(sorted(below.items()))

    async def fetch(self, address: str, start: int, stop: int, state: State) -> bytes:
        """Return bytes ``start`` to ``stop - 1`` of a file in a state.

        Raises
        ------
        RemoteError
            If they cannot be had after some tries, or the file is in another state.
        """
        return await self._again(address, lambda: self._range(address, start, stop, state))

    def system(self, address: str) -> Any:  # noqa: ANN401 - fsspec has no types
        """Return the file system of an address.

        Raises
        ------
        InvalidInputError
            If a package is missing.
        """
        scheme = "http" if address.startswith("http") else address.partition(":")[0]
        with self._lock:
            if scheme not in self._systems:
                self._systems[scheme] = _file_system(scheme)
            return self._systems[scheme]

    async def _again(self, address: str, work: Callable[[], Awaitable[_Result]]) -> _Result:
        """Try some work again, as long as another try may succeed."""
        start = time.monotonic()
        for nth in range(TRIES):
            try:
                async with self._few:
                    return await work()
            except Exception as error:  # noqa: BLE001 - libraries raise anything
                problem = of_exception(address, error)
                enough = TIMEOUT_S if address.startswith(_PERSISTENT) else 2 * TIMEOUT_S
                long = time.monotonic() - start > enough
                if not problem.passing or long or nth == TRIES - 1:
                    raise problem from None
            await asyncio.sleep(WAIT_S * 2**nth)
        raise AssertionError  # the last try returns or raises

    async def _state(self, address: str) -> State:
        if address.partition(":")[0] in WEB:
            return await self._again(address, lambda: self._web_state(address))
        return await self._again(address, lambda: self._other_state(address))

    async def _other_state(self, address: str) -> State:
        return _state_of(await self._call(address, "info", address))

    async def _listing(self, address: str) -> Mapping[str, Mapping[str, Any]]:
        return await self._call(address, "find", address, detail=True)

    async def _call(self, address: str, name: str, *given: Any, **more: Any) -> Any:  # noqa: ANN401
        """Call a method of a file system, in a thread where it is not asynchronous."""
        system = self.system(address)
        if system.async_impl:
            work = getattr(system, f"_{name}")(*given, **more)
        else:
            work = asyncio.to_thread(getattr(system, name), *given, **more)
        # A listing of a million files is a thousand requests, one after the other.
        least = 1 if address.startswith(_PERSISTENT) else 2
        return await asyncio.wait_for(
            work, {"find": 40, "cat_file": 8}.get(name, least) * TIMEOUT_S
        )

    async def _range(self, address: str, start: int, stop: int, state: State) -> bytes:
        if address.partition(":")[0] in WEB:
            return await self._web_range(address, start, stop, state)
        if address.startswith("s3://"):
            content = await asyncio.wait_for(
                _s3_range(self.system(address), address, start, stop, state), 8 * TIMEOUT_S
            )
        else:
            content = await self._call(address, "cat_file", address, start=start, end=stop)
        return _of_length(address, bytes(content), stop - start)

    async def _web_state(self, address: str) -> State:
        """Ask for the first byte: where HEAD is refused, as by signed addresses, GET is not."""
        async with await self._get(address, "bytes=0-0") as answer:
            total = answer.headers.get("Content-Range", "").rpartition("/")[2]
            if answer.status == 416 and total == "0":
                return State(0, _version(answer.headers))
            _check_status(address, answer)
            version = _version(answer.headers)
            if answer.status == 206:
                if not (total.isascii() and total.isdecimal()):
                    raise RemoteError(address, Kind.OTHER, "the server does not say its size")
                return State(int(total), version)
            content = await self._whole(address, answer)
            return State(len(content), version, content)

    async def _whole(self, address: str, answer: Any) -> bytes:  # noqa: ANN401
        """Return all of a file that the server does not send in ranges."""
        if (answer.content_length or 0) <= MAX_WHOLE_BYTES:
            content = await _body(answer, MAX_WHOLE_BYTES + 1)
            if len(content) <= MAX_WHOLE_BYTES:
                return content
        raise RemoteError(
            address,
            Kind.OTHER,
            f"the server sends no ranges, and the file has more than {MAX_WHOLE_BYTES >> 20} MiB",
            "download it, or use a server that answers range requests",
        )

    async def _web_range(self, address: str, start: int, stop: int, state: State) -> bytes:
        async with await self._get(address, f"bytes={start}-{stop - 1}") as answer:
            _check_status(address, answer)
            if answer.status != 206:
                raise RemoteError(address, Kind.OTHER, "the server has stopped sending ranges")
            if _version(answer.headers) != state.version:
                raise RemoteError(address, Kind.CHANGED, "it has changed while it was read")
            if answer.headers.get("Content-Range", "").startswith(f"bytes {start}-"):
                return _of_length(address, await _body(answer, stop - start), stop - start)
        raise RemoteError(address, Kind.BROKEN, "the server sends another range")

    async def _get(self, address: str, byte_range: str) -> Any:  # noqa: ANN401
        yarl = package("yarl", "aiohttp", address)
        session = await self.system(address).set_session()
        return session.get(
            yarl.URL(complete(address), encoded=True),
            headers={"Range": byte_range, "Accept-Encoding": "identity"},
            max_redirects=_MAX_REDIRECTS,
        )


async def _s3_range(system: Any, address: str, start: int, stop: int, state: State) -> bytes:  # noqa: ANN401
    """Return a range of an object as long as it is the one that its ETag says."""
    bucket, key, _ = system.split_path(address)
    etag = state.version.partition("|")[0].removeprefix("ETag=")
    try:
        answer = await system._call_s3(  # noqa: SLF001 - the asynchronous form of call_s3
            "get_object", Bucket=bucket, Key=key, Range=f"bytes={start}-{stop - 1}", IfMatch=etag
        )
    except OSError as error:
        if "pre-conditions" in str(error) or "PreconditionFailed" in str(error):
            reason = "it has changed while it was read"
            raise RemoteError(address, Kind.CHANGED, reason) from None
        raise
    async with answer["Body"] as body:
        return await body.read()


def _file_system(scheme: str) -> Any:  # noqa: ANN401 - fsspec has no types
    for name in _LOGGERS:  # what they log of failures is raised, too
        logging.getLogger(name).addHandler(logging.NullHandler())
    fsspec = package("fsspec", "fsspec", f"{scheme}://")
    options: dict[str, Any] = {"skip_instance_cache": True, "use_listings_cache": False}
    if scheme == "http":
        aiohttp = package("aiohttp", "aiohttp", "https://")
        options["get_client"] = _web_client
        options["client_kwargs"] = {
            "timeout": aiohttp.ClientTimeout(sock_connect=TIMEOUT_S, sock_read=TIMEOUT_S),
            "trust_env": True,
            "headers": {"User-Agent": f"ood/{__version__}"},
        }
    if scheme == "s3":
        options["config_kwargs"] = {
            "connect_timeout": TIMEOUT_S,
            "read_timeout": TIMEOUT_S,
            "retries": {"max_attempts": 1},
        }
    try:
        return fsspec.filesystem(scheme, **options)
    except ImportError:
        raise _missing(scheme, PACKAGES[scheme][-1]) from None


def package(name: str, project: str, what: str) -> Any:  # noqa: ANN401 - need not be there
    """Import a module that reads remote files.

    Parameters
    ----------
    name
        The module.
    project
        What it is called on PyPI.
    what
        What needs it.

    Raises
    ------
    InvalidInputError
        If it is not installed.
    """
    try:
        return importlib.import_module(name)
    except ImportError:
        raise _missing(what.partition(":")[0], project) from None


def _missing(scheme: str, project: str) -> InvalidInputError:
    own = project in ("fsspec", "aiohttp", "s3fs")
    cure = 'pip install "oodcli[remote]"' if own else f'pip install "oodcli[remote]" {project}'
    what = f"{scheme}:// addresses need" if scheme in PACKAGES else "remote addresses need"
    return InvalidInputError(f"{what} the package {project}; install it: {cure}")


async def _web_client(**options: Any) -> Any:  # noqa: ANN401 - of aiohttp
    """Return a client that follows no redirect to another scheme, other than from http to https.

    It sends no credentials to another host, port or scheme.
    """
    aiohttp = package("aiohttp", "aiohttp", "https://")
    tracing = aiohttp.TraceConfig()
    tracing.on_request_redirect.append(_check_redirect)
    return aiohttp.ClientSession(trace_configs=[tracing], **options)


async def _check_redirect(_session: Any, _context: Any, params: Any) -> None:  # noqa: ANN401
    target = str(params.response.headers.get("Location", ""))
    scheme = target.partition("://")[0].lower() if "://" in target else params.url.scheme
    if scheme not in (params.url.scheme, "https"):
        address = redacted(str(params.url))
        reason = f"it redirects to {redacted(target)[:200]}, which has another scheme"
        raise RemoteError(address, Kind.OTHER, reason, "give that address")


def _check_status(address: str, answer: Any) -> None:  # noqa: ANN401
    if answer.status >= 400:
        raise of_status(address, answer.status, answer.reason)
    if answer.status not in (200, 206):
        raise RemoteError(address, Kind.OTHER, f"the server answers {answer.status}")


async def _body(answer: Any, most: int) -> bytes:  # noqa: ANN401
    """Read the body of an answer, as long as the server is not too slow."""
    content = bytearray()
    window, since, count = SLOW_TIMEOUTS * TIMEOUT_S, time.monotonic(), 0
    async for piece in answer.content.iter_any():
        content += piece
        count += len(piece)
        if len(content) > most:
            break
        now = time.monotonic()
        if now - since > window:
            if count < MIN_BYTES_PER_S * window:
                raise TimeoutError(f"the server sent fewer than {MIN_BYTES_PER_S:,} bytes/s")
            since, count = now, 0
    return bytes(content)


def _of_length(address: str, content: bytes, wanted: int) -> bytes:
    if len(content) != wanted:
        reason = f"the server sent {len(content):,} of {wanted:,} bytes"
        raise RemoteError(address, Kind.BROKEN, reason)
    return content


def _version(said: Mapping[str, Any]) -> str:
    return "|".join(f"{name}={said[name]}" for name in _VERSIONS if said.get(name))


def _state_of(info: Mapping[str, Any]) -> State:
    if info.get("type") == "directory":
        return State(-1, "")
    return State(int(info.get("size") or 0), _version(info))
