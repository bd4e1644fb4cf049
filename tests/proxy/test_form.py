"""A transcription through the proxy: scheduled like any request, by the model in its form."""

from __future__ import annotations

import asyncio

import openai
import pytest

from tests.proxy.rig import KEYS
from tests.proxy.stage import MODEL, stage

AUDIO = b"RIFF" + bytes(range(256)) * 400


ANSWER = b'{"text":"Hi."}'


async def test_a_transcription(tmp_path, nvml):
    """The openai package's own form: Ollama gets the model's name for its alias, and every byte."""
    async with stage(tmp_path, nvml, models={MODEL: {"aliases": ["whisper-1"]}}) as house:
        url = f"{house.rig.url}/v1"
        async with openai.AsyncOpenAI(base_url=url, api_key=KEYS["use"], max_retries=0) as client:
            create = client.audio.transcriptions.create
            file = ("talk.wav", AUDIO, "audio/wav")
            asking = asyncio.create_task(
                create(model="whisper-1", file=file, prompt="<<talk>>", extra_query={"model": "other"})
            )
            asked = await house.ollama.request("talk")
            # A model in the query would count more than the form's.
            assert asked.head.startswith(b"POST /v1/audio/transcriptions HTTP/1.1\r\n")
            assert AUDIO in asked.body
            assert b'name="model"\r\n\r\none:latest\r\n' in asked.body
            assert b"talk.wav" not in asked.body
            head = b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: 14\r\n\r\n"
            asked.finish(head + ANSWER)
            assert (await asking).text == "Hi."
            with pytest.raises(openai.NotFoundError):
                await create(model="nobody", file=("a.wav", b"x"))
            with pytest.raises(openai.BadRequestError):
                await create(model="", file=("a.wav", b"x"))
