"""A fleet folder to write into."""

from __future__ import annotations

import textwrap
from pathlib import Path

import pytest


class FleetFolder:
    """Writes the files of a fleet; texts may be indented as the test is."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def write(self, name: str, text: str) -> Path:
        """Write one file of the fleet."""
        path = self.path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(textwrap.dedent(text), encoding="utf-8")
        return path


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """Return an empty fleet folder with one host `a`."""
    monkeypatch.delenv("ANSIBLE_VAULT_PASSWORD_FILE", raising=False)
    made = FleetFolder(tmp_path / "fleet")
    made.write("hosts.yml", "all: {hosts: {a: {}}}\n")
    return made
