"""POST /api/create: a model from another one or from uploaded files, with its own parameters."""

from __future__ import annotations

import asyncio
import json
from dataclasses import replace
from typing import Any

from lab.ollama import gguf, names
from lab.ollama.body import CREATE, Refused, decode
from lab.ollama.catalogue import LICENSE_LAYER, MODEL_LAYER, PARAMS_LAYER, TEMPLATE_LAYER
from lab.ollama.converse import Context
from lab.ollama.gotext import human_number
from lab.ollama.http import Answer, Request, dumps
from lab.ollama.progress import ProgressError, Say, report
from lab.ollama.pull_api import pull_model
from lab.ollama.store import (
    ADAPTER_LAYER,
    MESSAGES_LAYER,
    SYSTEM_LAYER,
    Layer,
    MissingError,
    Stored,
    valid_digest,
)

_QUANTIZATIONS = ("F32", "F16", "Q4_K_S", "Q4_K_M", "Q8_0")


async def create(context: Context, request: Request, answer: Answer) -> None:
    """POST /api/create."""
    data = decode(await request.body(), "api.CreateRequest", CREATE)
    name = names.parse(data.get("model") or data.get("name") or "")
    for files in (data.get("files"), data.get("adapters")):
        for path, digest in (files or {}).items():
            if path.startswith("/") or ".." in path.split("/"):
                raise Refused(400, "file path must be relative")
            if not digest:
                raise Refused(400, "invalid digest format")
    if name is None:
        raise Refused(400, "invalid model name")

    async def work(say: Say) -> None:
        layers, config = await _base(context, data, say)
        if data.get("quantize"):
            _check_quantization(str(data["quantize"]), config)
        created = _with_changes(context, data, layers)
        for layer, status in created:
            if status:
                say({"status": f"{status} {layer.digest}"})
        say({"status": "writing manifest"})
        old = context.store.manifest_path(name)
        replaced = context.store.digests_of(old) if old else set()
        context.store.assemble(name, [layer for layer, _ in created], config)
        for digest in replaced - context.store.used_digests():
            context.store.blob_path(digest).unlink(missing_ok=True)
        say({"status": "success"})

    await report(request, answer, data.get("stream") is not False, work)


def _check_quantization(text: str, config: dict[str, Any]) -> None:
    if text.upper() not in _QUANTIZATIONS:
        raise ProgressError(
            f"unsupported quantization type {text.upper()} - supported types are {', '.join(_QUANTIZATIONS)}"
        )
    if config["file_type"] not in {"F16", "BF16", "F32"}:
        raise ProgressError("quantization is only supported for F16, BF16 and F32 models")


async def _base(
    context: Context, data: dict[str, Any], say: Say
) -> tuple[list[tuple[Layer, str]], dict[str, Any]]:
    """The layers that the new model begins with, and its configuration."""
    if data.get("from"):
        return await _from_model(context, str(data["from"]), say)
    if data.get("files") is None:
        raise ProgressError("neither 'from' or 'files' was specified", 400)
    if not data["files"]:
        raise ProgressError("unknown type", 400)
    layers: list[tuple[Layer, str]] = []
    header = gguf.Header({}, ())
    for digest in data["files"].values():
        layer, header = await _from_file(context, digest, say)
        layers.append((replace(layer, media_type=MODEL_LAYER), "using existing layer"))
    for digest in (data.get("adapters") or {}).values():
        layer, _ = await _from_file(context, digest, say)
        layers.append((replace(layer, media_type=ADAPTER_LAYER), "using existing layer"))
    return layers, {
        "model_format": "gguf",
        "model_family": header.architecture,
        "model_families": [header.architecture],
        "model_type": human_number(header.parameters),
        "file_type": header.file_type if header.file_type != "F32" else "unknown",  # as the original has it
    }


async def _from_model(
    context: Context, text: str, say: Say
) -> tuple[list[tuple[Layer, str]], dict[str, Any]]:
    name = names.parse(text)
    if name is None:
        raise ProgressError("invalid model name", 400)
    try:
        base: Stored = context.store.load(name)
    except MissingError:
        await pull_model(context, name, insecure=False, say=say)
        base = context.store.load(name)
    layers = [(replace(layer, origin=base.name.shortest), "using existing layer") for layer in base.layers]
    config = {key: value for key, value in base.config.items() if key not in {"rootfs", "architecture", "os"}}
    return layers, config


async def _from_file(context: Context, digest: str, say: Say) -> tuple[Layer, gguf.Header]:
    say({"status": "parsing GGUF"})
    if not valid_digest(digest):
        raise ProgressError("invalid digest format")
    blob = context.store.blob_path(digest)
    if not blob.exists():
        raise ProgressError(f"open {blob}: no such file or directory")
    try:
        header = await asyncio.to_thread(gguf.read, blob)
    except gguf.NotGgufError as error:
        text = str(error)
        raise ProgressError("only GGUF files are supported" if "magic" in text else text,
                            400 if "magic" in text else 500) from error  # fmt: skip
    say({"status": "validating GGUF model"})
    say({"status": "verifying conversion"})
    return Layer(MODEL_LAYER, digest.replace("-", ":").lower(), blob.stat().st_size), header


def _json(value: Any) -> bytes:
    """As Go writes a map: its keys in order."""
    return dumps(dict(sorted(value.items())) if isinstance(value, dict) else value) + b"\n"


def _with_changes(
    context: Context, data: dict[str, Any], base: list[tuple[Layer, str]]
) -> list[tuple[Layer, str]]:
    """The base's layers with those that the request replaces."""
    layers = list(base)

    def put(kind: str, content: bytes, *, keep: bool = False) -> None:
        if not keep:
            layers[:] = [entry for entry in layers if entry[0].media_type != kind]
        layer, new = context.store.put(kind, content)
        layers.append((layer, "creating new layer" if new else "using existing layer"))

    if template := data.get("template"):
        if template.count("{{") != template.count("}}"):
            raise ProgressError("template error: template: :1: unclosed action", 400)
        put(TEMPLATE_LAYER, template.encode())
    if system := data.get("system"):
        put(SYSTEM_LAYER, system.encode())
    licences = data.get("license") or []
    for text in [licences] if isinstance(licences, str) else licences:
        put(LICENSE_LAYER, str(text).encode(), keep=True)
    parameters: dict[str, Any] = {}
    for layer, _ in base:
        if layer.media_type == PARAMS_LAYER:
            parameters |= json.loads(context.store.blob_path(layer.digest).read_bytes())
    parameters |= data.get("parameters") or {}
    if parameters:
        put(PARAMS_LAYER, _json(parameters))
    if messages := data.get("messages"):
        said = [{"role": item.get("role", ""), "content": item.get("content", "")} for item in messages]
        put(MESSAGES_LAYER, _json(said))
    return layers
