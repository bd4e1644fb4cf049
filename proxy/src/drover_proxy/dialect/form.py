"""The form of /v1/audio/transcriptions: taken apart strictly, and written anew from what was found.

Two readers of one multipart body can disagree about it: a second `model`, a boundary in odd quotes, a
transfer encoding, a field in the query. So nothing of the client's own framing goes on: what was checked is
what is sent.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass

from drover_proxy.dialect.body import Asked, BodyProblem, model_of

TYPE = re.compile(
    rb"multipart/form-data[ \t]*;[ \t]*boundary=(\"?)([0-9A-Za-z'()+_,\-./:=?]{1,70})\1", re.IGNORECASE
)
DISPOSITION = re.compile(
    rb"content-disposition:[ \t]*form-data;[ \t]*name=\"([A-Za-z0-9_.\[\]-]{1,64})\""
    rb"(;[ \t]*filename\*?=[^\r\n]*)?",
    re.IGNORECASE,
)
MEDIA = re.compile(
    rb"content-type:[ \t]*([A-Za-z0-9!#$&^_.+-]+/[A-Za-z0-9!#$&^_.+-]+)[^\r\n]*", re.IGNORECASE
)
PARTS = 64
"""Fields of a form; OpenAI's has seven."""
HEAD_BYTES = 2048
"""Of one field's own header."""
ONCE = ("model", "file")


@dataclass(frozen=True, slots=True)
class Part:
    """One field of the form."""

    name: str
    content: bytes
    media: bytes
    """Its Content-Type, b"" where none was told."""
    is_file: bool

    def render(self, content: bytes) -> bytes:
        """Write it; what the client called its file is nobody's business."""
        named = b'Content-Disposition: form-data; name="%b"' % self.name.encode()
        if self.is_file:
            named += b'; filename="%b"' % self.name.encode()
        media = b"\r\nContent-Type: " + self.media if self.media else b""
        return b"%b%b\r\n\r\n%b" % (named, media, content)


class Form(Asked):
    """What a form asks for."""

    __slots__ = ("boundary", "parts")

    def __init__(self, name: str, body: bytes, boundary: bytes, parts: list[Part]) -> None:
        super().__init__(name, model_of(name), stream=False, source=body, fields={}, changed=True)
        self.boundary = boundary
        self.parts = parts

    def render(self, model: str, options: Mapping[str, int] | None = None) -> bytes:  # noqa: ARG002 - as Asked
        """Return the bytes for the instance, asking for `model`; a form carries no runner options."""
        line = b"--" + self.boundary
        pieces = []
        for part in self.parts:
            content = model.encode() if part.name == "model" else part.content
            pieces.append(b"%b\r\n%b\r\n" % (line, part.render(content)))
        return b"".join((*pieces, line, b"--\r\n"))


def read(body: bytes, content_type: bytes | None) -> Form:
    """Read a form that names a model; BodyProblem where it can't be served."""
    kind = TYPE.fullmatch((content_type or b"").strip())
    if kind is None:
        raise _bad("multipart/form-data with a plain boundary is expected")
    boundary = kind[2]
    first, *pieces = (b"\r\n" + body).split(b"\r\n--" + boundary, PARTS + 2)
    if len(pieces) > PARTS + 1:
        raise _bad(f"a form of more than {PARTS} fields")
    if first or not pieces or pieces.pop() not in {b"--", b"--\r\n"}:
        raise _bad("the form doesn't begin and end with its boundary")
    parts = [_part(piece) for piece in pieces]
    for name in ONCE:
        if sum(part.name.casefold() == name for part in parts) > 1:
            raise BodyProblem(400, "ambiguous_body", f"the field {name!r} stands in the form more than once")
    raw = next((part.content for part in parts if part.name == "model" and not part.is_file), b"")
    try:
        text = raw.decode()
    except UnicodeDecodeError as error:
        raise _bad("the model's name is not UTF-8") from error
    if not text:
        raise BodyProblem(400, "model_required", "model is required")
    return Form(text, body, boundary, parts)


def _part(piece: bytes) -> Part:
    """Read one field, header and content, as it stands between two boundaries."""
    head, blank, content = piece[: HEAD_BYTES + 4].partition(b"\r\n\r\n")
    if not blank or not head.startswith(b"\r\n"):
        raise _bad("a field of the form has no proper header")
    content = piece[len(head) + 4 :]
    dispositions = [m for line in head.split(b"\r\n") if (m := DISPOSITION.fullmatch(line))]
    if len(dispositions) != 1:
        raise _bad("a field of the form must have one Content-Disposition, with a plain name")
    found = dispositions[0]
    media = next((m[1] for line in head.split(b"\r\n") if (m := MEDIA.fullmatch(line))), b"")
    is_file = found[2] is not None
    return Part(found[1].decode(), content, media, is_file)


def _bad(message: str) -> BodyProblem:
    return BodyProblem(400, "invalid_body", message)
