"""Files arrive whole and right, or an error says why not."""

import hashlib
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import replace

import numpy as np
import pytest

from oodcli.data import DATASETS, Download, download
from oodcli.data.download import ATTEMPTS, WantedFile, fetch, wanted_files
from oodcli.errors import DownloadError, InvalidInputError, MissingArtifactError, UnknownNameError
from tests.support.server import Server, serving

MODULE = sys.modules["oodcli.data.download"]  # the package has a function of that name
CONTENT = np.random.default_rng(0).bytes(1_000_000)
MD5 = hashlib.md5(CONTENT, usedforsecurity=False).hexdigest()


@pytest.fixture
def server(monkeypatch) -> Iterator[Server]:
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    with serving(CONTENT) as running:
        yield running


@pytest.fixture
def get(store, server, recorder):
    """Return a function that downloads the server's file into the store."""

    def run(*urls, md5=MD5):
        source = Download("file.bin", urls or (server.url,), md5, len(CONTENT))
        return download("cifar10", store, progress=recorder, sources=(source,), back_off_s=0)

    return run


@pytest.fixture
def target(store):
    (store.datasets / "cifar10").mkdir(parents=True)
    return store.datasets / "cifar10" / "file.bin"


@pytest.fixture
def part(target):
    return target.with_name("file.bin.part")


def test_fetches_a_file_into_the_store(get, server, target, part, recorder):
    assert get() == target.parent
    assert target.read_bytes() == CONTENT
    assert not part.exists()
    assert server.ranges == [None]
    assert recorder.tasks == [("cifar10/file.bin", len(CONTENT), "bytes")]
    assert recorder.advanced == len(CONTENT)


def test_file_already_there_is_not_fetched_again(get, server, target):
    target.write_bytes(CONTENT)
    get()
    assert server.ranges == []


def test_wrong_file_already_there_is_set_aside(get, target, recorder):
    target.write_bytes(b"wrong")
    get()
    assert target.read_bytes() == CONTENT
    assert target.with_name("file.bin.wrong").read_bytes() == b"wrong"
    assert recorder.notes == [f"{target} was not the published file; it is now file.bin.wrong"]


def test_wrong_file_already_there_stays_while_the_right_one_cannot_be_had(get, server, target):
    target.write_bytes(b"wrong")
    server.statuses = [404]
    with pytest.raises(DownloadError):
        get()
    assert target.read_bytes() == b"wrong"


def test_resumes_where_an_earlier_run_broke_off(get, server, target, part, recorder):
    part.write_bytes(CONTENT[:400_000])
    get()
    assert server.ranges == ["bytes=400000-"]
    assert target.read_bytes() == CONTENT
    assert recorder.tasks == [("cifar10/file.bin", len(CONTENT), "bytes")]
    assert recorder.advanced == len(CONTENT)


def test_starts_over_where_the_server_knows_no_range(get, server, target, part, recorder):
    server.understands_range = False
    part.write_bytes(b"x" * 400_000)
    get()
    assert target.read_bytes() == CONTENT
    assert recorder.advanced == len(CONTENT)


def test_whole_part_only_wants_its_name(get, server, target, part):
    part.write_bytes(CONTENT)
    get()
    assert server.ranges == [f"bytes={len(CONTENT)}-"]
    assert target.read_bytes() == CONTENT


@pytest.mark.parametrize("stale", [b"x" * 400_000, b"x" * (len(CONTENT) + 5)])
def test_wrong_beginning_is_thrown_away_and_fetched_anew(get, server, target, part, stale):
    part.write_bytes(stale)
    get()
    assert server.ranges == [f"bytes={len(stale)}-", None]
    assert target.read_bytes() == CONTENT


def test_broken_connection_is_taken_up_again(get, server, target):
    server.break_after = [300_000, 200_000]
    get()
    assert server.ranges == [None, "bytes=300000-", "bytes=500000-"]
    assert target.read_bytes() == CONTENT


