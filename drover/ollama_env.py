"""The environment variables that Ollama reads, and those that it doesn't have although people set them.

Ollama ignores an unknown variable in silence, so a fleet that sets one believes in something that isn't so.
As read in Ollama's own source at 0.33; names that exist only in unmerged changes count as absent.
"""

from __future__ import annotations

KNOWN = frozenset(
    {
        "OLLAMA_CONTEXT_LENGTH",
        "OLLAMA_DEBUG",
        "OLLAMA_DEBUG_LOG_REQUESTS",
        "OLLAMA_FLASH_ATTENTION",
        "OLLAMA_GO_TEMPLATE",
        "OLLAMA_GPU_OVERHEAD",
        "OLLAMA_HOST",
        "OLLAMA_IGPU_ENABLE",
        "OLLAMA_KEEP_ALIVE",
        "OLLAMA_KV_CACHE_TYPE",
        "OLLAMA_LLM_LIBRARY",
        "OLLAMA_LOAD_TIMEOUT",
        "OLLAMA_MAX_LOADED_MODELS",
        "OLLAMA_MAX_QUEUE",
        "OLLAMA_MAX_TRANSFER_STREAMS",
        "OLLAMA_MODELS",
        "OLLAMA_NOPRUNE",
        "OLLAMA_NO_CLOUD",
        "OLLAMA_NUM_PARALLEL",
        "OLLAMA_ORIGINS",
        "OLLAMA_REMOTES",
        "OLLAMA_SCHED_SPREAD",
        "OLLAMA_VULKAN",
    }
)

# Settings that the fleet sets by variables of its own: two places for one value would end in the wrong one.
OWN = {
    "CUDA_VISIBLE_DEVICES": "ollama_instances",
    "LLAMA_ARG_CACHE_RAM": "ollama_cache_ram_mib",
    "LLAMA_ARG_FIT_TARGET": "ollama_fit_target_mib",
    "OLLAMA_CONTEXT_LENGTH": "ollama_context_length",
    "OLLAMA_FLASH_ATTENTION": "ollama_flash_attention",
    "OLLAMA_HOST": "ollama_port",
    "OLLAMA_KEEP_ALIVE": "ollama_keep_alive",
    "OLLAMA_KV_CACHE_TYPE": "ollama_kv_cache_type",
    "OLLAMA_LOAD_TIMEOUT": "ollama_load_timeout",
    "OLLAMA_MAX_LOADED_MODELS": "ollama_max_loaded_models",
    "OLLAMA_MAX_QUEUE": "ollama_max_queue",
    "OLLAMA_MODELS": "ollama_models_dir",
    "OLLAMA_NO_CLOUD": "ollama_cloud",
    "OLLAMA_NUM_PARALLEL": "ollama_num_parallel",
    "OLLAMA_SCHED_SPREAD": "ollama_spread",
    "OLLAMA_VULKAN": "ollama_vulkan",
}

# Name -> (what became of it, what to use instead).
ABSENT: dict[str, tuple[str, str]] = {
    "OLLAMA_API_KEY": ("the server ignores it", "the proxy's keys (proxy_keys)"),
    "OLLAMA_AUTH": ("it makes the client sign, it doesn't guard the server", "the proxy's keys (proxy_keys)"),
    "OLLAMA_BATCH_SIZE": ("never existed", "the model parameter num_batch (models_list)"),
    "OLLAMA_CACHE_RAM": ("never merged", "ollama_cache_ram_mib"),
    "OLLAMA_CUDA": ("never existed", "OLLAMA_LLM_LIBRARY"),
    "OLLAMA_DEFAULT_KEEPALIVE": ("never existed", "ollama_keep_alive"),
    "OLLAMA_DEVICE": ("never existed", "ollama_instances; each GPU has one by default"),
    "OLLAMA_ENGINE": ("never existed", "OLLAMA_LLM_LIBRARY"),
    "OLLAMA_GPU_LAYERS": ("never existed", "the model parameter num_gpu (models_list)"),
    "OLLAMA_GPU_MEMORY": (
        "never existed",
        "ollama_fit_target_mib (MiB left free); the proxy plans the memory",
    ),
    "OLLAMA_INTEL_GPU": ("removed in 2025", "ollama_vulkan, or OLLAMA_IGPU_ENABLE"),
    "OLLAMA_KV_CACHE_REUSE": (
        "never existed",
        "nothing: the prefix cache is on; ollama_cache_ram_mib sets its size",
    ),
    "OLLAMA_LOG_LEVEL": ("never existed", "OLLAMA_DEBUG: 1 or 2"),
    "OLLAMA_MAX_VRAM": (
        "removed in 2024",
        "ollama_fit_target_mib (MiB left free); the proxy plans the memory",
    ),
    "OLLAMA_METRICS": ("never merged", "the proxy's /metrics"),
    "OLLAMA_MMAP": ("never existed", "the model parameter use_mmap (models_list)"),
    "OLLAMA_MULTIUSER_CACHE": ("removed in 0.30", "nothing: the slots of llama-server do it"),
    "OLLAMA_NEW_ENGINE": ("removed in 0.30", "nothing: there is one engine"),
    "OLLAMA_NO_CUDA": ("never existed", "ollama_instances"),
    "OLLAMA_NO_MODEL_EVICT": ("never merged", "pin: true in models_list; the proxy decides what is evicted"),
    "OLLAMA_NUM_CTX": ("never existed", "ollama_context_length, or a model's num_ctx (models_list)"),
    "OLLAMA_NUM_GPU": ("never existed", "the model parameter num_gpu (models_list)"),
    "OLLAMA_NUM_THREAD": ("never existed", "the model parameter num_thread (models_list)"),
    "OLLAMA_NUM_THREADS": ("never existed", "the model parameter num_thread (models_list)"),
    "OLLAMA_PRELOAD_MODELS": ("never merged", "warm: true in models_list"),
    "OLLAMA_REGISTRY": (
        "never existed",
        "the host in the model's name, as in registry.example/library/llama3.2:3b",
    ),
    "OLLAMA_RUNNERS": ("never existed", "nothing"),
    "OLLAMA_RUNNERS_DIR": ("removed in 2024", "nothing: the runners lie in lib/ollama of the release"),
    "OLLAMA_TMPDIR": ("removed in 2024", "TMPDIR"),
    "OLLAMA_USE_MMAP": ("never existed", "the model parameter use_mmap (models_list)"),
}
