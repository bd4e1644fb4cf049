"""From a lab profile to a host's GPUs: what /etc/labgpu/profile.json holds and what the state starts with.

A profile names models only; who a GPU is (its UUID, its place on the bus) follows from the names of the lab
and the host, so that the same lab has the same GPUs every time.
"""

from __future__ import annotations

import hashlib
import uuid
from collections.abc import Iterable, Mapping
from functools import cache
from pathlib import Path
from typing import Any

import yaml

MIB = 1024 * 1024
MODELS_FILE = Path(__file__).with_name("models.yaml")


class ProfileError(Exception):
    """The profile says something that no GPU model fits."""


@cache
def models() -> dict[str, dict[str, Any]]:
    """The known GPU models, by the name that profiles use."""
    loaded: dict[str, dict[str, Any]] = yaml.safe_load(MODELS_FILE.read_text(encoding="utf-8"))
    return loaded


def host_gpus(gpus: Iterable[Mapping[str, Any]], *, lab: str, host: str) -> list[dict[str, Any]]:
    """Spell out a host's GPUs: the model's values, what the profile overrides, and a settled identity."""
    answer = []
    for index, wish in enumerate(gpus):
        model = str(wish.get("model", ""))
        if model not in models():
            known = ", ".join(sorted(models()))
            raise ProfileError(
                f"host {host}, GPU {index}: no model {model!r}; lab/gpu/models.yaml has {known}"
            )
        seed = hashlib.sha256(f"{lab}/{host}/{index}".encode()).digest()
        gpu = {"index": index, "model": model, **models()[model]}
        gpu["uuid"] = f"GPU-{uuid.UUID(bytes=seed[:16], version=4)}"
        gpu["serial"] = str(1_320_000_000_000 + int.from_bytes(seed[16:20], "big"))
        gpu["pci_bus_id"] = f"00000000:{index * 0x10 + 1:02X}:00.0"
        gpu.update({key: wish[key] for key in ("memory_mib", "pci_bus_id", "uuid") if wish.get(key)})
        answer.append(gpu)
    return answer


def host_profile(profile: Mapping[str, Any], *, lab: str, host: str) -> dict[str, Any]:
    """What /etc/labgpu/profile.json holds for the host of this name in the profile."""
    for entry in profile.get("hosts", []):
        if entry["name"] == host:
            return {"lab": lab, "host": host, "gpus": host_gpus(entry.get("gpus") or [], lab=lab, host=host)}
    names = ", ".join(str(entry["name"]) for entry in profile.get("hosts", []))
    raise ProfileError(f"the profile has no host {host!r}; it has {names}")


def load(path: Path) -> dict[str, Any]:
    """Read a profile file."""
    loaded: dict[str, Any] = yaml.safe_load(path.read_text(encoding="utf-8"))
    return loaded
