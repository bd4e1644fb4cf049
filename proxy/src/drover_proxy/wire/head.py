"""Strict checks on the raw bytes of a head, before llhttp sees them, and the parsing of a request's head.

llhttp (as httptools 0.9.0 has it) is strict about most of what smuggling needs, but, found by trying, it
accepts HTTP/0.9 and HTTP/2.0, a request line without version, several spaces between its parts, RTSP and ICE,
any number of empty lines first, `Transfer-Encoding: gzip, chunked`, a fragment in the target, and chunk
extensions of any length.
And a parser with a known list of accepted bytes is one that the next version changes. So the raw bytes are
checked first, and llhttp has to agree.
"""

from __future__ import annotations

import re
from typing import Any, Final

import httptools

from drover_proxy.wire import fields
from drover_proxy.wire.fields import Fields, find_fault
from drover_proxy.wire.known import Known, KnownHeads, cut, digest_of
from drover_proxy.wire.limits import Limits

REQUEST_LINE = re.compile(rb"([!#$%&'*+\-.^_`|~0-9A-Za-z]+) ([!-~]+) HTTP/([0-9]\.[0-9])")
HOST = re.compile(rb"[A-Za-z0-9.\-_~%!$&'()*+,;=:\[\]]*")
ABSOLUTE = re.compile(rb"https?://([^/?#@]+)([/?].*)?", re.IGNORECASE)
START = re.compile(rb"(?:\r\n)?[!#$%&'*+\-.^_`|~0-9A-Za-z]+ (?:https?://[^/?#@ ]+)?(/[!-~]*) ", re.IGNORECASE)
LENGTH_DIGITS: Final = 18
"""A billion GB, and below 2^63: no reader of it overflows."""
MEMO_BYTES = 4096
"""A longer head isn't kept until the next: most are some 300 bytes, with a browser's cookies a few KiB."""
ZERO: Final = 0x30
NINE: Final = 0x39


class BadRequest(Exception):  # noqa: N818 - named after its answer
    """A request that gets an error and a closed connection, and is never forwarded."""

    def __init__(self, status: int, code: str, message: str) -> None:
        super().__init__(message)
        self.status = status
        self.code = code
        self.message = message


def bad(message: str) -> BadRequest:
    """Make the plain 400."""
    return BadRequest(400, "bad_request", message)


def is_length(value: bytes) -> bool:
    """Say whether this is one plain number, and not too long a one."""
    return value.isdigit() and len(value) <= LENGTH_DIGITS


def target_of(raw: bytes) -> bytes:
    """Give the target that a refused head seems to be for, b"" if it can't be told; only for error bodies."""
    start = START.match(raw[:MEMO_BYTES])
    return start[1] if start else b""


class Memo:
    """What was made of a head, for as long as its client sends the same one again."""

    __slots__ = ("forwarded", "handler")

    def __init__(self) -> None:
        self.forwarded: dict[tuple[bytes, bytes], bytes] = {}
        """The relay's: the heads made out of these fields, by target and host."""
        self.handler: Any = None
        """The handler's own: what it decided by the head alone."""


