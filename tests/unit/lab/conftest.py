"""Simulated GPUs for tests, over a library that is compiled once."""

from __future__ import annotations

import pytest

from tests.unit.lab.gpu_support import build_library, make_box


@pytest.fixture(scope="session")
def nvml_library(tmp_path_factory):
    """The folder with the compiled libnvidia-ml.so.1."""
    return build_library(tmp_path_factory)


@pytest.fixture
def box(nvml_library, tmp_path):
    """A machine with two L4."""
    return make_box(nvml_library, tmp_path, "L4", "L4")
