"""A host that answers facts from a script, and a way to run an operation's commands on this machine."""

from __future__ import annotations

import subprocess


class ScriptedHost:
    """Answers `get_fact` from a dictionary, or by running the fact's command here when asked to."""

    name = "scripted"

    def __init__(self) -> None:
        self.facts = {}
        self.noops = []
        self.messages = []
        self.live = False

    def get_fact(self, cls, **kwargs):
        """Return the scripted answer; a function is called with the fact's arguments."""
        if cls in self.facts:
            answer = self.facts[cls]
            return answer(**kwargs) if callable(answer) else answer
        if not self.live:
            raise AssertionError(f"unexpected fact {cls.__name__}({kwargs})")
        arguments = {key: value for key, value in kwargs.items() if not key.startswith("_")}
        command = cls().command(**arguments)
        text = command if isinstance(command, str) else command.get_raw_value()
        done = subprocess.run(["sh", "-c", text], capture_output=True, text=True, check=False)
        lines = done.stdout.splitlines()
        return cls().process(lines) if lines else cls().default()

    def noop(self, text):
        """Remember why nothing was done."""
        self.noops.append(text)

    def log_styled(self, message, **_kwargs):
        """Remember what would be shown to the operator."""
        self.messages.append(message)


def commands_of(operation, **arguments):
    """Return the commands an operation yields; strings are what a shell would be given."""
    return list(operation._inner(**arguments))


def text_of(command):
    """Return a command as its shell would see it."""
    return command if isinstance(command, str) else command.get_raw_value()


def perform(command):
    """Run one command here, with what it is given on its standard input."""
    stdin = command.connector_arguments.get("_stdin") or ""
    if isinstance(stdin, list):
        stdin = "".join(f"{line}\n" for line in stdin)
    return subprocess.run(
        ["sh", "-c", text_of(command)], input=stdin, capture_output=True, text=True, check=False, timeout=30
    )


def refusal_of(command):
    """Return the message with which a command fails its host."""
    assert command.function.__name__ == "_refuse"
    return command.args[0]
