"""The models that the lab can pull: true hyperparameters and tensors, so that sizes and memory are true.

The weights themselves are zeros: the blobs are sparse files that cost no disk. Their digests are the real
SHA-256 of what such a file holds, so a real Ollama can pull and check them too; hashing many gigabytes of
zeros takes a while, so the digests stand ready in `digests.py`, which `python -m lab.ollama.catalogue`
prints anew.
"""

from __future__ import annotations

import hashlib
import json
import sys
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from functools import lru_cache

from lab.ollama.digests import DIGESTS
from lab.ollama.gguf import TYPES, Scalar, Tensor, Value, encode
from lab.ollama.gotext import human_number
from lab.ollama.templates import CHATML, GEMMA, HARMONY, LLAMA3, MISTRAL, PHI, PLAIN, R1

MODEL_LAYER = "application/vnd.ollama.image.model"
TEMPLATE_LAYER = "application/vnd.ollama.image.template"
PARAMS_LAYER = "application/vnd.ollama.image.params"
LICENSE_LAYER = "application/vnd.ollama.image.license"
MANIFEST_TYPE = "application/vnd.docker.distribution.manifest.v2+json"
CONFIG_TYPE = "application/vnd.docker.container.image.v1+json"


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


@dataclass(frozen=True)
class Blob:
    """A layer as a registry hands it out: `content`, then zeros up to `size`."""

    media_type: str
    digest: str
    size: int
    content: bytes


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


def _qwen(name: str, title: str, **rest: object) -> Model:
    values: dict[str, object] = {
        "architecture": "qwen2", "template": CHATML, "bias": True, "context": 32768, "vocabulary": 152064,
        "licence": "Simulated weights: zeros. The real Qwen2.5 is under Apache-2.0.",
    }  # fmt: skip
    return Model(name=name, title=title, **{**values, **rest})  # type: ignore[arg-type]


def _llama(name: str, title: str, **rest: object) -> Model:
    values: dict[str, object] = {
        "architecture": "llama", "template": LLAMA3, "context": 131072, "vocabulary": 128256,
        "parameters": {"stop": ["<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>"]},
    }  # fmt: skip
    return Model(name=name, title=title, **{**values, **rest})  # type: ignore[arg-type]


MODELS: dict[str, Model] = {
    model.name: model
    for model in (
        _llama("llama3.2:3b", "Llama 3.2 3B Instruct", layers=28, embedding=3072, feed_forward=8192, heads=24,
               kv_heads=8, head_size=128, tied=True),
        _llama("llama3.1:8b", "Llama 3.1 8B Instruct", layers=32, embedding=4096, feed_forward=14336, heads=32,
               kv_heads=8),
        _llama("llama3.1:70b", "Llama 3.1 70B Instruct", layers=80, embedding=8192, feed_forward=28672, heads=64,
               kv_heads=8),
        _llama("mistral:7b", "Mistral 7B Instruct v0.3", layers=32, embedding=4096, feed_forward=14336, heads=32,
               kv_heads=8, context=32768, vocabulary=32768, template=MISTRAL,
               parameters={"stop": ["[INST]", "[/INST]"]}),
        _qwen("qwen2.5:0.5b", "Qwen2.5 0.5B Instruct", layers=24, embedding=896, feed_forward=4864, heads=14,
              kv_heads=2, vocabulary=151936, tied=True),
        _qwen("qwen2.5:7b", "Qwen2.5 7B Instruct", layers=28, embedding=3584, feed_forward=18944, heads=28,
              kv_heads=4),
        _qwen("qwen2.5:32b", "Qwen2.5 32B Instruct", layers=64, embedding=5120, feed_forward=27648, heads=40,
              kv_heads=8),
        _qwen("deepseek-r1:32b", "DeepSeek R1 Distill Qwen 32B", layers=64, embedding=5120, feed_forward=27648,
              heads=40, kv_heads=8, context=131072, template=R1, parameters={"temperature": 0.6, "top_p": 0.95}),
        Model("gemma3:4b", "gemma3", 34, 2560, 10240, 8, 4, 131072, 262144, "Gemma 3 4B Instruct", head_size=256,
              tied=True, template=GEMMA, parameters={"stop": ["<end_of_turn>"], "temperature": 1, "top_k": 64},
              keys={"attention.sliding_window": 1024, "mm.tokens_per_image": 256, "vision.block_count": 27,
                    "vision.embedding_length": 1152, "vision.feed_forward_length": 4304, "vision.image_size": 896,
                    "vision.patch_size": 14, "vision.attention.head_count": 16}),
        Model("gpt-oss:20b", "gptoss", 24, 2880, 2880, 64, 8, 131072, 201088, "gpt-oss 20B", head_size=64,
              quantization="MXFP4", template=HARMONY, parameters={"temperature": 1}, shape="gptoss",
              keys={"attention.sliding_window": 128, "expert_count": 32, "expert_used_count": 4,
                    "expert_feed_forward_length": 2880}),
        Model("phi4:14b", "phi3", 40, 5120, 17920, 40, 10, 16384, 100352, "Phi 4", template=PHI, shape="phi",
              parameters={"stop": ["<|im_start|>", "<|im_end|>", "<|im_sep|>"]}),
        Model("nomic-embed-text:latest", "nomic-bert", 12, 768, 3072, 12, 12, 2048, 30522, "nomic-embed-text-v1.5",
              quantization="F16", template=PLAIN, parameters={"num_ctx": 8192}, shape="bert",
              keys={"pooling_type": 1, "attention.causal": False, "attention.layer_norm_epsilon": 1e-12}),
    )
}  # fmt: skip
ALIASES = {
    "nomic-embed-text:v1.5": "nomic-embed-text:latest", "llama3.2:latest": "llama3.2:3b",
    "llama3.1:latest": "llama3.1:8b", "qwen2.5:latest": "qwen2.5:7b", "gemma3:latest": "gemma3:4b",
    "gpt-oss:latest": "gpt-oss:20b", "phi4:latest": "phi4:14b", "mistral:latest": "mistral:7b",
}  # fmt: skip


