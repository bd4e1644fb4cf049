"""The key-value cache: what llama.cpp allocates in full when a model is loaded.

The formulas are llama.cpp's, by kind of attention. A layer holds, for each cell, the keys and values of its
KV heads; layers with a sliding window hold only the window; latent attention (MLA) holds one compressed row;
recurrent layers hold a state that doesn't grow with the context; encoders hold nothing.
"""

from __future__ import annotations

from dataclasses import dataclass

from drover_proxy.vram.elements import bytes_of
from drover_proxy.vram.model import ModelInfo

PAD = 256
"""llama.cpp rounds the cells of a sequence up to this."""

SLIDING: dict[str, tuple[int, int]] = {
    # architecture: (every how many layers one is global, window where the GGUF names none)
    "gemma2": (2, 4096),
    "gemma3": (6, 1024),
    "gemma3n": (5, 1024),
    "gpt-oss": (2, 128),
    "gptoss": (2, 128),
    "cohere2": (4, 4096),
    "olmo2": (4, 0),
    "exaone4": (4, 4096),
    "gemma4": (6, 1024),
}
"""Architectures whose sliding windows llama.cpp caches as windows.

GGUFs of llama, qwen2 and phi3 may name a window too; llama.cpp ignores it for the cache, so they aren't here.
llama4's chunks are counted as full attention, which is too much rather than too little.
"""

EXAONE4_SLIDING_LAYERS = 64  # its smaller sibling has full attention throughout
ENCODERS = ("gemma-embedding", "t5encoder")
RECURRENT = ("mamba", "mamba2", "rwkv6", "rwkv7")
RECURRENT_BYTES = 4  # the state stays F32 whatever the cache's type


class MissingHyperparameterError(LookupError):
    """The GGUF's metadata lacks what the formula needs: the caller falls back to a cruder rule."""


@dataclass(frozen=True, slots=True)
class Attention:
    """Heads of a model, layer by layer."""

    layers: int
    heads_kv: tuple[int, ...]
    key_length: int
    value_length: int


