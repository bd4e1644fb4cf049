"""What systemd does for the proxy: holds its socket, starts its process, restarts it as `systemctl` does."""

from __future__ import annotations

import http.client
import json
import os
import signal
import socket
import ssl
import subprocess
import sys
import threading
import time
from dataclasses import dataclass, field
from pathlib import Path

from tests.proxy.rig import KEYS, SMALL, Rig
from tests.support import eventually

PROGRAM = (
    "import os,sys;os.dup2(int(sys.argv[1]),3);os.environ['LISTEN_PID']=str(os.getpid());"
    "os.environ['LISTEN_FDS']='1';"
    "os.execv(sys.executable,[sys.executable,'-m','drover_proxy','serve','--config',sys.argv[2]])"
)


class Systemd:
    """The service manager of one rig: socket activation, notifications, a runtime directory that is kept."""

    def __init__(self, rig: Rig, tls: ssl.SSLContext | None = None) -> None:
        self.rig = rig
        self.tls = tls
        self.runtime = rig.folder / "run"
        self.runtime.mkdir()
        self.listener = socket.socket()
        self.listener.bind(("127.0.0.1", 0))
        self.listener.listen(4096)
        self.port = self.listener.getsockname()[1]
        self.notify = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self.notify.bind(str(rig.folder / "notify"))
        self.notify.settimeout(30)
        rig.url = f"http://127.0.0.1:{self.port}"
        self.main: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Start the main process."""
        notify = str(self.rig.folder / "notify")
        environment = {"NOTIFY_SOCKET": notify, "RUNTIME_DIRECTORY": str(self.runtime)}
        with self.rig.log.open("ab") as log:
            self.main = self.rig.proxy = subprocess.Popen(
                [sys.executable, "-c", PROGRAM, str(self.listener.fileno()), str(self.rig.config_file)],
                env=self.rig.base_environment() | environment,
                pass_fds=[self.listener.fileno()],
                stderr=log,
                cwd=self.rig.folder,
            )
        self.rig.processes.append(self.main)

    def wait_ready(self) -> None:
        """Wait until the process says that it serves."""
        while b"READY=1" not in self.notify.recv(1000):
            pass

    def stop(self) -> float:
        """Tell the main process to stop; returns the seconds until it had ended."""
        assert self.main is not None
        began = time.monotonic()
        self.main.send_signal(signal.SIGTERM)
        assert self.main.wait(30) == 0
        return time.monotonic() - began

    def restart(self) -> float:
        """Restart as `systemctl restart` does: the next process starts when the main process has ended."""
        seconds = self.stop()
        self.start()
        self.wait_ready()
        return seconds

    def load(self, model: str) -> None:
        """Have a model loaded."""
        traffic = Traffic(self.port, self.tls)
        connection = traffic.connection()
        traffic.ask(connection, "/api/generate", {"model": model, "stream": False})
        connection.close()

    def servers(self) -> list[int]:
        """Return the servers that were left to finish their work and still live."""
        return [line["pid"] for line in self.rig.lines("handing_over") if alive(line["pid"])]

    def close(self) -> None:
        """End what was left, and only that."""
        if self.main is not None and self.main.poll() is None:
            self.main.terminate()
            self.main.wait(10)
        for pid in self.servers():
            os.kill(pid, signal.SIGTERM)
        eventually(lambda: not self.servers(), timeout=15, what="the old servers have ended")
        self.listener.close()
        self.notify.close()


def alive(pid: int) -> bool:
    """Whether a process lives: one that has ended, and that nobody has asked for yet, doesn't."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


@dataclass
class Traffic:
    """Clients of every kind, and what became of their requests."""

    port: int
    tls: ssl.SSLContext | None = None
    host: str = "127.0.0.1"
    key: str = KEYS["use"]
    answers: list[float] = field(default_factory=list)
    """Seconds each short request took, on a new connection or a kept one."""
    streams: list[int] = field(default_factory=list)
    """Lines of each long stream that ended whole."""
    faults: list[str] = field(default_factory=list)
    stopped: bool = False
    threads: list[threading.Thread] = field(default_factory=list)

    def connection(self) -> http.client.HTTPConnection:
        """Return a new connection."""
        if self.tls is not None:
            return http.client.HTTPSConnection("localhost", self.port, timeout=60, context=self.tls)
        return http.client.HTTPConnection(self.host, self.port, timeout=60)

    def ask(self, connection: http.client.HTTPConnection, path: str, body: dict | None = None) -> bytes:
        """Send one request and return the whole answer."""
        headers = {"Authorization": f"Bearer {self.key}", "Content-Type": "application/json"}
        content = json.dumps(body) if body else None
        connection.request("POST" if body else "GET", path, body=content, headers=headers)
        answer = connection.getresponse()
        data = answer.read()
        if answer.status != 200:
            raise AssertionError(f"{path}: {answer.status} {data[:200]!r}")
        return data

    def short(self, *, kept: bool) -> None:
        """Ask for the version again and again."""
        connection = self.connection()
        while not self.stopped:
            began = time.monotonic()
            try:
                self.ask(connection, "/api/version")
            except (OSError, http.client.HTTPException, AssertionError) as error:
                self.faults.append(f"short, kept={kept}: {error!r}")
                connection.close()
            else:
                self.answers.append(time.monotonic() - began)
            if not kept:
                connection.close()
        connection.close()

    def generate(self, tokens: int) -> None:
        """Have a text made again and again."""
        body = {"model": SMALL, "prompt": f"[[tokens={tokens}]]"}
        while not self.stopped:
            connection = self.connection()
            try:
                lines = self.ask(connection, "/api/generate", body).splitlines()
            except (OSError, http.client.HTTPException, AssertionError) as error:
                self.faults.append(f"stream of {tokens}: {error!r}")
            else:
                whole = json.loads(lines[-1]).get("done")
                self.streams.append(len(lines) if whole else -1)
            finally:
                connection.close()

    def start(self, *, streams: int, tokens: int) -> None:
        """Begin: short requests on new and on kept connections, and streams."""
        for kept in (True, False):
            self.threads.append(threading.Thread(target=self.short, kwargs={"kept": kept}))
        for _ in range(streams):
            self.threads.append(threading.Thread(target=self.generate, args=(tokens,)))
        for thread in self.threads:
            thread.start()

    def stop(self) -> None:
        """End, when what is under way has ended."""
        self.stopped = True
        for thread in self.threads:
            thread.join(60)
