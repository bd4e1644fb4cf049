"""Rules between the variables of Ollama, the models, the proxy and the monitoring that no schema can say."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any

from drover.checks import Finding

DURATION = re.compile(r"-?\d+|(\d+(\.\d+)?(ms|s|m|h))+")
VERSION = re.compile(r"\d+\.\d+\.\d+([-+.][0-9A-Za-z.-]+)?")
NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,63}")
MODEL = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.:/-]{0,250}")

LEAST = {
    "ollama_num_parallel": 1,
    "ollama_context_length": 0,
    "ollama_max_queue": 1,
    "ollama_max_loaded_models": 1,
    "ollama_fit_target_mib": 0,
    "ollama_cache_ram_mib": 0,
    "ollama_keep_releases": 1,
    "ollama_gate_timeout_seconds": 1,
    "ollama_start_timeout_seconds": 1,
    "models_pull_timeout_seconds": 1,
    "proxy_queue_max_waiting": 0,
    "proxy_queue_max_wait_seconds": 1,
    "proxy_queue_starve_seconds": 1,
    "proxy_load_timeout_seconds": 1,
    "proxy_drain_seconds": 0,
    "proxy_max_connections": 1,
    "proxy_max_body_mib": 1,
    "proxy_watchdog_seconds": 0,
    "proxy_warm_timeout_seconds": 1,
}


def serving_checks(merged: Mapping[str, Any]) -> Iterator[Finding]:
    """Yield what is wrong between the variables of the serving layers."""
    for name, least in LEAST.items():
        if merged[name] < least:
            yield Finding(name, f"{least} or more", str(merged[name]))
    yield from _ollama(merged)
    yield from _instances(merged)
    yield from _models(merged)
    yield from _proxy(merged)


def _ollama(merged: Mapping[str, Any]) -> Iterator[Finding]:
    if not VERSION.fullmatch(merged["ollama_version"]):
        yield Finding(
            "ollama_version", "a version such as 0.33.0, without a v", repr(merged["ollama_version"])
        )
    for name in ("ollama_keep_alive", "ollama_load_timeout"):
        if not DURATION.fullmatch(merged[name]):
            # Ollama would take its own default without a word.
            yield Finding(name, "a time such as 5m, 1h30m, or -1 for ever", repr(merged[name]))
    for key in merged["ollama_env"]:
        if not re.fullmatch(r"[A-Za-z_][A-Za-z0-9_]*", str(key)):
            yield Finding(f"ollama_env.{key}", "the name of an environment variable", repr(key))
    for key, value in merged["ollama_env"].items():
        if "\n" in str(value):
            yield Finding(f"ollama_env.{key}", "one line", "several lines")


def _instances(merged: Mapping[str, Any]) -> Iterator[Finding]:
    if not 1024 <= merged["ollama_port"] <= 65000:
        yield Finding("ollama_port", "a port from 1024 to 65000", str(merged["ollama_port"]))
    entries = merged["ollama_instances"]
    for entry in entries:
        path = f"ollama_instances[{entry['name']}]"
        if not NAME.fullmatch(entry["name"]):
            yield Finding(f"{path}.name", "letters, digits, - _ .", repr(entry["name"]))
        if not 1024 <= entry["port"] <= 65535:
            yield Finding(f"{path}.port", "a port from 1024 to 65535", str(entry["port"]))
        if not entry["gpus"]:
            yield Finding(f"{path}.gpus", "at least one GPU", "none")
        for gpu in entry["gpus"]:
            if not gpu.isdigit() and not gpu.startswith("GPU-"):
                yield Finding(f"{path}.gpus", "UUIDs (GPU-...) or indexes from nvidia-smi -L", repr(gpu))


def _models(merged: Mapping[str, Any]) -> Iterator[Finding]:
    entries = merged["models_list"]
    for entry in entries:
        path = f"models_list[{entry['name']}]"
        names = (
            [("name", entry["name"]), ("from", entry["from"])]
            if entry.get("from")
            else [("name", entry["name"])]
        )
        names += [("aliases", alias) for alias in entry.get("aliases") or []]
        for key, value in names:
            if not MODEL.fullmatch(value):
                yield Finding(f"{path}.{key}", "a model's name such as llama3.2:3b", repr(value))
        for key in ("system", "template"):
            if '"""' in (entry.get(key) or ""):
                yield Finding(
                    f"{path}.{key}", 'a text without """, which a Modelfile cannot hold', 'one with """'
                )
        parameters = entry.get("parameters") or {}
        for key in ("num_ctx", "num_batch"):
            if key in parameters and parameters[key] < 4:
                yield Finding(f"{path}.parameters.{key}", "4 or more", str(parameters[key]))


def _proxy(merged: Mapping[str, Any]) -> Iterator[Finding]:
    if not merged["proxy_listen"]:
        yield Finding("proxy_listen", "at least one address", "none")
    addresses = [
        ("proxy_listen", value) for value in merged["proxy_listen"] if not value.startswith("unix:/")
    ]
    for name, value in [*addresses, ("monitoring_listen", merged["monitoring_listen"])]:
        where, _, port = value.rpartition(":")
        if not where or not port.isdigit() or not 0 < int(port) < 65536:
            yield Finding(name, "an address such as 0.0.0.0:8080", repr(value))
