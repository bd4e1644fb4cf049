"""`make demo`: the main job of drover, from bare hosts to a warm answer, told as a short story with times.

Boots a lab of three hosts with unequal GPUs, provisions them with the same pyinfra command that an operator
types, and then talks to one of them through its proxy with a key: lists models, streams a chat with the
openai package, asks for a model that must first be loaded, and for one that only fits when another leaves.
"""

from __future__ import annotations

import argparse
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

PROJECT = Path(__file__).resolve().parent.parent
BIN = PROJECT / ".venv" / "bin"
FLEET = PROJECT / "inventories" / "lab"
PYINFRA_LOG = PROJECT / ".cache" / "demo" / "pyinfra.log"

# What pyinfra prints as it starts an operation; ours are named `layer | stage | Sentence`.
OPERATION = re.compile(r"Starting operation: (?P<layer>[a-z_]+) \| (?P<stage>[a-z]+) \| (?P<what>.*?)\s*$")
# What it says of the proxy's build: that it takes a minute, or which hosts it can't be made for.
BUILD = re.compile("(?:compil(?:ing|ed) the proxy|waiting for another run|The proxy isn't compiled).*")
ANSI = re.compile(r"\x1b\[[0-9;]*[A-Za-z]")

COMPILE = """
import platform, sys
from deploys.lib import compiled
if not compiled.lacking("{}.{}".format(*sys.version_info), platform.machine()):
    compiled.wheel()
"""

SMALL, COLD, BIG = "llama3.2:3b", "llama3.1:8b", "qwen2.5:32b"


class DemoError(Exception):
    """The demo can't go on; the message says what happened and what to look at."""


@dataclass(frozen=True)
class Answer:
    """One answer of the proxy: its text, its X-Drover headers, and when the first byte came."""

    text: str
    headers: dict[str, str]
    ttft_seconds: float
    total_seconds: float


def say(line: str = "") -> None:
    """Print a line of the story at once, also into a pipe."""
    print(line, flush=True)


@contextmanager
def chapter(title: str) -> Iterator[None]:
    """Print a title, and how long what follows took."""
    say(f"\n== {title}")
    began = time.monotonic()
    yield
    say(f"   ({time.monotonic() - began:.1f} s)")


def lab(*arguments: str, capture: bool = False) -> str:
    """Run a command of the lab and return what it printed; fail with what it said."""
    done = subprocess.run(
        [sys.executable, "-m", "lab", *arguments],
        cwd=PROJECT,
        check=False,
        text=True,
        stdout=subprocess.PIPE if capture else None,
    )
    if done.returncode != 0:
        raise DemoError(f"`python -m lab {' '.join(arguments)}` failed with exit code {done.returncode}")
    return done.stdout or ""


@contextmanager
def compiling() -> Iterator[None]:
    """Have the proxy compiled while the hosts are made, both the first time only; provisioning waits for it.

    What keeps this machine from it, or fails, is for the deploy to tell.
    """
    process = subprocess.Popen(
        [sys.executable, "-c", COMPILE],
        cwd=PROJECT,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
    try:
        yield
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGINT)  # the compiler too
        process.wait()


def provision() -> None:
    """Run deploys/site.py as an operator does, one line of progress for each stage of each layer."""
    PYINFRA_LOG.parent.mkdir(parents=True, exist_ok=True)
    command = [str(BIN / "pyinfra"), "--yes", str(FLEET / "inventory.py"), "deploys/site.py"]
    say("   $ pyinfra -y inventories/lab/inventory.py deploys/site.py")
    began = time.monotonic()
    shown = ""
    with (
        PYINFRA_LOG.open("w") as log,
        subprocess.Popen(
            command,
            cwd=PROJECT,
            text=True,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            env={**os.environ, "PYINFRA_PROGRESS": "off", "PYTHONUNBUFFERED": "1"},
        ) as run,
    ):
        assert run.stdout is not None
        for line in run.stdout:
            log.write(line)
            found = OPERATION.search(ANSI.sub("", line))
            if found:
                stage = f"{found['layer']:<18} {found['stage']}"
                if stage != shown:
                    say(f"   {time.monotonic() - began:6.1f} s  {stage}")
                    shown = stage
            elif told := BUILD.search(ANSI.sub("", line)):
                say(f"   {time.monotonic() - began:6.1f} s  {told[0]}")
    if run.returncode != 0:
        tail = "".join(PYINFRA_LOG.read_text().splitlines(keepends=True)[-25:])
        raise DemoError(f"pyinfra failed with exit code {run.returncode}; the end of {PYINFRA_LOG}:\n{tail}")


