"""The committed record of a full run, and its tables in docs/explanation/performance.md.

python -m bench.page            # writes the tables anew from bench/record.json
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from bench.figures import BARS, fallback
from bench.figures import STREAMS as JUDGED_STREAMS
from bench.provide import HERE, PROJECT

RECORD = HERE / "record.json"
PAGE = PROJECT / "docs" / "explanation" / "performance.md"
BEGIN = "<!-- figures of bench/record.json: begin (python -m bench.page) -->"
END = "<!-- figures of bench/record.json: end -->"

Row = Mapping[str, Any]
WORDS = {
    "cpu_per_request_vs_nginx": "CPU a request, times nginx",
    "cpu_per_request_vs_go": "CPU a request, times Go",
    "cpu_per_request_vs_go_pooled": "CPU a request, times Go with a pool for its buffers",
    "cpu_per_request_vs_vllm_router": "CPU a request, times vllm-router",
    "cpu_per_chunk_vs_go": "CPU a chunk, times Go",
    "cpu_per_chunk_vs_nginx": "CPU a chunk, times nginx",
    "cpu_per_chunk_ndjson_vs_go": "CPU a line of Ollama's own streams, times Go",
    "cpu_per_chunk_ndjson_vs_nginx": "CPU a line of Ollama's own streams, times nginx",
    "ttfb_added_p99_ms_at_1000": "time to first byte added at 1,000 streams, p99, ms",
    "bytes_per_stream": "memory a stream, KiB",
    "rss_at_rest_bytes": "memory at rest, MB",
    "stall_ms": "stall by a body of 5 MB, ms",
    "failed_streams": "streams that failed",
    "streams_not_open": "streams that were not open together with the rest",
}
SCALE = {"bytes_per_stream": 1 / 1024, "rss_at_rest_bytes": 1e-6}


def markdown(record: Row) -> str:
    """Return the tables of a record."""
    machine, setting, figures = record["machine"], record["setting"], record["figures"]
    more = setting.get("more_rounds", 0)
    judged = (
        f" ({setting['rounds'] + more} of drover, nginx and go at {JUDGED_STREAMS:,} streams)" if more else ""
    )
    parts = [
        f"{record['date']}, {machine['cores']} cores ({machine['cpu']}), Linux {machine['kernel']}, "
        f"load average {machine['load_before']:g} before the run. Medians of {setting['rounds']} round(s) of "
        f"{setting['seconds']:g} s{judged}, least and greatest in brackets. "
        + ", ".join(f"{name}: {version}" for name, version in record["versions"].items())
        + ".",
        _build(record["final"]),
        _bars(record["final"]),
    ]
    for kind, (title, columns) in KINDS.items():
        for cell in _cells(figures, kind):
            rows = [
                [name, *(show(cells[cell]) for _, show in columns)]
                for name, cells in figures.items()
                if cell in cells and cells[cell]["rounds"]
            ]
            heads = ["", *(head for head, _ in columns)]
            parts.append(title.format(cell.partition("/")[2]) + ":\n\n" + _table(heads, rows))
    parts += [f"{name} could not be had: {why}" for name, why in record["missing"].items()]
    return "\n\n".join(parts)


def _build(final: Row) -> str:
    if why := final.get("drover_build_why"):
        return fallback(why) + "."
    return f"drover is the {final['drover_build']} proxy."


def _one(key: str, digits: int, scale: float = 1.0) -> Callable[[Row], str]:
    return lambda row: f"{row[key][0] * scale:,.{digits}f}" if key in row else "-"


def _ranged(key: str, digits: int) -> Callable[[Row], str]:
    def show(row: Row) -> str:
        if key not in row:
            return "-"
        middle, low, high = (f"{value:.{digits}f}" for value in row[key])
        return middle if low == high else f"{middle} [{low}-{high}]"

    return show


Columns = tuple[tuple[str, Callable[[Row], str]], ...]
REQUESTS: Columns = (
    ("requests/s", _one("rps", 0)),
    ("CPU, µs", _ranged("cpu_us", 1)),
    ("of it in the kernel, %", _one("kernel", 0, 100)),
    ("core busy, %", _one("busy", 0, 100)),
    ("p50, ms", _one("p50_ms", 2)),
    ("p99, ms", _one("p99_ms", 1)),
    ("RSS, MiB", _one("rss_mib", 0)),
    ("failed", _one("failed", 0)),
)
STREAMS: Columns = (
    ("CPU, µs a chunk", _ranged("cpu_us", 1)),
    ("core busy, %", _one("busy", 0, 100)),
    ("chunks/s", _one("chunks_per_second", 0)),
    ("TTFB p50, ms", _one("ttfb_p50_ms", 1)),
    ("p99, ms", _one("ttfb_p99_ms", 1)),
    ("added p50, ms", _one("ttfb_added_p50_ms", 1)),
    ("p99, ms", _one("ttfb_added_p99_ms", 1)),
    ("gap p50, ms", _one("gap_p50_ms", 1)),
    ("p99, ms", _one("gap_p99_ms", 1)),
    ("open at once", _one("open_peak", 0)),
    ("KiB each", _one("stream_bytes", 1, 1 / 1024)),
    ("failed", _one("failed", 0)),
)
STALL: Columns = (
    ("longest gap, ms", _one("alone_ms", 1)),
    ("while bodies are posted", _one("with_bodies_ms", 1)),
    ("added", _ranged("stall_ms", 1)),
)
REST: Columns = (
    ("RSS, MB", _one("rest_bytes", 1, 1e-6)),
    ("CPU, ms a second", _one("idle_ms_per_second", 1)),
)
KINDS: dict[str, tuple[str, Columns]] = {
    "requests": ("Requests, {} connection(s)", REQUESTS),
    "streams": ("{} streams, 20 ms a chunk", STREAMS),
    "ndjson": ("{} streams of Ollama's own lines (/api/chat), 20 ms a line", STREAMS),
    "held": ("{} slow streams, 250 ms a chunk", STREAMS),
    "stall": ("50 streams, and another client's bodies of 5 MB", STALL),
    "rest": ("At rest", REST),
}


def _bars(final: Row) -> str:
    pure = any(key.endswith("_pure") for key in final)
    rows = []
    for key, words in WORDS.items():
        value, bar = final.get(key), BARS.get(key)
        verdict = "" if value is None or bar is None else "met" if value <= bar else "**missed**"
        of = f", of {final['bytes_per_stream_at']:,}" if key == "bytes_per_stream" and value else ""
        rows.append([words + of, _shown(key, value), "" if bar is None else _shown(key, bar), verdict])
        if pure:
            rows[-1].append(_shown(key, final.get(f"{key}_pure")))
    heads = ["measure", "drover", "at most", ""] + ["drover-pure"] * pure
    return _table(heads, rows)


def _shown(key: str, value: float | None) -> str:
    return "not measured" if value is None else f"{value * SCALE.get(key, 1.0):.4g}"


def _cells(figures: Row, kind: str) -> list[str]:
    found = {cell for cells in figures.values() for cell in cells if cell.partition("/")[0] == kind}
    return sorted(found, key=lambda cell: int(cell.partition("/")[2] or 0))


def _table(heads: list[str], rows: Sequence[list[str]]) -> str:
    lines = [heads, ["---"] * len(heads), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def put(page: str, tables: str) -> str:
    """Return the page with the tables between its marks."""
    before, begin, rest = page.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not begin or not end:
        raise ValueError(f"the page lacks {BEGIN if not begin else END}")
    return f"{before}{BEGIN}\n\n{tables}\n\n{END}{after}"


def write() -> None:
    """Write the tables of the committed record into the page."""
    record = json.loads(RECORD.read_text())
    PAGE.write_text(put(PAGE.read_text(), markdown(record)))


if __name__ == "__main__":
    write()
