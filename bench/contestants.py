"""The contestants: how each is configured and started, in front of the same upstream."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import socket
import urllib.request
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from bench import traffic
from bench.figures import COMPILED
from bench.processes import BenchError, Child, free_ports, start, wait_for
from bench.provide import HERE, PROJECT, Tools

INSTANCES, SLOTS = 8, 640
"""The host that the proxy runs on: eight GPUs, one instance each, with slots for 5,120 requests at once."""
GPU_BYTES = 8 << 40
"""So much that as many slots fit: what is measured is the proxy, not what it refuses."""

NGINX = """
{user}
worker_processes 1; daemon off; pid {root}/nginx.pid; error_log {root}/error.log crit;
events {{ worker_connections 16384; }}
http {{
  access_log off; client_body_temp_path {root}/b; proxy_temp_path {root}/p; fastcgi_temp_path {root}/f;
  scgi_temp_path {root}/s; uwsgi_temp_path {root}/u; keepalive_requests 100000000; client_max_body_size 64m;
  upstream ollama {{ server 127.0.0.1:{upstream}; keepalive 1024; keepalive_requests 100000000; }}
  proxy_http_version 1.1; proxy_set_header Connection ""; proxy_buffering off; proxy_read_timeout 600s;
  server {{ listen 127.0.0.1:{port} backlog=4096; location / {{ proxy_pass http://ollama; }} }}
}}
"""


@dataclass(frozen=True)
class Running:
    """A contestant that serves."""

    name: str
    port: int
    child: Child


Starter = Callable[[Tools, int, int, Path, int], Running]
"""From the tools, the upstream's port, the core, a folder for its files and its own port."""


def start_contestant(name: str, tools: Tools, upstream: int, core: int, folder: Path) -> Running:
    """Start one and wait until it forwards; BenchError when it doesn't."""
    if name in tools.missing:
        raise BenchError(tools.missing[name])
    root = folder / f"{name}-{len(list(folder.iterdir()))}"
    root.mkdir()
    (port,) = free_ports(1)
    running = STARTERS[name](tools, upstream, core, root, port)
    wait_for(running.child, lambda: _forwards(port))
    return running


def _forwards(port: int) -> bool:
    """Whether a chat is answered with 200 through it."""
    body = json.dumps(traffic.chat("hello")).encode()
    headers = {"Content-Type": "application/json", "Authorization": f"Bearer {traffic.KEY}"}
    question = urllib.request.Request(f"http://127.0.0.1:{port}{traffic.PATH}", data=body, headers=headers)
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    with opener.open(question, timeout=10) as answer:
        return bool(answer.status == 200)


def drover(tools: Tools, upstream: int, core: int, root: Path, port: int) -> Running:
    """Return the real proxy with everything on: keys, limits, routing, accounting, metrics, access log."""
    return _drover("drover", PROJECT / "proxy" / "src", tools, upstream, core, root, port)


def drover_compiled(tools: Tools, upstream: int, core: int, root: Path, port: int) -> Running:
    """Return the same with its hot modules compiled."""
    if tools.compiled is None:
        raise BenchError("not compiled")
    return _drover(COMPILED, tools.compiled, tools, upstream, core, root, port)


def _drover(
    name: str, sources: Path, tools: Tools, upstream: int, core: int, root: Path, port: int
) -> Running:
    (admin,) = free_ports(1)
    keys = [
        {
            "name": f"team-{n}",
            "sha256": hashlib.sha256(f"another-{n}".encode()).hexdigest(),
            "scopes": ["use"],
            "models": ["*"],
        }
        for n in range(20)
    ]
    digest = hashlib.sha256(traffic.KEY.encode()).hexdigest()
    keys.append({"name": "bench", "sha256": digest, "scopes": ["use"], "models": ["llama3.2", "qwen*"]})
    gpus = [{"uuid": f"GPU-{n}", "total_bytes": GPU_BYTES} for n in range(INSTANCES)]
    instances = [
        {
            "name": f"gpu{n}",
            "url": f"http://127.0.0.{n + 1}:{upstream}",
            "gpus": [f"GPU-{n}"],
            "slots": SLOTS,
            "context": traffic.CONTEXT,
        }
        for n in range(INSTANCES)
    ]
    config = {
        "listen": f"127.0.0.1:{port}",
        "admin_listen": f"127.0.0.1:{admin}",
        "auth": {"keys_file": str(root / "keys.yaml")},
        "gpus": gpus,
        "instances": instances,
        "queue": {"max_waiting": 6000},
        "log": {"access": True, "level": "info"},
        "drain_seconds": 1,
    }
    # JSON is YAML.
    (root / "keys.yaml").write_text(json.dumps({"keys": keys}))
    (root / "keys.yaml").chmod(0o600)
    (root / "proxy.yaml").write_text(json.dumps(config))
    command = [str(tools.python), "-m", "drover_proxy", "serve", "--config", str(root / "proxy.yaml")]
    environment = {"PYTHONPATH": str(sources), "PYTHONDONTWRITEBYTECODE": ""}
    return Running(name, port, start(name, command, core, root, environment=environment))


def nginx(_tools: Tools, upstream: int, core: int, root: Path, port: int) -> Running:
    """Return nginx with proxy_pass and a kept upstream; it reads no body and writes no log."""
    # As root its worker would be another user, who can't write bodies into our folder.
    user = "user root root;" if os.geteuid() == 0 else ""
    (root / "nginx.conf").write_text(NGINX.format(user=user, root=root, port=port, upstream=upstream))
    program = shutil.which("nginx", path=os.environ.get("PATH", "") + ":/usr/sbin") or "nginx"
    return Running("nginx", port, start("nginx", [program, "-c", str(root / "nginx.conf")], core, root))


def go(tools: Tools, upstream: int, core: int, root: Path, port: int) -> Running:
    """Return Go's ReverseProxy, which reads the body for its model."""
    if tools.goproxy is None:
        raise BenchError("no Go compiler")
    command = [str(tools.goproxy), f"127.0.0.1:{port}", f"127.0.0.1:{upstream}"]
    return Running("go", port, start("go", command, core, root, environment={"GOMAXPROCS": "1"}))


def _router(
    name: str, extra: list[str], tools: Tools, upstream: int, core: int, root: Path, port: int
) -> Running:
    """Return one of the routers that come as Python packages: round robin, no limits of its own."""
    (metrics,) = free_ports(1)
    command = [
        str(tools.peers / "bin" / "python"),
        str(tools.peers / "bin" / name),
        *extra,
        *("--host", "127.0.0.1", "--port", str(port)),
        *("--worker-urls", f"http://127.0.0.1:{upstream}"),
        *("--policy", "round_robin"),
        *("--prometheus-port", str(metrics), "--prometheus-host", "127.0.0.1"),
        *("--max-concurrent-requests", "20000", "--queue-size", "20000"),
        *("--log-level", "warn" if name == "smg" else "warning"),
    ]
    return Running(name, port, start(name, command, core, root))


def vllm_router(tools: Tools, upstream: int, core: int, root: Path, port: int) -> Running:
    """Return vllm-router."""
    return _router("vllm-router", [], tools, upstream, core, root, port)


def smg(tools: Tools, upstream: int, core: int, root: Path, port: int) -> Running:
    """Return smg, the other router written in Rust."""
    return _router("smg", ["launch"], tools, upstream, core, root, port)


def aiohttp(tools: Tools, upstream: int, core: int, root: Path, port: int) -> Running:
    """Return the floor."""
    command = [
        str(tools.peers / "bin" / "python"),
        str(HERE / "aiohttp_proxy.py"),
        str(port),
        f"127.0.0.1:{upstream}",
    ]
    return Running("aiohttp", port, start("aiohttp", command, core, root))


STARTERS: dict[str, Starter] = {
    "drover": drover,
    COMPILED: drover_compiled,
    "nginx": nginx,
    "go": go,
    "vllm-router": vllm_router,
    "smg": smg,
    "aiohttp": aiohttp,
}


def start_source(tools: Tools, core: int, folder: Path, *, chunks: int, gap_seconds: float) -> Running:
    """Start the upstream."""
    answers = traffic.write_answers(folder / "answers")
    (port,) = free_ports(1)
    command = [str(tools.source), str(port), str(answers), str(chunks), str(round(gap_seconds * 1e6))]
    running = Running("source", port, start("source", command, core, folder))

    def listens() -> bool:
        socket.create_connection(("127.0.0.1", port), 1).close()
        return True

    wait_for(running.child, listens)
    return running
