"""What was seen of two good peers, the rows about two models and memory for one: none of it happens here."""

from __future__ import annotations

import threading
from collections import Counter
from concurrent.futures import ThreadPoolExecutor

import pytest

from tests.proxy.rig import MIDDLE, OTHER, Rig
from tests.support import eventually

STARVE_SECONDS = 0.5


@pytest.fixture
def narrow(make_rig) -> Rig:
    """A GPU that holds either of two models, never both."""
    queue = {"starve_seconds": STARVE_SECONDS}
    return make_rig(slots=4, extra={"queue": queue}, knobs={"answer_tokens": 40}).start()


def ask(rig: Rig, model: str) -> int:
    """Ask once; returns the status."""
    with rig.http() as client:
        return client.post("/api/generate", json={"model": model, "prompt": "x", "stream": False}).status_code


def loads(rig: Rig) -> int:
    """Count the loads so far."""
    page = rig.admin("/metrics").text
    lines = [line for line in page.splitlines() if line.startswith("drover_loads_total{")]
    return sum(int(float(line.rsplit(" ", 1)[1])) for line in lines if '"ok"' in line)


@pytest.mark.timeout(120)
def test_one_model_stays_busy_and_the_other_is_asked(narrow):
    """The busy one gets no new requests after starve_seconds: the other is served while they still come."""
    stop, served = threading.Event(), Counter[int]()

    def keep_busy() -> None:
        while not stop.is_set():
            served[ask(narrow, MIDDLE)] += 1

    threads = [threading.Thread(target=keep_busy) for _ in range(3)]
    for thread in threads:
        thread.start()
    try:
        eventually(lambda: served[200] > 6, timeout=60)
        assert ask(narrow, OTHER) == 200
        before = served[200]
        eventually(lambda: served[200] > before + 3, timeout=60)
    finally:
        stop.set()
        for thread in threads:
            thread.join()
    assert set(served) == {200}


@pytest.mark.timeout(120)
def test_two_models_asked_by_turns(narrow):
    """One client that alternates costs a load each time, and every request is served."""
    assert [ask(narrow, model) for model in (MIDDLE, OTHER) * 3] == [200] * 6
    assert loads(narrow) == 6


@pytest.mark.timeout(120)
def test_four_and_four_clients_on_two_models(narrow):
    """Both groups are served to the end, and with fewer loads than requests."""
    with ThreadPoolExecutor(8) as pool:
        answers = list(pool.map(lambda n: ask(narrow, (MIDDLE, OTHER)[n % 2]), range(48)))
    assert answers == [200] * 48
    assert 2 <= loads(narrow) < 40
