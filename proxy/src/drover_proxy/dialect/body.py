"""Request bodies: read as Ollama reads them, and changed only where something must change.

Ollama matches field names without regard to case, lets a repeated field overwrite (or merge with) the one
before, and obeys runner options from any client, each of which reloads the model for everybody. So:

- a field that stands there in two spellings is refused (400), since readers could differ on which one counts;
- bytes are passed on untouched only when their length proves that the fields we saw are all there are;
  otherwise the body is written anew from what we saw, so that what was checked is what runs;
- `keep_alive`, `shift` and the runner options are taken out of native requests, and the profile's put in.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Final

import msgspec

from drover_proxy.dialect.many import read_large
from drover_proxy.dialect.names import CloudName, NameProblem, canonical, is_local
from drover_proxy.dialect.routes import Route

RUNNER_OPTIONS = frozenset(
    {"num_ctx", "num_batch", "num_gpu", "main_gpu", "use_mmap", "num_thread", "draft_num_predict"}
)
TAKEN_OUT = ("keep_alive", "shift")
FIELDS = ("model", "name", "stream", "keep_alive", "options", "shift", "prompt", "messages", "images",
          "source", "destination", "from", "tools",
          "remote_host")  # fmt: skip
SEARCHING: Final = ("/v1/messages", "/v1/responses")
"""Routes on which Ollama itself runs some tools that a model calls: at ollama.com, for the host's account."""
THEIR_TOOLS: Final = ("web_search", "web_fetch")
"""How the types of such tools begin; their dates and versions come behind."""
OTHER_NAMES: Final = {"/api/copy": "destination", "/api/create": "from"}
"""Where a second model stands in a body, by route."""
EMPTY = (b'""', b"null", b"[]")
ZERO = (b"0", b'"0"', b'"0s"', b'"0m"', b'"0h"', b"-0", b"0.0", b'"0ms"')

DECODE: Final = msgspec.json.Decoder(dict[str, msgspec.Raw]).decode
DECODE_TEXT: Final = msgspec.json.Decoder(str).decode
DECODE_LIST: Final = msgspec.json.Decoder(list[msgspec.Raw]).decode
DECODE_FLAG: Final = msgspec.json.Decoder(bool).decode

LARGE_BYTES: Final = 64 * 1024
"""A shorter object can't have so many fields that reading them takes long."""

KEPT_SHAPES, KEPT_NAMES, KEPT_NAMES_BYTES = 512, 64, 1024
_plain: Final[dict[tuple[str, ...], int]] = {}
"""By the names of a body's fields, in their order: see _plain_bytes."""


class BodyProblem(Exception):  # noqa: N818 - what is wrong with a body
    """A request that is answered with an error because of its body."""

    def __init__(self, status: int, code: str, message: str) -> None:
        super().__init__(message)
        self.status = status
        self.code = code
        self.message = message


@dataclass(slots=True, init=False)
class Asked:
    """What a body asks for, and how it will be written for the instance."""

    name: str
    """The model as the client spelt it."""
    model: str
    """Its canonical name; aliases are not resolved yet."""
    stream: bool
    source: bytes
    fields: dict[str, msgspec.Raw]
    changed: bool
    """Something was taken out, or the bytes don't prove themselves: write the body anew."""
    options: dict[str, msgspec.Raw] | None = None
    empty_prompt: bool = False
    unload: bool = False
    """An empty prompt with keep_alive 0: the client wants the model unloaded."""
    other: str = ""
    """The second model that a body names, as spelt: a copy's own, or what one is made from."""
    other_key: str = ""
    """The field that it stands in."""
    key: str = ""
    """The field that the name stands in, where that is neither `model` nor `name`."""

    def __init__(
        self,
        name: str,
        model: str,
        stream: bool,
        source: bytes,
        fields: dict[str, msgspec.Raw],
        changed: bool,
    ) -> None:
        # Written out, since it is made once a request: see core/events.py.
        self.name = name
        self.model = model
        self.stream = stream
        self.source = source
        self.fields = fields
        self.changed = changed
        self.options = None
        self.empty_prompt = False
        self.unload = False
        self.other = ""
        self.other_key = ""
        self.key = ""

    def text(self, key: str) -> str:
        """Return a field's text, "" where there is none; BodyProblem where it is something else."""
        return _string(self.fields, key)

    def render(self, model: str, options: Mapping[str, int] | None = None) -> bytes:
        """Return the bytes for the instance, asking for `model` with the profile's runner options."""
        rename = model != self.model or is_local(self.name)
        other = _without_local(self.other) if self.other_key else ""
        if not (rename or options or self.changed or other):
            return self.source
        fields = dict(self.fields)
        if other:
            fields[self.other_key] = msgspec.Raw(msgspec.json.encode(other))
        if rename:
            key = self.key or ("model" if "model" in fields else "name")
            fields[key] = msgspec.Raw(msgspec.json.encode(model))
        merged = dict(self.options or {})
        for name, value in (options or {}).items():
            merged[name] = msgspec.Raw(msgspec.json.encode(value))
        if merged:
            fields["options"] = msgspec.Raw(msgspec.json.encode(merged))
        elif self.options is not None:
            fields.pop("options", None)
        return msgspec.json.encode(fields)


