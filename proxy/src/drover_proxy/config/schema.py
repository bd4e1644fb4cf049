"""Every key of the configuration: type, default, unit and meaning. The reference page is made from this."""

from __future__ import annotations

from typing import Any

import yaml

from drover_proxy.config.model import Address
from drover_proxy.config.reader import (
    REQUIRED,
    Key,
    ReadValue,
    Report,
    by_name,
    choice,
    flag,
    items,
    number,
    read_section,
    section,
    size,
    text,
)
from drover_proxy.config.values import address, gpu_name, not_built, proxy_network

SECONDS = number("a number of seconds", 0)
POSITIVE_SECONDS = number("a number of seconds", 0.001)
SIGNATURE_SECONDS = 60.0
"""A minute, as clocks kept by NTP differ by far less, and a signature is no good for longer."""


def gpus(node: yaml.Node, path: str, report: Report) -> Any:
    """Read `nvml`, or a list of GPUs with their memory."""
    if isinstance(node, yaml.SequenceNode):
        return items(_of(GPU), "a list of GPUs")(node, path, report)
    return choice("nvml")(node, path, report)


def _of(keys: dict[str, Key]) -> ReadValue:
    return lambda node, path, report: read_section(node, path, report, keys)


GPU = {
    "uuid": Key("text", text(), REQUIRED, "UUID of the GPU, as `nvidia-smi -L` prints it."),
    "total_bytes": Key("bytes", size(1), REQUIRED, "Its memory.", "bytes"),
}

INSTANCE = {
    "name": Key(
        "name",
        text("a name of letters, digits, - _ .", r"[A-Za-z0-9][A-Za-z0-9_.-]{0,63}"),
        REQUIRED,
        "What logs, metrics and `X-Drover-Instance` call it.",
    ),
    "url": Key(
        "URL",
        text("a URL like http://127.0.0.1:11434", r"http://(\[[0-9a-fA-F:]+\]|[A-Za-z0-9_.-]+):\d{1,5}/?"),
        REQUIRED,
        "Where this `ollama serve` listens.",
    ),
    "gpus": Key(
        "list of GPU UUIDs or indexes",
        items(gpu_name, "a list of GPUs"),
        REQUIRED,
        "The GPUs it is bound to (its `CUDA_VISIBLE_DEVICES`); `[]` for the CPU. Instances may share one.",
    ),
    "slots": Key(
        "number",
        number("a whole number", 1, 1024, whole=True),
        1,
        "Its `OLLAMA_NUM_PARALLEL`: requests that one model answers at the same time.",
        "requests",
    ),
    "context": Key(
        "number",
        number("a whole number", 4, 100_000_000, whole=True),
        None,
        "Its `OLLAMA_CONTEXT_LENGTH`, where set: the context of a model that names none itself.",
        "tokens",
        "Ollama's choice by GPU memory",
    ),
    "kv_type": Key(
        "one of f16, q8_0, q4_0", choice("f16", "q8_0", "q4_0"), "f16", "Its `OLLAMA_KV_CACHE_TYPE`."
    ),
    "flash_attention": Key("flag", flag, default=True, meaning="Its `OLLAMA_FLASH_ATTENTION`."),
}

MODEL = {
    "context": Key(
        "number",
        number("a whole number", 4, 100_000_000, whole=True),
        None,
        "Context the model is always loaded and asked with, whatever clients send. Best equal to the "
        "`num_ctx` of its Modelfile: where it isn't, /v1 is served under a hidden variant of the model, and "
        "its answers name that.",
        "tokens",
        "the model's `num_ctx`, or the instance's",
    ),
    "slots": Key(
        "number",
        number("a whole number", 1, 1024, whole=True),
        None,
        "At most this many requests to it at the same time; never more than the instance's `slots`.",
        "requests",
        "the instance's",
    ),
    "pin": Key("flag", flag, default=False, meaning="Once loaded, never evicted for another model."),
    "aliases": Key(
        "list of names",
        items(text("a model name"), "a list of model names"),
        (),
        "Other names by which clients may ask for it. The name is replaced in the request.",
        shown_default="`[]`",
    ),
    "priority": Key(
        "number",
        number("a whole number", -100, 100, whole=True),
        0,
        "Requests of a higher priority are served first, and their models are evicted last.",
    ),
}

