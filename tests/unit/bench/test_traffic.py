"""What goes over the wire in the benchmark, and the two C programs that send it."""

from __future__ import annotations

import json
import os
import shutil
import socket
import threading

import httptools
import pytest

from bench import answers, measure, processes, provide, traffic
from bench.contestants import start_source
from bench.processes import BenchError


class Heard:
    """What a parser found in a request."""

    def __init__(self, raw):
        self.headers, self.body, self.whole = {}, b"", False
        httptools.HttpRequestParser(self).feed_data(raw)

    def on_header(self, name, value):
        self.headers[name.lower()] = value

    def on_body(self, body):
        self.body += body

    def on_message_complete(self):
        self.whole = True


def test_small_requests_are_whole_and_of_several_lengths():
    """Heads that never change would flatter whoever compares them with the last one."""
    heard = [Heard(raw) for raw in traffic.small(stream=True)]

    assert all(one.whole and json.loads(one.body)["stream"] is True for one in heard)
    assert len({one.headers[b"content-length"] for one in heard}) == traffic.VARIANTS
    assert all(180 < len(one.body) < 300 for one in heard)
    assert heard[0].headers[b"authorization"] == b"Bearer " + traffic.KEY.encode()


def test_native_requests_are_those_of_the_ollama_package():
    """They go to Ollama's own path and ask for a stream."""
    raw = traffic.native()
    heard = [Heard(one) for one in raw]

    assert all(one.startswith(b"POST /api/chat HTTP/1.1\r\n") for one in raw)
    assert all(one.whole and json.loads(one.body)["stream"] is True for one in heard)
    assert len({one.headers[b"content-length"] for one in heard}) == traffic.VARIANTS
    assert heard[0].headers[b"user-agent"].startswith(b"ollama-python/")


def test_a_large_request_has_its_size_in_images():
    """What stalls others must look as clients send it: base64 in JSON."""
    heard = Heard(traffic.large(1_000_000))

    parts = json.loads(heard.body)["messages"][1]["content"]
    assert 1_000_000 < len(heard.body) < 1_010_000
    assert sum(part["type"] == "image_url" for part in parts) == 4


@pytest.fixture(scope="module")
def tools():
    """Compile the programs."""
    if not shutil.which("gcc"):
        pytest.skip("gcc isn't installed: `make bench-wire` installs it")
    nowhere = provide.BUILT / "nowhere"
    return provide.Tools(provide.compiled("source"), provide.compiled("load"), nowhere, nowhere)


@pytest.fixture
def rig(tools, tmp_path):
    """Start an upstream with short streams, and have the load ready."""
    core = min(os.sched_getaffinity(0))
    source = start_source(tools, core, tmp_path, chunks=6, gap_seconds=0.02)
    yield measure.prepare(tools, tmp_path, core, chunks=6, gap_seconds=0.02), source
    source.child.stop()


def test_requests_are_asked_and_counted(rig):
    """Every answer of the upstream counts, and none is called failed."""
    bench, source = rig

    row = measure.requests(bench, source, connections=8, seconds=0.2)

    assert row["failed"] == 0
    assert row["rps"] > 100
    assert 0 < row["cpu_us"] < 1000
    assert row["p50_ms"] <= row["p99_ms"]


@pytest.mark.parametrize("native", [False, True], ids=["events", "lines"])
def test_streams_are_held_and_measured(rig, native):
    """All are whole, all were open at once, every chunk counts once, and the gaps are the upstream's."""
    bench, source = rig

    row = measure.streams(bench, source, 30, spread_seconds=0.02, native=native)

    assert row["failed"] == 0
    assert row["open_peak"] == 30
    assert row["chunks_per_second"] * row["seconds"] == pytest.approx(30 * 6)
    assert row["seconds"] >= 0.1
    assert 10 < row["gap_p50_ms"] < 60


