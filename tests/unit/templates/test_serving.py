"""What the templates of Ollama, the models, the proxy and the monitoring become, and what takes them."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from pathlib import Path

import pytest
import yaml
from drover_proxy.config.load import parse
from drover_proxy.guard.keys import read_keys

from deploys.lib.model_list import all_filled
from deploys.lib.templates import TEMPLATES, render
from drover.variables import load_defaults

INSTANCES = [
    {"name": "gpu0", "port": 11434, "gpus": ["GPU-aaaa"]},
    {"name": "spread", "port": 11533, "gpus": ["GPU-aaaa", "GPU-bbbb"]},
]
MODELS = [
    {"name": "llama3.2:3b", "warm": True},
    {
        "name": "acme/coder",
        "from": "qwen2.5:7b",
        "parameters": {"num_ctx": 16384, "temperature": 0, "stop": ["<|a|>", 'say "b"'], "use_mmap": False},
        "system": "Be brief.\nBe right.",
        "pin": True,
        "slots": 1,
        "priority": 5,
        "aliases": ["coder"],
    },
]
UNITS = (
    ("ollama", "ollama@.service"),
    ("proxy", "drover-proxy.socket"),
    ("proxy", "drover-proxy.service"),
    ("proxy", "drover-warmup.service"),
)


def made(layer, name, **extra):
    """Render a template with the defaults and what a test adds."""
    return render(layer, name, {**load_defaults(), **extra})


def settings(text):
    """Return the variables of a drop-in's Environment lines."""
    lines = [line for line in text.splitlines() if line.startswith("Environment=")]
    return dict(line.removeprefix('Environment="').removesuffix('"').partition("=")[::2] for line in lines)


def test_the_settings_of_ollama_by_default():
    """Each setting is there once, in Ollama's own words; what is left to Ollama isn't set."""
    assert settings(made("ollama", "10-drover.conf.j2")) == {
        "HOME": "/var/lib/ollama",
        "CUDA_DEVICE_ORDER": "PCI_BUS_ID",
        "OLLAMA_MODELS": "/var/lib/ollama/models",
        "OLLAMA_NOPRUNE": "1",
        "OLLAMA_NUM_PARALLEL": "2",
        "OLLAMA_CONTEXT_LENGTH": "8192",
        "OLLAMA_KV_CACHE_TYPE": "f16",
        "OLLAMA_KEEP_ALIVE": "-1",
        "OLLAMA_LOAD_TIMEOUT": "10m",
        "OLLAMA_MAX_QUEUE": "512",
        "OLLAMA_MAX_LOADED_MODELS": "64",
        "LLAMA_ARG_FIT_TARGET": "1024",
        "LLAMA_ARG_CACHE_RAM": "1024",
        "OLLAMA_VULKAN": "0",
        "OLLAMA_NO_CLOUD": "1",
    }


def test_settings_with_signs_that_systemd_reads():
    """Quotes, backslashes and percent signs reach Ollama as they were meant; booleans as 1 and 0."""
    text = made(
        "ollama",
        "10-drover.conf.j2",
        ollama_env={"B": True, "A": 'a "b" \\ 100%', "N": 3},
        ollama_flash_attention="disabled",
        ollama_context_length=0,
    )

    assert 'Environment="A=a \\"b\\" \\\\ 100%%"' in text
    assert settings(text)["B"] == "1"
    assert settings(text)["N"] == "3"
    assert settings(text)["OLLAMA_FLASH_ATTENTION"] == "0"
    assert "OLLAMA_CONTEXT_LENGTH" not in settings(text)


def test_an_instance_is_bound_by_uuid():
    """Its file names its GPUs and its port, on loopback."""
    lines = made("ollama", "instance.env.j2", instance=INSTANCES[1]).splitlines()

    assert "CUDA_VISIBLE_DEVICES=GPU-aaaa,GPU-bbbb" in lines
    assert "OLLAMA_HOST=127.0.0.1:11533" in lines


def test_a_modelfile_says_what_the_api_is_told():
    """In Ollama's grammar: a list repeats its line, texts of several lines stand in three quotes."""
    model = all_filled({**load_defaults(), "models_list": MODELS})[1]

    assert made("models", "Modelfile.j2", model=model).splitlines()[1:] == [
        "FROM qwen2.5:7b",
        "PARAMETER num_ctx 16384",
        'PARAMETER stop "<|a|>"',
        'PARAMETER stop "say \\"b\\""',
        "PARAMETER temperature 0",
        "PARAMETER use_mmap false",
        'SYSTEM """Be brief.',
        'Be right."""',
    ]


