"""What Python allows and mypyc compiles wrongly has no place in the modules that are compiled."""

from __future__ import annotations

import ast
import runpy
from collections import defaultdict
from pathlib import Path

import pytest

PROXY = Path(__file__).parents[3] / "proxy"
MODULES = runpy.run_path(str(PROXY / "hatch_build.py"))["MODULES"]
PATHS = [
    PROXY / "src/drover_proxy" / package / f"{module}.py"
    for package, modules in MODULES.items()
    for module in modules
]


@pytest.mark.parametrize("path", PATHS, ids=lambda path: f"{path.parent.name}.{path.stem}")
def test_no_struct_is_made(path: Path):
    """Compiled, msgspec finds `type` in the place of each field's type, and refuses every value."""
    for made in ast.walk(ast.parse(path.read_text())):
        if isinstance(made, ast.ClassDef):
            assert not any("Struct" in ast.unparse(base) for base in made.bases), made.name


@pytest.mark.parametrize("path", PATHS, ids=lambda path: f"{path.parent.name}.{path.stem}")
def test_no_name_is_given_to_errors_of_two_types(path: Path):
    """Compiled, a variable has the type of its first error: any other raises TypeError where it is caught."""
    for function in ast.walk(ast.parse(path.read_text())):
        if not isinstance(function, ast.FunctionDef | ast.AsyncFunctionDef):
            continue
        caught = defaultdict(set)
        for handler in ast.walk(function):
            if isinstance(handler, ast.ExceptHandler) and handler.name and handler.type:
                caught[handler.name].add(ast.unparse(handler.type))
        for name, types in caught.items():
            assert len(types) == 1, f"{function.name}: {name} is {sorted(types)}"


def test_nothing_interpreted_inherits_from_what_is_compiled():
    """Python refuses it when the class is made, which may be with the first request of its kind."""
    compiled = {
        f"drover_proxy.{package}.{module}" for package, modules in MODULES.items() for module in modules
    }
    found = []
    for path in (PROXY / "src").rglob("*.py"):
        if path in PATHS:
            continue
        tree = ast.parse(path.read_text())
        taken = {
            alias.asname or alias.name
            for node in ast.walk(tree)
            if isinstance(node, ast.ImportFrom) and node.module in compiled
            for alias in node.names
        }
        found += [
            f"{path.name}: {made.name}({base.id})"
            for made in ast.walk(tree)
            if isinstance(made, ast.ClassDef)
            for base in made.bases
            if isinstance(base, ast.Name) and base.id in taken and not issubclass_of_error(base.id)
        ]
    assert found == []


def issubclass_of_error(name: str) -> bool:
    """Whether this is an exception: those may be inherited from."""
    return name.endswith(("Error", "Problem"))
