"""Request bodies: what is read, what is taken out, what stays byte for byte."""

from __future__ import annotations

import json

import pytest
from drover_proxy.app.management import _source
from drover_proxy.dialect.body import RUNNER_OPTIONS, BodyProblem, read
from drover_proxy.dialect.routes import match
from hypothesis import given
from hypothesis import strategies as st

GENERATE = match(b"POST", b"/api/generate").route
CHAT = match(b"POST", b"/api/chat").route
OPENAI = match(b"POST", b"/v1/chat/completions").route
COPY = match(b"POST", b"/api/copy").route
SHOW = match(b"POST", b"/api/show").route


def rendered(route, body, model=None, options=None):
    """Return what an instance is sent for a body."""
    data = body if isinstance(body, bytes) else json.dumps(body).encode()
    asked = read(route, data)
    return asked.render(model or asked.model, options)


@pytest.mark.parametrize(
    "body",
    [
        b'{"model":"llama3.2:3b","prompt":"hi"}',
        b'{"model":"LLAMA3.2","prompt":"hi","options":{"temperature":0.5}}',
        b'{"model":"m","prompt":"hi","unknown":{"a":[1,2]}}',
    ],
)
def test_a_body_that_needs_nothing_stays_as_it_is(body):
    """Not one byte changes where nothing has to."""
    assert rendered(GENERATE, body) is body or rendered(GENERATE, body) == body


@pytest.mark.parametrize("fields", range(12))
def test_blanks_leave_no_room_to_hide_a_field(fields):
    """A repeated model can't take the place of blanks: what is sent on names the model that was checked."""
    more = b"".join(b',"%c":1' % (97 + n) for n in range(fields))
    for blanks in range(24):
        body = b'{"model":"secret","model":null,"name":"mine"%b}%b' % (more, b" " * blanks)
        sent = rendered(OPENAI, body)
        assert b"secret" not in sent
        assert json.loads(sent) == json.loads(body)


def test_a_cloud_source_is_seen_through_escapes():
    """What a model is made from is read as Ollama reads it."""
    create = match(b"POST", b"/api/create").route
    with pytest.raises(BodyProblem, match="cloud"):
        _source(read(create, b'{"model":"m","from":"gpt-oss:cl\\u006fud"}'))


@pytest.mark.parametrize("body", [b'{"model":"a\xc1"}', b'{"model":"a","options":{"\xc1":1}}'])
def test_bytes_that_are_no_text_are_the_clients_fault(body):
    """400, and not a failure of the proxy."""
    with pytest.raises(BodyProblem):
        read(GENERATE, body)


def test_runner_options_are_taken_out_and_the_profiles_put_in():
    """No client can make a runner load anew."""
    body = {
        "model": "m",
        "prompt": "hi",
        "keep_alive": 0,
        "shift": False,
        "options": {"num_ctx": 1, "num_gpu": 0, "temperature": 0.5, "use_mmap": True},
    }

    sent = json.loads(rendered(GENERATE, body, options={"num_ctx": 8192}))

    assert sent == {"model": "m", "prompt": "hi", "options": {"temperature": 0.5, "num_ctx": 8192}}


def test_options_that_are_all_taken_out_leave_none_behind():
    """An options object that would be empty is left out."""
    assert json.loads(rendered(CHAT, {"model": "m", "messages": [], "options": {"num_ctx": 1}})) == {
        "model": "m",
        "messages": [],
    }


def test_openai_bodies_keep_their_fields():
    """What /v1 ignores anyway isn't touched."""
    body = b'{"model":"m","messages":[],"options":{"num_ctx":1}}'

    assert rendered(OPENAI, body, options=None) == body


def test_an_alias_is_replaced_and_nothing_else():
    """Only the model's name changes."""
    sent = json.loads(rendered(OPENAI, {"model": "gpt-4o", "n": 1.50}, model="llama3.2:3b"))

    assert sent == {"model": "llama3.2:3b", "n": 1.5}


def test_a_repeated_field_can_hide_nothing():
    """Ollama merges repeated objects; what is sent has only what was seen."""
    body = b'{"model":"m","prompt":"x","options":{"num_gpu":0},"options":{"temperature":1}}'

    assert json.loads(rendered(GENERATE, body)) == {
        "model": "m",
        "prompt": "x",
        "options": {"temperature": 1},
    }
    assert rendered(GENERATE, body).count(b"options") == 1
    inner = b'{"model":"m","prompt":"x","options":{"seed":1,"seed":2}}'
    assert rendered(GENERATE, inner).count(b"seed") == 1


