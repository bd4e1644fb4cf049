"""Signs requests as the stock `ollama` command does with OLLAMA_AUTH=1."""

from __future__ import annotations

import base64
import time

import httpx
from drover_proxy.guard.sshkey import to_line
from nacl.signing import SigningKey


class Signer:
    """A client's key pair."""

    def __init__(self) -> None:
        self.key = SigningKey.generate()
        self.line = to_line(bytes(self.key.verify_key))
        """The public key as its .pub file has it."""

    def authorization(self, method: str, path: str, stamp: int) -> str:
        """Return the field that goes with a request for `path?ts=stamp`."""
        signature = self.key.sign(f"{method},{path}?ts={stamp}".encode()).signature
        return f"{self.line.split()[1]}:{base64.b64encode(signature).decode()}"

    def send(
        self,
        client: httpx.Client,
        method: str,
        path: str,
        *,
        headers_too: dict[str, str] | None = None,
        stamp: int | None = None,
        **more,
    ) -> httpx.Response:
        """Send a signed request; the same one again where the stamp is given."""
        stamp = int(time.time()) if stamp is None else stamp
        headers = {"authorization": self.authorization(method, path, stamp)} | (headers_too or {})
        return client.request(method, f"{path}?ts={stamp}", headers=headers, **more)
