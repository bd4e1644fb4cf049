"""Loading, evicting, queueing, cancelling: the proxy before simulated Ollama instances."""

from __future__ import annotations

import concurrent.futures
import hashlib
import json
import os
import signal
import socket
import time

import httpx
import ollama
import openai
import pytest

from tests.contract.tiny import tiny_gguf
from tests.proxy.rig import EMBED, GIB, MIDDLE, OTHER, SMALL, real_ollama
from tests.support import eventually

HELLO = [{"role": "user", "content": "Say hello."}]


def test_a_herd_shares_one_load(make_rig):
    """Thirty requests for a cold model cause one load, and all are answered."""
    rig = make_rig(slots=4).start()
    client = rig.ollama()
    with concurrent.futures.ThreadPoolExecutor(30) as pool:
        answers = list(pool.map(lambda _: client.generate(SMALL, "One").response, range(30)))

    assert all(answers)
    assert len(rig.lines("load_started")) == 1
    assert rig.idle()


def test_the_least_recently_used_leaves(make_rig):
    """When a model doesn't fit, the idle one that was used longest ago is unloaded, and no other."""
    rig = make_rig(gpu_bytes=(13 * GIB,)).start()
    client = rig.ollama()
    client.generate(SMALL, "One")
    client.generate(MIDDLE, "One")
    client.generate(SMALL, "One")
    client.generate(OTHER, "One")

    assert [line["model"] for line in rig.lines("unload_started")] == [MIDDLE]
    assert rig.loaded() == {SMALL, OTHER}
    assert not rig.lines("runner_vanished")


@pytest.mark.skipif(bool(real_ollama()), reason="the stand-in runner's memory is back at once")
def test_late_memory_is_waited_for(make_rig):
    """A load begins only when NVML shows the memory as free, so nothing runs on the CPU in silence."""
    rig = make_rig(knobs={"habits": {"late_memory_seconds": 1.5}}).start()
    client = rig.ollama()
    client.generate(MIDDLE, "One")
    began = time.monotonic()
    client.generate(OTHER, "One")

    assert time.monotonic() - began > 1.4
    listed = client.ps().models
    assert [(m.model, m.size == m.size_vram) for m in listed] == [(OTHER, True)]


def test_a_full_queue_is_said_so(make_rig):
    """Beyond max_waiting a request gets 503 with Retry-After, in the words of its dialect."""
    rig = make_rig(extra={"queue": {"max_waiting": 2}}, knobs={"answer_tokens": 600}).start()
    native_client, openai_client = rig.ollama(), rig.openai()
    native_client.generate(SMALL)
    with concurrent.futures.ThreadPoolExecutor(5) as pool:
        busy = [pool.submit(native_client.generate, SMALL, "One") for _ in range(3)]
        eventually(lambda: rig.core()["waiting"] == 2, timeout=10)
        with rig.http() as http:
            native = http.post("/api/generate", json={"model": SMALL, "prompt": "One"})
        with pytest.raises(openai.InternalServerError) as refused:
            openai_client.chat.completions.create(model=SMALL, messages=HELLO)
        assert all(future.result().response for future in busy)

    assert native.status_code == 503
    assert native.headers["x-drover-error"] == "queue_full"
    assert int(native.headers["retry-after"]) > 0
    assert "queue is full" in native.json()["error"]
    assert refused.value.response.headers["retry-after"]


def test_a_client_that_leaves_mid_stream_frees_its_slot(make_rig):
    """When a client leaves, the next one gets the only slot at once, and nothing stays behind."""
    rig = make_rig(knobs={"answer_tokens": 4000}).start()
    rig.ollama().generate(SMALL)
    stream = rig.openai().chat.completions.create(model=SMALL, messages=HELLO, stream=True)
    next(iter(stream))
    assert rig.core()["in_flight"] == 1
    stream.close()

    eventually(rig.idle, timeout=3)
    answer = rig.ollama().generate(SMALL, "One", options={"num_predict": 3})
    assert answer.eval_count == 3


def test_a_client_that_leaves_while_queued_is_forgotten(make_rig):
    """A client that leaves the queue, or a load, is taken out of it; the load goes on."""
    rig = make_rig(knobs={"models": {SMALL: {"load_seconds": 1.5}}}).start()
    with socket.create_connection(("127.0.0.1", rig.port)) as client:
        body = json.dumps({"model": SMALL, "prompt": "One"}).encode()
        client.sendall(
            b"POST /api/generate HTTP/1.1\r\nhost: x\r\nauthorization: Bearer drv_test-use-key\r\n"
            b"content-length: %d\r\n\r\n%b" % (len(body), body)
        )
        eventually(lambda: rig.core()["waiting"] == 1)

    eventually(lambda: rig.core()["waiting"] == 0, timeout=1)
    eventually(lambda: rig.loaded() == {SMALL}, timeout=10)
    assert rig.idle()


