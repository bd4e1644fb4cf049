"""What a client's certificate says of its owner."""

from __future__ import annotations

import hashlib
import ssl
from typing import Any

ALTERNATIVE = {"URI": "uri", "DNS": "dns", "email": "email"}


def identities(tls: ssl.SSLObject | None) -> tuple[str, ...]:
    """Return by what names a connection's certificate may be known, the surest first; none without one."""
    if tls is None:
        return ()
    whole, shown = tls.getpeercert(binary_form=True), tls.getpeercert()
    if not whole or not shown:
        return ()
    found = [f"sha256:{hashlib.sha256(whole).hexdigest()}"]
    for item in shown.get("subjectAltName", ()):
        kind, name = str(item[0]), str(item[1])
        if kind in ALTERNATIVE:
            found.append(f"{ALTERNATIVE[kind]}:{name.lower() if kind == 'DNS' else name}")
    subject: Any = shown.get("subject", ())
    names = [value for part in subject for key, value in part if key == "commonName"]
    if len(names) == 1:  # of two, nobody could say which one counts
        found.append(f"cn:{names[0]}")
    return tuple(found)
