"""The state of a host's simulated GPUs: one text file that every part of the simulation shares.

The NVML library (C) reads it on every call, the simulated Ollama takes and returns memory in it, and faults
are set in it. Writers take a lock beside the file and replace it whole, so a reader never sees half a state.
Standard library only: this file is also copied onto lab hosts, as /usr/lib/labgpu/state.py.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import re
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Union

DEFAULT_PATH = "/run/labgpu/state"
FORMAT = 1

StatePath = Union[str, "os.PathLike[str]"]

_KEY = re.compile(r"gpu\.(\d+)\.([a-z_]+)(?:\.(.+))?")


class StateError(Exception):
    """The state file is missing or says something that can't be understood."""


class GpuMemoryError(Exception):
    """A claim asks for more than the GPU has free, as cudaErrorMemoryAllocation would say."""


def state_path() -> Path:
    """Where this process finds the state: LABGPU_STATE, or the place it has on a lab host."""
    return Path(os.environ.get("LABGPU_STATE") or DEFAULT_PATH)


def is_alive(pid: int) -> bool:
    """Whether a process still holds its memory: a zombie has given it back already."""
    if pid <= 0:
        return False
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        pass  # another user's process: there, but not ours to signal
    try:
        stat = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return True  # ProtectProc= hides others' folders, kill() has just found it alive
    return stat.rpartition(")")[2].strip()[:1] not in {"Z", "X"}


@dataclass
class Held:
    """Memory that stays taken for a while after its owner gave it up."""

    size_bytes: int
    until: float | None = None
    pid: int | None = None

    def is_over(self, now: float) -> bool:
        """Whether the memory is back by now."""
        if self.pid is not None:
            return not is_alive(self.pid)
        return self.until is None or now >= self.until

    def text(self) -> str:
        """The value as the file has it."""
        return (
            f"{self.size_bytes}@pid:{self.pid}"
            if self.pid is not None
            else f"{self.size_bytes}@{self.until:.3f}"
        )

    @classmethod
    def parse(cls, text: str) -> Held:
        """Read `<bytes>@<unix time>` or `<bytes>@pid:<pid>`."""
        size, _, rest = text.partition("@")
        if rest.startswith("pid:"):
            return cls(int(size), pid=int(rest[4:]))
        return cls(int(size), until=float(rest or 0))


@dataclass
class Gpu:
    """One simulated GPU; the field names are the file's keys."""

    index: int
    uuid: str = ""
    name: str = ""
    arch: str = ""
    compute_capability: str = ""
    memory_total_bytes: int = 0
    memory_reserved_bytes: int = 0
    pci_bus_id: str = ""
    pci_device_id: str = ""
    temperature_c: int = 40
    power_mw: int = 20_000
    power_limit_mw: int = 72_000
    utilization_percent: int = 0
    persistence: int = 0
    recovery_action: int = 0
    fault: str = ""
    xid: int = 0
    xid_count: int = 0
    procs: dict[int, int] = field(default_factory=dict)
    held: dict[str, Held] = field(default_factory=dict)
    extra: dict[str, str] = field(default_factory=dict)

    def used_bytes(self, now: float | None = None) -> int:
        """What living processes and memory not yet given back take."""
        at = time.time() if now is None else now
        procs = sum(size for pid, size in self.procs.items() if is_alive(pid))
        return procs + sum(held.size_bytes for held in self.held.values() if not held.is_over(at))

    def free_bytes(self, now: float | None = None) -> int:
        """What a new allocation can have."""
        return max(0, self.memory_total_bytes - self.memory_reserved_bytes - self.used_bytes(now))

    def forget_the_dead(self, now: float | None = None) -> None:
        """Drop entries that no longer count, so that the file doesn't grow for ever.

        Only where the host's own processes can be seen: from another PID namespace all of them look dead.
        """
        at = time.time() if now is None else now
        self.procs = {pid: size for pid, size in self.procs.items() if is_alive(pid)}
        self.held = {key: held for key, held in self.held.items() if not held.is_over(at)}


_INT_FIELDS = frozenset(name for name, kind in Gpu.__annotations__.items() if kind == "int") - {"index"}
_TEXT_FIELDS = frozenset(name for name, kind in Gpu.__annotations__.items() if kind == "str")


