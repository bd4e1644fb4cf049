"""A certificate authority of the tests."""

from __future__ import annotations

import datetime as dt
import ssl
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID


class Authority:
    """A certificate authority of the test."""

    def __init__(self, folder: Path, name: str = "test authority") -> None:
        folder.mkdir(exist_ok=True)
        self.folder = folder
        self.key = ec.generate_private_key(ec.SECP256R1())
        self.name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
        self.certificate = self._sign(self.name, self.key.public_key(), authority=True)
        self.file = folder / "ca.pem"
        self.file.write_bytes(self.certificate.public_bytes(serialization.Encoding.PEM))

    def _sign(self, name, public_key, *, authority, names=(), age=0):
        now = dt.datetime.now(dt.timezone.utc) - dt.timedelta(hours=age)
        builder = (
            x509.CertificateBuilder()
            .subject_name(name)
            .issuer_name(self.name)
            .public_key(public_key)
            .serial_number(x509.random_serial_number())
            .not_valid_before(now - dt.timedelta(minutes=5))
            .not_valid_after(now + dt.timedelta(hours=1))
            .add_extension(x509.BasicConstraints(ca=authority, path_length=None), critical=True)
            .add_extension(x509.SubjectAlternativeName([x509.DNSName("localhost"), *names]), critical=False)
        )
        return builder.sign(self.key, hashes.SHA256())

    def furnish(self, rig, *, client_ca=False):
        """Give a rig's door a certificate for localhost; returns what `issue` does."""
        cert, key, serial = self.issue("server")
        asked = {"client_ca": str(self.file)} if client_ca else {}
        rig.write_config(tls={"cert": str(cert), "key": str(key), **asked})
        return cert, key, serial

    def issue(self, name: str, *more: x509.GeneralName, age: int = 0) -> tuple[Path, Path, int]:
        """Write a certificate that is good for an hour, and its key; returns their paths and its number.

        Args:
            name: Its common name, and that of the files.
            more: Alternative names besides localhost.
            age: Hours ago.
        """
        key = ec.generate_private_key(ec.SECP256R1())
        subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
        certificate = self._sign(
            subject, key.public_key(), authority=False, names=(x509.DNSName("localhost"), *more), age=age
        )
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