QUEUE = {
    "max_waiting": Key(
        "number",
        number("a whole number", 0, 1_000_000, whole=True),
        512,
        "Requests that wait at most; one more is answered 503 with Retry-After.",
        "requests",
    ),
    "max_wait_seconds": Key(
        "seconds", POSITIVE_SECONDS, 600.0, "A request that waited this long gets 503.", "s"
    ),
    "no_instance_seconds": Key(
        "seconds", POSITIVE_SECONDS, 60.0, "A request waits this long while no instance is up.", "s"
    ),
    "starve_seconds": Key(
        "seconds",
        POSITIVE_SECONDS,
        30.0,
        "When a load has waited this long for a busy model's memory, that model gets no new requests.",
        "s",
    ),
}

LOADS = {
    "reserve_bytes": Key(
        "bytes",
        size(),
        1024 << 20,
        "Free memory left on each GPU by a load; `LLAMA_ARG_FIT_TARGET` of the instances must not be more.",
        "bytes",
        "`1GiB`",
    ),
    "timeout_seconds": Key("seconds", POSITIVE_SECONDS, 600.0, "A load that takes longer has failed.", "s"),
    "memory_timeout_seconds": Key(
        "seconds",
        POSITIVE_SECONDS,
        30.0,
        "How long NVML may take to show the memory of an unloaded model as free.",
        "s",
    ),
    "unload_timeout_seconds": Key(
        "seconds", POSITIVE_SECONDS, 30.0, "An unload that takes longer has failed.", "s"
    ),
    "cooldown_seconds": Key(
        "seconds", SECONDS, 60.0, "A model that could not be loaded is refused at once for this long.", "s"
    ),
    "retries": Key(
        "number", number("a whole number", 0, 10, whole=True), 1, "How often a failed load is tried again."
    ),
}

LIMITS = {
    "header_bytes": Key("bytes", size(1024), 64 << 10, "Head of a request; more is 431.", "bytes", "`64KiB`"),
    "header_count": Key("number", number("a whole number", 8, 10_000, whole=True), 128, "Fields of a head."),
    "body_bytes": Key(
        "bytes",
        size(1024),
        64 << 20,
        "Body of a request that names a model; more is 413. Uploads of blobs are not bounded by it.",
        "bytes",
        "`64MiB`",
    ),
    "head_seconds": Key(
        "seconds", POSITIVE_SECONDS, 30.0, "Time a client has for its TLS handshake, and for each head.", "s"
    ),
    "body_seconds": Key("seconds", POSITIVE_SECONDS, 60.0, "Longest pause; slow bodies need 500 B/s.", "s"),
    "idle_seconds": Key("seconds", POSITIVE_SECONDS, 120.0, "A connection without a request is closed.", "s"),
    "connect_seconds": Key("seconds", POSITIVE_SECONDS, 5.0, "Time to connect to an instance.", "s"),
    "first_byte_seconds": Key(
        "seconds", POSITIVE_SECONDS, None, "Time to an answer's first byte.", "s", "no limit"
    ),
    "stall_seconds": Key(
        "seconds",
        POSITIVE_SECONDS,
        300.0,
        "Longest pause inside an answer; a stuck runner is silent for ever, and closing gets it killed.",
        "s",
    ),
    "max_connections": Key(
        "number", number("a whole number", 1, 1_000_000, whole=True), 20_000, "Client connections at once."
    ),
    "max_connections_per_client": Key(
        "number",
        number("a whole number", 1, 1_000_000, whole=True),
        None,
        "Client connections at once from one address, of IPv6 from one /64.",
        shown_default="no limit",
    ),
}

FORWARDING = {
    "x_forwarded": Key(
        "one of none, append, replace",
        choice("none", "append", "replace"),
        "none",
        "`X-Forwarded-For`, `-Proto` and `-Host` for the instances. `append`: what a trusted proxy said, and "
        "that proxy's address behind it; `replace`: the client's address only; `none`: nothing. What others "
        "than trusted proxies say of themselves never goes through.",
    ),
    "via": Key(
        "name",
        text("a name of letters, digits, - _ . :", r"[A-Za-z0-9_.:-]{1,64}"),
        None,
        "Added as `Via: 1.1 NAME` to requests and answers.",
        shown_default="none",
    ),
    "trusted_proxies": Key(
        "list of addresses and networks",
        items(proxy_network, "a list of addresses and networks"),
        (),
        "Peers whose `X-Forwarded-For` is believed: the client of their requests, in logs and limits, is the "
        "last address in it that isn't one of theirs. `unix` stands for all that comes over a Unix socket.",
        shown_default="`[]`",
    ),
}

