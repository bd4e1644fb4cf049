"""Model names, as Ollama reads them: what is left out, what counts as the same, and what leaves the host.

The canonical form is what everything else in the proxy uses as a model's name: the shortest form with its
tag, in lower case (`llama3.2:3b`, `hf.co/user/repo:q4_k_m`). Ollama matches names without regard to case.
"""

from __future__ import annotations

import re
from typing import Final

HOST = re.compile(r"[A-Za-z0-9_.-]{1,350}(:\d{1,5})?")
NAMESPACE = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_-]{0,79}")
PART = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,79}")
LONGEST = 1024
"""More than the parts together may have."""
DEFAULT_HOST = "registry.ollama.ai"
DEFAULT_NAMESPACE = "library"
LOCAL = ":local"
LAST_OF_LOCAL: Final = ("l", "L")
"""What few names end with, so that the others needn't be folded."""


class NameProblem(ValueError):  # noqa: N818 - what is wrong with a name
    """The text is no model name, or a name that is not served."""


class CloudName(NameProblem):
    """The name makes Ollama send the prompt to ollama.com."""


KEPT_NAMES: Final = 4096
_known: Final[dict[str, str]] = {}


def canonical(name: str) -> str:
    """Return a name's canonical form; NameProblem for no name, CloudName for one that leaves the host."""
    known = _known.get(name)
    if known is None:
        known = _canonical(name)
        if len(_known) >= KEPT_NAMES:
            _known.clear()
        _known[name] = known
    return known


def _canonical(name: str) -> str:
    host, namespace, model, tag = _split(name)
    lowered = tag.casefold()
    if lowered == "cloud" or lowered.endswith("-cloud"):
        raise CloudName(f"{name!r} is a cloud model: its prompts would leave this host")
    path = [model]
    if host != DEFAULT_HOST:
        path = [host, namespace, model]
    elif namespace != DEFAULT_NAMESPACE:
        path = [namespace, model]
    return f"{'/'.join(path)}:{tag}".casefold()


def is_local(name: str) -> bool:
    """Whether a name ends with what only says "not the cloud"."""
    return name[-1:] in LAST_OF_LOCAL and name.casefold().endswith(LOCAL)


def _split(name: str) -> tuple[str, str, str, str]:
    if len(name) > LONGEST:
        raise NameProblem(f"{name[:80]!r}... is too long for a model name")
    # `:local` behind a name only says "not the cloud".
    text = name[: -len(LOCAL)] if is_local(name) else name
    head, _, last = text.rpartition("/")
    model, colon, tag = last.partition(":")
    parts = head.split("/") if "/" in text else []
    host = parts[0].casefold() if len(parts) == 2 else DEFAULT_HOST
    namespace = parts[-1] if parts else DEFAULT_NAMESPACE
    if namespace.casefold() == DEFAULT_NAMESPACE:
        namespace = DEFAULT_NAMESPACE
    good = (
        len(parts) <= 2
        and (not colon or tag)
        and HOST.fullmatch(host)
        and NAMESPACE.fullmatch(namespace)
        and PART.fullmatch(model)
        and (not tag or PART.fullmatch(tag))
    )
    if not good or not name.isascii():
        raise NameProblem(f"{name!r} is no model name; expected [host/][namespace/]model[:tag]")
    return host, namespace, model, tag or "latest"
