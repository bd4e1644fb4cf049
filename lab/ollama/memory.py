"""What a loaded model takes: weights, KV cache, compute buffer, CUDA context; and how its layers fall.

This is the simulation's own arithmetic, on purpose apart from the proxy's: the two are compared in tests.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from lab.ollama.gguf import Header

CUDA_CONTEXT_BYTES = 512 << 20
KV_ELEMENT_BYTES = {
    "": 2.0, "f32": 4.0, "f16": 2.0, "bf16": 2.0, "q8_0": 34 / 32, "q5_1": 24 / 32, "q5_0": 22 / 32,
    "q4_1": 20 / 32, "q4_0": 18 / 32,
}  # fmt: skip
# Of every so many layers the last attends to everything, the others to a window.
_WINDOW_PATTERN = {"gemma2": 2, "gemma3": 6, "gemma3n": 5, "gptoss": 2, "gpt-oss": 2, "cohere2": 4}


@dataclass(frozen=True)
class Shape:
    """How a model is asked to be loaded."""

    context: int  # of one slot
    slots: int
    kv_type: str
    batch: int
    flash_attention: bool = True


@dataclass(frozen=True)
class Footprint:
    """What it takes when all of it is on one GPU."""

    weights_bytes: int
    kv_bytes: int
    compute_bytes: int
    layers: int  # with the output layer
    kv_overwritten_bytes: int = 0  # cache that Ollama's log reader loses, see `underreported`


@dataclass(frozen=True)
class Placement:
    """Where the layers went; `gpu_bytes` is what each GPU gives, its CUDA context included."""

    gpu_bytes: dict[int, int]
    gpu_layers: int
    layers: int
    size_bytes: int
    size_vram_bytes: int


class OutOfMemoryError(Exception):
    """An explicit num_gpu asks for more than there is."""


def _pad(cells: int) -> int:
    return -(-cells // 256) * 256


def kv_cache_parts(header: Header, shape: Shape) -> tuple[int, int]:
    """Bytes of the cache for layers that see everything, and for those that see a window.

    It is allocated in full at load: context times slots.
    """
    if header.number("pooling_type"):
        return 0, 0
    layers, heads = header.number("block_count", 1), max(1, header.number("attention.head_count", 1))
    kv_heads = header.number("attention.head_count_kv", heads)
    default = header.number("embedding_length", 64) // heads
    row = kv_heads * (
        header.number("attention.key_length", default) + header.number("attention.value_length", default)
    )
    slot = _pad(min(shape.context, header.number("context_length", shape.context)))
    window = header.number("attention.sliding_window")
    pattern = _WINDOW_PATTERN.get(header.architecture, 0) if window else 0
    windowed = sum(1 for index in range(layers) if pattern and index % pattern < pattern - 1)
    cell_bytes = shape.slots * row * KV_ELEMENT_BYTES[shape.kv_type]
    short = min(slot, _pad(window + shape.batch))
    return int((layers - windowed) * slot * cell_bytes), int(windowed * short * cell_bytes)


def kv_cache_bytes(header: Header, shape: Shape) -> int:
    """The whole cache."""
    return sum(kv_cache_parts(header, shape))


def footprint(header: Header, shape: Shape, file_bytes: int) -> Footprint:
    """Weights, cache and buffer of a model, as if it went whole onto one GPU."""
    names = {tensor.name for tensor in header.tensors}
    weights = header.tensor_bytes or file_bytes
    if "output.weight" in names:
        weights -= sum(t.size_bytes for t in header.tensors if t.name == "token_embd.weight")
    embedding, feed_forward = header.number("embedding_length"), header.number("feed_forward_length")
    if used := header.number("expert_used_count"):
        feed_forward = header.number("expert_feed_forward_length", feed_forward) * used
    vocabulary = next((t.shape[-1] for t in header.tensors if t.name == "token_embd.weight"), 0)
    slot = _pad(shape.context) * shape.slots
    widest = max((vocabulary + embedding) * 4, (3 * feed_forward + 2 * embedding) * 4)
    compute = shape.batch * widest + slot * shape.batch * 2
    if not shape.flash_attention:
        compute += header.number("attention.head_count", 1) * slot * shape.batch * 4
    everything, windowed = kv_cache_parts(header, shape)
    layers = header.number("block_count", 1) + 1
    return Footprint(weights, everything + windowed, compute, layers, everything if windowed else 0)


def predicted_bytes(header: Header, context: int, slots: int, file_bytes: int) -> int:
    """Ollama's own rough guess, by which it chooses a GPU and evicts."""
    heads = max(1, header.number("attention.head_count", 1))
    row = header.number("attention.head_count_kv", heads) * (header.number("embedding_length", 64) // heads)
    return file_bytes + 2 * header.number("block_count", 1) * row * context * slots * 2


def place(need: Footprint, free: dict[int, int], num_gpu: int, fit_target_bytes: int) -> Placement:
    """Put as many layers on the GPUs as fit beside the margin; the rest is the CPU's.

    With an explicit `num_gpu` nothing is fitted: what is asked for is taken or fails.
    """
    layers = need.layers
    per_layer = (need.weights_bytes + need.kv_bytes) / layers
    fixed = need.compute_bytes + CUDA_CONTEXT_BYTES
    wanted = layers if num_gpu < 0 else min(num_gpu, layers)
    given = dict.fromkeys(free, 0)
    if num_gpu < 0:
        room = {gpu: max(0, int((size - fixed - fit_target_bytes) / per_layer)) for gpu, size in free.items()}
        left, total = wanted, sum(room.values())
        for gpu, most in room.items():
            share = round(wanted * most / total) if total > wanted else most
            given[gpu] = min(share, most, left)
            left -= given[gpu]
        for gpu, most in room.items():
            more = min(left, most - given[gpu])
            given[gpu] += more
            left -= more
    elif free:
        for position, gpu in enumerate(free):
            given[gpu] = wanted // len(free) + (1 if position < wanted % len(free) else 0)
    taken = {gpu: int(count * per_layer) + fixed for gpu, count in given.items() if count}
    for gpu, size in taken.items():
        if size > free[gpu]:
            raise OutOfMemoryError(
                f"allocating {size / (1 << 20):.2f} MiB on device {gpu}: cudaMalloc failed: out of memory"
            )
    on_gpu = sum(given.values())
    size = need.weights_bytes + need.kv_bytes + need.compute_bytes * max(1, len(taken))
    vram = sum(taken.values()) - CUDA_CONTEXT_BYTES * len(taken)
    if on_gpu >= layers:
        size = vram
    return Placement(taken, on_gpu, layers, max(size, vram), vram)


def underreported(placement: Placement, need: Footprint) -> Placement:
    """What /api/ps says of a model with windowed layers: their log line replaces that of the other layers."""
    lost = need.kv_overwritten_bytes
    on_gpu = lost * placement.gpu_layers // placement.layers
    size, vram = placement.size_bytes - lost, placement.size_vram_bytes - on_gpu
    return replace(placement, size_bytes=size, size_vram_bytes=min(vram, size))
