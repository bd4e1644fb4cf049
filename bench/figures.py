"""From rows of measurements to medians, ratios, tables and the last line, without touching the machine."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Mapping, Sequence
from itertools import zip_longest

Row = Mapping[str, float]
Rows = Mapping[str, Mapping[str, Sequence[Row | None]]]
"""By contestant, then by cell ("requests/64", "stall"), one row a round; None where it failed."""

CONNECTIONS, STREAMS = 64, 1000
"""What the ratios of the last line are taken at."""
PURE = "drover-pure"
"""The interpreted proxy, beside `drover`, which is the compiled one where that can be made."""
GO_POOLED = "go-pooled"
"""Go's ReverseProxy with a pool for its buffers; the bars are of the one without, `go`."""
STREAMED = ("streams", "ndjson", "held")
"""Kinds of cells that are streams: server-sent events, Ollama's own lines, and slow ones."""
BARS = {
    "cpu_per_request_vs_nginx": 2.0,
    "cpu_per_request_vs_go": 0.40,
    "cpu_per_request_vs_vllm_router": 0.60,
    "cpu_per_chunk_vs_go": 0.80,
    "cpu_per_chunk_vs_nginx": 1.25,
    "bytes_per_stream": 24 * 1024,
    "rss_at_rest_bytes": 45_000_000,
    "stall_ms": 20.0,
    "failed_streams": 0,
    "streams_not_open": 0,
}
"""At most."""


def spread(rows: Sequence[Row | None], key: str) -> tuple[float, float, float] | None:
    """Return median, least and greatest of one figure; None where nothing was measured."""
    found = [row[key] for row in rows if row is not None and key in row]
    return (statistics.median(found), min(found), max(found)) if found else None


def median(rows: Rows, name: str, cell: str, key: str) -> float | None:
    """Return the median of one figure."""
    found = spread(rows.get(name, {}).get(cell, ()), key)
    return None if found is None else found[0]


def ratio(rows: Rows, cell: str, key: str, ours: str, theirs: str) -> float | None:
    """Return the median of the rounds' ratios: what slows the machine down for a while slows both."""
    pairs = zip(rows.get(ours, {}).get(cell, ()), rows.get(theirs, {}).get(cell, ()), strict=False)
    found = [a[key] / b[key] for a, b in pairs if a is not None and b is not None and b[key]]
    return round(statistics.median(found), 3) if found else None


def compared(rows: Rows) -> dict[str, dict[str, list[Row | None]]]:
    """Return the rows with what only others tell: the upstream without a proxy, and quieter rounds."""
    out: dict[str, dict[str, list[Row | None]]] = {}
    for name, cells in rows.items():
        for cell, found in cells.items():
            base = rows.get("direct", {}).get(cell, ()) if name != "direct" else ()
            alone = [row["alone_ms"] for row in found if row is not None and "alone_ms" in row]
            out.setdefault(name, {})[cell] = [
                None if row is None else {**row, **_added(row, below), **_stalled(row, alone)}
                for row, below in zip_longest(found, base[: len(found)])
            ]
    return out


def _added(row: Row, base: Row | None) -> Row:
    """Return what it adds to the time to first byte that there is without it, in the same round."""
    over = {f"ttfb_added_{p}_ms": f"ttfb_{p}_ms" for p in ("p50", "p99")}
    return {new: row[key] - base[key] for new, key in over.items() if base and key in row and key in base}


def _stalled(row: Row, alone: Sequence[float]) -> Row:
    """Return the longest gap beside large bodies, less that of the quietest round without."""
    return {"stall_ms": max(0.0, row["with_bodies_ms"] - min(alone))} if "with_bodies_ms" in row else {}


Line = dict[str, float | int | str | None]


def final(rows: Rows, python: str, build: str = "", why: str = "") -> Line:
    """Return what the last line says: medians and ratios, null where a peer could not be had.

    They are those of `drover`. Where the interpreted proxy took part beside it, that one's end in `_pure`.

    Args:
        rows: From `compared`.
        python: What runs the proxy, in words.
        build: Which build `drover` is.
        why: Why it isn't the compiled one.
    """
    line = _figures(rows, "drover")
    line |= {"python": python, "drover_build": build or None, "drover_build_why": why or None}
    if PURE in rows:
        line |= {f"{key}_pure": value for key, value in _figures(rows, PURE).items()}
    return line


def fallback(why: str) -> str:
    """Say that what is measured as drover isn't what hosts get by default."""
    return f"drover is the interpreted proxy here, not the compiled one: {why}"


