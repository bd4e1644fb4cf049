"""The rules of the door go by the path: what isn't an exact known route is never forwarded."""

from __future__ import annotations

import itertools
import json
import socket
from collections.abc import Iterator

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.proxy.rig import KEYS, SMALL, Rig
from tests.proxy.signer import Signer
from tests.proxy.tap import Tap
from tests.support import eventually

numbers = itertools.count(1)
DIGEST = "a" * 64
KNOWN = {
    "/", "/metrics", "/api/version", "/api/tags", "/api/ps", "/api/show", "/api/generate", "/api/chat",
    "/api/embed", "/api/embeddings", "/api/pull", "/api/push", "/api/create", "/api/delete", "/api/copy",
    "/api/me", "/api/signout", "/api/experimental/web_search", "/api/experimental/web_fetch",
    "/api/experimental/model-recommendations", "/api/status", "/v1/chat/completions", "/v1/completions",
    "/v1/embeddings", "/v1/responses", "/v1/models", "/v1/messages",
}  # fmt: skip
"""Written down a second time: a route that is added has to be thought of here too."""


@pytest.fixture(scope="module")
def tapped(tmp_path_factory, nvml) -> Iterator[tuple[Rig, Tap]]:
    """A running rig, and the tap between its proxy and its instance."""
    rig = Rig(tmp_path_factory.mktemp("rig"), nvml, slots=2)
    tap = Tap(rig.instance_ports[0])
    try:
        rig.start_instance(0)
        url = f"http://127.0.0.1:{tap.port}"
        rig.write_config(instances=[{"name": "gpu0", "url": url, "gpus": ["GPU-0"], "slots": 2}])
        rig.start_proxy()
        yield rig, tap
    finally:
        rig.stop()
        tap.close()


def ask(tapped, method, target, *, key="use", body=b""):
    """Send a request line as it stands; return the status, the answer, and whether the instance saw it."""
    rig, tap = tapped
    marker = f"marker-{next(numbers):06d}".encode()
    head = b"%b %b HTTP/1.1\r\nHost: x\r\nX-Marker: %b\r\nConnection: close\r\n" % (method, target, marker)
    head += b"Authorization: Bearer %b\r\nContent-Length: %d\r\n\r\n" % (KEYS[key].encode(), len(body))
    with socket.create_connection(("127.0.0.1", rig.port), timeout=20) as client:
        client.sendall(head + body)
        try:
            answer = b"".join(iter(lambda: client.recv(65536), b""))
        except ConnectionResetError:
            answer = b""
    status = int(answer[9:12]) if answer.startswith(b"HTTP/1.1 ") else 0
    return status, answer, marker in tap.seen


def test_the_tap_sees_what_is_forwarded(tapped):
    """A known route does reach the instance, marker and all: else the others would prove nothing."""
    status, _, seen = ask(tapped, b"GET", b"/api/version")
    assert (status, seen) == (200, True)


def test_nothing_that_lets_in_is_forwarded(tapped):
    """Neither a key nor a signature, nor the time in the query that goes with one, reaches the instance."""
    rig, tap = tapped
    signer = Signer()
    rig.write_keys(ann={"name": "ann", "ssh": signer.line})
    eventually(lambda: rig.lines("keys_reloaded"))
    before = len(tap.seen)
    with rig.http(None) as http:
        assert (
            signer.send(http, "GET", "/api/version", headers_too={"x-api-key": KEYS["use"]}).status_code
            == 200
        )
        chat = {"model": SMALL, "messages": [{"role": "user", "content": "x"}], "stream": False}
        assert signer.send(http, "POST", "/api/chat", json=chat).status_code == 200
    sent = tap.seen[before:].lower()

    assert b"/api/version http/1.1" in sent
    assert b"/api/chat http/1.1" in sent
    for secret in (b"?ts=", b"authorization", b"x-api-key", b"drv_", signer.line.split()[1].lower().encode()):
        assert secret not in sent


WALKS = [
    "//api/delete", "/api//delete", "/api/delete/", "/api/delete//", "/./api/delete", "/api/./delete",
    "/api/tags/../delete", "/api/../api/delete", "/../api/delete", "/api/delete/.", "/api/delete/x/..",
    "/api/%2e%2e/api/delete", "/api/%2e/delete", "/api%2fdelete", "/api%2Fdelete", "/%2fapi/delete",
    "/%61pi/delete", "/api/d%65lete", "/api/delete%20", "/api/delete%00", "/api/delete%0a", "/api/delete%3f",
    "/api/delete%23", "/api/delete;x=1", "/api;x/delete", "/;/api/delete", "/api/delete,", "/API/DELETE",
    "/api/Delete", "/Api/delete", "/api\\delete", "/api/delete\\", "/api/tags/..%2fdelete",
    "/api/tags/..;/delete", "/api/tags%2f..%2fdelete", "/api/%c0%ae%c0%ae/delete", "/api/del%65te?x=1",
    "api/delete", "*", "/api/delete%E2%80%8B", "http://x//api/delete", "http://x/api/./delete",
    "http://x/API/delete", "//x/api/delete", "///api/delete", "/v1/../api/delete",
    "/v1/models/../../api/delete",
    "/v1/models/%2e%2e/%2e%2e/api/delete", "/api/blobs/../delete", "/api/blobs/..%2f..%2fapi%2fdelete",
]  # fmt: skip


