"""Pieces of the shell that can be looked at without processes."""

from __future__ import annotations

import asyncio
import io

import pytest
from drover_proxy.admin.exposition import Exposition
from drover_proxy.admin.metrics import Ended, Histogram, Metrics
from drover_proxy.admin.server import local
from drover_proxy.app.catalogue import Catalogue
from drover_proxy.app.coreconfig import UnknownGpu, core_config, default_context, resolve_gpus
from drover_proxy.app.variants import base_of, is_variant, variant_name
from drover_proxy.config import parse
from drover_proxy.core.config import Gpu
from drover_proxy.core.events import ModelGone, ModelKnown
from drover_proxy.dialect.names import canonical
from drover_proxy.drivers.log import Log
from drover_proxy.drivers.ollama import OllamaError
from prometheus_client.parser import text_string_to_metric_families

GIB = 1 << 30
CONFIG = parse(
    "instances:\n"
    "  - {name: a, url: 'http://127.0.0.1:1', gpus: [1]}\n"
    "  - {name: b, url: 'http://127.0.0.1:2', gpus: [GPU-x, GPU-y], context: 1000}\n"
    "models: {m: {context: 2048, pin: true, aliases: [n]}}\n"
    "loads: {cooldown_seconds: 5}\n"
)
FOUND = (Gpu("GPU-x", 24 * GIB), Gpu("GPU-y", 80 * GIB))


class FakeClient:
    """The control side of an instance, from lists."""

    name = "fake"

    def __init__(self, *names):
        self.listed = [{"name": name, "digest": name, "size": 5} for name in names]
        self.shows = 0
        self.deleted = []
        self.gate = None

    async def tags(self):
        listed = list(self.listed)
        if self.gate is not None:
            await self.gate.wait()
        return listed

    async def show(self, model):
        self.shows += 1
        if model == "broken:latest":
            raise OllamaError("no", status=500)
        return {"capabilities": ["completion"], "modelfile": f"FROM /blobs/sha256-{'a' * 64}\n"}

    async def delete(self, model):
        self.deleted.append(model)


def catalogue_of(client):
    """Return a catalogue and the events that it posts."""
    events = []
    return Catalogue(Log("error", io.StringIO()), events.append, lambda: client), events


def test_indexes_become_uuids():
    """An index counts in the order in which the GPUs were found."""
    assert resolve_gpus(CONFIG, FOUND) == {"a": ("GPU-y",), "b": ("GPU-x", "GPU-y")}
    with pytest.raises(UnknownGpu, match=r"instances\[0\]\.gpus: this host has no GPU 1"):
        resolve_gpus(CONFIG, FOUND[:1])


def test_the_context_by_default_follows_ollamas_tiers():
    """Without a setting it depends on the memory of the instance's GPUs."""
    one, two = CONFIG.instances

    assert default_context(one, ("GPU-y",), FOUND) == 262_144
    assert default_context(one, ("GPU-x",), FOUND) == 32_768
    assert default_context(one, (), FOUND) == 4096
    assert default_context(two, ("GPU-x",), FOUND) == 1000


def test_the_cores_configuration_has_everything():
    """Instances, profiles and limits arrive."""
    core = core_config(CONFIG, FOUND, resolve_gpus(CONFIG, FOUND))

    assert [instance.gpu_uuids for instance in core.instances] == [("GPU-y",), ("GPU-x", "GPU-y")]
    assert core.profiles["m:latest"].pin
    assert core.loads.cooldown_seconds == 5


async def test_a_model_that_runs_elsewhere_is_none_of_ours():
    """Whatever its name is, nothing is asked of it; under another's, a model of this host is one again."""
    client = FakeClient("m:latest", "stub:latest")
    client.listed[1]["remote_host"] = "https://cloud.example"
    catalogue, events = catalogue_of(client)
    await catalogue.refresh()
    assert (catalogue.resolve("stub:latest"), catalogue.remote) == (None, {"stub:latest"})
    assert ([event.model for event in events], client.shows) == (["m:latest"], 1)
    del client.listed[1]["remote_host"]
    await catalogue.refresh()
    assert (catalogue.resolve("stub:latest"), catalogue.remote) == ("stub:latest", set())