@pytest.mark.parametrize(
    "body",
    [
        {"model": "a", "Model": "b"},
        {"MODEL": "a", "Model": "b"},
        {"model": "a", "options": {}, "OPTIONS": {}},
        {"model": "a", "option\u017f": {}, "options": {}},
    ],
)
def test_two_spellings_of_a_field_are_refused(body):
    """Readers could differ on which one counts, so neither does."""
    with pytest.raises(BodyProblem) as refused:
        read(GENERATE, json.dumps(body, ensure_ascii=False).encode())

    assert (refused.value.status, refused.value.code) == (400, "ambiguous_body")


def test_one_odd_spelling_is_read_as_ollama_reads_it():
    """A field in another case counts, and is sent in the usual one."""
    sent = json.loads(
        rendered(GENERATE, {"MODEL": "m", "Keep_Alive": 5, "Options": {"num_ctx": 1}, "prompt": "x"})
    )

    assert sent == {"model": "m", "prompt": "x"}


@pytest.mark.parametrize(
    ("body", "status", "code"),
    [
        (b"", 400, "invalid_body"),
        (b"{", 400, "invalid_body"),
        (b"[]", 400, "invalid_body"),
        (b'{"model":1}', 400, "invalid_body"),
        (b'{"model":"a","stream":"yes"}', 400, "invalid_body"),
        (b'{"model":"a","options":[1]}', 400, "invalid_body"),
        (b'{"model":"a"}{"model":"b"}', 400, "invalid_body"),
        (b"{}", 400, "model_required"),
        (b'{"model":"a b"}', 400, "invalid_model_name"),
        (b'{"model":"gpt-oss:120b-cloud"}', 403, "cloud_refused"),
        (b"[" * 100_000, 400, "invalid_body"),
    ],
)
def test_bodies_that_cant_be_served(body, status, code):
    """Each has its status and its code."""
    with pytest.raises(BodyProblem) as refused:
        read(GENERATE, body)

    assert (refused.value.status, refused.value.code) == (status, code)


@pytest.mark.parametrize(
    ("route", "body", "empty", "unload"),
    [
        (GENERATE, {"model": "m"}, True, False),
        (GENERATE, {"model": "m", "keep_alive": 0}, True, True),
        (GENERATE, {"model": "m", "keep_alive": "0s", "prompt": ""}, True, True),
        (GENERATE, {"model": "m", "keep_alive": 0, "prompt": "x"}, False, False),
        (CHAT, {"model": "m", "messages": [], "keep_alive": 0}, True, True),
        (CHAT, {"model": "m", "messages": [{}]}, False, False),
    ],
)
def test_loads_and_unloads_are_recognised(route, body, empty, unload):
    """An empty prompt loads; with keep_alive 0 it unloads."""
    asked = read(route, json.dumps(body).encode())

    assert (asked.empty_prompt, asked.unload) == (empty, unload)


def test_stream_defaults_differ():
    """Native routes stream unless told otherwise, /v1 only when asked."""
    assert read(GENERATE, b'{"model":"m"}').stream
    assert not read(OPENAI, b'{"model":"m"}').stream
    assert not read(GENERATE, b'{"model":"m","stream":false}').stream


@pytest.mark.parametrize("path", [b"/v1/messages", b"/v1/responses"])
@pytest.mark.parametrize(
    "tools",
    [
        '[{"type":"web_search_20250305","name":"web_search"}]',
        '[{"type":"function","name":"f"},{"type":"web_search"}]',
        '[{"type":"web\\u005fsearch"}]',
        '[{"Type":"web_search"}]',
        '[{"TYPE":"web_search","type":null}]',
        '[{"type":"function","type":"web_search"}]',
        '[ {"type" : "web_fetch_20250910"} ]',
    ],
)
def test_tools_that_leave_the_host_are_refused(path, tools):
    """However it is written, what Ollama would run at ollama.com is never asked of it."""
    route = match(b"POST", path).route
    for field in ("tools", "Tools", "too\\u006cs"):
        with pytest.raises(BodyProblem) as refused:
            read(route, f'{{"model":"m","{field}":{tools}}}'.encode())
        assert (refused.value.status, refused.value.code) == (403, "not_offered")


