"""Models in the store: list, show, copy, delete, blobs, create."""

from __future__ import annotations

import hashlib

import pytest

from tests.contract.tiny import tiny_gguf

pytestmark = pytest.mark.needs("upload")


def _tag(server, name):
    return next(tag for tag in server.get("/api/tags").json["models"] if tag["name"] == name)


def test_tags(server, model):
    """Models are listed newest first with size, digest and details."""
    server.post("/api/copy", {"source": model, "destination": "newest"})
    found = server.get("/api/tags").json["models"]
    seconds = [tag["modified_at"][:19] for tag in found]
    assert seconds == sorted(seconds, reverse=True)
    assert "newest:latest" in server.names()
    assert {"name", "model", "modified_at", "size", "digest", "details"} <= set(found[0])
    assert len(found[0]["digest"]) == 64


@pytest.mark.needs("modern")
def test_tags_of_today(server, model):
    """Newer servers list capabilities and lengths as well."""
    tag = next(tag for tag in server.get("/api/tags").json["models"] if tag["name"] == model)
    assert "completion" in tag["capabilities"]
    assert tag["details"]["context_length"] > 0
    assert tag["details"]["embedding_length"] > 0


def test_show(server, model):
    """Show tells everything about a model; arrays only when asked to."""
    found = server.post("/api/show", {"model": model}).json
    assert {"modelfile", "details", "model_info", "capabilities", "modified_at", "tensors"} <= set(found)
    info = found["model_info"]
    assert info["tokenizer.ggml.tokens"] is None
    assert info["general.parameter_count"] == sum(_elements(tensor) for tensor in found["tensors"])
    assert set(found["tensors"][0]) == {"name", "type", "shape"}
    verbose = server.post("/api/show", {"model": model, "verbose": True}).json
    assert isinstance(verbose["model_info"]["tokenizer.ggml.tokens"], list)


def _elements(tensor) -> int:
    count = 1
    for size in tensor["shape"]:
        count *= size
    return count


def test_show_accepts_the_old_name(server, model):
    """`name` stands for `model`."""
    assert server.post("/api/show", {"name": model}).status == 200


def test_show_modelfile_names_the_blob(server, model):
    """The Modelfile's FROM is the blob, which is the runner's identity."""
    text = server.post("/api/show", {"model": model}).json["modelfile"]
    line = next(line for line in text.splitlines() if line.startswith("FROM "))
    assert "/blobs/sha256-" in line


def test_v1_models(server, model):
    """OpenAI's list and single model."""
    found = server.get("/v1/models").json
    assert found["object"] == "list"
    assert {"id", "object", "created", "owned_by"} == set(found["data"][0])
    entry = server.get(f"/v1/models/{model}").json
    assert (entry["id"], entry["object"], entry["owned_by"]) == (model, "model", "library")
    missing = server.get("/v1/models/none")
    assert missing.status == 404
    assert missing.json["error"]["type"] == "not_found_error"


def test_copy_and_delete(server, model):
    """A copy has the same digest; a deleted model is gone; what isn't there can't be deleted."""
    assert server.post("/api/copy", {"source": model, "destination": "twin"}).status == 200
    names = {tag["name"]: tag["digest"] for tag in server.get("/api/tags").json["models"]}
    assert names["twin:latest"] == next(d for n, d in names.items() if n in {model, f"{model}:latest"})
    answer = server.request("DELETE", "/api/delete", {"model": "twin"})
    assert (answer.status, answer.body) == (200, b"")
    assert "twin:latest" not in server.names()
    again = server.request("DELETE", "/api/delete", {"model": "twin"})
    assert (again.status, again.json) == (404, {"error": "model 'twin' not found"})


def test_names_ignore_case(server, model):
    """A model is found whatever the case of its name."""
    server.post("/api/copy", {"source": model, "destination": "CamelCase"})
    assert server.post("/api/show", {"model": "camelcase"}).status == 200


def test_blobs(server):
    """A blob is taken once, refused when its digest is wrong, and asked for by HEAD."""
    content = b"some bytes that are no model"
    digest = "sha256:" + hashlib.sha256(content).hexdigest()
    wrong = "sha256:" + "0" * 64
    assert server.request("HEAD", f"/api/blobs/{wrong}").status == 404
    assert server.request("HEAD", "/api/blobs/nonsense").status == 400
    assert server.post(f"/api/blobs/{wrong}", content).status == 400
    assert server.post(f"/api/blobs/{digest}", content).status in {200, 201}
    assert server.post(f"/api/blobs/{digest}", content).status == 200
    assert server.request("HEAD", f"/api/blobs/{digest}").status == 200


