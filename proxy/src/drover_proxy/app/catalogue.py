"""The models on disk, as any instance lists them: they share one models directory."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from drover_proxy.app.variants import Variants, base_of, is_variant
from drover_proxy.config.model import ModelConfig
from drover_proxy.core.events import Event, ModelGone, ModelKnown
from drover_proxy.dialect.names import NameProblem, canonical
from drover_proxy.drivers.log import Log
from drover_proxy.drivers.ollama import OllamaClient, OllamaError
from drover_proxy.vram import ModelInfo, model_info_from_show

REFRESH_SECONDS = 30.0
MISS_SECONDS = 1.0
"""An unknown name makes the list be read anew, but not more often than this."""
SHOWS_AT_ONCE = 4


@dataclass(frozen=True, slots=True)
class Model:
    """One model by name."""

    name: str
    """As Ollama spells it."""
    digest: str
    info: ModelInfo


class Catalogue:
    """Knows every model by its canonical name, and tells the core what comes and goes."""

    def __init__(
        self, log: Log, post: Callable[[Event], None], client: Callable[[], OllamaClient | None]
    ) -> None:
        self.models: dict[str, Model] = {}
        self.read_at: float | None = None
        self._doubts = self._settled = 0
        self.variants = Variants()
        self.hidden: list[str] = []
        """Variants on disk, by canonical name."""
        self.remote: set[str] = set()
        """Names of models that run somewhere else: whoever asks for one is told so."""
        self._aliases: dict[str, str] = {}
        self._log = log
        self._post = post
        self._client = client
        self._refreshing: asyncio.Task[bool] | None = None

    def configure(self, models: Mapping[str, ModelConfig]) -> None:
        """Take over the aliases of the configuration."""
        self._aliases = {alias: model.name for model in models.values() for alias in model.aliases}

    def resolve(self, name: str) -> str | None:
        """Return the model that a canonical name stands for; None where there is none."""
        target = self._aliases.get(name, name)
        return target if target in self.models else None

    def target(self, name: str) -> str:
        """Return what a canonical name stands for, whether or not there is such a model."""
        return self._aliases.get(name, name)

    def blob(self, name: str) -> str:
        """Return what identifies the model's runner; the name itself where it isn't known."""
        model = self.models.get(self.shown(name))
        return model.info.blob if model else name

    def shown(self, name: str) -> str:
        """Return the name by which a runner is known: that of the model, where a variant loaded it."""
        return base_of(name, self.models) or name if is_variant(name) else name

    def tell_all(self) -> None:
        """Tell a core that has just begun every model."""
        for name, model in self.models.items():
            self._post(ModelKnown(name, model.info))

    def doubt(self) -> None:
        """Note that the models on disk have changed: whoever asks for one waits for the new list."""
        self._doubts += 1

    @property
    def dirty(self) -> bool:
        """Whether a management call has ended that no finished reading of the list began after."""
        return self._doubts != self._settled

    async def look_again(self) -> None:
        """Read the list anew after a miss, unless that was done a moment ago."""
        if self.dirty:
            # The first may be a reading that had begun before the change.
            if await self.refresh() and self.dirty:
                await self.refresh()
        elif self.read_at is None or time.monotonic() - self.read_at >= MISS_SECONDS:
            await self.refresh()

    async def refresh(self) -> bool:
        """Read the list; who asks while it is being read shares the reading. False when nobody answers."""
        if self._refreshing is None or self._refreshing.done():
            self._refreshing = asyncio.get_running_loop().create_task(self._refresh())
        return await asyncio.shield(self._refreshing)

    async def keep_fresh(self) -> None:
        """Read the list for ever, now and then."""
        while True:
            await asyncio.sleep(REFRESH_SECONDS)
            await self.refresh()

    async def _refresh(self) -> bool:
        client = self._client()
        if client is None:
            return False
        doubts = self._doubts
        try:
            listed = await client.tags()
        except OllamaError as error:
            self._log.warning("catalogue_unreadable", instance=client.name, error=error.message)
            return False
        found: dict[str, dict[str, Any]] = {}
        for entry in listed:
            if name := _canonical(str(entry.get("name", ""))):
                found[name] = entry
        self.remote = {name for name, entry in found.items() if entry.get("remote_host")}
        for name in self.remote:
            del found[name]
        self.hidden = [name for name in found if is_variant(name)]
        for name in self.hidden:
            del found[name]
        limit = asyncio.Semaphore(SHOWS_AT_ONCE)
        changed = [
            name
            for name, entry in found.items()
            if name not in self.models or self.models[name].digest != str(entry.get("digest", ""))
        ]
        await asyncio.gather(*(self._learn(client, limit, name, found[name]) for name in changed))
        for name in [name for name in self.models if name not in found]:
            del self.models[name]
            self._post(ModelGone(name))
        await self.variants.remove_orphans(client, self.hidden, self.models)
        self.read_at = time.monotonic()
        self._settled = doubts
        return True

    async def _learn(
        self, client: OllamaClient, limit: asyncio.Semaphore, name: str, entry: Mapping[str, Any]
    ) -> None:
        spelt, size_bytes = str(entry.get("name", "")), int(entry.get("size") or 0)
        async with limit:
            try:
                info = model_info_from_show(name, await client.show(spelt), size_bytes)
            except OllamaError as error:
                # Known by its name and size alone: it can still be asked for, and Ollama says what is wrong.
                self._log.warning("model_unreadable", model=name, error=error.message)
                info = ModelInfo(name=name, blob=f"name:{name}", size_bytes=size_bytes)
        self.models[name] = Model(spelt, str(entry.get("digest", "")), info)
        self._post(ModelKnown(name, info))


def _canonical(name: str) -> str:
    try:
        return canonical(name)
    except NameProblem:
        return ""  # a cloud model, or a name that nobody could ask for