def chat(client: Any, model: str, prompt: str, *, echo: bool = False) -> Answer:
    """Stream one chat with the openai package and keep what an operator wants to know of it."""
    began = time.monotonic()
    first: float | None = None
    words: list[str] = []
    messages = [{"role": "user", "content": prompt}]
    with client.chat.completions.with_streaming_response.create(
        model=model, messages=messages, stream=True, max_tokens=32
    ) as response:
        headers = {k.lower(): v for k, v in response.headers.items() if k.lower().startswith("x-drover-")}
        for event in response.parse():
            piece = event.choices[0].delta.content if event.choices else None
            if piece:
                first = first or time.monotonic() - began
                words.append(piece)
                if echo:
                    print(piece, end="", flush=True)
    if echo:
        print(flush=True)
    return Answer("".join(words), headers, first or 0.0, time.monotonic() - began)


def resident(host: Any) -> str:
    """Say what is in the host's GPUs, from Ollama's own list as the proxy gives it."""
    models = sorted(m.model or "?" for m in host.ps().models)
    return ", ".join(models) or "nothing"


def tell(answer: Answer) -> None:
    """Print one line on how an answer came about."""
    seconds = {name: int(answer.headers.get(f"x-drover-{name}-ms", "0")) / 1000 for name in ("queue", "load")}
    say(
        f"   on {answer.headers.get('x-drover-instance', '?')}: waited {seconds['queue']:.2f} s, "
        f"of which loading {seconds['load']:.2f} s; first token after {answer.ttft_seconds:.2f} s"
    )


def talk(address: str, key: str) -> None:
    """Tell the proxy's part of the story, on the host with one GPU of 24 GB."""
    import ollama  # noqa: PLC0415 - the clients take a second to import: only when there is a proxy to talk to
    import openai  # noqa: PLC0415

    door = f"http://{address}:8080"
    client = openai.OpenAI(base_url=f"{door}/v1", api_key=key, max_retries=0, timeout=120)
    native = ollama.Client(host=door, headers={"Authorization": f"Bearer {key}"})

    with chapter(f"Through the proxy at {door}, with a key"):
        say(f"   models: {', '.join(sorted(m.id for m in client.models.list()))}")
        say(f"   in the GPU: {resident(native)}")
    with chapter(f"A chat with {SMALL}, which the deploy left warm (openai package, streamed)"):
        print("   > ", end="", flush=True)
        tell(chat(client, SMALL, "Say hello to the fleet.", echo=True))
    with chapter(f"{COLD} is not loaded yet: the proxy loads it beside the other, then answers"):
        tell(chat(client, COLD, "What is a canary?"))
        say(f"   in the GPU: {resident(native)}")
    with chapter(f"{BIG} doesn't fit beside them: the least recently used idle model leaves first"):
        before = {m.model or "?" for m in native.ps().models}
        tell(chat(client, BIG, "What is a drain?"))
        after = {m.model or "?" for m in native.ps().models}
        say(f"   left: {', '.join(sorted(before - after)) or 'nothing'}; in the GPU: {resident(native)}")
        if not before - after:
            raise DemoError(f"{BIG} was loaded but nothing was evicted; see `lab logs` of the host")
    try:
        openai.OpenAI(base_url=f"{door}/v1", api_key="drv_wrong", max_retries=0).models.list()
    except openai.AuthenticationError as refused:
        say(f"\n== A wrong key: {refused.status_code} {refused.body}")
    else:
        raise DemoError("a wrong key was let in")


def main() -> int:
    """Run the demo; leave nothing behind unless asked to keep the lab."""
    parser = argparse.ArgumentParser(prog="python -m lab.demo", description=__doc__)
    parser.add_argument("--keep", action="store_true", help="leave the lab up at the end")
    arguments = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell in the background ignores it

    from lab.fleet import read_secrets  # noqa: PLC0415 - not on a machine where the demo can't run
    from lab.hosts import Lab, LabError, tools  # noqa: PLC0415

    began = time.monotonic()
    code, keep = 1, arguments.keep
    try:
        tools.ensure_packages(say)
        with compiling():
            with chapter("Three bare hosts: two L4, four A100, one RTX 4090 (simulated)"):
                lab("up", "--hosts", "3", "--profile", "profiles/mixed.yaml")
            with chapter("From bare Debian to served and warm"):
                provision()
        host = Lab("lab").hosts[2]
        talk(host.address, read_secrets("lab")["use"])
        say(f"\nDone in {time.monotonic() - began:.0f} s.")
        code = 0
    except (DemoError, LabError) as error:
        print(f"error: {error}", file=sys.stderr)
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        code, keep = 130, False
    finally:
        if keep:
            say("The lab is up. Look around:")
            say("   .venv/bin/python -m lab list")
            say("   .venv/bin/python -m lab ssh lab-c nvidia-smi")
            say("   .venv/bin/python -m lab ssh lab-c curl -s http://127.0.0.1:8081/metrics")
            say("   .venv/bin/python -m lab down")
        else:
            lab("down")
            say("The lab is down; `KEEP=1 make demo` leaves it up to look around.")
    return code


if __name__ == "__main__":
    raise SystemExit(main())
