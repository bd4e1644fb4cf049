"""The contestants: how each is configured and started, in front of the same upstream."""

from __future__ import annotations

import json
import os
import shutil
import socket
import urllib.request
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from bench import answers, deployed, traffic
from bench.builds import Build
from bench.figures import GO_POOLED, PURE
from bench.processes import BenchError, Child, free_ports, start, wait_for
from bench.provide import HERE, Tools

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
    if (own := running.child.cores()) != {core}:
        running.child.stop()
        raise BenchError(f"{name} doesn't keep to core {core}: its threads may run on {sorted(own)}")
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
    """Return the proxy as hosts get it, with everything on."""
    return _drover("drover", tools.drover, tools, upstream, core, root, port)


def drover_pure(tools: Tools, upstream: int, core: int, root: Path, port: int) -> Running:
    """Return the same, interpreted."""
    return _drover(PURE, tools.pure, tools, upstream, core, root, port)


def _drover(
    name: str, build: Build | None, tools: Tools, upstream: int, core: int, root: Path, port: int
) -> Running:
    if build is None:
        raise BenchError("wasn't asked for")
    return Running(name, port, deployed.run(name, tools.python, build.folder, upstream, core, root, port))


def nginx(_tools: Tools, upstream: int, core: int, root: Path, port: int) -> Running:
    """Return nginx with proxy_pass and a kept upstream; it reads no body and writes no log."""
    # As root its worker would be another user, who can't write bodies into our folder.
    user = "user root root;" if os.geteuid() == 0 else ""
    (root / "nginx.conf").write_text(NGINX.format(user=user, root=root, port=port, upstream=upstream))
    program = shutil.which("nginx", path=os.environ.get("PATH", "") + ":/usr/sbin") or "nginx"
    return Running("nginx", port, start("nginx", [program, "-c", str(root / "nginx.conf")], core, root))


def go(tools: Tools, upstream: int, core: int, root: Path, port: int) -> Running:
    """Return Go's ReverseProxy, which reads the body for its model."""
    return _go("go", [], tools, upstream, core, root, port)


def go_pooled(tools: Tools, upstream: int, core: int, root: Path, port: int) -> Running:
    """Return the same with a pool for its buffers."""
    return _go(GO_POOLED, ["pooled"], tools, upstream, core, root, port)


def _go(
    name: str, extra: list[str], tools: Tools, upstream: int, core: int, root: Path, port: int
) -> Running:
    if tools.goproxy is None:
        raise BenchError("no Go compiler")
    command = [str(tools.goproxy), f"127.0.0.1:{port}", f"127.0.0.1:{upstream}", *extra]
    return Running(name, port, start(name, command, core, root, environment={"GOMAXPROCS": "1"}))


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
    PURE: drover_pure,
    "nginx": nginx,
    "go": go,
    GO_POOLED: go_pooled,
    "vllm-router": vllm_router,
    "smg": smg,
    "aiohttp": aiohttp,
}


def start_source(tools: Tools, core: int, folder: Path, *, chunks: int, gap_seconds: float) -> Running:
    """Start the upstream."""
    said = answers.write_answers(folder / "answers")
    (port,) = free_ports(1)
    command = [str(tools.source), str(port), str(said), str(chunks), str(round(gap_seconds * 1e6))]
    running = Running("source", port, start("source", command, core, folder))

    def listens() -> bool:
        socket.create_connection(("127.0.0.1", port), 1).close()
        return True

    wait_for(running.child, listens)
    return running
