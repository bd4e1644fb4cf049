"""The `ollama` command: exit codes and what it prints."""

from __future__ import annotations

import pytest

pytestmark = [pytest.mark.needs("cli", "upload"), pytest.mark.timeout(120)]


def test_version(server):
    """With a server: one line. Without one: a warning, and still 0."""
    done = server.command("--version")
    assert done.returncode == 0
    assert done.stdout.startswith("ollama version is ")
    port, server.port = server.port, 1
    try:
        alone = server.command("--version")
    finally:
        server.port = port
    assert alone.returncode == 0
    assert alone.stdout.startswith("Warning: could not connect to a running Ollama instance\n")


@pytest.mark.parametrize("command", ["list", "ps"])
def test_no_server(server, command):
    """Without a server commands fail with 1 and say what to do."""
    port, server.port = server.port, 1
    try:
        done = server.command(command)
    finally:
        server.port = port
    assert done.returncode == 1
    assert done.stderr.rstrip().endswith(
        "Error: could not connect to ollama server, run 'ollama serve' to start it"
    )


def test_list(server, model):
    """`list` prints a table of names, ids, sizes and ages."""
    lines = server.command("list").stdout.splitlines()
    assert lines[0].split() == ["NAME", "ID", "SIZE", "MODIFIED"]
    assert any(line.startswith(model) and "ago" in line for line in lines[1:])


def test_ps_and_stop(server, model):
    """`ps` shows where a model is, `stop` unloads it."""
    server.generate(model)
    lines = server.command("ps").stdout.splitlines()
    assert lines[0].split() == ["NAME", "ID", "SIZE", "PROCESSOR", "CONTEXT", "UNTIL"]
    assert ("100% GPU" if "gpus" in server.kind.capabilities else "100% CPU") in lines[1]
    assert "from now" in lines[1]
    assert server.command("stop", model).returncode == 0


def test_stop_unknown(server):
    """What isn't there can't be stopped."""
    done = server.command("stop", "none")
    assert done.returncode == 1
    assert done.stderr.rstrip().endswith('Error: couldn\'t find model "none" to stop')


def test_show(server, model):
    """`show` prints sections, or one part of the model."""
    done = server.command("show", model)
    assert done.returncode == 0
    assert done.stdout.startswith("  Model\n    architecture")
    assert "quantization" in done.stdout
    assert "FROM " in server.command("show", model, "--modelfile").stdout


def test_copy_and_remove(server, model):
    """`cp` and `rm` say what they did."""
    assert server.command("cp", model, "twin").stdout == f"copied '{model}' to 'twin'\n"
    assert server.command("rm", "twin").stdout == "deleted 'twin'\n"
    done = server.command("rm", "twin")
    assert done.returncode == 1
    assert done.stderr.rstrip().endswith("Error: model 'twin' not found")


def test_create(server, model, tmp_path):
    """`create` makes the same model as the API does from the same content."""
    file = tmp_path / "Modelfile"
    file.write_text(
        f'# comment\nFROM {model}\nPARAMETER num_ctx 2048\nSYSTEM """Be\nbrief."""\n', encoding="utf-8"
    )
    done = server.command("create", "clicked", "-f", str(file))
    assert done.returncode == 0, done.stderr
    body = {
        "model": "asked",
        "from": model,
        "parameters": {"num_ctx": 2048},
        "system": "Be\nbrief.",
        "stream": False,
    }
    assert server.post("/api/create", body).status == 200
    digests = {tag["name"]: tag["digest"] for tag in server.get("/api/tags").json["models"]}
    assert digests["clicked:latest"] == digests["asked:latest"]


@pytest.mark.parametrize(
    ("text", "error"),
    [
        ("FROM {model}\nPARAMETER num_ctx abc\n", "invalid int value [abc]"),
        ("FROM {model}\nPARAMETER bogus 1\n", "unknown parameter 'bogus'"),
        ("PARAMETER num_ctx 1\n", "no FROM line"),
        ("FROM {model}\nNONSENSE x\n", "(line 2): command must be one of"),
        ("FROM {model}\nMESSAGE robot hi\n", "message role must be one of"),
        ('FROM {model}\nSYSTEM """open\n', "unexpected EOF"),
    ],
)
def test_bad_modelfile(server, model, tmp_path, text, error):
    """A Modelfile that can't be read is refused by the client."""
    file = tmp_path / "Modelfile"
    file.write_text(text.format(model=model), encoding="utf-8")
    done = server.command("create", "broken", "-f", str(file))
    assert done.returncode == 1
    assert error in done.stderr
    assert "broken:latest" not in server.names()


def test_deprecated_parameter(server, model, tmp_path):
    """A parameter of old is warned about and left out."""
    file = tmp_path / "Modelfile"
    file.write_text(f"FROM {model}\nPARAMETER mirostat 1\n", encoding="utf-8")
    done = server.command("create", "oldish", "-f", str(file))
    assert done.returncode == 0
    assert "warning: parameter mirostat is deprecated" in done.stdout


def test_run(server, model):
    """`run` with a prompt prints the answer and ends with 0."""
    done = server.command("run", model, "say something [[tokens=3]]")
    assert done.returncode == 0
    assert done.stdout.strip()


@pytest.mark.parametrize(
    ("arguments", "error"),
    [
        (("frobnicate",), 'unknown command "frobnicate" for "ollama"'),
        (("pull",), "accepts 1 arg(s), received 0"),
        (("rm",), "requires at least 1 arg(s), only received 0"),
        (("cp", "x"), "accepts 2 arg(s), received 1"),
    ],
)
def test_usage(server, arguments, error):
    """Wrong use ends with 1."""
    done = server.command(*arguments)
    assert done.returncode == 1
    assert f"Error: {error}" in done.stderr


def test_pull_fails(server):
    """A failed pull ends with 1 and the server's words."""
    done = server.command("pull", "--insecure", "127.0.0.1:1/library/x")
    assert done.returncode == 1
    assert "Error: pull model manifest:" in done.stderr
