r"""Requests: whatever a client sends, the upstream sees the requests that h11 sees, or fewer, and no others.

Input: one byte for the body's plan, one for where the network cuts, then what the client sends.
"""

from __future__ import annotations

from urllib.parse import urlsplit

from drover_proxy.wire import BodyPlan, Exchange, Kind, UpstreamError
from drover_proxy.wire.known import KnownHeads

from tests.fuzz.fakes import TURNS, Quiet, Wires, connect, cuts, make_server, on_turns
from tests.fuzz.reference import Seen, one_request, requests_in
from tests.unit.wire.test_strict import ACCEPTED, REFUSED

ANSWER = b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n"


class Forwarding(Quiet):
    """Forwards everything, with bodies dealt with by one plan."""

    def __init__(self, plan: BodyPlan, upstream: Wires) -> None:
        super().__init__()
        self.plan, self.upstream = plan, upstream.upstream

    def head(self, ex: Exchange) -> BodyPlan:
        """Give the plan."""
        super().head(ex)
        return self.plan

    def ready(self, ex: Exchange) -> None:
        """Forward."""
        ex.forward(self.upstream)

    def upstream_failed(self, ex: Exchange, error: UpstreamError) -> bool:
        """Never: the upstream here is a good one."""
        raise AssertionError(f"{error} by {ex!r}")


def ask(data: bytes, plan: BodyPlan, cut: int, heads: KnownHeads) -> tuple[list[Seen], bool]:
    """Send these bytes to the proxy; return what its upstream has seen, and whether the connection ended."""
    upstream = Wires()
    handler = Forwarding(plan, upstream)
    server, _ = make_server(handler)
    server.heads = heads
    connection, pipe = connect(server)
    seen: list[Seen] = []
    for piece in cuts(data, cut):
        if pipe.closed:
            break
        upstream.supply()
        connection.data_received(piece)
        TURNS.turn()
        while _serve(upstream, seen):
            TURNS.turn()
    for other in upstream.pipes:
        if other.written and not other.closed:
            assert one_request(other.written) is None, "given up, and yet whole"
    ended = pipe.closed or pipe.half_closed
    pipe.lose(None)
    assert not server.connections
    assert len(handler.begun) == len(handler.outcomes)
    assert all(o.kind in {Kind.COMPLETE, Kind.REFUSED, Kind.CLIENT_GONE} for o in handler.outcomes)
    assert all(c in upstream.pool.idle for c in upstream.pool.connections), "an upstream connection leaked"
    return seen, ended


def _serve(upstream: Wires, seen: list[Seen]) -> bool:
    """Be the upstream: answer each connection on which a request is whole."""
    for pipe in upstream.pipes:
        pipe.settle()
        if pipe.written and not pipe.closed:
            request = one_request(pipe.written)
            if request is not None:
                pipe.written = b""
                seen.append(request)
                pipe.protocol.data_received(ANSWER)
                return True
    return False


def reference(data: bytes, plan: BodyPlan) -> list[Seen]:
    """Say what h11 makes of the same bytes, with targets in origin-form."""
    seen = requests_in(data, heads=plan is BodyPlan.NONE)
    return [(method, origin_form(target), body) for method, target, body in seen]


def origin_form(target: bytes) -> bytes:
    """Bring a target into origin-form, by other means than ours."""
    if not target.lower().startswith((b"http://", b"https://")):
        return target
    parts = urlsplit(target.decode("latin-1"))
    return ((parts.path or "/") + ("?" + parts.query if "?" in target.decode("latin-1") else "")).encode()


@on_turns
def check(data: bytes) -> None:
    """Hold the wire against h11, whole and cut, with heads that it reads and that it knows by then."""
    if len(data) < 3:
        return
    plan, cut, sent = BodyPlan(data[0] % 3), data[1], data[2:]
    heads = KnownHeads()
    seen, ended = ask(sent, plan, 0, heads)
    expected = reference(sent, plan)
    assert seen == expected[: len(seen)], (seen, expected)
    assert ended or len(seen) == len(expected), ("not served", seen, expected)
    again, end = ask(sent, plan, cut or 255, heads)
    if plan is BodyPlan.NONE:  # its answer may be out before the body, which nobody wants, proves bad
        shorter = min(len(seen), len(again))
        assert seen[:shorter] == again[:shorter]
    else:
        assert (again, end) == (seen, ended), ("cut otherwise", again, end, seen, ended)


def seeds() -> list[bytes]:
    """What the tests of strictness know."""
    good = b"GET /next HTTP/1.1\r\nHost: a\r\n\r\n"
    raws = [raw for _, raw in REFUSED.values() if len(raw) < 500]
    raws += [*ACCEPTED.values(), good + good]
    raws += [
        b"GET http://a:1/b?c HTTP/1.1\r\nHost: a\r\n\r\n",
        b"OPTIONS * HTTP/1.1\r\nHost: a\r\n\r\n",
        b"POST / HTTP/1.0\r\nConnection: keep-alive\r\nContent-Length: 3\r\n\r\nabc" + good,
        b"POST / HTTP/1.1\r\nHost: a\r\nExpect: 100-continue\r\nContent-Length: 3\r\n\r\nabc" + good,
        b"HEAD / HTTP/1.1\r\nHost: a\r\nConnection: close, x\r\nX: y\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: a\r\nConnection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\n"
        b"HTTP2-Settings: AAMAAABkAAQAAP__\r\n\r\n" + good,
    ]
    return [bytes((plan, 5 * index % 256)) + raw for index, raw in enumerate(raws) for plan in (1, 2)]
