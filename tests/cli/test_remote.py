"""``ood score``, ``train`` and ``predict`` on images of servers."""

import csv
import io
import json
import tarfile
import zipfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from oodcli.remote import files, transport
from oodcli.remote.files import use_cache
from tests.support.cli import Ood, flat, tree
from tests.support.server import Server, serving

pytest.importorskip("fsspec", reason="remote files need the extra oodcli[remote]")
pytest.importorskip("aiohttp", reason="remote files need the extra oodcli[remote]")

SECRET = "s3cret"  # noqa: S105 - of no one


@pytest.fixture
def odd(tmp_path: Path) -> Path:
    """Return a folder of seven images."""
    return flat(tmp_path / "odd")


@pytest.fixture
def content(odd: Path) -> dict[str, bytes]:
    """Return the seven images in several layouts, by path."""
    images = {path.name: path.read_bytes() for path in sorted(odd.iterdir())}
    found = {f"odd/{name}": each for name, each in images.items()}
    zipped, tarred = io.BytesIO(), io.BytesIO()
    with zipfile.ZipFile(zipped, "w") as archive, tarfile.open(fileobj=tarred, mode="w") as other:
        for name, each in images.items():
            archive.writestr(name, each)
            info = tarfile.TarInfo(name)
            info.size = len(each)
            other.addfile(info, io.BytesIO(each))
    found |= {"odd.zip": zipped.getvalue(), "odd.tar": tarred.getvalue()}
    found["odd.csv"] = "\n".join(["path", *(f"odd/{name}" for name in images)]).encode()
    try:
        import pyarrow as pa
        from pyarrow import parquet
    except ImportError:
        return found
    stream = io.BytesIO()
    parquet.write_table(pa.table({"image": list(images.values())}), stream)
    return found | {"odd.parquet": stream.getvalue()}


