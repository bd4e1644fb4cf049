"""API keys. Only their SHA-256 is kept; a key itself is shown once, when it is made.

    keys:
      - {name: demo, sha256: <64 hex digits>, scopes: [use], models: ["*"], expires: 2027-01-31}

An unknown, a revoked and an expired key all get the same answer.
"""

from __future__ import annotations

import datetime as dt
import fnmatch
import hashlib
import hmac
import os
import re
import secrets
import tempfile
import time
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import yaml

from drover_proxy.config.reader import (
    REQUIRED,
    ConfigError,
    Key,
    Problem,
    Report,
    choice,
    items,
    read_section,
    text,
)

SCOPES = ("use", "admin", "metrics")
PREFIX = "drv_"


@dataclass(frozen=True, slots=True)
class Caller:
    """Who is asking: one entry of the keys file."""

    name: str
    scopes: frozenset[str]
    models: tuple[str, ...]
    expires_at: float | None = None
    sha256: str = ""

    def may(self, scope: str) -> bool:
        """Whether the key has a scope; admin includes the others."""
        return scope in self.scopes or "admin" in self.scopes

    def may_use(self, model: str) -> bool:
        """Whether the key may use a model, by its canonical name."""
        return self.sees_all or _matches(self.models, model)

    @property
    def sees_all(self) -> bool:
        """Whether no model is hidden from the key."""
        return "*" in self.models


ANYBODY = Caller("", frozenset(SCOPES), ("*",))
"""The caller where no keys are configured."""
NOBODY = Caller("", frozenset(), ())
"""The caller before anything was shown."""


@lru_cache(maxsize=4096)
def _matches(patterns: tuple[str, ...], model: str) -> bool:
    # `llama3.2` in a list of patterns means all of its tags, as a person would expect.
    name = model.rpartition(":")[0]
    return any(
        fnmatch.fnmatchcase(model, pattern) or (":" not in pattern and fnmatch.fnmatchcase(name, pattern))
        for pattern in patterns
    )


class KeyRing:
    """The keys that are let in, looked up by the hash of what was shown."""

    def __init__(self, callers: tuple[Caller, ...]) -> None:
        self.callers = callers
        self._by_hash = {caller.sha256: caller for caller in callers}

    def caller(self, shown: bytes | None) -> Caller | None:
        """Return who shows this key; None for nobody we know, or whose time is over."""
        if not shown:
            return None
        digest = hashlib.sha256(shown).hexdigest()
        caller = self._by_hash.get(digest)
        # What could be timed is a lookup by a hash that nobody can choose; the comparison is for the rest.
        if caller is None or not hmac.compare_digest(caller.sha256, digest):
            return None
        if caller.expires_at is not None and time.time() >= caller.expires_at:
            return None
        return caller


def shown_key(authorization: bytes | None, x_api_key: bytes | None) -> bytes | None:
    """Return the key that a request shows, from `Authorization: Bearer` or `x-api-key`."""
    if authorization:
        scheme, _, value = authorization.partition(b" ")
        if scheme.lower() == b"bearer" and value.strip():
            return value.strip()
    return x_api_key.strip() if x_api_key else None


def keys_path(keys_file: str) -> Path:
    """Where the keys are read: the service's credential of that name, else the file itself."""
    folder = os.environ.get("CREDENTIALS_DIRECTORY")
    if folder and (credential := Path(folder) / Path(keys_file).name).exists():
        return credential
    return Path(keys_file)


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


ENTRY = {
    "name": Key(
        "name", text("a name", r"[A-Za-z0-9][A-Za-z0-9_.@-]{0,63}"), REQUIRED, "For logs and metrics."
    ),
    "sha256": Key("hash", text("64 hex digits", r"[0-9a-f]{64}"), REQUIRED, "SHA-256 of the key."),
    "scopes": Key("list", items(choice(*SCOPES), "a list of scopes"), ("use",), "What it is good for."),
    "models": Key("list", items(text("a pattern"), "a list of patterns"), ("*",), "Models it may use."),
    "expires": Key("date", _expiry, None, "Not valid from then on."),
}


def read_keys(content: str, file: str) -> tuple[Caller, ...]:
    """Read a keys file's text; ConfigError with every problem. No key or hash is ever part of a message."""
    try:
        node = yaml.compose(content, Loader=yaml.SafeLoader)
    except yaml.YAMLError as error:
        line = (
            error.problem_mark.line + 1
            if isinstance(error, yaml.MarkedYAMLError) and error.problem_mark
            else 0
        )
        raise ConfigError(file, [Problem("", "is not YAML", line)]) from None
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
        for field in ("name", "sha256"):
            values = [getattr(caller, field) for caller in callers]
            for index, value in enumerate(values):
                if value in values[:index]:
                    report.add(f"keys[{index}].{field}", f"the same as that of keys[{values.index(value)}]")
    if report.problems:
        # What was found could be a raw key that somebody pasted: leave it out.
        clean = [
            Problem(p.path, re.sub(r", found .*", "", p.message, flags=re.DOTALL), p.line)
            for p in report.problems
        ]
        raise ConfigError(file, clean)
    return tuple(callers)


def _caller(raw: dict[str, Any]) -> Caller:
    return Caller(
        name=raw["name"],
        scopes=frozenset(raw["scopes"]),
        models=tuple(pattern.casefold() for pattern in raw["models"]),
        expires_at=raw["expires"],
        sha256=raw["sha256"],
    )


def load_keys(path: Path) -> KeyRing:
    """Read a keys file; ConfigError when it can't be used."""
    try:
        content = path.read_text(encoding="utf-8")
    except OSError as error:
        raise ConfigError(str(path), [Problem("", f"can't be read: {error.strerror}")]) from error
    except UnicodeDecodeError as error:
        raise ConfigError(str(path), [Problem("", "is not UTF-8 text")]) from error
    return KeyRing(read_keys(content, str(path)))


def new_key() -> str:
    """Make a key: a fixed prefix, so that leaks can be searched for, and 256 random bits."""
    return PREFIX + secrets.token_urlsafe(32)


def hash_of(key: str) -> str:
    """Return what the keys file keeps of a key."""
    return hashlib.sha256(key.encode()).hexdigest()


def write_keys(path: Path, entries: list[dict[str, Any]]) -> None:
    """Replace a keys file whole, readable by its owner alone; an existing file keeps its mode and owner."""
    content = yaml.safe_dump({"keys": entries}, sort_keys=False, allow_unicode=True)
    read_keys(content, str(path))
    before = path.stat() if path.exists() else None
    fd, temporary = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
    try:
        with os.fdopen(fd, "w", encoding="utf-8") as file:
            file.write(content)
            if before:
                os.fchmod(fd, before.st_mode & 0o7777)
                if os.geteuid() == 0:
                    os.fchown(fd, before.st_uid, before.st_gid)
        Path(temporary).replace(path)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise
