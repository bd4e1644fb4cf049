"""Watches: when a streamed answer is whole, in every dialect, however it is cut into pieces."""

from __future__ import annotations

import itertools
import json

import pytest
from drover_proxy.dialect.routes import Shape
from drover_proxy.dialect.watches import KEPT_BYTES, StreamWatch
from hypothesis import given
from hypothesis import strategies as st

LAST = b'{"model":"m","response":"","done":true,"done_reason":"stop","context":[%b1]}\n' % (b"12345," * 3000)
COMPLETED = b'event: response.completed\ndata: {"response":"%b"}\n\n' % (b"x" * 9000)
STREAMS = {
    Shape.DONE: (b'{"response":"a","done":false}\n' * 3, LAST),
    Shape.STATUS: (b'{"status":"pulling"}\n', b'{"status":"success"}\n'),
    Shape.CHAT: (b'data: {"choices":[{"delta":{"content":"a"}}]}\n\n' * 3, b"data: [DONE]\n\n"),
    Shape.RESPONSES: (b"event: response.output_text.delta\ndata: {}\n\n", COMPLETED),
    Shape.MESSAGES: (
        b"event: message_start\ndata: {}\n\n",
        b'event: message_stop\ndata: {"type":"message_stop"}\n\n',
    ),
}
ODD = (
    b'data: {"id":"chatcmpl-570","object":"chat.completion.chunk","model":"","choices":'
    b'[{"index":0,"delta":{"content":""},"finish_reason":null}]}\n\n'
)


def fed(shape, *pieces):
    """Return a watch that has seen these pieces."""
    watch = StreamWatch(shape)
    for piece in pieces:
        watch.feed(piece)
    return watch


@pytest.mark.parametrize("shape", list(Shape))
def test_a_whole_stream_is_whole(shape):
    """The dialect's own last record makes it so, and nothing less."""
    begin, end = STREAMS[shape]

    assert fed(shape, begin, end).whole(200)
    assert fed(shape, begin, end).error() is None
    assert not fed(shape, begin).whole(200)
    assert not fed(shape).whole(200)


@given(shape=st.sampled_from(list(Shape)), cuts=st.lists(st.integers(0, 30_000), max_size=6))
def test_pieces_dont_matter(shape, cuts):
    """However TCP cuts a stream, the verdict is the same."""
    begin, end = STREAMS[shape]
    data = begin + end
    places = sorted({0, len(data), *(cut % len(data) for cut in cuts)})
    pieces = [data[a:b] for a, b in itertools.pairwise(places)]

    assert fed(shape, *pieces).whole(200)


@given(cut=st.integers(1, 400))
def test_a_separator_in_two_pieces_is_seen(cut):
    """The blank line between events may be cut in its middle."""
    data = STREAMS[Shape.CHAT][0] + b"data: [DONE]\n\n"
    cut = min(cut, len(data) - 1)

    assert fed(Shape.CHAT, data[:cut], data[cut:]).whole(200)


def test_an_answers_text_cant_fake_the_end():
    """The words of the end inside a text are escaped, and prove nothing."""
    line = json.dumps({"response": '"done":true', "done": False}).encode() + b"\n"
    event = b'data: {"content":"data: [DONE]"}\n\n'

    assert not fed(Shape.DONE, line).whole(200)
    assert not fed(Shape.CHAT, event).whole(200)


def test_a_native_error_line_is_named():
    """The last line with `error` ends the stream, and its words go to the log."""
    watch = fed(Shape.DONE, b'{"response":"a","done":false}\n', b'{"error":"unexpected EOF"}\n')

    assert watch.whole(200)
    assert watch.error() == "unexpected EOF"


def test_the_odd_empty_chunk_is_no_end():
    """/v1 ends a failed stream with an empty chunk and no [DONE]: it isn't whole."""
    watch = fed(Shape.CHAT, STREAMS[Shape.CHAT][0], ODD)

    assert not watch.whole(200)


def test_errors_before_the_stream_are_whole_by_their_framing():
    """An error status is no stream."""
    assert fed(Shape.CHAT, b'{"error":{"message":"no"}}\n').whole(400)


@pytest.mark.parametrize("shape", list(Shape))
def test_the_error_event_is_in_the_streams_form(shape):
    """What is added to a stream that broke off can be read by its clients, and is no good end."""
    event = StreamWatch(shape).error_event()
    data = event.partition(b"data: ")[2] if b"data: " in event else event

    assert b"broke off" in json.dumps(json.loads(data)).encode()
    assert fed(shape, event).error() is not None


@given(pieces=st.lists(st.binary(max_size=5000), max_size=8))
def test_little_is_kept(pieces):
    """Of whatever comes, only the start of the last record is held."""
    watch = fed(Shape.DONE, *pieces)

    assert len(watch._record) <= KEPT_BYTES
    watch.whole(200)
    watch.error()


@pytest.mark.parametrize(
    "line",
    [
        b'{"message":{"tool_calls":[{"function":{"arguments":{"done":true}}}]},"done":false}\n',
        b'{"model":"m","done":true,"total_dura',
    ],
)
def test_the_last_line_speaks_for_itself(line):
    """A `done` deeper in a line, or in half a line, ends nothing."""
    assert not fed(Shape.DONE, line).whole(200)


@pytest.mark.parametrize(
    ("said", "told"),
    [
        (
            "model runner has unexpectedly stopped, check the logs",
            "model runner has unexpectedly stopped, check the logs",
        ),
        ('error parsing tool call: raw=\'{"x": "my secret"}\', err=bad', "error parsing tool call: raw="),
        ('my "secret"', "my"),
        ("{my secret", "an error"),
        ("", "an error"),
        ("x" * 5000, "an error that is too long to be shown"),
    ],
)
def test_what_an_error_quotes_is_not_told(said: str, told: str):
    """It may be what a model wrote, and that may quote its prompt: the log has Ollama's own words alone."""
    assert fed(Shape.DONE, json.dumps({"error": said}).encode() + b"\n").error() == told


def test_an_error_can_not_speak_to_a_terminal():
    """JSON escapes a half of what a terminal obeys; the log is read on one."""
    said = "no\x9b31m such \x1b[2J\x7f\u202e model"
    told = fed(Shape.DONE, json.dumps({"error": said}, ensure_ascii=False).encode() + b"\n").error()
    assert told == "no?31m such ?"


def test_an_error_in_bytes_that_are_no_text_is_still_an_error():
    """It is named as well as can be."""
    assert fed(Shape.DONE, b'{"error":"\xc4"}\n').error() is not None
