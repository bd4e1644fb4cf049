"""TLS at the door: the certificate, client certificates, and a new certificate at a reload."""

from __future__ import annotations

import http.client
import signal
import socket
import ssl
import warnings

import httpx
import pytest
from cryptography import x509

from tests.proxy.authority import Authority, context_of
from tests.proxy.rig import KEYS
from tests.support import eventually


def serial_of(rig, authority):
    """Return the serial number of the certificate that the door shows."""
    with (
        socket.create_connection(("127.0.0.1", rig.port), timeout=5) as plain,
        context_of(authority).wrap_socket(plain, server_hostname="localhost") as secure,
    ):
        return x509.load_der_x509_certificate(secure.getpeercert(binary_form=True)).serial_number


def test_tls_and_a_new_certificate_at_a_reload(make_rig, tmp_path):
    """The door speaks TLS; after SIGHUP it shows the new certificate, without a restart."""
    authority = Authority(tmp_path)
    rig = make_rig()
    *_, serial = authority.furnish(rig)
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
    """Who shows no certificate of client_ca that is good today doesn't get in; the key is asked for too."""
    authority = Authority(tmp_path)
    client = authority.issue("client")
    rig = make_rig()
    authority.furnish(rig, client_ca=True)
    rig.start()
    url = f"https://localhost:{rig.port}/api/tags"
    folder = tmp_path / "another"
    folder.mkdir()
    strangers = [None, authority.issue("expired", age=2), Authority(folder, "another").issue("client")]
    for stranger in strangers:
        with (
            pytest.raises(httpx.TransportError),
            httpx.Client(verify=context_of(authority, stranger), trust_env=False) as nobody,
        ):
            nobody.get(url, headers={"x-api-key": KEYS["use"]})
    with httpx.Client(verify=context_of(authority, client), trust_env=False) as known:
        assert known.get(url).status_code == 401
        assert known.get(url, headers={"x-api-key": KEYS["use"]}).status_code == 200


def agreed(rig, authority, *, version=None, alpn=()):
    """Shake hands; return the version and the protocol that were agreed on."""
    context = context_of(authority)
    if version:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)  # of TLS 1.1, which is the point
            context.minimum_version = context.maximum_version = version
        context.set_ciphers("ALL:@SECLEVEL=0")
    if alpn:
        context.set_alpn_protocols(list(alpn))
    with (
        socket.create_connection(("127.0.0.1", rig.port), timeout=5) as plain,
        context.wrap_socket(plain, server_hostname="localhost") as secure,
    ):
        return secure.version(), secure.selected_alpn_protocol()


def test_versions_and_protocols(make_rig, tmp_path):
    """TLS 1.2 and 1.3 and no older one; by ALPN it is http/1.1, whatever else is offered."""
    authority = Authority(tmp_path)
    rig = make_rig()
    authority.furnish(rig)
    rig.start()
    assert agreed(rig, authority, version=ssl.TLSVersion.TLSv1_2)[0] == "TLSv1.2"
    assert agreed(rig, authority, version=ssl.TLSVersion.TLSv1_3)[0] == "TLSv1.3"
    with pytest.raises((ssl.SSLError, ConnectionError)):
        agreed(rig, authority, version=ssl.TLSVersion.TLSv1_1)
    assert agreed(rig, authority, alpn=("h2", "http/1.1"))[1] == "http/1.1"
    assert agreed(rig, authority, alpn=("h2",))[1] is None
    assert agreed(rig, authority)[1] is None


def test_connections_outlive_a_new_certificate(make_rig, tmp_path):
    """What was under way with the old certificate goes on, and a broken new one changes nothing."""
    authority = Authority(tmp_path)
    rig = make_rig()
    cert, key, serial = authority.furnish(rig)
    rig.start()
    door = http.client.HTTPSConnection("localhost", rig.port, context=context_of(authority), timeout=10)
    assert ask(door) == 200
    socket_before = door.sock
    good, good_key = cert.read_bytes(), key.read_bytes()
    authority.issue("server")
    for broken, broken_key in ((b"no certificate", good_key), (cert.read_bytes(), good_key)):
        failures = len(rig.lines("reload_failed"))
        cert.write_bytes(broken)
        key.write_bytes(broken_key)
        rig.signal(signal.SIGHUP)
        eventually(lambda count=failures: len(rig.lines("reload_failed")) > count)
        assert serial_of(rig, authority) == serial
    cert.write_bytes(good)
    _, _, renewed = authority.issue("server")
    rig.signal(signal.SIGHUP)
    eventually(lambda: rig.lines("reloaded"))
    assert serial_of(rig, authority) == renewed
    assert ask(door) == 200
    assert door.sock is socket_before
    door.close()


def ask(door):
    """Ask over a connection that is kept; returns the status."""
    door.request("GET", "/api/version", headers={"authorization": f"Bearer {KEYS['use']}"})
    with door.getresponse() as answer:
        answer.read()
        return answer.status
