"""What the mirror does wrong on purpose: a control file in its root, read for every request."""

from __future__ import annotations

from pathlib import Path

from lab.mirror.debs import MirrorError

CONTROL = "faults"
FAULTS = ("unsigned", "tampered", "corrupt-ollama")


def active(root: Path) -> frozenset[str]:
    """The faults that are on."""
    try:
        return frozenset((root / CONTROL).read_text(encoding="utf-8").split())
    except FileNotFoundError:
        return frozenset()


def set_fault(root: Path, fault: str) -> None:
    """Turn a fault on, or all off with `clear`."""
    if not (root / "apt").exists():
        raise MirrorError(f"{root} is no mirror's root: python -m lab.mirror build --into {root}")
    if fault == "clear":
        (root / CONTROL).unlink(missing_ok=True)
        return
    if fault not in FAULTS:
        raise MirrorError(f"{fault!r} is no fault of the mirror: {', '.join(FAULTS)}, clear")
    new = root / f".{CONTROL}.new"
    new.write_text(" ".join(sorted(active(root) | {fault})) + "\n", encoding="utf-8")
    new.replace(root / CONTROL)


def hides(faults: frozenset[str], path: str) -> bool:
    """Whether a fault makes a file look absent: an unsigned repository has a Release and no signature."""
    return "unsigned" in faults and path in {"apt/InRelease", "apt/Release.gpg"}


def spoil(faults: frozenset[str], path: str, content: bytes) -> bytes:
    """A file's bytes as the faults leave them."""
    if "tampered" in faults and path in {"apt/InRelease", "apt/Release"}:
        return content.replace(b"Label: drover-lab", b"Label: drover-bad")
    if "corrupt-ollama" in faults and path.startswith("ollama/") and path.endswith(".tar.zst"):
        middle = len(content) // 2
        return content[:middle] + bytes([content[middle] ^ 0xFF]) + content[middle + 1 :]
    return content
