"""Variants: how /v1 gets a context that only the profile gives.

/v1 can't carry `num_ctx`: without it a request reloads the runner with the context that the model itself has.
So where the profile's context is another, /v1 requests are sent under the name of a variant: the same model
made with that `num_ctx`, by one call that copies nothing. It shares blob and runner with the model, no client
can ask for it, lists leave it out, and it goes when its model goes.
"""

from __future__ import annotations

import hashlib
import re
from typing import TYPE_CHECKING

from drover_proxy.drivers.ollama import OllamaClient, OllamaError

if TYPE_CHECKING:
    from drover_proxy.app.catalogue import Model

NAMESPACE = "drover-context/"
ODD = re.compile(r"[^a-z0-9_.-]")


def variant_name(model: str, context: int) -> str:
    """Return the name of a model's variant: readable, and of no other model."""
    mark = hashlib.sha256(model.encode()).hexdigest()[:8]
    return f"{NAMESPACE}{ODD.sub('-', model)[:60]}-{mark}:{context}"


def is_variant(name: str) -> bool:
    """Whether a canonical name is that of a variant."""
    return name.startswith(NAMESPACE)


def base_of(variant: str, models: dict[str, Model]) -> str | None:
    """Return the model that a variant is of; None where it isn't there any more."""
    name, _, context = variant.rpartition(":")
    for model in models:
        if context.isdigit() and variant_name(model, int(context)).rpartition(":")[0] == name:
            return model
    return None


class Variants:
    """Makes variants, each once for what its model is at the time."""

    def __init__(self) -> None:
        self._made: dict[str, str] = {}

    def ready(self, model: str, digest: str, context: int) -> str | None:
        """Return the variant's name, where it has been made already."""
        name = variant_name(model, context)
        return name if self._made.get(name) == digest else None

    async def make(self, client: OllamaClient, model: str, entry: Model, context: int) -> str:
        """Make the variant; OllamaError when that fails."""
        name = variant_name(model, context)
        await client.create({"model": name, "from": entry.name, "parameters": {"num_ctx": context}})
        self._made[name] = entry.digest
        return name

    async def remove_orphans(self, client: OllamaClient, listed: list[str], models: dict[str, Model]) -> None:
        """Delete the variants whose models are gone, so that no blob stays on the disk for them."""
        for name in listed:
            if base_of(name, models) is None:
                self._made.pop(name, None)
                try:
                    await client.delete(name)
                except OllamaError:
                    continue  # the next reading tries again