def _figures(rows: Rows, name: str) -> Line:
    """Return the figures of one build of the proxy."""
    asked, chunked, native = f"requests/{CONNECTIONS}", f"streams/{STREAMS}", f"ndjson/{STREAMS}"
    ours = rows.get(name, {})
    streams = [cell for cell in ours if cell.partition("/")[0] in STREAMED]
    # Of the most streams, and of those the ones that were slow enough to be all open at once.
    most = max(
        (cell for cell in streams if not cell.startswith("ndjson")),
        key=lambda cell: (_number(cell), cell.startswith("held")),
        default=chunked,
    )
    failures = [row["failed"] if row is not None else None for cell in streams for row in ours[cell]]
    failed = None if not failures or None in failures else int(sum(f for f in failures if f is not None))
    held = median(rows, name, most, "open_peak") if most.startswith("held") else None
    at_rest = median(rows, name, "rest", "rest_bytes") or median(rows, name, most, "rest_bytes")
    return {
        "rps": _rounded(median(rows, name, asked, "rps"), 0),
        "cpu_per_request_us": _rounded(median(rows, name, asked, "cpu_us"), 1),
        "cpu_per_chunk_us": _rounded(median(rows, name, chunked, "cpu_us"), 2),
        "cpu_per_chunk_ndjson_us": _rounded(median(rows, name, native, "cpu_us"), 2),
        "rps_vs_nginx": ratio(rows, asked, "rps", name, "nginx"),
        "cpu_per_request_vs_nginx": ratio(rows, asked, "cpu_us", name, "nginx"),
        "cpu_per_request_vs_go": ratio(rows, asked, "cpu_us", name, "go"),
        "cpu_per_request_vs_go_pooled": ratio(rows, asked, "cpu_us", name, GO_POOLED),
        "cpu_per_request_vs_vllm_router": ratio(rows, asked, "cpu_us", name, "vllm-router"),
        "cpu_per_chunk_vs_go": ratio(rows, chunked, "cpu_us", name, "go"),
        "cpu_per_chunk_vs_nginx": ratio(rows, chunked, "cpu_us", name, "nginx"),
        "cpu_per_chunk_ndjson_vs_go": ratio(rows, native, "cpu_us", name, "go"),
        "cpu_per_chunk_ndjson_vs_nginx": ratio(rows, native, "cpu_us", name, "nginx"),
        "ttfb_added_p99_ms_at_1000": _rounded(median(rows, name, chunked, "ttfb_added_p99_ms"), 2),
        "bytes_per_stream": _rounded(median(rows, name, most, "stream_bytes"), 0),
        "bytes_per_stream_at": _number(most)[0] if streams else None,
        "streams_not_open": None if held is None else round(_number(most)[0] - held),
        "failed_streams": failed,
        "rss_at_rest_bytes": _rounded(at_rest, 0),
        "stall_ms": _rounded(median(rows, name, "stall", "stall_ms"), 1),
    }


def _rounded(value: float | None, digits: int) -> float | int | None:
    return None if value is None else (round(value, digits) if digits else round(value))


def missed(line: Mapping[str, float | int | str | None]) -> list[str]:
    """Say which bars are missed, which could not be measured, and when they are not what hosts get."""
    why = line.get("drover_build_why")
    said = [fallback(str(why))] if why else []
    for key, bar in BARS.items():
        value = line.get(key)
        if value is None:
            said.append(f"bar not measured: {key}")
        elif isinstance(value, int | float) and value > bar:
            said.append(f"bar missed: {key} is {value:g}, at most {bar:g}")
    return said


def told(row: Row | None) -> str:
    """Say in a few words what a measurement found, while the run goes on."""
    if row is None:
        return "failed"
    units = {"cpu_us": "us", "with_bodies_ms": "ms the longest gap", "idle_ms_per_second": "ms/s"}
    words = next((f"{row[key]:.1f} {unit}" for key, unit in units.items() if key in row), "measured")
    return words + (f", {row['failed']:.0f} failed" if row.get("failed") else "")


Column = tuple[str, Callable[[Sequence[Row | None]], str]]


def _cell(key: str, digits: int = 1, *, ranged: bool = False, scale: float = 1.0) -> Callable[..., str]:
    def show(rows: Sequence[Row | None]) -> str:
        found = spread(rows, key)
        if found is None:
            return "-"
        middle, low, high = (f"{value * scale:.{digits}f}" for value in found)
        return f"{middle} [{low}-{high}]" if ranged and low != high else middle

    return show


