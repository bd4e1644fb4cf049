"""A stand-in for llama.cpp's `llama-server`: a genuine Ollama runs its own scheduler over invented GPUs.

Ollama of 0.30 and later starts a `llama-server` for each model and learns from its log lines what it took.
This one takes its memory from the lab's simulated GPUs and makes up the tokens; everything on Ollama's side
is genuine. `install.lay_out` puts it where Ollama looks for it.
"""

from __future__ import annotations
