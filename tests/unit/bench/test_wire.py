"""The benchmark's program, small: the real proxy takes part, and the last line is there."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import httpx
import pytest

from bench import builds, contestants, figures, measure, provide, traffic

PROJECT = Path(__file__).resolve().parents[3]


def bench(tmp_path, *options):
    """Run the program with this Python for the proxy, and the proxy interpreted, so that nothing is made."""
    output = tmp_path / "wire.json"
    command = [sys.executable, "-m", "bench.wire", "--output", str(output), *options]
    environment = os.environ | {"PYTHON": sys.executable, "DROVER_PROXY_COMPILE": "0"}
    done = subprocess.run(
        command, cwd=PROJECT, env=environment, capture_output=True, text=True, timeout=50, check=False
    )
    return done, output


@pytest.mark.skipif(not shutil.which("gcc"), reason="gcc isn't installed: `make bench-wire` installs it")
@pytest.mark.skipif(len(os.sched_getaffinity(0)) < 2, reason="the comparison needs two cores")
def test_the_proxy_takes_part(tmp_path):
    """The proxy that the benchmark starts serves requests with keys, limits, routing and logs on."""
    done, output = bench(
        tmp_path,
        *("--only", "drover", "--connections", "4", "--streams", "0", "--no-stall"),
        *("--rounds", "1", "--seconds", "0.3"),
    )

    assert done.returncode == 0, done.stderr
    line = json.loads(done.stdout.splitlines()[-1])
    assert set(line) == set(figures.final({}, ""))
    assert line["rps_vs_nginx"] is None
    assert (line["drover_build"], line["drover_build_why"]) == ("interpreted", "DROVER_PROXY_COMPILE=0")
    words = "drover is the interpreted proxy here, not the compiled one: DROVER_PROXY_COMPILE=0"
    assert words in done.stdout
    assert words in done.stderr
    record = json.loads(output.read_text())
    found = record["figures"]["drover"]["requests/4"]
    assert found["failed"] == [0, 0, 0]
    assert found["rps"][0] > 50
    text = output.read_text()
    assert str(PROJECT) not in text


def test_an_unknown_contestant_is_refused(tmp_path):
    """The known ones are named."""
    done, _ = bench(tmp_path, "--only", "apache")

    assert done.returncode == 2
    assert "'apache' is none of drover, drover-pure, nginx, go, go-pooled" in done.stderr


@pytest.mark.skipif(not shutil.which("gcc"), reason="gcc isn't installed: `make bench-wire` installs it")
def test_all_that_the_proxy_does_is_on_while_it_is_measured(tmp_path):
    """Every request that counts was logged and counted, and a caller without a key is kept out."""
    python = Path(sys.executable)
    tools = provide.Tools(provide.compiled("source"), provide.compiled("load"), python, python)
    tools.drover = builds.interpreted(python, PROJECT / "proxy" / "src")
    core = min(os.sched_getaffinity(0))
    source = contestants.start_source(tools, core, tmp_path, chunks=4, gap_seconds=0.01)
    try:
        shared = measure.prepare(tools, tmp_path, core, chunks=4, gap_seconds=0.01)
        running = contestants.start_contestant("drover", tools, source.port, core, tmp_path)
        try:
            asked = measure.requests(shared, running, 4, 0.3)
            streamed = measure.streams(shared, running, 10, spread_seconds=0.05)
            native = measure.streams(shared, running, 10, spread_seconds=0.05, native=True)
            config = json.loads(next(tmp_path.glob("drover-*/proxy.yaml")).read_text())
            shown = httpx.get(f"http://{config['admin_listen']}/metrics", trust_env=False).text
            refused = httpx.post(f"http://127.0.0.1:{running.port}{traffic.PATH}", json={}, trust_env=False)
        finally:
            running.child.stop()
    finally:
        source.child.stop()

    assert asked["failed"] == streamed["failed"] == native["failed"] == 0
    assert refused.status_code == 401
    counted = re.findall(r"^drover_requests_total\{.*status=\"200\"\} ([\d.]+)$", shown, re.MULTILINE)
    logged = [line for line in running.child.log.read_text().splitlines() if '"event":"access"' in line]
    ended = [json.loads(line) for line in logged if '"status":200' in line]
    assert len(counted) == 2, "both dialects"
    assert len(ended) == sum(map(float, counted)) >= asked["rps"] * 0.3 + 20
    assert {line["key"] for line in ended} == {"bench"}
