"""The table of every path that is served. What isn't in it, exactly as written, isn't forwarded.

Paths are compared byte for byte: no decoding, no cleaning of `//`, dot segments or case. Ollama would
redirect such paths to their cleaned form; here they are simply unknown.
"""

from __future__ import annotations

import enum
import re
from dataclasses import dataclass, replace
from typing import NamedTuple

from drover_proxy.core.events import Needs


class Dialect(str, enum.Enum):
    """Whose words an answer is in."""

    __hash__ = str.__hash__  # counted once a request; Enum's own is slow

    OLLAMA = "ollama"
    OPENAI = "openai"
    ANTHROPIC = "anthropic"


class Kind(enum.Enum):
    """What is to be done with a request."""

    ROOT = "root"
    """Answered here: the server is alive."""
    INFO = "info"
    """Forwarded to any instance that is up."""
    LIST = "list"
    """The models; those that the caller's key may not use are left out."""
    RUNNING = "running"
    """What is loaded, over all instances."""
    SHOW = "show"
    """About one model, named in the body."""
    MODEL = "model"
    """About one model, named in the path."""
    INFER = "infer"
    """Goes through the scheduler to a ready runner."""
    MANAGE = "manage"
    """Changes what is on the disk; a model that it replaces is unloaded first."""
    BLOB = "blob"
    """Upload of, or question for, a blob by its digest."""
    UNKNOWN = "unknown"
    """Not in the table."""
    METRICS = "metrics"
    """The page of /metrics, for keys with that scope."""
    REFUSED = "refused"
    """Known, and never served: it would act for the host's account at ollama.com, or leave the host."""


class Shape(enum.Enum):
    """How a streamed answer proves that it is whole."""

    __hash__ = object.__hash__  # looked up for every stream; Enum's own is slow

    DONE = "done"
    """NDJSON whose last line has `"done":true`, or `error`."""
    STATUS = "status"
    """NDJSON whose last line has `"status":"success"`, or `error`."""
    CHAT = "chat"
    """Server-sent events that end with `[DONE]`."""
    RESPONSES = "responses"
    """Server-sent events that end with a `response.completed` or its like."""
    MESSAGES = "messages"
    """Server-sent events that end with `message_stop`."""


@dataclass(frozen=True, slots=True)
class Route:
    """What one method on one path means."""

    name: str
    """Fixed and short, for metrics and logs: the path without what varies."""
    dialect: Dialect
    kind: Kind
    scope: str = "use"
    needs: Needs | None = None
    has_body: bool = False
    streams: bool = False
    """Whether the body streams through (uploads)."""
    form: bool = False
    """The body is a form and no JSON."""
    stream_default: bool = False
    """What is meant when the body doesn't say `stream`."""
    shape: Shape | None = None
    """Of a streamed answer."""
    native: bool = False
    """Ollama's own inference routes: they carry options and keep_alive."""
    prompt_key: str = ""
    """The field that, empty, turns a native request into a load or unload."""


class Match(NamedTuple):
    """What a method and path came to."""

    route: Route | None
    status: int
    """404 or 405 where there is no route."""
    dialect: Dialect
    allow: str = ""
    """Methods of the path, for 405."""
    argument: str = ""
    """What varies in the path: a model's name or a digest."""