def model_of(name: str) -> str:
    """Return a name's canonical form; BodyProblem for one that can't be served."""
    try:
        return canonical(name)
    except CloudName as cloud:  # a name of its own: compiled, a variable has one type
        raise BodyProblem(
            403, "cloud_refused", "ollama cloud is disabled: remote model is unavailable"
        ) from cloud
    except NameProblem as problem:  # another name than above: compiled, a variable has one type
        raise BodyProblem(400, "invalid_model_name", str(problem)) from problem


def _without_local(name: str) -> str:
    """Return the canonical form of a name that says `:local`; "" for any other, which goes on as it is.

    Ollama takes that for "not the cloud" where a model is used, and for a tag like any other where one is
    copied: so the model that was checked would not be the one that is written.
    """
    if not is_local(name):
        return ""
    try:
        return canonical(name)
    except NameProblem:  # Ollama knows more forms in `from`, and says itself what is wrong with one
        return ""


def read(route: Route, body: bytes) -> Asked:
    """Read a body that names a model; BodyProblem where it can't be served."""
    fields, changed = _read_fields(body, route)
    source = "source" if route.name == "/api/copy" else ""
    name = _name(fields, source)
    asked = Asked(name, model_of(name), _stream(fields, route), body, fields, changed)
    if source:
        asked.key = source
    if key := OTHER_NAMES.get(route.name, ""):
        asked.other_key = key
        asked.other = _string(fields, key)
    if route.native:
        _make_native(asked, route)
    elif "tools" in fields and route.name in SEARCHING:
        _check_tools(asked)
    return asked


def _read_fields(body: bytes, route: Route) -> tuple[dict[str, msgspec.Raw], bool]:
    try:
        fields = DECODE(body) if len(body) <= LARGE_BYTES else read_large(body)
    except (msgspec.DecodeError, RecursionError, UnicodeDecodeError) as error:
        if not body.strip():
            raise BodyProblem(400, "invalid_body", "missing request body") from error
        raise BodyProblem(400, "invalid_body", f"the body of {route.name} is not usable: {error}") from error
    names = tuple(fields)
    least = _plain.get(names)
    if least is None:
        least = _plain_bytes(names)
    if least:  # as good as always: nothing to fold
        return fields, len(body) != least + _values_bytes(fields)
    changed = False
    for field in list(fields):
        folded = field.casefold()
        if folded != field and folded in FIELDS:
            if folded in fields or sum(other.casefold() == folded for other in fields) > 1:
                message = f"the field {folded!r} stands in the body in more than one spelling"
                raise BodyProblem(400, "ambiguous_body", message)
            changed = True
    if changed:
        fields = {key.casefold() if key.casefold() in FIELDS else key: raw for key, raw in fields.items()}
    return fields, changed or not _proves_itself(body, fields)


def _plain_bytes(names: tuple[str, ...]) -> int:
    """Return _least_bytes of these names; 0 where one isn't plain, as it might be read as another one.

    Clients send the same few fields over and over, so this is kept, unless it is so long that somebody only
    wants to fill the memory.
    """
    joined = "".join(names)
    least = _least_bytes(names) if joined.isascii() and joined.islower() else 0
    if len(names) <= KEPT_NAMES and len(joined) <= KEPT_NAMES_BYTES:
        if len(_plain) >= KEPT_SHAPES:
            _plain.clear()
        _plain[names] = least
    return least


