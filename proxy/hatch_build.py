"""Build hook: the proxy's hot modules as machine code, when asked by DROVER_PROXY_COMPILE=1.

    DROVER_PROXY_COMPILE=1 pip wheel --no-deps proxy/

Without the variable nothing happens here, and the wheel is the pure one that fits every Python and machine.
With it, mypyc turns the modules named below into one shared library; the wheel then fits this Python, this
architecture, and a glibc that is no older than the one here. The .py files stay beside it, for tracebacks.
"""

from __future__ import annotations

import os
import subprocess
import sys
import sysconfig
import tempfile
from pathlib import Path
from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface

VARIABLE = "DROVER_PROXY_COMPILE"
NEEDED = ["mypy>=2.4.1", "setuptools>=65"]

MODULES = {
    "admin": ("metrics",),  # counted once a request
    "app": (  # every request passes through all of them
        "call", "catalogue", "gateway", "inference", "instance", "parts", "record", "runtime",
    ),
    "config": ("model",),  # looked at by all of those
    "core": (  # every event of a request; the classes of entities and ledger are what the others work on
        "beside", "commands", "config", "entities", "events", "eviction", "ledger", "loading", "managing",
        "observing", "placement", "queueing", "scheduler", "sharing", "sizing", "state", "story",
        "transitions",
    ),
    "dialect": (  # what is asked for; watches see every token
        "body", "errors", "form", "names", "routes", "watches",
    ),
    "drivers": ("log",),  # a line a request
    "guard": ("door", "keys"),  # asked for every request
    "vram": ("model",),  # what is known of every model
    "wire": (  # every byte of a head, every piece of an answer
        "answerhead", "answers", "body", "bodyreader", "chunks", "client", "contract", "exchange", "fields",
        "forwarding", "head", "headers", "known", "limits", "link", "pool", "relay", "server", "states",
        "upstream",
    ),
}  # fmt: skip
"""What is on the path of a request, and the classes of what is looked at there: to compiled code an attribute
of an interpreted class costs a look-up. The rest stays as it is: starting, what runs rarely."""

SCRIPT = """
import sys
from mypyc.build import mypycify
from setuptools import setup

made, *files = sys.argv[1:]
options = ["--ignore-missing-imports", "--config-file=", f"--cache-dir={made}/mypy"]
extensions = mypycify(
    options + files,
    opt_level="2",
    debug_level="0",
    group_name="drover_proxy",  # else a hash of the list
    target_dir=f"{made}/c",
)
for extension in extensions:
    # Nobody replaces a function of this library from outside: calls within it need no table to go through.
    extension.extra_compile_args.append("-fno-semantic-interposition")
    extension.extra_link_args = ["-s", "-Wl,-Bsymbolic"]
sys.argv[1:] = ["--quiet", "build_ext", f"--build-lib={made}/lib", f"--build-temp={made}/temp"]
setup(name="drover-proxy", ext_modules=extensions)
"""


def wanted() -> bool:
    """Whether machine code is asked for."""
    return os.environ.get(VARIABLE, "") not in {"", "0"}


def compile_modules(source: Path, made: Path) -> dict[str, Path]:
    """Compile; return what lies where in the wheel.

    Args:
        source: The folder of drover_proxy.
        made: An empty folder to work in.
    """
    files = [f"drover_proxy/{folder}/{name}.py" for folder, names in MODULES.items() for name in names]
    compiler = os.environ.get("CC") or sysconfig.get_config_var("CC") or "cc"
    # Relative names: they are what tracebacks say, and the same wherever it is built. The linker isn't told
    # what this Python was linked with: hosts shall look for no library in a folder of this machine.
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT, str(made), *files],
        cwd=source,
        env=os.environ | {"PYTHONDONTWRITEBYTECODE": "1", "LDSHARED": f"{compiler} -shared"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
    )
    if done.returncode:
        raise RuntimeError(f"mypyc couldn't compile the proxy:\n{done.stdout[-4000:]}")
    library = made / "lib"
    return {str(path.relative_to(library)): path for path in sorted(library.rglob("*.so"))}


class CustomBuildHook(BuildHookInterface[Any]):
    """Adds the compiled modules to a wheel."""

    def dependencies(self) -> list[str]:
        """Ask for the compiler where the build is isolated."""
        return NEEDED if wanted() and self.target_name == "wheel" else []

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        """Compile, unless it is an editable install: whoever edits wants what they wrote."""
        if not wanted() or self.target_name != "wheel" or version == "editable":
            return
        self._made = tempfile.TemporaryDirectory(prefix="drover-proxy-")
        found = compile_modules(Path(self.root) / "src", Path(self._made.name))
        build_data["pure_python"] = False
        build_data["infer_tag"] = True
        build_data["force_include"].update({str(path): name for name, path in found.items()})

    def finalize(self, version: str, build_data: dict[str, Any], artifact_path: str) -> None:  # noqa: ARG002
        """Remove what was made on the way."""
        if hasattr(self, "_made"):
            self._made.cleanup()
