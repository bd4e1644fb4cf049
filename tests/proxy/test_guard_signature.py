"""The stock `ollama` command comes in by its own key: with a signer of ours, and with the real command."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import httpx
import pytest

from tests.proxy.authority import Authority
from tests.proxy.rig import KEYS, MIDDLE, SMALL
from tests.proxy.signer import Signer
from tests.support import eventually

REAL = os.environ.get("OLLAMA_BIN")


@pytest.fixture
def signer(shared):
    """A key pair whose public half is in the shared rig's keys file, for SMALL only."""
    made = Signer()
    entry = {"name": "ann", "ssh": f"{made.line} ann@laptop", "models": [SMALL]}
    count = len(shared.lines("keys_reloaded"))
    shared.write_keys(ann=entry)
    eventually(lambda: len(shared.lines("keys_reloaded")) > count)
    yield made
    shared.write_keys()


def test_a_signed_request_is_served(shared, signer):
    """Lists, answers and streams; the model's permission holds as for any key, and nothing is said of why."""
    chat = {"model": SMALL, "messages": [{"role": "user", "content": "Hello"}], "stream": False}
    with shared.http(None) as http:
        listed = signer.send(http, "GET", "/api/tags")
        answered = signer.send(http, "POST", "/api/chat", json=chat)
        other = signer.send(http, "POST", "/api/generate", json={"model": MIDDLE, "prompt": "Hello"})
        managed = signer.send(http, "DELETE", "/api/delete", json={"model": SMALL})

    assert [model["name"] for model in listed.json()["models"]] == [SMALL]
    assert answered.json()["message"]["content"]
    assert (other.status_code, other.headers["x-drover-error"]) == (403, "model_not_allowed")
    assert (managed.status_code, managed.headers["x-drover-error"]) == (403, "scope_missing")


def test_what_is_wrong_with_a_signature_is_not_told(shared, signer):
    """A stranger's key, another path's or method's signature, another time: each gets the same 401."""
    now = int(time.time())
    path, tags = "/api/tags", signer.authorization("GET", "/api/tags", now)
    wrong = {
        "a stranger": (f"{path}?ts={now}", Signer().authorization("GET", path, now)),
        "another path": (f"/api/ps?ts={now}", tags),
        "another method": (f"{path}?ts={now}", signer.authorization("HEAD", path, now)),
        "another time": (f"{path}?ts={now + 1}", tags),
        "no time": (path, tags),
        "more in the query": (f"{path}?ts={now}&x=1", tags),
        "an hour late": (f"{path}?ts={now - 3600}", signer.authorization("GET", path, now - 3600)),
        "an hour early": (f"{path}?ts={now + 3600}", signer.authorization("GET", path, now + 3600)),
        "half of it": (f"{path}?ts={now}", tags[:-8]),
        "a scheme before it": (f"{path}?ts={now}", f"Bearer {tags}"),
    }
    answers = {}
    for number, (name, (target, shown)) in enumerate(wrong.items()):
        # Tries from one address would slow each other down.
        elsewhere = httpx.HTTPTransport(local_address=f"127.0.9.{number + 1}")
        with shared.http(None, transport=elsewhere) as http:
            answers[name] = http.get(target, headers={"authorization": shown})
    with shared.http(None) as http:
        nobody = http.get(path, headers={"authorization": "Bearer drv_unknown"})
        still = signer.send(http, "GET", path)

    for name, answer in answers.items():
        assert answer.status_code == 401, name
        assert answer.content == nobody.content, name
    assert still.status_code == 200
    reasons = {line["why"] for line in shared.lines("rejected") if "why" in line}
    assert {"key_unknown", "signature_wrong", "signature_without_time", "signature_clock"} <= reasons


def test_a_signature_is_not_good_for_ever(shared, signer):
    """The command's own repetition within a second is taken; what comes again later is a replay."""
    stamp = int(time.time())
    headers = {"authorization": signer.authorization("GET", "/api/tags", stamp)}
    with shared.http(None) as http:

        def status():
            return http.get(f"/api/tags?ts={stamp}", headers=headers).status_code

        assert [status() for _ in range(3)] == [200, 200, 200]
        eventually(lambda: status() == 401, timeout=10, every=0.5)
    assert shared.lines("rejected")[-1]["why"] == "signature_replayed"


