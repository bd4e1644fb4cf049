"""What Ollama itself expects a model to take, by which it decides to evict: rougher than what it takes.

Two generations of Ollama decide in two ways, both only while other runners are loaded in the same server
(with none, a load is tried as it is, and what doesn't fit goes to the CPU):

* 0.30 and later start a `llama-server` (read at commit fb307609, v0.33.0-rc2). The guess is
  `PredictServerVRAM` of llm/llama_server.go: the GGUF file's bytes, and an f16 cache of full attention,
  `2 (K and V) * block_count * min(head_count_kv) * (embedding_length / max(head_count)) * tokens * 2` bytes,
  where `tokens` is the context of a slot times the slots and is never padded. `load` of server/sched.go adds
  `generationBatchSurcharge` (768 MiB from a batch of 1024, 2 GiB from 2048), and evicts unless the sum is at
  most 80 % (whole bytes, rounded down) of the memory that it believes free. A batch that nobody set is chosen
  so that its surcharge fits, so it never evicts by itself; one that the Modelfile sets does.
* before that, its own engine (read at v0.24.0, llm/server.go): all layers with their cache, `GraphSize` of
  fs/ggml/ggml.go, and one layer more as a buffer must fit into what is free less 457 MiB. llama.cpp's
  architectures are reckoned as without flash attention there: with a long context the graph counts for GiB.

Everything is in bytes. Neither guess knows a cache type but the second, and neither knows windows.
"""

from __future__ import annotations

from drover_proxy.vram.model import ModelInfo

MIB = 1024 * 1024
USABLE_PERCENT = 80
"""Of the memory that it believes free, what Ollama of 0.30 and later gives to a load beside others."""
LARGE_BATCH, LARGE_BATCH_BYTES = 2048, 2048 * MIB
MEDIUM_BATCH, MEDIUM_BATCH_BYTES = 1024, 768 * MIB
METADATA_BYTES = 32 * MIB
"""What a GGUF file may be larger than its tensors: vocabulary, merges, template."""
MINIMUM_BYTES = 457 * MIB
"""What Ollama before 0.30 sets aside on a CUDA device."""
OWN_ENGINE_BATCH = 512
CACHE_BYTES = {"q8_0": 1.0, "q4_0": 0.5, "f32": 4.0}
"""Bytes of a cache element as Ollama before 0.30 counts them; all others are 2."""
UNKNOWN_BYTES_PER_TOKEN = 256 * 1024
MEASURED_FAMILIES = frozenset(
    {
        *("bert", "deepseek2", "deepseekocr", "gemma3", "gemma3n", "gemma4", "glm4moelite", "glmocr"),
        *("gpt-oss", "gptoss", "laguna", "lfm2", "lfm2moe", "llama4", "mistral3", "mllama", "nemotron_h"),
        *("nemotron_h_moe", "nemotron_h_omni", "nomic-bert", "olmo3", "qwen25vl", "qwen3", "qwen35"),
        *("qwen35moe", "qwen3moe", "qwen3next", "qwen3vl", "qwen3vlmoe"),
    }
)
"""Architectures that Ollama 0.24 runs by its own engine, which measures; the others are reckoned."""


def guessed_bytes(info: ModelInfo, *, context: int, slots: int) -> int:
    """Return what Ollama of 0.30 and later guesses, the surcharge of a batch in the Modelfile included.

    `context` is that of a slot, after Ollama's cap at the training context. Never less than the real guess:
    the file's size is known here only together with the model's other layers.
    """
    batch = 0 if info.embedding_only else info.num_batch or 0
    surcharge = (
        LARGE_BATCH_BYTES if batch >= LARGE_BATCH else MEDIUM_BATCH_BYTES if batch >= MEDIUM_BATCH else 0
    )
    return _file_bytes(info) + _rough_cache_bytes(info, context * slots) + surcharge


def needed_free_bytes(guess_bytes: int) -> int:
    """Return the least free memory with which Ollama of 0.30 and later evicts nobody."""
    return -(-guess_bytes * 100 // USABLE_PERCENT)


def own_engine_bytes(info: ModelInfo, *, context: int, slots: int, kv_type: str = "f16") -> int:
    """Return the free memory with which Ollama before 0.30 evicts nobody.

    The graph is that of the costliest of llama.cpp's common architectures, so it errs towards more. For those
    that the own engine runs it measures the graph, of which the output is the most.
    """
    layers = max(1, _integer(info, "block_count") or 1)
    tokens = context * slots
    heads, embedding = _most(info, "attention.head_count", 1), _integer(info, "embedding_length") or 0
    heads_kv = _most(info, "attention.head_count_kv", heads)
    default = embedding // heads
    lengths = _most(info, "attention.key_length", default) + _most(info, "attention.value_length", default)
    cache = int(layers * tokens * heads_kv * lengths * CACHE_BYTES.get(kv_type, 2.0))
    batch = max(info.num_batch or OWN_ENGINE_BATCH, context if info.embedding_only else 0)
    vocabulary = _most(info, "vocab_size", 0) or _rows(info, embedding)
    attention = 0
    if info.architecture not in MEASURED_FAMILIES:
        attention = 4 * batch * (4 * embedding + tokens * (1 + heads)) + 4 * tokens * default * heads_kv
    logits = 4 * batch * (2 * embedding + vocabulary) + embedding * vocabulary * 105 // 128
    weights = _file_bytes(info)
    return weights + cache + max(attention, logits) + (weights + cache) // layers + MINIMUM_BYTES


def _file_bytes(info: ModelInfo) -> int:
    """Return the GGUF file's size, or a little more: `size_bytes` is that of all the model's layers."""
    if not info.projector_bytes:
        return info.size_bytes
    return min(info.size_bytes, info.size_bytes - info.projector_bytes + METADATA_BYTES)


def _rough_cache_bytes(info: ModelInfo, tokens: int) -> int:
    if not info.hyperparameters:  # nothing could be read: rather too much
        return tokens * UNKNOWN_BYTES_PER_TOKEN
    heads = _most(info, "attention.head_count", 1)
    head_size = (_integer(info, "embedding_length") or 0) // heads if heads else 0
    heads_kv = info.hyperparameter("attention.head_count_kv")
    if isinstance(heads_kv, list | tuple) and heads_kv:
        heads_kv = min(int(count) for count in heads_kv)
    elif not isinstance(heads_kv, int):
        # Absent counts as 1; null is an array that the answer left out.
        heads_kv = heads if f"{info.architecture}.attention.head_count_kv" in info.hyperparameters else 1
    return 2 * (_integer(info, "block_count") or 0) * max(1, heads_kv) * head_size * tokens * 2


def _integer(info: ModelInfo, key: str) -> int | None:
    value = info.hyperparameter(key)
    return value if isinstance(value, int) else None


def _most(info: ModelInfo, key: str, default: int) -> int:
    value = info.hyperparameter(key)
    if isinstance(value, list | tuple):
        return max((int(item) for item in value), default=default)
    return value if isinstance(value, int) else default


def _rows(info: ModelInfo, embedding: int) -> int:
    named = (tensor for tensor in info.tensors if tensor.name == "token_embd.weight")
    return next((tensor.elements // embedding for tensor in named if embedding), 0)