class HeadParser:
    """Parses the heads of one connection's requests, one after the other.

    llhttp is shown every head that doesn't just repeat one that it was shown, and every chunked body, cut
    where we take the message to end: it has to agree.
    """

    __slots__ = (
        "_agree",
        "_complete",
        "_length_at",
        "_llhttp",
        "_same",
        "chunked",
        "expects",
        "fields",
        "heads",
        "http10",
        "keep_alive",
        "length",
        "memo",
        "method",
        "target",
    )

    def __init__(self) -> None:
        self._llhttp: httptools.HttpRequestParser | None = None
        self._complete = False
        """llhttp has seen the end of the message."""
        self._agree = False
        """llhttp has seen all that came before: what follows can be shown to it, too."""
        self.heads: KnownHeads | None = None
        """What other connections have read, for the first head of this one."""
        self._same: tuple[bytes, bytes] | None = None
        """The head before, around the digits of its length; None: it isn't kept."""
        self._length_at = 0
        """Where the length stands in `fields`."""
        self.memo = Memo()
        self.method = b""
        self.target = b""
        self.fields: Fields = []
        self.length = 0
        self.chunked = False
        self.http10 = False
        self.keep_alive = True
        self.expects = False

    def on_message_complete(self) -> None:
        """Take note that llhttp saw the end of the message; of all its callbacks we need no other."""
        self._complete = True

    def parse(self, raw: bytes, limits: Limits) -> None:
        """Take a whole head, its empty line included; fill the attributes or raise BadRequest."""
        if self.again(raw) == len(raw):
            return
        heads, self.heads = self.heads, None
        if heads is None or len(raw) > MEMO_BYTES:
            self._read(raw, limits)
            return
        before, digits, behind = cut(raw)
        digest = digest_of(before, behind)
        known = heads.get(digest)
        if known is not None and (not behind or is_length(digits)):
            self._recall(known, before, digits, behind)
            return
        self._read(raw, limits)
        if self._same == (before, behind):
            heads.keep(digest, self, before, behind, self._length_at)

    def _recall(self, known: Known, before: bytes, digits: bytes, behind: bytes) -> None:
        """Take over what another connection's head came to, which was the same but for its length."""
        self._same = (before, behind)
        self._length_at = known.length_at
        self._agree = self.chunked = False
        self.method, self.target, self.memo = known.method, known.target, known.memo
        self.http10, self.keep_alive, self.expects = known.http10, known.keep_alive, known.expects
        self.fields = known.fields_of(before, digits, behind)
        self.length = int(digits) if behind else 0

    def _read(self, raw: bytes, limits: Limits) -> None:
        """Read a head that is like none before."""
        self._same = None
        self.memo = Memo()
        lines = raw[:-4].split(b"\r\n")
        line = REQUEST_LINE.fullmatch(lines[0])
        if line is None:
            raise bad(find_fault(raw) or "the request line is malformed")
        self.method, self.target, version = line.groups()
        self.http10 = http10 = version == b"1.0"
        if not http10 and version != b"1.1":
            raise BadRequest(505, "http_version", "only HTTP/1.1 and HTTP/1.0 are spoken here")
        if len(lines) - 1 > limits.header_count:
            raise BadRequest(431, "too_many_headers", f"more than {limits.header_count} header fields")
        if self.method == b"CONNECT":
            raise BadRequest(501, "connect_refused", "this is no tunnel: CONNECT is refused")
        del lines[0]
        try:
            self.fields = fields.read(lines)
        except ValueError as error:
            raise bad(str(error)) from None
        self._framing()
        self._check(raw)
        if self._agree and not self.chunked and len(raw) <= MEMO_BYTES:
            self._remember(raw)
        if self.length:
            self._agree = False  # llhttp isn't shown plain bodies: there is nothing in them to agree about

    def again(self, data: bytes) -> int:
        """Take a head that is the one before but for the digits of its length; return its size, else 0."""
        same = self._same
        if same is None or not data.startswith(same[0]):
            return 0
        before, after = same
        start = end = len(before)
        if after:
            most = min(len(data), start + LENGTH_DIGITS)
            length = 0
            while end < most and ZERO <= data[end] <= NINE:
                length = length * 10 + data[end] - ZERO
                end += 1
            if end == start or data[end : end + len(after)] != after:
                return 0
            self.length = length
            self.fields = self.fields.copy()
            self.fields[self._length_at] = (b"content-length", data[start:end])
        return end + len(after)

    def _remember(self, raw: bytes) -> None:
        """Keep this head until the next: a client that stays mostly changes nothing but the length."""
        if not self.length:
            self._same = (raw, b"")
            return
        before, digits, behind = cut(raw)
        value = self.fields[self._length_at][1]
        if digits != value:  # it is spelt or spaced in a way of its own
            start = raw.index(value, raw.lower().index(b"\r\ncontent-length:") + 17)
            before, behind = raw[:start], raw[start + len(value) :]
        self._same = (before, behind)

    def _check(self, raw: bytes) -> None:
        """Let llhttp see the head, and refuse it if llhttp does."""
        llhttp = self._llhttp
        if llhttp is None or not self._agree:
            llhttp = self._llhttp = httptools.HttpRequestParser(self)
            self._agree = True
        self._complete = False
        try:
            llhttp.feed_data(raw)
        except httptools.HttpParserUpgrade:
            # llhttp takes all that follows for another protocol. We don't switch: h2c is an offer, which
            # Java's client makes with its first request, so that is served as HTTP/1.1.
            self._agree = False
            if any(n == b"upgrade" and v.lower() != b"h2c" for n, v in self.fields):
                raise BadRequest(501, "upgrade_refused", "no other protocol is spoken here") from None
        except httptools.HttpParserInvalidMethodError:
            raise BadRequest(501, "unknown_method", f"method {self.method.decode()} is not known") from None
        except httptools.HttpParserError as error:
            raise bad(f"malformed head: {error}") from None

    def _framing(self) -> None:
        """Find the body's length and the few fields that concern the connection; refuse what is ambiguous."""
        length: bytes | None = None
        hosts = 0
        self.chunked = self.expects = False
        self.keep_alive = not self.http10
        for at, (name, value) in enumerate(self.fields):
            if name not in _OURS:
                continue
            if name == b"content-length":
                if length is not None or not is_length(value):
                    raise bad("Content-Length must be one plain number, once")
                length = value
                self._length_at = at
            elif name == b"transfer-encoding":
                if self.chunked or value.lower() != b"chunked" or self.http10:
                    raise bad("Transfer-Encoding must be chunked, once, in HTTP/1.1")
                self.chunked = True
            elif name == b"host":
                hosts += 1
                if HOST.fullmatch(value) is None:
                    raise bad("Host is malformed")
            elif name == b"expect" or value != b"keep-alive":  # which is what it is anyway
                self._about_the_connection(name, value.lower())
        if self.chunked and length is not None:
            raise bad("Content-Length and Transfer-Encoding together are ambiguous")
        if hosts > 1 or (hosts == 0 and not self.http10):
            raise bad("exactly one Host field is needed")
        self.length = int(length) if length else 0
        if not self.target.startswith(b"/") or self.target.find(b"#") >= 0:
            self._odd_target()

    def _about_the_connection(self, name: bytes, value: bytes) -> None:
        """Heed Connection and Expect."""
        if name == b"expect":
            if value != b"100-continue":
                raise BadRequest(417, "expectation_failed", "only Expect: 100-continue can be met")
            self.expects = not self.http10
        elif b"close" in [token.strip() for token in value.split(b",")]:
            self.keep_alive = False

    def _odd_target(self) -> None:
        """Bring the target into origin-form; refuse what has none."""
        target = self.target
        if b"#" in target:
            raise bad("the target contains a fragment")
        if target == b"*" and self.method == b"OPTIONS":
            return
        absolute = ABSOLUTE.fullmatch(target)
        if absolute is None or HOST.fullmatch(absolute[1]) is None:
            raise bad("the target is neither a path nor an http URL")
        rest = absolute[2] or b"/"
        self.target = rest if rest.startswith(b"/") else b"/" + rest
        # RFC 9112, 3.2.2: the target's authority counts, and not the Host field.
        self.fields = [(n, absolute[1] if n == b"host" else v) for n, v in self.fields]

    def length_line(self) -> bytes:
        """Say how long the body is, as the client said it."""
        if self.chunked:
            return b"transfer-encoding: chunked\r\n"
        return b"content-length: %d\r\n" % self.length

    def feed(self, data: bytes, *, last: bool) -> None:
        """Show llhttp a piece of a chunked body as we cut it; raise BadRequest if it sees another end."""
        if not self._agree:
            return
        assert self._llhttp is not None
        try:
            self._llhttp.feed_data(data)
        except httptools.HttpParserError as error:
            raise bad(f"malformed body: {error}") from None
        if self._complete is not last:
            raise bad("the end of the body is ambiguous")


_OURS = frozenset((b"content-length", b"transfer-encoding", b"host", b"expect", b"connection"))
