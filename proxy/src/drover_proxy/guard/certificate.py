"""How an entry of the keys file names a client certificate.

    sha256:<hex>     the certificate itself, and no other
    uri:spiffe://... dns:host.example  email:ann@example   one of its alternative names
    cn:ann           its common name

Names count exactly as written, and only from certificates that TLS has checked against tls.client_ca;
wire/certificate.py reads them.
"""

from __future__ import annotations

import re

FORMS = "sha256:<64 hex digits>, cn:NAME, dns:NAME, uri:URI or email:ADDRESS"


def read_identity(text: str) -> str:
    """Return an entry's certificate in the one form that is compared; ValueError says what is wrong."""
    kind, _, name = text.partition(":")
    kind = kind.strip().lower()
    name = name.strip()
    if kind == "sha256":
        digest = name.replace(":", "").lower()
        if not re.fullmatch(r"[0-9a-f]{64}", digest):
            raise ValueError("expected the SHA-256 of the certificate, 64 hex digits with or without colons")
        return f"sha256:{digest}"
    if kind not in {"cn", "dns", "uri", "email"} or not name:
        raise ValueError(f"expected {FORMS}")
    if "*" in name:
        raise ValueError("a certificate is named exactly: no patterns")
    return f"{kind}:{name.lower() if kind == 'dns' else name}"
