"""The compiled proxy answers as the interpreted one does: the same tests, on machine code."""

from __future__ import annotations

import os
import subprocess
import sys
import sysconfig
import zipfile

import pytest

from tests.compiled.conftest import PROJECT

pytestmark = pytest.mark.timeout(1200)  # the first of them waits for the compiler
DOUBLES = ("test_record", "test_runtime")
"""Their stand-ins are no instances of the classes that compiled functions ask for."""
PYTEST = ("-m", "pytest", "-q", "-p", "no:cacheprovider", "-n", "2")
MODULES = """
import importlib.util, sys
import hatch_build
for folder, names in hatch_build.MODULES.items():
    for name in names:
        found = importlib.util.find_spec(f"drover_proxy.{folder}.{name}")
        assert found.origin.endswith(".so"), found.origin
"""


def run(*command: str, **environment: str) -> str:
    """Run a command to its good end, and return what it said."""
    done = subprocess.run(
        [sys.executable, *command],
        env=os.environ | environment,
        cwd=PROJECT,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout[-8000:]
    return done.stdout


def test_the_wheel_fits_this_python_and_machine_only(wheel):
    """Its name says so; it is small, and holds the sources too, which tracebacks show."""
    _, _, python, abi, system = wheel.stem.split("-")

    assert python == abi == f"cp{sys.version_info[0]}{sys.version_info[1]}"
    assert system.startswith("linux_")
    assert wheel.stat().st_size < 3_000_000
    with zipfile.ZipFile(wheel) as archive:
        names = archive.namelist()
        machine_code = b"".join(archive.read(name) for name in names if name.endswith(".so"))
    assert str(sysconfig.get_config_var("LIBDIR")).encode() not in machine_code, "a folder of this machine"
    assert str(PROJECT).encode() not in machine_code
    assert "drover_proxy/wire/client.py" in names
    assert sum(name.startswith("drover_proxy__mypyc.") for name in names) == 1


def test_without_the_variable_the_wheel_is_pure(tmp_path):
    """The default fits every Python and machine, and holds no machine code."""
    run(
        "-m", "pip", "wheel", "-q", "--no-build-isolation", "--no-deps", "-w", str(tmp_path),
        str(PROJECT / "proxy"), DROVER_PROXY_COMPILE="", PIP_DISABLE_PIP_VERSION_CHECK="1",
    )  # fmt: skip
    (pure,) = tmp_path.iterdir()

    assert pure.name.endswith("-py3-none-any.whl")
    with zipfile.ZipFile(pure) as archive:
        assert not [name for name in archive.namelist() if name.endswith(".so")]


def test_every_module_of_the_list_is_compiled(package):
    """None is left out in silence; and the command says which build it is."""
    run("-c", MODULES, PYTHONPATH=f"{package}:{PROJECT / 'proxy'}")

    assert run("-m", "drover_proxy", "--version", PYTHONPATH=str(package)).endswith("(compiled)\n")


def test_the_same_unit_tests_hold(package):
    """Those of wire, core and bodies, on compiled modules."""
    left_out = (f"--ignore=tests/unit/proxy/{name}.py" for name in DOUBLES)
    run(
        *PYTEST,
        "tests/unit/wire",
        "tests/unit/core",
        "tests/unit/proxy",
        *left_out,
        PYTHONPATH=f"{package}:{PROJECT}",
    )


def test_the_same_clients_are_served(package):
    """All that is tried with real clients at a proxy that runs, which is compiled here as on a host."""
    run(*PYTEST, "--dist", "worksteal", "tests/proxy", DROVER_PROXY_FROM=str(package))
