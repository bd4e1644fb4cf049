"""A real llama of a tenth of a million parameters with random weights, which any llama.cpp runs on a CPU."""

from __future__ import annotations

import random
import struct

from lab.ollama import gguf
from lab.ollama.gguf import Tensor, Value

EMBEDDING, FEED_FORWARD, LAYERS, HEADS, WORDS = 64, 128, 2, 4, 32
SPECIAL = 259  # unknown, begin, end, and a token for each byte
VOCABULARY = SPECIAL + 1 + WORDS


def _keys() -> dict[str, Value]:
    tokens = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256)), "\u2581"]
    tokens += [f"\u2581word{number}" for number in range(WORDS)]
    return {
        "general.architecture": "llama",
        "general.name": "tiny",
        "general.file_type": 0,
        "llama.vocab_size": VOCABULARY,
        "llama.block_count": LAYERS,
        "llama.context_length": 8192,
        "llama.embedding_length": EMBEDDING,
        "llama.feed_forward_length": FEED_FORWARD,
        "llama.attention.head_count": HEADS,
        "llama.attention.head_count_kv": HEADS,
        "llama.rope.dimension_count": EMBEDDING // HEADS,
        "llama.attention.layer_norm_rms_epsilon": 1e-5,
        "tokenizer.ggml.model": "llama",
        "tokenizer.ggml.pre": "default",
        "tokenizer.ggml.tokens": list(tokens),
        "tokenizer.ggml.scores": [0.0] * VOCABULARY,
        "tokenizer.ggml.token_type": [2, 3, 3, *([6] * 256), *([1] * (WORDS + 1))],
        "tokenizer.ggml.bos_token_id": 1,
        "tokenizer.ggml.eos_token_id": 2,
        "tokenizer.ggml.unknown_token_id": 0,
    }


def _tensors() -> list[Tensor]:
    shapes = [
        ("token_embd.weight", (EMBEDDING, VOCABULARY)),
        ("output_norm.weight", (EMBEDDING,)),
        ("output.weight", (EMBEDDING, VOCABULARY)),
    ]
    for index in range(LAYERS):
        block = f"blk.{index}."
        square = (EMBEDDING, EMBEDDING)
        shapes += [(f"{block}attn_{part}.weight", square) for part in ("q", "k", "v", "output")]
        shapes += [(f"{block}{part}_norm.weight", (EMBEDDING,)) for part in ("attn", "ffn")]
        shapes += [(f"{block}ffn_{part}.weight", (EMBEDDING, FEED_FORWARD)) for part in ("gate", "up")]
        shapes.append((f"{block}ffn_down.weight", (FEED_FORWARD, EMBEDDING)))
    return [Tensor(name, shape, "F32") for name, shape in shapes]


def tiny_gguf(seed: int = 7) -> bytes:
    """The whole file; another seed gives another model."""
    dice = random.Random(seed)
    tensors = _tensors()
    header, _ = gguf.encode(_keys(), tensors)
    out = bytearray(header)
    for tensor in tensors:
        norm = "norm" in tensor.name
        values = [1.0 if norm else dice.uniform(-0.2, 0.2) for _ in range(tensor.elements)]
        if tensor.name == "output.weight":  # words only: neither the end nor half a character comes out
            first = (SPECIAL + 1) * EMBEDDING
            values = [0.0] * first + [20 * value for value in values[first:]]
        out += struct.pack(f"<{len(values)}f", *values)
        out += b"\0" * (-len(out) % gguf.ALIGNMENT)
    return bytes(out)
