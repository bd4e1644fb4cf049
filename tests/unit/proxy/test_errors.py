"""Error bodies in three dialects."""

from __future__ import annotations

import json

from drover_proxy.dialect.errors import error_body, error_headers
from drover_proxy.dialect.routes import Dialect


def test_each_dialect_has_its_own_shape():
    """The official packages of each read exactly these."""
    ollama, openai, anthropic = (json.loads(error_body(d, 404, "model_not_found", "no")) for d in Dialect)

    assert ollama == {"error": "no"}
    assert openai == {
        "error": {"message": "no", "type": "not_found_error", "param": None, "code": "model_not_found"}
    }
    assert anthropic == {"type": "error", "error": {"type": "not_found_error", "message": "no"}}


def test_headers_carry_the_code_and_what_clients_act_on():
    """401 says how to come in; 503 when to come again, or not to."""
    assert (b"www-authenticate", b'Bearer realm="drover"') in error_headers(401, "unauthorized")
    assert (b"retry-after", b"7") in error_headers(503, "queue_full", retry_after_seconds=7)
    assert (b"x-should-retry", b"false") in error_headers(503, "model_too_large")
    assert (b"x-drover-error", b"queue_full") in error_headers(503, "queue_full", retry_after_seconds=7)
    assert (b"allow", b"POST") in error_headers(405, "method_not_allowed", allow="POST")
