"""What stays of a request that is over: its counts, and its line in the log."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import msgspec

from drover_proxy.admin.metrics import Ended
from drover_proxy.wire import Kind, Outcome

if TYPE_CHECKING:
    from drover_proxy.admin.metrics import Tally
    from drover_proxy.app.call import Call
    from drover_proxy.app.parts import Parts

COMPLETE: Final = Kind.COMPLETE
COMPLETE_NAME: Final = Kind.COMPLETE.value
BROKEN: Final = (Kind.UPSTREAM_BROKEN, Kind.IN_BAND_ERROR)
KEPT_SORTS = 4096
ACCESS: Final = '","level":"info","event":"access","id":"'
ANSWER_BROKEN: Final = '","level":"warning","event":"answer_broken","id":"'

Sort = tuple[str, str, str, str, str, str, str, int]
"""Client, key, route, model, instance, code, kind and status."""
NAMES = ("client", "key", "route", "model", "instance", "code", "kind", "status")


class Seen:
    """What requests have in common that differ in no more than their times and lengths."""

    __slots__ = ("middle", "tally")

    def __init__(self, sort: Sort, tally: Tally) -> None:
        told = {name: value for name, value in zip(NAMES, sort, strict=True) if value or name == "status"}
        self.middle = msgspec.json.encode(told).decode()[1:-1]
        """Of their lines."""
        self.tally = tally


class Recorder:
    """Counts the requests that have ended, and writes the lines of the access log.

    Who asks what of whom, and how it ends, recurs: what follows from that is made once and kept.
    """

    def __init__(self, parts: Parts) -> None:
        self._parts = parts
        self._metrics = parts.metrics
        self._seen: dict[Sort, Seen] = {}
        self._due = 0.0

    def ended(self, call: Call, outcome: Outcome) -> None:
        """Take note of a request that is over."""
        kind, status = outcome.kind, outcome.status
        if kind is not COMPLETE and _had_all(call, kind, status):
            kind = COMPLETE
        seconds = call.elapsed()
        metrics = self._metrics
        seen = self._sort(call, kind, status)
        seen.tally.count += 1
        metrics.bytes_in += outcome.bytes_in
        metrics.bytes_out += outcome.bytes_out
        metrics.duration.observe(seconds)
        access, log = self._parts.config.log, self._parts.log
        if kind is not COMPLETE and kind in BROKEN:
            if log.tells("warning"):
                log.gather(self._line(call, seen, seconds, outcome, ANSWER_BROKEN))
                log.flush()
        elif access.access and not call.hushed and log.tells("info"):
            if access.sample < 1 and kind is COMPLETE and status < 400:
                self._due += access.sample
                if self._due < 1:
                    return
                self._due -= 1
            log.gather(self._line(call, seen, seconds, outcome, ACCESS))

    def _sort(self, call: Call, kind: Kind, status: int) -> Seen:
        """Find what this request has in common with others."""
        instance, route = call.instance, call.route
        sort = (
            call.ex.client,
            call.caller.name,
            route.name,
            call.model,
            instance.name if instance is not None else "",
            call.code,
            COMPLETE_NAME if kind is COMPLETE else kind.value,  # an enum's hash is slow
            status,
        )
        seen = self._seen.get(sort)
        if seen is None:
            if len(self._seen) >= KEPT_SORTS:
                self._seen.clear()
            ended = Ended(route.dialect.value, route.name, call.model, status, kind.value)
            seen = self._seen[sort] = Seen(sort, self._metrics.tally(ended))
        return seen

    def _line(self, call: Call, seen: Seen, seconds: float, outcome: Outcome, event: str) -> str:
        """Make the line of a request; by hand, since it is made for every one."""
        ex_id, queue, load = call.id.decode("ascii"), call.queue_seconds, call.load_seconds
        detail = outcome.detail
        line = (
            f'{{"time":"{self._parts.log.stamp()}{event}{ex_id}",{seen.middle},'
            f'"queue_ms":{int(queue * 1000)},"load_ms":{int(load * 1000)},'
            f'"first_byte_ms":{int(call.first_byte_seconds * 1000)},"duration_ms":{int(seconds * 1000)},'
            f'"bytes_in":{outcome.bytes_in},"bytes_out":{outcome.bytes_out}}}'
        )
        return f'{line[:-1]},"detail":{msgspec.json.encode(detail).decode()}}}' if detail else line


def _had_all(call: Call, kind: Kind, status: int) -> bool:
    """Whether a client that left had its whole answer: some close at [DONE], before the last chunk."""
    watch = call.watch
    return kind is Kind.CLIENT_GONE and status == 200 and watch is not None and watch.whole(status)
