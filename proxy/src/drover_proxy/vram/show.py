"""Reading Ollama's `/api/show` into a ModelInfo. Ask with `verbose: true`: without it arrays are null."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from drover_proxy.vram.elements import bytes_of
from drover_proxy.vram.model import ModelInfo, Tensor

DIGEST_MARK = "sha256-"
DIGEST_LENGTH = 64
METADATA_BYTES = 32 * 1024 * 1024
"""What a model's layers may be larger than its tensors without there being a projector or an adapter."""
BULKY = ("tokenizer.",)
"""Metadata that no formula reads and that is megabytes long in a verbose answer."""


def model_info_from_show(name: str, show: Mapping[str, Any], size_bytes: int) -> ModelInfo:
    """Return what `/api/show` says of model `name`; `size_bytes` is its `size` in `/api/tags`."""
    raw = show.get("model_info")
    metadata: Mapping[str, Any] = raw if isinstance(raw, Mapping) else {}
    tensors = tuple(_tensors(show.get("tensors")))
    modelfile = str(show.get("modelfile") or "")
    projector_info = show.get("projector_info")
    rest = _rest_bytes(tensors, size_bytes)
    has_adapter = any(line.upper().startswith("ADAPTER ") for line in modelfile.splitlines())
    parameters = runner_parameters(str(show.get("parameters") or ""))
    capabilities = show.get("capabilities")
    architecture = metadata.get("general.architecture")
    hyperparameters = {key: value for key, value in metadata.items() if not key.startswith(BULKY)}
    vocabulary = metadata.get("tokenizer.ggml.tokens")
    if isinstance(vocabulary, list) and isinstance(architecture, str):
        hyperparameters.setdefault(f"{architecture}.vocab_size", len(vocabulary))
    return ModelInfo(
        name=name,
        blob=blob_digest(modelfile) or f"name:{name}",
        size_bytes=size_bytes,
        architecture=architecture if isinstance(architecture, str) else "",
        hyperparameters=hyperparameters,
        tensors=tensors,
        projector_bytes=rest if projector_info or has_adapter else 0,
        capabilities=frozenset(str(item) for item in capabilities or ()),
        num_ctx=parameters.get("num_ctx"),
        num_batch=parameters.get("num_batch"),
    )


def blob_digest(modelfile: str) -> str | None:
    """Return `sha256:<hex>` of the GGUF that the Modelfile names in a FROM line, None without one."""
    for line in modelfile.splitlines():
        words = line.split(maxsplit=1)
        if len(words) != 2 or words[0].upper() != "FROM" or DIGEST_MARK not in words[1]:
            continue
        digest = words[1].rsplit(DIGEST_MARK, 1)[1].strip().strip('"').lower()
        if len(digest) == DIGEST_LENGTH and all(character in "0123456789abcdef" for character in digest):
            return f"sha256:{digest}"
    return None


def runner_parameters(text: str) -> dict[str, int]:
    """Return the whole-number parameters of `show.parameters`, whose lines come in random order."""
    found: dict[str, int] = {}
    for line in text.splitlines():
        words = line.split(maxsplit=1)
        if len(words) != 2:
            continue
        try:
            found[words[0]] = int(words[1].strip().strip('"'))
        except ValueError:
            continue
    return {name: value for name, value in found.items() if value > 0}


def _tensors(raw: Any) -> Iterable[Tensor]:
    if not isinstance(raw, list):
        return
    for entry in raw:
        if isinstance(entry, Mapping):
            shape = tuple(int(extent) for extent in entry.get("shape") or ())
            yield Tensor(str(entry.get("name", "")), str(entry.get("type", "")), shape)


def _rest_bytes(tensors: tuple[Tensor, ...], size_bytes: int) -> int:
    """Return what the model's layers hold besides the tensors: projector or adapter."""
    known = sum(bytes_of(tensor.elements, tensor.type) or 0 for tensor in tensors)
    rest = size_bytes - known
    return rest if known and rest > METADATA_BYTES else 0