@pytest.fixture
def server(content: dict[str, bytes], monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    monkeypatch.setattr(transport, "WAIT_S", 0.001)
    with serving(b"") as running:
        running.files = {f"/{name}": each for name, each in content.items()}
        yield running
    use_cache(None)


@pytest.fixture
def bucket(content: dict[str, bytes], monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """Return the address of a bucket of an S3 server."""
    pytest.importorskip("s3fs", reason="s3:// addresses need s3fs")
    moto = pytest.importorskip("moto.server", reason="the S3 server of these tests is moto")
    import boto3

    running = moto.ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    running.start()
    host, port = running.get_host_and_port()
    for name, value in {
        "AWS_ACCESS_KEY_ID": "k",
        "AWS_SECRET_ACCESS_KEY": SECRET,
        "AWS_DEFAULT_REGION": "us-east-1",
        "AWS_ENDPOINT_URL": f"http://{host}:{port}",
    }.items():
        monkeypatch.setenv(name, value)
    client = boto3.client("s3")
    client.create_bucket(Bucket="bucket")
    for name, each in content.items():
        client.put_object(Bucket="bucket", Key=name, Body=each)
    monkeypatch.setattr(files, "_door", None)
    yield "s3://bucket"
    running.stop()


def test_scores_are_the_same_to_the_bit_and_no_pass_is_run_twice(  # noqa: PLR0917
    ood: Ood, tiny: Path, odd: Path, server: Server, bucket: str, tmp_path: Path
) -> None:
    forms = [name for name in ("odd.zip", "odd.tar", "odd.csv", "odd.parquet")
             if f"/{name}" in server.files]  # fmt: skip
    sets = {f"web-{n}": f"{server.root}/{form}" for n, form in enumerate(forms)}
    sets |= {f"s3-{n}": f"{bucket}/{form}" for n, form in enumerate([*forms, "odd"])}
    options = [part for name, place in sets.items() for part in ("--ood", f"{name}={place}")]
    code, out, err = ood(
        "score", "--method", "msp", "--ood", f"disk={odd}", *options, "--format", "json",
        "--export", tmp_path / "scores.npz",
    )  # fmt: skip
    assert code == 0, err
    computed = {each["dataset"]: each["computed"] for each in json.loads(out)["passes"]}
    assert {name: computed[name] for name in ("disk", *sets)} == {"disk": 7} | dict.fromkeys(
        sets, 0
    )
    with np.load(tmp_path / "scores.npz") as scores:
        wanted = scores["msp/disk"]
        assert len(wanted) == 7
        for name in sets:
            assert np.array_equal(scores[f"msp/{name}"], wanted), name


def test_credentials_are_in_no_output_and_nowhere_in_the_store(
    ood: Ood, server: Server, tmp_path: Path
) -> None:
    images = tree(tmp_path / "colours", n=4)
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w") as archive:
        for path in sorted(images.rglob("*.png")):
            archive.write(path, path.relative_to(images))
    server.files["/colours.zip"] = stream.getvalue()
    server.query = f"?X-Amz-Signature={SECRET}"
    where = server.root.replace("//", f"//ann:{SECRET}@")
    said = []
    lines = (
        ("train", "--data", f"{where}/colours.zip?X-Amz-Signature={SECRET}", "--arch",
         "resnet18:width=2", "--epochs", 1, "--name", "tiny"),
        ("score", "--method", "msp", "--ood", f"{where}/odd.csv?X-Amz-Signature={SECRET}"),
        ("predict", f"{where}/odd.zip?X-Amz-Signature={SECRET}", "--format", "csv"),
        ("report", "--format", "json"),
        ("runs", "show", "tiny"),
        ("datasets", "add", "odd", f"{where}/odd.csv?X-Amz-Signature={SECRET}"),
        ("datasets", "list", "--format", "json"),
    )  # fmt: skip
    for line in lines:
        code, out, err = ood(*line)
        assert code == 0, (line, err)
        said += [out, err]
        if line[0] == "predict":
            rows = list(csv.DictReader(io.StringIO(out)))
            assert [row["path"] for row in rows] == [
                f"{server.root}/odd.zip/{n}.png" for n in range(7)
            ]
    server.query = "another"
    code, out, err = ood("score", "--method", "msp", "--ood", f"{where}/odd.tar?s={SECRET}")
    assert code == 1
    assert err.splitlines()[-1] == (
        f"error: cannot read {server.root}/odd.tar: the server answers 403 Forbidden; give "
        "credentials that may read it: ood help data"
    )
    assert SECRET not in "".join([*said, out, err])
    stored = [path for path in (tmp_path / "store").rglob("*") if path.is_file()]
    assert any("remote" in path.parts for path in stored)
    assert not [path for path in stored if SECRET.encode() in path.read_bytes()]


def test_a_server_that_goes_away_stops_predict_with_a_line_and_it_resumes(
    ood: Ood, tiny: Path, server: Server, tmp_path: Path
) -> None:
    for n in range(200):
        server.files[f"/n/{n}.png"] = server.files[f"/odd/{n % 7}.png"]
    server.files["/many.csv"] = "\n".join(["path", *(f"n/{n}.png" for n in range(200))]).encode()
    line = ("predict", f"{server.root}/many.csv", "--method", "msp", "--output", tmp_path / "v.csv")
    answered = Server.refusal

    def closing(self: Server, path: str, authorization: str | None) -> int | None:
        if path == "/n/150.png":
            self.server_close()
            raise ConnectionAbortedError
        return answered(self, path, authorization)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Server, "refusal", closing)
        code, _, err = ood(*line)
    assert code == 1
    assert err.splitlines()[-1].startswith(f"error: cannot read {server.root}/n/")
    assert err.splitlines()[-1].endswith("run the same command again, which resumes")
    before = (tmp_path / "v.csv").read_text().splitlines()
    assert 0 < len(before) - 1 <= 150
    with serving(b"", port=server.server_port) as again:
        again.files = server.files
        code, _, err = ood(*line)
    assert code == 0, err
    after = (tmp_path / "v.csv").read_text().splitlines()
    assert after[: len(before)] == before
    assert [row.partition(",")[0] for row in after[1:]] == [
        f"{server.root}/many.csv:{n + 2}" for n in range(200)
    ]


def test_python_reads_addresses_and_shows_no_credentials(
    ood: Ood, tiny: Path, server: Server, tmp_path: Path
) -> None:
    from oodcli import load_run
    from oodcli.errors import OodError

    server.query = f"?sig={SECRET}"
    where = server.root.replace("//", f"//ann:{SECRET}@")
    run = load_run("tiny")
    run.score(method="msp", ood={"odd": f"{where}/odd.zip?sig={SECRET}"})
    detector = run.detector("msp")
    remote = detector.predict([f"{where}/odd/3.png?sig={SECRET}"])
    local = detector.predict([server.files["/odd/3.png"]])
    assert remote.score == local.score
    for bad in ("none.png", "odd/4.png"):
        server.query = SECRET if bad == "none.png" else "another"
        with pytest.raises(OodError) as caught:
            detector.predict([f"{where}/{bad}?sig={SECRET}"])
        assert f"{server.root}/{bad}" in str(caught.value)
        assert SECRET not in str(caught.value)
    stored = [path for path in (tmp_path / "store").rglob("*") if path.is_file()]
    assert not [path for path in stored if SECRET.encode() in path.read_bytes()]
