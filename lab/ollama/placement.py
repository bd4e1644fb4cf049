"""Which GPUs a load gets, and with which batch: Ollama's rules, by its rough guess of a model's size."""

from __future__ import annotations

from lab.ollama.gpus import Gpu

BATCHES = (2048, 1024, 512)
_SURCHARGE = {2048: 2 << 30, 1024: 768 << 20}
_HEADROOM = {2048: 0.60, 1024: 0.75}
_USABLE = 0.8  # of the memory that is free


def select(gpus: list[Gpu], predicted_bytes: int, main_gpu: int | None, *, spread: bool) -> list[Gpu]:
    """One GPU where the guess fits on it, the one with most free; else all of them together."""
    if len(gpus) <= 1:
        return gpus
    if main_gpu is not None:
        return [gpus[main_gpu]] if 0 <= main_gpu < len(gpus) else gpus
    roomy = max(gpus, key=lambda gpu: gpu.free_bytes)
    if not spread and predicted_bytes <= _USABLE * roomy.free_bytes:
        return [roomy]
    return gpus


def available_bytes(gpus: list[Gpu]) -> int:
    """What the chosen GPUs have free together."""
    return sum(gpu.free_bytes for gpu in gpus)


def surcharge_bytes(batch: int) -> int:
    """What a large batch takes more, by the same rough guess."""
    return _SURCHARGE.get(batch, 0)


def fits(predicted_bytes: int, gpus: list[Gpu]) -> bool:
    """Whether a load may go beside what is loaded already."""
    return predicted_bytes <= _USABLE * available_bytes(gpus)


def automatic_batch(cells: int, predicted_bytes: int, gpus: list[Gpu], *, flash_attention: bool) -> int:
    """num_batch where nobody set it: larger for long contexts, as far as there is room."""
    if gpus and not flash_attention:
        tight = cells > 4096 and any(0 < gpu.free_bytes <= 8 << 30 for gpu in gpus)
        return 256 if tight else 512
    wanted = 2048 if cells > 32768 else 1024 if cells > 4096 else 512
    available = available_bytes(gpus)
    for batch in BATCHES:
        if batch > wanted:
            continue
        roomy = predicted_bytes <= _HEADROOM.get(batch, 1) * available
        if batch == 512 or not available:
            return batch
        if roomy and predicted_bytes + surcharge_bytes(batch) <= _USABLE * available:
            return batch
    return 512