def test_connection_that_always_breaks_is_an_error_that_keeps_what_came(get, server, target, part):
    server.break_after = [50_000] * 4
    with pytest.raises(DownloadError) as caught:
        get()
    assert str(caught.value) == (
        f"cannot download file.bin: {server.url}: the connection ended 800,000 bytes early; "
        f"get it from {server.url}, and put it at {target}"
    )
    assert part.read_bytes() == CONTENT[:200_000]
    assert not target.exists()


def test_file_cut_after_every_tenth_arrives_in_the_end(get, server, target):
    server.break_after = [100_000] * 9
    get()
    assert server.ranges == [None, *(f"bytes={k}00000-" for k in range(1, 10))]
    assert target.read_bytes() == CONTENT


@pytest.mark.parametrize("tenth", range(1, 10))
def test_what_a_call_leaves_the_next_one_takes_up(get, server, target, part, tenth):
    server.break_after = [tenth * 100_000, 0, 0, 0]
    with pytest.raises(DownloadError):
        get()
    assert part.read_bytes() == CONTENT[: tenth * 100_000]
    server.ranges.clear()
    get()
    assert server.ranges == [f"bytes={tenth}00000-"]
    assert target.read_bytes() == CONTENT


def test_wrong_checksum_removes_the_file_and_says_so(get, server, target, part):
    with pytest.raises(DownloadError) as caught:
        get(md5="0" * 32)
    assert str(caught.value) == (
        f"cannot download file.bin: {server.url}: 1,000,000 bytes with md5 {MD5}, "
        f"not {'0' * 32}; it was removed; get it from {server.url}, and put it at {target}"
    )
    assert not target.exists()
    assert not part.exists()
    assert server.ranges == [None]


def test_missing_file_is_not_asked_for_again(get, server, target):
    server.statuses = [404]
    with pytest.raises(DownloadError) as caught:
        get()
    assert str(caught.value) == (
        f"cannot download file.bin: {server.url}: the server answers 404 Not Found; "
        f"get it from {server.url}, and put it at {target}"
    )
    assert len(server.ranges) == 1


def test_busy_server_is_asked_again(get, server, target):
    server.statuses = [503, 500, 429]
    get()
    assert len(server.ranges) == 4
    assert target.read_bytes() == CONTENT


def test_next_address_is_tried_after_the_first_fails(get, server, target):
    server.statuses = [404]
    get(f"{server.url}?first", f"{server.url}?second")
    assert target.read_bytes() == CONTENT


def test_server_that_does_not_answer_is_named_with_the_reason(get, server, target):
    server.shutdown()
    server.socket.close()
    with pytest.raises(
        DownloadError, match=r"cannot download file\.bin: http://127\.0\.0\.1:\d+/file\.bin: "
    ) as caught:
        get()
    assert "Connection refused" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_every_failed_address_is_named(get, server):
    server.statuses = [404, 410]
    with pytest.raises(
        DownloadError, match=r"file\.bin\?1: .* 404 .*; http.*file\.bin\?2: .* 410 "
    ):
        get(f"{server.url}?1", f"{server.url}?2")


def test_set_that_comes_with_the_tool_has_no_download(store):
    with pytest.raises(InvalidInputError) as caught:
        download("digits", store)
    assert str(caught.value) == "data set 'digits' comes with the tool; there is no download"


def test_unknown_set_is_named(store):
    with pytest.raises(UnknownNameError, match="no data set 'cifar'; did you mean 'cifar10'"):
        download("cifar", store)


def test_registry_names_the_files_that_readers_look_for():
    assert [source.file for source in DATASETS["cifar10"].sources] == ["cifar-10-python.tar.gz"]


def refused(get):
    """Download in vain and return the reason."""
    with pytest.raises(DownloadError) as caught:
        get()
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize("length", ["text/html", "text/html; charset=utf-8"])
def test_web_page_is_refused_by_its_kind_and_what_came_before_is_kept(get, server, part, length):
    server.headers = {"Content-Type": length}
    part.write_bytes(CONTENT[:400_000])
    assert f"{server.url}: the server sends a web page, not the file; " in refused(get)
    assert part.read_bytes() == CONTENT[:400_000]
    assert len(server.ranges) == 1


