"""The benchmark's program, small: the real proxy takes part, and the last line is there."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from bench import figures

PROJECT = Path(__file__).resolve().parents[3]


def bench(tmp_path, *options):
    """Run the program with this Python for the proxy, so that nothing is installed."""
    output = tmp_path / "wire.json"
    command = [sys.executable, "-m", "bench.wire", "--output", str(output), *options]
    environment = os.environ | {"PYTHON": sys.executable}
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
    assert "'apache' is none of drover, nginx, go" in done.stderr
