"""Authorities of clients change while the proxy runs: for new connections, whatever session they bring."""

from __future__ import annotations

import http.client
import signal
import socket
import ssl

import pytest

from tests.proxy.authority import Authority, context_of
from tests.proxy.rig import KEYS, Rig
from tests.support import eventually

REQUEST = f"GET /api/version HTTP/1.1\r\nHost: a\r\nAuthorization: Bearer {KEYS['use']}\r\n\r\n".encode()
METRIC = "drover_tls_last_reload_successful"


class Gate:
    """A rig that lets clients of some authorities in."""

    def __init__(self, rig: Rig, folder) -> None:
        self.rig = rig
        self.mine = Authority(folder / "mine")
        self.other = Authority(folder / "other", "another authority")
        self.file = folder / "client-ca.pem"
        self.trust(self.mine, self.other)
        cert, key, _ = self.mine.issue("server")
        self.tls = {"cert": str(cert), "key": str(key), "client_ca": str(self.file)}
        rig.write_config(tls=self.tls)
        rig.start()
        self.clients = {name: getattr(self, name).issue("client") for name in ("mine", "other")}

    def trust(self, *authorities: Authority) -> None:
        """Lay the file of authorities."""
        self.file.write_text("".join(one.file.read_text() for one in authorities))

    def context(self, name: str, version: ssl.TLSVersion = ssl.TLSVersion.TLSv1_3) -> ssl.SSLContext:
        """Return a client's context, which sessions are good for."""
        context = context_of(self.mine, self.clients[name])
        context.minimum_version = context.maximum_version = version
        return context

    def ask(self, context: ssl.SSLContext, session: ssl.SSLSession | None = None) -> ssl.SSLSocket | None:
        """Ask over a new connection; None when the certificate isn't taken."""
        plain = socket.create_connection(("127.0.0.1", self.rig.port), timeout=10)
        secure = context.wrap_socket(
            plain, server_hostname="localhost", session=session, do_handshake_on_connect=False
        )
        try:
            secure.do_handshake()
            secure.sendall(REQUEST)
            answer = secure.recv(65536)
        except (ssl.SSLError, ConnectionError):
            answer = b""
        if not answer:  # under TLS 1.3 a client learns only behind its handshake what came of it
            secure.close()
            return None
        assert answer.startswith(b"HTTP/1.1 200 "), answer
        return secure

    def admits(self, name: str) -> bool:
        """Whether a new connection of such a client is served."""
        asked = self.ask(self.context(name))
        if asked is not None:
            asked.close()
        return asked is not None


@pytest.fixture
def gate(make_rig, tmp_path):
    """A gate with two authorities."""
    return Gate(make_rig(), tmp_path)


@pytest.mark.parametrize("version", [ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3], ids=["1.2", "1.3"])
def test_a_removed_authority_lets_nobody_in(gate, version):
    """Without a signal; neither with a certificate of it, nor with a session from before."""
    other = gate.context("other", version)
    with gate.ask(other) as before:
        session = before.session
        with gate.ask(other, session) as resumed:
            assert resumed.session_reused, "else the rest of this shows nothing"
            session = resumed.session
        gate.trust(gate.mine)
        (line,) = eventually(lambda: gate.rig.lines("tls_reloaded"))
        assert line["authorities"] == 1
        assert gate.ask(other) is None
        assert gate.ask(other, session) is None
        assert gate.admits("mine")
        before.sendall(REQUEST)  # a connection that was open stays so
        assert before.recv(65536).startswith(b"HTTP/1.1 200 ")
    gate.trust(gate.mine, gate.other)
    eventually(lambda: gate.admits("other"))
    with gate.ask(other, session) as again:
        assert again.session_reused is False
    assert not gate.rig.lines("reloaded")
    line = gate.rig.lines("rejected")[0]
    assert (line["client"], line["message"]) == ("127.0.0.1", "certificate_verify_failed")
    assert "issuer" in line["why"]
    page = gate.rig.admin("/metrics").text
    assert 'drover_tls_handshakes_failed_total{reason="certificate_verify_failed"} ' in page


def test_authorities_at_a_signal(gate, tmp_path):
    """SIGHUP takes another file of authorities, or none at all, and says which keys have changed."""
    door = http.client.HTTPSConnection("localhost", gate.rig.port, context=gate.context("other"), timeout=10)
    assert ask(door) == 200
    kept = door.sock
    moved = tmp_path / "moved.pem"
    moved.write_text(gate.mine.file.read_text())
    gate.rig.write_config(tls=gate.tls | {"client_ca": str(moved)})
    reload(gate.rig, ["tls.client_ca"])
    assert not gate.admits("other")
    assert ask(door) == 200
    assert door.sock is kept
    door.close()
    del gate.tls["client_ca"]
    gate.rig.write_config(tls=gate.tls)
    reload(gate.rig, ["tls.client_ca"])
    assert gate.admits("other")
    gate.rig.write_config()
    gate.rig.signal(signal.SIGHUP)
    assert eventually(lambda: gate.rig.lines("reload_needs_restart"))[0]["key"] == "tls"
    assert gate.admits("other"), "TLS goes on"


def reload(rig, changed):
    """Reload, and see what is said to have changed."""
    count = len(rig.lines("reloaded"))
    rig.signal(signal.SIGHUP)
    eventually(lambda: len(rig.lines("reloaded")) > count)
    assert rig.lines("reloaded")[-1]["changed"] == changed


def test_a_broken_file_keeps_the_last_good_one(gate):
    """Cut short, empty, or gone: who came in still does, and the log and a metric say what is wrong."""
    whole = gate.file.read_text()
    for count, broken in enumerate((whole[:-30], "", None), start=1):
        if broken is None:
            gate.file.unlink()
        else:
            gate.file.write_text(broken)
        eventually(lambda count=count: len(gate.rig.lines("tls_reload_failed")) == count)
        assert "tls.client_ca" in gate.rig.lines("tls_reload_failed")[-1]["problems"][0]
        assert gate.admits("other")
        assert f"{METRIC} 0.0" in gate.rig.admin("/metrics").text
    gate.rig.signal(signal.SIGHUP)
    eventually(lambda: gate.rig.lines("reload_failed"))
    assert gate.admits("other")
    gate.file.write_text(whole)
    eventually(lambda: f"{METRIC} 1.0" in gate.rig.admin("/metrics").text)
    assert gate.admits("other")


def test_a_certificate_and_its_key_may_come_one_after_the_other(gate):
    """A new certificate beside the old key changes nothing; with its key it counts, without a signal."""
    cert, key = (gate.mine.folder / f"server.{kind}" for kind in ("pem", "key"))
    old_key = key.read_bytes()
    _, _, serial = gate.mine.issue("server")
    new_key = key.read_bytes()
    key.write_bytes(old_key)
    eventually(lambda: gate.rig.lines("tls_reload_failed"))
    assert str(cert) in gate.rig.lines("tls_reload_failed")[0]["problems"][0] or gate.admits("mine")
    assert gate.admits("mine")
    key.write_bytes(new_key)
    eventually(lambda: gate.rig.lines("tls_reloaded"))
    with gate.ask(gate.context("mine")) as secure:
        assert int(secure.getpeercert()["serialNumber"], 16) == serial


def ask(door):
    """Ask over a connection that is kept; returns the status."""
    door.request("GET", "/api/version", headers={"authorization": f"Bearer {KEYS['use']}"})
    with door.getresponse() as answer:
        answer.read()
        return answer.status
