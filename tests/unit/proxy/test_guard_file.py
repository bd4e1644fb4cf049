"""The keys file and its command: what an entry may be, how it is changed, how a change is noticed."""

from __future__ import annotations

import asyncio
import io
import stat
import subprocess
import threading
import time
from contextlib import suppress
from pathlib import Path

import pytest
import yaml
from drover_proxy.cli import main
from drover_proxy.config import ConfigError
from drover_proxy.drivers.follow import follow
from drover_proxy.guard.certificate import read_identity
from drover_proxy.guard.keys import KeyRing, hash_of, load_keys, read_keys
from drover_proxy.guard.sshkey import read_line
from drover_proxy.guard.store import read_entries
from drover_proxy.guard.watch import KeysFile
from hypothesis import given
from hypothesis import strategies as st

from tests.proxy.signer import Signer
from tests.support import eventually_async

LINE = Signer().line
KEY = LINE.split()[1]
HASH = "0" * 64


def keys(*words, file):
    """Run the command on a file."""
    return main(["keys", *map(str, words), "--file", str(file)])


@pytest.fixture
def file(tmp_path):
    """Where a keys file will be."""
    return tmp_path / "keys.yaml"


# What an entry may be.


def test_an_entry_is_known_by_one_thing_or_more():
    """A key's hash, an SSH key, a certificate: each of them leads to the same caller."""
    text = f"keys: [{{name: a, sha256: '{HASH}', ssh: {LINE} ann@laptop, certificate: 'CN: ann'}}]"
    (caller,) = read_keys(text, "keys.yaml")
    ring = KeyRing((caller,))

    assert ring.by_signer == {read_line(LINE): caller}
    assert ring.by_certificate == {"cn:ann": caller}
    assert caller.sha256 == HASH


@pytest.mark.parametrize(
    ("entries", "said"),
    [
        ("{name: a}", "keys[0]: missing; expected one of sha256, ssh, certificate"),
        ("{name: a, sha256: }", "expected one of sha256"),
        ("{name: a, ssh: ssh-rsa AAAAB3Nz}", "the ollama command signs with ssh-ed25519 only"),
        ("{name: a, certificate: ann}", "expected sha256:<64 hex digits>, cn:NAME"),
        ("{name: a, certificate: 'cn:*'}", "no patterns"),
        (
            f"{{name: a, ssh: {LINE}}}, {{name: b, ssh: {LINE} again}}",
            "keys[1].ssh: the same as that of keys[0]",
        ),
        (
            "{name: a, certificate: 'dns:X'}, {name: b, certificate: 'dns:x'}",
            "keys[1].certificate: the same as",
        ),
        ("{name: a, cert: 'cn:a'}", "unknown key"),
    ],
)
def test_an_entry_that_means_nothing_is_refused(entries, said):
    """The message says where and what was expected."""
    with pytest.raises(ConfigError) as refused:
        read_keys(f"keys: [{entries}]", "keys.yaml")
    assert said in str(refused.value)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "no key in it"),
        ("# only a comment\n", "no key in it"),
        ("-----BEGIN OPENSSH PRIVATE KEY-----\nabc", "a private key"),
        ("---- BEGIN SSH2 PUBLIC KEY ----\nabc", "ssh-keygen -i"),
        (f"{LINE}\n{LINE}\n", "2 keys"),
        ("ssh-rsa AAAAB3NzaC1yc2E= ann", "kind ssh-rsa"),
        ("ecdsa-sha2-nistp256 AAAA", "kind ecdsa-sha2-nistp256"),
        ("sk-ssh-ed25519@openssh.com AAAA", "kind sk-ssh-ed25519@openssh.com"),
        ("ssh-ed25519-cert-v01@openssh.com AAAA", "kind ssh-ed25519-cert-v01@openssh.com"),
        (f'from="10.0.0.1" {LINE}', "options before the key"),
        (KEY, "write ssh-ed25519"),
        (f"ssh-ed25519 {KEY[:-6]}", "damaged"),
        (f"ssh-ed25519 {KEY[:-4]}AA==", "damaged"),
        ("ssh-ed25519", "damaged"),
        ("drv_a-raw-key", "no public key"),
    ],
    ids=range(15),  # the key is another one each time
)
def test_nearest_mistakes_with_an_ssh_key(text, said):
    """Each is named for what it is, and none is repeated where it could be a secret."""
    with pytest.raises(ValueError, match=r".") as refused:
        read_line(text)
    assert said in str(refused.value)
    assert "abc" not in str(refused.value)
    assert "drv_" not in str(refused.value)


