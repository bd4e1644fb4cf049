"""Several listeners, with TLS and without; a trusted proxy before this one; what the log makes of both."""

from __future__ import annotations

import json
import ssl

import httpx

from tests.proxy.authority import Authority
from tests.proxy.rig import KEYS
from tests.support import eventually, free_port

HEADERS = {"authorization": f"Bearer {KEYS['use']}", "x-forwarded-for": "203.0.113.9"}


def test_listeners_with_tls_and_without(make_rig, tmp_path):
    """TLS is for every TCP listener, and a Unix socket beside them is plain; all serve the same."""
    authority = Authority(tmp_path)
    cert, key, _ = authority.issue("server")
    rig = make_rig()
    other, path = free_port(), str(tmp_path / "door")
    rig.write_config(
        listen=[f"127.0.0.1:{rig.port}", f"127.0.0.1:{other}", f"unix:{path}"],
        tls={"cert": str(cert), "key": str(key)},
        forwarding={"trusted_proxies": ["unix"], "via": "drover"},
    )
    rig.start()
    context = ssl.create_default_context(cafile=str(authority.file))
    with httpx.Client(verify=context, headers=HEADERS, trust_env=False) as client:
        answers = [client.get(f"https://localhost:{port}/api/version") for port in (rig.port, other)]
    with httpx.Client(transport=httpx.HTTPTransport(uds=path), headers=HEADERS) as client:
        answers.append(client.get("http://localhost/api/version"))

    assert [answer.status_code for answer in answers] == [200, 200, 200]
    assert {answer.headers["via"] for answer in answers} == {"1.1 drover"}
    eventually(lambda: len(rig.lines("access")) == 3)
    assert [line["client"] for line in rig.lines("access")] == ["127.0.0.1", "127.0.0.1", "203.0.113.9"]


def test_only_what_a_trusted_proxy_says_is_believed(make_rig):
    """The log names the client that a trusted proxy named, and no other client can name itself."""
    rig = make_rig()
    rig.write_config(forwarding={"trusted_proxies": ["192.0.2.0/24"]})
    rig.start()
    with rig.http() as client:
        assert client.get("/api/version", headers=HEADERS).status_code == 200
    eventually(lambda: rig.lines("access"))
    assert rig.lines("access")[0]["client"] == "127.0.0.1"
    assert "203.0.113.9" not in json.dumps(rig.lines("access"))
