"""Client certificates that stand for a caller of the keys file."""

from __future__ import annotations

import hashlib
import ssl

import httpx
import pytest
from cryptography import x509

from tests.proxy.authority import Authority, context_of
from tests.proxy.rig import KEYS, MIDDLE, SMALL
from tests.support import eventually


@pytest.fixture
def authority(tmp_path):
    """The authority that signs servers and clients alike."""
    return Authority(tmp_path)


@pytest.fixture
def door(make_rig, authority):
    """A rig whose door asks for client certificates; `entries` of certificates are in its keys file."""
    rig = make_rig()
    authority.furnish(rig, client_ca=True)
    return rig


def client_of(rig, authority, issued, **options):
    """Return a client that shows a certificate."""
    return httpx.Client(
        base_url=f"https://localhost:{rig.port}",
        verify=context_of(authority, issued),
        trust_env=False,
        timeout=30,
        **options,
    )


def fingerprint(issued):
    """Return a certificate's SHA-256 as `openssl x509 -fingerprint -sha256` prints it."""
    der = ssl.PEM_cert_to_DER_cert(issued[0].read_text())
    digest = hashlib.sha256(der).hexdigest().upper()
    return ":".join(digest[i : i + 2] for i in range(0, 64, 2))


def test_a_certificate_stands_for_its_entry(door, authority):
    """By itself, by an alternative name or by its common name; a key that is shown comes first."""
    pinned, named = authority.issue("pinned"), authority.issue("named")
    host = authority.issue("host", x509.DNSName("Worker7.example"))
    service = authority.issue("service", x509.UniformResourceIdentifier("spiffe://fleet/ci"))
    stranger = authority.issue("named ")
    door.write_keys(
        a={"name": "pinned", "certificate": f"sha256:{fingerprint(pinned)}"},
        b={"name": "named", "certificate": "cn:named", "models": [SMALL]},
        c={"name": "host", "certificate": "dns:worker7.example", "scopes": ["admin"]},
        d={"name": "service", "certificate": "uri:spiffe://fleet/ci"},
    )
    door.start()
    seen = {}
    for name, issued in {"pinned": pinned, "named": named, "host": host, "service": service}.items():
        with client_of(door, authority, issued) as client:
            seen[name] = [client.get("/api/tags").status_code for _ in range(2)]
            if name == "named":
                refused = client.post("/api/generate", json={"model": MIDDLE, "prompt": "x"})
                with_key = client.get("/api/tags", headers={"authorization": f"Bearer {KEYS['use']}"})
                with_dummy = client.get("/api/tags", headers={"authorization": "Bearer none"})
    with client_of(door, authority, stranger) as client:
        unknown = client.get("/api/tags")

    assert set(map(tuple, seen.values())) == {(200, 200)}
    assert (refused.status_code, refused.headers["x-drover-error"]) == (403, "model_not_allowed")
    assert len(with_key.json()["models"]) > len(with_dummy.json()["models"]) == 1
    assert unknown.status_code == 401
    lines = eventually(lambda: len(door.lines("access")) >= 12 and door.lines("access"))
    assert {line.get("key") for line in lines} == {"pinned", "named", "host", "service", "user", None}
    assert door.lines("rejected")[-1]["why"] == "certificate_unknown"


def test_a_revoked_certificate_is_out_on_an_open_connection(door, authority):
    """Who is taken out of the file is kept out from the next request on, without a new handshake."""
    issued = authority.issue("ann")
    door.write_keys(ann={"name": "ann", "certificate": "cn:ann"})
    door.start()
    with client_of(door, authority, issued) as client:
        assert client.get("/api/tags").status_code == 200
        door.write_keys()
        eventually(lambda: client.get("/api/tags").status_code == 401)


def test_a_certificate_of_another_authority_is_nobody(door, authority, tmp_path):
    """The same common name under an authority of somebody's own doesn't even get a connection."""
    door.write_keys(ann={"name": "ann", "certificate": "cn:ann"})
    door.start()
    (tmp_path / "other").mkdir()
    forged = Authority(tmp_path / "other").issue("ann")
    with pytest.raises(httpx.TransportError), client_of(door, authority, forged) as client:
        client.get("/api/tags")
