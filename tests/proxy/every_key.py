"""Every key of the configuration, with a value to change it to: a key that is added must be added here."""

from __future__ import annotations

import copy
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from drover_proxy.config.reader import Key
from drover_proxy.config.schema import ROOT

from tests.proxy.authority import Authority

MODEL = "llama3.2:3b"

OTHERS: dict[str, Any] = {
    "listen": ["127.0.0.1:1"],
    "admin_listen": ["127.0.0.1:2"],
    "tls.cert": "copy",
    "tls.key": "copy",
    "tls.client_ca": "copy",
    "auth.keys_file": "copy",
    "auth.signature_seconds": 7.5,
    "instances[].name": "other",
    "instances[].url": "http://127.0.0.1:3",
    "instances[].gpus": [],
    "instances[].slots": 7,
    "instances[].context": 8192,
    "instances[].kv_type": "q8_0",
    "instances[].flash_attention": False,
    "gpus[].uuid": "GPU-9",
    "gpus[].total_bytes": 9 << 30,
    "models.*.context": 3072,
    "models.*.slots": 3,
    "models.*.pin": True,
    "models.*.aliases": ["another"],
    "models.*.priority": 5,
    "queue.max_waiting": 11,
    "queue.max_wait_seconds": 12.5,
    "queue.no_instance_seconds": 13.5,
    "queue.starve_seconds": 14.5,
    "loads.reserve_bytes": 15 << 20,
    "loads.timeout_seconds": 16.5,
    "loads.memory_timeout_seconds": 17.5,
    "loads.unload_timeout_seconds": 18.5,
    "loads.cooldown_seconds": 19.5,
    "loads.retries": 2,
    "limits.header_bytes": 2100,
    "limits.header_count": 22,
    "limits.body_bytes": 2300,
    "limits.head_seconds": 24.5,
    "limits.body_seconds": 25.5,
    "limits.idle_seconds": 26.5,
    "limits.connect_seconds": 27.5,
    "limits.first_byte_seconds": 28.5,
    "limits.stall_seconds": 29.5,
    "limits.max_connections": 30,
    "limits.max_connections_per_client": 29,
    "forwarding.x_forwarded": "append",
    "forwarding.via": "here",
    "forwarding.trusted_proxies": ["10.0.0.0/8"],
    "log.level": "info",
    "log.access": False,
    "log.sample": 0.5,
    "drain_seconds": 35.5,
}
NOT_BUILT = {"prefetch": {"x": 1}, "idle": {"x": 1}, "peers": ["x"], "redis_url": "redis://127.0.0.1"}
"""Keys that take no value yet."""


def leaves(keys: Mapping[str, Key] = ROOT, prefix: str = "") -> Iterator[str]:
    """Yield every key that has a value of its own, written as the reference page does."""
    for name, key in keys.items():
        if key.section:
            between = "." if key.kind == "mapping" else ".*." if "by" in key.kind else "[]."
            yield from leaves(key.section, f"{prefix}{name}{between}")
        else:
            yield prefix + name


def base(folder: Path, keys_file: Path) -> dict[str, Any]:
    """Return a configuration in which each section stands, with the files that it names."""
    authority = Authority(folder / "authority")
    cert, key, _ = authority.issue("server")
    for file in (cert, key, authority.file, keys_file):
        shutil.copy(file, f"{file}.copy")
    return {
        "tls": {"cert": str(cert), "key": str(key), "client_ca": str(authority.file)},
        "auth": {"keys_file": str(keys_file)},
        "instances": [{"name": "gpu0", "url": "http://127.0.0.1:9", "gpus": ["GPU-0"]}],
        "gpus": [{"uuid": "GPU-0", "total_bytes": 10 << 30}],
        "models": {MODEL: {"context": 2048}},
        "log": {"level": "debug", "access": True},
    }


def with_other(config: dict[str, Any], leaf: str) -> tuple[dict[str, Any], str]:
    """Change one key; returns the configuration, and what messages call the key."""
    changed = copy.deepcopy(config)
    value = OTHERS[leaf]
    way, last = _way(leaf)
    at: Any = changed
    for step in way:
        at = at[step] if isinstance(step, int) else at.setdefault(step, {})
    at[last] = f"{at[last]}.copy" if value == "copy" else value
    if leaf == "gpus[].uuid":
        changed["instances"][0]["gpus"] = [value]
    said = "".join(f"[{step}]" if isinstance(step, int) else f".{step}" for step in [*way, last])
    return changed, said[1:]


def _way(leaf: str) -> tuple[list[str | int], str]:
    steps: list[str | int] = []
    for part in leaf.split("."):
        if part == "*":
            steps.append(MODEL)
        else:
            steps.append(part.removesuffix("[]"))
            if part.endswith("[]"):
                steps.append(0)
    return steps[:-1], str(steps[-1])
