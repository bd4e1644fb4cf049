"""The form of a transcription: the model is found, and nothing in the form can stand for another."""

from __future__ import annotations

import email
import email.policy

import pytest
from drover_proxy.dialect import form
from drover_proxy.dialect.body import BodyProblem
from hypothesis import given
from hypothesis import strategies as st

TYPE = b"multipart/form-data; boundary=abc"


def part(name: bytes, content: bytes, *, filename: bytes = b"", extra: bytes = b"") -> bytes:
    """Write one field as clients do."""
    more = b'; filename="%b"\r\nContent-Type: audio/wav' % filename if filename else b""
    return b'--abc\r\nContent-Disposition: form-data; name="%b"%b%b\r\n\r\n%b\r\n' % (
        name,
        more,
        extra,
        content,
    )


FILE = part(b"file", b"RIFF\r\n--ab\r\n\x00\xff", filename=b"a.wav")
MODEL = part(b"model", b"whisper")
END = b"--abc--\r\n"


def fields(body: bytes) -> list[tuple[str, str | None, bytes]]:
    """Read a form with the standard library's parser."""
    message = email.message_from_bytes(
        b"Content-Type: " + TYPE + b"\r\n\r\n" + body, policy=email.policy.HTTP
    )
    return [
        (
            str(one.get_param("name", header="content-disposition")),
            one.get_filename(),
            one.get_payload(decode=True),
        )
        for one in message.iter_parts()
    ]


def test_the_model_is_found_and_replaced():
    """The form goes on whole, under the name of the model that serves it, and without the file's."""
    asked = form.read(MODEL + part(b"language", b"de") + FILE + END, TYPE)
    assert (asked.name, asked.model, asked.stream) == ("whisper", "whisper:latest", False)
    assert fields(asked.render("other:latest")) == [
        ("model", None, b"other:latest"),
        ("language", None, b"de"),
        ("file", "file", b"RIFF\r\n--ab\r\n\x00\xff"),
    ]


@pytest.mark.parametrize(
    ("body", "code"),
    [
        (FILE + END, "model_required"),
        (part(b"model", b"") + FILE + END, "model_required"),
        (part(b"model", b"whisper", filename=b"m") + FILE + END, "model_required"),
        (MODEL + part(b"model", b"other") + END, "ambiguous_body"),
        (MODEL + part(b"Model", b"other") + END, "ambiguous_body"),
        (MODEL + FILE + FILE + END, "ambiguous_body"),
        (part(b"model", b"whisper\r\nx") + END, "invalid_model_name"),
        (part(b"model", b"\xff") + END, "invalid_body"),
        (part(b"model", b"a:cloud") + END, "cloud_refused"),
        (b"preamble\r\n" + MODEL + END, "invalid_body"),
        (MODEL + FILE, "invalid_body"),
        (MODEL + END + b"epilogue", "invalid_body"),
        (MODEL + b"--abcd\r\n" + END, "invalid_body"),
        (MODEL.replace(b"--abc\r\n", b"--abc \r\n") + END, "invalid_body"),
        (b"--abc\r\n\r\nwhisper\r\n" + END, "invalid_body"),
        (part(b'model"; name="other', b"whisper") + END, "invalid_body"),
        (part(b"model", b"a", extra=b'\r\nContent-Disposition: form-data; name="x"') + END, "invalid_body"),
        (MODEL * 1 + part(b"x", b"y") * 64 + END, "invalid_body"),
        (b"", "invalid_body"),
    ],
)
def test_what_is_unclear_is_refused(body, code):
    """Missing, doubled or oddly framed fields are told by their code."""
    with pytest.raises(BodyProblem) as refused:
        form.read(body, TYPE)
    assert refused.value.code == code


@pytest.mark.parametrize(
    "kind",
    [
        None,
        b"application/json",
        b"multipart/form-data",
        b"multipart/form-data; boundary=",
        b'multipart/form-data; boundary="abc',
        b"multipart/form-data; boundary=abc; boundary=d",
        b"multipart/form-data; charset=x; boundary=abc",
        b"multipart/mixed; boundary=abc",
    ],
)
def test_other_types_are_refused(kind):
    """Only the plain form that clients send."""
    with pytest.raises(BodyProblem):
        form.read(MODEL + FILE + END, kind)
    assert form.read(MODEL + END, b'Multipart/Form-Data; boundary="abc"').name == "whisper"


def test_as_many_fields_as_a_form_may_have():
    """The last of them is read like the first."""
    body = part(b"x", b"y") * (form.PARTS - 1) + MODEL + END
    assert len(fields(form.read(body, TYPE).render("w"))) == form.PARTS


def test_a_transfer_encoding_does_not_go_on():
    """Ollama would decode it: then the model that runs would be another one than was checked."""
    coded = part(b"model", b"whisper", extra=b"\r\nContent-Transfer-Encoding: base64")
    assert b"ransfer" not in form.read(coded + FILE + END, TYPE).render("whisper")


@given(st.binary(max_size=300))
def test_rubbish_is_refused_or_read(data):
    """Arbitrary bytes between the boundaries never raise anything else, and never change the model."""
    try:
        asked = form.read(MODEL + part(b"file", data, filename=b"f") + END, TYPE)
    except BodyProblem:
        return
    assert fields(asked.render("x"))[0] == ("model", None, b"x")
