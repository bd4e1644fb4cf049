"""What a model of the catalogue consists of: its tensors and the keys of its GGUF."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

from lab.ollama.gguf import TYPES, Scalar, Tensor, Value


@dataclass(frozen=True)
class Model:
    """One model of the catalogue."""

    name: str
    architecture: str
    layers: int
    embedding: int
    feed_forward: int
    heads: int
    kv_heads: int
    context: int
    vocabulary: int
    title: str
    head_size: int = 0  # 0: embedding / heads
    tied: bool = False  # the output uses the input's embedding
    quantization: str = "Q4_K_M"
    template: str = ""
    parameters: dict[str, Value] = field(default_factory=dict)
    licence: str = "Simulated weights: zeros. For tests only."
    keys: dict[str, Value] = field(default_factory=dict)  # more keys of the architecture
    bias: bool = False
    shape: str = "llama"  # which set of tensors


def _more_bits(layer: int, layers: int) -> bool:
    """llama.cpp's rule for which layers of a Q4_K_M get Q6_K in attn_v and ffn_down."""
    eighth = layers // 8
    return layer < eighth or layer >= 7 * layers // 8 or (layer - eighth) % 3 == 2


def _fits(kind: str, columns: int) -> str:
    """The type that is taken where the row isn't a multiple of 256."""
    if TYPES[kind][2] == 256 and columns % 256:
        return {"Q4_K": "Q5_0", "Q5_K": "Q5_1", "Q6_K": "Q8_0"}[kind]
    return kind


def _matrix(model: Model, name: str, shape: tuple[int, ...], kind: str) -> Tensor:
    if model.quantization == "F16":
        kind = "F16"
    return Tensor(name, shape, _fits(kind, shape[0]))


def _vector(name: str, size: int) -> Tensor:
    return Tensor(name, (size,), "F32")


