"""The whole of deploys/site.py on three unequal hosts, and what an operator does after it.

The session's lab is provisioned once; each test leaves it as it found it, so that they run in any order.
"""

from __future__ import annotations

import hashlib
import json
import urllib.error
import urllib.request
from contextlib import contextmanager
from pathlib import Path

import pytest
import yaml

from lab.fleet import read_secrets
from tests.lab.conftest import SUITE_LAB
from tests.support import eventually

WARM, COLD = "llama3.2:3b", "llama3.1:8b"
OLD, NEW = "0.32.15", "0.33.0"


class Door:
    """What a client sees of a host: its address and a key."""

    def __init__(self, address, key):
        self.url = f"http://{address}:8080"
        self.key = key

    def ask(self, path, body=None, key=None):
        """Return status, headers and JSON of an answer."""
        request = urllib.request.Request(
            self.url + path,
            data=None if body is None else json.dumps(body).encode(),
            headers={"Content-Type": "application/json", "Authorization": f"Bearer {key or self.key}"},
        )
        try:
            with urllib.request.urlopen(request, timeout=60) as answer:
                return answer.status, dict(answer.headers), json.load(answer)
        except urllib.error.HTTPError as error:
            return error.code, dict(error.headers), json.load(error)

    def chat(self, model):
        """Chat as OpenAI's clients do; return status, headers and the text."""
        status, headers, answer = self.ask(
            "/v1/chat/completions", {"model": model, "messages": [{"role": "user", "content": "Hello?"}]}
        )
        text = answer["choices"][0]["message"]["content"] if status == 200 else json.dumps(answer)
        return status, {name.lower(): value for name, value in headers.items()}, text

    def loaded(self):
        """Return the models in the GPUs that are wholly there."""
        found = self.ask("/api/ps")[2]["models"]
        return {entry["name"] for entry in found if entry["size_vram"] == entry["size"]}


@pytest.fixture
def doors(lab, site):
    """A door a host, by the host's short name."""
    assert site["first"].rc == 0, site["first"].output[-4000:]
    key = read_secrets(SUITE_LAB)["use"]
    return {host.short_name: Door(host.address, key) for host in lab.hosts}


@pytest.fixture
def host_c(lab, site):
    """The host with one GPU."""
    return next(host for host in lab.hosts if host.short_name == "c")


@contextmanager
def host_vars(fleet_dir: Path, host, **variables):
    """Give one host variables of its own for a while."""
    file = fleet_dir / "host_vars" / f"{host.name}.yml"
    file.parent.mkdir(exist_ok=True)
    file.write_text(yaml.safe_dump(variables))
    try:
        yield
    finally:
        file.unlink()


def digest_of(fleet_dir, version):
    """Return the SHA-256 of a release in the lab's mirror."""
    variables = yaml.safe_load((fleet_dir / "group_vars/all/lab.yml").read_text())
    with urllib.request.urlopen(f"{variables['mirror_url']}/mirror.json", timeout=10) as answer:
        return json.load(answer)["ollama"][version]["sha256"]


def changes_of(done):
    """Return the operations of a run that changed something."""
    lines = [line.strip() for line in done.stderr.splitlines()]
    return [
        lines[max(i for i in range(index) if "Starting operation" in lines[i])]
        for index, line in enumerate(lines)
        if line.endswith("Success")
    ]


def version_of(host):
    """Return the version that the host's first instance answers."""
    return json.loads(host.run("curl -s http://127.0.0.1:11434/api/version").stdout)["version"]


def test_a_dry_run_on_bare_hosts_plans_everything(site):
    """`--dry` works where nothing is yet, and names every layer."""
    plan = site["plan"]
    assert plan.rc == 0, plan.output[-3000:]
    layers = {step["name"].split(" | ")[0] for step in json.loads(plan.stdout)["plan"]}
    assert layers >= {"nvidia_driver", "container_toolkit", "ollama", "models", "proxy", "monitoring"}


