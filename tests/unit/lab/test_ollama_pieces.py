"""The parts of the simulated Ollama that need no server: catalogue, memory, names, Modelfile, release."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
import tarfile
from pathlib import Path

import pytest

from lab.ollama import catalogue, gguf, gotext, memory, modelfile, names
from lab.ollama.config import FatalError, Habits, Knobs, Settings, host_and_port
from lab.ollama.digests import DIGESTS
from lab.ollama.memory import Shape
from lab.ollama.registry import Faults, Registry
from lab.ollama.release import ARCHIVE, CHECKSUMS, build
from lab.ollama.seed import seed
from lab.ollama.store import MissingError, Store

MIB = 1 << 20


def _header(name: str) -> gguf.Header:
    model = catalogue.MODELS[name]
    return gguf.Header(catalogue.keys(model), tuple(catalogue.tensors(model)))


@pytest.mark.parametrize(
    ("name", "tensor_bytes", "gpu_bytes"),
    [
        ("llama3.2:3b", 2_011_539_712, 2_011_539_712),
        ("qwen2.5:7b", 4_677_120_000, 4_370_558_976),
        ("llama3.1:8b", 4_912_898_304, 4_617_396_480),
        ("mistral:7b", 4_372_054_016, 4_296_556_544),
    ],
)
def test_weights(name, tensor_bytes, gpu_bytes):
    """The tensors of the catalogue add up to what the real models' do."""
    header = _header(name)
    assert header.tensor_bytes == tensor_bytes
    assert memory.footprint(header, Shape(4096, 1, "f16", 512), 0).weights_bytes == gpu_bytes


@pytest.mark.parametrize(
    ("name", "shape", "kv_bytes"),
    [
        ("llama3.1:8b", Shape(8192, 1, "f16", 512), 1_073_741_824),
        ("llama3.1:8b", Shape(8192, 1, "q8_0", 512), 570_425_344),
        ("llama3.1:8b", Shape(8192, 1, "q4_0", 512), 301_989_888),
        ("llama3.1:8b", Shape(8192, 4, "f16", 512), 4_294_967_296),
        ("qwen2.5:7b", Shape(32768, 1, "f16", 512), 1_879_048_192),
        ("qwen2.5:32b", Shape(32768, 1, "f16", 512), 8_589_934_592),
        ("mistral:7b", Shape(32768, 1, "f16", 512), 4_294_967_296),
        ("gemma3:4b", Shape(131072, 1, "f16", 512), 2_866_806_784),
        ("gpt-oss:20b", Shape(131072, 1, "f16", 2048), 3_277_848_576),
        ("llama3.2:3b", Shape(4096, 1, "f16", 512), 469_762_048),
        ("nomic-embed-text:latest", Shape(2048, 1, "f16", 2048), 0),
    ],
)
def test_kv_cache(name, shape, kv_bytes):
    """The cache is what llama.cpp's logs say it is."""
    assert memory.kv_cache_bytes(_header(name), shape) == kv_bytes


def test_whole_footprint():
    """llama3.2:3b at 4096 takes what Ollama's own test log says: 2622.85 MiB."""
    need = memory.footprint(_header("llama3.2:3b"), Shape(4096, 1, "f16", 512), 0)
    total = need.weights_bytes + need.kv_bytes + need.compute_bytes
    assert total / MIB == pytest.approx(2622.85, abs=8)


def test_placement_spills():
    """What doesn't fit beside the margin goes to the CPU; an explicit number of layers is not fitted."""
    need = memory.footprint(_header("llama3.1:8b"), Shape(8192, 1, "f16", 512), 0)
    whole = memory.place(need, {0: 24 << 30}, -1, 1024 * MIB)
    assert whole.gpu_layers == whole.layers == 33
    assert whole.size_bytes == whole.size_vram_bytes
    assert whole.gpu_bytes[0] == whole.size_vram_bytes + memory.CUDA_CONTEXT_BYTES
    part = memory.place(need, {0: 5 << 30}, -1, 1024 * MIB)
    assert 0 < part.gpu_layers < part.layers
    assert part.size_vram_bytes < part.size_bytes
    assert (5 << 30) - part.gpu_bytes[0] >= 1024 * MIB
    none = memory.place(need, {}, -1, 1024 * MIB)
    assert none.size_vram_bytes == 0
    with pytest.raises(memory.OutOfMemoryError, match="cudaMalloc failed: out of memory"):
        memory.place(need, {0: 5 << 30}, 99, 1024 * MIB)