@dataclass
class GpuState:
    """All of a host's GPUs and the driver that is loaded, as the file has them."""

    driver_version: str = ""
    library_version: str = ""
    cuda_version: int = 13000
    loaded: int = 1
    gpus: list[Gpu] = field(default_factory=list)
    extra: dict[str, str] = field(default_factory=dict)

    @classmethod
    def load(cls, path: StatePath | None = None) -> GpuState:
        """Read the file; StateError where there is none."""
        where = Path(path) if path is not None else state_path()
        try:
            return cls.parse(where.read_text(encoding="utf-8"))
        except OSError as error:
            raise StateError(
                f"GPU state {where} can't be read: {error.strerror}. Is the driver loaded?"
            ) from error

    @classmethod
    def parse(cls, text: str) -> GpuState:
        """Read the file's text; keys that are not known here are kept as they are."""
        state = cls()
        gpus: dict[int, Gpu] = {}
        for number, line in enumerate(text.splitlines(), start=1):
            key, separator, value = line.strip().partition("=")
            if not key or key.startswith("#"):
                continue
            try:
                if not separator:
                    raise ValueError("no '='")  # noqa: TRY301
                if match := _KEY.fullmatch(key):
                    gpu = gpus.setdefault(int(match[1]), Gpu(index=int(match[1])))
                    _set_gpu_key(gpu, match[2], match[3], value)
                else:
                    state._set_key(key, value)
            except ValueError as error:
                raise StateError(f"GPU state, line {number}: {line!r}: {error}") from error
        state.gpus = [gpus[index] for index in sorted(gpus)]
        return state

    def _set_key(self, key: str, value: str) -> None:
        if key == "format":
            if int(value) != FORMAT:
                raise ValueError(f"format {value}, this program reads {FORMAT}")
        elif key in {"cuda_version", "loaded"}:
            setattr(self, key, int(value))
        elif key in {"driver_version", "library_version"}:
            setattr(self, key, value)
        else:
            self.extra[key] = value

    def text(self) -> str:
        """The file's text."""
        lines = [f"format={FORMAT}"]
        if self.driver_version:
            lines.append(f"driver_version={self.driver_version}")
        if self.library_version:
            lines.append(f"library_version={self.library_version}")
        lines += [f"cuda_version={self.cuda_version}", f"loaded={self.loaded}"]
        lines += [f"{key}={value}" for key, value in self.extra.items()]
        for gpu in self.gpus:
            lines += _gpu_lines(gpu)
        return "\n".join(lines) + "\n"

    def save(self, path: StatePath) -> None:
        """Replace the file whole. Inside `edit` only, which holds the lock."""
        target = Path(path)
        fd, temporary = tempfile.mkstemp(prefix=f".{target.name}.", dir=target.parent)
        try:
            with os.fdopen(fd, "w", encoding="utf-8") as file:
                file.write(self.text())
                # Ollama, the proxy and root all read and write it, whatever the umask of a hardened unit.
                os.fchmod(file.fileno(), 0o666)
            os.replace(temporary, target)  # noqa: PTH105
        except BaseException:
            with contextlib.suppress(FileNotFoundError):
                os.unlink(temporary)  # noqa: PTH108
            raise


def _set_gpu_key(gpu: Gpu, name: str, item: str | None, value: str) -> None:
    if name == "proc" and item:
        gpu.procs[int(item)] = int(value)
    elif name == "held" and item:
        gpu.held[item] = Held.parse(value)
    elif item is None and name in _INT_FIELDS:
        setattr(gpu, name, int(value))
    elif item is None and name in _TEXT_FIELDS:
        setattr(gpu, name, value)
    else:
        gpu.extra[name if item is None else f"{name}.{item}"] = value


def _gpu_lines(gpu: Gpu) -> list[str]:
    prefix = f"gpu.{gpu.index}."
    lines = [f"{prefix}{name}={getattr(gpu, name)}" for name in Gpu.__annotations__ if name in _INT_FIELDS]
    lines += [f"{prefix}{name}={getattr(gpu, name)}" for name in sorted(_TEXT_FIELDS) if getattr(gpu, name)]
    lines += [f"{prefix}proc.{pid}={size}" for pid, size in gpu.procs.items()]
    lines += [f"{prefix}held.{key}={held.text()}" for key, held in gpu.held.items()]
    return lines + [f"{prefix}{key}={value}" for key, value in gpu.extra.items()]


@contextlib.contextmanager
def edit(path: StatePath | None = None) -> Iterator[GpuState]:
    """Change the state: load it under the lock, and write it back if the block ends well."""
    where = Path(path) if path is not None else state_path()
    with locked(where):
        state = GpuState.load(where)
        yield state
        state.save(where)


@contextlib.contextmanager
def locked(path: StatePath) -> Iterator[None]:
    """Hold the lock beside the state file."""
    fd = os.open(f"{os.fspath(path)}.lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
    try:
        with contextlib.suppress(PermissionError):
            os.fchmod(fd, 0o666)  # the creator's umask must not lock the other users out
        fcntl.flock(fd, fcntl.LOCK_EX)
        yield
    finally:
        os.close(fd)


def free_bytes(gpu: Gpu) -> int:
    """What a new allocation on this GPU can have now."""
    return gpu.free_bytes()


def _gpu_at(state: GpuState, gpu_index: int) -> Gpu:
    for gpu in state.gpus:
        if gpu.index == gpu_index:
            return gpu
    raise StateError(f"GPU {gpu_index} isn't in the state, which has {len(state.gpus)}")


def claim(path: StatePath | None, gpu_index: int, pid: int, size_bytes: int) -> None:
    """Let a process hold exactly this much of a GPU; GpuMemoryError where it isn't free."""
    with edit(path) as state:
        gpu = _gpu_at(state, gpu_index)
        gpu.forget_the_dead()
        free = gpu.free_bytes() + gpu.procs.get(pid, 0)
        if size_bytes > free:
            raise GpuMemoryError(f"GPU {gpu_index} has {free} bytes free, {size_bytes} were asked for")
        gpu.procs[pid] = size_bytes


def release(path: StatePath | None, gpu_index: int, pid: int, late_seconds: float = 0) -> None:
    """Take a process off a GPU; with `late_seconds` its memory comes back only after that time."""
    with edit(path) as state:
        gpu = _gpu_at(state, gpu_index)
        size_bytes = gpu.procs.pop(pid, 0)
        gpu.forget_the_dead()
        if size_bytes and late_seconds > 0:
            until = time.time() + late_seconds
            gpu.held[f"{pid}-{time.monotonic_ns()}"] = Held(size_bytes, until=until)
