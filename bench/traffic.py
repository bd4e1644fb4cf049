"""The requests of the benchmark, as the openai and ollama packages send them."""

from __future__ import annotations

import base64
import json
import random
from collections.abc import Iterable, Mapping
from pathlib import Path

MODEL = "llama3.2:3b"
KEY = "drv_0123456789abcdefghijklmnopqrstuv"
PATH = "/v1/chat/completions"
NATIVE_PATH = "/api/chat"
"""Ollama's own: its streams are lines of JSON."""
VARIANTS = 8
"""Requests and answers come in this many lengths, so that no head is always the same."""
NUMBER = "@@@@@@@@"
"""bench/native/load.c writes another number here each time: no two bodies are the same."""

HEADERS = {
    "Accept-Encoding": "gzip, deflate",
    "Connection": "keep-alive",
    "Accept": "application/json",
    "Content-Type": "application/json",
    "User-Agent": "OpenAI/Python 3.54.0",
    "X-Stainless-Lang": "python",
    "X-Stainless-Package-Version": "3.54.0",
    "X-Stainless-OS": "Linux",
    "X-Stainless-Arch": "x64",
    "X-Stainless-Runtime": "CPython",
    "X-Stainless-Runtime-Version": "3.11.2",
    "Authorization": f"Bearer {KEY}",
    "X-Stainless-Async": "false",
    "x-stainless-retry-count": "0",
    "x-stainless-read-timeout": "600",
}
NATIVE_HEADERS = {
    "Accept-Encoding": "gzip, deflate",
    "Connection": "keep-alive",
    "Content-Type": "application/json",
    "Accept": "application/json",
    "User-Agent": "ollama-python/0.6.3 (x86_64 linux) Python/3.11.2",
    "Authorization": f"Bearer {KEY}",
}


def request(body: dict[str, object], path: str = PATH, headers: Mapping[str, str] = HEADERS) -> bytes:
    """Return a whole HTTP request."""
    content = compact(body)
    lines = [f"POST {path} HTTP/1.1", "Host: 127.0.0.1", *(f"{k}: {v}" for k, v in headers.items())]
    head = "\r\n".join([*lines, f"Content-Length: {len(content)}"]) + "\r\n\r\n"
    return head.encode() + content


def compact(value: object) -> bytes:
    """Return JSON without blanks."""
    return json.dumps(value, separators=(",", ":")).encode()


def chat(text: str | list[dict[str, object]], *, stream: bool = False) -> dict[str, object]:
    """Return the body of a chat; the small ones are of about 250 bytes."""
    messages: list[dict[str, object]] = [
        {"role": "system", "content": "You are a helpful assistant."},
        {"role": "user", "content": text},
    ]
    return {"messages": messages, "model": MODEL, "stream": stream, "temperature": 0.7}


def small(*, stream: bool) -> list[bytes]:
    """Return small requests of several lengths."""
    return [request(chat(text, stream=stream)) for text in _questions()]


def native() -> list[bytes]:
    """Return small requests for streams of Ollama's own dialect."""
    return [request(_native_chat(text), NATIVE_PATH, NATIVE_HEADERS) for text in _questions()]


def _native_chat(text: str) -> dict[str, object]:
    asked = chat(text)
    return {
        "model": MODEL,
        "stream": True,
        "options": {"temperature": asked["temperature"]},
        "messages": asked["messages"],
        "tools": [],
    }


def _questions() -> Iterable[str]:
    question = f"Question {NUMBER}: why is the sky blue, and red in the evening? "
    return (question + "Be brief. " * n for n in range(VARIANTS))


def large(size_bytes: int) -> bytes:
    """Return a request whose images, in base64, make its body about this long."""
    noise = random.Random(4)
    pictures = 4
    raw = size_bytes * 3 // 4 // pictures
    parts: list[dict[str, object]] = [{"type": "text", "text": "What is in these pictures?"}]
    for _ in range(pictures):
        url = "data:image/png;base64," + base64.b64encode(noise.randbytes(raw)).decode()
        parts.append({"type": "image_url", "image_url": {"url": url}})
    return request(chat(parts))


def write_requests(path: Path, requests: Iterable[bytes]) -> Path:
    """Lay requests as bench/native/load.c reads them."""
    path.write_bytes(b"".join(b"%d\n%b" % (len(one), one) for one in requests))
    return path
