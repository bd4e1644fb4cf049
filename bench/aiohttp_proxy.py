"""The floor of the comparison: a proxy as one writes it with aiohttp, on uvloop.

aiohttp_proxy.py PORT UPSTREAM_HOST:PORT
"""

from __future__ import annotations

import json
import sys

import aiohttp
import uvloop
from aiohttp import web

HOP = frozenset(
    {"connection", "keep-alive", "transfer-encoding", "te", "trailer", "upgrade", "host", "content-length"}
)


def make(upstream: str) -> web.Application:
    """Return the application."""
    session = web.AppKey("session", aiohttp.ClientSession)

    async def start(app: web.Application) -> None:
        connector = aiohttp.TCPConnector(limit=0)
        app[session] = aiohttp.ClientSession(
            connector=connector, auto_decompress=False, timeout=aiohttp.ClientTimeout(total=None)
        )

    async def stop(app: web.Application) -> None:
        await app[session].close()

    async def forward(request: web.Request) -> web.StreamResponse:
        body = await request.read()
        json.loads(body)["model"]
        headers = {k: v for k, v in request.headers.items() if k.lower() not in HOP}
        url = f"http://{upstream}{request.path_qs}"
        async with request.app[session].request(request.method, url, data=body, headers=headers) as answer:
            kept = {k: v for k, v in answer.headers.items() if k.lower() not in HOP}
            if answer.content_length is not None:
                return web.Response(status=answer.status, headers=kept, body=await answer.read())
            response = web.StreamResponse(status=answer.status, headers=kept)
            await response.prepare(request)
            async for chunk in answer.content.iter_any():
                await response.write(chunk)
            await response.write_eof()
            return response

    app = web.Application(client_max_size=64 << 20)
    app.on_startup.append(start)
    app.on_cleanup.append(stop)
    app.router.add_route("*", "/{tail:.*}", forward)
    return app


if __name__ == "__main__":
    uvloop.install()
    web.run_app(
        make(sys.argv[2]), host="127.0.0.1", port=int(sys.argv[1]), print=None, access_log=None, backlog=4096
    )
