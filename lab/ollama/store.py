"""The models folder: blobs and manifests, laid out as Ollama's is."""

from __future__ import annotations

import hashlib
import json
import os
import re
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any

from lab.ollama import gguf
from lab.ollama.catalogue import (
    CONFIG_TYPE,
    LICENSE_LAYER,
    MANIFEST_TYPE,
    MODEL_LAYER,
    PARAMS_LAYER,
    TEMPLATE_LAYER,
)
from lab.ollama.names import Name

SYSTEM_LAYER = "application/vnd.ollama.image.system"
MESSAGES_LAYER = "application/vnd.ollama.image.messages"
ADAPTER_LAYER = "application/vnd.ollama.image.adapter"
PRUNE_AFTER_SECONDS = 3600.0

_DIGEST = re.compile(r"^sha256[:-][0-9a-fA-F]{64}$")


class MissingError(Exception):
    """There is no such model."""


@dataclass(frozen=True)
class Layer:
    """One entry of a manifest."""

    media_type: str
    digest: str
    size: int
    origin: str = ""

    def entry(self) -> dict[str, object]:
        """As it stands in the manifest."""
        found: dict[str, object] = {"mediaType": self.media_type, "digest": self.digest, "size": self.size}
        return found | ({"from": self.origin} if self.origin else {})


@dataclass(frozen=True)
class Stored:
    """A model in the store, everything read."""

    name: Name
    digest: str
    modified_at: float
    size: int
    config: dict[str, Any]
    layers: tuple[Layer, ...]
    header: gguf.Header
    blob: Path
    template: str
    system: str
    licences: tuple[str, ...]
    parameters: dict[str, Any]
    messages: tuple[dict[str, Any], ...] = field(default=())

    @property
    def key(self) -> str:
        """What the scheduler knows it by: the blob; names over one blob share a runner."""
        return str(self.blob)

    @property
    def capabilities(self) -> list[str]:
        """What requests it accepts."""
        architecture = self.header.architecture
        found = []
        if f"{architecture}.pooling_type" in self.header.keys:  # noqa: SIM118 - a field, not a mapping
            return ["embedding"]
        found.append("completion")
        if self.header.number("vision.block_count"):
            found.append("vision")
        template = self.template or str(self.header.keys.get("tokenizer.chat_template", ""))
        if ".Tools" in template or "tools" in template:
            found.append("tools")
        if ".Suffix" in template:
            found.append("insert")
        if ".Think" in template or "enable_thinking" in template:
            found.append("thinking")
        return found

    @property
    def parent(self) -> str:
        """The model that this one was made from, as lists show it."""
        return next((layer.origin for layer in self.layers if layer.media_type == MODEL_LAYER), "")

    def details(self) -> dict[str, Any]:
        """What `details` says in every answer."""
        return {
            "parent_model": self.parent,
            "format": self.config.get("model_format", ""),
            "family": self.config.get("model_family", ""),
            "families": self.config.get("model_families"),
            "parameter_size": self.config.get("model_type", ""),
            "quantization_level": self.config.get("file_type", ""),
        }


def digest_of(content: bytes) -> str:
    """A blob's digest."""
    return "sha256:" + hashlib.sha256(content).hexdigest()


def valid_digest(text: str) -> bool:
    """Whether it is written as a digest, with a colon or a dash."""
    return bool(_DIGEST.match(text))


@lru_cache(maxsize=256)
def _header(path: str, _modified: int, _size: int) -> gguf.Header:
    return gguf.read(Path(path))