@pytest.mark.parametrize("start", [b"<!DOCTYPE html>", b"\r\n <html lang='en'>"])
def test_web_page_is_refused_by_its_first_bytes(get, server, part, start):
    server.content = start + b"<p>Virus scan</p>" * 50
    assert "the server sends a web page, not the file" in refused(get)
    assert not part.exists()


def test_redirect_in_a_circle_ends(get, server):
    server.redirects_to = "/file.bin"
    assert "the server redirects in a circle or to nowhere" in refused(get)


def test_redirect_to_a_file_of_this_machine_is_not_followed(get, server, tmp_path, part):
    (tmp_path / "secret").write_text("secret")
    server.redirects_to = f"file://{tmp_path}/secret"
    assert server.url in refused(get)
    assert not part.exists()


@pytest.mark.parametrize("drips", ["head", "body"])
def test_server_that_drips_is_given_up(store, server, part, target, drips):
    """Each byte comes within the time limit, so that the limit alone would never end it."""
    server.drips = drips
    source = Download("file.bin", (server.url,), MD5, len(CONTENT))
    (missing,) = fetch([WantedFile("cifar10", source, target)], store, back_off_s=0, timeout_s=0.2)
    assert missing.reason == (
        f"{server.url}: the server sent fewer than 1,000 bytes/s in 0.4 seconds"
    )
    assert len(server.ranges) == ATTEMPTS


def test_server_that_keeps_silent_is_given_up(store, server, part, target):
    server.stalls_after = 10_000
    source = Download("file.bin", (server.url,), MD5, len(CONTENT))
    (missing,) = fetch([WantedFile("cifar10", source, target)], store, back_off_s=0, timeout_s=0.1)
    assert missing.reason == f"{server.url}: the server sent nothing for 0.1 seconds"
    assert part.read_bytes() == CONTENT[:40_000]


def test_too_long_a_length_does_not_matter_when_the_file_is_right(get, server, target):
    server.headers = {"Content-Length": str(len(CONTENT) + 7)}
    get()
    assert server.ranges == [None, f"bytes={len(CONTENT)}-"]
    assert target.read_bytes() == CONTENT


def test_too_long_a_length_is_named_where_nothing_can_be_resumed(get, server):
    server.headers = {"Content-Length": str(len(CONTENT) + 7)}
    server.understands_range = False
    assert "the connection ended 7 bytes early" in refused(get)


def test_too_short_a_length_gives_a_wrong_checksum(get, server, part):
    server.headers = {"Content-Length": "400000"}
    assert "400,000 bytes with md5" in refused(get)
    assert not part.exists()


def test_file_without_a_length_is_whole_when_the_connection_ends(get, server, target):
    server.headers = {"Content-Length": None}
    get()
    assert target.read_bytes() == CONTENT


def test_absurd_length_does_not_fit_on_the_disk(get, server, part):
    server.headers = {"Content-Length": str(10**18)}
    assert "1,000,000,000,000,000,000 more bytes are needed, and the disk has room for" in refused(
        get
    )
    assert not part.exists()


def test_server_that_sends_without_end_is_cut_off(store, server, target, part, monkeypatch):
    monkeypatch.setattr(MODULE, "_SLACK_BYTES", 1000)
    server.headers = {"Content-Length": None}
    source = Download("file.bin", (server.url,), MD5, 100_000)
    (missing,) = fetch([WantedFile("cifar10", source, target)], store, back_off_s=0)
    assert "where the file has 100,000" in missing.reason
    assert not part.exists()


def test_part_that_was_not_asked_for_is_not_appended(get, server, target, part):
    part.write_bytes(CONTENT[:400_000])
    server.shift = 5
    get()
    assert target.read_bytes() == CONTENT
    assert server.ranges == ["bytes=400000-", None]


