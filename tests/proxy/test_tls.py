"""TLS at the door: the certificate, client certificates, and a new certificate at a reload."""

from __future__ import annotations

import datetime as dt
import signal
import ssl
from pathlib import Path

import httpx
import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from tests.proxy.rig import KEYS
from tests.support import eventually


class Authority:
    """A certificate authority of the test."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.key = ec.generate_private_key(ec.SECP256R1())
        self.name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "test authority")])
        self.certificate = self._sign(self.name, self.key.public_key(), authority=True)
        self.file = folder / "ca.pem"
        self.file.write_bytes(self.certificate.public_bytes(serialization.Encoding.PEM))

    def _sign(self, name, public_key, *, authority):
        now = dt.datetime.now(dt.timezone.utc)
        builder = (
            x509.CertificateBuilder()
            .subject_name(name)
            .issuer_name(self.name)
            .public_key(public_key)
            .serial_number(x509.random_serial_number())
            .not_valid_before(now - dt.timedelta(minutes=5))
            .not_valid_after(now + dt.timedelta(hours=1))
            .add_extension(x509.BasicConstraints(ca=authority, path_length=None), critical=True)
            .add_extension(x509.SubjectAlternativeName([x509.DNSName("localhost")]), critical=False)
        )
        return builder.sign(self.key, hashes.SHA256())

    def issue(self, name: str) -> tuple[Path, Path, int]:
        """Write a certificate and its key; returns their paths and the serial number."""
        key = ec.generate_private_key(ec.SECP256R1())
        subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
        certificate = self._sign(subject, key.public_key(), authority=False)
        cert_file, key_file = self.folder / f"{name}.pem", self.folder / f"{name}.key"
        cert_file.write_bytes(certificate.public_bytes(serialization.Encoding.PEM))
        key_file.write_bytes(
            key.private_bytes(
                serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
            )
        )
        return cert_file, key_file, certificate.serial_number


def context_of(authority, client=None):
    """Return a client's TLS context."""
    context = ssl.create_default_context(cafile=str(authority.file))
    if client:
        context.load_cert_chain(*map(str, client[:2]))
    return context


def serial_of(rig, authority):
    """Return the serial number of the certificate that the door shows."""
    import socket

    with (
        socket.create_connection(("127.0.0.1", rig.port), timeout=5) as plain,
        context_of(authority).wrap_socket(plain, server_hostname="localhost") as secure,
    ):
        return x509.load_der_x509_certificate(secure.getpeercert(binary_form=True)).serial_number


def test_tls_and_a_new_certificate_at_a_reload(make_rig, tmp_path):
    """The door speaks TLS; after SIGHUP it shows the new certificate, without a restart."""
    authority = Authority(tmp_path)
    cert, key, serial = authority.issue("server")
    rig = make_rig()
    rig.write_config(tls={"cert": str(cert), "key": str(key)})
    rig.start()
    headers = {"authorization": f"Bearer {KEYS['use']}"}
    with httpx.Client(verify=context_of(authority), headers=headers, trust_env=False) as client:
        answer = client.get(f"https://localhost:{rig.port}/api/tags")

    assert answer.status_code == 200
    assert serial_of(rig, authority) == serial
    _, _, renewed = authority.issue("server")
    rig.signal(signal.SIGHUP)
    eventually(lambda: rig.lines("reloaded"))
    assert serial_of(rig, authority) == renewed


def test_mutual_tls(make_rig, tmp_path):
    """With client_ca, who shows no certificate of that authority doesn't get in; the key is asked for too."""
    authority = Authority(tmp_path)
    cert, key, _ = authority.issue("server")
    client = authority.issue("client")
    rig = make_rig()
    rig.write_config(tls={"cert": str(cert), "key": str(key), "client_ca": str(authority.file)})
    rig.start()
    url = f"https://localhost:{rig.port}/api/tags"
    with (
        pytest.raises(httpx.TransportError),
        httpx.Client(verify=context_of(authority), trust_env=False) as nobody,
    ):
        nobody.get(url)
    with httpx.Client(verify=context_of(authority, client), trust_env=False) as known:
        assert known.get(url).status_code == 401
        assert known.get(url, headers={"x-api-key": KEYS["use"]}).status_code == 200
