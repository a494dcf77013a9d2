"""A local web server that simulates errors of servers."""

import contextlib
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


class Server(ThreadingHTTPServer):
    """A server of one file, at any path, that can simulate errors."""

    daemon_threads = True
    request_queue_size = 64  # of a client that opens many connections at once

    def __init__(self, content: bytes, port: int = 0):
        super().__init__(("127.0.0.1", port), Handler)
        self.content = content
        self.understands_range = True
        self.break_after: list[int] = []  # for each next response, bytes to send
        self.statuses: list[int] = []  # for each next response, a status instead of the file
        self.ranges: list[str | None] = []  # Range header of each request
        self.paths: list[str] = []
        self.headers: dict[str, str | None] = {}  # sent instead of the correct ones; None: not sent
        self.redirects_to = ""
        self.stalls_after: int | None = None
        self.reason: str | None = None  # reason phrase of each status
        self.drips: str = ""  # "head" or "body": the part that is sent byte by byte, without end
        self.released = threading.Event()  # ends a stall
        self.shift = 0  # offset of the wrong start of a partial response
        self.files: dict[str, bytes] | None = None  # by path; the one file at any path if None
        self.query = ""  # without it in the address, access is refused
        self.login: str | None = None  # the only Authorization header that is let in
        self.sent = 0  # bytes of bodies
        self.broken: set[str] = set()  # paths whose bodies are always cut short
        self.most_at_once = 0
        self._at_once = 0
        self._counting = threading.Lock()

    @property
    def url(self):
        return f"http://127.0.0.1:{self.server_port}/file.bin"

    @property
    def root(self):
        return f"http://127.0.0.1:{self.server_port}"

    def refusal(self, path: str, authorization: str | None) -> int | None:
        """Return the status of a request that is not answered with a file."""
        if self.query not in path or (self.login is not None and authorization != self.login):
            return 403
        if self.files is not None and path.partition("?")[0] not in self.files:
            return 404
        return None

    def file(self, path: str) -> bytes:
        """Return what lies at a path."""
        return self.content if self.files is None else self.files[path.partition("?")[0]]

    @contextlib.contextmanager
    def counted(self):
        with self._counting:
            self._at_once += 1
            self.most_at_once = max(self.most_at_once, self._at_once)
        yield
        with self._counting:
            self._at_once -= 1

    def handle_error(self, *_arguments):
        """Ignore clients that close the connection."""


class Handler(BaseHTTPRequestHandler):
    server: Server

    def do_GET(self):
        with self.server.counted():
            self.answer()

    def answer(self):  # noqa: PLR0911, PLR0912 - one error each
        server = self.server
        server.ranges.append(self.headers["Range"])
        server.paths.append(self.path)
        if server.drips == "head":
            self.drip(b"HTTP/1.1 200 OK\r\nX-Long: ")
            return
        if server.redirects_to:
            self.send_response(302)
            self.send_header("Location", server.redirects_to)
            self.end_headers()
            return
        if server.statuses:
            self.send_error(server.statuses.pop(0), server.reason)
            return
        refused = server.refusal(self.path, self.headers["Authorization"])
        if refused is not None:
            self.send_error(refused)
            return
        content = server.file(self.path)
        said: dict[str, str | None] = {}
        if server.files is not None:
            said["ETag"] = f'"{hash(content):x}"'
        start, stop = 0, len(content)
        if self.headers["Range"] and server.understands_range:
            first, _, last = self.headers["Range"].removeprefix("bytes=").partition("-")
            start, stop = int(first), min(stop, int(last) + 1) if last else stop
            if start >= len(content):
                self.send_response(416)
                self.send_header("Content-Range", f"bytes */{len(content)}")
                self.send_header("Content-Length", "0")
                self.end_headers()
                return
            start += server.shift
            self.send_response(206)
            said["Content-Range"] = f"bytes {start}-{stop - 1}/{len(content)}"
        else:
            self.send_response(200)
        body = content[start:stop]
        said |= {"Content-Length": str(len(body)), **server.headers}
        for name, value in said.items():
            if value is not None:
                self.send_header(name, value)
        self.end_headers()
        if server.drips == "body":
            self.drip(body[:10])
            return
        if server.stalls_after is not None:
            self.wfile.write(body[: server.stalls_after])
            self.wfile.flush()
            server.released.wait(30)
            return
        if server.break_after:
            body = body[: server.break_after.pop(0)]
        if self.path in server.broken and len(body) > 1:
            body = body[: len(body) // 2]
        server.sent += len(body)
        self.wfile.write(body)

    def drip(self, start: bytes):
        """Send a start, and then single bytes slowly."""
        self.wfile.write(start)
        while not self.server.released.wait(0.02):
            self.wfile.write(b"x")
            self.wfile.flush()

    def log_message(self, *_arguments):
        pass


@contextlib.contextmanager
def serving(content: bytes, port: int = 0) -> Iterator[Server]:
    """Run a server while the context lasts, at a port if it must be that one."""
    with Server(content, port) as running:
        thread = threading.Thread(target=running.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        try:
            yield running
        finally:
            running.released.set()
            running.shutdown()
            thread.join()