def _least_bytes(names: Collection[str]) -> int:
    """Return how long an object of these fields is, written without blanks, besides their values."""
    return 1 + 4 * len(names) + len("".join(names).encode())


def _values_bytes(fields: dict[str, msgspec.Raw]) -> int:
    total = 0
    for raw in fields.values():
        total += len(raw)
    return total


def _proves_itself(body: bytes, fields: dict[str, msgspec.Raw]) -> bool:
    # A repeated field, or one whose name is escaped, makes the body longer than the fields that were read
    # need, written without blanks, as most clients write. Blanks would be room to hide a field in: a body
    # that has some is written anew.
    return len(body) == _least_bytes(fields) + _values_bytes(fields)


def _is_null(raw: msgspec.Raw) -> bool:
    return len(raw) == 4 and bytes(raw) == b"null"


def _short(raw: msgspec.Raw | None) -> bytes:
    """Return a short value's bytes, null for an absent one; long ones are not copied to be looked at."""
    if raw is None:
        return b"null"
    return bytes(raw) if len(raw) < 16 else b"long"


def _string(fields: dict[str, msgspec.Raw], key: str) -> str:
    raw = fields.get(key)
    if raw is None or _is_null(raw):
        return ""
    try:
        return DECODE_TEXT(raw)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise BodyProblem(400, "invalid_body", f"the field {key!r} must be a string") from error


def _name(fields: dict[str, msgspec.Raw], source: str) -> str:
    name = _string(fields, source) if source else _string(fields, "model") or _string(fields, "name")
    if not name:
        raise BodyProblem(400, "model_required", f"{source or 'model'} is required")
    return name


def _stream(fields: dict[str, msgspec.Raw], route: Route) -> bool:
    raw = fields.get("stream")
    if raw is None:
        return route.stream_default
    try:
        return DECODE_FLAG(raw)
    except msgspec.DecodeError as error:
        if _is_null(raw):
            return route.stream_default
        raise BodyProblem(400, "invalid_body", "the field 'stream' must be true or false") from error


def _check_tools(asked: Asked) -> None:
    """Refuse tools that Ollama would run somewhere else; write those anew that might be read as others."""
    raw = asked.fields["tools"]
    if _is_null(raw):
        return
    try:
        each = DECODE_LIST(raw)
        tools = [DECODE(one) for one in each]
    except (msgspec.DecodeError, RecursionError, UnicodeDecodeError) as error:
        raise BodyProblem(400, "invalid_body", "the field 'tools' must be a list of objects") from error
    for tool in tools:
        for key in tool:
            if key.casefold() == "type" and _string(tool, key).casefold().startswith(THEIR_TOOLS):
                message = "this tool acts for the host's account at ollama.com: the proxy never passes it on"
                raise BodyProblem(403, "not_offered", message)
    proofs = [_proves_itself(bytes(one), tool) for one, tool in zip(each, tools, strict=True)]
    if not all(proofs):
        # A field that is repeated counts once here; Ollama lets a null keep what was there before.
        asked.fields["tools"] = msgspec.Raw(msgspec.json.encode(tools))
        asked.changed = True


def _make_native(asked: Asked, route: Route) -> None:
    fields = asked.fields
    if route.prompt_key:
        empty = all(_short(fields.get(key)) in EMPTY for key in (route.prompt_key, "images"))
        asked.empty_prompt = empty
        asked.unload = empty and _short(fields.get("keep_alive")) in ZERO
    for key in TAKEN_OUT:
        if fields.pop(key, None) is not None:
            asked.changed = True
    raw = fields.get("options")
    if raw is None or _is_null(raw):
        return
    try:
        options = DECODE(raw) if len(raw) <= LARGE_BYTES else read_large(raw)
    except (msgspec.DecodeError, RecursionError, UnicodeDecodeError) as error:
        raise BodyProblem(400, "invalid_body", "the field 'options' must be an object") from error
    kept = {key: value for key, value in options.items() if key.casefold() not in RUNNER_OPTIONS}
    asked.options = kept
    if len(kept) != len(options) or not _proves_itself(bytes(raw), options):
        asked.changed = True