def test_no_two_bodies_are_the_same(tools, tmp_path):
    """Nobody gets anything out of remembering a body; its length stays what the head says."""
    heard = []
    bench = measure.prepare(tools, tmp_path, min(os.sched_getaffinity(0)), chunks=1, gap_seconds=0.01)
    with socket.create_server(("127.0.0.1", 0)) as server:
        server.settimeout(10)

        def answer():
            connection, _ = server.accept()
            with connection:
                while raw := connection.recv(65536):
                    heard.append(Heard(raw))
                    connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n{}")

        thread = threading.Thread(target=answer)
        thread.start()
        load = measure.Load(bench, "requests", server.getsockname()[1], 1, 100, 0, bench.small)
        load.go()
        found = load.result()
        load.close()
        thread.join(10)

    assert len(heard) == found["whole"] + 1 > 2 * traffic.VARIANTS
    assert all(one.whole for one in heard)
    assert len({one.body for one in heard}) == len(heard)


def test_a_large_body_is_taken_and_answered(rig):
    """The upstream reads five megabytes to their end."""
    bench, source = rig
    load = measure.Load(bench, "requests", source.port, 1, 100, 10, bench.large)
    try:
        load.go()
        found = load.result()
    finally:
        load.close()

    assert found["whole"] >= 1
    assert found["broken"] == found["broken_warm"] == 0


@pytest.mark.parametrize("records", [5, 7], ids=["more than asked for", "fewer"])
@pytest.mark.parametrize("dialect", ["streamed", "native"])
def test_streams_of_another_length_are_failures(rig, dialect, records):
    """A chunk that a proxy lost, or sent twice, doesn't go unnoticed."""
    bench, source = rig
    load = measure.Load(bench, "streams", source.port, 3, 0, records, getattr(bench, dialect))
    try:
        load.go()
        found = load.result()
    finally:
        load.close()

    assert (found["whole"], found["broken"]) == (0, 3)


@pytest.mark.parametrize("dialect", ["streamed", "native"])
def test_streams_without_their_last_record_are_failures(tools, tmp_path, dialect):
    """As many records as were asked for are no whole answer without `[DONE]` or `"done":true`."""
    core, (port,) = min(os.sched_getaffinity(0)), processes.free_ports(1)
    said = answers.write_answers(tmp_path / "said")
    whole = said.read_bytes()
    said.write_bytes(whole.replace(b"data: [DONE]", b"data: [GONE]").replace(b'"done":true', b'"gone":true'))
    child = processes.start("source", [str(tools.source), str(port), str(said), "4", "10000"], core, tmp_path)
    bench = measure.prepare(tools, tmp_path, core, chunks=4, gap_seconds=0.01)
    try:
        processes.wait_for(child, lambda: not socket.create_connection(("127.0.0.1", port), 1).close())
        load = measure.Load(bench, "streams", port, 3, 0, 4, getattr(bench, dialect))
        try:
            load.go()
            found = load.result()
        finally:
            load.close()
    finally:
        child.stop()

    assert (found["whole"], found["broken"], found["delivered"]) == (0, 3, 12)


@pytest.mark.parametrize("dialect", ["streamed", "native"])
def test_streams_that_break_off_are_failures(rig, dialect):
    """An upstream that dies in the middle leaves no stream that counts as whole."""
    bench, source = rig
    load = measure.Load(bench, "streams", source.port, 10, 0, 6, getattr(bench, dialect))
    try:
        load.go()
        source.child.process.kill()
        found = load.result()
    finally:
        load.close()

    assert (found["whole"], found["broken"]) == (0, 10)


def test_answers_other_than_200_are_failures(rig, tmp_path):
    """A proxy that refuses quickly must not look fast."""
    bench, source = rig
    lost = [raw.replace(traffic.PATH.encode(), b"/v1/elsewhere") for raw in traffic.small(stream=False)]
    texts = traffic.write_requests(tmp_path / "lost", lost)
    load = measure.Load(bench, "requests", source.port, 2, 50, 0, texts)
    try:
        load.go()
        found = load.result()
    finally:
        load.close()

    assert found["whole"] == 0
    assert found["broken"] > 0


def test_a_load_that_nobody_serves_is_an_error(rig):
    """A contestant that has died is told from one that is slow."""
    bench, source = rig
    source.child.process.kill()
    source.child.process.wait()

    with pytest.raises(BenchError, match="answered nothing"):
        measure.requests(bench, source, connections=1, seconds=0.1)
