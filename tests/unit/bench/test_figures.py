"""The benchmark's statistics: medians, ratios, the last line."""

from __future__ import annotations

import json

import pytest

from bench import figures

LINE_KEYS = {
    "rps",
    "cpu_per_request_us",
    "cpu_per_chunk_us",
    "rps_vs_nginx",
    "cpu_per_request_vs_nginx",
    "cpu_per_request_vs_go",
    "cpu_per_request_vs_vllm_router",
    "cpu_per_chunk_vs_go",
    "cpu_per_chunk_vs_nginx",
    "ttfb_added_p99_ms_at_1000",
    "bytes_per_stream",
    "bytes_per_stream_at",
    "failed_streams",
    "rss_at_rest_bytes",
    "stall_ms",
    "python",
    "drover_build",
}


def asked(cpu_us, rps=1000.0):
    """Return a row of requests."""
    return {
        "cpu_us": cpu_us,
        "rps": rps,
        "busy": 0.5,
        "p50_ms": 1.0,
        "p99_ms": 2.0,
        "failed": 0,
        "rss_mib": 40,
    }


def streamed(cpu_us=10.0, p99=5.0, failed=0, size=9000.0):
    """Return a row of streams."""
    return {
        "cpu_us": cpu_us,
        "busy": 0.5,
        "ttfb_p99_ms": p99,
        "failed": failed,
        "stream_bytes": size,
        "rest_bytes": 43e6,
    }


def whole_run():
    """Return the rows of a run in which everybody took part."""
    return {
        "drover": {
            "requests/64": [asked(30.0, 900.0), asked(40.0, 800.0), asked(20.0, 1000.0)],
            "streams/1000": [streamed(12.0, 9.0)],
            "held/5000": [streamed(size=9738.4)],
            "stall": [{"stall_ms": 12.34}, {"stall_ms": 8.0}, {"stall_ms": 15.0}],
        },
        "nginx": {"requests/64": [asked(15.0), asked(10.0), asked(20.0)], "streams/1000": [streamed(10.0)]},
        "go": {"requests/64": [asked(100.0)] * 3, "streams/1000": [streamed(16.0)]},
        "vllm-router": {"requests/64": [asked(80.0)] * 3},
        "direct": {"streams/1000": [streamed(4.0, 0.5)]},
    }


def test_a_ratio_is_the_median_of_the_ratios_within_rounds():
    """A slow round slows both, so that each is divided by its neighbour, not by a median of other rounds."""
    line = figures.final(whole_run(), "CPython")

    assert line["cpu_per_request_vs_nginx"] == 2.0  # of 2, 4 and 1


def test_the_last_line_carries_every_promised_key():
    """Scripts read the last line: its keys are the same however much was measured, and it is JSON."""
    for rows in (whole_run(), {}):
        line = figures.final(rows, "CPython")
        assert set(line) == LINE_KEYS
        assert json.loads(json.dumps(line)) == line


def test_the_compiled_proxy_has_figures_of_its_own():
    """The ratios without an ending stay those of the interpreted one, and the line says so."""
    rows = whole_run()
    rows[figures.COMPILED] = {"requests/64": [asked(10.0, 1900.0)] * 3, "streams/1000": [streamed(8.0)]}

    line = figures.final(rows, "CPython")

    assert line["drover_build"] == "interpreted"
    assert (line["rps"], line["rps_compiled"]) == (900, 1900)
    assert (line["cpu_per_request_vs_go"], line["cpu_per_request_vs_go_compiled"]) == (0.3, 0.1)
    assert line["cpu_per_chunk_vs_nginx_compiled"] == 0.8
    assert {key.removesuffix("_compiled") for key in line} == LINE_KEYS


def test_the_last_line_of_a_whole_run():
    """The figures are those of 64 connections, 1,000 streams, and of the most streams for memory."""
    line = figures.final(whole_run(), "CPython")

    assert line["rps"] == 900
    assert line["cpu_per_request_us"] == 30.0
    assert line["cpu_per_request_vs_go"] == 0.3
    assert line["cpu_per_request_vs_vllm_router"] == 0.375
    assert line["cpu_per_chunk_vs_go"] == 0.75
    assert line["cpu_per_chunk_vs_nginx"] == 1.2
    assert line["ttfb_added_p99_ms_at_1000"] == 8.5
    assert (line["bytes_per_stream"], line["bytes_per_stream_at"]) == (9738, 5000)
    assert line["stall_ms"] == 12.3


@pytest.mark.parametrize("gone", ["nginx", "go", "vllm-router", "direct"])
def test_a_peer_that_could_not_be_had_leaves_null(gone):
    """No ratio is ever made up."""
    rows = whole_run()
    del rows[gone]

    line = figures.final(rows, "CPython")

    name = {"direct": "ttfb_added", "vllm-router": "vllm_router"}.get(gone, f"vs_{gone}")
    about = [key for key in line if name in key]
    assert about
    assert all(line[key] is None for key in about)


def test_a_round_in_which_one_failed_is_left_out_of_the_ratio():
    """The other rounds still pair up with their own."""
    rows = whole_run()
    rows["nginx"]["requests/64"] = [asked(15.0), None, asked(20.0)]

    assert figures.final(rows, "CPython")["cpu_per_request_vs_nginx"] == 1.5


def test_a_failed_measurement_of_streams_is_no_clean_run():
    """Failures are counted over all counts of streams; a run that broke down says null, not nought."""
    rows = whole_run()
    rows["drover"]["streams/1000"] = [streamed(failed=2), streamed(failed=1)]
    assert figures.final(rows, "CPython")["failed_streams"] == 3

    rows["drover"]["streams/1000"] = [streamed(), None]
    assert figures.final(rows, "CPython")["failed_streams"] is None


def test_memory_is_taken_where_all_streams_were_open_at_once():
    """Of two measurements of as many streams, the slow one counts: there all were open."""
    rows = whole_run()
    rows["drover"]["streams/5000"] = [streamed(size=1.0)]

    assert figures.final(rows, "CPython")["bytes_per_stream"] == 9738


def test_bars_that_are_missed_are_said_and_so_are_those_not_measured():
    """A bar counts as met only where a figure says so."""
    line = figures.final(whole_run(), "CPython") | {"cpu_per_request_vs_nginx": 2.01, "stall_ms": None}

    assert figures.missed(line) == [
        "bar missed: cpu_per_request_vs_nginx is 2.01, at most 2",
        "bar not measured: stall_ms",
    ]


def test_the_tables_name_all_and_say_who_is_missing():
    """A reader sees each contestant in each table, and why one isn't there."""
    shown = figures.tables(whole_run(), {"smg": "no such package\nand more"})

    assert "30.0 [20.0-40.0]" in shown
    assert shown.index("64 connection(s)") < shown.index("1000 streams") < shown.index("5000 slow streams")
    assert "smg: could not be had here: no such package" in shown
    assert "and more" not in shown


def test_the_record_keeps_the_spread():
    """The file has median, least and greatest of each figure, and how many rounds there were."""
    kept = figures.record({"nginx": {"requests/64": [asked(15.0), None, asked(11.0)]}})["nginx"][
        "requests/64"
    ]

    assert kept["cpu_us"] == [13.0, 11.0, 15.0]
    assert kept["rounds"] == 2
