"""What a model will take of a GPU's memory: weights, cache, compute buffers, CUDA's own.

The parts are llama.cpp's, because that is what allocates them. Where the metadata lacks a key the cruder rule
of Ollama itself stands in, and the answer says that it is of low confidence. The scheduler prefers what it
has measured after an earlier load.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum

from drover_proxy.vram.elements import bytes_of
from drover_proxy.vram.kv import MissingHyperparameterError, cells_per_slot, is_encoder, kv_bytes
from drover_proxy.vram.model import ModelInfo, Tensor

MIB = 1024 * 1024
CUDA_CONTEXT_BYTES = 512 * MIB
"""What a process takes of each GPU before its first buffer: context, kernels, cuBLAS workspace."""
PROJECTOR_HEADROOM_BYTES = 1024 * MIB
"""What Ollama wants free besides, for a model with a projector."""
PROJECTOR_COMPUTE_BYTES = 256 * MIB
PIPELINE_COPIES = 4
"""llama.cpp keeps so many copies of a graph's inputs when it works over several GPUs."""
UNKNOWN_VOCABULARY = 152_064
UNKNOWN_BYTES_PER_TOKEN = 256 * 1024
"""Cache of one token for a model of which nothing is known: twice that of an 8B of today."""
EMBEDDING_BATCH = 2048


class Confidence(str, Enum):
    """How far a prediction can be trusted."""

    HIGH = "high"
    """Every tensor and every key was known."""
    MEDIUM = "medium"
    """The weights are the file's size, or the vocabulary was assumed."""
    LOW = "low"
    """Keys were missing: Ollama's own rough rule."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Footprint:
    """What a load takes, over all its GPUs together."""

    weights_bytes: int
    kv_bytes: int
    compute_bytes: int
    overhead_bytes: int
    gpu_count: int
    confidence: Confidence
    headroom_bytes: int = 0
    """Must be free at the load, but isn't taken."""
    fixed_bytes: int = 0
    """The part of the total that every GPU bears for itself; the rest is divided among them."""

    @property
    def total_bytes(self) -> int:
        """What NVML will show."""
        return self.weights_bytes + self.kv_bytes + self.compute_bytes + self.overhead_bytes


def auto_batch(info: ModelInfo, context: int, slots: int = 1) -> int:
    """Return the batch that Ollama chooses when neither Modelfile nor request names one.

    It goes by the tokens of all slots together, and takes a smaller one where memory is tight.
    """
    if info.embedding_only:
        return EMBEDDING_BATCH
    if info.num_batch:
        return info.num_batch
    tokens = min(context, info.train_context or context) * slots
    if tokens > 32768:
        return 2048
    return 1024 if tokens > 4096 else 512


def footprint(
    info: ModelInfo,
    *,
    context: int,
    slots: int = 1,
    kv_type: str = "f16",
    batch: int | None = None,
    gpu_count: int = 1,
    flash_attention: bool = True,
) -> Footprint:
    """Predict what `info` takes with that context a slot, so many slots, on so many GPUs."""
    batch = auto_batch(info, context, slots) if batch is None else batch
    gpus = max(1, gpu_count)
    weights, exact = weights_on_gpu(info)
    projector = _tensors(info.projector_tensors) or info.projector_bytes
    confidence = Confidence.HIGH if exact else Confidence.MEDIUM
    try:
        cache = kv_bytes(info, context=context, slots=slots, kv_type=kv_type, batch=batch)
    except MissingHyperparameterError:
        cache = _rough_cache(info, context, slots)
        weights = max(weights, info.size_bytes)
        confidence = Confidence.LOW
    per_gpu_compute, guessed = _compute(info, context, batch, flash_attention=flash_attention)
    if guessed and confidence is Confidence.HIGH:
        confidence = Confidence.MEDIUM
    if gpus > 1:
        per_gpu_compute += PIPELINE_COPIES * cells_per_slot(info, context) * batch * 4
    return Footprint(
        weights_bytes=weights + (projector if exact else 0),
        kv_bytes=cache,
        compute_bytes=per_gpu_compute * gpus + (PROJECTOR_COMPUTE_BYTES if projector else 0),
        overhead_bytes=CUDA_CONTEXT_BYTES * gpus,
        gpu_count=gpus,
        confidence=confidence,
        headroom_bytes=PROJECTOR_HEADROOM_BYTES if projector else 0,
        fixed_bytes=CUDA_CONTEXT_BYTES + per_gpu_compute,
    )


