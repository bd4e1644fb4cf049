"""What must hold for the repository as a whole."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

PROJECT = Path(__file__).resolve().parents[2]
TARGETS = [
    "demo",
    "test",
    "test-unit",
    "test-lab",
    "lint",
    "bench",
    "bench-wire",
    "docs",
    "lab-up",
    "lab-down",
    "clean",
    "venv",
]


def tracked(*patterns: str) -> list[Path]:
    """Return the files under version control that match."""
    listed = subprocess.run(
        ["git", "ls-files", *patterns], cwd=PROJECT, capture_output=True, text=True, check=True
    )
    return [PROJECT / name for name in listed.stdout.splitlines() if (PROJECT / name).is_file()]


@pytest.mark.parametrize("target", TARGETS)
def test_make_help_lists_every_target(target):
    """`make help` names each target that the project promises."""
    shown = subprocess.run(["make", "help"], cwd=PROJECT, capture_output=True, text=True, check=True).stdout

    assert re.search(rf"^\s+{target}\s+\S", shown, re.MULTILINE)


def test_the_reference_pages_are_current():
    """docs/reference says what the schemas and the programs say."""
    done = subprocess.run(
        [sys.executable, "scripts/docs.py", "--check"],
        cwd=PROJECT,
        capture_output=True,
        text=True,
        check=False,
    )

    assert done.returncode == 0, done.stderr


def test_links_between_pages_lead_somewhere():
    """Every relative link of the README and the docs names a file that exists."""
    broken = [
        f"{page.relative_to(PROJECT)}: {target}"
        for page in tracked("*.md")
        for target in re.findall(r"\]\(([^)#:]+)(?:#[^)]*)?\)", page.read_text())
        if not (page.parent / target).exists()
    ]

    assert broken == []


def test_metrics_that_pages_name_are_the_proxys():
    """An operator who is told to look at a metric finds it."""
    source = "".join(path.read_text() for path in tracked("proxy/src/drover_proxy/admin/*.py"))
    metrics = set(re.findall(r'"(drover_\w+)"', source))
    named = {
        name.removesuffix("_total")
        for page in tracked("*.md")
        for name in re.findall(r"`(drover_(?!proxy)\w+)", page.read_text())
    }

    assert named
    assert named <= metrics


@pytest.mark.parametrize("package", ["wire", "app"])
def test_each_file_is_in_the_list_of_its_package(package):
    """Who begins to read finds what every file is for."""
    folder = PROJECT / "proxy" / "src" / "drover_proxy" / package
    files = {path.name for path in folder.glob("*.py")} - {"__init__.py"}
    listed = re.findall(r"\b([a-z]+\.py)\b", (folder / "__init__.py").read_text())

    assert sorted(listed) == sorted(files)


def test_modules_stay_small():
    """No Python module outgrows a reader: 400 lines, tests included."""
    large = [
        f"{p.relative_to(PROJECT)} {n}" for p in tracked("*.py") if (n := p.read_text().count("\n")) > 400
    ]

    assert large == []


def test_nothing_speaks_of_the_machine_it_was_written_on():
    """No tracked text carries an absolute path of the checkout's parent folder."""
    here = str(PROJECT.parent) + "/"
    named = []
    for path in tracked():
        try:
            text = path.read_text()
        except UnicodeDecodeError:
            continue
        if re.search(r"(^|[\s\"'=(])" + re.escape(here), text):
            named.append(str(path.relative_to(PROJECT)))

    assert named == []
