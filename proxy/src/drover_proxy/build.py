"""Which build of the proxy this is: its hot modules as Python, or as machine code (proxy/hatch_build.py)."""

from __future__ import annotations

from typing import Literal

from drover_proxy.guard import keys

BUILD: Literal["compiled", "interpreted"] = "interpreted" if keys.__file__.endswith(".py") else "compiled"
"""Told from what was really imported; the modules are compiled all together or not at all."""
