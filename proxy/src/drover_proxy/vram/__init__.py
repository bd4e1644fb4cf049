"""The memory a model takes, predicted before it is loaded. Pure: no I/O, no clock."""

from __future__ import annotations

from drover_proxy.vram.footprint import Confidence, Footprint, auto_batch, footprint
from drover_proxy.vram.guess import guessed_bytes, needed_free_bytes, own_engine_bytes
from drover_proxy.vram.model import ModelInfo, Tensor
from drover_proxy.vram.show import model_info_from_show

__all__ = [
    "Confidence",
    "Footprint",
    "ModelInfo",
    "Tensor",
    "auto_batch",
    "footprint",
    "guessed_bytes",
    "model_info_from_show",
    "needed_free_bytes",
    "own_engine_bytes",
]