REQUEST_COLUMNS: tuple[Column, ...] = (
    ("requests/s", _cell("rps", 0)),
    ("CPU µs/request", _cell("cpu_us", 1, ranged=True)),
    ("in the kernel %", _cell("kernel", 0, scale=100)),
    ("core busy %", _cell("busy", 0, scale=100)),
    ("p50 ms", _cell("p50_ms", 2)),
    ("p99 ms", _cell("p99_ms", 2)),
    ("RSS MiB", _cell("rss_mib", 0)),
    ("failed", _cell("failed", 0)),
)
STREAM_COLUMNS: tuple[Column, ...] = (
    ("CPU µs/chunk", _cell("cpu_us", 2, ranged=True)),
    ("in the kernel %", _cell("kernel", 0, scale=100)),
    ("core busy %", _cell("busy", 0, scale=100)),
    ("chunks/s", _cell("chunks_per_second", 0)),
    ("TTFB p50 ms", _cell("ttfb_p50_ms", 2)),
    ("p99 ms", _cell("ttfb_p99_ms", 2)),
    ("added p50 ms", _cell("ttfb_added_p50_ms", 2)),
    ("p99 ms", _cell("ttfb_added_p99_ms", 2)),
    ("gap p50 ms", _cell("gap_p50_ms", 1)),
    ("p99 ms", _cell("gap_p99_ms", 1)),
    ("open at once", _cell("open_peak", 0)),
    ("KiB/stream", _cell("stream_bytes", 1, scale=1 / 1024)),
    ("at rest MB", _cell("rest_bytes", 1, scale=1e-6)),
    ("seconds", _cell("seconds", 1)),
    ("failed", _cell("failed", 0)),
)
STALL_COLUMNS: tuple[Column, ...] = (
    ("longest gap alone ms", _cell("alone_ms", 1)),
    ("with bodies of 5 MB ms", _cell("with_bodies_ms", 1)),
    ("added ms", _cell("stall_ms", 1, ranged=True)),
    ("bodies", _cell("bodies", 0)),
    ("failed", _cell("failed", 0)),
)
REST_COLUMNS: tuple[Column, ...] = (
    ("RSS MB", _cell("rest_bytes", 1, scale=1e-6)),
    ("CPU ms/s", _cell("idle_ms_per_second", 1)),
)
KINDS = {
    "requests": ("{} connection(s), a chat of about 250 bytes, a JSON answer of about 300", REQUEST_COLUMNS),
    "streams": ("{} streams of 100 chunks, 20 ms apart", STREAM_COLUMNS),
    "ndjson": ("{} streams of 100 lines, 20 ms apart (Ollama's own dialect)", STREAM_COLUMNS),
    "held": ("{} slow streams, all open at once", STREAM_COLUMNS),
    "rest": ("at rest", REST_COLUMNS),
    "stall": ("50 streams while bodies of 5 MB are posted", STALL_COLUMNS),
}


def tables(rows: Rows, missing: Mapping[str, str]) -> str:
    """Return everything as text, one table a cell."""
    cells: list[str] = []
    for found in rows.values():
        cells += [cell for cell in found if cell not in cells]
    cells.sort(key=lambda cell: (list(KINDS).index(cell.split("/")[0]), *_number(cell)))
    parts = []
    for cell in cells:
        kind, _, count = cell.partition("/")
        title, columns = KINDS[kind]
        title = title.format(count)
        lines = [["", *(name for name, _ in columns)]]
        lines += [
            [name, *(show(found[cell]) for _, show in columns)]
            for name, found in rows.items()
            if cell in found
        ]
        parts.append(f"{title}\n{_aligned(lines)}")
    parts += [f"{name}: could not be had here: {reason.splitlines()[0]}" for name, reason in missing.items()]
    return "\n\n".join(parts)


def _number(cell: str) -> list[int]:
    count = cell.partition("/")[2]
    return [int(count)] if count else []


def _aligned(lines: list[list[str]]) -> str:
    widths = [max(len(line[i]) for line in lines) for i in range(len(lines[0]))]
    return "\n".join(
        "  ".join(
            text.ljust(width) if i == 0 else text.rjust(width)
            for i, (text, width) in enumerate(zip(line, widths, strict=True))
        )
        for line in lines
    )


def record(rows: Rows) -> dict[str, dict[str, dict[str, object]]]:
    """Return medians with least and greatest, for the file."""
    out: dict[str, dict[str, dict[str, object]]] = {}
    for name, cells in rows.items():
        for cell, found in cells.items():
            keys = sorted({key for row in found if row is not None for key in row})
            figures: dict[str, object] = {}
            for key in keys:
                three = spread(found, key)
                assert three is not None
                figures[key] = [round(value, 3) for value in three]
            figures["rounds"] = sum(row is not None for row in found)
            out.setdefault(name, {})[cell] = figures
    return out
