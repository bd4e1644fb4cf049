"""A simulated Ollama: the HTTP interface, the scheduler's habits and the command line, without a model.

It needs nothing but Python's standard library (3.10 and later), since it is packed like a release of the
real one and installed on hosts that have only Debian's python3. Where it behaves otherwise than a real
Ollama does, that is a bug here: `tests/contract` runs against both.
"""

from __future__ import annotations

VERSION = "0.33.0"
