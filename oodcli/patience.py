"""An HTTP client with time limits for silent and for slow servers.

The time limit of a socket starts anew with every byte, so that a server that sends one now and then
would be waited for without end: in the head of its answer, in a redirect, or in the file. Here all
that comes through a connection is counted, and so is the time that was waited for it.
"""

import http.client
import io
import socket
import time
import urllib.request
from typing import Any

LEAST_BYTES_PER_S = 1000
"""The rate that a server has to keep, in bytes a second."""
PATIENCE = 2.0
"""For how long it may be below that, in time limits of the socket."""


class SlowServerError(TimeoutError):
    """A server sends less than it has to."""


class _Counted(io.RawIOBase):
    """What comes through a socket.

    Parameters
    ----------
    raw
        The socket as a raw stream.
    window_s
        After so many seconds of waiting, as many bytes as ``LEAST_BYTES_PER_S`` wants must be here.
    """

    def __init__(self, raw: io.RawIOBase, window_s: float) -> None:
        super().__init__()
        self._raw = raw
        self._window_s = window_s
        self._waited_s = 0.0
        self._received = 0

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any, /) -> int | None:  # noqa: ANN401 - as in the base class
        start = time.monotonic()
        count = self._raw.readinto(buffer)
        self._waited_s += time.monotonic() - start
        self._received += count or 0
        if count and self._waited_s > self._window_s:
            if self._received < LEAST_BYTES_PER_S * self._window_s:
                raise SlowServerError(
                    f"the server sent fewer than {LEAST_BYTES_PER_S:,} bytes/s in "
                    f"{self._window_s:g} seconds"
                )
            self._waited_s, self._received = 0.0, 0
        return count

    def close(self) -> None:
        self._raw.close()
        super().close()


class _Response(http.client.HTTPResponse):
    def __init__(self, sock: socket.socket, *arguments: Any, **options: Any) -> None:  # noqa: ANN401 - as in the base class
        super().__init__(sock, *arguments, **options)
        limit = sock.gettimeout()
        if limit is not None:
            raw = self.fp.detach()
            self.fp = io.BufferedReader(_Counted(raw, PATIENCE * limit))


class _Connection(http.client.HTTPConnection):
    response_class = _Response


class _SafeConnection(http.client.HTTPSConnection):
    response_class = _Response


class _Handler(urllib.request.HTTPHandler):
    def http_open(self, req: urllib.request.Request) -> http.client.HTTPResponse:
        return self.do_open(_Connection, req)


class _SafeHandler(urllib.request.HTTPSHandler):
    def https_open(self, req: urllib.request.Request) -> http.client.HTTPResponse:
        return self.do_open(_SafeConnection, req)


def open_url(request: urllib.request.Request, *, timeout_s: float) -> http.client.HTTPResponse:
    """Open an address, as ``urllib.request.urlopen`` does.

    Parameters
    ----------
    request
        The address, and the headers to send.
    timeout_s
        How long the server may keep silent, in seconds; it may send fewer than
        ``LEAST_BYTES_PER_S`` for ``PATIENCE`` times as long.

    Raises
    ------
    SlowServerError
        If it sends fewer, also while the answer is read.
    OSError, http.client.HTTPException
        As from ``urlopen``.
    """
    opener = urllib.request.build_opener(_Handler, _SafeHandler)
    return opener.open(request, timeout=timeout_s)
