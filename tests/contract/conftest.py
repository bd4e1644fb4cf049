"""Fixtures of the contract tests: which Ollama is tested, and what it can't show."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.contract.harness import EMBEDDER, LARGE, SMALL, Ollama, attach, kind_of_environment

KIND = kind_of_environment()
REASONS = {
    "start": "needs a server that the tests start themselves",
    "gpus": "needs simulated GPUs, which this server's own engine doesn't see",
    "markers": "needs a runner that obeys markers in the prompt",
    "embedder": "needs a model for embeddings, which there is none of for this server",
    "catalogue": "needs the catalogue's models, whose weights are zeros",
    "cli": "needs the server's own command line",
    "pull": "needs a server that may reach a registry on loopback",
    "upload": "needs a server on which models may be made and removed",
    "modern": "tells of 0.30 and later",
    "simulated": "tells of the simulation's own knobs",
    "real": "tells of a real Ollama",
}


def pytest_configure(config: pytest.Config) -> None:
    """Make the marker `needs` known."""
    config.addinivalue_line("markers", "needs(*capabilities): what the server must be able to do")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Leave out what this server can't show."""
    here = Path(__file__).parent
    kept, dropped = [], []
    for item in items:
        needed = {name for mark in item.iter_markers("needs") for name in mark.args}
        if unknown := needed - set(REASONS):
            raise pytest.UsageError(f"{item.nodeid}: unknown need {unknown}")
        fits = here not in item.path.parents or needed <= KIND.capabilities
        (kept if fits else dropped).append(item)
    if dropped:
        lacking = {n for i in dropped for m in i.iter_markers("needs") for n in m.args} - KIND.capabilities
        config.stash[_DROPPED] = [f"{name}: {REASONS[name]}" for name in sorted(lacking)]
        config.hook.pytest_deselected(items=dropped)
        items[:] = kept


_DROPPED = pytest.StashKey[list[str]]()


def pytest_sessionfinish(session: pytest.Session) -> None:
    """Where tests run on several cores: let the process that reports know what was left out."""
    if output := getattr(session.config, "workeroutput", None):
        output["dropped"] = session.config.stash.get(_DROPPED, [])


@pytest.hookimpl(optionalhook=True)
def pytest_testnodedown(node: Any) -> None:
    """Hear it; each has collected the same."""
    node.config.stash[_DROPPED] = getattr(node, "workeroutput", {}).get("dropped", [])


def pytest_report_header(config: pytest.Config) -> str:
    """Say which server is tested."""
    return f"contract: tested against {KIND.name} {KIND.binary or KIND.url}"


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    """Say why tests were left out."""
    for line in config.stash.get(_DROPPED, []):
        terminalreporter.write_line(f"not for this server ({KIND.name}): {line}")


@pytest.fixture(scope="session")
def shared_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Ollama]:
    """One server for all tests that don't need one of their own."""
    folder = tmp_path_factory.mktemp("ollama")
    if KIND.url:
        yield attach(KIND.url, folder, KIND)
        return
    server = Ollama(KIND, folder / "server").prepare().start()
    if "catalogue" not in KIND.capabilities:
        server.make_tiny()
        server.make_tiny("tiny2", 8)
    yield server
    server.stop()


@pytest.fixture
def server(shared_server: Ollama) -> Iterator[Ollama]:
    """The shared server with nothing loaded and its first models only."""
    shared_server.unload_all()
    before = set(shared_server.names())
    yield shared_server
    for name in set(shared_server.names()) - before:
        shared_server.unload(name)
        shared_server.request("DELETE", "/api/delete", {"model": name})


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Callable[..., Ollama]]:
    """Starts servers with settings of their own; `start(env={...}, knobs={...}, gpu_count=1)`."""
    servers: list[Ollama] = []
    numbers = itertools.count()

    def run(*, wait: bool = True, **settings: object) -> Ollama:
        server = Ollama(KIND, tmp_path / f"server{next(numbers)}", **settings).prepare()  # type: ignore[arg-type]
        servers.append(server)
        server.start(wait=wait)
        if wait and "catalogue" not in KIND.capabilities:
            server.make_tiny()
        return server

    yield run
    for server in servers:
        server.stop()


@pytest.fixture(scope="session")
def model(shared_server: Ollama) -> str:
    """A model that generates text."""
    if "catalogue" in KIND.capabilities:
        return SMALL
    return "tiny" if not KIND.url else next(iter(shared_server.names()))


@pytest.fixture(scope="session")
def other(shared_server: Ollama) -> str:
    """Another model that generates text."""
    return LARGE if "catalogue" in KIND.capabilities else "tiny2"


@pytest.fixture(scope="session")
def embedder() -> str:
    """A model for embeddings."""
    return EMBEDDER