def pad(cells: int) -> int:
    """Return `cells` rounded up as llama.cpp rounds them."""
    return -(-cells // PAD) * PAD


def is_encoder(info: ModelInfo) -> bool:
    """Whether the model has no cache at all."""
    return "bert" in info.architecture or info.architecture in ENCODERS


def cells_per_slot(info: ModelInfo, context: int) -> int:
    """Return the cells that one slot is given: never more than the model was trained for."""
    limit = info.train_context
    return pad(context if limit is None else min(context, limit))


def kv_bytes(info: ModelInfo, *, context: int, slots: int, kv_type: str = "f16", batch: int = 512) -> int:
    """Return the bytes of the cache and of recurrent state, over all GPUs together.

    Raises MissingHyperparameterError when the metadata doesn't tell.
    """
    if is_encoder(info):
        return 0
    cells = cells_per_slot(info, context)
    if info.hyperparameter("attention.key_length_mla") is not None:
        return _latent_bytes(info, cells * slots, kv_type)
    if info.architecture in RECURRENT:
        return _integer(info, "block_count") * _state_bytes(info) * slots
    attention = _attention(info)
    window = _window(info, attention.layers)
    swa_lengths = (
        info.hyperparameter("attention.key_length_swa", attention.key_length),
        info.hyperparameter("attention.value_length_swa", attention.value_length),
    )
    total = 0
    own_cache = attention.layers - int(info.hyperparameter("attention.shared_kv_layers", 0))
    for layer in range(own_cache):
        heads = attention.heads_kv[layer]
        if heads == 0:
            continue
        if window is not None and _is_sliding(info, layer):
            layer_cells = min(cells, pad(window + batch))
            key, value = swa_lengths
        else:
            layer_cells = cells
            key, value = attention.key_length, attention.value_length
        total += layer_cells * slots * (_row(key * heads, kv_type) + _row(value * heads, kv_type))
    return total + _recurrent_layers(info, attention) * _state_bytes(info) * slots


def _row(elements: int, kv_type: str) -> int:
    size = bytes_of(elements, kv_type)
    if size is None:
        raise MissingHyperparameterError(f"the cache type {kv_type!r} is unknown")
    return size


def _integer(info: ModelInfo, key: str) -> int:
    value = info.hyperparameter(key)
    if not isinstance(value, int):
        raise MissingHyperparameterError(f"{info.architecture}.{key} of {info.name} is not known")
    return value


def _latent_bytes(info: ModelInfo, cells: int, kv_type: str) -> int:
    row = _integer(info, "attention.kv_lora_rank") + _integer(info, "rope.dimension_count")
    return _integer(info, "block_count") * cells * _row(row, kv_type)


def _attention(info: ModelInfo) -> Attention:
    layers = _integer(info, "block_count")
    heads = info.hyperparameter("attention.head_count")
    most_heads = max(heads) if isinstance(heads, list | tuple) and heads else heads
    if not isinstance(most_heads, int) or most_heads < 1:
        raise MissingHyperparameterError(
            f"{info.architecture}.attention.head_count of {info.name} is not known"
        )
    present = f"{info.architecture}.attention.head_count_kv" in info.hyperparameters
    kv = info.hyperparameter("attention.head_count_kv", None if present else heads)
    interval = info.hyperparameter("full_attention_interval")
    if isinstance(kv, int):
        per_layer = tuple(
            kv if not isinstance(interval, int) or layer % interval == interval - 1 else 0
            for layer in range(layers)
        )
    elif isinstance(kv, list | tuple) and len(kv) >= layers:
        per_layer = tuple(int(count) for count in kv[:layers])
    else:  # null: an array that a show without `verbose` left out
        raise MissingHyperparameterError(
            f"{info.architecture}.attention.head_count_kv of {info.name} is not known"
        )
    default = _integer(info, "embedding_length") // most_heads
    key = int(info.hyperparameter("attention.key_length", default))
    return Attention(layers, per_layer, key, int(info.hyperparameter("attention.value_length", key)))


def _window(info: ModelInfo, layers: int) -> int | None:
    """Return the sliding window's tokens, None where all layers see everything."""
    if info.architecture not in SLIDING:
        return None
    if info.architecture == "exaone4" and layers != EXAONE4_SLIDING_LAYERS:
        return None
    window = int(info.hyperparameter("attention.sliding_window", SLIDING[info.architecture][1]))
    return window or None


def _is_sliding(info: ModelInfo, layer: int) -> bool:
    pattern = info.hyperparameter("attention.sliding_window_pattern")
    if isinstance(pattern, list | tuple) and layer < len(pattern):
        return bool(pattern[layer])
    period = pattern if isinstance(pattern, int) and pattern > 1 else SLIDING[info.architecture][0]
    return layer % period < period - 1


def _recurrent_layers(info: ModelInfo, attention: Attention) -> int:
    if _state_bytes(info) == 0:
        return 0
    if info.architecture in {"falcon-h1", "falcon_h1"}:  # every layer has both
        return attention.layers
    return sum(1 for heads in attention.heads_kv if heads == 0)


def _state_bytes(info: ModelInfo) -> int:
    """Return the recurrent state of one layer and one sequence; 0 for a model without any."""
    short = info.hyperparameter("shortconv.l_cache")
    if isinstance(short, int):
        return RECURRENT_BYTES * (short - 1) * _integer(info, "embedding_length")
    inner = info.hyperparameter("ssm.inner_size")
    if not isinstance(inner, int):
        return 0
    state = _integer(info, "ssm.state_size")
    groups = int(info.hyperparameter("ssm.group_count", 0))
    conv = _integer(info, "ssm.conv_kernel")
    return RECURRENT_BYTES * ((conv - 1) * (inner + 2 * groups * state) + state * inner)
