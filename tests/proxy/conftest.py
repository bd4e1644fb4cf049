"""Fixtures: the NVML library once, and a rig a test."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from lab.gpu.build import build
from tests.proxy.rig import Rig


@pytest.fixture(scope="session")
def nvml(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of the simulated NVML library."""
    folder = tmp_path_factory.mktemp("nvml")
    build(folder)
    return folder


@pytest.fixture
def make_rig(tmp_path: Path, nvml: Path) -> Iterator[Callable[..., Rig]]:
    """Make rigs that are stopped at the end."""
    rigs: list[Rig] = []

    def make(**options: Any) -> Rig:
        folder = tmp_path / str(len(rigs))
        folder.mkdir()
        rigs.append(Rig(folder, nvml, **options))
        return rigs[-1]

    yield make
    for rig in rigs:
        rig.stop()


@pytest.fixture
def rig(make_rig: Callable[..., Rig]) -> Rig:
    """One GPU of 10 GB, four models, all of it running."""
    return make_rig().start()


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory, nvml: Path) -> Iterator[Rig]:
    """One running rig for the tests of a module that leave it as it was."""
    rig = Rig(tmp_path_factory.mktemp("rig"), nvml, slots=2)
    try:
        yield rig.start()
    finally:
        rig.stop()
