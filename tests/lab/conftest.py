"""Labs for tests: one booted once a session for the deploys, and more of them for tests of the lab itself."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

HERE = Path(__file__).resolve().parent
PROJECT = HERE.parents[1]
BIN = PROJECT / ".venv" / "bin"
# Two checkouts can run their suites side by side under different names.
SUITE_LAB = os.environ.get("DROVER_SUITE_LAB", "suite")
# The first lab of all makes the base image and the mirror, and the first deploy compiles the proxy: minutes.
TIMEOUT_SECONDS = 600

# A shell that starts the tests in the background leaves SIGINT ignored, which their children would inherit.
signal.signal(signal.SIGINT, signal.default_int_handler)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark the tests of this folder, give them time to boot, and skip them where no lab can be."""
    reason = None
    if sys.platform != "linux":
        reason = f"a lab needs Linux, this is {sys.platform}"
    elif os.geteuid() != 0:
        reason = "a lab needs root: sudo make test-lab"
    for item in items:
        if HERE not in item.path.parents:
            continue
        item.add_marker(pytest.mark.lab)
        if item.get_closest_marker("timeout") is None:
            item.add_marker(pytest.mark.timeout(TIMEOUT_SECONDS))
        if reason:
            item.add_marker(pytest.mark.skip(reason=reason))


@dataclass(frozen=True)
class PyinfraRun:
    """What a run of pyinfra ended with and said."""

    rc: int
    stdout: str
    stderr: str

    @property
    def output(self) -> str:
        """All that it said."""
        return self.stdout + self.stderr


def copy_fleet(into: Path) -> Path:
    """Copy what the project ships of the lab's fleet; `lab up` writes the rest beside it."""
    written = ("hosts.yml", "lab.yml", "vault.yml", ".vault-password", "__pycache__")
    shutil.copytree(PROJECT / "inventories" / "lab", into, ignore=shutil.ignore_patterns(*written))
    return into


@pytest.fixture(scope="session")
def fleet_dir(tmp_path_factory) -> Path:
    """The fleet folder of the session's lab; `lab` fills it."""
    return copy_fleet(tmp_path_factory.mktemp("lab") / "fleet")


@pytest.fixture(scope="session")
def lab(fleet_dir) -> Iterator[object]:
    """A lab of three unequal hosts, booted once for the whole session."""
    from lab.hosts import Lab

    session = Lab(SUITE_LAB)
    session.down()  # what an earlier session left when it was killed
    with session.up(3, "profiles/mixed.yaml", fleet_dir):
        yield session


@pytest.fixture
def make_lab() -> Iterator[Callable[..., object]]:
    """Boot further labs for one test; each is taken down after it."""
    from lab.hosts import Lab

    made = []

    def boot(name: str, *, hosts: int = 1, profile: str = "profiles/mixed.yaml", **more) -> Lab:
        one = Lab(name)
        one.down()
        made.append(one)
        return one.up(hosts, profile, **{"mirror": False, **more})

    yield boot
    for one in made:
        one.down()


@pytest.fixture(scope="session")
def run_pyinfra(lab, fleet_dir) -> Callable[..., PyinfraRun]:
    """Run pyinfra on the session's lab as an operator does, from the project's folder."""

    def run(
        *arguments: str,
        deploy: str = "deploys/site.py",
        fleet: Path = fleet_dir,
        yes: bool = True,
        timeout: float = 900.0,
        env: dict[str, str] | None = None,
    ) -> PyinfraRun:
        command = [str(BIN / "pyinfra"), *(["--yes"] if yes else []), *arguments]
        done = subprocess.run(
            [*command, str(fleet / "inventory.py"), deploy],
            cwd=PROJECT,
            env={**os.environ, "PYINFRA_PROGRESS": "off", **(env or {})},
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=timeout,
            check=False,
        )
        return PyinfraRun(done.returncode, done.stdout, done.stderr)

    return run


@pytest.fixture(scope="session")
def site(lab, fleet_dir, run_pyinfra):
    """The provisioned lab; the plan on bare hosts and the first run are kept for tests that look at them."""
    plan = run_pyinfra("--dry", "--json", yes=False)
    began = time.monotonic()
    first = run_pyinfra("--json")
    return {"plan": plan, "first": first, "seconds": time.monotonic() - began}
