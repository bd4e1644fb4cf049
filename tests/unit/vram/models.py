"""True hyperparameters and tensor lists of well-known models, made here rather than downloaded."""

from __future__ import annotations

from typing import Any

from drover_proxy.vram import ModelInfo, Tensor


def info(architecture: str, name: str = "m:latest", **values: Any) -> ModelInfo:
    """Return a ModelInfo of these hyperparameters; `attention__x` stands for `attention.x`."""
    fields = {key: values.pop(key) for key in tuple(values) if key in ModelInfo.__dataclass_fields__}
    keys = {f"{architecture}.{key.replace('__', '.')}": value for key, value in values.items()}
    fields.setdefault("size_bytes", 0)
    return ModelInfo(
        name=name, blob="sha256:" + "0" * 64, architecture=architecture, hyperparameters=keys, **fields
    )


def dense(
    architecture: str, layers: int, heads: int, heads_kv: int, embedding: int, **more: Any
) -> ModelInfo:
    """Return a dense transformer with grouped queries."""
    return info(
        architecture,
        block_count=layers,
        embedding_length=embedding,
        attention__head_count=heads,
        attention__head_count_kv=heads_kv,
        context_length=more.pop("context_length", 131072),
        **more,
    )


LLAMA31_8B = dense("llama", 32, 32, 8, 4096, feed_forward_length=14336, vocab_size=128256)
QWEN25_7B = dense("qwen2", 28, 28, 4, 3584, feed_forward_length=18944, vocab_size=152064)
QWEN25_32B = dense("qwen2", 64, 40, 8, 5120, context_length=32768)
MISTRAL_7B = dense("llama", 32, 32, 8, 4096, context_length=32768, attention__sliding_window=4096)
LLAMA32_3B = dense("llama", 28, 24, 8, 3072, feed_forward_length=8192, vocab_size=128256)
GEMMA3_4B = dense(
    "gemma3",
    34,
    8,
    4,
    2560,
    attention__key_length=256,
    attention__value_length=256,
    attention__sliding_window=1024,
)
GPT_OSS_20B = dense(
    "gpt-oss",
    24,
    64,
    8,
    2880,
    attention__key_length=64,
    attention__value_length=64,
    attention__sliding_window=128,
)
NOMIC = info(
    "nomic-bert",
    block_count=12,
    embedding_length=768,
    attention__head_count=12,
    context_length=2048,
    feed_forward_length=3072,
    capabilities=frozenset({"embedding"}),
)


def more_bits(layer: int, layers: int) -> bool:
    """llama.cpp's rule for which layers of a Q4_K_M mix get Q6_K."""
    eighth = layers // 8
    return layer < eighth or layer >= 7 * layers // 8 or (layer - eighth) % 3 == 2


def q4_k_m(
    *,
    layers: int,
    embedding: int,
    feed_forward: int,
    kv: int,
    vocabulary: int,
    tied: bool,
    biases: bool = False,
    rope_frequencies: bool = False,
) -> tuple[Tensor, ...]:
    """Return the tensors of a dense model quantised to Q4_K_M; `kv` is KV heads x head size."""
    tensors = [
        Tensor("token_embd.weight", "Q6_K" if tied else "Q4_K", (embedding, vocabulary)),
        Tensor("output_norm.weight", "F32", (embedding,)),
    ]
    if not tied:
        tensors.append(Tensor("output.weight", "Q6_K", (embedding, vocabulary)))
    if rope_frequencies:  # llama 3.x carries its scaling factors
        tensors.append(Tensor("rope_freqs.weight", "F32", (64,)))
    for layer in range(layers):
        high = "Q6_K" if more_bits(layer, layers) else "Q4_K"
        prefix = f"blk.{layer}."
        tensors += [
            Tensor(prefix + "attn_norm.weight", "F32", (embedding,)),
            Tensor(prefix + "ffn_norm.weight", "F32", (embedding,)),
            Tensor(prefix + "attn_q.weight", "Q4_K", (embedding, embedding)),
            Tensor(prefix + "attn_k.weight", "Q4_K", (embedding, kv)),
            Tensor(prefix + "attn_v.weight", high, (embedding, kv)),
            Tensor(prefix + "attn_output.weight", "Q4_K", (embedding, embedding)),
            Tensor(prefix + "ffn_gate.weight", "Q4_K", (embedding, feed_forward)),
            Tensor(prefix + "ffn_up.weight", "Q4_K", (embedding, feed_forward)),
            Tensor(prefix + "ffn_down.weight", high, (feed_forward, embedding)),
        ]
        if biases:
            tensors += [
                Tensor(prefix + "attn_q.bias", "F32", (embedding,)),
                Tensor(prefix + "attn_k.bias", "F32", (kv,)),
                Tensor(prefix + "attn_v.bias", "F32", (kv,)),
            ]
    return tuple(tensors)
