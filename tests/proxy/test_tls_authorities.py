"""Authorities of clients change while the proxy runs: for new connections, whatever session they bring."""

from __future__ import annotations

import contextlib
import json
import signal
import socket
import ssl
from dataclasses import dataclass

import pytest

from tests.proxy.authority import Authority, context_of
from tests.proxy.rig import KEYS, SMALL, Rig
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
    return Gate(make_rig(knobs={"answer_tokens": 400, "tokens_per_second": 50.0}), tmp_path)


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
        assert before.recv(65536) == b"", "a connection that was open isn't any more"
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
    before = gate.ask(gate.context("other"))
    moved = tmp_path / "moved.pem"
    moved.write_text(gate.mine.file.read_text())
    gate.rig.write_config(tls=gate.tls | {"client_ca": str(moved)})
    reload(gate.rig, ["tls.client_ca"])
    assert not gate.admits("other")
    assert before.recv(65536) == b""
    before.close()
    with gate.ask(gate.context("mine")) as before:
        del gate.tls["client_ca"]
        gate.rig.write_config(tls=gate.tls)
        reload(gate.rig, ["tls.client_ca"])
        assert gate.admits("other")
        assert before.recv(65536) == b"", "its name was vouched for by an authority that counts no more"
    gate.rig.write_config()
    gate.rig.signal(signal.SIGHUP)
    assert eventually(lambda: gate.rig.lines("reload_needs_restart"))[0]["key"] == "tls"
    with gate.ask(gate.context("other")) as before:  # TLS goes on
        gate.rig.write_config(tls=gate.tls | {"client_ca": str(moved)})
        reload(gate.rig, ["tls.client_ca"])
        assert before.recv(65536) == b"", "nobody had asked for its certificate"
    assert not gate.admits("other")


@dataclass
class Halfway:
    """A client in the middle of its handshake: what the server says has come, and is not answered yet."""

    gate: Gate
    name: str
    version: ssl.TLSVersion

    def __post_init__(self) -> None:
        self.read, self.written = ssl.MemoryBIO(), ssl.MemoryBIO()
        context = self.gate.context(self.name, self.version)
        self.tls = context.wrap_bio(self.read, self.written, server_hostname="localhost")
        self.sock = socket.create_connection(("127.0.0.1", self.gate.rig.port), timeout=10)
        with pytest.raises(ssl.SSLWantReadError):
            self.tls.do_handshake()
        self.sock.sendall(self.written.read())
        while not self.written.pending:  # until it has all that it needs for its own last part
            self.read.write(self.sock.recv(65536))
            with contextlib.suppress(ssl.SSLWantReadError):
                self.tls.do_handshake()

    def finish(self) -> bytes:
        """Shake hands to the end and ask; returns what is answered."""
        answer = b""
        with self.sock, contextlib.suppress(ConnectionError):
            while self.version is ssl.TLSVersion.TLSv1_2:
                self.sock.sendall(self.written.read())
                data = self.sock.recv(65536)
                if not data:
                    return b""
                self.read.write(data)
                with contextlib.suppress(ssl.SSLWantReadError):
                    self.tls.do_handshake()
                    break
            self.tls.write(REQUEST)
            self.sock.sendall(self.written.read())
            while data := self.sock.recv(65536):
                self.read.write(data)
                with contextlib.suppress(ssl.SSLWantReadError):
                    answer += self.tls.read(65536)
                    break
        return answer


@pytest.mark.parametrize("version", [ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3], ids=["1.2", "1.3"])
def test_a_handshake_under_way_counts_by_the_authorities_of_its_end(gate, version):
    """Nobody who began while an authority counted comes in after it was removed; an added one cuts nobody."""
    gate.trust(gate.other)
    eventually(lambda: gate.rig.lines("tls_reloaded"))
    kept = gate.ask(gate.context("other", version))
    early = Halfway(gate, "other", version)
    gate.trust(gate.mine, gate.other)
    eventually(lambda: len(gate.rig.lines("tls_reloaded")) == 2)
    assert early.finish().startswith(b"HTTP/1.1 200 ")
    kept.sendall(REQUEST)
    assert kept.recv(65536).startswith(b"HTTP/1.1 200 ")
    late = [Halfway(gate, "other", version) for _ in range(3)]
    gate.trust(gate.mine)
    eventually(lambda: len(gate.rig.lines("tls_reloaded")) == 3)
    answers = [one.finish() for one in late]
    assert answers == [b""] * len(late)
    assert kept.recv(65536) == b""
    kept.close()
    assert [line["connections"] for line in gate.rig.lines("tls_stricter")] == [0, 1]
    assert not [line for line in gate.rig.lines("access") if line["status"] != 200]


def test_an_answer_under_way_outlives_its_authority(gate):
    """It comes whole, and its connection takes no other request, also one that was sent already."""
    body = json.dumps({"model": SMALL, "prompt": "a", "options": {"num_predict": 200}}).encode()
    head = f"POST /api/generate HTTP/1.1\r\nHost: a\r\nAuthorization: Bearer {KEYS['use']}\r\n"
    request = f"{head}Content-Length: {len(body)}\r\n\r\n".encode() + body
    plain = socket.create_connection(("127.0.0.1", gate.rig.port), timeout=20)
    with gate.context("other").wrap_socket(plain, server_hostname="localhost") as secure:
        secure.sendall(request + request)
        answer = secure.recv(65536)
        while b'"done":false' not in answer:
            answer += secure.recv(65536)
        gate.trust(gate.mine)
        eventually(lambda: gate.rig.lines("tls_stricter"))
        assert b'"done":true' not in answer, "else the rest of this shows nothing"
        while data := secure.recv(65536):
            answer += data
    assert answer.count(b"HTTP/1.1 200 ") == 1
    assert answer.count(b'"done":true') == 1
    assert answer.endswith(b"0\r\n\r\n")


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
        failed = gate.rig.lines("tls_reload_failed")[-1]
        assert failed["file"] == str(gate.file)
        assert "tls.client_ca" in failed["problems"][0]
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
    assert gate.rig.lines("tls_reload_failed")[0]["file"] == f"{cert}, {key}"
    assert gate.admits("mine")
    key.write_bytes(new_key)
    eventually(lambda: gate.rig.lines("tls_reloaded"))
    with gate.ask(gate.context("mine")) as secure:
        assert int(secure.getpeercert()["serialNumber"], 16) == serial
