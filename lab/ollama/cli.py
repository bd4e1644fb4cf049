"""The `ollama` command: `serve` starts the server, everything else talks to one."""

from __future__ import annotations

import argparse
import hashlib
import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, NoReturn

from lab.ollama import VERSION, modelfile, names, show
from lab.ollama.client import Client, ClientError
from lab.ollama.config import FatalError
from lab.ollama.gotext import human_bytes, keep_alive_seconds
from lab.ollama.modelfile import ModelfileError

Command = Callable[[argparse.Namespace], None]


class _Parser(argparse.ArgumentParser):
    """Complains as cobra does, with exit code 1."""

    def error(self, message: str) -> NoReturn:
        """Turn argparse's complaint into cobra's."""
        command = self.prog.rpartition(" ")[2]
        if match := re.search(r"invalid choice: '([^']*)'", message):
            message = f'unknown command "{match[1]}" for "ollama"'
        elif "are required" in message:
            if command in {"run", "rm"}:
                message = "requires at least 1 arg(s), only received 0"
            elif command == "cp":
                message = f"accepts 2 arg(s), received {0 if 'source' in message else 1}"
            else:
                message = "accepts 1 arg(s), received 0"
        elif match := re.search(r"unrecognized arguments: (\S+)", message):
            message = (
                f"unknown flag: {match[1]}" if match[1].startswith("-") else f"unexpected argument {match[1]}"
            )
        raise ClientError(message)


def _serve(_: argparse.Namespace) -> None:
    from lab.ollama import server  # noqa: PLC0415 - the client needs none of it

    raise SystemExit(server.main())


def _follow(lines: Any) -> None:
    """Show progress on stderr: a line for each step, and how far a download is."""
    last = ""
    for line in lines:
        text = line["status"]
        if line.get("total"):
            percent = 100 * line.get("completed", 0) // line["total"]
            text = f"{text}: {percent:3d}% {human_bytes(line['total'])}"
        if text != last:
            sys.stderr.write(text + "\n")
            last = text
    sys.stderr.flush()


def _pull(options: argparse.Namespace) -> None:
    _follow(Client().lines("/api/pull", {"model": options.model, "insecure": options.insecure}))


def _push(options: argparse.Namespace) -> None:
    _follow(Client().lines("/api/push", {"model": options.model, "insecure": options.insecure}))


def _create(options: argparse.Namespace) -> None:
    if names.parse(options.model) is None:
        raise ClientError(f"invalid model name: {options.model}")
    path = Path(options.file)
    if path.exists():
        raw = path.read_bytes()
    elif options.file == "Modelfile":
        raw = b"FROM .\n"
    else:
        raise ClientError("no Modelfile or safetensors files found")
    found = modelfile.parse(raw)
    for warning in found.warnings:
        print(warning)
    client = Client()
    sys.stderr.write("gathering model components\n")
    request: dict[str, Any] = {"model": options.model, **found.values}
    for field, paths in (("files", found.sources), ("adapters", found.adapters)):
        for text in paths:
            local = Path(text).expanduser() if text.startswith("~") else path.parent / text
            if not local.is_file():
                if field == "adapters":
                    raise ClientError(f"stat {local}: no such file or directory")
                request["from"] = text
                continue
            digest = "sha256:" + _digest(local)
            client.upload(digest, local)
            request.setdefault(field, {})[local.name] = digest
    for field, value in (
        ("license", found.licences), ("parameters", found.parameters), ("messages", found.messages),
        ("quantize", options.quantize),
    ):  # fmt: skip
        request |= {field: value} if value else {}
    _follow(client.lines("/api/create", request))


