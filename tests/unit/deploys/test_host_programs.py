"""The programs that run on a host: the gate before Ollama, the check after it, and the warm-up."""

from __future__ import annotations

import http.server
import importlib.util
import json
import os
import subprocess
import sys
import threading
from pathlib import Path

import pytest

TEMPLATES = Path(__file__).resolve().parents[3] / "templates"


def load(layer, name):
    """Import a program of the templates."""
    spec = importlib.util.spec_from_file_location(name, TEMPLATES / layer / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def gate(tmp_path, monkeypatch):
    """The gate, with device nodes of the test."""
    module = load("ollama", "ollama_gate")
    nodes = [tmp_path / "nvidiactl", tmp_path / "nvidia-uvm"]
    monkeypatch.setattr(module, "NODES", tuple(map(str, nodes)))
    monkeypatch.setattr(module, "NVSWITCH", str(tmp_path / "nvswitch"))
    for node in nodes:
        node.touch()
    return module


def test_the_gate_opens_when_all_gpus_answer(gate, monkeypatch, tmp_path):
    """Every GPU of the instance must be in the listing; with NVSwitch the fabric must be ready."""
    monkeypatch.setattr(gate, "smi", lambda *_: ("GPU 0: L4 (UUID: GPU-a)\nGPU 1: L4 (UUID: GPU-b)", ""))
    assert gate.missing(["GPU-a", "GPU-b"]) == ""
    assert gate.missing(["GPU-c"]) == "GPU-c not among the GPUs that answer"

    (tmp_path / "nvswitch").touch()
    monkeypatch.setattr(gate, "smi", lambda *words: ("GPU-a" if "-L" in words else "In Progress\n", ""))
    assert "fabric isn't ready" in gate.missing(["GPU-a"])


def test_the_gate_says_what_is_missing_and_gives_up_in_time(gate, monkeypatch, capsys, tmp_path):
    """One line on stderr with the reason and the next command."""
    (tmp_path / "nvidia-uvm").unlink()
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "GPU-a")
    monkeypatch.setenv("DROVER_GATE_SECONDS", "0")

    assert gate.main() == 1
    said = capsys.readouterr().err
    assert "nvidia-uvm missing, so the driver is not loaded. Next: nvidia-smi -L" in said


def test_the_gate_starts_over_when_the_driver_comes_late(gate, monkeypatch, capsys, tmp_path):
    """A sandbox made before the devices were there doesn't let them in, so waiting on would be in vain."""
    (tmp_path / "nvidiactl").unlink()
    monkeypatch.setattr(gate.time, "sleep", lambda _: (tmp_path / "nvidiactl").touch())
    monkeypatch.setattr(gate, "smi", lambda *_: ("", "No devices were found"))
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "GPU-a")

    assert gate.main() == 1
    assert "starting over" in capsys.readouterr().err


@pytest.fixture
def check(tmp_path, monkeypatch):
    """The check, on a host whose answers the test sets."""
    module = load("ollama", "ollama_check")
    (tmp_path / "gpu0.env").write_text("# x\nCUDA_VISIBLE_DEVICES=GPU-a,GPU-b\nOLLAMA_HOST=127.0.0.1:1\n")
    (tmp_path / "current").symlink_to("0.33.0")
    monkeypatch.setattr(module, "FOLDER", tmp_path)
    monkeypatch.setattr(module, "CURRENT", tmp_path / "current")
    module.state = {
        "ActiveState": "active",
        "MainPID": "1",
        "InvocationID": "i",
        "Environment": 'A="b c" D=e',
    }
    module.process = {
        "A": "b c",
        "D": "e",
        "CUDA_VISIBLE_DEVICES": "GPU-a,GPU-b",
        "OLLAMA_HOST": "127.0.0.1:1",
    }
    module.journal = 'msg="inference compute" library=CUDA\nmsg="inference compute" library=CUDA\n'

    def run(program, *_):
        if program == "systemctl":
            return "".join(f"{key}={value}\n" for key, value in module.state.items())
        return module.journal

    module.state["Environment"] = '"A=b c" D=e'
    monkeypatch.setattr(module, "run", run)
    monkeypatch.setattr(module, "environment", lambda _pid: module.process)
    monkeypatch.setattr(module, "answered_version", lambda _address: "0.33.0")
    return module


