"""Nothing lands outside of the folder that an archive is unpacked into, whatever it holds."""

import io
import stat
import sys
import tarfile
import zipfile

import numpy as np
import pytest

from oodcli.data.unpack import damage_is_told, entries, unpack
from oodcli.errors import CorruptArtifactError, MissingArtifactError

MODULE = sys.modules["oodcli.data.unpack"]


def member(name, kind=tarfile.REGTYPE, link="", size=None):
    info = tarfile.TarInfo(name)
    info.type = kind
    info.linkname = link
    info.size = size or 0
    return info


def tar(path, *members, mode="w"):
    """Write a tar archive of ``(TarInfo, content)``."""
    with tarfile.open(path, mode) as archive:
        for info, content in members:
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
    return path


def files(folder):
    """Return the content of every file below a folder, by name."""
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


@pytest.fixture
def target(tmp_path):
    return tmp_path / "inside" / "set"


def refusal(archive, target):
    """Unpack in vain; return the reason, and see that nothing is left."""
    with pytest.raises(CorruptArtifactError) as caught:
        unpack(archive, target)
    assert list(target.parent.iterdir()) == []
    text = str(caught.value)
    assert "\n" not in text
    return text.removeprefix(f"archive {archive} is ")


@pytest.mark.parametrize("mode", ["w", "w:gz", "w:bz2", "w:xz"])
def test_tar_is_unpacked_whatever_its_compression_and_name(tmp_path, target, mode):
    content = np.random.default_rng(0).bytes(2_000_000)
    path = tar(
        tmp_path / "anything",
        (member("a", tarfile.DIRTYPE), b""),
        (member("a/one.bin"), content),
        (member("./b/two.txt"), b"two"),
        (member("empty"), b""),
        mode=mode,
    )
    unpack(path, target)
    assert files(target) == {"a/one.bin": content, "b/two.txt": b"two", "empty": b""}
    assert [p.name for p in target.parent.iterdir()] == ["set"]