def test_address_that_is_none_is_one_line(get):
    with pytest.raises(DownloadError, match=r"cannot download file\.bin: http://: "):
        get("http://")


def many(store, server, n, *, jobs_of=()):
    """Return ``n`` files that the server has."""
    return [
        WantedFile(
            "set",
            Download(f"{k}.bin", (f"{server.url}?{k}",), MD5, len(CONTENT)),
            store.datasets / "set" / f"{k}.bin",
        )
        for k in range(n)
    ]


def test_files_are_fetched_side_by_side_as_many_as_allowed(store, server):
    server.stalls_after = 10
    wanted = many(store, server, 6)
    worker = threading.Thread(
        target=fetch, args=(wanted, store), kwargs={"jobs": 3, "back_off_s": 0}
    )
    worker.start()
    deadline = time.monotonic() + 10
    while server.most_at_once < 3 and time.monotonic() < deadline:
        time.sleep(0.01)
    server.stalls_after = None
    server.released.set()
    worker.join()
    assert server.most_at_once == 3
    assert all(file.target.read_bytes() == CONTENT for file in wanted)


def test_what_cannot_be_had_stops_no_other_file(store, server):
    wanted = many(store, server, 3)
    gone = "http://127.0.0.1:9/gone.bin"
    wanted[1] = replace(
        wanted[1], source=replace(wanted[1].source, urls=(gone,), by_hand="http://papers")
    )
    (missing,) = fetch(wanted, store, back_off_s=0)
    assert (missing.file, missing.by_hand, missing.place) == (
        "1.bin", "http://papers", wanted[1].target
    )  # fmt: skip
    assert missing.reason.startswith(f"{gone}: ")
    assert [file.target.exists() for file in wanted] == [True, False, True]


def test_one_file_of_two_sets_is_fetched_once_and_missed_by_both(store, server):
    first = many(store, server, 1)[0]
    both = [first, replace(first, dataset="other")]
    server.statuses = [404]
    missing = fetch(both, store, back_off_s=0)
    assert [entry.dataset for entry in missing] == ["set", "other"]
    assert fetch(both, store) == ()
    assert len(server.ranges) == 2


def test_file_that_no_program_can_fetch_is_taken_as_it_is_once_it_lies_there(store):
    source = Download("lists.zip", (), None, 0, by_hand="https://drive.example/x")
    file = WantedFile("set", source, store.datasets / "set" / "lists.zip")
    (missing,) = fetch([file], store)
    assert (missing.reason, missing.by_hand) == (
        "it must be downloaded by hand", "https://drive.example/x"
    )  # fmt: skip
    file.target.write_bytes(b"anything")
    assert fetch([file], store) == ()


def test_unforeseen_error_in_a_thread_reaches_the_caller(store, server, monkeypatch):
    def full(_path):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(MODULE, "md5_of", full)
    with pytest.raises(OSError, match="No space left"):
        fetch(many(store, server, 3), store, jobs=2)


@pytest.fixture
def by_hand(tmp_path):
    folder = tmp_path / "by-hand"
    folder.mkdir()
    return folder


@pytest.mark.parametrize("inside", [".", "set"])
def test_file_of_a_folder_is_taken_and_stays(store, server, by_hand, inside):
    mine = by_hand / inside / "0.bin"
    mine.parent.mkdir(exist_ok=True)
    mine.write_bytes(CONTENT)
    wanted = many(store, server, 1)
    assert fetch(wanted, store, origin=str(by_hand)) == ()
    assert mine.read_bytes() == wanted[0].target.read_bytes() == CONTENT
    assert server.ranges == []


def test_file_of_a_folder_on_another_disk_is_copied(store, server, by_hand, monkeypatch):
    def refuse(*_paths):
        raise OSError(18, "Invalid cross-device link")

    monkeypatch.setattr(os, "link", refuse)
    (by_hand / "0.bin").write_bytes(CONTENT)
    wanted = many(store, server, 1)
    assert fetch(wanted, store, origin=str(by_hand)) == ()
    assert wanted[0].target.read_bytes() == CONTENT
    assert wanted[0].target.stat().st_ino != (by_hand / "0.bin").stat().st_ino


