"""The catalogue of versions: what is pinned, where it comes from, and its digest."""

from __future__ import annotations

import functools
from dataclasses import dataclass
from typing import Any

import yaml

from drover.errors import DroverError
from drover.schema import ROOT

PATH = ROOT / "versions.yml"


@dataclass(frozen=True, slots=True)
class Archive:
    """One file to fetch: its URL, and its SHA-256 when the catalogue knows it."""

    url: str
    sha256: str | None


@dataclass(frozen=True, slots=True)
class Repository:
    """An apt repository: its URL and the fingerprint of the key that signs it."""

    url: str
    fingerprint: str


@functools.cache
def load() -> dict[str, Any]:
    """Return the whole catalogue."""
    found: dict[str, Any] = yaml.safe_load(PATH.read_text(encoding="utf-8"))
    return found


def ollama_archive(version: str, architecture: str = "amd64", *, mirror: str = "") -> Archive:
    """Return Ollama's release archive for Debian's name of an architecture.

    A version that the catalogue doesn't hold has the URL of its release and no digest: the fleet names that
    in `ollama_archive_sha256`.
    """
    name = f"linux-{architecture}"
    entry = load()["ollama"].get(version, {}).get(name, {})
    file = f"ollama-{name}.tar.zst"
    url = entry.get("url") or f"https://github.com/ollama/ollama/releases/download/v{version}/{file}"
    if mirror:
        url = f"{mirror.rstrip('/')}/ollama/v{version}/{file}"
    return Archive(url, entry.get("sha256"))


# Debian's names of architectures in NVIDIA's two schemes of URLs.
NVIDIA_ARCHITECTURES = {
    "nvidia_driver": {"amd64": "x86_64", "arm64": "sbsa"},
    "container_toolkit": {"amd64": "amd64", "arm64": "arm64"},
}


def apt_repository(layer: str, distribution: str, architecture: str) -> Repository:
    """Return the vendor's own repository for a layer on this distribution, such as debian12."""
    known = load()[layer]["repositories"]
    entry = known.get(distribution) or known.get("any")
    name = NVIDIA_ARCHITECTURES[layer].get(architecture)
    if entry is None or name is None:
        raise DroverError(
            f"versions.yml knows no repository for {layer} on {distribution}/{architecture}; "
            f"it has {', '.join(known)}. Next: set {layer}_apt_url and {layer}_apt_key_fingerprint"
        )
    return Repository(entry["url"].format(architecture=name), entry["fingerprint"])
