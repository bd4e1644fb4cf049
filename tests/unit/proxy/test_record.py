"""The access log and the ids of requests."""

from __future__ import annotations

import io
import json
from types import SimpleNamespace

import pytest
from drover_proxy.admin.metrics import Metrics
from drover_proxy.app.call import sent
from drover_proxy.app.record import Recorder
from drover_proxy.dialect.routes import match
from drover_proxy.drivers.log import GATHER_LINES, Log
from drover_proxy.wire import Kind, Outcome


def recorder(
    *, access: bool = True, sample: float = 1.0, level: str = "info"
) -> tuple[Recorder, Metrics, Log]:
    """Make a recorder whose lines are kept."""
    log, metrics = Log(level, io.StringIO()), Metrics("0")
    config = SimpleNamespace(log=SimpleNamespace(access=access, sample=sample, level=level))
    return Recorder(SimpleNamespace(metrics=metrics, log=log, config=config)), metrics, log


def call(**more: object) -> SimpleNamespace:
    """Make what the recorder looks at."""
    told = {
        "ex": SimpleNamespace(client='10.0.0.1"'),
        "elapsed": lambda: 2.5,
        "id": b"abc-1",
        "route": match(b"POST", b"/v1/chat/completions").route,
        "caller": SimpleNamespace(name="alice"),
        "model": 'odd"model',
        "instance": SimpleNamespace(name="gpu0"),
        "code": "",
        "hushed": False,
        "watch": None,
        "queue_seconds": 0.5,
        "load_seconds": 0.0,
        "first_byte_seconds": 1.25,
    }
    return SimpleNamespace(**(told | more))


def outcome(kind: Kind = Kind.COMPLETE, status: int = 200, detail: str = "") -> Outcome:
    """Make the end of a request."""
    return Outcome(kind, status, 10, 20, upstream_reused=False, detail=detail)


def lines(log: Log) -> list[dict[str, object]]:
    """Read what was logged."""
    log.flush()
    return [json.loads(line) for line in log._stream.getvalue().splitlines()]


def counted(metrics: Metrics) -> int:
    """How many requests were counted."""
    return sum(tally.count for tally in metrics.served.values())


def test_an_access_line_says_who_what_and_how_long():
    """Each is one JSON object, whatever stands in the names."""
    record, metrics, log = recorder()
    record.ended(call(), outcome())
    record.ended(call(), outcome(detail='he said "no"', status=502, kind=Kind.UPSTREAM_FAILED))
    good, bad = lines(log)
    assert good["event"] == "access"
    assert (good["id"], good["client"], good["key"], good["model"]) == (
        "abc-1",
        '10.0.0.1"',
        "alice",
        'odd"model',
    )
    assert (good["status"], good["kind"]) == (200, "complete")
    assert (good["queue_ms"], good["first_byte_ms"], good["duration_ms"]) == (500, 1250, 2500)
    assert "code" not in good
    assert (bad["status"], bad["kind"], bad["detail"]) == (502, "upstream_failed", 'he said "no"')
    assert counted(metrics) == 2


@pytest.mark.parametrize("kind", [Kind.UPSTREAM_BROKEN, Kind.IN_BAND_ERROR])
def test_a_broken_answer_is_told_also_where_the_access_log_is_off(kind: Kind):
    """An operator looks for these."""
    record, _, log = recorder(access=False, level="warning")
    record.ended(call(), outcome())
    record.ended(call(), outcome(kind, detail="it broke"))
    (line,) = lines(log)
    assert (line["event"], line["level"], line["detail"]) == ("answer_broken", "warning", "it broke")


def test_a_client_that_leaves_behind_the_last_record_had_its_whole_answer():
    """It counts as complete; without that record, as gone."""
    record, metrics, _ = recorder(access=False)
    watched = {
        True: SimpleNamespace(whole=lambda _status: True),
        False: SimpleNamespace(whole=lambda _status: False),
    }
    for whole in (True, False):
        record.ended(call(watch=watched[whole]), outcome(Kind.CLIENT_GONE))
    assert sorted(ended.kind for ended in metrics.served) == ["client_gone", "complete"]


def test_sampling_spares_good_requests_only():
    """A tenth of the good ones, and every bad one."""
    record, metrics, log = recorder(sample=0.1)
    for _ in range(200):
        record.ended(call(), outcome())
        record.ended(call(), outcome(status=503))
    told = [line["status"] for line in lines(log)]
    assert told.count(503) == 200
    assert 19 <= told.count(200) <= 20
    assert counted(metrics) == 400


def test_gathered_lines_are_written_without_a_loop_and_before_they_are_many():
    """Nothing waits where nothing could write it later."""
    stream = io.StringIO()
    log = Log("info", stream)
    log.gather("{}")
    assert stream.getvalue() == "{}\n"


async def test_gathered_lines_keep_their_order_with_others():
    """A line that can't wait takes along what was gathered before it."""
    stream = io.StringIO()
    log = Log("info", stream)
    for number in range(GATHER_LINES - 1):
        log.gather(json.dumps({"event": number}))
    assert stream.getvalue() == ""
    log.warning("now")
    events = [json.loads(line)["event"] for line in stream.getvalue().splitlines()]
    assert events == [*range(GATHER_LINES - 1), "now"]


@pytest.mark.parametrize(
    ("value", "kept"),
    [
        (b"abc-123", True),
        (b"x" * 128, True),
        (b"x" * 129, False),
        (b'a"b', False),
        (b"", False),
        (None, False),
    ],
)
def test_a_clients_id_is_kept_unless_it_could_forge_a_line(value: bytes | None, kept: bool):
    """What isn't a plain token is none, and gets an id of the proxy's own."""
    assert sent(SimpleNamespace(header=lambda _name: value)) == (value if kept else None)
