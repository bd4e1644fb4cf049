"""Strict checks on the raw bytes of a head, before llhttp sees them, and the parsing of a request's head.

llhttp (as httptools 0.9.0 has it) is strict about most of what smuggling needs, but, found by trying, it accepts
HTTP/0.9 and HTTP/2.0, a request line without version, several spaces between its parts, RTSP and ICE, any number
of empty lines first, `Transfer-Encoding: gzip, chunked`, a fragment in the target, chunk extensions of any length.
And a parser with a known list of accepted bytes is one that the next version changes. So the raw bytes are
checked first, and llhttp has to agree.
"""

from __future__ import annotations

import re

import httptools

from drover_proxy.wire.headers import Fields
from drover_proxy.wire.limits import Limits

CONTROL = bytes(byte for byte in range(32) if byte not in b"\t\r\n") + b"\x7f"
"""Bytes that have no place anywhere in a head (RFC 9110, 5.5)."""

REQUEST_LINE = re.compile(rb"([!#$%&'*+\-.^_`|~0-9A-Za-z]+) ([!-~]+) HTTP/([0-9])\.([0-9])\r\n")
HOST = re.compile(rb"[A-Za-z0-9.\-_~%!$&'()*+,;=:\[\]]*")
ABSOLUTE = re.compile(rb"https?://([^/?#@]+)([/?].*)?", re.IGNORECASE)
LENGTH = re.compile(rb"[0-9]{1,18}")


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


def find_fault(raw: bytes) -> str | None:
    """Say what is wrong with the bytes of a head, or of the beginning of one."""
    if len(raw.translate(None, CONTROL)) != len(raw):
        return "a control character stands in the head"
    ends = raw.count(b"\r\n")
    if raw.count(b"\n") != ends:
        return "a line ends in LF without CR"
    if raw.count(b"\r") - raw.endswith(b"\r") != ends:
        return "a CR stands without LF"
    if b"\n " in raw or b"\n\t" in raw:
        return "a line begins with white space (obsolete line folding)"
    return None


class HeadParser:
    """Parses the heads of one connection's requests, one after the other.

    llhttp is fed exactly the bytes that we take for one message, its body too, and has to agree at its end.
    """

    __slots__ = (
        "_agree",
        "_complete",
        "_fields",
        "_llhttp",
        "_url",
        "chunked",
        "expects",
        "fields",
        "http10",
        "keep_alive",
        "length",
        "method",
        "target",
    )

    def __init__(self) -> None:
        self._llhttp = httptools.HttpRequestParser(self)
        self._complete = False
        self._agree = True
        self._url = b""
        self._fields: Fields = []
        self.method = b""
        self.target = b""
        self.fields: Fields = []
        self.length = 0
        self.chunked = False
        self.http10 = False
        self.keep_alive = True
        self.expects = False

    # What llhttp calls.

    def on_url(self, url: bytes) -> None:
        """Take a piece of the target; llhttp may give it in several."""
        self._url += url

    def on_header(self, name: bytes, value: bytes) -> None:
        """Take a field."""
        self._fields.append((name.lower(), value.rstrip(b" \t")))

    def on_message_complete(self) -> None:
        """Take note that llhttp saw the end of the message."""
        self._complete = True

    # What the connection calls.

    def parse(self, raw: bytes, limits: Limits) -> None:
        """Take a whole head, its empty line included; fill the attributes or raise BadRequest."""
        fault = find_fault(raw)
        if fault:
            raise bad(fault)
        line = REQUEST_LINE.match(raw)
        if line is None:
            raise bad("the request line is malformed")
        if line[3] != b"1" or line[4] not in b"01":
            raise BadRequest(505, "http_version", "only HTTP/1.1 and HTTP/1.0 are spoken here")
        if raw.count(b"\n") - 2 > limits.header_count:
            raise BadRequest(431, "too_many_headers", f"more than {limits.header_count} header fields")
        self.method = line[1]
        self.http10 = line[4] == b"0"
        if self.method == b"CONNECT":
            raise BadRequest(501, "connect_refused", "this is no tunnel: CONNECT is refused")
        self._read(raw)
        self.fields, self.target = self._fields, self._url
        self._framing()

    def _read(self, raw: bytes) -> None:
        """Let llhttp take the head apart."""
        if not self._agree:
            self._llhttp = httptools.HttpRequestParser(self)
            self._agree = True
        self._complete = False
        self._url = b""
        self._fields = []
        try:
            self._llhttp.feed_data(raw)
        except httptools.HttpParserUpgrade:
            # llhttp takes all that follows for another protocol. We don't switch: h2c is an offer, which
            # Java's client makes with its first request, so that is served as HTTP/1.1.
            self._agree = False
            if any(n == b"upgrade" and v.lower() != b"h2c" for n, v in self._fields):
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
        for name, value in self.fields:
            if name not in _OURS:
                continue
            if name == b"content-length":
                if length is not None or LENGTH.fullmatch(value) is None:
                    raise bad("Content-Length must be one plain number, once")
                length = value
            elif name == b"transfer-encoding":
                if self.chunked or value.lower() != b"chunked" or self.http10:
                    raise bad("Transfer-Encoding must be chunked, once, in HTTP/1.1")
                self.chunked = True
            elif name == b"host":
                hosts += 1
                if HOST.fullmatch(value) is None:
                    raise bad("Host is malformed")
            elif name == b"expect":
                if value.lower() != b"100-continue":
                    raise BadRequest(417, "expectation_failed", "only Expect: 100-continue can be met")
                self.expects = not self.http10
            elif b"close" in [token.strip() for token in value.lower().split(b",")]:
                self.keep_alive = False
        if self.chunked and length is not None:
            raise bad("Content-Length and Transfer-Encoding together are ambiguous")
        if hosts > 1 or (hosts == 0 and not self.http10):
            raise bad("exactly one Host field is needed")
        self.length = int(length) if length else 0
        self._target()

    def _target(self) -> None:
        """Bring the target into origin-form; refuse what has none."""
        target = self.target
        if b"#" in target:
            raise bad("the target contains a fragment")
        if target.startswith(b"/") or (target == b"*" and self.method == b"OPTIONS"):
            return
        absolute = ABSOLUTE.fullmatch(target)
        if absolute is None or HOST.fullmatch(absolute[1]) is None:
            raise bad("the target is neither a path nor an http URL")
        rest = absolute[2] or b"/"
        self.target = rest if rest.startswith(b"/") else b"/" + rest
        # RFC 9112, 3.2.2: the target's authority counts, and not the Host field.
        self.fields = [(n, absolute[1] if n == b"host" else v) for n, v in self.fields]

    def feed(self, data: bytes, *, last: bool) -> None:
        """Show llhttp a piece of the body as we cut it; raise BadRequest if it sees another end than we do."""
        if not self._agree:
            return
        try:
            self._llhttp.feed_data(data)
        except httptools.HttpParserError as error:
            raise bad(f"malformed body: {error}") from None
        if self._complete is not last:
            raise bad("the end of the body is ambiguous")


_OURS = frozenset((b"content-length", b"transfer-encoding", b"host", b"expect", b"connection"))