LOG = {
    "level": Key(
        "one of debug, info, warning, error",
        choice("debug", "info", "warning", "error"),
        "info",
        "What is written to stderr, as JSON lines.",
    ),
    "access": Key(
        "flag",
        flag,
        default=False,
        meaning="One line for every request, of those kept out (401) for the first few of a minute and "
        "address: never a prompt, never a key.",
    ),
    "sample": Key(
        "number",
        number("a share", 0, 1),
        1.0,
        "Share of good requests (whole, below 400) that the access log tells of; of others it always does.",
    ),
}

TLS = {
    "cert": Key("path", text("a path"), REQUIRED, "Certificate chain, PEM.", restart=False),
    "key": Key("path", text("a path"), REQUIRED, "Its private key, PEM.", restart=False),
    "client_ca": Key(
        "path",
        text("a path"),
        None,
        "Clients must show a certificate signed by one of the authorities in this file, PEM.",
        shown_default="none",
        restart=False,
    ),
}

AUTH = {
    "keys_file": Key(
        "path",
        text("a path"),
        REQUIRED,
        "Who is let in. A change of the file counts within seconds. Where the service may not read it, its "
        "credential of the same file name is read instead, which changes at a restart only.",
    ),
    "signature_seconds": Key(
        "seconds",
        POSITIVE_SECONDS,
        SIGNATURE_SECONDS,
        "How far the clock of a client that signs (the stock `ollama` command) may be from the proxy's.",
        "s",
    ),
}

ROOT: dict[str, Key] = {
    "listen": Key(
        "address or list of them",
        items(address, "an address or a list of addresses", single=True),
        (Address("0.0.0.0", 8080),),  # noqa: S104 - the door of the host; the design's own default
        "Where clients come in. Sockets handed over by systemd replace it.",
        shown_default="`0.0.0.0:8080`",
        restart=True,
    ),
    "admin_listen": Key(
        "address or list of them",
        items(address, "an address or a list of addresses", single=True),
        (Address("127.0.0.1", 8081),),
        "`/metrics`, `/healthz`, `/readyz`, `/drover/v1/*`. No key is asked for here.",
        shown_default="`127.0.0.1:8081`",
        restart=True,
    ),
    "tls": section(
        TLS,
        "TLS at `listen`, but for its Unix sockets. A change of one of its files counts within seconds, for "
        "new connections, and closes the others where it takes an authority out of `client_ca`; only to "
        "begin or to end with TLS takes a restart.",
        default=(),
        restart=True,
    ),
    "auth": section(AUTH, "Who may come in. Absent: everybody, and the log says so at start.", default=()),
    "instances": Key(
        "list of mappings",
        items(_of(INSTANCE), "a list of instances"),
        REQUIRED,
        "The Ollama instances of this host. They share one models directory.",
        section=INSTANCE,
        restart=True,
    ),
    "gpus": Key(
        "`nvml` or list of mappings",
        gpus,
        "nvml",
        "Where the GPUs' memory is read. A list is for hosts without NVML, and is taken as it is.",
        section=GPU,
        restart=True,
    ),
    "models": Key(
        "mapping by model name",
        by_name(_of(MODEL)),
        {},
        "Profiles. A model that isn't named here is served with the defaults.",
        shown_default="`{}`",
        section=MODEL,
    ),
    "queue": section(QUEUE, "The queue before the instances."),
    "loads": section(LOADS, "How models are loaded."),
    "limits": section(LIMITS, "Limits on sizes, times and numbers of connections."),
    "forwarding": section(FORWARDING, "What is told, and believed, of a request's way here."),
    "log": section(LOG, "Logging."),
    "drain_seconds": Key(
        "seconds", SECONDS, 30.0, "After SIGTERM, answers in flight have this long to finish.", "s"
    ),
    "prefetch": Key(
        "mapping",
        not_built("prefetching"),
        None,
        "Not in this version: only `{}` is accepted.",
        shown_default="`{}`",
    ),
    "idle": Key(
        "mapping",
        not_built("unloading of idle models"),
        None,
        "Not in this version: only `{}` is accepted.",
        shown_default="`{}`",
    ),
    "peers": Key(
        "list", not_built("peers"), None, "Not in this version: only `[]` is accepted.", shown_default="`[]`"
    ),
    "redis_url": Key("text", not_built("Redis"), None, "Not in this version.", shown_default="none"),
}