@pytest.mark.parametrize("target", WALKS)
@pytest.mark.parametrize("method", ["DELETE", "POST"])
def test_a_management_route_isnt_walked_to(tapped, method, target):
    """Neither a user nor an admin reaches a route by another spelling of its path."""
    body = f'{{"model": "{SMALL}"}}'.encode()
    for key in ("use", "admin"):
        status, answer, seen = ask(tapped, method.encode(), target.encode(), key=key, body=body)
        assert status in {400, 404, 405}, (key, answer[:300])
        assert not seen, key


@pytest.mark.parametrize(
    ("method", "target", "status"),
    [
        (b"DELETE", b"/api/delete", 403),
        (b"DELETE", b"/api/delete?x=/../tags", 403),
        (b"DELETE", b"http://anything/api/delete", 403),
        (b"POST", b"/api/pull", 403),
        (b"POST", b"/api/me", 403),
        (b"HEAD", b"/api/blobs/sha256:" + DIGEST.encode(), 403),
        (b"POST", b"/api/blobs/sha256:" + DIGEST.encode() + b"?x", 403),
        (b"GET", b"/api/blobs/sha256:" + DIGEST.encode(), 405),
        (b"HEAD", b"/api/blobs/sha256:" + DIGEST.upper().encode(), 404),
        (b"HEAD", b"/api/blobs/sha256:" + DIGEST.encode() + b"/", 404),
        (b"HEAD", b"/api/blobs/sha256%3A" + DIGEST.encode(), 404),
        (b"get", b"/api/tags", None),
        (b"GETX", b"/api/tags", None),
    ],
)
def test_what_a_user_may_not(tapped, method, target, status):
    """The exact route is known, and refused for its scope before anything is forwarded."""
    found, answer, seen = ask(tapped, method, target, body=b'{"model": "x"}')
    assert not seen
    assert found == status if status else found in {0, 400, 405, 501}, answer[:200]


@pytest.mark.parametrize(
    "name", ["llama3.1:8b", "llama3.1%3A8b", "library%2Fllama3.1:8b", "library/llama3.1%3a8b", "LLAMA3.1:8b",
             "%6clama3.1:8b", "llama3.1%253A8b", "llama3.2:3b/../llama3.1:8b",
             "llama3.2:3b%2F..%2Fllama3.1:8b",
             "registry.ollama.ai%2Flibrary%2Fllama3.1:8b", "llama3.2:3b?model=llama3.1:8b"],
)  # fmt: skip
def test_a_model_in_the_path_is_the_one_that_is_checked(tapped, name):
    """However its name is written, a key that may not use a model isn't told of it."""
    status, answer, _ = ask(tapped, b"GET", f"/v1/models/{name}".encode(), key="some")

    assert status == (200 if name.startswith(f"{SMALL}?") else 404)
    told = json.loads(answer.partition(b"\r\n\r\n")[2])
    if status == 200:
        assert told["id"] == SMALL
    else:
        assert told["error"]["code"] in {"model_not_found", "unknown_path"}


PIECES = st.sampled_from([
    "/", "//", "/./", "/../", "%2f", "%2F", "%2e", "%2e%2e", "..", ".", ";", ";x=1", "\\", "%5c",
    "%00", "%20", "%", "api", "API", "Api", "%61pi", "v1", "tags", "delete", "Delete", "generate", "chat",
    "pull", "blobs", "models", "sha256:" + DIGEST, "http://x", "@", ":", "~", "?", "?x=1", "#", "+", "*",
])  # fmt: skip


@pytest.mark.timeout(120)
@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    st.sampled_from(["GET", "POST", "DELETE", "HEAD"]), st.lists(PIECES, min_size=1, max_size=7).map("".join)
)
def test_only_exact_routes_are_forwarded(tapped, method, target):
    """Whatever is put together from pieces of paths: the instance sees known routes, and nothing else."""
    _, answer, seen = ask(tapped, method.encode(), target.encode(), key="admin")
    if not seen:
        return
    path = target.removeprefix("http://x").partition("?")[0] or "/"
    assert path in KNOWN or path == f"/api/blobs/sha256:{DIGEST}", answer[:200]
