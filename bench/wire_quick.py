"""The wire beside nginx, in one run and in turns, in under a minute: CPU for a request and for a chunk.

Load and upstream share core 0, the proxy has core 1. CPU comes from /proc/PID/stat, which other work on the
machine disturbs less than it does the clock. Prints a table and, last, one line of JSON.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import shutil
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

HERE = Path(__file__).parent
PACKAGES = {"nginx": "nginx-light", "wrk": "wrk"}
LOAD_CORE, PROXY_CORE = 0, 1
CONNECTIONS = 64
STREAMS, CHUNKS, GAP = 300, 100, 0.02
TICK = os.sysconf("SC_CLK_TCK")

BODY = json.dumps(
    {
        "model": "llama3.2:3b",
        "stream": False,
        "messages": [{"role": "user", "content": "why is the sky blue? " * 5}],
    }
)
ANSWER = json.dumps(
    {"model": "llama3.2:3b", "message": {"role": "assistant", "content": "It scatters. " * 12}, "done": True}
)

NGINX = """
worker_processes 1; daemon off; pid {root}/nginx.pid; error_log {root}/error.log crit;
events {{ worker_connections 8192; }}
http {{
  access_log off; client_body_temp_path {root}/b; proxy_temp_path {root}/p; fastcgi_temp_path {root}/f;
  scgi_temp_path {root}/s; uwsgi_temp_path {root}/u; keepalive_requests 100000000;
  {http}
}}
"""
PROXY = """
  upstream json {{ server 127.0.0.1:{json_port}; keepalive 256; keepalive_requests 100000000; }}
  upstream streams {{ server 127.0.0.1:{stream_port}; keepalive 1024; }}
  proxy_http_version 1.1; proxy_set_header Connection ""; proxy_buffering off;
  server {{ listen 127.0.0.1:{a}; location / {{ proxy_pass http://json; }} }}
  server {{ listen 127.0.0.1:{b} backlog=4096; location / {{ proxy_pass http://streams; }} }}
"""
UPSTREAM = """
  server {{ listen 127.0.0.1:{port}; default_type application/json; location / {{ return 200 '{answer}'; }} }}
"""
WRK = """
wrk.method = "POST"
wrk.body = [==[{body}]==]
wrk.headers["Content-Type"] = "application/json"
wrk.headers["Authorization"] = "Bearer drv_0123456789abcdef0123456789abcdef"
"""


def free_ports(count: int) -> list[int]:
    """Find ports on loopback that nothing listens on."""
    sockets = [socket.create_server(("127.0.0.1", 0)) for _ in range(count)]
    ports = [s.getsockname()[1] for s in sockets]
    for s in sockets:
        s.close()
    return ports


@contextmanager
def child(command: list[str], core: int, port: int) -> Iterator[int]:
    """Run a command on one core until the block ends; wait until it listens on `port`."""
    process = subprocess.Popen(["taskset", "-c", str(core), *command], stderr=subprocess.DEVNULL)
    try:
        deadline = time.monotonic() + 10
        while True:
            try:
                socket.create_connection(("127.0.0.1", port), 1).close()
                break
            except OSError:
                if process.poll() is not None or time.monotonic() > deadline:
                    raise SystemExit(f"error: {command[0]} didn't come up on port {port}") from None
                time.sleep(0.05)
        yield process.pid
    finally:
        process.terminate()
        process.wait(10)


def cpu_seconds(pid: int) -> float:
    """Sum user and system time of a process and its children (nginx works in one)."""
    total = 0.0
    for one in [pid, *map(int, Path(f"/proc/{pid}/task/{pid}/children").read_text().split())]:
        fields = Path(f"/proc/{one}/stat").read_text().rpartition(")")[2].split()
        total += (int(fields[11]) + int(fields[12])) / TICK
    return total


def measure_requests(pid: int, port: int, script: Path, seconds: int) -> dict[str, float]:
    """Let wrk ask for a while."""
    before = cpu_seconds(pid)
    out = subprocess.run(
        ["taskset", "-c", str(LOAD_CORE), "wrk", "-t1", f"-c{CONNECTIONS}", f"-d{seconds}s", "--latency",
         "-s", str(script), f"http://127.0.0.1:{port}/api/chat"],
        capture_output=True, text=True, check=True,
    ).stdout  # fmt: skip
    used = cpu_seconds(pid) - before
    count = int(re.search(r"(\d+) requests in", out)[1])  # type: ignore[index]
    errors = re.search(r"Non-2xx.*|Socket errors.*", out)
    if errors:
        print("wrk:", errors[0], file=sys.stderr)
    rate = float(re.search(r"Requests/sec:\s+([\d.]+)", out)[1])  # type: ignore[index]
    return {"rps": rate, "us_request": used / count * 1e6}


def measure_streams(pid: int, port: int) -> dict[str, float]:
    """Hold many slow streams at once."""
    before = cpu_seconds(pid)
    out = subprocess.run(
        ["taskset", "-c", str(LOAD_CORE), sys.executable, str(HERE / "wire_streams.py"), "load", str(port),
         str(STREAMS), str(CHUNKS), str(GAP)],
        capture_output=True, text=True, check=True,
    ).stdout  # fmt: skip
    used = cpu_seconds(pid) - before
    found = json.loads(out)
    if found["whole"] != STREAMS:
        print(f"streams: only {found['whole']} of {STREAMS} whole", file=sys.stderr)
    return {"us_chunk": used / (STREAMS * CHUNKS) * 1e6, "ttfb_p99_ms": found["ttfb_p99_ms"]}


def provide() -> None:
    """See that nginx and wrk are there; as root, install them."""
    missing = [package for command, package in PACKAGES.items() if not shutil.which(command)]
    if not missing:
        return
    if os.geteuid() != 0 or not shutil.which("apt-get"):
        names = " ".join(missing)
        raise SystemExit(f"error: this needs {names}\n  hint: apt-get install {names}")
    subprocess.run(["apt-get", "install", "-qq", "-y", "--no-install-recommends", *missing], check=True)


def main() -> None:
    """Measure in turns, and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seconds", type=int, default=3, help="of each measurement of requests")
    options = parser.parse_args()
    provide()
    if len(os.sched_getaffinity(0)) < 2:
        raise SystemExit("error: the comparison needs two cores, one for the load and one for the proxy")
    rows: dict[str, list[dict[str, float]]] = {"drover": [], "nginx": []}
    with ExitStack() as stack:
        root = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="drover-bench-")))
        json_port, stream_port, na, nb, da, db = free_ports(6)
        script = root / "wrk.lua"
        script.write_text(WRK.format(body=BODY))
        for name, text in {
            "upstream": UPSTREAM.format(port=json_port, answer=ANSWER),
            "proxy": PROXY.format(json_port=json_port, stream_port=stream_port, a=na, b=nb),
        }.items():
            (root / name).mkdir()
            (root / f"{name}.conf").write_text(NGINX.format(root=root / name, http=text))
        python = sys.executable
        nginx = ["nginx", "-c"]
        stack.enter_context(child([*nginx, str(root / "upstream.conf")], LOAD_CORE, json_port))
        stack.enter_context(
            child([python, str(HERE / "wire_streams.py"), "serve", str(stream_port)], LOAD_CORE, stream_port)
        )
        pid = stack.enter_context(child([*nginx, str(root / "proxy.conf")], PROXY_CORE, na))
        ours = [python, str(HERE / "wire_proxy.py")]
        one = stack.enter_context(child([*ours, str(da), str(json_port)], PROXY_CORE, da))
        two = stack.enter_context(child([*ours, str(db), str(stream_port)], PROXY_CORE, db))
        for _ in range(options.rounds):
            for name, pid_a, a, pid_b, b in (("nginx", pid, na, pid, nb), ("drover", one, da, two, db)):
                row = measure_requests(pid_a, a, script, options.seconds) | measure_streams(pid_b, b)
                rows[name].append(row)
    report(rows)


def report(rows: dict[str, list[dict[str, float]]]) -> None:
    """Print the table, then the one line that machines read."""
    keys = ("rps", "us_request", "us_chunk", "ttfb_p99_ms")
    median = {name: {k: statistics.median(r[k] for r in found) for k in keys} for name, found in rows.items()}
    print(f"{'':8}{'requests/s':>12}{'CPU us/request':>24}{'CPU us/chunk':>22}{'ttfb p99 ms':>14}")
    for name, m in median.items():
        spread = {
            k: f"{m[k]:.1f} [{min(r[k] for r in rows[name]):.1f}-{max(r[k] for r in rows[name]):.1f}]"
            for k in keys
        }
        print(
            f"{name:8}{m['rps']:>12.0f}{spread['us_request']:>24}{spread['us_chunk']:>22}{m['ttfb_p99_ms']:>14.1f}"
        )
    print(
        json.dumps(
            {
                "cpu_per_request_us": round(median["drover"]["us_request"], 1),
                "cpu_per_chunk_us": round(median["drover"]["us_chunk"], 1),
                "cpu_per_request_vs_nginx": round(
                    median["drover"]["us_request"] / median["nginx"]["us_request"], 2
                ),
                "cpu_per_chunk_vs_nginx": round(
                    median["drover"]["us_chunk"] / median["nginx"]["us_chunk"], 2
                ),
                "rps_vs_nginx": round(median["drover"]["rps"] / median["nginx"]["rps"], 2),
            }
        )
    )


if __name__ == "__main__":
    main()
