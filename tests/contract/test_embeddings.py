"""Embeddings: Ollama's two routes and OpenAI's."""

from __future__ import annotations

import base64
import struct

import pytest

from tests.support import eventually

pytestmark = pytest.mark.needs("embedder")


def test_embed(server, embedder):
    """One text or several give as many vectors of length one, with the count of tokens."""
    found = server.post("/api/embed", {"model": embedder, "input": ["first text", "second"]}).json
    assert found["model"] == embedder
    assert len(found["embeddings"]) == 2
    assert sum(value * value for value in found["embeddings"][0]) == pytest.approx(1, abs=1e-3)
    assert found["prompt_eval_count"] >= 2
    assert found["total_duration"] > 0
    one = server.post("/api/embed", {"model": embedder, "input": "first text"}).json
    assert one["embeddings"][0] == pytest.approx(found["embeddings"][0])


def test_embed_loads(server, embedder):
    """Without input the model is loaded."""
    answer = server.post("/api/embed", {"model": embedder})
    assert answer.json == {"model": embedder, "embeddings": []}
    assert len(server.ps()) == 1
    assert server.post("/api/generate", {"model": embedder, "keep_alive": 0}).json["done_reason"] == "unload"
    eventually(lambda: not server.ps(), what="the model is gone")


def test_embed_dimensions(server, embedder):
    """A vector can be cut, and keeps its length of one."""
    found = server.post("/api/embed", {"model": embedder, "input": "x", "dimensions": 16}).json["embeddings"][
        0
    ]
    assert len(found) == 16
    assert sum(value * value for value in found) == pytest.approx(1, abs=1e-3)


def test_embed_wrong_input(server, embedder):
    """Input is a text or a list of texts."""
    answer = server.post("/api/embed", {"model": embedder, "input": [1, 2]})
    assert (answer.status, answer.json) == (400, {"error": "invalid input type"})


def test_embeddings_old(server, embedder):
    """The older route takes a prompt and gives one vector."""
    assert len(server.post("/api/embeddings", {"model": embedder, "prompt": "x"}).json["embedding"]) == 768
    assert server.post("/api/embeddings", {"model": embedder}).json == {"embedding": []}


def test_v1_embeddings(server, embedder):
    """OpenAI's route, as numbers and as base64."""
    found = server.post("/v1/embeddings", {"model": embedder, "input": "x"}).json
    assert found["object"] == "list"
    assert found["usage"]["prompt_tokens"] == found["usage"]["total_tokens"]
    numbers = found["data"][0]["embedding"]
    packed = server.post(
        "/v1/embeddings", {"model": embedder, "input": "x", "encoding_format": "base64"}
    ).json
    raw = base64.b64decode(packed["data"][0]["embedding"])
    assert struct.unpack(f"<{len(raw) // 4}f", raw) == pytest.approx(numbers, abs=1e-5)


def test_embed_on_a_generative_model(server, model):
    """A model that generates is loaded first, and then can't."""
    answer = server.post("/api/embed", {"model": model, "input": "x"})
    assert answer.status == 501
    assert answer.json == {"error": "This server does not support embeddings. Start it with `--embeddings`"}
    assert len(server.ps()) == 1