class Store:
    """One models folder."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.blobs = root / "blobs"
        self.manifests = root / "manifests"

    def prepare(self) -> None:
        """Make the folders."""
        self.blobs.mkdir(parents=True, exist_ok=True)
        self.manifests.mkdir(parents=True, exist_ok=True)

    def blob_path(self, digest: str) -> Path:
        """Where a blob is, or would be."""
        return self.blobs / digest.replace(":", "-").lower()

    def put(self, media_type: str, content: bytes) -> tuple[Layer, bool]:
        """Store a small blob; says whether it is new."""
        digest = digest_of(content)
        path = self.blob_path(digest)
        new = not path.exists()
        if new:
            self.blobs.mkdir(parents=True, exist_ok=True)
            part = path.with_name(f"{path.name}.{os.getpid()}.new")
            part.write_bytes(content)
            part.replace(path)
        return Layer(media_type, digest, len(content)), new

    def manifest_path(self, name: Name) -> Path | None:
        """The manifest of a model, whatever the case of its name; None when there is none."""
        exact = self.manifests.joinpath(*name.parts)
        if exact.is_file():
            return exact
        return next((path for other, path in self._entries() if other.same(name)), None)

    def _entries(self) -> Iterator[tuple[Name, Path]]:
        for path in self.manifests.glob("*/*/*/*"):
            if path.is_file() and not path.name.startswith("."):
                yield Name(*path.relative_to(self.manifests).parts), path

    def write_manifest(self, name: Name, content: bytes) -> None:
        """Put a manifest in place, at once or not at all."""
        path = self.manifest_path(name) or self.manifests.joinpath(*name.parts)
        path.parent.mkdir(parents=True, exist_ok=True)
        part = path.with_name(f".{path.name}.{os.getpid()}.new")
        part.write_bytes(content)
        part.replace(path)

    def names(self) -> list[Name]:
        """All models."""
        return [name for name, _ in self._entries()]

    def load(self, name: Name) -> Stored:
        """Read a model; MissingError when there is none."""
        path = self.manifest_path(name)
        if path is None:
            raise MissingError(name.shortest)
        stored_name = Name(*path.relative_to(self.manifests).parts)
        content = path.read_bytes()
        manifest = json.loads(content)
        layers = tuple(
            Layer(item["mediaType"], item["digest"], item["size"], item.get("from", ""))
            for item in manifest["layers"]
        )
        config_entry = manifest.get("config") or {}
        config = self._json(config_entry.get("digest", ""), {})
        model = next((layer for layer in layers if layer.media_type == MODEL_LAYER), None)
        blob = self.blob_path(model.digest) if model else self.blobs / "none"
        header = gguf.Header({}, ())
        if blob.exists():
            status = blob.stat()
            try:
                header = _header(str(blob), status.st_mtime_ns, status.st_size)
            except gguf.NotGgufError:
                header = gguf.Header({}, ())
        return Stored(
            name=stored_name,
            digest=hashlib.sha256(content).hexdigest(),
            modified_at=path.stat().st_mtime,
            size=sum(layer.size for layer in layers) + int(config_entry.get("size", 0)),
            config=config,
            layers=layers,
            header=header,
            blob=blob,
            template=self._text(layers, TEMPLATE_LAYER),
            system=self._text(layers, SYSTEM_LAYER),
            licences=tuple(self._texts(layers, LICENSE_LAYER)),
            parameters=self._merged(layers),
            messages=tuple(self._messages(layers)),
        )

    def _json(self, digest: str, default: Any) -> Any:
        try:
            return json.loads(self.blob_path(digest).read_bytes())
        except (OSError, ValueError):
            return default

    def _texts(self, layers: tuple[Layer, ...], kind: str) -> Iterator[str]:
        for layer in layers:
            path = self.blob_path(layer.digest)
            if layer.media_type == kind and path.exists():
                yield path.read_text(encoding="utf-8", errors="replace")

    def _text(self, layers: tuple[Layer, ...], kind: str) -> str:
        return next(self._texts(layers, kind), "")

    def _merged(self, layers: tuple[Layer, ...]) -> dict[str, Any]:
        found: dict[str, Any] = {}
        for layer in layers:
            if layer.media_type == PARAMS_LAYER:
                found |= self._json(layer.digest, {})
        return found

    def _messages(self, layers: tuple[Layer, ...]) -> Iterator[dict[str, Any]]:
        for layer in layers:
            if layer.media_type == MESSAGES_LAYER:
                yield from self._json(layer.digest, [])

    def assemble(self, name: Name, layers: list[Layer], config: dict[str, Any]) -> None:
        """Write configuration and manifest of a model made from layers."""
        config = {**config, "architecture": "amd64", "os": "linux"}
        config_layer, _ = self.put(CONFIG_TYPE, json.dumps(config, separators=(",", ":")).encode() + b"\n")
        manifest = {
            "schemaVersion": 2,
            "mediaType": MANIFEST_TYPE,
            "config": config_layer.entry(),
            "layers": [layer.entry() for layer in layers],
        }
        self.write_manifest(name, json.dumps(manifest, separators=(",", ":")).encode() + b"\n")

    def delete(self, name: Name) -> None:
        """Remove a model and the blobs that nothing else uses."""
        path = self.manifest_path(name)
        if path is None:
            raise MissingError(name.shortest)
        digests = self.digests_of(path)
        path.unlink()
        for folder in list(path.parents)[:3]:
            if folder != self.manifests and not any(folder.iterdir()):
                folder.rmdir()
        for digest in digests - self.used_digests():
            self.blob_path(digest).unlink(missing_ok=True)

    @staticmethod
    def digests_of(path: Path) -> set[str]:
        """The blobs that a manifest names."""
        try:
            manifest = json.loads(path.read_bytes())
        except ValueError:
            return set()
        entries = [*manifest.get("layers", []), manifest.get("config") or {}]
        return {entry["digest"] for entry in entries if entry.get("digest")}

    def used_digests(self) -> set[str]:
        """Every blob that some model needs."""
        found: set[str] = set()
        for _, path in self._entries():
            found |= self.digests_of(path)
        return found

    def prune(self) -> int:
        """Remove blobs that nothing uses and parts of downloads, when older than an hour."""
        used = {self.blob_path(digest).name for digest in self.used_digests()}
        removed, limit = 0, time.time() - PRUNE_AFTER_SECONDS
        for path in self.blobs.iterdir():
            if path.name not in used and path.stat().st_mtime < limit:
                path.unlink()
                removed += 1
        return removed
