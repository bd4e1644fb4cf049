"""The table of states, and the small parts that need no connection."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest
from drover_proxy import wire
from drover_proxy.wire import IllegalTransition, fields
from drover_proxy.wire.answerhead import AnswerHeads
from drover_proxy.wire.headers import connection_tokens, without_hop_by_hop
from drover_proxy.wire.states import NEXT, TRANSITIONS, Event, State, mermaid

from tests.unit.wire.rig import World, get

HERE = Path(wire.__file__).parent
PLAIN = {"KIB", "MIB"}
"""Numbers that are no limits; neither are bytes, which are written as 0x0D."""


def test_every_state_is_reached_and_ends():
    """From BODY every state can be reached, from every state DONE, and from DONE nothing."""
    for start in State:
        seen, todo = {start}, [start]
        while todo:
            state = todo.pop()
            new = {after for (before, _), after in TRANSITIONS.items() if before is state} - seen
            seen |= new
            todo += new
        assert State.DONE in seen
        if start is State.BODY:
            assert seen == set(State)
        if start is State.DONE:
            assert seen == {State.DONE}


def test_every_living_state_can_be_left():
    """The client may leave at any moment of a request's life."""
    assert {state for state in State if (state, Event.LEFT) in TRANSITIONS} == set(State) - {State.DONE}


def test_the_fast_table_is_the_table():
    """What the wire looks up is what is documented."""
    for state in State:
        for event in Event:
            assert NEXT[state][event] == TRANSITIONS.get((state, event))


def test_the_diagram_has_every_transition():
    """The generated diagram shows the table, whole, and is the one in the documentation."""
    assert mermaid().count("-->") == len(TRANSITIONS) + 2
    page = Path(__file__).resolve().parents[3] / "docs/explanation/wire.md"
    assert f"```mermaid\n{mermaid()}```\n" in page.read_text()


async def test_an_illegal_transition_changes_nothing(world: World):
    """The error tells the story of the request, and the request goes on as if nothing had been asked."""
    found: list[str] = []

    def wrong(ex):
        with pytest.raises(IllegalTransition) as caught:
            ex.write(b"no stream was begun")
        found.append(str(caught.value))
        with pytest.raises(IllegalTransition):
            ex.move(Event.ANSWER_END)
        assert ex.state is State.HELD
        ex.start_stream(200)
        with pytest.raises(IllegalTransition):
            ex.forward(world.upstream)
        ex.end()

    world.handler.on_ready = wrong
    client = await world.client(get(b"/it"))
    await client.until(b"0\r\n\r\n")
    assert "state HELD" in found[0]
    assert "GET /it" in found[0]


def test_no_secret_stays_in_the_table_of_lines():
    """Lines with credentials are read each time anew."""
    fields.read([b"Authorization: Bearer canary", b"X-Api-Key: canary", b"Cookie: canary", b"X-Plain: seen"])
    assert not [line for line in fields._kept if b"canary" in line]
    assert b"X-Plain: seen" in fields._kept


def test_the_tables_are_bounded():
    """Neither lines nor heads pile up."""
    for n in range(3000):
        fields.read([b"X-N: %d" % n])
    assert len(fields._kept) <= fields.KEPT_LINES
    heads = AnswerHeads()
    for n in range(1000):
        heads.read(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % n)
    assert len(heads._kept) <= 64


def test_connection_names_are_removed_but_never_the_framing():
    """Connection may name any field of an answer but those that say how long it is."""
    raw = (
        b"HTTP/1.1 200 OK\r\nContent-Length: 1\r\nConnection: X-Mine, content-length\r\n"
        b"X-mine: 1\r\nX-Yours: 2\r\n\r\n"
    )
    found = fields.read(raw[:-4].split(b"\r\n")[1:])
    assert connection_tokens(found) == {b"x-mine", b"content-length"}
    assert without_hop_by_hop(raw, found) == b"HTTP/1.1 200 OK\r\nContent-Length: 1\r\nX-Yours: 2\r\n\r\n"


def test_files_stay_short():
    """One role a file, and none over 400 lines."""
    for path in HERE.glob("*.py"):
        assert len(path.read_text().splitlines()) <= 400, path.name


def test_every_limit_has_its_reason():
    """A number with a name has words behind it that say why it is that one; several may share them."""
    for path in HERE.glob("*.py"):
        body = ast.parse(path.read_text().replace(" = 0x", " = ...  # 0x")).body
        for at, node in enumerate(body):
            if isinstance(node, (ast.Assign, ast.AnnAssign)) and is_number(node.value):
                name = ast.unparse(node).partition(" ")[0].rstrip(":")
                behind = next(other for other in body[at + 1 :] if not is_named_number(other))
                said = isinstance(behind, ast.Expr) and isinstance(behind.value, ast.Constant)
                assert said or name in PLAIN, f"{path.name}: {name}"


def is_number(value: ast.expr | None) -> bool:
    """Whether this is a number, or made of some."""
    leaves = [leaf for leaf in ast.walk(value or ast.Pass()) if isinstance(leaf, (ast.Constant, ast.Call))]
    return bool(leaves) and all(
        isinstance(leaf, ast.Constant) and type(leaf.value) in {int, float} for leaf in leaves
    )


def is_named_number(node: ast.stmt) -> bool:
    """Whether this gives a number its name."""
    return isinstance(node, (ast.Assign, ast.AnnAssign)) and is_number(node.value)