def _llama_tensors(model: Model) -> Iterable[Tensor]:
    """The tensors of llama, qwen2, gemma3 (its text part) and their kind."""
    emb, ff = model.embedding, model.feed_forward
    head = model.head_size or emb // model.heads
    q_width, kv_width = head * model.heads, head * model.kv_heads
    yield _matrix(model, "token_embd.weight", (emb, model.vocabulary), "Q6_K" if model.tied else "Q4_K")
    for index in range(model.layers):
        block = f"blk.{index}."
        more = "Q6_K" if _more_bits(index, model.layers) else "Q4_K"
        value_kind = "Q5_K" if model.layers == 80 and more == "Q4_K" else more
        yield _vector(block + "attn_norm.weight", emb)
        yield _matrix(model, block + "attn_q.weight", (emb, q_width), "Q4_K")
        yield _matrix(model, block + "attn_k.weight", (emb, kv_width), "Q4_K")
        yield _matrix(model, block + "attn_v.weight", (emb, kv_width), value_kind)
        yield _matrix(model, block + "attn_output.weight", (q_width, emb), "Q4_K")
        if model.bias:
            yield _vector(block + "attn_q.bias", q_width)
            yield _vector(block + "attn_k.bias", kv_width)
            yield _vector(block + "attn_v.bias", kv_width)
        if model.architecture == "gemma3":
            yield _vector(block + "attn_q_norm.weight", head)
            yield _vector(block + "attn_k_norm.weight", head)
            yield _vector(block + "post_attention_norm.weight", emb)
            yield _vector(block + "post_ffw_norm.weight", emb)
        yield _vector(block + "ffn_norm.weight", emb)
        yield _matrix(model, block + "ffn_gate.weight", (emb, ff), "Q4_K")
        yield _matrix(model, block + "ffn_up.weight", (emb, ff), "Q4_K")
        yield _matrix(model, block + "ffn_down.weight", (ff, emb), more)
    yield _vector("output_norm.weight", emb)
    if not model.tied:
        yield _matrix(model, "output.weight", (emb, model.vocabulary), "Q6_K")
    if model.title.startswith("Llama 3"):
        yield _vector("rope_freqs.weight", head // 2)
    if model.architecture == "gemma3":
        yield from _vision_tensors(model)


def _vision_tensors(model: Model) -> Iterable[Tensor]:
    """gemma3's picture encoder, which is in the same file."""
    emb, ff, blocks = 1152, 4304, 27
    yield Tensor("mm.mm_input_projection.weight", (model.embedding, emb), "F16")
    yield _vector("mm.mm_soft_emb_norm.weight", emb)
    yield Tensor("v.patch_embedding.weight", (14, 14, 3, emb), "F16")
    yield Tensor("v.position_embedding.weight", (emb, 4096), "F16")
    for index in range(blocks):
        block = f"v.blk.{index}."
        for part in ("attn_q", "attn_k", "attn_v", "attn_output"):
            yield Tensor(block + part + ".weight", (emb, emb), "F16")
            yield _vector(block + part + ".bias", emb)
        yield Tensor(block + "mlp.fc1.weight", (emb, ff), "F16")
        yield Tensor(block + "mlp.fc2.weight", (ff, emb), "F16")
        yield _vector(block + "layer_norm1.weight", emb)
        yield _vector(block + "layer_norm2.weight", emb)
    yield _vector("v.post_layernorm.weight", emb)


def _phi_tensors(model: Model) -> Iterable[Tensor]:
    """phi3's fused tensors."""
    emb, ff = model.embedding, model.feed_forward
    head = emb // model.heads
    yield _matrix(model, "token_embd.weight", (emb, model.vocabulary), "Q4_K")
    for index in range(model.layers):
        block = f"blk.{index}."
        more = "Q6_K" if _more_bits(index, model.layers) else "Q4_K"
        yield _vector(block + "attn_norm.weight", emb)
        yield _matrix(model, block + "attn_qkv.weight", (emb, emb + 2 * head * model.kv_heads), "Q5_K")
        yield _matrix(model, block + "attn_output.weight", (emb, emb), "Q4_K")
        yield _vector(block + "ffn_norm.weight", emb)
        yield _matrix(model, block + "ffn_up.weight", (emb, 2 * ff), "Q4_K")
        yield _matrix(model, block + "ffn_down.weight", (ff, emb), more)
    yield _vector("output_norm.weight", emb)
    yield _matrix(model, "output.weight", (emb, model.vocabulary), "Q6_K")


def _gptoss_tensors(model: Model) -> Iterable[Tensor]:
    """gpt-oss: attention in BF16, 32 experts in MXFP4."""
    emb, ff, experts = model.embedding, model.feed_forward, 32
    q_width, kv_width = model.head_size * model.heads, model.head_size * model.kv_heads
    yield Tensor("token_embd.weight", (emb, model.vocabulary), "BF16")
    for index in range(model.layers):
        block = f"blk.{index}."
        yield _vector(block + "attn_norm.weight", emb)
        for part, width in (("attn_q", q_width), ("attn_k", kv_width), ("attn_v", kv_width)):
            yield Tensor(block + part + ".weight", (emb, width), "BF16")
            yield _vector(block + part + ".bias", width)
        yield Tensor(block + "attn_out.weight", (q_width, emb), "BF16")
        yield _vector(block + "attn_out.bias", emb)
        yield _vector(block + "attn_sinks", model.heads)
        yield _vector(block + "ffn_norm.weight", emb)
        yield Tensor(block + "ffn_gate_inp.weight", (emb, experts), "BF16")
        yield _vector(block + "ffn_gate_inp.bias", experts)
        yield Tensor(block + "ffn_gate_up_exps.weight", (emb, 2 * ff, experts), "MXFP4")
        yield Tensor(block + "ffn_gate_up_exps.bias", (2 * ff, experts), "F32")
        yield Tensor(block + "ffn_down_exps.weight", (ff, emb, experts), "MXFP4")
        yield Tensor(block + "ffn_down_exps.bias", (emb, experts), "F32")
    yield _vector("output_norm.weight", emb)
    yield Tensor("output.weight", (emb, model.vocabulary), "BF16")


def _bert_tensors(model: Model) -> Iterable[Tensor]:
    """nomic-bert, an encoder."""
    emb, ff = model.embedding, model.feed_forward
    yield Tensor("token_embd.weight", (emb, model.vocabulary), "F16")
    yield Tensor("token_types.weight", (emb, 2), "F32")
    yield _vector("token_embd_norm.weight", emb)
    yield _vector("token_embd_norm.bias", emb)
    for index in range(model.layers):
        block = f"blk.{index}."
        yield Tensor(block + "attn_qkv.weight", (emb, 3 * emb), "F16")
        yield Tensor(block + "attn_output.weight", (emb, emb), "F16")
        yield Tensor(block + "ffn_up.weight", (emb, ff), "F16")
        yield Tensor(block + "ffn_gate.weight", (emb, ff), "F16")
        yield Tensor(block + "ffn_down.weight", (ff, emb), "F16")
        for norm in ("attn_output_norm", "layer_output_norm"):
            yield _vector(f"{block}{norm}.weight", emb)
            yield _vector(f"{block}{norm}.bias", emb)


_SHAPES: dict[str, Callable[[Model], Iterable[Tensor]]] = {
    "llama": _llama_tensors,
    "phi": _phi_tensors,
    "gptoss": _gptoss_tensors,
    "bert": _bert_tensors,
}


def tensors(model: Model) -> list[Tensor]:
    """All tensors of a model."""
    return list(_SHAPES[model.shape](model))


def keys(model: Model) -> dict[str, Value]:
    """The keys of the model's GGUF; of the vocabulary only the beginning, which nothing here reads."""
    arch = model.architecture
    head = model.head_size or model.embedding // model.heads
    file_type = {"Q4_K_M": 15, "F16": 1, "MXFP4": 38}[model.quantization]
    tokens: list[Scalar] = [f"<{index}>" for index in range(64)]
    found: dict[str, Value] = {
        "general.architecture": arch,
        "general.basename": model.title,
        "general.file_type": file_type,
        "general.name": model.title,
        "general.quantization_version": 2,
        "general.type": "model",
        f"{arch}.attention.head_count": model.heads,
        f"{arch}.attention.head_count_kv": model.kv_heads,
        f"{arch}.block_count": model.layers,
        f"{arch}.context_length": model.context,
        f"{arch}.embedding_length": model.embedding,
        f"{arch}.feed_forward_length": model.feed_forward,
    }
    if model.shape != "bert":
        found[f"{arch}.attention.layer_norm_rms_epsilon"] = 1e-5
        found[f"{arch}.attention.key_length"] = head
        found[f"{arch}.attention.value_length"] = head
        found[f"{arch}.rope.dimension_count"] = head
    if arch == "llama":
        found[f"{arch}.vocab_size"] = model.vocabulary
    found |= {f"{arch}.{key}": value for key, value in model.keys.items()}
    found |= {
        "tokenizer.ggml.bos_token_id": 1,
        "tokenizer.ggml.eos_token_id": 2,
        "tokenizer.ggml.model": "bert" if model.shape == "bert" else "gpt2",
        "tokenizer.ggml.pre": "default",
        "tokenizer.ggml.token_type": [1] * len(tokens),
        "tokenizer.ggml.tokens": tokens,
    }
    return found