def _digest(path: Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while piece := file.read(1 << 22):
            digest.update(piece)
    return digest.hexdigest()


def _list(options: argparse.Namespace) -> None:
    client = Client()
    client.heartbeat()
    print(show.models(client.call("GET", "/api/tags")["models"] or [], options.model or ""))


def _ps(options: argparse.Namespace) -> None:
    client = Client()
    client.heartbeat()
    print(show.running(client.call("GET", "/api/ps")["models"] or [], options.model or ""))


def _show(options: argparse.Namespace) -> None:
    wanted = [
        key for key in ("license", "modelfile", "parameters", "system", "template") if getattr(options, key)
    ]
    if len(wanted) > 1:
        raise ClientError(
            "only one of '--license', '--modelfile', '--parameters', '--system', or '--template' "
            "can be specified"
        )
    answer = Client().call("POST", "/api/show", {"model": options.model, "verbose": options.verbose})
    if wanted:
        print(answer.get(wanted[0], ""), end="" if wanted[0] in {"system", "template"} else "\n")
    else:
        print(show.model(answer, verbose=options.verbose))


def _unload(client: Client, model: str) -> None:
    client.call("POST", "/api/show", {"model": model})
    for _ in client.lines("/api/generate", {"model": model, "keep_alive": 0}):
        pass


def _rm(options: argparse.Namespace) -> None:
    client = Client()
    for model in options.models:
        try:
            _unload(client, model)
        except ClientError as error:
            if "not found" not in str(error).lower():
                sys.stderr.write(f"Warning: unable to stop model '{model}'\n")
        client.call("DELETE", "/api/delete", {"model": model})
        print(f"deleted '{model}'")


def _cp(options: argparse.Namespace) -> None:
    Client().call("POST", "/api/copy", {"source": options.source, "destination": options.destination})
    print(f"copied '{options.source}' to '{options.destination}'")


def _stop(options: argparse.Namespace) -> None:
    try:
        _unload(Client(), options.model)
    except ClientError as error:
        if "not found" in str(error):
            raise ClientError(f'couldn\'t find model "{options.model}" to stop') from error
        raise


def _run(options: argparse.Namespace) -> None:
    client = Client()
    prompt = " ".join(options.prompt)
    if not sys.stdin.isatty():
        prompt = "\n".join(part for part in (prompt, sys.stdin.read().strip()) if part)
    try:
        about = client.call("POST", "/api/show", {"model": options.model})
    except ClientError as error:
        if "not found" not in str(error):
            raise
        _follow(client.lines("/api/pull", {"model": options.model, "insecure": options.insecure}))
        about = client.call("POST", "/api/show", {"model": options.model})
    base: dict[str, Any] = {"model": options.model}
    if options.keepalive:
        base["keep_alive"] = keep_alive_seconds(options.keepalive)
    if about["capabilities"] == ["embedding"]:
        if not prompt:
            raise ClientError(
                "embedding models require input text. Usage: ollama run "
                + options.model
                + ' "your text here"'
            )
        print(client.call("POST", "/api/embed", {**base, "input": prompt})["embeddings"][0])
    elif prompt or not sys.stdin.isatty():
        _answer(client, {**base, "prompt": prompt})
    else:
        _converse(client, base)


def _answer(client: Client, request: dict[str, Any]) -> None:
    for line in client.lines("/api/generate", request):
        sys.stdout.write(line.get("response", ""))
        sys.stdout.flush()
    sys.stdout.write("\n\n")


def _converse(client: Client, base: dict[str, Any]) -> None:
    """Ask and answer until `/bye` or the end of the input."""
    _answer(client, base)
    while True:
        try:
            text = input(">>> ")
        except EOFError:
            return
        if text.strip() in {"/bye", "/exit"}:
            return
        if text.strip():
            _answer(client, {**base, "prompt": text})


def _version() -> None:
    try:
        server = str(Client().call("GET", "/api/version")["version"])
    except ClientError:
        print("Warning: could not connect to a running Ollama instance")
        server = ""
    if server:
        print(f"ollama version is {server}")
    if server != VERSION:
        print(f"Warning: client version is {VERSION}")


def _arguments() -> _Parser:
    parser = _Parser(prog="ollama", description="Large language model runner (simulated)")
    parser.add_argument("-v", "--version", action="store_true", help="show version information")
    commands = parser.add_subparsers(dest="command", parser_class=_Parser)

    def add(name: str, run: Command, text: str, *aliases: str) -> argparse.ArgumentParser:
        found = commands.add_parser(name, help=text, aliases=list(aliases))
        found.set_defaults(run=run)
        return found

    add("serve", _serve, "start Ollama", "start")
    for name, run in (("pull", _pull), ("push", _push)):
        command = add(name, run, f"{name} a model")
        command.add_argument("model")
        command.add_argument("--insecure", action="store_true")
    command = add("create", _create, "create a model")
    command.add_argument("model")
    command.add_argument("-f", "--file", default="Modelfile")
    command.add_argument("-q", "--quantize", default="")
    for name, run, alias in (("list", _list, ["ls"]), ("ps", _ps, [])):
        add(name, run, f"{name} models", *alias).add_argument("model", nargs="?")
    command = add("show", _show, "show information for a model")
    command.add_argument("model")
    for flag in ("license", "modelfile", "parameters", "system", "template"):
        command.add_argument(f"--{flag}", action="store_true")
    command.add_argument("-v", "--verbose", action="store_true")
    add("rm", _rm, "remove a model").add_argument("models", nargs="+")
    command = add("cp", _cp, "copy a model")
    command.add_argument("source")
    command.add_argument("destination")
    add("stop", _stop, "stop a running model").add_argument("model")
    command = add("run", _run, "run a model")
    command.add_argument("model")
    command.add_argument("prompt", nargs="*")
    command.add_argument("--keepalive", default="")
    command.add_argument("--insecure", action="store_true")
    command.add_argument("--verbose", action="store_true")
    return parser


def main(arguments: list[str]) -> int:
    """Run a command; returns the exit code."""
    try:
        parser = _arguments()
        options = parser.parse_args(arguments)
        if options.version:
            _version()
        elif options.command is None:
            parser.print_help()
        else:
            options.run(options)
    except (ClientError, FatalError, ModelfileError, ValueError) as error:
        sys.stderr.write(f"Error: {error}\n")
        return 1
    except KeyboardInterrupt:
        return 1
    return 0
