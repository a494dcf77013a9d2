"""An HTTP client with time limits for unresponsive and for slow servers.

The timeout of a socket restarts with every byte, so a server that sends one byte now and then could
block a download forever: in the response header, in a redirect, or in the file. This client counts
all bytes received through a connection and the time spent waiting for them.
"""

import http.client
import io
import socket
import time
import urllib.request
from typing import Any

MIN_BYTES_PER_S = 1000
"""Minimum transfer rate of a server, in bytes per second."""
SLOW_TIMEOUTS = 2.0
"""How long a server may stay below ``MIN_BYTES_PER_S``, in multiples of the socket's timeout."""


class SlowServerError(TimeoutError):
    """A server sends data more slowly than ``MIN_BYTES_PER_S``."""


class _MeasuredStream(io.RawIOBase):
    """The byte stream of a socket, with its transfer rate checked.

    Parameters
    ----------
    raw
        The socket as a raw stream.
    window_s
        The rate is checked each time this many seconds have been spent waiting.
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
            if self._received < MIN_BYTES_PER_S * self._window_s:
                raise SlowServerError(
                    f"the server sent fewer than {MIN_BYTES_PER_S:,} bytes/s in "
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
            self.fp = io.BufferedReader(_MeasuredStream(raw, SLOW_TIMEOUTS * limit))


class _HTTPConnection(http.client.HTTPConnection):
    response_class = _Response


class _HTTPSConnection(http.client.HTTPSConnection):
    response_class = _Response


class _HTTPHandler(urllib.request.HTTPHandler):
    def http_open(self, req: urllib.request.Request) -> http.client.HTTPResponse:
        return self.do_open(_HTTPConnection, req)


class _HTTPSHandler(urllib.request.HTTPSHandler):
    def https_open(self, req: urllib.request.Request) -> http.client.HTTPResponse:
        return self.do_open(_HTTPSConnection, req)


def open_url(request: urllib.request.Request, *, timeout_s: float) -> http.client.HTTPResponse:
    """Open a URL, as ``urllib.request.urlopen`` does.

    Parameters
    ----------
    request
        The URL, and the headers to send.
    timeout_s
        How long the server may send nothing, in seconds; its rate may be below
        ``MIN_BYTES_PER_S`` for ``SLOW_TIMEOUTS`` times as long.

    Raises
    ------
    SlowServerError
        If the server is slower than that, also while the response is read.
    OSError, http.client.HTTPException
        As raised by ``urlopen``.
    """
    opener = urllib.request.build_opener(_HTTPHandler, _HTTPSHandler)
    return opener.open(request, timeout=timeout_s)