def test_tools_go_on_as_they_were_read():
    """A list that could be read in another way is written anew; any other is not touched."""
    route = match(b"POST", b"/v1/messages").route
    hidden = '[{"type":"web_search","name":"a","type":null}]'
    sent = read(route, f'{{"model":"m","tools":{hidden}}}'.encode())
    assert json.loads(sent.render(sent.model))["tools"] == [{"type": None, "name": "a"}]
    assert b"web_search" not in sent.render(sent.model)
    plain = b'{"model":"m","tools":[{"type":"custom","name":"web_search","input_schema":{"a": 1}}]}'
    asked = read(route, plain)
    assert asked.render(asked.model) is plain
    assert read(route, b'{"model":"m","tools":null}').model == "m:latest"
    for wrong in (b'"x"', b"[null]", b'["web_search"]', b'[{"type":1}]', b"{}"):
        with pytest.raises(BodyProblem, match="must be"):
            read(route, b'{"model":"m","tools":%b}' % wrong)


def test_a_copy_is_of_its_source_whatever_else_is_named():
    """The name that was checked is written where Ollama reads it, and not into a field that it ignores."""
    copy = read(COPY, b'{"name":"x","model":"y","source":"a:local","destination":"b"}')
    assert json.loads(copy.render(copy.model)) == {
        "name": "x", "model": "y", "source": "a:latest", "destination": "b"
    }  # fmt: skip


def test_copy_and_show_name_their_models_elsewhere():
    """Copy has source and destination; show knows the older `name`."""
    copy = read(COPY, b'{"source":"a","destination":"b"}')

    assert (copy.model, copy.other) == ("a:latest", "b")
    assert read(SHOW, b'{"name":"a"}').model == "a:latest"


COUNTLESS = [b'"k%d":1' % number for number in range(9000)]


@pytest.mark.parametrize(
    "body",
    [
        b'{"model":"m",%b}' % b",".join(COUNTLESS),
        b'{"model":"m",%b}' % b",".join(COUNTLESS[:1] * 12_000),
        b'{"model":"m","options":{%b}}' % b",".join(COUNTLESS),
    ],
)
def test_countless_fields_are_refused(body):
    """They take a hundred times as long to read as a picture of that size, and everybody waits meanwhile."""
    with pytest.raises(BodyProblem) as caught:
        read(CHAT, body)
    assert (caught.value.status, caught.value.code) == (400, "invalid_body")


def test_a_large_body_is_read_as_any_other():
    """However many objects stand deeper in it."""
    messages = [{"role": "user", "content": "hi"}] * 10_000
    fields = {f"field{number}": number for number in range(500)}
    body = {"model": "m", "messages": messages, **fields, "options": {"num_ctx": 1, "stop": ["x" * 70_000]}}
    asked = read(CHAT, json.dumps(body, separators=(",", ":")).encode())
    assert asked.name == "m"
    assert json.loads(asked.render("m:latest")) == {**body, "options": {"stop": ["x" * 70_000]}}
    del body["options"]
    plain = json.dumps(body, separators=(",", ":")).encode()
    assert read(CHAT, plain).render("m:latest") is plain


VALUES = st.recursive(
    st.none() | st.booleans() | st.integers(-5, 5) | st.text(max_size=4),
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(st.text(max_size=4), inner, max_size=2),
    max_leaves=4,
)


@given(
    fields=st.dictionaries(st.text(max_size=6), VALUES, max_size=4),
    options=st.dictionaries(st.sampled_from([*RUNNER_OPTIONS, "temperature", "seed"]), st.integers(0, 9)),
    compact=st.booleans(),
)
def test_no_runner_option_ever_gets_through(fields, options, compact):
    """Whatever the body, what is sent has no runner option but the profile's, and all other fields."""
    body = {**fields, "model": "m", "options": options}
    separators = (",", ":") if compact else None
    try:
        asked = read(GENERATE, json.dumps(body, separators=separators).encode())
    except BodyProblem:
        return
    sent = json.loads(asked.render("m:latest", {"num_ctx": 4096}))

    assert sent["options"].pop("num_ctx") == 4096
    assert not RUNNER_OPTIONS & sent["options"].keys()
    kept = {k: v for k, v in options.items() if k not in RUNNER_OPTIONS}
    assert sent["options"] == kept
    for key, value in fields.items():
        if key.casefold() not in {"keep_alive", "shift", "model", "options"}:
            assert sent[key] == value
