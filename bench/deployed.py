"""drover as a host runs it: systemd's socket, its supervisor, folders that are kept, and everything on."""

from __future__ import annotations

import hashlib
import json
import socket
from pathlib import Path

from bench import traffic
from bench.answers import CONTEXT
from bench.processes import Child, free_ports, start

INSTANCES, SLOTS = 8, 640
"""The host that the proxy runs on: eight GPUs, one instance each, with slots for 5,120 requests at once."""
GPU_BYTES = 8 << 40
"""So much that as many slots fit: what is measured is the proxy, not what it refuses."""
BACKLOG = 4096
"""As in templates/proxy/drover-proxy.socket.j2."""
OTHER_KEYS = 20

ACTIVATE = (
    "import os, sys; os.dup2(int(sys.argv[1]), 3); os.environ['LISTEN_PID'] = str(os.getpid()); "
    "os.execv(sys.executable, [sys.executable, '-m', 'drover_proxy', 'serve', '--config', sys.argv[2]])"
)
"""What systemd does before it starts a service that has a socket."""


def run(name: str, python: Path, sources: Path, upstream: int, core: int, root: Path, port: int) -> Child:
    """Start it.

    Args:
        name: The contestant's.
        python: What runs it.
        sources: The folder of drover_proxy.
        upstream: The port of the instances, which have an address each.
        core: The one that it has.
        root: A folder for its files.
        port: Where it shall listen.
    """
    (admin,) = free_ports(1)
    # JSON is YAML.
    (root / "keys.yaml").write_text(json.dumps({"keys": _keys()}))
    (root / "keys.yaml").chmod(0o600)
    (root / "proxy.yaml").write_text(json.dumps(_config(root, upstream, port, admin)))
    environment = {
        "PYTHONPATH": str(sources),
        "PYTHONUNBUFFERED": "1",
        "PYTHONDONTWRITEBYTECODE": "",  # hosts get theirs with the wheel
        "LISTEN_FDS": "1",
    }
    for kept in ("RUNTIME_DIRECTORY", "STATE_DIRECTORY"):
        (root / kept).mkdir(mode=0o700)
        environment[kept] = str(root / kept)
    with socket.socket() as door:
        door.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        door.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        door.bind(("127.0.0.1", port))
        door.listen(BACKLOG)
        command = [str(python), "-c", ACTIVATE, str(door.fileno()), str(root / "proxy.yaml")]
        return start(name, command, core, root, environment=environment, keep=(door.fileno(),))


def _keys() -> list[dict[str, object]]:
    """Return the caller's, which may use two patterns of models, and others."""
    keys = [(f"team-{n}", f"another-{n}", ["*"]) for n in range(OTHER_KEYS)]
    keys.append(("bench", traffic.KEY, ["llama3.2", "qwen*"]))
    return [
        {
            "name": name,
            "sha256": hashlib.sha256(raw.encode()).hexdigest(),
            "scopes": ["use"],
            "models": models,
        }
        for name, raw, models in keys
    ]


def _config(root: Path, upstream: int, port: int, admin: int) -> dict[str, object]:
    instances = [
        {
            "name": f"gpu{n}",
            "url": f"http://127.0.0.{n + 1}:{upstream}",
            "gpus": [f"GPU-{n}"],
            "slots": SLOTS,
            "context": CONTEXT,
        }
        for n in range(INSTANCES)
    ]
    return {
        "listen": f"127.0.0.1:{port}",
        "admin_listen": f"127.0.0.1:{admin}",
        "auth": {"keys_file": str(root / "keys.yaml")},
        "gpus": [{"uuid": f"GPU-{n}", "total_bytes": GPU_BYTES} for n in range(INSTANCES)],
        "instances": instances,
        "queue": {"max_waiting": 6000},
        "log": {"access": True, "level": "info"},
        "drain_seconds": 0,  # nobody comes after it
    }
