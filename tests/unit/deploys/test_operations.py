"""Our operations: they change only what differs, place only what is whole, and show no secret."""

from __future__ import annotations

import getpass
import grp
import hashlib
import json
import os
import stat

import pytest

from deploys.lib import operations
from deploys.lib.facts import FileState, FileStateFact, Lines, Probe
from tests.unit.deploys.support import commands_of, perform, refusal_of, text_of

ME = {"user": getpass.getuser(), "group": grp.getgrgid(os.getgid()).gr_name}


@pytest.fixture
def live(scripted):
    """Return a host whose facts are read from this machine."""
    scripted.live = True
    return scripted


def once(operation, **arguments):
    """Run an operation's commands here and return the last result."""
    results = [perform(command) for command in commands_of(operation, **arguments)]
    return results[-1] if results else None


def test_place_writes_content_mode_and_folder(live, tmp_path):
    """A file arrives with its exact bytes and mode, its folder is made, and no temporary file stays."""
    dest = tmp_path / "new" / "file"
    content = "h\u00e9llo 'quoted' \"$HOME\"\n"
    result = once(operations.place, dest=str(dest), content=content, mode="0640", **ME)
    assert result.returncode == 0, result.stderr
    assert dest.read_text() == content
    assert stat.S_IMODE(dest.stat().st_mode) == 0o640
    assert list(dest.parent.iterdir()) == [dest]


def test_place_twice_changes_nothing(live, tmp_path):
    """The second time there is nothing to do."""
    arguments = {"dest": str(tmp_path / "f"), "content": "x\n", **ME}
    once(operations.place, **arguments)
    assert commands_of(operations.place, **arguments) == []
    assert live.noops


def test_place_mends_mode_and_content(live, tmp_path):
    """A changed mode or a changed byte is drift, and is mended."""
    arguments = {"dest": str(tmp_path / "f"), "content": "x\n", **ME}
    once(operations.place, **arguments)
    (tmp_path / "f").chmod(0o600)
    assert once(operations.place, **arguments).returncode == 0
    (tmp_path / "f").write_text("y\n")
    assert once(operations.place, **arguments).returncode == 0
    assert (tmp_path / "f").read_text() == "x\n"
    assert stat.S_IMODE((tmp_path / "f").stat().st_mode) == 0o644


def test_a_link_in_the_way_is_replaced_not_followed(live, tmp_path):
    """What stands behind a link isn't overwritten."""
    (tmp_path / "target").write_text("theirs")
    (tmp_path / "f").symlink_to(tmp_path / "target")
    once(operations.place, dest=str(tmp_path / "f"), content="ours", **ME)
    assert (tmp_path / "target").read_text() == "theirs"
    assert (tmp_path / "f").read_text() == "ours"


def test_damaged_content_is_not_placed(live, tmp_path):
    """When what arrives isn't what was sent, the old file stays."""
    dest = tmp_path / "f"
    dest.write_text("old")
    (command,) = commands_of(operations.place, dest=str(dest), content="new", **ME)
    command.connector_arguments["_stdin"][1] = "b3RoZXI="
    result = perform(command)
    assert result.returncode != 0
    assert "arrived damaged" in result.stderr
    assert dest.read_text() == "old"
    assert list(tmp_path.iterdir()) == [dest]


def test_a_secret_is_in_no_command_and_private_from_the_start(live, tmp_path):
    """The content of a secret file is in no command line, and the file is 0600."""
    dest = tmp_path / "s"
    arguments = {"dest": str(dest), "content": "canary-secret\n", **ME}
    (command,) = commands_of(operations.secret_file, **arguments)
    digest = hashlib.sha256(b"canary-secret\n").hexdigest()
    assert "canary" not in text_of(command) + repr(command)
    assert digest not in text_of(command)
    assert perform(command).returncode == 0
    assert stat.S_IMODE(dest.stat().st_mode) == 0o600
    assert commands_of(operations.secret_file, **arguments) == []


def test_a_secret_for_everybody_is_refused(scripted):
    """A mode that lets others read is a mistake, not a wish."""
    (command,) = commands_of(operations.secret_file, dest="/x", content="s", mode="0644")
    assert "would let everybody read" in refusal_of(command)


