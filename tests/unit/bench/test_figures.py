"""The benchmark's statistics: medians, ratios, the last line."""

from __future__ import annotations

import json

import pytest

from bench import figures

LINE_KEYS = {
    "rps",
    "cpu_per_request_us",
    "cpu_per_chunk_us",
    "cpu_per_chunk_ndjson_us",
    "rps_vs_nginx",
    "cpu_per_request_vs_nginx",
    "cpu_per_request_vs_go",
    "cpu_per_request_vs_go_pooled",
    "cpu_per_request_vs_vllm_router",
    "cpu_per_chunk_vs_go",
    "cpu_per_chunk_vs_nginx",
    "cpu_per_chunk_ndjson_vs_go",
    "cpu_per_chunk_ndjson_vs_nginx",
    "ttfb_added_p99_ms_at_1000",
    "bytes_per_stream",
    "bytes_per_stream_at",
    "streams_not_open",
    "failed_streams",
    "rss_at_rest_bytes",
    "stall_ms",
    "python",
    "drover_build",
    "drover_build_why",
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


def streamed(cpu_us=10.0, p99=5.0, failed=0, size=9000.0, opened=1000):
    """Return a row of streams."""
    return {
        "cpu_us": cpu_us,
        "busy": 0.5,
        "ttfb_p99_ms": p99,
        "failed": failed,
        "open_peak": opened,
        "stream_bytes": size,
        "rest_bytes": 43e6,
    }


def stalled(alone, beside):
    """Return a row of streams without and with large bodies beside them."""
    return {"alone_ms": alone, "with_bodies_ms": beside, "failed": 0, "bodies": 12}


def whole_run():
    """Return the rows of a run in which everybody took part."""
    return {
        "drover": {
            "requests/64": [asked(30.0, 900.0), asked(40.0, 800.0), asked(20.0, 1000.0)],
            "streams/1000": [streamed(12.0, 9.0)],
            "ndjson/1000": [streamed(9.0)],
            "held/5000": [streamed(size=9738.4, opened=5000)],
            "stall": [stalled(22.0, 33.34), stalled(41.0, 29.0), stalled(21.0, 36.0)],
        },
        "nginx": {"requests/64": [asked(15.0), asked(10.0), asked(20.0)], "streams/1000": [streamed(10.0)]},
        "go": {
            "requests/64": [asked(100.0)] * 3,
            "streams/1000": [streamed(16.0)],
            "ndjson/1000": [streamed(18.0)],
        },
        "go-pooled": {"requests/64": [asked(75.0)] * 3},
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


def last(rows, **build):
    """Return the last line, as the program makes it."""
    return figures.final(figures.compared(rows), "CPython", **build)


def test_the_interpreted_proxy_has_figures_of_its_own():
    """The ratios without an ending are those of the build that hosts get, and the line says which it is."""
    rows = whole_run()
    rows[figures.PURE] = {"requests/64": [asked(50.0, 450.0)] * 3, "streams/1000": [streamed(15.0)]}

    line = last(rows, build="compiled")

    assert (line["drover_build"], line["drover_build_why"]) == ("compiled", None)
    assert (line["rps"], line["rps_pure"]) == (900, 450)
    assert (line["cpu_per_request_vs_go"], line["cpu_per_request_vs_go_pure"]) == (0.3, 0.5)
    assert line["cpu_per_chunk_vs_nginx_pure"] == 1.5
    assert {key.removesuffix("_pure") for key in line} == LINE_KEYS
    assert not any("interpreted" in said for said in figures.missed(line))


def test_bars_of_a_proxy_that_could_not_be_compiled_say_so():
    """Nobody takes the interpreted proxy's figures for those of what hosts get."""
    line = last(whole_run(), build="interpreted", why="the controller has no C compiler")

    assert line["drover_build"] == "interpreted"
    assert figures.missed(line)[0] == (
        "drover is the interpreted proxy here, not the compiled one: the controller has no C compiler"
    )


def test_what_is_added_to_the_first_byte_is_found_in_each_round():
    """What the upstream took in the same round is taken away; where that failed, nothing is made up."""
    rows = whole_run()
    rows["drover"]["streams/1000"] = [streamed(p99=9.0), streamed(p99=30.0), streamed(p99=8.0), None]
    rows["direct"]["streams/1000"] = [streamed(p99=1.0), streamed(p99=20.0), None, streamed(p99=1.0)]

    found = figures.compared(rows)["drover"]["streams/1000"]

    assert [row and row.get("ttfb_added_p99_ms") for row in found] == [8.0, 10.0, None, None]
    assert last(rows)["ttfb_added_p99_ms_at_1000"] == 9.0
    assert "9.00" in figures.tables(figures.compared(rows), {})


def test_the_last_line_of_a_whole_run():
    """The figures are those of 64 connections, 1,000 streams, and of the most streams for memory."""
    line = last(whole_run())

    assert line["rps"] == 900
    assert line["cpu_per_request_us"] == 30.0
    assert line["cpu_per_request_vs_go"] == 0.3
    assert line["cpu_per_request_vs_go_pooled"] == 0.4
    assert line["cpu_per_request_vs_vllm_router"] == 0.375
    assert line["cpu_per_chunk_vs_go"] == 0.75
    assert line["cpu_per_chunk_vs_nginx"] == 1.2
    assert (line["cpu_per_chunk_ndjson_us"], line["cpu_per_chunk_ndjson_vs_go"]) == (9.0, 0.5)
    assert line["ttfb_added_p99_ms_at_1000"] == 8.5
    assert (line["bytes_per_stream"], line["bytes_per_stream_at"]) == (9738, 5000)
    assert line["stall_ms"] == 12.3  # of 33.34, 29 and 36, less the 21 of the quietest round alone


@pytest.mark.parametrize("gone", ["nginx", "go", "go-pooled", "vllm-router", "direct"])
def test_a_peer_that_could_not_be_had_leaves_null(gone):
    """No ratio is ever made up."""
    rows = whole_run()
    del rows[gone]

    line = last(rows)

    name = {"direct": "ttfb_added", "vllm-router": "vllm_router"}.get(gone, f"vs_{gone}").replace("-", "_")
    about = [key for key in line if key.endswith(name) or key.startswith(name)]
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

    rows = whole_run()
    rows["drover"]["ndjson/1000"] = [streamed(failed=4)]
    assert figures.final(rows, "CPython")["failed_streams"] == 4


def test_memory_is_taken_where_all_streams_were_open_at_once():
    """Of two measurements of as many streams, the slow one counts: there all were open."""
    rows = whole_run()
    rows["drover"]["streams/5000"] = [streamed(size=1.0, opened=700)]
    rows["drover"]["ndjson/6000"] = [streamed(size=2.0)]

    line = figures.final(rows, "CPython")

    assert line["bytes_per_stream"] == 9738
    assert line["streams_not_open"] == 0
    assert not any("streams_not_open" in said for said in figures.missed(line))


def test_memory_of_streams_that_were_not_all_open_meets_no_bar():
    """Who falls behind holds fewer at once than were asked for; that is said beside the figure."""
    rows = whole_run()
    rows["drover"]["held/5000"] = [streamed(size=9738.4, opened=4734)]

    line = figures.final(rows, "CPython")

    assert line["streams_not_open"] == 266
    assert "bar missed: streams_not_open is 266, at most 0" in figures.missed(line)

    del rows["drover"]["held/5000"]
    assert figures.final(rows, "CPython")["streams_not_open"] is None, (
        "the bar is of those that can all be open"
    )


def test_memory_at_rest_is_that_of_who_did_nothing_for_a_while():
    """Where nobody watched it idle, that before its streams counts."""
    rows = whole_run()
    assert figures.final(rows, "CPython")["rss_at_rest_bytes"] == 43_000_000

    rows["drover"]["rest"] = [{"rest_bytes": 44_100_000, "idle_ms_per_second": 2}]
    assert figures.final(rows, "CPython")["rss_at_rest_bytes"] == 44_100_000


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