async def test_the_catalogue_tells_what_comes_and_goes():
    """New models are shown once, gone ones are told, a broken one is known all the same."""
    client = FakeClient("m:latest", "Broken:latest", "x:cloud")
    client.listed[1]["name"] = "broken:latest"
    catalogue, events = catalogue_of(client)
    catalogue.configure(CONFIG.models)
    await catalogue.refresh()
    await catalogue.refresh()

    assert sorted(event.model for event in events) == ["broken:latest", "m:latest"]
    assert client.shows == 2
    assert catalogue.resolve("n:latest") == "m:latest"
    assert catalogue.resolve("x:latest") is None
    client.listed.pop(0)
    await catalogue.refresh()
    assert events[-1] == ModelGone("m:latest")
    assert catalogue.resolve("n:latest") is None


async def test_a_doubt_is_settled_only_by_a_reading_that_began_after_it():
    """Who asks for a model right after a management call gets the new list, however the readings overlap."""
    client = FakeClient()
    catalogue, events = catalogue_of(client)
    client.gate = asyncio.Event()
    early = asyncio.ensure_future(catalogue.refresh())
    await asyncio.sleep(0)  # it has its list, and waits at the gate
    client.listed = [{"name": "new:latest", "digest": "1", "size": 1}]
    catalogue.doubt()
    late = asyncio.ensure_future(catalogue.look_again())
    await asyncio.sleep(0)  # it waits, too
    client.gate.set()
    await asyncio.gather(early, late)

    assert catalogue.resolve("new:latest") == "new:latest"
    assert not catalogue.dirty
    assert isinstance(events[0], ModelKnown)


async def test_variants_are_hidden_and_go_with_their_models():
    """A variant is no model of its own, and one whose model is gone is deleted."""
    mine, orphan = variant_name("m:latest", 8192), variant_name("gone:latest", 8192)
    client = FakeClient("m:latest", mine, orphan)
    catalogue, _ = catalogue_of(client)
    await catalogue.refresh()

    assert list(catalogue.models) == ["m:latest"]
    assert client.deleted == [orphan]
    assert catalogue.blob(mine) == catalogue.blob("m:latest")


@pytest.mark.parametrize("model", ["m:latest", "hf.co/user/repo:q4_k_m", "me/" + "x" * 80 + ":" + "y" * 80])
def test_variant_names_are_model_names(model):
    """Ollama takes them, they are canonical already, and lead back to their model."""
    name = variant_name(model, 8192)

    assert canonical(name) == name
    assert is_variant(name)
    assert base_of(name, {model: None}) == model
    assert base_of(name, {"other:latest": None}) is None


def test_metrics_can_be_read_by_prometheus():
    """Counters and histograms come out as they were counted."""
    metrics = Metrics("1.2.3")
    metrics.tally(Ended("ollama", "/api/chat", 'odd"model', 200, "complete")).count += 1
    metrics.tally(Ended("ollama", "/api/chat", 'odd"model', 200, "client_gone")).count += 1
    metrics.queue_wait.observe(0.0025)
    metrics.queue_wait.observe(1e9)
    text = Exposition(metrics, lambda: iter(())).text().decode()
    samples = {
        (sample.name, tuple(sample.labels.values())): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }

    assert samples["drover_requests_total", ('odd"model', "/api/chat", "200")] == 2
    assert samples["drover_queue_wait_seconds_bucket", ("0.001",)] == 0
    assert samples["drover_queue_wait_seconds_bucket", ("0.0025",)] == 1
    assert samples["drover_queue_wait_seconds_bucket", ("+Inf",)] == 2
    assert samples["drover_queue_wait_seconds_count", ()] == 2


def test_histogram_buckets_are_cumulative():
    """Each bucket has all that is at most its bound."""
    histogram = Histogram((1.0, 2.0))
    for seconds in (0.5, 1.0, 1.5, 3.0):
        histogram.observe(seconds)

    assert histogram.buckets() == [("1.0", 2), ("2.0", 3), ("+Inf", 4)]
    assert histogram.total == 6.0


@pytest.mark.parametrize(
    ("client", "is_local"),
    [
        ("127.0.0.1", True),
        ("127.8.8.8", True),
        ("::1", True),
        ("unix", True),
        ("10.0.0.1", False),
        ("", False),
    ],
)
def test_who_is_on_this_host(client, is_local):
    """Only loopback and Unix sockets may warm models up."""
    assert local(client) is is_local