def test_download_checks_before_it_places(live, tmp_path):
    """A wrong digest leaves the old file in place and nothing beside it; a right one replaces it."""
    source, dest = tmp_path / "src", tmp_path / "out" / "dest"
    source.write_text("the bytes")
    good = hashlib.sha256(b"the bytes").hexdigest()
    url = source.as_uri()
    result = once(operations.download, url=url, dest=str(dest), sha256=good)
    assert result.returncode == 0, result.stderr
    source.write_text("other bytes")
    result = once(operations.download, url=url, dest=str(dest), sha256="0" * 64)
    assert result.returncode != 0
    assert "expected SHA-256 000" in result.stderr
    assert dest.read_text() == "the bytes"
    assert list(dest.parent.iterdir()) == [dest]
    assert commands_of(operations.download, url=url, dest=str(dest), sha256=good) == []


def test_downloads_login_goes_by_stdin(scripted):
    """A password for the mirror is in no argument, also one with quotes."""
    scripted.facts[FileStateFact] = None
    (command,) = commands_of(
        operations.download, url="http://m/x", dest="/x", sha256="0" * 64, username="u", password='ca"nary'
    )
    assert "nary" not in text_of(command)
    assert command.connector_arguments["_stdin"] == ['user = "u:ca\\"nary"']


def test_upload_is_staged_privately(scripted, tmp_path):
    """A file goes through a folder that only the ssh user may enter, and is checked before it is placed."""
    source = tmp_path / "wheel"
    source.write_bytes(b"bytes")
    scripted.facts = {FileStateFact: None, Lines: ["/home/ops"]}
    make, put, place = commands_of(operations.upload, src=source, dest="/opt/x/wheel")
    assert "umask 077" in text_of(make)
    assert put.dest.startswith("/home/ops/.cache/drover-staging/")
    assert put.connector_arguments["_sudo"] is False
    assert "sha256sum -c" in text_of(place)
    scripted.facts[FileStateFact] = FileState(operations.file_sha256(source), "0644", "root", "root")
    assert commands_of(operations.upload, src=source, dest="/opt/x/wheel") == []


def test_guarded_runs_only_when_needed(scripted):
    """`unless` and `only_if` decide; both are probed on the host."""
    scripted.facts[Probe] = True
    assert commands_of(operations.guarded, commands="x", unless="true") == []
    assert [text_of(one) for one in commands_of(operations.guarded, commands=["x", "y"], only_if="z")] == [
        "x",
        "y",
    ]
    scripted.facts[Probe] = False
    assert len(commands_of(operations.guarded, commands="x", unless="false")) == 1
    assert commands_of(operations.guarded, commands="x", only_if="false") == []


def test_a_gate_that_holds_changes_nothing(live):
    """A probe that succeeds at once yields no command."""
    assert commands_of(operations.gate, probe="true", message="m") == []


def test_a_gate_waits_for_its_probe(live, tmp_path):
    """A probe that succeeds within the time passes."""
    flag = tmp_path / "flag"
    (command,) = commands_of(
        operations.gate, probe=f"test -e {flag} || {{ touch {flag}; false; }}; test -e {flag}.2", message="m"
    )
    (tmp_path / "flag.2").touch()
    assert perform(command).returncode == 0


def test_a_gate_that_fails_says_why(live):
    """When the time is up, the message comes first and the probe's own words after it."""
    probe = "echo 'it''s the probe' >&2; false"
    (command,) = commands_of(operations.gate, probe=probe, message="Look at X", timeout_seconds=0)
    result = perform(command)
    assert result.returncode != 0
    assert result.stderr.splitlines() == ["Look at X", "its the probe"]


def test_record_is_written_when_values_change(scripted):
    """The record keeps its time of change until a value changes."""
    values = {"version": "1"}
    scripted.facts[Lines] = []
    (command,) = commands_of(operations.record, layer="x", values=lambda: values)
    assert "/var/lib/drover/record/x.json" in text_of(command)
    scripted.facts[Lines] = json.dumps({"version": "1", "changed_at": "then"}).splitlines()
    assert commands_of(operations.record, layer="x", values=values) == []
    scripted.facts[Lines] = json.dumps({"version": "0", "changed_at": "then"}).splitlines()
    assert len(commands_of(operations.record, layer="x", values=values)) == 1
    scripted.facts[Lines] = ["{broken"]
    assert len(commands_of(operations.record, layer="x", values=values)) == 1


def test_absent_removes_what_is_there(live, tmp_path):
    """A file is removed once."""
    (tmp_path / "f").touch()
    assert once(operations.absent, path=str(tmp_path / "f")).returncode == 0
    assert commands_of(operations.absent, path=str(tmp_path / "f")) == []


def test_a_refusal_fails_the_host_without_raising(scripted):
    """A refusal shows its message and returns False, which fails this host only."""
    command = operations.refusal("because")
    assert command.function(None, scripted, *command.args) is False
    assert scripted.messages == ["because"]
