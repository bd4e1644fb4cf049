"""What is known of a model before it is loaded: its blob, its hyperparameters, its tensors."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True, slots=True)
class Tensor:
    """One tensor of a GGUF file, as `/api/show` lists it."""

    name: str
    type: str
    shape: tuple[int, ...]

    @property
    def elements(self) -> int:
        """Number of elements."""
        count = 1
        for extent in self.shape:
            count *= extent
        return count


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelInfo:
    """A model by name, with everything that its memory is predicted from.

    `blob` identifies the GGUF file: names that share a blob share a runner in Ollama. Where it is unknown
    it is `name:<model>`, which no other model has.
    """

    name: str
    blob: str
    size_bytes: int
    """All layers together, as `/api/tags` gives it: the upper bound of the weights."""
    architecture: str = ""
    hyperparameters: Mapping[str, Any] = field(default_factory=dict)
    """`model_info` of a verbose `/api/show`, keys as in the GGUF (`llama.block_count`)."""
    tensors: tuple[Tensor, ...] = ()
    projector_tensors: tuple[Tensor, ...] = ()
    projector_bytes: int = 0
    """Size of the projector when its tensors aren't known; 0 without a projector."""
    capabilities: frozenset[str] = frozenset()
    """As Ollama names them: completion, embedding, vision, tools ...; empty: unknown."""
    num_ctx: int | None = None
    """The Modelfile's `PARAMETER num_ctx`."""
    num_batch: int | None = None
    """The Modelfile's `PARAMETER num_batch`."""

    def hyperparameter(self, key: str, default: Any = None) -> Any:
        """Return `<architecture>.<key>` of the GGUF's metadata, `default` when absent or null."""
        value = self.hyperparameters.get(f"{self.architecture}.{key}")
        return default if value is None else value

    @property
    def embedding_only(self) -> bool:
        """Whether the model makes embeddings and no text (Ollama gives such a runner one slot)."""
        return "embedding" in self.capabilities and "completion" not in self.capabilities

    @property
    def generates(self) -> bool:
        """Whether the model makes text; true when its capabilities are unknown."""
        return not self.capabilities or "completion" in self.capabilities

    @property
    def train_context(self) -> int | None:
        """The context length it was trained with: Ollama never gives it more."""
        value = self.hyperparameter("context_length")
        return value if isinstance(value, int) and value > 0 else None
