"""A client that leaves frees its slot when Ollama has stopped: seen at an Ollama, simulated or real."""

from __future__ import annotations

import time

import pytest

from tests.proxy.rig import SMALL
from tests.support import eventually


@pytest.mark.timeout(120)
def test_the_slot_of_who_left_is_free_soon_and_not_at_once(make_rig):
    """The next one is served by the only slot, after Ollama has ended with the one before."""
    rig = make_rig(knobs={"answer_tokens": 4000, "tokens_per_second": 50.0}).start()
    body = {"model": SMALL, "prompt": "a", "options": {"num_predict": 4000}}
    waits = []
    with rig.http() as client:
        for _ in range(5):
            with client.stream("POST", "/api/generate", json=body) as answer:
                assert answer.status_code == 200
                lines = answer.iter_lines()  # kept: httpx closes the answer with it
                next(lines)
                assert rig.core()["in_flight"] == 1
            left_at = time.monotonic()
            eventually(rig.idle, every=0.005, timeout=5)
            waits.append(time.monotonic() - left_at)
    assert sorted(waits)[2] < 1.0, waits
    assert not rig.lines("slow_to_stop")
