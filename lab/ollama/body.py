"""Reading request bodies as strictly, and with the same complaints, as Go's JSON decoder does."""

from __future__ import annotations

import itertools
import json
from typing import Any

from lab.ollama.gotext import quoted


class Refused(Exception):  # noqa: N818 - an answer, not an error of ours
    """The request can't be served; carries status and text of the answer."""

    def __init__(self, status: int, text: str) -> None:
        super().__init__(text)
        self.status = status


_KINDS = {str: "string", bool: "bool", int: "number", float: "number", list: "array", dict: "object"}
# Go type -> what JSON may stand for it
_GO_TYPES: dict[str, tuple[type, ...]] = {
    "string": (str,),
    "bool": (bool,),
    "int": (int, float),
    "float64": (int, float),
    "[]string": (list,),
    "[]api.Message": (list,),
    "[]openai.Message": (list,),
    "api.Tools": (list,),
    "[]api.Tool": (list,),
    "map[string]interface {}": (dict,),
    "map[string]string": (dict,),
}
GENERATE = {
    "model": "string", "prompt": "string", "suffix": "string", "system": "string", "template": "string",
    "stream": "bool", "raw": "bool", "options": "map[string]interface {}", "top_logprobs": "int",
}  # fmt: skip
CHAT = {"model": "string", "messages": "[]api.Message", "stream": "bool", "tools": "api.Tools",
        "options": "map[string]interface {}", "top_logprobs": "int"}  # fmt: skip
EMBED = {"model": "string", "truncate": "bool", "dimensions": "int", "options": "map[string]interface {}"}
EMBEDDING = {"model": "string", "prompt": "string", "options": "map[string]interface {}"}
SHOW = {"model": "string", "name": "string", "verbose": "bool", "system": "string"}
PULL = {"model": "string", "name": "string", "stream": "bool", "insecure": "bool"}
DELETE = {"model": "string", "name": "string"}
COPY = {"source": "string", "destination": "string"}
CREATE = {
    "model": "string", "name": "string", "from": "string", "template": "string", "system": "string",
    "quantize": "string", "stream": "bool", "files": "map[string]string", "adapters": "map[string]string",
    "parameters": "map[string]interface {}", "messages": "[]api.Message",
}  # fmt: skip
V1_CHAT = {
    "model": "string", "messages": "[]openai.Message", "stream": "bool", "max_tokens": "int", "seed": "int",
    "temperature": "float64", "top_p": "float64", "tools": "[]api.Tool", "top_logprobs": "int",
}  # fmt: skip
V1_COMPLETION = {
    "model": "string",
    "prompt": "string",
    "stream": "bool",
    "max_tokens": "int",
    "suffix": "string",
}
V1_EMBED = {"model": "string", "dimensions": "int", "encoding_format": "string"}


_BLANKS = b" \t\r\n"
_LITERALS = {"n": "null", "t": "true", "f": "false"}


def _complaint(error: json.JSONDecodeError, rest: str) -> str:
    """What Go's decoder would say."""
    if not rest.strip() or error.msg.startswith("Unterminated"):
        return "unexpected EOF"
    where = "looking for beginning of value"
    wrong = rest[0]
    if "property name" in error.msg:
        where = "looking for beginning of object key string"
    elif "delimiter" in error.msg:
        where = "after object key:value pair"
    elif literal := _LITERALS.get(wrong):
        same = sum(
            1 for _ in itertools.takewhile(lambda pair: pair[0] == pair[1], zip(rest, literal, strict=False))
        )
        if same == len(rest):
            return "unexpected EOF"
        wrong = rest[same]
        where = f"in literal {literal} (expecting '{literal[same]}')"
    shown = f"\\x{ord(wrong):02x}" if ord(wrong) < 32 else "\\'" if wrong == "'" else wrong
    return f"invalid character '{shown}' {where}"


def json_kind(value: object) -> str:
    """What Go calls a JSON value."""
    return _KINDS.get(type(value), "value")


def decode(
    raw: bytes, struct: str, fields: dict[str, str], empty: str = "missing request body"
) -> dict[str, Any]:
    """The body as an object whose known fields have their types; Refused with Go's own words otherwise."""
    if not raw.strip(_BLANKS):
        raise Refused(400, empty)
    try:
        text = raw.lstrip(_BLANKS).decode("utf-8", "replace")
        value, _ = json.JSONDecoder().raw_decode(text)
    except json.JSONDecodeError as error:
        rest = text[error.pos :]
        raise Refused(400, _complaint(error, rest)) from error
    if not isinstance(value, dict):
        kind = _KINDS.get(type(value), "value")
        raise Refused(400, f"json: cannot unmarshal {kind} into Go value of type {struct}")
    for name, go_type in fields.items():
        given = value.get(name)
        if given is None:
            continue
        allowed = _GO_TYPES[go_type]
        good = isinstance(given, allowed) and (bool in allowed or not isinstance(given, bool))
        if not good:
            kind = _KINDS.get(type(given), "value")
            short = struct.rpartition(".")[2]
            raise Refused(
                400, f"json: cannot unmarshal {kind} into Go struct field {short}.{name} of type {go_type}"
            )
    return value


_OPTION_KINDS: dict[str, str] = (
    dict.fromkeys(
        ("num_keep", "seed", "num_predict", "top_k", "repeat_last_n", "num_ctx", "num_batch", "num_gpu",
         "main_gpu", "num_thread", "draft_num_predict"), "integer")
    | dict.fromkeys(("top_p", "min_p", "typical_p", "temperature", "repeat_penalty", "presence_penalty",
                     "frequency_penalty"), "float32")
    | {"use_mmap": "boolean", "stop": "array"}
)  # fmt: skip


def check_options(options: dict[str, Any]) -> dict[str, Any]:
    """Options with their types; a wrong one is answered 500, as the original does."""
    found: dict[str, Any] = {}
    for key, value in options.items():
        kind = _OPTION_KINDS.get(key)
        if kind is None or value is None:
            continue
        number = isinstance(value, int | float) and not isinstance(value, bool)
        good = {
            "integer": number,
            "float32": number,
            "boolean": isinstance(value, bool),
            "array": isinstance(value, list),
        }[kind]
        if not good:
            raise Refused(500, f"option {quoted(key)} must be of type {kind}")
        if kind == "array" and not all(isinstance(item, str) for item in value):
            raise Refused(500, f"option {quoted(key)} must be of an array of strings")
        found[key] = int(value) if kind == "integer" else value
    return found