@pytest.mark.parametrize(
    "listen", ["127.0.0.1:8081", "0.0.0.0:8081", "10.0.0.5:9000"], ids=["loopback", "all", "own"]
)
def test_the_proxy_takes_its_settings(listen):
    """The proxy's own reader accepts the file; loopback always reaches the admin address."""
    config = parse(
        made(
            "proxy",
            "proxy.yaml.j2",
            instances=INSTANCES,
            models_list=MODELS,
            monitoring_listen=listen,
            ollama_kv_cache_type="q8_0",
        )
    )

    assert [one.name for one in config.instances] == ["gpu0", "spread"]
    assert config.instances[1].gpus == ("GPU-aaaa", "GPU-bbbb")
    assert (config.instances[0].slots, config.instances[0].kv_type) == (2, "q8_0")
    coder = next(model for name, model in config.models.items() if "coder" in name)
    assert (coder.context, coder.slots, coder.pin, coder.priority) == (16384, 1, True, 5)
    assert config.loads.reserve_bytes == 1024 << 20
    assert {"127.0.0.1", "0.0.0.0"} & {address.host for address in config.admin_listen}
    assert config.auth.keys_file == "/etc/drover/keys.yaml"


def test_the_proxy_takes_its_settings_without_models():
    """An empty list of models is still a mapping."""
    assert parse(made("proxy", "proxy.yaml.j2", instances=INSTANCES, models_list=[])).models == {}


def test_the_proxy_takes_its_keys():
    """The keys file holds what the vault held: names, hashes, scopes."""
    keys = [
        {"name": "demo", "sha256": "a" * 64, "scopes": ["use"], "models": ["*"]},
        {"name": "ci", "sha256": "b" * 64, "expires": "2099-01-31"},
        {"name": "ann", "ssh": f"ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAI{'A' * 43} ann@laptop: #1"},
        {"name": "worker", "certificate": "cn:worker 7", "scopes": ["admin"]},
    ]
    text = made("proxy", "keys.yaml.j2", proxy_keys=keys)

    assert yaml.safe_load(text)["keys"] == keys
    assert {caller.name for caller in read_keys(text, "keys.yaml")} == {"demo", "ci", "ann", "worker"}


def test_what_a_reload_puts_in_force_restarts_nothing():
    """All files that the proxy's settings name, and these; another release takes a restart."""
    unit = made("proxy", "drover-proxy.service.j2", proxy_keys=[])
    tls = {"proxy_tls_cert": "PEM", "proxy_tls_key": "PEM", "proxy_tls_client_ca": "PEM"}
    config = parse(made("proxy", "proxy.yaml.j2", instances=INSTANCES, models_list=[], **tls))

    files = {config.tls.cert, config.tls.key, config.tls.client_ca, config.auth.keys_file}
    assert set(re.findall("^Reload=(.*)", unit, re.MULTILINE)) == files | {"/etc/drover/proxy.yaml"}
    assert re.findall("^Watch=(.*)", unit, re.MULTILINE) == ["/opt/drover/proxy/current"]
    assert "LoadCredential=keys.yaml:/etc/drover/keys.yaml" in unit


def test_client_certificates_are_asked_for():
    """With an authority for them, the settings name it; without TLS of the door's own there is none."""
    wanted = {"proxy_tls_cert": "PEM", "proxy_tls_key": "PEM", "proxy_tls_client_ca": "PEM"}
    more = {"instances": INSTANCES, "models_list": []}

    with_one = parse(made("proxy", "proxy.yaml.j2", **more, **wanted))
    without = parse(made("proxy", "proxy.yaml.j2", **more, **wanted | {"proxy_tls_client_ca": ""}))
    assert with_one.tls.client_ca == "/etc/drover/tls/client-ca.pem"
    assert without.tls.client_ca is None


def test_the_warm_up_names_only_the_warm_models():
    """In the order of the list."""
    text = made("proxy", "warmup.json.j2", models_list=MODELS, admin_url="http://127.0.0.1:8081")

    assert json.loads(text) == {"admin": "http://127.0.0.1:8081", "models": ["llama3.2:3b"]}


def test_the_scrape_target_has_prometheus_form():
    """A list of targets with labels, as file_sd reads it."""
    text = made(
        "monitoring", "scrape.json.j2", scrape_target="10.0.0.5:8081", monitoring_scrape_labels={"rack": "7"}
    )

    assert json.loads(text) == [{"targets": ["10.0.0.5:8081"], "labels": {"rack": "7"}}]


def test_no_key_without_a_keys_file():
    """An open door neither reads nor loads keys."""
    assert "auth" not in yaml.safe_load(made("proxy", "proxy.yaml.j2", instances=INSTANCES, proxy_open=True))
    assert "LoadCredential" not in made("proxy", "drover-proxy.service.j2", proxy_open=True)


