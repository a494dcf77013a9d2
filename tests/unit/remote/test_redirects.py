"""Redirects of web servers: to https, without credentials, and to nothing else."""

import io
import ipaddress
import ssl
import zipfile
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from threading import Thread

import pytest
from PIL import Image

from oodcli.data.opening import open_dataset
from oodcli.errors import OodError
from oodcli.remote.files import use_cache
from oodcli.store.store import Store
from tests.support.server import Server, serving

pytest.importorskip("aiohttp", reason="remote files need the extra oodcli[remote]")


@pytest.fixture
def server() -> Iterator[Server]:
    """Return a server of an archive of three images."""
    content = io.BytesIO()
    with zipfile.ZipFile(content, "w") as archive:
        for n in range(3):
            image = io.BytesIO()
            Image.new("RGB", (4, 4), (80 * n, 0, 0)).save(image, "PNG")
            archive.writestr(f"{n}.png", image.getvalue())
    with serving(b"") as running:
        running.files = {"/photos.zip": content.getvalue()}
        yield running
    use_cache(None)


def certificate(folder: Path) -> Path:
    """Write a key and a certificate of 127.0.0.1, signed by itself."""
    x509 = pytest.importorskip("cryptography.x509")
    from cryptography.hazmat.primitives import hashes, serialization
    from cryptography.hazmat.primitives.asymmetric import ec

    key, now = ec.generate_private_key(ec.SECP256R1()), datetime.now(UTC)
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "127.0.0.1")])
    address = x509.IPAddress(ipaddress.ip_address("127.0.0.1"))
    signed = (
        x509.CertificateBuilder(name, name, key.public_key(), x509.random_serial_number())
        .not_valid_before(now - timedelta(days=1))
        .not_valid_after(now + timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName([address]), critical=False)
        .sign(key, hashes.SHA256())
    )
    encoding, plain = serialization.Encoding.PEM, serialization.NoEncryption()
    form = serialization.PrivateFormat.PKCS8
    path = folder / "server.pem"
    path.write_bytes(key.private_bytes(encoding, form, plain) + signed.public_bytes(encoding))
    return path


def test_redirects_lead_from_http_to_https_without_credentials_and_not_back(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pem, store = certificate(tmp_path), Store(tmp_path / "store")
    trusting = ssl.create_default_context(cafile=str(pem))
    monkeypatch.setattr("aiohttp.connector._SSL_CONTEXT_VERIFIED", trusting)
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.load_cert_chain(pem)
    seen: list[str | None] = []

    class Recording(Server):
        def refusal(self, path: str, authorization: str | None) -> int | None:
            seen.append(authorization)
            return super().refusal(path, authorization)

    with Recording(b"") as secure:
        secure.files = dict(server.files)
        secure.socket = context.wrap_socket(secure.socket, server_side=True)
        Thread(target=secure.serve_forever).start()
        root = secure.root.replace("http:", "https:")
        server.redirects_to = f"{root}/photos.zip"
        given = f"{server.root.replace('//', '//ann:s3cret@')}/photos.zip"
        use_cache(None)
        assert len(open_dataset(given, store, role="ood").ood_part) == 3
        assert set(seen) == {None}
        server.redirects_to = ""
        secure.redirects_to = f"{server.root}/photos.zip"
        use_cache(None)
        with pytest.raises(OodError) as caught:
            open_dataset(f"{root}/photos.zip", store, role="ood")
        assert str(caught.value) == (
            f"cannot read {root}/photos.zip: it redirects to {server.root}/photos.zip, which has "
            "another scheme; give that address"
        )
        secure.shutdown()
