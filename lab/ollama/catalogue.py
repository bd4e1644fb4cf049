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
from dataclasses import dataclass
from functools import lru_cache

from lab.ollama.digests import DIGESTS
from lab.ollama.gguf import encode
from lab.ollama.gotext import human_number
from lab.ollama.templates import CHATML, GEMMA, HARMONY, LLAMA3, MISTRAL, PHI, PLAIN, R1
from lab.ollama.tensors import Model, keys, tensors

MODEL_LAYER = "application/vnd.ollama.image.model"
TEMPLATE_LAYER = "application/vnd.ollama.image.template"
PARAMS_LAYER = "application/vnd.ollama.image.params"
LICENSE_LAYER = "application/vnd.ollama.image.license"
MANIFEST_TYPE = "application/vnd.docker.distribution.manifest.v2+json"
CONFIG_TYPE = "application/vnd.docker.container.image.v1+json"


@dataclass(frozen=True)
class Blob:
    """A layer as a registry hands it out: `content`, then zeros up to `size`."""

    media_type: str
    digest: str
    size: int
    content: bytes


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
        _llama(
            "llama3.2:3b",
            "Llama 3.2 3B Instruct",
            layers=28,
            embedding=3072,
            feed_forward=8192,
            heads=24,
            kv_heads=8,
            head_size=128,
            tied=True,
        ),
        _llama(
            "llama3.1:8b",
            "Llama 3.1 8B Instruct",
            layers=32,
            embedding=4096,
            feed_forward=14336,
            heads=32,
            kv_heads=8,
        ),
        _llama(
            "llama3.1:70b",
            "Llama 3.1 70B Instruct",
            layers=80,
            embedding=8192,
            feed_forward=28672,
            heads=64,
            kv_heads=8,
        ),
        _llama(
            "mistral:7b",
            "Mistral 7B Instruct v0.3",
            layers=32,
            embedding=4096,
            feed_forward=14336,
            heads=32,
            kv_heads=8,
            context=32768,
            vocabulary=32768,
            template=MISTRAL,
            parameters={"stop": ["[INST]", "[/INST]"]},
        ),
        _qwen(
            "qwen2.5:0.5b",
            "Qwen2.5 0.5B Instruct",
            layers=24,
            embedding=896,
            feed_forward=4864,
            heads=14,
            kv_heads=2,
            vocabulary=151936,
            tied=True,
        ),
        _qwen(
            "qwen2.5:7b",
            "Qwen2.5 7B Instruct",
            layers=28,
            embedding=3584,
            feed_forward=18944,
            heads=28,
            kv_heads=4,
        ),
        _qwen(
            "qwen2.5:32b",
            "Qwen2.5 32B Instruct",
            layers=64,
            embedding=5120,
            feed_forward=27648,
            heads=40,
            kv_heads=8,
        ),
        _qwen(
            "deepseek-r1:32b",
            "DeepSeek R1 Distill Qwen 32B",
            layers=64,
            embedding=5120,
            feed_forward=27648,
            heads=40,
            kv_heads=8,
            context=131072,
            template=R1,
            parameters={"temperature": 0.6, "top_p": 0.95},
        ),
        Model(
            "gemma3:4b",
            "gemma3",
            34,
            2560,
            10240,
            8,
            4,
            131072,
            262144,
            "Gemma 3 4B Instruct",
            head_size=256,
            tied=True,
            template=GEMMA,
            parameters={"stop": ["<end_of_turn>"], "temperature": 1, "top_k": 64},
            keys={
                "attention.sliding_window": 1024,
                "mm.tokens_per_image": 256,
                "vision.block_count": 27,
                "vision.embedding_length": 1152,
                "vision.feed_forward_length": 4304,
                "vision.image_size": 896,
                "vision.patch_size": 14,
                "vision.attention.head_count": 16,
            },
        ),
        Model(
            "gpt-oss:20b",
            "gptoss",
            24,
            2880,
            2880,
            64,
            8,
            131072,
            201088,
            "gpt-oss 20B",
            head_size=64,
            quantization="MXFP4",
            template=HARMONY,
            parameters={"temperature": 1},
            shape="gptoss",
            keys={
                "attention.sliding_window": 128,
                "expert_count": 32,
                "expert_used_count": 4,
                "expert_feed_forward_length": 2880,
            },
        ),
        Model(
            "phi4:14b",
            "phi3",
            40,
            5120,
            17920,
            40,
            10,
            16384,
            100352,
            "Phi 4",
            template=PHI,
            shape="phi",
            parameters={"stop": ["<|im_start|>", "<|im_end|>", "<|im_sep|>"]},
        ),
        Model(
            "nomic-embed-text:latest",
            "nomic-bert",
            12,
            768,
            3072,
            12,
            12,
            2048,
            30522,
            "nomic-embed-text-v1.5",
            quantization="F16",
            template=PLAIN,
            parameters={"num_ctx": 8192},
            shape="bert",
            keys={"pooling_type": 1, "attention.causal": False, "attention.layer_norm_epsilon": 1e-12},
        ),
    )
}
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
