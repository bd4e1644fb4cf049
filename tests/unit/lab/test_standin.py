"""The stand-in llama-server by itself: what a real Ollama would ask of it."""

from __future__ import annotations

import http.client
import json
import os
import subprocess

import pytest

from lab.gpu.state import GpuState
from lab.ollama.seed import seed
from lab.standin.install import lay_out
from tests.support import eventually, free_port


@pytest.fixture
def laid_out(tmp_path):
    """The stand-in beside a pretended binary, and two simulated GPUs."""
    (tmp_path / "ollama").write_text("#!/bin/sh\n", encoding="ascii")
    (tmp_path / "ollama").chmod(0o755)
    binary = lay_out(tmp_path / "prefix", tmp_path / "ollama")
    assert os.access(binary, os.X_OK)
    lines = ["format=1", "driver_version=580.1", "loaded=1"]
    for index in range(2):
        lines += [
            f"gpu.{index}.uuid=GPU-{index}",
            f"gpu.{index}.name=NVIDIA Invented",
            f"gpu.{index}.compute_capability=8.9",
            f"gpu.{index}.memory_total_bytes={24 << 30}",
        ]
    (tmp_path / "state").write_text("\n".join(lines) + "\n", encoding="utf-8")
    libraries = tmp_path / "prefix" / "lib" / "ollama"
    env = {
        "PATH": os.environ["PATH"],
        "LABGPU_STATE": str(tmp_path / "state"),
        "GGML_BACKEND_PATH": str(libraries / "cuda_v13" / "libggml-cuda.so"),
    }
    return libraries / "llama-server", env


@pytest.mark.parametrize(("visible", "count"), [(None, 2), ("1", 1), ("GPU-0", 1), ("-1", 0)])
def test_list_devices(laid_out, visible, count):
    """The devices are listed as llama.cpp lists them, narrowed by CUDA_VISIBLE_DEVICES."""
    program, env = laid_out
    env |= {"CUDA_VISIBLE_DEVICES": visible} if visible else {}
    done = subprocess.run([program, "--list-devices"], env=env, capture_output=True, text=True, check=True)
    lines = [line for line in done.stdout.splitlines() if line.startswith("  CUDA")]
    assert lines == [f"  CUDA{n}: NVIDIA Invented (24576 MiB, 24576 MiB free)" for n in range(count)]


def test_quantize_copies(laid_out, tmp_path):
    """llama-quantize copies its input."""
    program, env = laid_out
    (tmp_path / "in").write_bytes(b"GGUF")
    command = [
        program.parent / "llama-quantize",
        "--allow-requantize",
        tmp_path / "in",
        tmp_path / "out",
        "COPY",
    ]
    subprocess.run(command, env=env, check=True, stdout=subprocess.DEVNULL)
    assert (tmp_path / "out").read_bytes() == b"GGUF"


def test_model(laid_out, tmp_path):
    """A model takes its memory, says where its layers went, answers, and gives the memory back at its end."""
    program, env = laid_out
    env["CUDA_VISIBLE_DEVICES"] = "1"
    seed(tmp_path / "models", ["qwen2.5:0.5b"])
    blob = max((tmp_path / "models" / "blobs").iterdir(), key=lambda path: path.stat().st_size)
    port = free_port()
    log = tmp_path / "log"
    with log.open("wb") as file:
        command = [program, "--model", blob, "--port", str(port), "-c", "4096", "-np", "2", "-ub", "512"]
        process = subprocess.Popen(command, env=env, stdout=file, stderr=file)
    try:
        eventually(lambda: _ask(port, "GET", "/health")[0] == 200, ignore=(OSError,), what="it is ready")
        assert "offloaded 25/25 layers to GPU" in log.read_text()
        assert "KV buffer size =    48.00 MiB" in log.read_text()
        first, second = GpuState.load(tmp_path / "state").gpus
        assert first.used_bytes() == 0
        assert second.used_bytes() > 1 << 30
        status, body = _ask(port, "POST", "/completion", {"prompt": "hi [[tokens=2]]", "n_predict": 9})
        events = [json.loads(line[6:]) for line in body.splitlines() if line.startswith("data: ")]
        assert status == 200
        assert [event["content"] for event in events] == ["tok0 ", "tok1 ", ""]
        assert events[-1]["stop_type"] == "eos"
        assert _ask(port, "POST", "/v1/embeddings", {"input": "x"})[0] == 501
    finally:
        process.kill()
        process.wait()
    assert [gpu.used_bytes() for gpu in GpuState.load(tmp_path / "state").gpus] == [0, 0]


def _ask(port, method, path, body=None):
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=10)
    try:
        connection.request(method, path, json.dumps(body) if body else None)
        answer = connection.getresponse()
        return answer.status, answer.read().decode()
    finally:
        connection.close()