def test_underreported():
    """Of gemma3's cache at 131072 ps tells 174 MiB of 2734, as Ollama's own log reader does."""
    need = memory.footprint(_header("gemma3:4b"), Shape(131072, 1, "f16", 512), 0)
    true = memory.place(need, {0: 24 << 30}, -1, 1024 * MIB)
    told = memory.underreported(true, need)
    assert true.size_bytes - told.size_bytes == 2560 * MIB
    assert told.size_bytes == told.size_vram_bytes
    dense = memory.footprint(_header("llama3.2:3b"), Shape(8192, 1, "f16", 512), 0)
    assert memory.underreported(true, dense) == true


def test_placement_over_two_gpus():
    """A model that is too large for one GPU is spread over both."""
    need = memory.footprint(_header("llama3.1:70b"), Shape(4096, 1, "f16", 512), 0)
    placed = memory.place(need, {0: 40 << 30, 1: 40 << 30}, -1, 1024 * MIB)
    assert placed.gpu_layers == placed.layers
    assert placed.gpu_bytes[0] == pytest.approx(placed.gpu_bytes[1], rel=0.05)


@pytest.mark.parametrize("name", sorted(catalogue.MODELS))
def test_digests_are_at_hand(name):
    """Every model's digest stands in the table, for the header that it has now."""
    head, size = catalogue.header(name)
    assert DIGESTS[hashlib.sha256(head).hexdigest()][0] == size, (
        "the header has changed: write `python -m lab.ollama.catalogue` to lab/ollama/digests.py"
    )


@pytest.mark.parametrize("name", ["nomic-embed-text:latest", "qwen2.5:0.5b"])
def test_digest_is_true(name):
    """The digest in the table is that of the whole file."""
    head, size = catalogue.header(name)
    assert catalogue.zeros_digest(head, size) == "sha256:" + catalogue.count_digest(head, size)


def test_gguf_round_trip(tmp_path):
    """A header that was written is read as it was."""
    keys: dict[str, gguf.Value] = {
        "general.architecture": "x",
        "a": 1,
        "b": -2,
        "c": 0.5,
        "d": True,
        "e": ["p", "q"],
    }
    tensors = [gguf.Tensor("t", (32, 4), "Q8_0"), gguf.Tensor("u", (3,), "F32")]
    head, data = gguf.encode(keys, tensors)
    path = tmp_path / "x.gguf"
    path.write_bytes(head + bytes(data))
    found = gguf.read(path)
    assert (found.keys, list(found.tensors), found.data_offset) == (keys, tensors, len(head))
    path.write_bytes(head[:60])
    with pytest.raises(gguf.NotGgufError, match="unexpected EOF"):
        gguf.read(path)


@pytest.mark.parametrize(
    ("text", "shortest", "full"),
    [
        ("llama3.2", "llama3.2:latest", "registry.ollama.ai/library/llama3.2:latest"),
        ("acme/x:1", "acme/x:1", "registry.ollama.ai/acme/x:1"),
        ("10.0.0.1:8088/library/x", "10.0.0.1:8088/library/x:latest", "10.0.0.1:8088/library/x:latest"),
    ],
)
def test_names(text, shortest, full):
    """Names get their defaults, and are shown without them."""
    name = names.parse(text)
    assert name is not None
    assert (name.shortest, name.full) == (shortest, full)


@pytest.mark.parametrize("text", ["", "a/b/c/d", "x:", "-x", "x y", "../x"])
def test_names_that_are_none(text):
    """What is no name is not taken for one."""
    assert names.parse(text) is None


@pytest.mark.parametrize(
    ("value", "seconds"),
    [
        (None, None),
        (5, 5.0),
        (1.5, 1.5),
        ("10m", 600.0),
        ("1h30m", 5400.0),
        ("0", 0.0),
        (0, 0.0),
        (-1, gotext.FOREVER_SECONDS),
        ("-1m", gotext.FOREVER_SECONDS),
    ],
)
def test_keep_alive(value, seconds):
    """Numbers are seconds, texts are Go's durations, and less than nothing is for ever."""
    assert gotext.keep_alive_seconds(value) == seconds


