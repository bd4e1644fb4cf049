"""The wall: core and vram hold no I/O, no clock, no randomness, no logging, not even by a detour."""

from __future__ import annotations

import ast
import importlib.util
from pathlib import Path

import pytest

PACKAGE = Path(importlib.util.find_spec("drover_proxy").submodule_search_locations[0])
WALLED = ("core", "vram")
ALLOWED = {
    "__future__",
    "collections",
    "collections.abc",
    "dataclasses",
    "enum",
    "math",
    "types",
    "typing",
}
FORBIDDEN_CALLS = {"open", "print", "input", "exec", "eval", "__import__", "id", "hash"}


def imports(path: Path) -> set[str]:
    """Return the modules that a file imports, anywhere in it."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative imports hide where they lead"
            found.add(node.module or "")
            found |= {
                f"{node.module}.{alias.name}"
                for alias in node.names
                if source_of(f"{node.module}.{alias.name}") is not None
            }
    return found


def source_of(module: str) -> Path | None:
    """Return the file of one of our own modules."""
    parts = module.split(".")
    if parts[0] != "drover_proxy":
        return None
    base = PACKAGE.joinpath(*parts[1:])
    for candidate in (base.with_suffix(".py"), base / "__init__.py"):
        if candidate.is_file():
            return candidate
    return None


def reachable() -> dict[Path, set[str]]:
    """Return every file reachable by imports from the walled packages, and what each imports."""
    todo = [path for name in WALLED for path in (PACKAGE / name).rglob("*.py")]
    graph: dict[Path, set[str]] = {}
    while todo:
        path = todo.pop()
        if path not in graph:
            graph[path] = imports(path)
            todo += [source for module in graph[path] if (source := source_of(module)) is not None]
    return graph


def test_only_harmless_modules_are_imported():
    """From core and vram, through whatever of ours they import, only a short list of modules is reached."""
    graph = reachable()
    assert len(graph) > 15
    for path, modules in graph.items():
        foreign = {module for module in modules if source_of(module) is None and module not in ALLOWED}
        assert not foreign, f"{path.relative_to(PACKAGE)} imports {sorted(foreign)}"


def test_the_wall_leads_nowhere_else():
    """Nothing outside core and vram is reached: not the wire, not the drivers."""
    outside = [path for path in reachable() if path.relative_to(PACKAGE).parts[0] not in WALLED]
    assert outside == []


@pytest.mark.parametrize("name", WALLED)
def test_no_input_or_output_by_builtins(name):
    """No file is opened, nothing printed; nothing depends on addresses or on the seed of hash()."""
    for path in (PACKAGE / name).rglob("*.py"):
        if path.name == "diagram.py":
            continue  # it is the one that is run by hand, and prints the page's diagrams
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Name):
                assert node.func.id not in FORBIDDEN_CALLS, f"{path.name}:{node.lineno} {node.func.id}()"


@pytest.mark.parametrize("name", WALLED)
def test_no_coroutines(name):
    """The core doesn't wait: no async, no await."""
    waiting = (ast.AsyncFunctionDef, ast.Await, ast.AsyncFor, ast.AsyncWith)
    for path in (PACKAGE / name).rglob("*.py"):
        assert not [node for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, waiting)]