def find(name: str) -> Model | None:
    """A model by its name, with or without tag."""
    tagged = name if ":" in name else f"{name}:latest"
    return MODELS.get(ALIASES.get(tagged, tagged))


@lru_cache(maxsize=32)
def header(name: str) -> tuple[bytes, int]:
    """The bytes of a model's GGUF header, and the whole file's size."""
    model = MODELS[name]
    head, data = encode(keys(model), tensors(model))
    return head, len(head) + data


def zeros_digest(content: bytes, size: int) -> str:
    """The SHA-256 of `content` and zeros up to `size`: from the table if it stands there, else counted."""
    key = hashlib.sha256(content).hexdigest()
    known = DIGESTS.get(key)
    if known is not None and known[0] == size:
        return known[1]
    return "sha256:" + count_digest(content, size)


def count_digest(content: bytes, size: int) -> str:
    """As `zeros_digest`, the long way: about a second for two gigabytes."""
    digest = hashlib.sha256(content)
    left, block = size - len(content), bytes(1 << 22)
    while left > 0:
        digest.update(block[: min(left, len(block))])
        left -= len(block)
    return digest.hexdigest()


def _document(media_type: str, content: bytes) -> Blob:
    return Blob(media_type, "sha256:" + hashlib.sha256(content).hexdigest(), len(content), content)


@lru_cache(maxsize=32)
def package(name: str) -> tuple[bytes, tuple[Blob, ...]]:
    """A model as it is published: the manifest's bytes, and its blobs (the configuration last)."""
    model = MODELS[name]
    head, size = header(name)
    blobs = [Blob(MODEL_LAYER, zeros_digest(head, size), size, head)]
    if model.template:
        blobs.append(_document(TEMPLATE_LAYER, model.template.encode()))
    blobs.append(_document(LICENSE_LAYER, model.licence.encode()))
    if model.parameters:
        blobs.append(_document(PARAMS_LAYER, json.dumps(model.parameters, separators=(",", ":")).encode()))
    config = {
        "model_format": "gguf",
        "model_family": model.architecture,
        "model_families": [model.architecture],
        "model_type": human_number(sum(item.elements for item in tensors(model))),
        "file_type": model.quantization,
        "architecture": "amd64",
        "os": "linux",
        "rootfs": {"type": "layers", "diff_ids": [blob.digest for blob in blobs]},
    }
    blobs.append(_document(CONFIG_TYPE, json.dumps(config, separators=(",", ":")).encode()))
    entries = [{"mediaType": b.media_type, "digest": b.digest, "size": b.size} for b in blobs]
    manifest = {
        "schemaVersion": 2,
        "mediaType": MANIFEST_TYPE,
        "config": entries[-1],
        "layers": entries[:-1],
    }
    return json.dumps(manifest, separators=(",", ":")).encode(), tuple(blobs)


def main() -> None:
    """Print the table of digests for `digests.py`."""
    print('"""The SHA-256 of each catalogue model\'s whole file, by that of its header; see catalogue.py."""')
    print("\nfrom __future__ import annotations\n\nDIGESTS: dict[str, tuple[int, str]] = {")
    for name in MODELS:
        head, size = header(name)
        print(f"    # {name}")
        print(f'    "{hashlib.sha256(head).hexdigest()}": (')
        print(f'        {size},\n        "sha256:{count_digest(head, size)}",\n    ),')
        print(f"{name}: {size} bytes", file=sys.stderr)
    print("}")


if __name__ == "__main__":
    main()