def test_link_in_a_folder_is_followed(store, server, by_hand, tmp_path):
    (tmp_path / "elsewhere.bin").write_bytes(CONTENT)
    (by_hand / "0.bin").symlink_to(tmp_path / "elsewhere.bin")
    wanted = many(store, server, 1)
    assert fetch(wanted, store, origin=str(by_hand)) == ()
    assert not wanted[0].target.is_symlink()
    assert wanted[0].target.read_bytes() == CONTENT


def test_wrong_file_of_a_folder_is_left_alone_and_named(store, server, by_hand):
    (by_hand / "0.bin").write_bytes(b"wrong")
    wanted = many(store, server, 2)
    first, second = fetch(wanted, store, origin=str(by_hand))
    wrong = hashlib.md5(b"wrong", usedforsecurity=False).hexdigest()
    assert first.reason == f"5 bytes with md5 {wrong}, not {MD5}"
    assert second.reason == f"1.bin is not in {by_hand}"
    assert (by_hand / "0.bin").read_bytes() == b"wrong"
    assert not wanted[0].target.exists()


def test_mirror_is_asked_in_place_of_the_published_addresses(store, server):
    server.statuses = [404]
    wanted = [replace(f, source=replace(f.source, urls=("http://127.0.0.1:9/",))) for f in
              many(store, server, 1)]  # fmt: skip
    mirror = server.url.removesuffix("/file.bin") + "/mirror/"
    assert fetch(wanted, store, origin=mirror) == ()
    assert server.paths == ["/mirror/0.bin", "/mirror/set/0.bin"]


@pytest.mark.parametrize(
    ("origin", "error"),
    [
        (
            "ftp://host/x",
            "--from ftp://host/x is not an http or https address; name one, or a folder",
        ),
        ("/no/such", "--from /no/such is not a folder; check the path"),
    ],
)
def test_impossible_origin_is_one_line(store, server, origin, error):
    with pytest.raises((InvalidInputError, MissingArtifactError)) as caught:
        fetch(many(store, server, 1), store, origin=origin)
    assert str(caught.value) == error


def test_two_downloads_of_one_file_wait_for_each_other(store, server, recorder):
    server.stalls_after = 10
    wanted = many(store, server, 1)
    threads = [
        threading.Thread(target=fetch, args=(wanted, store), kwargs={"progress": recorder})
        for _ in range(2)
    ]
    for thread in threads:
        thread.start()
    deadline = time.monotonic() + 10
    while not (server.ranges and recorder.notes) and time.monotonic() < deadline:
        time.sleep(0.01)
    server.stalls_after = None
    server.released.set()
    for thread in threads:
        thread.join()
    assert recorder.notes == ["waiting for another ood process that is creating set/0.bin"]
    assert server.most_at_once == 1
    assert wanted[0].target.read_bytes() == CONTENT


_DOWNLOADING = """
import sys
from pathlib import Path
from oodcli.data import Download, download
from oodcli.store.store import Store
root, url, md5 = sys.argv[1:]
download("cifar10", Store(Path(root)), sources=[Download("file.bin", (url,), md5, 1_000_000)])
"""


def test_killed_download_resumes_where_it_stopped(get, store, server, target, part):
    server.stalls_after = 600_000
    process = subprocess.Popen([sys.executable, "-c", _DOWNLOADING, store.root, server.url, MD5])
    deadline = time.monotonic() + 30
    while not (part.exists() and part.stat().st_size == 600_000):
        assert process.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    process.wait()
    server.stalls_after = None
    server.released.set()
    server.ranges.clear()
    get()
    assert server.ranges == ["bytes=600000-"]
    assert target.read_bytes() == CONTENT


def test_wanted_files_have_their_places(store):
    (file,) = wanted_files("cifar10", store)
    assert file.target == store.datasets / "cifar10" / "cifar-10-python.tar.gz"
    assert wanted_files("digits", store) == ()
