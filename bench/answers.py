"""The answers of the benchmark's upstream, as Ollama gives them, control API included."""

from __future__ import annotations

from pathlib import Path

from bench.traffic import MODEL, NATIVE_PATH, PATH, VARIANTS, compact

CREATED = 1_763_000_000
CONTEXT = 4096
SIZE_BYTES = 2_019_393_189


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
    return b"data: " + compact(record) + b"\n\n"


def _line(text: str, *, last: bool = False) -> bytes:
    record: dict[str, object] = {
        "model": MODEL,
        "created_at": "2026-11-21T12:00:00.123456789Z",
        "message": {"role": "assistant", "content": text},
        "done": last,
    }
    if last:
        record |= {
            "done_reason": "stop",
            "total_duration": 2_112_000_000,
            "load_duration": 41_000_000,
            "prompt_eval_count": 38,
            "prompt_eval_duration": 71_000_000,
            "eval_count": 100,
            "eval_duration": 2_000_000_000,
        }
    return compact(record) + b"\n"


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
        records.append(("answer", method, where, compact(value)))
    for n in range(VARIANTS):
        body = compact(_completion("The air scatters blue light" + " most" * n + "."))
        records.append(("json", "-", PATH, body))
    kind = "text/event-stream"
    records.append(("chunk", kind, PATH, _chunk(" blue", None)))
    records.append(("last", kind, PATH, _chunk(".", "stop") + b"data: [DONE]\n\n"))
    kind = "application/x-ndjson"
    records.append(("chunk", kind, NATIVE_PATH, _line(" blue")))
    records.append(("last", kind, NATIVE_PATH, _line(".", last=True)))
    heads = (f"{kind} {word} {where} {len(data)}\n".encode() + data for kind, word, where, data in records)
    path.write_bytes(b"".join(heads))
    return path
