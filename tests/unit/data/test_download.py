"""Files arrive whole and right, or an error says why not."""

import hashlib
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import numpy as np
import pytest

from oodcli.data import DATASETS, Source, download
from oodcli.errors import DownloadError, InvalidInputError, UnknownNameError

CONTENT = np.random.default_rng(0).bytes(1_000_000)
MD5 = hashlib.md5(CONTENT, usedforsecurity=False).hexdigest()


class Server(ThreadingHTTPServer):
    """A server of one file that can be told to misbehave."""

    daemon_threads = True

    def __init__(self):
        super().__init__(("127.0.0.1", 0), Handler)
        self.content = CONTENT
        self.understands_range = True
        self.break_after: list[int] = []  # for each coming answer, bytes to send before it ends
        self.statuses: list[int] = []  # for each coming answer, a status instead of the file
        self.ranges: list[str | None] = []  # Range header of each request

    @property
    def url(self):
        return f"http://127.0.0.1:{self.server_port}/file.bin"


class Handler(BaseHTTPRequestHandler):
    server: Server

    def do_GET(self):
        self.server.ranges.append(self.headers["Range"])
        if self.server.statuses:
            self.send_error(self.server.statuses.pop(0))
            return
        start = 0
        if self.headers["Range"] and self.server.understands_range:
            start = int(self.headers["Range"].removeprefix("bytes=").removesuffix("-"))
            if start >= len(self.server.content):
                self.send_error(416)
                return
            self.send_response(206)
            self.send_header("Content-Range", f"bytes {start}-{len(CONTENT) - 1}/{len(CONTENT)}")
        else:
            self.send_response(200)
        body = self.server.content[start:]
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(
            body[: self.server.break_after.pop(0)] if self.server.break_after else body
        )

    def log_message(self, *_arguments):
        pass


@pytest.fixture
def server(monkeypatch) -> Iterator[Server]:
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    with Server() as running:
        thread = threading.Thread(target=running.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield running
        running.shutdown()
        thread.join()


@pytest.fixture
def fetch(store, server, recorder):
    """Return a function that downloads the server's file into the store."""

    def run(*urls, md5=MD5):
        source = Source("file.bin", urls or (server.url,), md5, len(CONTENT))
        return download("cifar10", store, progress=recorder, sources=(source,), back_off_s=0)

    return run


@pytest.fixture
def target(store):
    (store.datasets / "cifar10").mkdir(parents=True)
    return store.datasets / "cifar10" / "file.bin"


@pytest.fixture
def part(target):
    return target.with_name("file.bin.part")


def test_fetches_a_file_into_the_store(fetch, server, target, part, recorder):
    assert fetch() == target.parent
    assert target.read_bytes() == CONTENT
    assert not part.exists()
    assert server.ranges == [None]
    assert recorder.tasks == [("downloading cifar10", len(CONTENT), "bytes")]
    assert recorder.advanced == len(CONTENT)


def test_file_already_there_is_not_fetched_again(fetch, server, target):
    target.write_bytes(CONTENT)
    fetch()
    assert server.ranges == []


def test_wrong_file_already_there_is_replaced(fetch, target):
    target.write_bytes(b"wrong")
    fetch()
    assert target.read_bytes() == CONTENT


def test_goes_on_where_an_earlier_run_broke_off(fetch, server, target, part, recorder):
    part.write_bytes(CONTENT[:400_000])
    fetch()
    assert server.ranges == ["bytes=400000-"]
    assert target.read_bytes() == CONTENT
    assert recorder.tasks == [("downloading cifar10", len(CONTENT), "bytes")]
    assert recorder.advanced == len(CONTENT)


def test_starts_over_where_the_server_knows_no_range(fetch, server, target, part, recorder):
    server.understands_range = False
    part.write_bytes(b"x" * 400_000)
    fetch()
    assert target.read_bytes() == CONTENT
    assert recorder.advanced == len(CONTENT)


def test_whole_part_only_wants_its_name(fetch, server, target, part):
    part.write_bytes(CONTENT)
    fetch()
    assert server.ranges == [f"bytes={len(CONTENT)}-"]
    assert target.read_bytes() == CONTENT


@pytest.mark.parametrize("stale", [b"x" * 400_000, b"x" * (len(CONTENT) + 5)])
def test_wrong_beginning_is_thrown_away_and_fetched_anew(fetch, server, target, part, stale):
    part.write_bytes(stale)
    fetch()
    assert server.ranges == [f"bytes={len(stale)}-", None]
    assert target.read_bytes() == CONTENT


def test_broken_connection_is_taken_up_again(fetch, server, target):
    server.break_after = [300_000, 200_000]
    fetch()
    assert server.ranges == [None, "bytes=300000-", "bytes=500000-"]
    assert target.read_bytes() == CONTENT


def test_connection_that_always_breaks_is_an_error_that_keeps_what_came(
    fetch, server, target, part
):
    server.break_after = [100_000] * 4
    with pytest.raises(DownloadError) as caught:
        fetch()
    assert str(caught.value) == (
        f"cannot download {server.url}: the connection ended 600000 bytes early; "
        f"try again later, or put the file by hand at {target}"
    )
    assert part.read_bytes() == CONTENT[:400_000]
    assert not target.exists()


def test_wrong_checksum_removes_the_file_and_says_so(fetch, server, target, part):
    with pytest.raises(DownloadError) as caught:
        fetch(md5="0" * 32)
    assert str(caught.value) == (
        f"cannot download {server.url}: the file has md5 {MD5}, "
        f"not {'0' * 32}, and was removed; try again later, or put the file by hand at {target}"
    )
    assert not target.exists()
    assert not part.exists()
    assert server.ranges == [None]


def test_missing_file_is_not_asked_for_again(fetch, server, target):
    server.statuses = [404]
    with pytest.raises(DownloadError) as caught:
        fetch()
    assert str(caught.value) == (
        f"cannot download {server.url}: the server answers 404 Not Found; "
        f"try again later, or put the file by hand at {target}"
    )
    assert len(server.ranges) == 1


def test_busy_server_is_asked_again(fetch, server, target):
    server.statuses = [503, 500, 429]
    fetch()
    assert len(server.ranges) == 4
    assert target.read_bytes() == CONTENT


def test_next_address_is_tried_after_the_first_fails(fetch, server, target):
    server.statuses = [404]
    fetch(f"{server.url}?first", f"{server.url}?second")
    assert target.read_bytes() == CONTENT


def test_server_that_does_not_answer_is_named_with_the_reason(fetch, server, target):
    server.shutdown()
    server.socket.close()
    with pytest.raises(
        DownloadError, match=r"cannot download http://127\.0\.0\.1:\d+/file\.bin: "
    ) as caught:
        fetch()
    assert "Connection refused" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_every_failed_address_is_named(fetch, server):
    server.statuses = [404, 410]
    with pytest.raises(
        DownloadError, match=r"file\.bin\?1: .* 404 .*; http.*file\.bin\?2: .* 410 "
    ):
        fetch(f"{server.url}?1", f"{server.url}?2")


def test_set_that_comes_with_the_tool_has_no_download(store):
    with pytest.raises(InvalidInputError) as caught:
        download("digits", store)
    assert str(caught.value) == "data set 'digits' comes with the tool; there is no download"


def test_unknown_set_is_named(store):
    with pytest.raises(UnknownNameError, match="no data set 'cifar'; did you mean 'cifar10'"):
        download("cifar", store)


def test_registry_names_the_files_that_readers_look_for():
    assert [source.file for source in DATASETS["cifar10"].sources] == ["cifar-10-python.tar.gz"]
