"""The keys file: who may come in, what for, and by what they are known.

    keys:
      - {name: demo, sha256: <64 hex digits>, scopes: [use], models: ["*"], expires: 2027-01-31}
      - {name: ann, ssh: ssh-ed25519 AAAA...}
      - {name: ci, certificate: "cn:ci.example"}

Of a key only its SHA-256 is kept; the key itself is shown once, when it is made (store.py). An entry may have
more than one of the three: they are ways of the same caller.
"""

from __future__ import annotations

import datetime as dt
import fnmatch
import hashlib
import hmac
import os
import re
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from drover_proxy.config.reader import (
    REQUIRED,
    ConfigError,
    Key,
    Problem,
    ReadValue,
    Report,
    choice,
    items,
    read_section,
    text,
)
from drover_proxy.guard import certificate, sshkey

SCOPES = ("use", "admin", "metrics")
WAYS = ("sha256", "ssh", "certificate")
"""What a caller may be known by."""
LOADER = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
"""The file is read while the proxy serves, and libyaml is ten times as fast."""

DEEPEST = 16
"""Lists and mappings within each other; a keys file needs four."""

KEPT_ANSWERS = 1024
"""Models of which is kept whether a key may use them."""


@dataclass(frozen=True, slots=True)
class Caller:
    """Who is asking: one entry of the keys file."""

    name: str
    scopes: frozenset[str]
    models: tuple[str, ...]
    expires_at: float | None = None
    sha256: str = ""
    """Of a key, in hex."""
    ssh: bytes = b""
    """The public key of the `ollama` command, 32 bytes."""
    certificate: str = ""
    """A name of a client certificate, as certificate.py writes it."""
    _may_use: dict[str, bool] = field(default_factory=dict, repr=False, compare=False)

    def may(self, scope: str) -> bool:
        """Whether the key has a scope; admin includes the others."""
        return scope in self.scopes or "admin" in self.scopes

    def may_use(self, model: str) -> bool:
        """Whether the key may use a model, by its canonical name."""
        may = self._may_use.get(model)
        if may is None:
            may = self.sees_all or _matches(self.models, model)
            if len(self._may_use) >= KEPT_ANSWERS:
                self._may_use.clear()
            self._may_use[model] = may
        return may

    @property
    def sees_all(self) -> bool:
        """Whether no model is hidden from the key."""
        return "*" in self.models


ANYBODY = Caller("", frozenset(SCOPES), ("*",))
"""The caller where no keys are configured."""
NOBODY = Caller("", frozenset(), ())
"""The caller before anything was shown."""


def _matches(patterns: tuple[str, ...], model: str) -> bool:
    # `llama3.2` in a list of patterns means all of its tags, as a person would expect; and `llama*` means no
    # `llama-of-mine.example/evil/model`.
    name = model.rpartition(":")[0]
    return any(
        fnmatch.fnmatchcase(model, pattern) or (":" not in pattern and fnmatch.fnmatchcase(name, pattern))
        for pattern in patterns
        if "/" in pattern or "/" not in model or pattern == "*"
    )


class KeyRing:
    """The callers that are let in, looked up by what they show."""

    def __init__(self, callers: tuple[Caller, ...]) -> None:
        self.callers = callers
        self.by_signer = {caller.ssh: caller for caller in callers if caller.ssh}
        self.by_certificate = {caller.certificate: caller for caller in callers if caller.certificate}
        self._by_hash = {bytes.fromhex(c.sha256): (bytes.fromhex(c.sha256), c) for c in callers if c.sha256}

    def by_key(self, shown: bytes) -> Caller | None:
        """Return whose key this is; None for nobody we know. Whether it has expired is not looked at."""
        digest = hashlib.sha256(shown).digest()
        found = self._by_hash.get(digest)
        # What could be timed is a look-up by a hash that nobody can choose; the comparison is for the rest.
        if found is None or not hmac.compare_digest(found[0], digest):
            return None
        return found[1]


def keys_path(keys_file: str) -> Path:
    """Where the keys are read: the file itself where we may read it, else the service's credential.

    A credential is a copy from when the service was started: it can't be changed without a restart.
    """
    path = Path(keys_file)
    folder = os.environ.get("CREDENTIALS_DIRECTORY")
    if folder and not os.access(path, os.R_OK) and (credential := Path(folder) / path.name).exists():
        return credential
    return path


def _expiry(node: yaml.Node, path: str, report: Report) -> Any:
    kind = "a date (2027-01-31) or a time with its zone (2027-01-31T12:00:00Z)"
    raw = node.value if isinstance(node, yaml.ScalarNode) else ""
    try:
        return expiry_time(str(raw))
    except ValueError:
        report.add(path, f"expected {kind}, found {raw!r}", node)
        return None


def expiry_time(text_value: str) -> float:
    """Read a date or a time with its zone as seconds since 1970; ValueError for anything else."""
    moment = dt.datetime.fromisoformat(text_value.replace("Z", "+00:00"))
    if moment.tzinfo is None:
        if len(text_value) > 10:
            raise ValueError("a time needs its zone")
        moment = moment.replace(tzinfo=dt.timezone.utc)
    return moment.timestamp()


