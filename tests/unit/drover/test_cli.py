"""The drover command: what it prints, and its exit codes."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

from drover.cli import run
from drover.schema import load_options


def test_a_good_fleet(folder, capsys):
    """Without a problem the exit code is 0 and the hosts are counted."""
    assert run(["validate", str(folder.path)]) == 0
    assert capsys.readouterr().out == "1 host(s), no problems.\n"


def test_problems_exit_with_1(folder, capsys):
    """Problems go to stderr, and the exit code is 1."""
    folder.write("host_vars/a.yml", "nvidia_driver_branch: 580\n")
    assert run(["validate", str(folder.path)]) == 1
    assert 'quote it: "580"' in capsys.readouterr().err


def test_problems_as_json(folder, capsys):
    """With --json stdout is one JSON document."""
    folder.write("host_vars/a.yml", "nvidia_driver_branch: 580\n")
    assert run(["validate", "--json", str(folder.path)]) == 1
    answer = json.loads(capsys.readouterr().out)
    assert answer["ok"] is False
    assert answer["problems"][0]["key"] == "nvidia_driver_branch"
    assert answer["problems"][0]["source"] == "host_vars/a.yml"


def test_an_unreadable_fleet_exits_with_2(tmp_path, capsys):
    """A folder without hosts.yml is a message, not a traceback."""
    assert run(["validate", str(tmp_path)]) == 2
    assert capsys.readouterr().err.startswith(f"drover: {tmp_path}/hosts.yml: no such file.")


@pytest.mark.parametrize("arguments", [["nope"], ["validate"], ["vars"], ["validate", "--nope", "x"]])
def test_wrong_use_exits_with_64(arguments):
    """A wrong command, option or a missing argument is a usage error."""
    assert run(arguments) == 64


def test_an_unknown_host_is_a_usage_error(folder, capsys):
    """`drover vars --host` names the hosts there are."""
    assert run(["vars", str(folder.path), "--host", "b"]) == 64
    assert "it has a." in capsys.readouterr().err


def test_vars_shows_values_sources_and_no_secret(folder, capsys):
    """Each value stands with the file that set it; a secret is stars."""
    folder.write("host_vars/a.yml", "mirror_username: u\nmirror_password: canary\n")
    assert run(["vars", str(folder.path)]) == 0
    out = capsys.readouterr().out
    assert '  mirror_username: "u"  # host_vars/a.yml\n' in out
    assert '  nvidia_driver_branch: "580"  # default\n' in out
    assert '  mirror_password: "********"' in out
    assert "canary" not in out


def test_vars_as_json(folder, capsys):
    """--json prints a mapping of hosts to variables."""
    assert run(["vars", "--json", str(folder.path)]) == 0
    assert json.loads(capsys.readouterr().out)["a"]["nvidia_driver_branch"] == "580"


def test_names_lists_every_variable(capsys):
    """--names needs no fleet and leaves none out."""
    assert run(["vars", "--names", "--json"]) == 0
    assert set(json.loads(capsys.readouterr().out)) == set(load_options())


def test_help_loads_nothing_slow():
    """`drover --help` imports neither ansible-core nor pyinfra."""
    code = (
        "import sys; from drover.cli import run; run(['--help']); "
        "assert not {'ansible', 'pyinfra', 'yaml'} & set(sys.modules), 'slow imports'"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