def test_go_texts():
    """Durations, sizes and numbers are printed as Go and Ollama print them."""
    assert [gotext.go_duration(s) for s in (0, 300, 5400, 1.5, 0.25)] == [
        "0s",
        "5m0s",
        "1h30m0s",
        "1.5s",
        "250ms",
    ]
    assert [gotext.human_bytes(n) for n in (999, 2_011_557_375, 42_512_577_849)] == [
        "999 B",
        "2.0 GB",
        "42 GB",
    ]
    assert [gotext.human_number(n) for n in (3_212_749_888, 494_032_768, 8_000_000_000)] == [
        "3.2B",
        "494.03M",
        "8B",
    ]
    assert gotext.timestamp(0.5) == "1970-01-01T00:00:00.5Z"


def test_modelfile():
    """A Modelfile's commands, quotes, comments and repeated stops."""
    found = modelfile.parse(
        b'# first\nfrom llama3.2:3b\nPARAMETER num_ctx 8192\nPARAMETER stop "a b"\nPARAMETER stop c\n'
        b'SYSTEM """Two\nlines"""\nMESSAGE user hello there\nLICENSE one\nLICENSE two\nPARAMETER mirostat 1\n'
    )
    assert found.sources == ["llama3.2:3b"]
    assert found.parameters == {"num_ctx": 8192, "stop": ["a b", "c"]}
    assert found.values["system"] == "Two\nlines"
    assert found.messages == [{"role": "user", "content": "hello there"}]
    assert found.licences == ["one", "two"]
    assert found.warnings == ["warning: parameter mirostat is deprecated"]


@pytest.mark.parametrize(
    ("text", "host", "port"),
    [
        ("", "127.0.0.1", 11434),
        ("0.0.0.0", "0.0.0.0", 11434),
        ("127.0.0.1:99999", "127.0.0.1", 11434),
        ("http://x", "x", 80),
        ("https://x", "x", 443),
        ("[::1]:5", "::1", 5),
        ("x:7/path", "x", 7),
    ],
)
def test_host_and_port(text, host, port):
    """OLLAMA_HOST in its forms; a bad port is the default one."""
    assert host_and_port(text)[1:] == (host, port)


def test_settings(capsys):
    """Settings are read leniently: quotes go, nonsense is the default, some of it with a warning."""
    found = Settings.from_env(
        {
            "HOME": "/x",
            "OLLAMA_KEEP_ALIVE": '"-1"',
            "OLLAMA_NUM_PARALLEL": "2.5",
            "OLLAMA_FLASH_ATTENTION": "junk",
            "OLLAMA_KV_CACHE_TYPE": "Q8_0",
            "OLLAMA_MAX_QUEUE": "7",
            "LLAMA_ARG_FIT_TARGET": "512",
        }
    )
    assert found.keep_alive_seconds == gotext.FOREVER_SECONDS
    assert (found.num_parallel, found.flash_attention, found.kv_cache_type) == (1, "on", "q8_0")
    assert (found.max_queue, found.fit_target_bytes, found.models) == (
        7,
        512 * MIB,
        Path("/x/.ollama/models"),
    )
    assert "key=OLLAMA_NUM_PARALLEL value=2.5 default=1" in capsys.readouterr().err


def test_knobs(tmp_path):
    """Knobs come from a file; a name that isn't one is refused with those that are."""
    path = tmp_path / "knobs.json"
    path.write_text(json.dumps({"tokens_per_second": 5, "habits": {"ghosts": False}}), encoding="utf-8")
    found = Knobs.load({"SIMOLLAMA_CONFIG": str(path)})
    assert found.tokens_per_second == 5
    assert found.habits == Habits(ghosts=False)
    path.write_text(json.dumps({"tokens_per_minute": 5}), encoding="utf-8")
    with pytest.raises(FatalError, match=r"unknown knob 'tokens_per_minute'; there are .*tokens_per_second"):
        Knobs.load({"SIMOLLAMA_CONFIG": str(path)})


