"""Watches: an answer's end is found wherever the network cuts, and no other bytes are taken for one.

Input: one byte for the dialect, one for where the network cuts, then the body of the answer.
"""

from __future__ import annotations

import json

from drover_proxy.dialect.routes import Shape
from drover_proxy.dialect.watches import KEPT_BYTES, SEPARATOR, StreamWatch

from tests.fuzz.fakes import cuts

SHAPES = list(Shape)


def watched(shape: Shape, body: bytes, cut: int) -> tuple[bool, str | None]:
    """Let a watch follow the body."""
    watch = StreamWatch(shape)
    for piece in cuts(body, cut):
        watch.feed(piece)
    assert len(watch._record) <= KEPT_BYTES + 256, "it keeps more and more"
    assert watch.whole(500), "other answers than 200 end by their framing"
    return watch.whole(200), watch.error()


def check(data: bytes) -> None:
    """Compare with a reading of the whole body at once, and with itself cut otherwise."""
    if len(data) < 3:
        return
    shape, cut, body = SHAPES[data[0] % len(SHAPES)], data[1], data[2:]
    found = watched(shape, body, 0)
    assert watched(shape, body, cut or 255) == found, "cut otherwise, it ends otherwise"
    whole, error = found
    event = StreamWatch(shape).error_event()
    ending = body + (SEPARATOR[shape] if not body.endswith(SEPARATOR[shape]) else b"")
    assert watched(shape, ending + event, cut)[1] is not None, "our own error event isn't seen as one"
    record = last_record(body, SEPARATOR[shape])
    if error is not None:
        assert b"error" in record or b"response.failed" in record
    if shape in {Shape.DONE, Shape.STATUS} and error is None and len(record) < KEPT_BYTES - 16:
        _ends_natively(shape, record, whole=whole)


def last_record(body: bytes, separator: bytes) -> bytes:
    """Give the last record that isn't empty."""
    records = [record for record in body.strip(b"\n").split(separator) if record]
    return records[-1] if records else b""


def _ends_natively(shape: Shape, record: bytes, *, whole: bool) -> None:
    """See that where the last line is JSON, the answer is whole if it says by itself that it is the end."""
    try:
        line = json.loads(record)
    except (ValueError, RecursionError):
        return
    if isinstance(line, dict):
        last = line.get("done") is True if shape is Shape.DONE else line.get("status") == "success"
        assert whole is last, line


def seeds() -> list[bytes]:
    """Whole answers of every dialect, and broken ones."""
    bodies = {
        Shape.DONE: [
            b'{"model":"a","response":"b","done":false}\n{"model":"a","done":true,"context":[1,2]}\n',
            b'{"response":"b","done":false}\n{"error":"unexpected EOF"}\n',
            b'{"response":"\\"done\\":true","done":false}\n',
            b'{"message":{"tool_calls":[{"arguments":{"done":true}}]},"done":false}\n',
            b'{"done":true,"total_dura',
        ],
        Shape.STATUS: [b'{"status":"pulling manifest"}\n{"status":"success"}\n', b'{"error":"x"}\n'],
        Shape.CHAT: [
            b'data: {"choices":[]}\n\ndata: [DONE]\n\n',
            b'data: {"error":{"message":"x"}}\n\n',
            b"data: [DONE]\n\ndata: {}\n\n",
        ],
        Shape.RESPONSES: [
            b'event: response.created\ndata: {}\n\nevent: response.completed\ndata: {"type":"x"}\n\n',
            b"event: response.failed\ndata: {}\n\n",
            b"event: error\r\ndata: {}\n\n",
        ],
        Shape.MESSAGES: [
            b"event: message_start\ndata: {}\n\nevent: message_stop\ndata: {}\n\n",
            b"event: error\ndata: {}\n\n",
        ],
    }
    return [
        bytes((SHAPES.index(shape), 3 * index)) + body
        for shape, found in bodies.items()
        for index, body in enumerate(found)
    ]