def weights_on_gpu(info: ModelInfo) -> tuple[int, bool]:
    """Return the bytes of the weights when all layers are on the GPU, and whether that is exact.

    The input embedding stays on the CPU when the model has an output matrix of its own; tied embeddings are
    on both sides. Without tensors it is the size of all layers, which is more than enough.
    """
    if not info.tensors:
        return info.size_bytes, False
    total = _tensors(info.tensors)
    if total is None:
        return info.size_bytes, False
    if any(tensor.name == "output.weight" for tensor in info.tensors):
        total -= _tensors(tuple(t for t in info.tensors if t.name == "token_embd.weight")) or 0
    return total, True


def _tensors(tensors: tuple[Tensor, ...]) -> int | None:
    total = 0
    for tensor in tensors:
        size = bytes_of(tensor.elements, tensor.type)
        if size is None:
            return None
        total += size
    return total


def _rough_cache(info: ModelInfo, context: int, slots: int) -> int:
    """Return Ollama's own estimate of the cache, which assumes full attention and f16."""
    if is_encoder(info):
        return 0
    cells = cells_per_slot(info, context) * slots
    layers = info.hyperparameter("block_count")
    embedding = info.hyperparameter("embedding_length")
    heads = _largest(info.hyperparameter("attention.head_count"))
    if not isinstance(layers, int) or not isinstance(embedding, int) or not heads:
        return cells * UNKNOWN_BYTES_PER_TOKEN
    heads_kv = _largest(info.hyperparameter("attention.head_count_kv")) or heads
    head_size = max(_largest(info.hyperparameter("attention.key_length")) or 0, embedding // heads)
    return 2 * layers * heads_kv * head_size * cells * 2


def _largest(value: object) -> int | None:
    if isinstance(value, list | tuple):
        return max((int(item) for item in value), default=None)
    return value if isinstance(value, int) else None


def _compute(info: ModelInfo, context: int, batch: int, *, flash_attention: bool) -> tuple[int, bool]:
    """Return the compute buffer of one GPU, and whether something in it had to be assumed."""
    embedding = _largest(info.hyperparameter("embedding_length")) or 4096
    vocabulary = _vocabulary(info, embedding)
    guessed = vocabulary is None
    feed_forward = _largest(info.hyperparameter("feed_forward_length")) or 4 * embedding
    experts_used = _largest(info.hyperparameter("expert_used_count")) or 0
    if experts_used:
        expert = _largest(info.hyperparameter("expert_feed_forward_length")) or feed_forward
        feed_forward = max(feed_forward, expert * experts_used)
    activations = batch * (3 * feed_forward + 2 * embedding) * 4
    if is_encoder(info):
        return activations, False
    cells = cells_per_slot(info, context)
    logits = batch * ((vocabulary or UNKNOWN_VOCABULARY) + embedding) * 4
    size = max(logits, activations) + cells * batch * 2
    if not flash_attention:
        size += (_largest(info.hyperparameter("attention.head_count")) or 32) * cells * batch * 4
    return size, guessed


def _vocabulary(info: ModelInfo, embedding: int) -> int | None:
    for tensor in info.tensors:
        if tensor.name == "token_embd.weight" and embedding:
            return tensor.elements // embedding
    named = info.hyperparameter("vocab_size")
    return named if isinstance(named, int) else None