def test_create_from_file(server):
    """A model is made from an uploaded file, with progress told line by line."""
    digest = server.upload(tiny_gguf(21))
    answer = server.post(
        "/api/create", {"model": "filed", "files": {"tiny.gguf": digest}, "system": "Be brief."}
    )
    assert answer.status == 200
    assert answer.headers["content-type"] == "application/x-ndjson"
    steps = [line["status"] for line in answer.lines]
    assert steps[0] == "parsing GGUF"
    assert steps[-2:] == ["writing manifest", "success"]
    assert any(step.startswith("using existing layer sha256:") for step in steps)
    assert any(step.startswith("creating new layer sha256:") for step in steps)
    found = server.post("/api/show", {"model": "filed"}).json
    assert found["system"] == "Be brief."
    assert found["details"]["family"] == "llama"


def test_create_is_idempotent(server, model):
    """Equal content gives the same digest, whatever the name and the order of keys."""
    one = {"num_ctx": 2048, "temperature": 0.5}
    two = {"temperature": 0.5, "num_ctx": 2048}
    for name, parameters in (("idem1", one), ("idem2", two), ("idem1", two)):
        body = {"model": name, "from": model, "parameters": parameters, "stream": False}
        answer = server.post("/api/create", body)
        assert (answer.status, answer.json) == (200, {"status": "success"})
    assert _tag(server, "idem1:latest")["digest"] == _tag(server, "idem2:latest")["digest"]


def test_show_parameters(server, model):
    """Parameters are lines of a padded name and a value; strings in quotes, a list a line each."""
    parameters = {"num_ctx": 2048, "temperature": 0.5, "stop": ["a", "b c"]}
    server.post("/api/create", {"model": "lines", "from": model, "parameters": parameters, "stream": False})
    lines = set(server.post("/api/show", {"model": "lines"}).json["parameters"].splitlines())
    wanted = {f"{'num_ctx':<30} 2048", f"{'temperature':<30} 0.5", f'{"stop":<30} "a"', f'{"stop":<30} "b c"'}
    assert wanted <= lines


def test_parent_parameters_are_kept(server, model):
    """A child's parameters go over its parent's, key by key."""
    server.post(
        "/api/create",
        {"model": "par", "from": model, "parameters": {"num_ctx": 512, "top_k": 7}, "stream": False},
    )
    server.post("/api/create", {"model": "child", "from": "par", "parameters": {"top_k": 9}, "stream": False})
    text = server.post("/api/show", {"model": "child"}).json["parameters"]
    assert f"{'num_ctx':<30} 512" in text
    assert f"{'top_k':<30} 9" in text


def test_wrong_parameter_poisons(server, model):
    """A parameter of the wrong type is taken at create, and every request fails then."""
    body = {"model": "poison", "from": model, "parameters": {"stop": "x"}, "stream": False}
    assert server.post("/api/create", body).status == 200
    answer = server.generate("poison", "x")
    assert (answer.status, answer.json) == (500, {"error": 'option "stop" must be of type array'})


def test_create_without_source(server):
    """A model needs something to be made from."""
    answer = server.post("/api/create", {"model": "nothing", "stream": False})
    assert (answer.status, answer.json) == (400, {"error": "neither 'from' or 'files' was specified"})


def test_create_before_the_blob(server):
    """A file that was never uploaded is a 500 that tells the path."""
    digest = "sha256:" + "ab" * 32
    answer = server.post("/api/create", {"model": "early", "files": {"x.gguf": digest}, "stream": False})
    assert answer.status == 500
    assert "no such file or directory" in answer.json["error"]


def test_create_from_truncated_file(server):
    """A file that ends too early is told in-band, behind a 200."""
    digest = server.upload(tiny_gguf(22)[:300])
    answer = server.post("/api/create", {"model": "short", "files": {"x.gguf": digest}})
    assert answer.status == 200
    assert answer.lines[-1] == {"error": "unexpected EOF"}
    assert "short:latest" not in server.names()


def test_invalid_name(server, model):
    """A name that is none is refused."""
    answer = server.post("/api/create", {"model": "a/b/c/d/e", "from": model, "stream": False})
    assert (answer.status, answer.json) == (400, {"error": "invalid model name"})


def test_made_models_are_alike(server, model):
    """A child's layers name their parent, and its details too; an uploaded file has none."""
    server.post("/api/create", {"model": "kid", "from": model, "system": "x", "stream": False})
    found = server.post("/api/show", {"model": "kid"}).json
    assert found["details"]["parent_model"] == (model if ":" in model else f"{model}:latest")
    digest = server.upload(tiny_gguf(23))
    server.post("/api/create", {"model": "orphan", "files": {"x.gguf": digest}, "stream": False})
    details = server.post("/api/show", {"model": "orphan"}).json["details"]
    assert details["parent_model"] == "" or "/blobs/" in details["parent_model"]  # 0.24 names the file
    assert details["quantization_level"] in {"unknown", "F32"}


def test_quantize_what_is_quantized(server):
    """Only models of whole numbers are quantised."""
    digest = server.upload(tiny_gguf(24))
    body = {"model": "small", "files": {"x.gguf": digest}, "quantize": "nonsense", "stream": False}
    answer = server.post("/api/create", body)
    assert answer.status == 500
    assert "quantization" in answer.json["error"]
