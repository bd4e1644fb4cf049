"""The table of routes."""

from __future__ import annotations

import pytest
from drover_proxy.dialect.routes import ROUTES, Dialect, Kind, match

DIGEST = b"sha256:" + b"a" * 64


@pytest.mark.parametrize(
    ("method", "path", "kind", "scope"),
    [
        (b"GET", b"/", Kind.ROOT, "use"),
        (b"HEAD", b"/api/version", Kind.INFO, "use"),
        (b"GET", b"/api/tags", Kind.LIST, "use"),
        (b"POST", b"/api/chat", Kind.INFER, "use"),
        (b"POST", b"/v1/chat/completions", Kind.INFER, "use"),
        (b"POST", b"/v1/messages", Kind.INFER, "use"),
        (b"POST", b"/api/pull", Kind.MANAGE, "admin"),
        (b"DELETE", b"/api/delete", Kind.MANAGE, "admin"),
        (b"POST", b"/api/blobs/" + DIGEST, Kind.BLOB, "admin"),
        (b"HEAD", b"/api/blobs/" + DIGEST.replace(b":", b"-"), Kind.BLOB, "admin"),
        (b"POST", b"/api/me", Kind.REFUSED, "use"),
        (b"GET", b"/metrics", Kind.METRICS, "metrics"),
    ],
)
def test_known_routes(method, path, kind, scope):
    """Each path means what it means in Ollama, and management needs the admin scope."""
    route = match(method, path).route

    assert route is not None
    assert (route.kind, route.scope) == (kind, scope)


@pytest.mark.parametrize(
    "path",
    [
        b"//api/tags",
        b"/api/tags/",
        b"/api/./tags",
        b"/api/../api/tags",
        b"/API/TAGS",
        b"/api%2ftags",
        b"/api/tags;x",
        b"/api/tags%00",
        b"/api/load",
        b"/debug/pprof/",
        b"/api/blobs/sha256:short",
        b"/api/blobs/../../x",
        b"*",
    ],
)
def test_anything_else_is_unknown(path):
    """Nothing that isn't written exactly like a route is one."""
    found = match(b"GET", path)

    assert found.route is None
    assert found.status == 404


def test_a_wrong_method_names_the_right_ones():
    """405 says what is allowed."""
    found = match(b"GET", b"/api/generate")

    assert (found.route, found.status, found.allow) == (None, 405, "POST")


def test_models_in_a_path_may_be_escaped():
    """Clients escape the slash of a name; the argument is the name itself."""
    assert match(b"GET", b"/v1/models/me%2Fmine:latest").argument == "me/mine:latest"


def test_errors_of_unknown_paths_are_in_the_right_dialect():
    """Whoever asks under /v1 gets that dialect's body."""
    assert match(b"GET", b"/v1/nothing").dialect is Dialect.OPENAI
    assert match(b"GET", b"/v1/messages/x").dialect is Dialect.ANTHROPIC
    assert match(b"GET", b"/nothing").dialect is Dialect.OLLAMA


def test_every_route_that_changes_something_needs_admin():
    """No route of the kinds that change the disk is open to a plain key."""
    kinds = {Kind.MANAGE, Kind.BLOB}
    changing = [route for methods in ROUTES.values() for route in methods.values() if route.kind in kinds]

    assert changing
    assert {route.scope for route in changing} == {"admin"}
