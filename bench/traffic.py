"""What goes over the wire: requests as the openai package sends them, answers as Ollama gives them."""

from __future__ import annotations

import base64
import json
import random
from collections.abc import Iterable
from pathlib import Path

MODEL = "llama3.2:3b"
KEY = "drv_0123456789abcdefghijklmnopqrstuv"
PATH = "/v1/chat/completions"
CREATED = 1_763_000_000
VARIANTS = 8
"""Requests and answers come in this many lengths, so that no head is always the same."""
CONTEXT = 4096
SIZE_BYTES = 2_019_393_189

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


def request(body: dict[str, object]) -> bytes:
    """Return a whole HTTP request."""
    content = json.dumps(body, separators=(",", ":")).encode()
    lines = [f"POST {PATH} HTTP/1.1", "Host: 127.0.0.1", *(f"{k}: {v}" for k, v in HEADERS.items())]
    head = "\r\n".join([*lines, f"Content-Length: {len(content)}"]) + "\r\n\r\n"
    return head.encode() + content


def chat(text: str | list[dict[str, object]], *, stream: bool = False) -> dict[str, object]:
    """Return the body of a chat; the small ones are of 223 bytes and about as many."""
    messages: list[dict[str, object]] = [
        {"role": "system", "content": "You are a helpful assistant."},
        {"role": "user", "content": text},
    ]
    return {"messages": messages, "model": MODEL, "stream": stream, "temperature": 0.7}


def small(*, stream: bool) -> list[bytes]:
    """Return small requests of several lengths."""
    texts = (
        "Why is the sky blue, and why is it red in the evening? " + "Be brief. " * n for n in range(VARIANTS)
    )
    return [request(chat(text, stream=stream)) for text in texts]


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


def _completion(text: str) -> dict[str, object]:
    """About 268 bytes."""
    message = {"index": 0, "message": {"role": "assistant", "content": text}, "finish_reason": "stop"}
    usage = {"prompt_tokens": 38, "completion_tokens": 11, "total_tokens": 49}
    return {
        "id": "chatcmpl-417",
        "object": "chat.completion",
        "created": CREATED,
        "model": MODEL,
        "system_fingerprint": "fp_ollama",
        "choices": [message],
        "usage": usage,
    }


def _chunk(text: str, finish: str | None) -> bytes:
    choice = {"index": 0, "delta": {"role": "assistant", "content": text}, "finish_reason": finish}
    record = {
        "id": "chatcmpl-417",
        "object": "chat.completion.chunk",
        "created": CREATED,
        "model": MODEL,
        "system_fingerprint": "fp_ollama",
        "choices": [choice],
    }
    return b"data: " + _compact(record) + b"\n\n"


def _compact(value: object) -> bytes:
    return json.dumps(value, separators=(",", ":")).encode()


def _control() -> dict[str, object]:
    """What Ollama's control API says of one model that is loaded, by method and path."""
    blob = "c" * 64
    entry = {
        "name": MODEL,
        "model": MODEL,
        "modified_at": "2026-11-01T00:00:00Z",
        "size": SIZE_BYTES,
        "digest": "d" * 64,
        "details": {
            "family": "llama",
            "format": "gguf",
            "parameter_size": "3.2B",
            "quantization_level": "Q4_K_M",
        },
    }
    ready = {"size_vram": SIZE_BYTES, "context_length": CONTEXT, "expires_at": "2318-01-01T00:00:00Z"}
    info = {
        "general.architecture": "llama",
        "general.file_type": 15,
        "llama.block_count": 28,
        "llama.embedding_length": 3072,
        "llama.feed_forward_length": 8192,
        "llama.attention.head_count": 24,
        "llama.attention.head_count_kv": 8,
        "llama.context_length": 131072,
        "llama.vocab_size": 128256,
    }
    show = {
        "modelfile": f"FROM /models/blobs/sha256-{blob}\n",
        "parameters": "",
        "template": "",
        "details": entry["details"],
        "model_info": info,
        "tensors": [],
        "capabilities": ["completion", "tools"],
    }
    models = {
        "object": "list",
        "data": [{"id": MODEL, "object": "model", "created": CREATED, "owned_by": "library"}],
    }
    return {
        "GET /api/version": {"version": "0.33.0"},
        "GET /api/tags": {"models": [entry]},
        "GET /api/ps": {"models": [entry | ready]},
        "POST /api/show": show,
        "POST /api/generate": {"model": MODEL, "response": "", "done": True, "done_reason": "load"},
        # What the routers ask of a worker.
        "GET /health": {"status": "ok"},
        "GET /v1/models": models,
        "GET /get_model_info": {"model_path": MODEL, "is_generation": True},
        "GET /model_info": {"model_path": MODEL, "is_generation": True},
        "GET /get_server_info": {"model_path": MODEL, "served_model_name": MODEL},
        "GET /server_info": {"model_path": MODEL, "served_model_name": MODEL},
    }


def write_answers(path: Path) -> Path:
    """Lay the answers as bench/native/source.c reads them."""
    records: list[tuple[str, str, str, bytes]] = []
    for place, value in _control().items():
        method, _, where = place.partition(" ")
        records.append(("answer", method, where, _compact(value)))
    for n in range(VARIANTS):
        body = _compact(_completion("The air scatters blue light" + " most" * n + "."))
        records.append(("json", "-", PATH, body))
    kind = "text/event-stream"
    records.append(("chunk", kind, PATH, _chunk(" blue", None)))
    records.append(("last", kind, PATH, _chunk(".", "stop") + b"data: [DONE]\n\n"))
    heads = (f"{kind} {word} {where} {len(data)}\n".encode() + data for kind, word, where, data in records)
    path.write_bytes(b"".join(heads))
    return path
