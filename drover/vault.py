"""Reading YAML of a fleet: ansible-vault values and files are decrypted by ansible-core's own VaultLib."""

from __future__ import annotations

import os
import stat
import subprocess
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from drover.ansible_core import ansible_error, vault_lib
from drover.errors import FleetError

if TYPE_CHECKING:
    from ansible.parsing.vault import VaultLib

HEADER = "$ANSIBLE_VAULT"
PASSWORD_FILE = ".vault-password"  # noqa: S105 - the name of the file, not a password
PASSWORD_ENV = "ANSIBLE_VAULT_PASSWORD_FILE"  # noqa: S105 - the name of the variable


class Literal(str):
    """A text marked `!unsafe`: braces in it are meant literally."""

    __slots__ = ()
    literal = True


class Secret(Literal):
    """A text that was encrypted: it is never shown."""

    __slots__ = ()

    def __repr__(self) -> str:
        return "'********'"


def _mark(value: Any) -> Any:
    """Return the value with each text in it marked as a secret."""
    if isinstance(value, str):
        return Secret(value)
    if isinstance(value, dict):
        return {key: _mark(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_mark(item) for item in value]
    return value


class Vault:
    """Decrypts with the fleet's password, which is looked up only when the first secret is met."""

    def __init__(self, folder: Path, password_file: str | Path | None = None) -> None:
        self.folder = folder
        self._given = password_file
        self._lib: VaultLib | None = None

    def password_file(self) -> Path:
        """Return the file with the password: the one given, that of the environment, or the fleet's own."""
        chosen = self._given or os.environ.get(PASSWORD_ENV)
        return Path(chosen).expanduser() if chosen else self.folder / PASSWORD_FILE

    def _password(self) -> bytes:
        path = self.password_file()
        if not path.is_file():
            raise FleetError(
                f"{path}: no such file, but {self.folder} holds values encrypted by ansible-vault. "
                f"Next: write the vault's password into it (chmod 600), or name another by {PASSWORD_ENV}."
            )
        mode = path.stat().st_mode
        if mode & stat.S_IXUSR:  # Ansible's custom: an executable password file is a program that prints it
            done = subprocess.run([str(path.resolve())], capture_output=True, check=False)
            if done.returncode != 0:
                raise FleetError(f"{path}: the program failed with {done.returncode}. Next: run it by hand.")
            return done.stdout.strip()
        if mode & (stat.S_IRGRP | stat.S_IROTH):
            raise FleetError(f"{path}: others may read this vault password. Next: chmod 600 {path}")
        password = path.read_bytes().strip()
        if not password:
            raise FleetError(f"{path}: the file is empty. Next: write the vault's password into it.")
        return password

    def decrypt(self, text: str, where: str) -> str:
        """Return the plain text; `where` names the place in the error, which never holds the text."""
        if self._lib is None:
            self._lib = vault_lib(self._password())
        try:
            plain: bytes = self._lib.decrypt(text.strip().encode())
        except ansible_error():
            raise FleetError(
                f"{where}: can't be decrypted with the password of {self.password_file()}. "
                "Next: ansible-vault view with the right password, or encrypt it again."
            ) from None
        return plain.decode()


def load(path: Path, vault: Vault) -> Any:
    """Return the content of one YAML file, decrypted."""
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise FleetError(f"{path}: can't be read: {error}") from None
    encrypted = text.startswith(HEADER)
    if encrypted:
        text = vault.decrypt(text, str(path))
    try:
        values = yaml.load(text, _loader(path, vault))  # noqa: S506 - built on SafeLoader
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark
        line = f":{mark.line + 1}" if mark else ""
        raise FleetError(f"{path}{line}: not valid YAML: {error.problem}") from None
    return _mark(values) if encrypted else values


def _loader(path: Path, vault: Vault) -> type[yaml.SafeLoader]:
    """Return a SafeLoader that knows Ansible's two tags and refuses a key given twice."""

    class Loader(yaml.SafeLoader):
        pass

    def secret(loader: yaml.SafeLoader, node: yaml.ScalarNode) -> str:
        return Secret(vault.decrypt(loader.construct_scalar(node), f"{path}:{node.start_mark.line + 1}"))

    def unsafe(loader: yaml.SafeLoader, node: yaml.Node) -> Any:
        if isinstance(node, yaml.ScalarNode):
            return Literal(loader.construct_scalar(node))
        raise yaml.constructor.ConstructorError(None, None, "!unsafe goes before a text", node.start_mark)

    def mapping(loader: yaml.SafeLoader, node: yaml.MappingNode) -> dict[Any, Any]:
        seen: set[Any] = set()
        for key_node, _value in node.value:
            if not isinstance(key_node, yaml.ScalarNode):
                continue
            if key_node.value in seen and key_node.value != "<<":
                raise yaml.constructor.ConstructorError(
                    None, None, f"the key {key_node.value!r} stands twice", key_node.start_mark
                )
            seen.add(key_node.value)
        loader.flatten_mapping(node)
        return loader.construct_mapping(node, deep=True)

    Loader.add_constructor("!vault", secret)
    Loader.add_constructor("!unsafe", unsafe)
    Loader.add_constructor(yaml.resolver.BaseResolver.DEFAULT_MAPPING_TAG, mapping)
    return Loader