@pytest.mark.parametrize(
    ("text", "form"),
    [
        ("cn:Ann Smith", "cn:Ann Smith"),
        ("DNS: Worker7.Example", "dns:worker7.example"),
        ("URI:spiffe://Fleet/ci", "uri:spiffe://Fleet/ci"),
        ("email:ann@example", "email:ann@example"),
        ("SHA256:" + "AB:" * 31 + "AB", "sha256:" + "ab" * 32),
        ("sha256:" + "ab" * 32, "sha256:" + "ab" * 32),
    ],
)
def test_names_of_certificates(text, form):
    """Each has one form, so that comparing is comparing text."""
    assert read_identity(text) == form


# The command.


def test_import_ssh(file, tmp_path, capsys, monkeypatch):
    """From a file or standard input; twice the same key is refused whatever its comment."""
    public = tmp_path / "id_ed25519.pub"
    public.write_text(f"{LINE} ann@laptop\n")
    assert keys("import-ssh", "ann", public, "--model", "llama3.2", "--scope", "use", file=file) == 0
    assert keys("import-ssh", "other", public, file=file) == 1
    assert "'ann' already" in capsys.readouterr().err
    monkeypatch.setattr("sys.stdin", io.StringIO(Signer().line))
    assert keys("import-ssh", "bob", "-", "--expires", "2099-01-01", file=file) == 0
    assert keys("import-ssh", "eve", tmp_path / "nothing", file=file) == 1
    assert "No such file" in capsys.readouterr().err
    assert keys("import-ssh", "eve", "/bin/true", file=file) == 2
    monkeypatch.setattr("sys.stdin", io.StringIO("ssh-rsa AAAA"))
    assert keys("import-ssh", "eve", "-", file=file) == 2
    assert "ssh-ed25519 only" in capsys.readouterr().err

    ann, bob = load_keys(file).callers
    assert (ann.name, ann.ssh, ann.models) == ("ann", read_line(LINE), ("llama3.2",))
    assert bob.expires_at
    assert keys("list", file=file) == 0
    listed = capsys.readouterr().out
    assert "ann\tby=ssh\tscopes=use\tmodels=llama3.2" in listed
    assert KEY not in listed
    assert keys("revoke", "ann", file=file) == 0
    assert [caller.name for caller in load_keys(file).callers] == ["bob"]


def test_add_a_certificate(file, capsys):
    """No key is made for it; the same name twice is refused; mistakes are usage errors."""
    assert keys("add", "worker", "--certificate", "DNS:Worker7", "--scope", "admin", file=file) == 0
    assert capsys.readouterr().out == ""
    assert keys("add", "again", "--certificate", "dns:worker7", file=file) == 1
    assert keys("add", "odd", "--certificate", "worker7", file=file) == 2
    assert "expected sha256:" in capsys.readouterr().err
    assert load_keys(file).callers[0].certificate == "dns:worker7"


def test_check_says_that_nobody_is_asked_for_a_certificate(file, capsys):
    """An entry for a certificate is of no use where TLS asks for none."""
    keys("add", "worker", "--certificate", "cn:worker", file=file)
    config = file.with_name("proxy.yaml")
    instance = {"name": "gpu0", "url": "http://127.0.0.1:11434", "gpus": [0]}
    config.write_text(yaml.safe_dump({"auth": {"keys_file": str(file)}, "instances": [instance]}))
    assert main(["check", str(config)]) == 0
    assert "tls.client_ca" in capsys.readouterr().out


def test_a_raw_key_given_to_revoke_is_not_repeated(file, capsys):
    """Who pastes the key in place of its name is told so, and the key isn't shown once more."""
    assert keys("add", "demo", file=file) == 0
    key = capsys.readouterr().out.strip()
    assert keys("revoke", key, file=file) == 1
    said = capsys.readouterr().err
    assert "name" in said
    assert key not in said


