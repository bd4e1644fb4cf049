"""Keys: the file, who is let in, the command."""

from __future__ import annotations

import stat

import pytest
from drover_proxy.cli import main
from drover_proxy.config import ConfigError
from drover_proxy.guard.keys import Caller, KeyRing, hash_of, keys_path, load_keys, read_keys


def ring(**fields):
    """Return a ring with one key, `drv_good`."""
    entry = {
        "name": "a",
        "scopes": frozenset({"use"}),
        "models": ("*",),
        "sha256": hash_of("drv_good"),
    } | fields
    return KeyRing((Caller(**entry),))


def test_only_the_key_itself_is_let_in():
    """Neither an unknown key, nor its hash, nor nothing."""
    assert ring().by_key(b"drv_good").name == "a"
    for shown in (b"drv_bad", hash_of("drv_good").encode(), b"", b"drv_good "):
        assert ring().by_key(shown) is None


@pytest.mark.parametrize(
    ("patterns", "model", "allowed"),
    [
        (("*",), "anything:latest", True),
        (("llama3.2",), "llama3.2:3b", True),
        (("llama3.2:3b",), "llama3.2:1b", False),
        (("llama*",), "llama3.1:8b", True),
        (("me/*",), "me/mine:latest", True),
        (("llama*",), "llama-of-mine.example/evil/model:latest", False),
        (("llama*:8b",), "llama/evil:8b", False),
        (("*",), "hub.example/me/mine:latest", True),
        (("hub.example/*",), "hub.example/me/mine:latest", True),
        (("llama3.2",), "llama3.2-evil:latest", False),
        ((), "llama3.2:3b", False),
    ],
)
def test_models_by_pattern(patterns, model, allowed):
    """A pattern without a tag stands for all tags, one without a slash for names without one."""
    assert ring(models=patterns).callers[0].may_use(model) is allowed


def test_admin_includes_the_other_scopes():
    """An admin may use what it manages; a user may not manage."""
    assert Caller("a", frozenset({"admin"}), ("*",)).may("use")
    assert not Caller("a", frozenset({"use"}), ("*",)).may("admin")


@pytest.mark.parametrize(
    "text",
    [
        "",
        "keys: {}",
        "keys: [{name: a}]",
        "keys: [{name: a, sha256: drv_a-raw-key-by-mistake}]",
        f"keys: [{{name: a, sha256: {'0' * 64}, scopes: [root]}}]",
        f"keys: [{{name: a, sha256: {'0' * 64}, expires: soon}}]",
        f"keys: [{{name: a, sha256: {'0' * 64}}}, {{name: a, sha256: {'1' * 64}}}]",
        f"keys: [{{name: a, sha256: {'0' * 64}}}, {{name: b, sha256: {'0' * 64}}}]",
    ],
)
def test_a_broken_file_is_refused_without_showing_it(text):
    """A message never repeats what could be a raw key."""
    with pytest.raises(ConfigError) as refused:
        read_keys(text, "keys.yaml")

    assert "drv_a" not in str(refused.value)


def test_the_services_credential_is_the_fallback(tmp_path, monkeypatch):
    """The file itself is followed where it may be read; else the service's copy is all there is."""
    (tmp_path / "keys.yaml").write_text("keys: []")
    monkeypatch.setenv("CREDENTIALS_DIRECTORY", str(tmp_path))
    readable = tmp_path / "etc" / "keys.yaml"

    assert keys_path(str(readable)) == tmp_path / "keys.yaml"
    assert str(keys_path("/nowhere/other.yaml")) == "/nowhere/other.yaml"
    readable.parent.mkdir()
    readable.write_text("keys: []")
    assert keys_path(str(readable)) == readable


def test_the_command_adds_lists_and_revokes(tmp_path, capsys):
    """A key is shown once; the file has only its hash, and only its owner may read it."""
    file = tmp_path / "keys.yaml"
    assert main(["keys", "add", "demo", "--scope", "use", "--model", "llama*", "--file", str(file)]) == 0
    key = capsys.readouterr().out.strip()

    assert key.startswith("drv_")
    assert len(key) > 36
    assert key not in file.read_text()
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    assert load_keys(file).by_key(key.encode()).name == "demo"

    assert main(["keys", "add", "demo", "--file", str(file)]) == 1
    assert main(["keys", "add", "late", "--expires", "2099-01-01", "--file", str(file)]) == 0
    assert main(["keys", "add", "odd", "--expires", "soon", "--file", str(file)]) == 2
    capsys.readouterr()
    assert main(["keys", "list", "--file", str(file)]) == 0
    listed = capsys.readouterr().out
    assert "demo\tby=key\tscopes=use\tmodels=llama*\texpires=never" in listed
    assert "2099-01-01" in listed

    assert main(["keys", "revoke", "demo", "--file", str(file)]) == 0
    assert main(["keys", "revoke", "demo", "--file", str(file)]) == 1
    assert load_keys(file).by_key(key.encode()) is None


def test_check_says_good_or_every_problem(tmp_path, capsys):
    """Exit code 0 for a usable file, 2 for another, on the right stream."""
    file = tmp_path / "proxy.yaml"
    file.write_text("instances: [{name: gpu0, url: 'http://127.0.0.1:11434', gpus: [0]}]")
    assert main(["check", str(file)]) == 0
    assert "everybody" in capsys.readouterr().out

    file.write_text("instances: [{nam: gpu0}]\nx: 1")
    assert main(["check", str(file)]) == 2
    assert len(capsys.readouterr().err.splitlines()) == 5
