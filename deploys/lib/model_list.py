"""The models of a host with everything filled in: where each is pulled from, and what is laid over it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any
from urllib.parse import urlsplit


def has_host(name: str) -> bool:
    """Say whether a model's name begins with a registry's host, as hf.co/org/repo does."""
    first, slash, _ = name.partition("/")
    return bool(slash) and ("." in first or ":" in first or first == "localhost")


def _registry(values: Mapping[str, Any]) -> tuple[str, bool]:
    """Return the registry for names without a host, and whether it speaks plain http."""
    if values["models_registry"]:
        return values["models_registry"], values["models_registry_insecure"]
    mirror = urlsplit(values["mirror_url"])
    return mirror.netloc, mirror.scheme == "http"


def filled(entry: Mapping[str, Any], values: Mapping[str, Any]) -> dict[str, Any]:
    """Return one entry of models_list with its source and every key."""
    origin = entry.get("from") or entry["name"]
    registry, plain = _registry(values)
    if entry.get("registry"):
        registry, plain = entry["registry"], values["models_registry_insecure"]
    if has_host(origin):
        source, plain = origin, False
    elif registry:
        source = f"{registry}/{origin}" if "/" in origin else f"{registry}/library/{origin}"
    else:
        source, plain = origin, False
    return {
        "name": entry["name"],
        "source": source,
        "insecure": bool(entry.get("insecure", plain)),
        "parameters": dict(entry.get("parameters") or {}),
        "system": entry.get("system") or "",
        "template": entry.get("template") or "",
        "warm": bool(entry.get("warm")),
    }


def all_filled(values: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Return every entry of models_list, filled in."""
    return [filled(entry, values) for entry in values["models_list"]]


def file_name(name: str) -> str:
    """Return the name of the Modelfile of a model: a name may hold slashes."""
    return f"{name.replace('/', '--')}.Modelfile"
