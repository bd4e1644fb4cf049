"""What changes while the proxy runs: its configuration at SIGHUP, its keys and certificates with their files.

Each is taken whole or not at all. What can't be used leaves what is in force as it was, and is said so.
"""

from __future__ import annotations

import time
from collections.abc import Coroutine
from pathlib import Path
from typing import Any, NamedTuple

from drover_proxy.app import wireconfig
from drover_proxy.app.coreconfig import core_config
from drover_proxy.app.parts import Parts
from drover_proxy.config import ConfigError, ProxyConfig, load
from drover_proxy.config.changes import changes
from drover_proxy.drivers.follow import follow
from drover_proxy.drivers.tls import Tls, TlsFiles
from drover_proxy.guard.keys import KeyRing
from drover_proxy.guard.watch import KeysFile
from drover_proxy.wire import Server


class Reloaded(NamedTuple):
    """What a reload came to."""

    changed: list[str]
    """Keys that are in force since."""
    needs_restart: list[str]
    """Keys that differ in the file, and change at a restart only."""
    problems: list[str]
    """Why nothing was changed, each with its file."""


class Reloader:
    """Puts changes in force."""

    def __init__(self, path: Path, parts: Parts, public: Server, keys: KeysFile | None) -> None:
        self._path = path
        self._parts = parts
        self._log = parts.log
        self._public = public
        self._keys = keys
        self._tls = TlsFiles(parts.config.tls) if parts.config.tls else None
        self._tls_in_force: Tls | None = None

    def begin(self) -> None:
        """Read the certificates for the first time; ConfigError when they can't be used."""
        if self._tls is not None:
            self._take_tls(self._tls.load())

    def following(self) -> tuple[Coroutine[Any, Any, None], ...]:
        """Return what follows the files, to be run for ever."""
        return (
            follow(lambda: self._keys, self._new_keys, self._bad_keys),
            follow(lambda: self._tls, self._new_tls, self._bad_tls),
        )

    def reload(self) -> Reloaded:
        """Read the configuration and all files that it names; with a mistake in any, keep all as it is."""
        parts = self._parts
        try:
            config, applied, waiting = changes(parts.config, load(self._path))
            name = config.auth.keys_file
            keys = self._keys if name == parts.config.auth.keys_file else KeysFile(name) if name else None
            ring = keys.load() if keys else None
            files = self._tls
            if config.tls != parts.config.tls and config.tls is not None:
                files = TlsFiles(config.tls)
            ends = "tls" in waiting  # its files may have gone already
            tls = files.load() if files and not ends else None
        except ConfigError as error:
            parts.metrics.reload_ok = False
            self._complain("reload_failed", "the last good configuration stays", error)
            for followed in (self._keys, self._tls):
                if followed is not None:
                    followed.look_again()  # they are followed whatever the configuration is like
            return Reloaded([], [], str(error).splitlines())
        for key in waiting:
            self._log.warning("reload_needs_restart", key=key, message=f"{key} changes at a restart only")
        self._keys, self._tls = keys, files
        if tls is not None:
            self._take_tls(tls)
        parts.metrics.tls_ok = True
        self._apply(config, ring)
        self._log.info(
            "reloaded",
            changed=applied,
            models=len(config.models),
            keys=len(ring.callers) if ring else None,
        )
        return Reloaded(applied, waiting, [])

    def _apply(self, config: ProxyConfig, ring: KeyRing | None) -> None:
        parts, before = self._parts, self._parts.config
        parts.config = config
        if ring is None and parts.door.ring is not None:
            self.say_open()
        parts.door.change(ring)
        parts.door.signatures.window_seconds = config.auth.signature_seconds
        parts.catalogue.configure(config.models)
        self._log.level = config.log.level
        self._public.change(wireconfig.limits(config.limits), wireconfig.forwarding(config.forwarding))
        if config.limits.max_connections > before.limits.max_connections:
            wireconfig.raise_file_limit(config.limits.max_connections, self._log)
        if parts.runtime.core is not None:
            uuids = {name: instance.gpu_uuids for name, instance in parts.instances.items()}
            parts.runtime.reconfigure(core_config(config, parts.memory.gpus, uuids))
        parts.metrics.reload_ok = parts.metrics.keys_ok = True
        parts.metrics.reloaded_at = time.time()

    def say_open(self) -> None:
        """Say loudly that nobody is asked for a key."""
        self._log.warning(
            "open_door",
            message="NO KEYS ARE CONFIGURED: everybody who reaches this address may use and manage all "
            "models; set auth.keys_file",
            listen=[str(address) for address in self._parts.config.listen],
        )

    def _new_keys(self, ring: KeyRing) -> None:
        self._parts.door.change(ring)
        self._parts.metrics.keys_ok = True
        self._log.info("keys_reloaded", keys=len(ring.callers))

    def _bad_keys(self, error: ConfigError) -> None:
        self._parts.metrics.keys_ok = False
        self._complain("keys_reload_failed", "the last good keys stay in force", error)

    def _new_tls(self, tls: Tls) -> None:
        self._parts.metrics.tls_ok = True
        self._log.info("tls_reloaded", authorities=tls.context.cert_store_stats()["x509"])
        self._take_tls(tls)

    def _take_tls(self, tls: Tls) -> None:
        """Put certificates in force; who was let in by an authority that counts no more is let go."""
        before, self._tls_in_force = self._tls_in_force, tls
        stricter = before is not None and tls.stricter_than(before)
        closed = self._public.change_tls(tls.context, stricter=stricter)
        if stricter:
            message = "who was let in before has to come again"
            self._log.info("tls_stricter", connections=closed, message=message)

    def _bad_tls(self, error: ConfigError) -> None:
        self._parts.metrics.tls_ok = False
        self._complain("tls_reload_failed", "the last good certificates stay in force", error)

    def _complain(self, event: str, message: str, error: ConfigError) -> None:
        problems = [str(problem) for problem in error.problems]
        self._log.error(event, message=message, file=error.file, problems=problems)
