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