def test_the_first_run_serves_on_every_host(lab, site, doors):
    """A chat comes through each door, from a GPU instance; the model marked warm is already loaded."""
    for name, door in doors.items():
        assert WARM in door.loaded(), name
        status, headers, text = door.chat(WARM)
        assert status == 200, text
        assert text
        assert headers["x-drover-instance"].startswith("gpu")
    for host in lab.hosts:
        metrics = host.run("curl -fs http://127.0.0.1:8081/metrics").stdout
        assert "# TYPE drover_" in metrics
        record = json.loads(host.run("cat /var/lib/drover/record/ollama.json").stdout)
        assert len(record["instances"]) == len(record["gpus"]) == len(host.gpus)
        assert not host.failed_units()


def test_each_unit_was_started_once(lab, doors):
    """The first run starts what it lays when all of it lies there, and doesn't restart it."""
    host = next(host for host in lab.hosts if host.short_name == "b")
    for unit in ("ollama@gpu0", "ollama@gpu3", "drover-proxy"):
        journal = host.run(f"journalctl -o cat -u {unit}.service").stdout
        assert journal.count(f"Started {unit}.service") == 1, journal[-2000:]


def test_a_door_asks_for_a_key(doors):
    """A wrong key is refused with 401, in the shape of the dialect that was spoken."""
    status, _, answer = doors["a"].ask("/v1/models", key="drv_wrong")
    assert status == 401
    assert answer["error"]["message"]


def test_a_changed_key_counts_without_a_restart(lab, fleet_dir, host_c, doors, run_pyinfra):
    """What a deploy lays, and what the command writes on the host, counts at once; the proxy runs on."""
    known = read_secrets(SUITE_LAB)["use"]
    entries = [
        {"name": name, "sha256": hashlib.sha256(key.encode()).hexdigest()}
        for name, key in (("demo", known), ("late", "drv_late-key"))
    ]
    life = "systemctl show -p MainPID,NRestarts,ActiveEnterTimestampMonotonic drover-proxy"
    before = host_c.run(life).stdout

    def status(key):
        return doors["c"].ask("/api/tags", key=key)[0]

    assert status("drv_late-key") == 401
    with host_vars(fleet_dir, host_c, proxy_keys=entries):
        done = run_pyinfra("--limit", host_c.name, deploy="deploys/proxy.py")
        assert done.rc == 0, done.output[-3000:]
        assert eventually(lambda: status("drv_late-key") == 200)
        made = host_c.run("/opt/drover/proxy/current/bin/drover-proxy keys add by-hand").stdout.strip()
        assert eventually(lambda: status(made) == 200)
        laid = host_c.run("stat -c '%a %U %G' /etc/drover/keys.yaml").stdout.strip()
        assert laid == "640 root drover-proxy"
    done = run_pyinfra("--limit", host_c.name, deploy="deploys/proxy.py")
    assert done.rc == 0, done.output[-3000:]
    assert eventually(lambda: status("drv_late-key") == 401)

    assert status(known) == 200
    assert host_c.run(life).stdout == before


def test_a_second_run_changes_nothing(site, doors, run_pyinfra):
    """By the run's own count."""
    again = run_pyinfra("--json")
    assert again.rc == 0, again.output[-3000:]
    totals = json.loads(again.stdout)["results"]["totals"]
    assert totals["success"] == 0, changes_of(again)


def test_ollama_is_not_reachable_from_outside(lab, site, doors):
    """Only the proxy's door is open to the network."""
    with pytest.raises(urllib.error.URLError, match="refused"):
        urllib.request.urlopen(f"http://{lab.hosts[0].address}:11434/api/version", timeout=5)


def test_a_wrong_checksum_is_refused_and_the_old_version_serves(fleet_dir, host_c, doors, run_pyinfra):
    """Nothing of an archive with another digest is unpacked; the host goes on as it was."""
    before = unpacked(host_c)
    with host_vars(fleet_dir, host_c, ollama_version=OLD, ollama_archive_sha256="0" * 64):
        done = run_pyinfra("--limit", host_c.name, deploy="deploys/ollama.py")

    assert done.rc != 0
    assert f"expected SHA-256 {'0' * 64}" in done.output
    assert "nothing was put in place" in done.output
    assert version_of(host_c) == NEW
    assert unpacked(host_c) == before
    assert doors["c"].chat(WARM)[0] == 200


