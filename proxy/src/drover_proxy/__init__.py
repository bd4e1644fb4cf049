"""The proxy of a drover host: the only door to its Ollama instances."""

from __future__ import annotations

__version__ = "0.1.0"
