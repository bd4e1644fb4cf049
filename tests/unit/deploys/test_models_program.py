"""The program that makes a host's models, run against the simulated Ollama and a registry on loopback."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
import urllib.request
from pathlib import Path

import pytest

from lab.ollama.registry import Faults, Registry, serve
from tests.support import eventually, free_port

PROJECT = Path(__file__).resolve().parents[3]
PROGRAM = PROJECT / "templates" / "models" / "models.py"
EMBED = "nomic-embed-text"


class Recorder(Registry):
    """A registry that counts what it is asked, and can fail."""

    asked: list[str]

    def handle(self, method, path, headers):
        self.asked.append(path)
        return super().handle(method, path, headers)


class Host:
    """A server without models, a registry, and the program between them."""

    def __init__(self, folder: Path, port: int, registry: Recorder, registry_port: int) -> None:
        self.folder = folder
        self.port = port
        self.registry = registry
        self.source = f"127.0.0.1:{registry_port}/library"

    def model(self, name, **more):
        """Return a wanted model with everything filled in."""
        return {
            "name": name, "source": f"{self.source}/{EMBED}", "insecure": True, "parameters": {},
            "system": "", "template": "", "warm": False, **more,
        }  # fmt: skip

    def run(self, *arguments, wanted):
        """Run the program for these models."""
        file = self.folder / "models.json"
        file.write_text(json.dumps({"api": f"http://127.0.0.1:{self.port}", "models": wanted}))
        env = {
            **os.environ,
            "DROVER_MODELS": str(file),
            "DROVER_MODELS_MADE": str(self.folder / "made.json"),
        }
        return subprocess.run(
            [sys.executable, PROGRAM, *arguments], env=env, capture_output=True, text=True, check=False
        )

    def plan(self, *wanted):
        """Return what the program would do, as name to reason."""
        done = self.run("plan", wanted=wanted)
        assert done.returncode == 0, done.stderr
        return {entry["name"]: entry["why"] for entry in json.loads(done.stdout)}

    def apply(self, *wanted):
        """Have the models made."""
        done = self.run("apply", wanted=wanted)
        assert done.returncode == 0, done.stderr
        return done.stdout

    def call(self, method, path, body=None):
        """Ask the server."""
        data = None if body is None else json.dumps(body).encode()
        request = urllib.request.Request(f"http://127.0.0.1:{self.port}{path}", data=data, method=method)
        with urllib.request.urlopen(request, timeout=10) as answer:
            text = answer.read()
        return json.loads(text) if text.strip() else {}

    def names(self):
        """Return the models of the server."""
        return sorted(entry["name"] for entry in self.call("GET", "/api/tags")["models"])


@pytest.fixture
def host(tmp_path):
    """A host with an empty Ollama."""
    registry = Recorder(Faults())
    registry.asked = []
    server = serve(registry, "127.0.0.1", 0)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    port = free_port()
    env = {
        **os.environ,
        "OLLAMA_HOST": f"127.0.0.1:{port}",
        "OLLAMA_MODELS": str(tmp_path / "models"),
        "HOME": str(tmp_path),
        "LABGPU_STATE": str(tmp_path / "none"),
    }
    with subprocess.Popen(
        [sys.executable, "-m", "lab.ollama", "serve"],
        cwd=PROJECT, env=env, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
    ) as ollama:  # fmt: skip
        made = Host(tmp_path, port, registry, server.server_address[1])
        eventually(lambda: made.call("GET", "/api/version"), ignore=(OSError,), timeout=20)
        yield made
        ollama.terminate()
    server.shutdown()
    server.server_close()
    thread.join()


def test_a_model_that_is_absent_is_pulled_and_named_as_wanted(host):
    """After the first run the model is there under its own name only, and nothing is left to do."""
    wanted = host.model("embedder")
    assert host.plan(wanted) == {"embedder": "it isn't there"}

    output = host.apply(wanted)

    assert "success" in output
    assert host.names() == ["embedder:latest"]
    assert host.plan(wanted) == {}
    asked = len(host.registry.asked)
    assert host.apply(wanted) == ""
    assert len(host.registry.asked) == asked, "a second run doesn't even ask the registry"


def test_parameters_system_and_template_are_laid_over_the_model(host):
    """Numbers, lists and texts arrive in their true types, and are found again in any order."""
    wanted = host.model(
        "mine",
        parameters={"num_ctx": 4096, "temperature": 0.3, "stop": ["<a>", 'say "b"'], "use_mmap": True},
        system="Be brief.",
        template="{{ .Prompt }}",
    )
    host.apply(wanted)

    assert host.plan(wanted) == {}
    changed = {**wanted, "parameters": {**wanted["parameters"], "num_ctx": 8192}}
    assert host.plan(changed) == {"mine": "its definition changed"}
    host.apply(changed)
    assert host.plan(changed) == {}


def test_what_somebody_else_changed_is_made_again(host):
    """The digest tells, also when the parameters asked for are still there."""
    wanted = host.model("mine", parameters={"num_ctx": 4096})
    host.apply(wanted)
    host.call("POST", "/api/create", {"model": "mine", "from": "mine", "system": "Be rude.", "stream": False})

    assert host.plan(wanted) == {"mine": "somebody else changed it"}
    host.apply(wanted)
    assert host.plan(wanted) == {}
    assert "rude" not in host.call("POST", "/api/show", {"model": "mine"}).get("system", "")


def test_a_model_of_other_making_is_taken_as_it_is_when_it_fits(host):
    """Models that were copied onto an air-gapped host aren't pulled again."""
    host.apply(host.model("there"))
    (host.folder / "made.json").unlink()

    assert host.plan(host.model("there")) == {}
    assert host.plan(host.model("there", parameters={"num_ctx": 4096})) == {
        "there": "num_ctx is 8192, 4096 is wanted"
    }


def test_a_pull_that_fails_leaves_the_old_model(host):
    """The error is inside a 200; it is seen, named, and what was there stays."""
    host.apply(host.model("mine", parameters={"num_ctx": 4096}))
    before = host.call("GET", "/api/tags")
    broken = host.model("mine", source=f"{host.source}/nosuchmodel", parameters={"num_ctx": 8192})

    done = host.run("apply", wanted=[broken])

    assert done.returncode == 1
    assert "models.py: mine: pull model manifest: file does not exist" in done.stderr
    assert host.call("GET", "/api/tags") == before


def test_a_server_that_is_away_is_named(host):
    """Without Ollama the program says whom it asked, and fails."""
    host.port = free_port()
    done = host.run("plan", wanted=[host.model("mine")])
    assert done.returncode == 1
    assert f"http://127.0.0.1:{host.port} doesn't answer" in done.stderr
