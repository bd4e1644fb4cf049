"""What was measured outlives a restart of the proxy."""

from __future__ import annotations

import json
import signal

from tests.proxy.rig import SMALL
from tests.support import eventually


def test_a_restart_measures_nothing_anew(make_rig):
    """A model that was loaded once is reckoned with by its measured size, also after a restart."""
    rig = make_rig().start()
    rig.ollama().generate(SMALL, "One")
    (first,) = rig.lines("load_finished")
    (started,) = rig.lines("load_started")
    assert first["measured_bytes"] < started["predicted_bytes"]
    kept = json.loads(eventually((rig.folder / "learned.json").read_text, ignore=(OSError,)))
    assert kept["learned"]["books"][0]["instance"] == "gpu0"

    for process in rig.processes:
        process.send_signal(signal.SIGTERM)
    for process in rig.processes:
        process.wait(10)
    rig.start()
    rig.ollama().generate(SMALL, "One")
    assert rig.lines("load_started")[-1]["predicted_bytes"] == first["measured_bytes"]
    eventually(lambda: not list(rig.folder.glob("learned.json.*")), what="no part of a file is left")
