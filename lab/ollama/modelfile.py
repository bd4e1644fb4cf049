"""The Modelfile's grammar, which is the client's business: the server never sees one."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import Any

COMMANDS = (
    "from",
    "license",
    "template",
    "system",
    "adapter",
    "draft",
    "renderer",
    "parser",
    "parameter",
    "message",
    "requires",
)
DEPRECATED = (
    "penalize_newline",
    "low_vram",
    "f16_kv",
    "logits_all",
    "vocab_only",
    "use_mlock",
    "mirostat",
    "mirostat_tau",
    "mirostat_eta",
)
_INTEGERS = (
    "num_keep",
    "seed",
    "num_predict",
    "top_k",
    "repeat_last_n",
    "num_ctx",
    "num_batch",
    "num_gpu",
    "main_gpu",
    "num_thread",
    "draft_num_predict",
)
_FLOATS = (
    "top_p",
    "min_p",
    "typical_p",
    "temperature",
    "repeat_penalty",
    "presence_penalty",
    "frequency_penalty",
)
_BAD_COMMAND = (
    'command must be one of "from", "license", "template", "system", "adapter", "draft", "renderer", '
    '"parser", "parameter", "message", or "requires"'
)
_BAD_ROLE = 'message role must be one of "system", "user", or "assistant"'
_VERSION = re.compile(r"^v?\d+(\.\d+(\.\d+)?)?(-[0-9A-Za-z.-]+)?$")


class ModelfileError(ValueError):
    """The Modelfile can't be used; the text is what the command prints."""


@dataclass
class Modelfile:
    """What a Modelfile says."""

    sources: list[str] = field(default_factory=list)  # FROM
    adapters: list[str] = field(default_factory=list)
    values: dict[str, str] = field(default_factory=dict)  # template, system, renderer, parser, requires
    licences: list[str] = field(default_factory=list)
    parameters: dict[str, Any] = field(default_factory=dict)
    messages: list[dict[str, str]] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)


def parameter(name: str, text: str) -> Any:
    """A parameter's value with its type; ModelfileError with Ollama's words otherwise."""
    if name == "stop":
        return text
    if name == "use_mmap":
        if text.lower() in {"1", "t", "true"}:
            return True
        if text.lower() in {"0", "f", "false"}:
            return False
        raise ModelfileError(f"invalid bool value [{text}]")
    if name in _INTEGERS:
        if not re.fullmatch(r"[+-]?\d+", text):
            raise ModelfileError(f"invalid int value [{text}]")
        return int(text)
    if name in _FLOATS:
        try:
            return float(text)
        except ValueError:
            raise ModelfileError(f"invalid float value [{text}]") from None
    raise ModelfileError(f"unknown parameter '{name}'")


class _Scanner:
    """Walks over the text, command by command."""

    def __init__(self, text: str) -> None:
        self.text = text
        self.at = 0

    @property
    def line(self) -> int:
        """The number of the line where it stands."""
        return self.text.count("\n", 0, self.at) + 1

    def skip(self) -> bool:
        """Go to the next command, over blanks and comments; says whether there is one."""
        while self.at < len(self.text):
            character = self.text[self.at]
            if character == "#":
                end = self.text.find("\n", self.at)
                self.at = len(self.text) if end < 0 else end + 1
            elif character.isspace():
                self.at += 1
            else:
                return True
        return False

    def word(self, allowed: str) -> str:
        """The next word."""
        match = re.compile(f"[{allowed}]*").match(self.text, self.at)
        found = match.group(0) if match else ""
        self.at += len(found)
        return found

    def space(self) -> bool:
        """Step over one blank; says whether there was one."""
        if self.at < len(self.text) and self.text[self.at] in " \t":
            self.at += 1
            return True
        return False

    def value(self) -> str:
        """The rest of the line, or a quoted text that may go over several."""
        while self.at < len(self.text) and self.text[self.at] in " \t":
            self.at += 1
        for quote in ('"""', '"'):
            if self.text.startswith(quote, self.at):
                end = self.text.find(quote, self.at + len(quote))
                if end < 0:
                    raise ModelfileError("unexpected EOF")
                found = self.text[self.at + len(quote) : end]
                self.at = end + len(quote)
                return found
        end = self.text.find("\n", self.at)
        end = len(self.text) if end < 0 else end
        found = self.text[self.at : end].strip()
        self.at = end
        return found


def parse(raw: bytes) -> Modelfile:
    """Read a Modelfile."""
    encoding = "utf-16" if raw[:2] in {b"\xff\xfe", b"\xfe\xff"} else "utf-8-sig"
    scanner = _Scanner(raw.decode(encoding, "replace").replace("\r\n", "\n"))
    found = Modelfile()
    while scanner.skip():
        command = scanner.word("A-Za-z").lower()
        if not scanner.space():
            if scanner.at >= len(scanner.text):
                raise ModelfileError("unexpected EOF")
            line = scanner.line + (1 if scanner.text[scanner.at] == "\n" else 0)
            raise ModelfileError(f"(line {line}): {_BAD_COMMAND}")
        if command not in COMMANDS:
            raise ModelfileError(f"(line {scanner.line}): {_BAD_COMMAND}")
        _take(found, command, scanner)
    if not found.sources:
        raise ModelfileError("no FROM line")
    return found


def _take(found: Modelfile, command: str, scanner: _Scanner) -> None:
    if command == "parameter":
        name = scanner.word("A-Za-z0-9_")
        if not scanner.space():
            raise ModelfileError(f"unexpected EOF: {name}")
        _parameter(found, name, scanner.value())
        return
    if command == "message":
        role = scanner.word("A-Za-z")
        if role not in {"system", "user", "assistant"}:
            raise ModelfileError(f"(line {scanner.line}): {_BAD_ROLE}")
        found.messages.append({"role": role, "content": scanner.value()})
        return
    value = scanner.value()
    if command == "from":
        found.sources.append(value)
    elif command == "adapter":
        found.adapters.append(value)
    elif command == "license":
        found.licences.append(value)
    elif command == "requires":
        if not _VERSION.match(value):
            raise ModelfileError("requires must be a valid semver (e.g. 0.14.0)")
        found.values["requires"] = value.removeprefix("v")
    else:
        found.values[command] = value


def _parameter(found: Modelfile, name: str, text: str) -> None:
    if name in DEPRECATED:
        found.warnings.append(f"warning: parameter {name} is deprecated")
        return
    value = parameter(name, text)
    if name == "stop":
        found.parameters.setdefault("stop", []).append(value)
    else:
        found.parameters[name] = value
