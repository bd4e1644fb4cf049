"""JSON bodies: what we check is what Ollama reads in the bytes that we send on.

The reference reads as Go's encoding/json fills Ollama's structs: fields in their order, names without regard
to case (by Unicode's simple folding), null leaves what is there, a repeated map is merged.

Input: one byte for the route, one for what the body becomes, then the body.
"""

from __future__ import annotations

import json
from typing import Any

from drover_proxy.dialect.body import FIELDS, RUNNER_OPTIONS, BodyProblem, read
from drover_proxy.dialect.names import NameProblem, canonical
from drover_proxy.dialect.routes import ROUTES, Kind, Route

TABLE: list[Route] = [
    route for methods in ROUTES.values() for route in methods.values() if route.has_body and not route.streams
]
TABLE = [route for route in TABLE if route.kind in {Kind.INFER, Kind.SHOW, Kind.MANAGE}]
PROFILE = {"num_ctx": 4096}
FOLDED = str.maketrans({"\u017f": "s", "\u212a": "k"})


def folded(name: str) -> str:
    """Fold a name as Go does: only these two characters outside ASCII fold into it."""
    return "".join(chr(ord(c) + 32) if "A" <= c <= "Z" else c for c in name.translate(FOLDED))


class Pairs(list):
    """An object, with all its fields in their order."""


def parse(body: bytes) -> Any:
    """Parse JSON without losing a field; bytes that are no UTF-8 become U+FFFD, as in Go."""
    return json.loads(body.decode("utf-8", "replace"), object_pairs_hook=Pairs, strict=True)


def as_ollama_reads(body: bytes, *, null: bool = False) -> dict[str, Any]:
    """Fill the fields that we look at, as Ollama's structs are filled; `null`: as if it were a value too."""
    read_fields: dict[str, Any] = {}
    top = parse(body)
    assert isinstance(top, Pairs)
    for key, value in top:
        name = folded(key)
        if name not in FIELDS:
            name = key  # nothing depends on it
        if name == "options" and isinstance(value, Pairs):
            before = read_fields.get("options")
            read_fields["options"] = (before if isinstance(before, dict) else {}) | dict(value)
        elif value is not None:
            read_fields[name] = value
        elif null or name in {"options", "stream", "keep_alive", "shift"}:
            read_fields.pop(name, None)
    return read_fields


def check(data: bytes) -> None:
    """Read a body, write it for the instance, and read that as Ollama would."""
    if len(data) < 3:
        return
    route, byte, body = TABLE[data[0] % len(TABLE)], data[1], data[2:]
    try:
        asked = read(route, body)
    except BodyProblem as problem:
        if not 400 <= problem.status < 500:
            raise AssertionError(problem) from None
        return
    model = "other:latest" if byte & 1 else asked.model
    options = PROFILE if byte & 2 and route.native else None
    sent = asked.render(model, options)
    got = as_ollama_reads(sent)
    _same_model(route, model, got)
    streams = got.get("stream", route.stream_default)
    assert not isinstance(streams, bool) or streams is asked.stream, "it streams otherwise than we think"
    if route.native:
        assert "keep_alive" not in got
        assert "shift" not in got
        left = RUNNER_OPTIONS & {key.casefold() for key in got.get("options", {})}
        assert left == set(options or ()), f"runner options of the client: {left}"
        if options:
            assert {key: got["options"][key] for key in options} == options
    _nothing_else_changed(as_ollama_reads(body, null=True), got)


def _same_model(route: Route, model: str, got: dict[str, Any]) -> None:
    """Compare the model that was checked with the one that Ollama finds."""
    if route.name == "/api/copy":
        found = got.get("source")
    elif route.kind is Kind.INFER:
        found = got.get("model")  # Ollama's inference structs have no `name`
    else:
        found = got.get("model") or got.get("name")
    if not found:
        return  # Ollama refuses it
    assert isinstance(found, str)
    try:
        assert canonical(found) == canonical(model), (found, model)
    except NameProblem:
        raise AssertionError(f"{found!r} was let through as {model!r}") from None


def _nothing_else_changed(before: dict[str, Any], after: dict[str, Any]) -> None:
    """See that every field that isn't ours to change says the same: the last of its name, as we read it."""
    ours = {"model", "name", "source", "options", "keep_alive", "shift"}
    for key in before.keys() | after.keys():
        if key not in ours:
            assert repr(before.get(key)) == repr(after.get(key)), key
    lost = before.get("options") or {}
    kept = after.get("options") or {}
    if isinstance(lost, dict) and isinstance(kept, dict):
        for key in kept.keys() - RUNNER_OPTIONS:
            assert repr(lost.get(key)) == repr(kept[key]), key


def seeds() -> list[bytes]:
    """Bodies of every kind, and the tricks that are known."""
    bodies = [
        b'{"model":"llama3.2:3b","prompt":"a"}',
        b'{"model": "a", "messages": [{"role": "user", "content": "b"}], "stream": false}',
        b'{"MODEL":"a"}',
        b'{"model":"a","Model":"b"}',
        b'{"model":"a","model":"b"}',
        b'{"model":"a","model":null,"name":"b"}',
        b'{"mode\\u006c":"a"}',
        '{"\u212aeep_alive":1,"model":"a","\u017fhift":true,"\u017ftream":false}'.encode(),
        b'{"model":"a","keep_alive":0,"options":{"num_ctx":8,"temperature":0.5},"shift":true}',
        b'{"model":"a","options":{"num_ctx":8},"options":{"seed":1}}',
        b'{"model":"a","options":{"NUM_CTX":8,"Num_Gpu":0}}',
        b'{"model":"a","options":null,"images":["eA=="]}',
        b'{"name":"reg.example/x/a:local","source":"a","destination":"b","from":"c","stream":null}',
        b'{"model":"gpt-oss:120b-cloud","input":["a","b"]}',
        # as many bytes too many as blanks behind commas and colons would take
        b'{"model":"evil","model":null,"name":"good","a":1,"b":1,"c":1,"d":1,"e":1,"f":1,"g":1,"h":1,"i":1} ',
        b' {"model" : "a:b" , "x":{"model":"c"}}\n',
    ]
    return [bytes((n, n)) + body for body in bodies for n in (0, 1, 2, 3, 5, 7, 12)]
