"""The keys file, as it is followed while the proxy runs."""

from __future__ import annotations

from pathlib import Path

from drover_proxy.drivers.follow import Followed
from drover_proxy.guard.keys import KeyRing, keys_path, load_keys


class KeysFile(Followed[KeyRing]):
    """The file that a configuration names."""

    def __init__(self, name: str) -> None:
        super().__init__()
        self.name = name

    def paths(self) -> tuple[Path, ...]:
        """Say where it is: itself, or the service's credential."""
        return (keys_path(self.name),)

    def read(self) -> KeyRing:
        """Read it."""
        return load_keys(keys_path(self.name))
