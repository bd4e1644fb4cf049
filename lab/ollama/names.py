"""Model names: `[host/][namespace/]model[:tag]`, with the defaults of Ollama's own registry."""

from __future__ import annotations

import re
from dataclasses import dataclass

DEFAULT_HOST = "registry.ollama.ai"
DEFAULT_NAMESPACE = "library"
DEFAULT_TAG = "latest"

_HOST = re.compile(r"^[A-Za-z0-9_][A-Za-z0-9_.:-]{0,349}$")
_NAMESPACE = re.compile(r"^[A-Za-z0-9_][A-Za-z0-9_-]{0,79}$")
_PART = re.compile(r"^[A-Za-z0-9_][A-Za-z0-9_.-]{0,79}$")


@dataclass(frozen=True)
class Name:
    """A model's full name."""

    host: str
    namespace: str
    model: str
    tag: str

    @property
    def shortest(self) -> str:
        """What lists show: defaults left out, but always with the tag."""
        text = f"{self.model}:{self.tag}"
        if self.host.lower() != DEFAULT_HOST:
            return f"{self.host}/{self.namespace}/{text}"
        return text if self.namespace.lower() == DEFAULT_NAMESPACE else f"{self.namespace}/{text}"

    @property
    def full(self) -> str:
        """Everything spelled out."""
        return f"{self.host}/{self.namespace}/{self.model}:{self.tag}"

    @property
    def parts(self) -> tuple[str, str, str, str]:
        """Folders and file of its manifest."""
        return self.host, self.namespace, self.model, self.tag

    def same(self, other: Name) -> bool:
        """Whether both mean the same model; case doesn't matter."""
        return tuple(map(str.lower, self.parts)) == tuple(map(str.lower, other.parts))

    @property
    def is_cloud(self) -> bool:
        """Whether it would be answered by the vendor's cloud, not here."""
        return self.tag.lower() == "cloud" or self.tag.lower().endswith("-cloud")


def parse(text: str) -> Name | None:
    """Read a name as a user writes it; None when it is none."""
    text = text.partition("://")[2] if "://" in text else text  # a scheme is accepted, and means nothing
    pieces = text.split("/")
    if len(pieces) > 3 or not text:
        return None
    model, mark, tag = pieces[-1].partition(":")
    host, namespace = DEFAULT_HOST, DEFAULT_NAMESPACE
    if len(pieces) == 3:
        host, namespace = pieces[0], pieces[1]
    elif len(pieces) == 2:
        namespace = pieces[0]
    name = Name(host, namespace, model, tag if mark else DEFAULT_TAG)
    valid = _HOST.match(host) and _NAMESPACE.match(namespace) and _PART.match(model) and _PART.match(name.tag)
    return name if valid else None