def test_what_stands_in_the_file_stays(file):
    """A change keeps the file's mode, and the entries that it isn't about, dates and all."""
    entries = [
        {"name": "a", "sha256": HASH, "expires": "2099-01-31"},
        {"name": "b", "ssh": LINE},
        {"name": "c", "certificate": "cn:c"},
    ]
    file.write_text(yaml.safe_dump({"keys": entries}))
    file.chmod(0o640)
    assert keys("add", "d", file=file) == 0
    assert keys("revoke", "d", file=file) == 0
    assert read_entries(file) == entries
    assert stat.S_IMODE(file.stat().st_mode) == 0o640
    assert [path.name for path in file.parent.iterdir()] == ["keys.yaml"]


def test_two_commands_at_once_lose_nothing(file):
    """Both entries are there afterwards: the second command waits for the first."""
    threads = [threading.Thread(target=keys, args=("add", f"k{n}"), kwargs={"file": file}) for n in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert {caller.name for caller in load_keys(file).callers} == {f"k{n}" for n in range(8)}


def test_what_cant_be_written_is_said_plainly(file, capsys):
    """A folder that isn't there is one line and no trace."""
    assert keys("add", "a", file=file.parent / "none" / "keys.yaml") == 1
    assert "No such file" in capsys.readouterr().err


def test_the_public_key_of_ssh_keygen_is_taken(tmp_path):
    """What ssh-keygen writes is what import-ssh reads."""
    command = ["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-C", "a comment", "-f", str(tmp_path / "key")]
    subprocess.run(command, check=True)
    assert len(read_line((tmp_path / "key.pub").read_text())) == 32


# Following the file.


def test_every_change_is_noticed(file):
    """A file written in place, replaced, touched or gone has changed; one that was looked at hasn't."""
    keys("add", "a", file=file)
    followed = KeysFile(str(file))
    assert followed.changed()
    followed.load()
    assert not followed.changed()
    keys("add", "b", file=file)
    assert followed.changed()
    assert len(followed.load().callers) == 2
    file.write_text(file.read_text() + "\n")
    assert followed.changed()
    followed.load()
    file.unlink()
    assert followed.changed()
    with pytest.raises(ConfigError):
        followed.load()
    assert not followed.changed()


async def test_following_tells_of_good_and_bad_once_each(file, monkeypatch):
    """A change that can be read is applied, one that can't is told of, and neither a second time."""
    monkeypatch.setattr("drover_proxy.drivers.follow.LOOK_SECONDS", 0.01)
    keys("add", "a", file=file)
    followed = KeysFile(str(file))
    followed.load()
    rings, errors = [], []
    task = asyncio.create_task(follow(lambda: followed, rings.append, errors.append))
    try:
        keys("add", "b", file=file)
        await eventually_async(lambda: len(rings) == 1)
        file.write_text("keys: {}")
        await eventually_async(lambda: len(errors) == 1)
        keys_text = f"keys: [{{name: c, sha256: '{hash_of('x')}'}}]"
        file.write_text(keys_text)
        await eventually_async(lambda: len(rings) == 2)
    finally:
        task.cancel()
    assert [len(ring.callers) for ring in rings] == [2, 1]
    assert len(errors) == 1


@pytest.mark.parametrize(
    "text",
    [
        "[" * 100_000,
        "{a: " * 5000 + "}" * 5000,
        "keys: " + "[" * 3000 + "]" * 3000,
        "keys: [&a [*a]]",
        "\0",
        "keys: !!x",
    ],
)
def test_no_file_ends_the_process(text):
    """Whatever somebody wrote into the file is refused in words; a parser in C must not fall over it."""
    with pytest.raises(ConfigError):
        read_keys(text, "keys.yaml")


@given(st.text(alphabet="keys: []{}-&*!|>\n\"'#,0a", max_size=80))
def test_any_text_is_read_or_refused(text):
    """Nothing but a list of callers or a ConfigError comes of a text."""
    with suppress(ConfigError):
        assert isinstance(read_keys(text, "keys.yaml"), tuple)


def test_a_thousand_keys_are_read_quickly(tmp_path: Path):
    """Reading takes a fraction of a second, so that following costs nothing that anybody feels."""
    entries = [{"name": f"k{n}", "sha256": hash_of(str(n)), "scopes": ["use"]} for n in range(1000)]
    file = tmp_path / "keys.yaml"
    file.write_text(yaml.safe_dump({"keys": entries}))
    began = time.process_time()
    assert len(load_keys(file).callers) == 1000
    assert time.process_time() - began < 2.0