def test_two_instances_share_the_work(make_rig):
    """With two GPUs, a second model goes beside the first instead of pushing it out."""
    rig = make_rig(gpu_bytes=(10 * GIB, 10 * GIB)).start()
    client = rig.ollama()
    client.generate(MIDDLE, "One")
    client.generate(OTHER, "One")

    assert rig.loaded() == {MIDDLE, OTHER}
    assert {m.model for m in client.ps().models} == {MIDDLE, OTHER}


def test_a_model_that_never_fits_is_refused_clearly(make_rig):
    """A model larger than every GPU is refused with its code, not run on the CPU."""
    rig = make_rig(gpu_bytes=(4 * GIB,)).start()
    with pytest.raises(ollama.ResponseError) as refused:
        rig.ollama().generate(MIDDLE, "One")

    assert refused.value.status_code in {503, 507, 400, 422, 413}
    assert rig.loaded() == set()


@pytest.mark.skipif(bool(real_ollama()), reason="the stand-in runner knows no model by its name")
def test_a_failed_load_is_told_to_who_waited(make_rig):
    """When a runner dies while loading, the client hears Ollama's own words."""
    rig = make_rig(knobs={"models": {SMALL: {"load_error": "unknown model architecture: 'madeup'"}}}).start()
    with rig.http() as http:
        answer = http.post("/v1/chat/completions", json={"model": SMALL, "messages": HELLO})

    assert answer.status_code >= 500
    assert answer.headers["x-drover-error"].startswith("load")
    assert "madeup" in answer.json()["error"]["message"]


def test_an_instance_that_comes_back_serves_again(make_rig):
    """When Ollama is restarted, the proxy notices, forgets its runners, and loads anew."""
    rig = make_rig().start()
    client = rig.ollama()
    client.generate(SMALL, "One")
    rig.processes[0].terminate()
    rig.processes[0].wait(10)
    eventually(lambda: rig.admin("/readyz").status_code == 503)
    rig.start_instance(0)
    eventually(lambda: rig.admin("/readyz").status_code == 200)

    assert client.generate(SMALL, "One").response
    assert rig.loaded() == {SMALL}


def test_a_request_that_meets_a_dead_instance_is_served_later(make_rig):
    """A request sent to an instance that has just died goes back into the queue, and is answered later."""
    rig = make_rig().start()
    client = rig.ollama()
    client.generate(SMALL, "One")
    rig.processes[0].kill()
    rig.processes[0].wait(10)
    kill_runners(rig)
    with concurrent.futures.ThreadPoolExecutor(1) as pool:
        waiting = pool.submit(client.generate, SMALL, "One")
        eventually(lambda: rig.core()["waiting"] == 1)
        rig.start_instance(0)
        assert waiting.result(20).response

    assert rig.idle()


def test_a_runner_that_dies_mid_stream_is_no_clean_end(make_rig):
    """When the runner is killed in the middle, every dialect gets its own error, and /v1 no clean end."""
    rig = make_rig(knobs={"answer_tokens": 4000}).start()
    streams = {
        "/api/generate": ({"prompt": "a"}, '"error"', False),
        "/v1/chat/completions": ({"messages": HELLO}, 'data: {"error"', True),
        "/v1/responses": ({"input": "a"}, "event: error", True),
        "/v1/messages": ({"messages": HELLO, "max_tokens": 3000}, "event: error", True),
    }
    for path, (body, mark, broken) in streams.items():
        rig.ollama().generate(SMALL)
        lines, error = killed_in_the_middle(rig, path, {"model": SMALL, "stream": True, **body})
        assert any(mark in line for line in lines[-4:]), (path, lines[-4:])
        assert (error is not None) is broken, path
        eventually(rig.idle)
    eventually(lambda: len(rig.lines("answer_broken")) == 4)
    kinds = [line["kind"] for line in rig.lines("answer_broken")]
    assert kinds == ["in_band_error", "upstream_broken", "upstream_broken", "upstream_broken"]


def killed_in_the_middle(rig, path, body):
    """Return the lines of a stream whose runner is killed after the first ones, and how it ended."""
    lines = []
    with rig.http() as http, http.stream("POST", path, json=body) as answer:
        try:
            for line in answer.iter_lines():
                lines.append(line)
                if len(lines) == 12:
                    kill_runners(rig)
        except httpx.RemoteProtocolError as error:
            return lines, error
    return lines, None


