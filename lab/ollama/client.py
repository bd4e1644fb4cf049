"""The command line's side of the HTTP API."""

from __future__ import annotations

import http.client
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from lab.ollama.config import host_and_port, variable

NO_SERVER = "could not connect to ollama server, run 'ollama serve' to start it"


class ClientError(Exception):
    """A command failed; the text goes to stderr behind `Error: `."""


class Client:
    """Talks to the server that OLLAMA_HOST names."""

    def __init__(self) -> None:
        scheme, host, self.port = host_and_port(variable(os.environ, "OLLAMA_HOST"))
        self.host = {"0.0.0.0": "127.0.0.1", "::": "::1", "": "127.0.0.1"}.get(host, host)
        self._kind = http.client.HTTPSConnection if scheme == "https" else http.client.HTTPConnection

    def _open(
        self, method: str, path: str, body: object
    ) -> tuple[http.client.HTTPConnection, http.client.HTTPResponse]:
        connection = self._kind(self.host, self.port)
        headers = {"Accept": "application/json", "User-Agent": "ollama-simulated"}
        data = None
        if isinstance(body, dict):
            data = json.dumps(body).encode()
            headers["Content-Type"] = "application/json"
        try:
            connection.request(method, path, data, headers)
            return connection, connection.getresponse()
        except ConnectionRefusedError as error:
            raise ClientError(NO_SERVER) from error
        except (OSError, http.client.HTTPException) as error:
            url = f"http://{self.host}:{self.port}{path}"
            raise ClientError(f'{method.title()} "{url}": {error or "EOF"}') from error

    def call(self, method: str, path: str, body: object = None) -> Any:
        """A whole answer."""
        connection, answer = self._open(method, path, body)
        try:
            raw = answer.read()
        except (OSError, http.client.HTTPException) as error:
            raise ClientError("unexpected EOF") from error
        finally:
            connection.close()
        if answer.status >= 400:
            raise ClientError(_message(raw) or f"{answer.status} {answer.reason}")
        return json.loads(raw) if raw and method != "HEAD" else {}

    def lines(self, path: str, body: dict[str, Any]) -> Iterator[dict[str, Any]]:
        """A streamed answer, object by object; a line that is an error ends it."""
        connection, answer = self._open("POST", path, body)
        try:
            if answer.status >= 400:
                raise ClientError(f"{answer.status} {answer.reason}: {_message(answer.read())}")
            while line := answer.readline():
                data = json.loads(line)
                if "error" in data:
                    raise ClientError(str(data["error"]))
                yield data
        except (OSError, http.client.HTTPException) as error:
            raise ClientError("unexpected EOF") from error
        finally:
            connection.close()

    def upload(self, digest: str, path: Path) -> None:
        """Send a file as a blob, unless the server has it."""
        try:
            self.call("HEAD", f"/api/blobs/{digest}")
        except ClientError as error:
            if str(error) == NO_SERVER:
                raise
        else:
            return
        connection = self._kind(self.host, self.port)
        with path.open("rb") as file:
            headers = {"Content-Length": str(path.stat().st_size)}
            connection.request("POST", f"/api/blobs/{digest}", file, headers)
            answer = connection.getresponse()
            raw = answer.read()
        connection.close()
        if answer.status >= 400:
            raise ClientError(_message(raw))

    def heartbeat(self) -> None:
        """Ask whether the server is there."""
        self.call("HEAD", "/")


def _message(raw: bytes) -> str:
    try:
        return str(json.loads(raw)["error"])
    except (ValueError, KeyError, TypeError):
        return raw.decode(errors="replace")
