"""Fixtures: the compiled proxy, built once for its sources and unpacked."""

from __future__ import annotations

import shutil
import zipfile
from pathlib import Path

import pytest

from deploys.lib import compiled

PROJECT = Path(__file__).resolve().parents[2]
BUILD = PROJECT / "build" / "compiled"


@pytest.fixture(scope="session")
def wheel() -> Path:
    """The compiled wheel; a minute of a core when the sources are new."""
    return compiled.wheel()


@pytest.fixture(scope="session")
def package(wheel: Path) -> Path:
    """The folder that holds the compiled drover_proxy, for PYTHONPATH."""
    folder = BUILD / wheel.parent.name
    if not folder.is_dir():
        shutil.rmtree(BUILD, ignore_errors=True)  # what was made of older sources
        new = folder.with_name("new")
        with zipfile.ZipFile(wheel) as archive:
            archive.extractall(new)
        new.rename(folder)
    return folder
