"""TLS at the door: the certificate, client certificates, and a new certificate at a reload."""

from __future__ import annotations

import signal

import httpx
import pytest
from cryptography import x509

from tests.proxy.authority import Authority, context_of
from tests.proxy.rig import KEYS
from tests.support import eventually


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