def test_zip_is_unpacked(tmp_path, target):
    with zipfile.ZipFile(tmp_path / "a", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("a/", "")
        archive.writestr("a/one.txt", "one")
        archive.writestr("two.txt", "2" * 100_000)
    unpack(tmp_path / "a", target)
    assert files(target) == {"a/one.txt": b"one", "two.txt": b"2" * 100_000}


def test_folder_that_is_there_is_left_alone(tmp_path, target):
    target.mkdir(parents=True)
    unpack(tar(tmp_path / "a.tar", (member("x"), b"x")), target)
    assert files(target) == {}


def test_what_a_killed_process_left_is_cleared_away(tmp_path, target):
    left = target.with_name(".unpacking-set")
    left.mkdir(parents=True)
    (left / "half").write_bytes(b"half")
    unpack(tar(tmp_path / "a.tar", (member("x"), b"x")), target)
    assert files(target.parent) == {"set/x": b"x"}


def test_missing_archive_is_named(tmp_path, target):
    with pytest.raises(MissingArtifactError) as caught:
        unpack(tmp_path / "none.tar", target)
    assert str(caught.value) == f"there is no archive {tmp_path / 'none.tar'}; check the path"


@pytest.mark.parametrize(
    "name",
    ["../out", "a/../../out", "/dev/out", "..", "a/..", "C:/out", "c:out", "..\\out", "\\out"],
)
@pytest.mark.parametrize("kind", ["tar", "zip"])
def test_name_that_leads_outside_is_refused(tmp_path, target, name, kind):
    path = tmp_path / "bad"
    if kind == "tar":
        tar(path, (member("good"), b"good"), (member(name), b"bad"))
    else:
        with zipfile.ZipFile(path, "w") as archive:
            archive.writestr("good", "good")
            archive.writestr(name, "bad")
    assert refusal(path, target) == (
        f"not unpacked: {name!r} leads outside of its folder; get it from where it is published"
    )


@pytest.mark.parametrize(
    ("kind", "link"),
    [
        (tarfile.SYMTYPE, "../../out"),
        (tarfile.SYMTYPE, "/etc/passwd"),
        (tarfile.LNKTYPE, "/etc/passwd"),
        (tarfile.LNKTYPE, "../out"),
    ],
)
def test_link_that_leads_outside_is_refused(tmp_path, target, kind, link):
    path = tar(tmp_path / "bad.tar", (member("a/link", kind, link), b""))
    assert "leads outside of its folder" in refusal(path, target)


def test_link_to_a_folder_or_to_nothing_is_refused(tmp_path, target):
    for link in ("a", "nothing"):
        path = tar(
            tmp_path / "bad.tar",
            (member("a", tarfile.DIRTYPE), b""),
            (member("link", tarfile.SYMTYPE, link), b""),
            (member("link/x"), b"x"),
        )
        assert "link 'link' leads to no earlier file" in refusal(path, target)


def test_links_to_earlier_files_become_copies(tmp_path, target):
    path = tar(
        tmp_path / "a.tar",
        (member("a/one"), b"one"),
        (member("a/hard", tarfile.LNKTYPE, "a/one"), b""),
        (member("b/soft", tarfile.SYMTYPE, "../a/hard"), b""),
        (member("a/one", tarfile.SYMTYPE, "one"), b""),
    )
    unpack(path, target)
    assert files(target) == {"a/hard": b"one", "a/one": b"one", "b/soft": b"one"}
    assert not any(p.is_symlink() or p.stat().st_nlink > 1 for p in target.rglob("*/*"))


@pytest.mark.parametrize("kind", [tarfile.CHRTYPE, tarfile.BLKTYPE, tarfile.FIFOTYPE])
def test_device_is_refused(tmp_path, target, kind):
    path = tar(tmp_path / "bad.tar", (member("dev", kind), b""))
    assert "'dev' is neither a file nor a folder" in refusal(path, target)


def test_link_in_a_zip_is_refused(tmp_path, target):
    info = zipfile.ZipInfo("link")
    info.external_attr = (stat.S_IFLNK | 0o777) << 16
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
        archive.writestr(info, "/etc/passwd")
    assert "'link' is neither a file nor a folder" in refusal(tmp_path / "a.zip", target)


def test_the_later_of_two_equal_names_counts(tmp_path, target):
    path = tar(tmp_path / "a.tar", (member("x"), b"first"), (member("x"), b"second"))
    unpack(path, target)
    assert files(target) == {"x": b"second"}


def test_names_that_differ_in_case_lose_nothing(tmp_path, target):
    path = tar(tmp_path / "a.tar", (member("X"), b"upper"), (member("x"), b"lower"))
    try:
        unpack(path, target)
    except CorruptArtifactError as error:  # where the disk tells no case
        assert "collides with another name" in str(error)  # noqa: PT017 - both ends are right
    else:
        assert files(target) == {"X": b"upper", "x": b"lower"}


@pytest.mark.parametrize("names", [("x", "x/y"), ("x/y", "x")])
def test_file_and_folder_of_one_name_are_refused(tmp_path, target, names):
    path = tar(tmp_path / "a.tar", *((member(name), b"x") for name in names))
    assert "collides with another name" in refusal(path, target)


@pytest.mark.parametrize("mode", ["w:gz", "w:xz"])
def test_archive_that_unpacks_to_far_more_is_refused(tmp_path, target, monkeypatch, mode):
    monkeypatch.setattr(MODULE, "EXPANSION_SLACK_BYTES", 1000)
    path = tar(tmp_path / "bomb", (member("zeros"), bytes(10_000_000)), mode=mode)
    assert "it unpacks to more than 200 times its size" in refusal(path, target)


def test_links_count_as_much_as_what_they_copy(tmp_path, target, monkeypatch):
    monkeypatch.setattr(MODULE, "EXPANSION_SLACK_BYTES", 1000)
    content = np.random.default_rng(0).bytes(100_000)
    links = [(member(f"l{k}", tarfile.LNKTYPE, "x"), b"") for k in range(300)]
    path = tar(tmp_path / "bomb", (member("x"), content), *links, mode="w:gz")
    assert "it unpacks to more than 200 times its size" in refusal(path, target)


def test_too_many_members_are_refused(tmp_path, target, monkeypatch):
    monkeypatch.setattr(MODULE, "MAX_MEMBERS", 10)
    path = tar(tmp_path / "a.tar", *((member(str(k)), b"") for k in range(11)))
    assert "it holds more than 10 files" in refusal(path, target)


def test_header_that_claims_gigabytes_is_refused(tmp_path, target):
    info = member("x", tarfile.GNUTYPE_LONGNAME, size=1 << 32)
    (tmp_path / "bad.tar").write_bytes(info.tobuf(tarfile.GNU_FORMAT) + bytes(10_240))
    assert "a header claims 4,294,967,296 bytes" in refusal(tmp_path / "bad.tar", target)


def test_name_of_any_length_is_refused(tmp_path, target):
    path = tar(tmp_path / "a.tar", (member("x" * 300), b"x"))
    assert refusal(path, target).startswith(f"not unpacked: the name '{'x' * 40}'… is too long")


def test_encrypted_zip_is_refused(tmp_path, target):
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
        archive.writestr("x", "x")
    content = bytearray((tmp_path / "a.zip").read_bytes())
    content[6] |= 1
    content[content.index(b"PK\x01\x02") + 8] |= 1
    (tmp_path / "a.zip").write_bytes(content)
    assert "'x' is encrypted" in refusal(tmp_path / "a.zip", target)


def test_zip_member_larger_than_it_says_is_refused(tmp_path, target):
    with zipfile.ZipFile(tmp_path / "a.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("x", "x" * 1000)
    content = bytearray((tmp_path / "a.zip").read_bytes())
    at = content.index(b"PK\x01\x02")
    content[at + 24 : at + 28] = (10).to_bytes(4, "little")
    (tmp_path / "a.zip").write_bytes(content)
    assert refusal(tmp_path / "a.zip", target).startswith("damaged: ")


@pytest.mark.parametrize(
    "content", [b"", b"<html>", bytes(5000), b"\x1f\x8b\x08rubbish", b"PK\x03\x04"]
)
def test_what_is_no_archive_is_named(tmp_path, target, content):
    (tmp_path / "a.tar").write_bytes(content)
    try:
        unpack(tmp_path / "a.tar", target)
    except CorruptArtifactError as error:
        assert str(error).startswith(f"archive {tmp_path / 'a.tar'} is damaged: ")  # noqa: PT017 - the same
    else:
        # Nothing but zeros is an archive without members.
        assert content == bytes(5000)
        assert files(target) == {}


@pytest.mark.parametrize("mode", ["w", "w:gz", "w:bz2", "w:xz"])
def test_archive_cut_short_leaves_nothing(tmp_path, target, mode):
    content = np.random.default_rng(0).bytes(50_000)
    path = tar(tmp_path / "a", (member("x"), content), mode=mode)
    path.write_bytes(path.read_bytes()[:30_000])
    assert refusal(path, target).startswith(("damaged: ", "not unpacked: 'x' ends"))


def test_full_disk_is_no_fault_of_the_archive(tmp_path, target, monkeypatch):
    def full(*_arguments):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(MODULE, "_copy", full)
    with pytest.raises(OSError, match="No space left"):
        unpack(tar(tmp_path / "a.tar", (member("x"), b"x")), target)
    assert list(target.parent.iterdir()) == []


def test_entries_are_read_without_unpacking(tmp_path):
    path = tar(tmp_path / "a.tar", (member("d", tarfile.DIRTYPE), b""), (member("d/x"), b"x"))
    with damage_is_told(path):
        read = [(e.name, e.stream.read() if e.stream else None) for e in entries(path)]
    assert read == [("d", None), ("d/x", b"x")]
    assert [p.name for p in tmp_path.iterdir() if p.is_dir() and p.name != "store"] == []