def _read_by(reader: Callable[[str], Any]) -> ReadValue:
    def read(node: yaml.Node, path: str, report: Report) -> Any:
        raw = text()(node, path, report)
        try:
            return None if raw is None else reader(raw)
        except ValueError as error:
            report.add(path, str(error), node)
            return None

    return read


ENTRY = {
    "name": Key(
        "name", text("a name", r"[A-Za-z0-9][A-Za-z0-9_.@-]{0,63}"), REQUIRED, "For logs and metrics."
    ),
    "sha256": Key("hash", text("64 hex digits", r"[0-9a-f]{64}"), None, "SHA-256 of the key."),
    "ssh": Key("public key", _read_by(sshkey.read_line), None, "What the `ollama` command signs with."),
    "certificate": Key(
        "name", _read_by(certificate.read_identity), None, f"A client certificate: {certificate.FORMS}."
    ),
    "scopes": Key("list", items(choice(*SCOPES), "a list of scopes"), ("use",), "What it is good for."),
    "models": Key("list", items(text("a pattern"), "a list of patterns"), ("*",), "Models it may use."),
    "expires": Key("date", _expiry, None, "Not valid from then on."),
}


def _compose(content: str) -> yaml.Node | None:
    depth = 0
    for event in yaml.parse(content, Loader=LOADER):
        if isinstance(event, yaml.CollectionStartEvent):
            depth += 1
        elif isinstance(event, yaml.CollectionEndEvent):
            depth -= 1
        if depth > DEEPEST:  # composing calls itself for each level, and in C that ends the process
            raise RecursionError
    return yaml.compose(content, Loader=LOADER)


def read_keys(content: str, file: str) -> tuple[Caller, ...]:
    """Read a keys file's text; ConfigError with every problem. No key or hash is ever part of a message."""
    try:
        node = _compose(content)
    except yaml.YAMLError as error:
        line = (
            error.problem_mark.line + 1
            if isinstance(error, yaml.MarkedYAMLError) and error.problem_mark
            else 0
        )
        raise ConfigError(file, [Problem("", "is not YAML", line)]) from None
    except RecursionError:
        raise ConfigError(file, [Problem("", "is nested too deeply to be a list of keys")]) from None
    if node is None:
        raise ConfigError(file, [Problem("", "is empty; `keys: []` lets nobody in")])
    report = Report()

    def entry(item: yaml.Node, path: str, report: Report) -> Any:
        return read_section(item, path, report, ENTRY)

    root = {"keys": Key("list", items(entry, "a list of keys"), REQUIRED, "The keys.")}
    raw = read_section(node, "", report, root)
    callers: list[Caller] = []
    if not report.problems:
        callers = [_caller(item) for item in raw["keys"]]
        _check(callers, node, report)
    if report.problems:
        # What was found could be a raw key that somebody pasted: leave it out.
        clean = [
            Problem(p.path, re.sub(r", found .*", "", p.message, flags=re.DOTALL), p.line)
            for p in report.problems
        ]
        raise ConfigError(file, clean)
    return tuple(callers)


def _check(callers: list[Caller], node: yaml.Node, report: Report) -> None:
    """Check what several fields and entries decide together."""
    places = node.value[0][1].value  # of the list of keys, the only thing at the top
    for index, caller in enumerate(callers):
        if not any(getattr(caller, way) for way in WAYS):
            report.add(f"keys[{index}]", f"missing; expected one of {', '.join(WAYS)}", places[index])
    for part in ("name", *WAYS):
        first: dict[Any, int] = {}
        for index, caller in enumerate(callers):
            value = getattr(caller, part)
            if value and first.setdefault(value, index) != index:
                message = f"the same as that of keys[{first[value]}]"
                report.add(f"keys[{index}].{part}", message, places[index])


def _caller(raw: dict[str, Any]) -> Caller:
    return Caller(
        name=raw["name"],
        scopes=frozenset(raw["scopes"]),
        models=tuple(pattern.casefold() for pattern in raw["models"]),
        expires_at=raw["expires"],
        sha256=raw["sha256"] or "",
        ssh=raw["ssh"] or b"",
        certificate=raw["certificate"] or "",
    )


def load_keys(path: Path) -> KeyRing:
    """Read a keys file; ConfigError when it can't be used."""
    try:
        content = path.read_text(encoding="utf-8")
    except OSError as error:
        raise ConfigError(str(path), [Problem("", f"can't be read: {error.strerror}")]) from error
    except UnicodeDecodeError as problem:  # another name than above: compiled, a variable has one type
        raise ConfigError(str(path), [Problem("", "is not UTF-8 text")]) from problem
    return KeyRing(read_keys(content, str(path)))


def hash_of(key: str) -> str:
    """Return what the keys file keeps of a key."""
    return hashlib.sha256(key.encode()).hexdigest()
