"""POST /api/pull and /api/push."""

from __future__ import annotations

import asyncio
import json
from typing import Any

from lab.ollama import names
from lab.ollama.body import PULL, Refused, decode
from lab.ollama.converse import Context
from lab.ollama.download import Cancelled, Download, Downloads, base_url, fetch_manifest, verify
from lab.ollama.http import Answer, Request
from lab.ollama.names import Name
from lab.ollama.progress import ProgressError, Say, report
from lab.ollama.store import MissingError

PROGRESS_SECONDS = 0.06
_downloads = Downloads()


async def pull(context: Context, request: Request, answer: Answer) -> None:
    """POST /api/pull."""
    data = decode(await request.body(), "api.PullRequest", PULL)
    text = data.get("model") or data.get("name") or ""
    name = names.parse(text)
    if name is None:
        raise Refused(400, "invalid model name")

    async def work(say: Say) -> None:
        await pull_model(context, name, insecure=bool(data.get("insecure")), say=say)

    await report(request, answer, data.get("stream") is not False, work)


async def pull_model(context: Context, name: Name, *, insecure: bool, say: Say) -> None:
    """Fetch a model; what is there already isn't fetched again."""
    store = context.store
    old = store.manifest_path(name)
    replaced = store.digests_of(old) if old else set()
    say({"status": "pulling manifest"})
    try:
        content = await asyncio.to_thread(fetch_manifest, name, insecure)
        manifest = json.loads(content)
        layers = [*manifest["layers"], *([manifest["config"]] if manifest.get("config") else [])]
    except (ProgressError, ValueError, KeyError) as error:
        raise ProgressError(f"pull model manifest: {error}") from error
    store.prepare()
    fetched = [found for layer in layers if (found := await _blob(context, name, layer, insecure, say))]
    say({"status": "verifying sha256 digest"})
    for download in fetched:
        await asyncio.to_thread(verify, download)
    say({"status": "writing manifest"})
    store.write_manifest(name, content)
    unused = replaced - store.used_digests()
    if unused and not context.settings.noprune:
        say({"status": "removing unused layers"})
        for digest in unused:
            store.blob_path(digest).unlink(missing_ok=True)
    say({"status": "success"})


async def _blob(
    context: Context, name: Name, layer: dict[str, Any], insecure: bool, say: Say
) -> Download | None:
    digest = str(layer["digest"])
    path = context.store.blob_path(digest)
    line = {"status": f"pulling {digest[7:19]}", "digest": digest}
    if path.exists():
        size = path.stat().st_size
        say(line | {"total": size, "completed": size})
        return None
    speed = context.knobs.pull_bytes_per_second
    url = f"{base_url(name, insecure)}/blobs/{digest}"
    download, thread, problems = _downloads.join(lambda: Download(url, digest, path, speed))
    try:
        while thread.is_alive():
            say(line | _progress(download))
            await asyncio.sleep(PROGRESS_SECONDS if speed else 0.01)
    finally:
        _downloads.leave(download)
    if problems:
        text = "context canceled" if isinstance(problems[0], Cancelled) else str(problems[0])
        raise ProgressError(text)
    say(line | _progress(download))
    return download


def _progress(download: Download) -> dict[str, int]:
    found = {"total": download.total, "completed": download.completed}
    return {key: value for key, value in found.items() if value}


async def push(context: Context, request: Request, answer: Answer) -> None:
    """POST /api/push: refused, since the lab's registry takes nothing."""
    data = decode(await request.body(), "api.PushRequest", PULL)
    text = data.get("model") or data.get("name") or ""
    name = names.parse(text)
    if name is None:
        raise Refused(400, "model is required" if not text else "invalid model name")

    async def work(say: Say) -> None:
        say({"status": "retrieving manifest"})
        try:
            context.store.load(name)
        except MissingError:
            say({"status": "couldn't retrieve manifest"})
            raise ProgressError(
                f"open {context.store.manifests.joinpath(*name.parts)}: no such file or directory"
            ) from None
        raise ProgressError(
            "you are not authorized to push to this namespace, create the model under a namespace you own"
        )

    await report(request, answer, data.get("stream") is not False, work)
