"""Whatever a body looks like, the model whose name is checked is the one that Ollama reads."""

from __future__ import annotations

import pytest
from drover_proxy.dialect.body import BodyProblem, read
from drover_proxy.dialect.names import NameProblem, canonical, is_local
from drover_proxy.dialect.routes import ROUTES
from hypothesis import given
from hypothesis import strategies as st

from tests.gojson import fields_of

MODELS = (
    "llama3.2:3b",
    "llama3.1:8b",
    "LLAMA3.1:8b",
    "library/llama3.1:8b",
    "me/own:x",
    "",
    "a b",
    "x:cloud",
)
GOOD = (
    '"llama3.2:3b"',
    '"llama3.1:8b"',
    '"LLAMA3.1:8b"',
    '"library/llama3.1:8b"',
    '"l\\u006cama3.1:8b"',
    '"me/own:x"',
)
ODD = ('""', '"a b"', '"x:cloud"', "null", "1", "{}", "[]", '"llama3.1\\u003a8b"')
SPELLINGS = {
    "model": ("model", "Model", "MODEL", "mod\\u0065l", "m\\u006fdel", "model ", "modeI", "mödel"),
    "name": ("name", "Name", "nAME", "n\\u0061me"),
    "source": ("source", "Source", "\u017fource", "\\u017fource", "\\u0073ource"),
    "destination": ("destination", "Destination", "de\u017ftination"),
    "from": ("from", "From", "fr\\u006fm"),
    "stream": ("stream", "\u017ftream", "Stream"),
    "keep_alive": ("keep_alive", "\u212aeep_alive", "Keep_Alive", "\\u212aeep_alive"),
    "prompt": ("prompt", "Prompt", "x", ""),
}


@st.composite
def bodies(draw) -> bytes:
    """Make an object with fields in several spellings, several times, between blanks."""
    blank = st.sampled_from(["", "", "", " ", "\n\t ", "  "])
    parts = []
    for field in ("model", *draw(st.lists(st.sampled_from(sorted(SPELLINGS)), max_size=4))):
        usual = st.just(SPELLINGS[field][0])
        key = draw(st.one_of(usual, usual, st.sampled_from(SPELLINGS[field])))
        good = st.sampled_from(("true", "false") if field == "stream" else GOOD)
        value = draw(st.one_of(good, good, good, good, st.sampled_from(ODD)))
        parts.append(f'{draw(blank)}"{key}"{draw(blank)}:{draw(blank)}{value}{draw(blank)}')
    parts = draw(st.permutations(parts))
    tail = draw(st.sampled_from(["", "", "", "", "", " ", "\n", '{"model":"llama3.1:8b"}', ",", "}"]))
    return ("{" + ",".join(parts) + "}" + tail).encode()


def read_by_ollama(path: bytes, body: bytes) -> str:
    """Return the name that Ollama's handler of a path takes."""
    found = fields_of(body, ("model", "name", "source"))
    if path == b"/api/copy":
        return found.get("source", "")
    return found.get("model", "") or found.get("name", "")


@pytest.mark.parametrize(
    "path", [b"/api/generate", b"/api/show", b"/api/delete", b"/api/copy", b"/v1/chat/completions"]
)
@given(body=bodies())
def test_what_is_checked_is_what_is_read(path, body):
    """Either the body is refused, or what goes to the instance names the model that was checked."""
    route = next(iter(ROUTES[path].values()))
    try:
        asked = read(route, body)
    except BodyProblem:
        return
    sent = asked.render(asked.model)

    assert canonical(read_by_ollama(path, sent)) == asked.model, sent
    if path == b"/api/copy" and asked.other:
        written = fields_of(sent, ("destination",))["destination"]
        assert written == asked.other or (written == canonical(asked.other) and is_local(asked.other))
    if path == b"/api/generate":
        assert "keep_alive" not in fields_of(sent, ("keep_alive",))
    assert bool(fields_of(sent, ("stream",)).get("stream", route.stream_default)) == asked.stream


@given(body=bodies())
def test_a_body_that_is_passed_on_untouched_is_read_alike(body):
    """Where nothing is written anew, Ollama reads in the client's own bytes what was checked."""
    route = ROUTES[b"/api/generate"][b"POST"]
    try:
        asked = read(route, body)
        sent = asked.render(asked.model)
    except BodyProblem:
        return
    if sent is body:
        assert canonical(read_by_ollama(b"/api/generate", body)) == asked.model


@pytest.mark.parametrize("name", [name for name in MODELS if name])
def test_names_are_read_alike(name):
    """A name that is let through has one canonical form, and that form is its own."""
    try:
        one = canonical(name)
    except NameProblem:
        return
    assert canonical(one) == one