def _routes() -> dict[bytes, dict[bytes, Route]]:
    table: dict[bytes, dict[bytes, Route]] = {}

    def add(methods: str, path: str, route: Route) -> None:
        for method in methods.split():
            table.setdefault(path.encode(), {})[method.encode()] = replace(route, name=path)

    native = Route(
        "",
        Dialect.OLLAMA,
        Kind.INFER,
        needs=Needs.GENERATE,
        has_body=True,
        stream_default=True,
        shape=Shape.DONE,
        native=True,
    )
    embed = Route("", Dialect.OLLAMA, Kind.INFER, needs=Needs.EMBED, has_body=True, native=True)
    openai = Route("", Dialect.OPENAI, Kind.INFER, needs=Needs.GENERATE, has_body=True, shape=Shape.CHAT)
    manage = Route("", Dialect.OLLAMA, Kind.MANAGE, scope="admin", has_body=True)
    long = replace(manage, stream_default=True, shape=Shape.STATUS)
    refused = Route("", Dialect.OLLAMA, Kind.REFUSED)

    add("GET HEAD", "/", Route("", Dialect.OLLAMA, Kind.ROOT))
    add("GET", "/metrics", Route("", Dialect.OLLAMA, Kind.METRICS, scope="metrics"))
    add("GET HEAD", "/api/version", Route("", Dialect.OLLAMA, Kind.INFO))
    add("GET HEAD", "/api/tags", Route("", Dialect.OLLAMA, Kind.LIST))
    add("GET", "/api/ps", Route("", Dialect.OLLAMA, Kind.RUNNING))
    add("POST", "/api/show", Route("", Dialect.OLLAMA, Kind.SHOW, has_body=True))
    add("POST", "/api/generate", replace(native, prompt_key="prompt"))
    add("POST", "/api/chat", replace(native, prompt_key="messages"))
    add("POST", "/api/embed", embed)
    add("POST", "/api/embeddings", embed)
    add("POST", "/api/pull", long)
    add("POST", "/api/push", long)
    add("POST", "/api/create", long)
    add("DELETE", "/api/delete", manage)
    add("POST", "/api/copy", manage)
    for path in ("/api/me", "/api/signout"):
        add("POST", path, refused)
    for path in ("/api/experimental/web_search", "/api/experimental/web_fetch"):
        add("POST", path, refused)
    add("GET", "/api/experimental/model-recommendations", refused)
    add("GET", "/api/status", refused)
    add("POST", "/v1/chat/completions", openai)
    add("POST", "/v1/completions", openai)
    add("POST", "/v1/embeddings", replace(openai, needs=Needs.EMBED, shape=None))
    add("POST", "/v1/responses", replace(openai, shape=Shape.RESPONSES))
    add("POST", "/v1/audio/transcriptions", replace(openai, shape=None, form=True))
    add("GET", "/v1/models", Route("", Dialect.OPENAI, Kind.LIST))
    add("POST", "/v1/messages", replace(openai, dialect=Dialect.ANTHROPIC, shape=Shape.MESSAGES))
    return table


ROUTES = _routes()
UNKNOWN = {dialect: Route("unknown", dialect, Kind.UNKNOWN) for dialect in Dialect}

BLOB = re.compile(rb"/api/blobs/(sha256[:-][0-9a-f]{64})")
BLOB_ROUTES = {
    b"HEAD": Route("/api/blobs", Dialect.OLLAMA, Kind.BLOB, scope="admin"),
    b"POST": Route("/api/blobs", Dialect.OLLAMA, Kind.BLOB, scope="admin", has_body=True, streams=True),
}
MODEL = re.compile(rb"/v1/models/([A-Za-z0-9_.:/-]+)", re.ASCII)
MODEL_ROUTES = {b"GET": Route("/v1/models/:model", Dialect.OPENAI, Kind.MODEL)}
USER_KEYS = re.compile(rb"/api/user/keys/[^/]+")
USER_KEYS_ROUTES = {b"DELETE": Route("/api/user/keys", Dialect.OLLAMA, Kind.REFUSED)}
VARYING = ((BLOB, BLOB_ROUTES), (MODEL, MODEL_ROUTES), (USER_KEYS, USER_KEYS_ROUTES))


def dialect_of(path: bytes) -> Dialect:
    """Guess whose client is asking, for the error body of an unknown path."""
    if path.startswith(b"/v1/messages"):
        return Dialect.ANTHROPIC
    return Dialect.OPENAI if path.startswith(b"/v1/") else Dialect.OLLAMA


def match(method: bytes, path: bytes) -> Match:
    """Find what a request means; `route` is None with 404 for an unknown path, 405 for a wrong method."""
    methods = ROUTES.get(path)
    argument = ""
    if methods is None:
        for pattern, candidates in VARYING:
            if found := pattern.fullmatch(_unescaped(path) if candidates is MODEL_ROUTES else path):
                methods = candidates
                argument = found[1].decode() if found.groups() else ""
                break
        else:
            return Match(None, 404, dialect_of(path))
    route = methods.get(method)
    if route is None:
        return Match(None, 405, dialect_of(path), allow=", ".join(m.decode() for m in methods))
    return Match(route, 200, route.dialect, argument=argument)


def _unescaped(path: bytes) -> bytes:
    # Clients escape the slash (and some the colon) of a model's name in a path. What is forwarded is built
    # anew from the name, so this decoding can't lead anywhere else.
    return path.replace(b"%2F", b"/").replace(b"%2f", b"/").replace(b"%3A", b":").replace(b"%3a", b":")
