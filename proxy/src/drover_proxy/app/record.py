"""What stays of a request that is over: its counts, and its line in the log."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

import msgspec

from drover_proxy.wire import Kind, Outcome

if TYPE_CHECKING:
    from drover_proxy.app.call import Call
    from drover_proxy.app.parts import Parts

COMPLETE, CLIENT_GONE = Kind.COMPLETE, Kind.CLIENT_GONE
BROKEN = (Kind.UPSTREAM_BROKEN, Kind.IN_BAND_ERROR)
KEPT_MIDDLES = 4096


class Recorder:
    """Counts the requests that have ended, and writes the lines of the access log.

    A line's middle (who asked what of whom, and how it ended) recurs, so it is made once and kept.
    """

    def __init__(self, parts: Parts) -> None:
        self._parts = parts
        self._metrics = parts.metrics
        self._middles: dict[tuple[str, ...], str] = {}
        self._due = 0.0

    def ended(self, call: Call, outcome: Outcome) -> None:
        """Take note of a request that is over."""
        kind, status = outcome.kind, outcome.status
        watch = call.watch
        if kind is CLIENT_GONE and status == 200 and watch is not None and watch.whole(status):
            kind = COMPLETE  # clients that close at [DONE], before the last chunk, had their whole answer
        seconds = time.monotonic() - call.ex.arrived_at
        metrics, route = self._metrics, call.route
        metrics.served[route.dialect, route.name, call.model, status, kind] += 1
        metrics.bytes_in += outcome.bytes_in
        metrics.bytes_out += outcome.bytes_out
        metrics.duration.observe(seconds)
        access, log = self._parts.config.log, self._parts.log
        if kind in BROKEN:
            if log.tells("warning"):
                log.gather(self._line(call, kind, seconds, outcome, "warning", "answer_broken"))
                log.flush()
        elif access.access and not call.hushed and log.tells("info"):
            if access.sample < 1 and kind is COMPLETE and status < 400:
                self._due += access.sample
                if self._due < 1:
                    return
                self._due -= 1
            log.gather(self._line(call, kind, seconds, outcome, "info", "access"))

    def _line(self, call: Call, kind: Kind, seconds: float, outcome: Outcome, level: str, event: str) -> str:
        """Make the line of a request; by hand, since it is made for every one."""
        instance = call.instance
        key = (
            call.ex.client,
            call.caller.name,
            call.route.name,
            call.model,
            instance.name if instance is not None else "",
            call.code,
            kind,
        )
        middle = self._middles.get(key)
        if middle is None:
            if len(self._middles) >= KEPT_MIDDLES:
                self._middles.clear()
            names = ("client", "key", "route", "model", "instance", "code", "kind")
            told = {name: value for name, value in zip(names, key, strict=True) if value}
            middle = self._middles[key] = msgspec.json.encode(told).decode()[1:-1]
        ex_id, queue, load = call.id.decode("ascii"), call.queue_seconds, call.load_seconds
        detail = outcome.detail
        return (
            f'{{"time":"{self._parts.log.stamp()}","level":"{level}","event":"{event}","id":"{ex_id}",{middle},'
            f'"status":{outcome.status},"queue_ms":{int(queue * 1000)},"load_ms":{int(load * 1000)},'
            f'"first_byte_ms":{int(call.first_byte_seconds * 1000)},"duration_ms":{int(seconds * 1000)},'
            f'"bytes_in":{outcome.bytes_in},"bytes_out":{outcome.bytes_out}'
            + (f',"detail":{msgspec.json.encode(detail).decode()}}}' if detail else "}")
        )
