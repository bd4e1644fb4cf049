"""By what names a client's certificate may be known."""

from __future__ import annotations

import hashlib

import pytest
from drover_proxy.wire.certificate import identities

PRINT = f"sha256:{hashlib.sha256(b'der').hexdigest()}"


class Tls:
    """A connection's TLS, with what the ssl module says of the peer's certificate."""

    def __init__(self, shown, whole=b"der"):
        self.shown, self.whole = shown, whole

    def getpeercert(self, binary_form=False):
        """Give the certificate as the ssl module does."""
        return self.whole if binary_form else self.shown


@pytest.mark.parametrize(
    ("tls", "names"),
    [
        (None, ()),
        (Tls(None, None), ()),
        (Tls({}), ()),  # shown, but not checked
        (Tls({"subject": ((("commonName", "ann"),),)}), (PRINT, "cn:ann")),
        (Tls({"subject": ((("commonName", "ann"),), (("commonName", "root"),))}), (PRINT,)),
        (Tls({"subject": ((("commonName", "ann"), ("commonName", "root")),)}), (PRINT,)),
        (Tls({"subject": ((("organizationName", "x"),),)}), (PRINT,)),
        (
            Tls(
                {
                    "subject": ((("countryName", "CH"),), (("commonName", "Ann"),)),
                    "subjectAltName": (
                        ("DNS", "Worker7.Example"),
                        ("URI", "spiffe://Fleet/ci"),
                        ("email", "Ann@example"),
                        ("IP Address", "10.0.0.1"),
                        ("DirName", ((("commonName", "root"),),)),
                    ),
                }
            ),
            (PRINT, "dns:worker7.example", "uri:spiffe://Fleet/ci", "email:Ann@example", "cn:Ann"),
        ),
        (Tls({"subject": ((("commonName", "ann\0.evil"),),)}), (PRINT, "cn:ann\0.evil")),
    ],
)
def test_names_of_a_certificate(tls, names):
    """Itself first, then its alternative names, then its one common name; nothing that TLS didn't check."""
    assert identities(tls) == names
