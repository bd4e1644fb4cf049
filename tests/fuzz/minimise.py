"""Keep of a target's inputs what it takes to go every way through the code.

`python -m tests.fuzz.minimise TARGET` takes from build/fuzz/corpus into tests/fuzz/corpus the inputs, short
ones first, that go from a line to another as none before them did, or far more often than they did. Inputs
called `found-...` stay in any case: each is a bug that was.
"""

from __future__ import annotations

import hashlib
import importlib
import sys
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from types import CodeType, FrameType

PROJECT = Path(__file__).parents[2]
Step = tuple[CodeType, int, int]
Tracer = Callable[[FrameType, str, object], object]


class Ways:
    """Follows the lines of the proxy that are run."""

    def __init__(self) -> None:
        self.steps: Counter[Step] = Counter()
        self._last: dict[FrameType, int] = {}

    def trace(self, frame: FrameType, event: str, argument: object) -> Tracer | None:
        """Follow the proxy's own functions, and count steps in them."""
        if event == "call":
            if "/drover_proxy/" not in frame.f_code.co_filename:
                return None
            frame.f_trace_opcodes = False
            self._last[frame] = 0
        elif event == "line":
            self.steps[frame.f_code, self._last.get(frame, 0), frame.f_lineno] += 1
            self._last[frame] = frame.f_lineno
        return self.trace


def ways(check: Callable[[bytes], None], data: bytes) -> set[tuple[Step, int]]:
    """Say which ways an input goes, and how often as a power of four."""
    followed = Ways()
    sys.settrace(followed.trace)
    try:
        check(data)
    finally:
        sys.settrace(None)
    return {(step, count.bit_length() // 2) for step, count in followed.steps.items()}


def main() -> None:
    """Minimise one target's inputs."""
    target = sys.argv[1]
    module = importlib.import_module(f"tests.fuzz.target_{target}")
    kept, grown = PROJECT / "tests/fuzz/corpus" / target, PROJECT / "build/fuzz/corpus" / target
    kept.mkdir(parents=True, exist_ok=True)
    known: set[tuple[Step, int]] = set()
    for data in [*module.seeds(), *(path.read_bytes() for path in sorted(kept.glob("found-*")))]:
        known |= ways(module.check, data)
    paths = [path for folder in (kept, grown) for path in folder.glob("*") if path.is_file()]
    inputs = sorted({path.read_bytes() for path in paths if not path.name.startswith("found-")}, key=len)
    for path in kept.iterdir():
        if not path.name.startswith("found-"):
            path.unlink()
    for data in inputs:
        new = ways(module.check, data) - known
        if new:
            known |= new
            (kept / hashlib.sha256(data).hexdigest()[:16]).write_bytes(data)
    left = list(kept.iterdir())
    print(f"{target}: {len(inputs)} inputs, {len(left)} kept, {sum(p.stat().st_size for p in left)} bytes")


if __name__ == "__main__":
    main()