def kill_runners(rig):
    """Kill the processes that hold GPU memory, as the kernel's OOM killer would."""
    from lab.gpu.state import GpuState

    for gpu in GpuState.load(rig.state).gpus:
        for pid in gpu.procs:
            os.kill(pid, signal.SIGKILL)


def test_management_by_an_admin(make_rig):
    """An admin copies, creates, deletes; a loaded model is unloaded first, and the list is fresh at once."""
    rig = make_rig().start()
    boss = rig.ollama("admin")
    boss.create("mine", from_=SMALL, parameters={"temperature": 0.1})
    boss.copy(SMALL, "copied")
    assert boss.generate("mine", "One").response
    assert {"mine:latest", "copied:latest"} <= {m.model for m in boss.list().models}

    boss.delete("mine")
    eventually(lambda: rig.loaded() == set())
    with pytest.raises(ollama.ResponseError, match="not found"):
        boss.generate("mine", "One")
    assert boss.ps().models == []
    assert boss.generate("copied", "One").response


def test_a_model_made_from_an_upload(make_rig):
    """An admin uploads a GGUF file through the proxy, makes a model of it, and the model answers."""
    rig = make_rig(models=(SMALL,)).start()
    content = tiny_gguf()
    digest = f"sha256:{hashlib.sha256(content).hexdigest()}"
    with rig.http() as user, rig.http("admin") as boss:
        path = f"/api/blobs/{digest}"
        assert user.post(path, content=content).status_code == 403
        assert boss.head(path).status_code == 404
        assert boss.post(path, content=content).status_code == 201
        assert boss.head(path).status_code == 200
        made = boss.post("/api/create", json={"model": "tiny", "files": {"tiny.gguf": digest}})
        assert json.loads(made.text.splitlines()[-1]) == {"status": "success"}
        answer = user.post("/api/generate", json={"model": "tiny", "prompt": "a", "stream": False})

    assert answer.status_code == 200, answer.text
    assert answer.json()["done"] is True


def test_aliases_and_profiles(make_rig):
    """An alias is replaced in the request, and the profile's context is what the model is loaded with."""
    profile = {SMALL: {"aliases": ["gpt-4o", "house"], "context": 8192}}
    rig = make_rig(extra={"models": profile}).start()

    assert rig.ollama().generate("house", "One").response
    assert rig.ollama().generate("gpt-4o", "One", options={"num_ctx": 512}).response
    for _ in range(2):
        assert rig.openai().chat.completions.create(model="gpt-4o", messages=HELLO).choices
    listed = rig.ollama().ps().models
    assert [(m.model, m.context_length) for m in listed] == [(SMALL, 8192)]
    ollama_log = (rig.folder / "ollama0.log").read_text()
    assert ollama_log.count("load_tensors: offloaded") == 1
    assert len(rig.lines("variant_made")) == 1


def test_the_variants_of_a_profile_stay_hidden(make_rig):
    """What gives /v1 its context is in no list, can't be asked for, and goes with its model."""
    rig = make_rig(extra={"models": {SMALL: {"context": 8192}}}, models=(SMALL, EMBED)).start()
    client, boss = rig.openai(), rig.ollama("admin")
    assert client.chat.completions.create(model=SMALL, messages=HELLO).choices
    variant = rig.lines("variant_made")[0]["variant"]

    assert {m.id for m in client.models.list()} == {SMALL, EMBED}
    assert {m.model for m in boss.list().models} == {SMALL, EMBED}
    with pytest.raises(openai.NotFoundError):
        client.chat.completions.create(model=variant, messages=HELLO)
    boss.delete(SMALL)
    on_disk = httpx.get(f"http://127.0.0.1:{rig.instance_ports[0]}/api/tags")
    assert [m["name"] for m in on_disk.json()["models"]] == [EMBED]


def test_warm_up_loads_through_the_scheduler(rig):
    """The admin address loads models by name, says how long it took, and reports what it can't do."""
    asked = {"models": [SMALL, EMBED, "nobody"]}
    answer = httpx.post(f"{rig.admin_url}/drover/v1/warm", json=asked, timeout=30)

    assert answer.status_code == 503
    assert [(item["model"], item["ok"]) for item in answer.json()["models"]] == [
        (SMALL, True),
        (EMBED, True),
        ("nobody", False),
    ]
    assert rig.loaded() == {SMALL, EMBED}
    assert rig.idle()
