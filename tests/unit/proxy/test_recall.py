"""The file in which the proxy keeps what it has learned."""

from __future__ import annotations

import asyncio

import pytest
from drover_proxy.app.recall import Recall
from drover_proxy.core.learned import Learned, LearnedBook, LearnedSize
from drover_proxy.drivers.log import Log

LEARNED = Learned(
    sizes=(
        LearnedSize("sha256:1", 4096, 2, 1, "f16", 5 << 30),
        LearnedSize("sha256:2", 8, 1, 1, "f16", 9, floor=True),
    ),
    books=(LearnedBook("gpu0", "sha256:1", 4096, 4 << 30, {"GPU-0": 7 << 30}),),
)


def recall(folder):
    """Return a Recall of a folder."""
    return Recall(Log("warning"), {"STATE_DIRECTORY": f"{folder}:/elsewhere"} if folder else {})


def keep(one, *all_learned):
    """Keep one after the other, and wait until it is written."""

    async def run():
        for learned in all_learned:
            one.keep(learned)
        await one.finish()

    asyncio.run(run())


def test_there_and_back(tmp_path):
    """What was kept last is read at the next start, and no part of a file is left."""
    keep(recall(tmp_path), Learned(), LEARNED)
    assert recall(tmp_path).read() == LEARNED
    assert [path.name for path in tmp_path.iterdir()] == ["learned.json"]


@pytest.mark.parametrize(
    "content", [b"", b"{", b"[]", b'{"format": 2, "learned": {}}', b'{"format": 1}', b"\xff"]
)
def test_a_damaged_file_counts_as_empty(tmp_path, content, capfd):
    """Whatever stands in the file, the proxy starts."""
    (tmp_path / "learned.json").write_bytes(content)
    assert recall(tmp_path).read() == Learned()
    assert ("learned_unreadable" in capfd.readouterr().err) is (b'format": 2' not in content)


def test_without_a_folder_nothing_is_kept(tmp_path, monkeypatch):
    """Where systemd gives no folder there is no file."""
    monkeypatch.chdir(tmp_path)
    one = recall(None)
    keep(one, LEARNED)
    assert one.read() == Learned()
    assert not list(tmp_path.iterdir())


def test_a_folder_that_cannot_be_written(tmp_path, capfd):
    """A full or missing disk is told of, and nothing else."""
    keep(recall(tmp_path / "missing"), LEARNED)
    assert "learned_not_kept" in capfd.readouterr().err