def test_an_instance_that_runs_as_laid_passes(check):
    """Settings, version and GPUs are all as wanted."""
    assert check.main() == 0


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        (lambda it: it.state.update(ActiveState="failed"), "ollama@gpu0.service is failed"),
        (lambda it: it.process.update(D="f"), "D is 'f' in the process, 'e' is wanted"),
        (lambda it: it.process.pop("OLLAMA_HOST"), "OLLAMA_HOST is None in the process"),
        (lambda it: setattr(it, "answered_version", lambda _: "0.32.15"), "answers version 0.32.15"),
        (lambda it: setattr(it, "journal", 'msg="inference compute" library=cpu'), "found 0 of its 2 GPU(s)"),
    ],
)
def test_what_does_not_hold_is_named(check, damage, said, capsys):
    """One line each, with the unit and the next command."""
    damage(check)

    assert check.main() == 1
    line = capsys.readouterr().err
    assert said in line
    assert "Next: journalctl -u 'ollama@gpu0.service'" in line


def test_a_journal_that_was_rotated_is_no_evidence(check):
    """A server that runs for months isn't failed because its first lines are gone."""
    check.journal = "later lines\n"

    assert check.main() == 0


class Admin(http.server.BaseHTTPRequestHandler):
    """The proxy's admin address and an Ollama in one, answering from a script."""

    def do_GET(self):  # noqa: N802 - http.server's name
        self.answer(200, {"models": [{"name": name} for name in self.server.loaded]})

    def do_POST(self):  # noqa: N802 - http.server's name
        model = json.loads(self.rfile.read(int(self.headers["Content-Length"])))["models"][0]
        self.server.asked.append(model)
        if model == "huge":
            self.answer(503, {"models": [{"model": model, "ok": False, "message": "it doesn't fit"}]})
            return
        if len(self.server.asked) >= self.server.loads_at:
            self.server.loaded.append(model)
        self.answer(200, {"models": [{"model": model, "ok": True, "instance": "gpu0", "seconds": 0.1}]})

    def answer(self, status, content):
        body = json.dumps(content).encode()
        self.send_response(status)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_):
        """Say nothing."""


@pytest.fixture
def warmup(tmp_path):
    """Run the warm-up against a scripted proxy."""
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Admin)
    server.asked, server.loaded, server.loads_at = [], [], 1
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    address = f"127.0.0.1:{server.server_address[1]}"
    (tmp_path / "started").mkdir()
    (tmp_path / "started" / "ollama@gpu0.service").write_text("x")
    (tmp_path / "gpu0.env").write_text(f"OLLAMA_HOST={address}\n")

    def run(command, *models):
        (tmp_path / "warmup.json").write_text(json.dumps({"admin": f"http://{address}", "models": models}))
        env = {
            **os.environ, "DROVER_WARMUP": str(tmp_path / "warmup.json"), "DROVER_INSTANCES": str(tmp_path),
            "DROVER_WARMED": str(tmp_path / "done.json"), "DROVER_STARTED": str(tmp_path / "started"),
        }  # fmt: skip
        return subprocess.run(
            [sys.executable, TEMPLATES / "proxy" / "warmup.py", command],
            env=env, capture_output=True, text=True, check=False,
        )  # fmt: skip

    run.server, run.started = server, tmp_path / "started" / "ollama@gpu0.service"
    yield run
    server.shutdown()
    server.server_close()
    thread.join()


def test_the_warm_up_is_done_until_an_instance_starts_again(warmup):
    """Loaded in order; done for these instances and these models, and not for others."""
    assert warmup("check", "a", "b").returncode == 1
    done = warmup("load", "a", "b")
    assert done.returncode == 0, done.stderr
    assert warmup.server.asked == ["a", "b"]
    assert warmup("check", "a", "b").returncode == 0
    assert warmup("check", "a").returncode == 1

    os.utime(warmup.started, ns=(1, 1))
    assert warmup("check", "a", "b").returncode == 1


def test_the_warm_up_asks_again_until_ollama_lists_the_model(warmup):
    """The proxy may not have heard yet that an instance was restarted."""
    warmup.server.loads_at = 3

    assert warmup("load", "a").returncode == 0
    assert warmup.server.asked == ["a", "a", "a"]


def test_a_model_that_cannot_be_loaded_is_named_and_the_others_are(warmup):
    """The exit code fails the unit, which tries again later."""
    done = warmup("load", "huge", "a")

    assert done.returncode == 1
    assert "huge could not be loaded: it doesn't fit" in done.stderr
    assert "a is warm on gpu0" in done.stdout
    assert warmup("check", "huge", "a").returncode == 1