@pytest.mark.parametrize("end", [signal.SIGTERM, signal.SIGKILL], ids=["told", "killed"])
def test_a_signature_is_used_once_over_a_reboot(make_rig, end):
    """Nothing is left of the process and of what a reboot empties: what was taken is refused all the same."""
    rig, signer = make_rig().start(), Signer()
    rig.write_keys(ann={"name": "ann", "ssh": signer.line})
    eventually(lambda: rig.lines("keys_reloaded"))
    stamp = int(time.time())

    def ask(http, path):
        return signer.send(http, "GET", path, stamp=stamp).status_code

    with rig.http(None) as http:
        assert ask(http, "/api/tags") == 200
    if end is signal.SIGKILL:  # as when the power is cut
        eventually(lambda: sum(file.stat().st_size for file in rig.folder.glob("signed-*")) > 0)
    rig.signal(end)
    rig.proxy.wait(10)
    rig.start_proxy()
    with rig.http(None) as http:
        assert ask(http, "/api/tags") == 401
        assert ask(http, "/api/ps") == 200
    assert {line["why"] for line in rig.lines("rejected")} == {"signature_replayed"}
    assert not rig.lines("signatures_not_kept")


@pytest.mark.skipif(not REAL, reason="OLLAMA_BIN names no ollama: set it to the path of a real one")
@pytest.mark.timeout(180)
def test_the_real_command_works_as_it_is(make_rig, tmp_path):
    """`ollama run`, `list`, `show`, `ps`, `cp`, `rm` with OLLAMA_AUTH=1 over https, and nobody else's."""
    home = tmp_path / "home"
    (home / ".ollama").mkdir(parents=True)
    key = home / ".ollama" / "id_ed25519"
    subprocess.run([shutil.which("ssh-keygen"), "-q", "-t", "ed25519", "-N", "", "-f", str(key)], check=True)
    authority = Authority(tmp_path)
    rig = make_rig(slots=2)
    rig.ollama_program = lambda: [sys.executable, "-m", "lab.ollama"]  # the command is what is tested
    authority.furnish(rig)
    entry = {"name": "ann", "ssh": Path(f"{key}.pub").read_text().strip(), "scopes": ["admin"]}
    rig.write_keys(ann=entry)
    rig.start()
    environment = {
        "PATH": os.environ["PATH"],
        "HOME": str(home),
        "OLLAMA_AUTH": "1",
        "OLLAMA_HOST": f"https://localhost:{rig.port}",
        "SSL_CERT_FILE": str(authority.file),
    }

    def command(*words, **more):
        return subprocess.run(
            [REAL, *words], env=environment | more, capture_output=True, text=True, timeout=60, check=False
        )

    for _ in range(2):  # the second one finds the model warm: all its requests fall into one second
        done = command("run", SMALL, "Say hello")
        assert done.returncode == 0, done.stderr
        assert done.stdout.strip()
    assert SMALL in command("list").stdout
    assert "llama" in command("show", SMALL).stdout
    assert SMALL in command("ps").stdout
    (tmp_path / "Modelfile").write_text(f"FROM {SMALL}\nPARAMETER temperature 0\n")
    created = command("create", "mine", "-f", str(tmp_path / "Modelfile"))
    assert created.returncode == 0, created.stderr
    for copy in ("one", "two"):
        assert command("cp", SMALL, copy).returncode == 0
    assert command("rm", "one", "two").returncode == 0
    assert {line.get("key", "") for line in rig.lines("access")} == {
        "ann",
        "",
    }  # HEAD / is asked without a key
    rejected = rig.lines("rejected")
    assert not [line for line in rejected if line["status"] == 401], rejected

    stranger = tmp_path / "stranger"
    (stranger / ".ollama").mkdir(parents=True)
    theirs = stranger / ".ollama" / "id_ed25519"
    subprocess.run(
        [shutil.which("ssh-keygen"), "-q", "-t", "ed25519", "-N", "", "-f", str(theirs)], check=True
    )
    assert command("list", HOME=str(stranger)).returncode != 0
    assert command("list", OLLAMA_AUTH="0").returncode != 0
    for secret in (KEYS["use"], entry["ssh"].split()[1]):
        assert secret not in rig.log.read_text()
