"""Error bodies in three dialects."""

from __future__ import annotations

import json
import re
from pathlib import Path

import drover_proxy
from drover_proxy.dialect.codes import CODES
from drover_proxy.dialect.errors import error_body, error_headers
from drover_proxy.dialect.routes import Dialect

SOURCE = Path(drover_proxy.__file__).parent


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


def test_every_code_is_documented():
    """Each code that the source can answer with stands in the table of codes, and no other."""
    sources = [
        path.read_text()
        for name in ("app", "dialect", "core", "wire")
        for path in (SOURCE / name).glob("*.py")
    ]
    text = "\n".join(source for source in sources if "CODES: dict" not in source)
    raised = set(re.findall(r'(?:fail|BodyProblem|reject|Reject)\((?:[^"()]*, )?\s*\d{3}, "([a-z_]+)"', text))

    assert len(raised) > 15
    assert raised <= CODES.keys()
    named = {code for code in CODES if f'"{code}"' in text or code.startswith("upstream_")}
    assert named == CODES.keys()
