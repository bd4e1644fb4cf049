"""Error answers, in the body shape of the dialect that was called, with a stable X-Drover-Error code."""

from __future__ import annotations

import msgspec

from drover_proxy.dialect.routes import Dialect, Shape

OPENAI_TYPES = {
    400: "invalid_request_error",
    401: "authentication_error",
    403: "permission_error",
    404: "not_found_error",
    413: "invalid_request_error",
    429: "rate_limit_error",
}
ANTHROPIC_TYPES = {
    400: "invalid_request_error",
    401: "authentication_error",
    403: "permission_error",
    404: "not_found_error",
    413: "request_too_large",
    429: "rate_limit_error",
    503: "overloaded_error",
}

Headers = list[tuple[bytes, bytes]]


def _object(dialect: Dialect, status: int, code: str, message: str) -> dict[str, object]:
    if dialect is Dialect.OLLAMA:
        return {"error": message}
    if dialect is Dialect.ANTHROPIC:
        kind = ANTHROPIC_TYPES.get(status, "api_error")
        return {"type": "error", "error": {"type": kind, "message": message}}
    kind = OPENAI_TYPES.get(status, "api_error")
    return {"error": {"message": message, "type": kind, "param": None, "code": code}}


def error_body(dialect: Dialect, status: int, code: str, message: str) -> bytes:
    """Return the JSON body of an error."""
    return msgspec.json.encode(_object(dialect, status, code, message))


def error_headers(
    status: int, code: str, *, retry_after_seconds: int | None = None, allow: str = ""
) -> Headers:
    """Return the headers that go with an error's body."""
    headers: Headers = [
        (b"content-type", b"application/json; charset=utf-8"),
        (b"x-drover-error", code.encode("latin-1", "replace")),
    ]
    if status == 401:
        headers.append((b"www-authenticate", b'Bearer realm="drover"'))
    if retry_after_seconds is not None:
        headers.append((b"retry-after", str(retry_after_seconds).encode()))
    elif status >= 500:
        headers.append((b"x-should-retry", b"false"))  # read by the openai and anthropic packages
    if allow:
        headers.append((b"allow", allow.encode()))
    return headers


def error_event(shape: Shape, message: str) -> bytes:
    """Return what tells a client inside a stream that the answer broke off, in the stream's own form."""
    code = "upstream_broken"
    if shape in {Shape.DONE, Shape.STATUS}:
        return error_body(Dialect.OLLAMA, 502, code, message) + b"\n"
    if shape is Shape.CHAT:
        return b"data: " + error_body(Dialect.OPENAI, 502, code, message) + b"\n\n"
    if shape is Shape.RESPONSES:
        event = {"type": "error", "code": code, "message": message, "param": None}
        return b"event: error\ndata: " + msgspec.json.encode(event) + b"\n\n"
    return b"event: error\ndata: " + error_body(Dialect.ANTHROPIC, 502, code, message) + b"\n\n"