def unpacked(host):
    """Return every release on the host's disk, with the time at which its folder was last changed."""
    return host.run("stat -c '%n %Y' /opt/drover/ollama/*").stdout.splitlines()


@pytest.mark.timeout(180)
def test_changing_the_variable_changes_the_version_there_and_back(fleet_dir, host_c, doors, run_pyinfra):
    """The older release comes in beside the newer one, by way of the controller; back needs no fetch."""
    older = {"ollama_version": OLD, "ollama_archive_sha256": digest_of(fleet_dir, OLD)}
    with host_vars(fleet_dir, host_c, **older, ollama_fetch="controller", ollama_kv_cache_type="q8_0"):
        done = run_pyinfra("--limit", host_c.name, deploy="deploys/ollama.py")
        assert done.rc == 0, done.output[-3000:]
        assert version_of(host_c) == OLD
        assert "OLLAMA_KV_CACHE_TYPE=q8_0" in host_c.run("systemctl show -p Environment ollama@gpu0").stdout
        assert eventually(lambda: doors["c"].chat(WARM)[0] == 200, timeout=30)

    done = run_pyinfra("--limit", host_c.name, deploy="deploys/ollama.py")
    assert done.rc == 0, done.output[-3000:]
    assert version_of(host_c) == NEW
    assert {OLD, NEW} <= set(host_c.run("ls /opt/drover/ollama").stdout.split())
    # The proxy hears of the restart, and the warm-up runs again by itself.
    assert eventually(lambda: WARM in doors["c"].loaded(), timeout=60)


@pytest.mark.timeout(180)
def test_a_host_comes_back_from_a_reboot_served_and_warm(host_c, doors):
    """Nobody has to do anything: driver, instances, proxy and warm model come back, and boot ends."""
    host_c.reboot()

    assert eventually(
        lambda: WARM in doors["c"].loaded(), timeout=90, every=0.5, ignore=(OSError, KeyError, ValueError)
    )
    assert doors["c"].chat(WARM)[0] == 200
    assert eventually(
        lambda: host_c.run("systemctl is-system-running", check=False).stdout.strip() == "running", timeout=30
    ), host_c.failed_units()


def test_a_changed_model_is_made_again_and_the_others_are_left(fleet_dir, host_c, doors, run_pyinfra):
    """Parameters and system message reach Ollama; a wrong type is refused before anything is touched."""
    mine = {"name": "mine", "from": WARM, "parameters": {"num_ctx": 2048}, "system": "Be brief."}
    with host_vars(fleet_dir, host_c, models_list=[{"name": WARM, "warm": True}, mine]):
        done = run_pyinfra("--limit", host_c.name, deploy="deploys/models.py")
    assert done.rc == 0, done.output[-3000:]
    show = json.loads(host_c.run('curl -s http://127.0.0.1:11434/api/show -d \'{"model": "mine"}\'').stdout)
    assert show["system"] == "Be brief."
    assert show["parameters"].split() == ["num_ctx", "2048"] or "num_ctx" in show["parameters"]
    assert "PARAMETER num_ctx 2048" in host_c.run("cat /etc/drover/models/mine.Modelfile").stdout

    wrong = {**mine, "parameters": {"num_ctx": "2048"}}
    with host_vars(fleet_dir, host_c, models_list=[wrong]):
        refused = run_pyinfra("--limit", host_c.name, deploy="deploys/models.py")
    assert refused.rc != 0
    assert "models_list[mine].parameters.num_ctx" in refused.output
    assert "Connecting to hosts" not in refused.output
    assert run_pyinfra("--limit", host_c.name, deploy="deploys/models.py").rc == 0