def test_store(tmp_path):
    """Seeded models are listed with their true size, cost no disk, and go with their blobs."""
    seed(tmp_path, ["llama3.1:70b"])
    store = Store(tmp_path)
    (name,) = store.names()
    model = store.load(name)
    assert model.size > 42_000_000_000
    assert sum(path.stat().st_blocks * 512 for path in store.blobs.iterdir()) < MIB
    assert model.capabilities == ["completion", "tools"]
    store.delete(name)
    assert list(store.blobs.iterdir()) == []
    with pytest.raises(MissingError):
        store.load(name)


def test_registry_ranges():
    """A blob is served in ranges, with its Location; the lab's client may ask to leave the zeros out."""
    registry = Registry()
    blob = catalogue.package("qwen2.5:0.5b")[1][0]
    path = f"/v2/library/qwen2.5/blobs/{blob.digest}"
    head = registry.handle("HEAD", path, {})
    assert (head.status, head.headers["Content-Length"]) == (200, str(blob.size))
    part = registry.handle("GET", path, {"range": "bytes=10-2000009"})
    assert part.status == 206
    assert part.headers["Location"] == path
    assert part.headers["Content-Range"] == f"bytes 10-2000009/{blob.size}"
    body = b"".join(part.body_chunks)
    assert len(body) == 2_000_000
    assert body.startswith(blob.content[10:])
    short = registry.handle("GET", path, {"Range": "bytes=0-99999999", "X-Without-Zeros": "1"})
    assert b"".join(short.body_chunks) == blob.content
    assert short.headers["X-Without-Zeros"] == str(len(blob.content))


def test_registry_manifest():
    """Manifests are there for the catalogue's models only."""
    registry = Registry(Faults(missing=frozenset({"phi4:14b"})))
    answer = registry.handle("GET", "/v2/library/llama3.2/manifests/3b", {})
    assert json.loads(b"".join(answer.body_chunks))["layers"][0]["size"] == catalogue.header("llama3.2:3b")[1]
    for path in (
        "/v2/library/none/manifests/latest",
        "/v2/other/llama3.2/manifests/3b",
        "/v2/library/phi4/manifests/14b",
    ):
        assert registry.handle("GET", path, {}).status == 404
    assert registry.handle("POST", "/v2/library/llama3.2/blobs/uploads/", {}).status == 405


def test_release(tmp_path):
    """A release is packed the same each time, has a checksum in the real form, and runs alone."""
    build(tmp_path / "one", "0.33.0")
    build(tmp_path / "two", "0.33.0")
    packed = (tmp_path / "one" / ARCHIVE).read_bytes()
    assert packed == (tmp_path / "two" / ARCHIVE).read_bytes()
    line = (tmp_path / "one" / CHECKSUMS).read_text(encoding="ascii")
    assert line == f"{hashlib.sha256(packed).hexdigest()}  ./{ARCHIVE}\n"
    plain = subprocess.run(
        ["zstd", "-dc", tmp_path / "one" / ARCHIVE], stdout=subprocess.PIPE, check=True
    ).stdout
    (tmp_path / "plain.tar").write_bytes(plain)
    with tarfile.open(tmp_path / "plain.tar") as tar:
        assert {"bin/ollama", "lib/ollama/llama-server", "lib/ollama/cuda_v13/libggml-cuda.so"} <= set(
            tar.getnames()
        )
        tar.extractall(tmp_path / "prefix", filter="data")
    env = {"PATH": os.environ["PATH"], "HOME": str(tmp_path), "OLLAMA_HOST": "127.0.0.1:1"}
    done = subprocess.run(
        [sys.executable, "-I", "-S", tmp_path / "prefix/bin/ollama", "--version"],
        env=env,
        cwd="/",
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout.endswith("Warning: client version is 0.33.0\n")


def test_release_version(tmp_path):
    """The version is the release's own."""
    build(tmp_path, "0.32.15")
    subprocess.run(["tar", "--zstd", "-xf", ARCHIVE], cwd=tmp_path, check=True)
    env = {"PATH": os.environ["PATH"], "HOME": str(tmp_path), "OLLAMA_HOST": "127.0.0.1:1"}
    command = [sys.executable, "-I", "-S", tmp_path / "bin/ollama", "-v"]
    done = subprocess.run(command, env=env, cwd="/", capture_output=True, text=True, check=True)
    assert "client version is 0.32.15" in done.stdout