def test_what_breaks_cuda_is_nowhere_set():
    """No unit that uses a GPU hides devices; the one rule for them is by the driver's names."""
    for layer, name in (("ollama", "ollama@.service.j2"), ("proxy", "drover-proxy.service.j2")):
        text = made(layer, name)
        assert "DevicePolicy=closed" in text
        assert "DeviceAllow=char-nvidia* rw" in text
        assert "\nPrivateDevices" not in text
        assert "\nMemoryDenyWriteExecute" not in text


@pytest.mark.skipif(not shutil.which("systemd-analyze"), reason="this machine has no systemd to ask")
def test_systemd_takes_the_units(tmp_path):
    """`systemd-analyze verify` finds nothing to complain about, but programs that aren't on this machine."""
    for layer, name in UNITS:
        unit = made(layer, f"{name}.j2", proxy_listen=["0.0.0.0:8080", "unix:/run/x.sock"])
        (tmp_path / name).write_text(unit)
    (tmp_path / "ollama@.service.d").mkdir()
    (tmp_path / "ollama@.service.d" / "10-drover.conf").write_text(made("ollama", "10-drover.conf.j2"))
    (tmp_path / "ollama@gpu0.service").symlink_to("ollama@.service")

    names = ["ollama@gpu0.service", *(name for _, name in UNITS[1:])]
    done = subprocess.run(
        ["systemd-analyze", "verify", "--man=no", "--recursive-errors=no",
         *(tmp_path / name for name in names)],
        capture_output=True, text=True, check=False,
        env={"SYSTEMD_UNIT_PATH": f"{tmp_path}:", "PATH": "/usr/bin:/bin"},
    )  # fmt: skip

    complaints = [
        line
        for line in done.stderr.splitlines()
        if any(name in line for _, name in UNITS) and "is not executable: No such file" not in line
    ]
    assert complaints == []


@pytest.fixture
def fingerprint(tmp_path):
    """Run the script that tells whether a unit is up to date, over units of the test."""
    units = tmp_path / "units"
    (units / "x@.service.d").mkdir(parents=True)
    (tmp_path / "one").write_text("1")
    (units / "x@.service").write_text(f"[Service]\n[X-Drover]\nWatch={tmp_path}/%i\nWatch={tmp_path}/link\n")
    (tmp_path / "link").symlink_to("a")

    def run(*arguments):
        env = {
            "DROVER_UNITS": str(units),
            "DROVER_STARTED": str(tmp_path / "started"),
            "PATH": "/usr/bin:/bin",
        }
        done = subprocess.run(
            ["sh", TEMPLATES / "common" / "fingerprint", *arguments],
            env=env, capture_output=True, text=True, check=True,
        )  # fmt: skip
        return done.stdout.strip()

    return run


def new_link(path, target):
    """Make a link and return it."""
    path.symlink_to(target)
    return path


def test_a_fingerprint_changes_with_all_that_a_unit_is_started_from(fingerprint, tmp_path):
    """Its file, its drop-ins, the files it watches, and where watched links point."""
    seen = [fingerprint("x@one.service")]
    for change in (
        lambda: (tmp_path / "one").write_text("2"),
        lambda: (tmp_path / "units/x@.service.d/10.conf").write_text("[Service]\n"),
        lambda: new_link(tmp_path / "new", "b").replace(tmp_path / "link"),
    ):
        change()
        seen.append(fingerprint("x@one.service"))
    assert len(set(seen)) == len(seen)
    assert fingerprint("x@one.service") == seen[-1]
    assert fingerprint("x@two.service") != seen[-1]


def test_what_takes_a_reload_has_a_digest_of_its_own(fingerprint, tmp_path):
    """A note behind a reload leaves the digest alone of what the unit was started from."""
    unit, note = "x@one.service", tmp_path / "started" / "x@one.service"
    with (tmp_path / "units/x@.service").open("a") as file:
        file.write(f"Reload={tmp_path}/a\nReload={tmp_path}/b\n")
    for name in "ab":
        (tmp_path / name).write_text("1")
    fingerprint("--record", unit)
    start, files = note.read_text().split()

    (tmp_path / "b").write_text("2")
    assert fingerprint(unit).split()[0] == start
    assert fingerprint(unit).split()[1] != files
    (tmp_path / "one").write_text("2")
    fingerprint("--reloaded", unit)
    assert note.read_text().split() == [start, fingerprint(unit).split()[1]]
    assert fingerprint(unit).split()[0] != start


def test_a_unit_notes_its_fingerprint_for_all_to_read(fingerprint, tmp_path):
    """The note holds the digest, readable for everybody whatever the unit's mask."""
    assert fingerprint("--record", "x@one.service") == "", "the journal needs no digests"
    note = tmp_path / "started" / "x@one.service"

    assert note.read_text().strip() == fingerprint("x@one.service")
    assert note.stat().st_mode & 0o444 == 0o444
    assert Path(note.parent).stat().st_mode & 0o555 == 0o555
