"""From a file to a `ProxyConfig`, with the checks that look at several keys together."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import yaml

from drover_proxy.config.model import (
    AuthConfig,
    ForwardingConfig,
    GpuConfig,
    InstanceConfig,
    LimitsConfig,
    LoadsConfig,
    LogConfig,
    ModelConfig,
    ProxyConfig,
    QueueConfig,
    TlsConfig,
)
from drover_proxy.config.reader import ConfigError, Problem, Report, read_section
from drover_proxy.config.schema import ROOT, SIGNATURE_SECONDS
from drover_proxy.dialect.names import NameProblem, canonical


def load(path: Path) -> ProxyConfig:
    """Read a configuration file; ConfigError with every problem when it can't be used."""
    try:
        content = path.read_text(encoding="utf-8")
    except OSError as error:
        raise ConfigError(str(path), [Problem("", f"can't be read: {error.strerror}")]) from error
    except UnicodeDecodeError as error:
        raise ConfigError(str(path), [Problem("", f"is not UTF-8 text: {error.reason}")]) from error
    config = parse(content, str(path))
    problems = _files(config)
    if problems:
        raise ConfigError(str(path), problems)
    return config


def parse(content: str, file: str = "configuration") -> ProxyConfig:
    """Read a configuration from text, without looking at the files that it names."""
    try:
        node = yaml.compose(content, Loader=yaml.SafeLoader)
    except yaml.MarkedYAMLError as error:
        line = error.problem_mark.line + 1 if error.problem_mark else 0
        raise ConfigError(file, [Problem("", f"is not YAML: {error.problem}", line)]) from error
    except yaml.YAMLError as error:
        raise ConfigError(file, [Problem("", f"is not YAML: {error}")]) from error
    if node is None:
        raise ConfigError(file, [Problem("", "is empty; at least `instances` must be there")])
    report = Report()
    raw = read_section(node, "", report, ROOT)
    if report.problems:
        raise ConfigError(file, report.problems)
    _check(raw, report)
    if report.problems:
        raise ConfigError(file, report.problems)
    return _build(raw)


def _check(raw: dict[str, Any], report: Report) -> None:
    if not raw["listen"]:
        report.add("listen", "expected at least one address")
    if not raw["instances"]:
        report.add("instances", "expected at least one instance")
    if not raw["admin_listen"]:
        report.add("admin_listen", "expected at least one address")
    for address in set(raw["listen"]) & set(raw["admin_listen"]):
        report.add("admin_listen", f"{address} is in `listen` too: the admin address asks for no key")
    _unique([item["name"] for item in raw["instances"]], "instances", "name", report)
    _unique([item["url"].rstrip("/") for item in raw["instances"]], "instances", "url", report)
    for index, item in enumerate(raw["instances"]):
        _unique(item["gpus"], f"instances[{index}].gpus", None, report)
        if not 0 < int(item["url"].rstrip("/").rpartition(":")[2]) < 65536:
            report.add(f"instances[{index}].url", "expected a port of 1 to 65535")
    if isinstance(raw["gpus"], list):
        uuids = [gpu["uuid"] for gpu in raw["gpus"]]
        _unique(uuids, "gpus", "uuid", report)
        known = {*uuids, *(str(index) for index in range(len(uuids)))}
        for index, item in enumerate(raw["instances"]):
            for gpu in item["gpus"]:
                if gpu not in known:
                    report.add(f"instances[{index}].gpus", f"{gpu} isn't in `gpus`: {', '.join(uuids)}")
    _check_names(raw["models"], report)


def _check_names(models: dict[str, Any], report: Report) -> None:
    owner: dict[str, str] = {}
    for name, profile in models.items():
        for position, alias in enumerate((name, *profile["aliases"])):
            path = f"models.{name}" + (f".aliases[{position - 1}]" if position else "")
            try:
                key = canonical(alias)
            except NameProblem as problem:
                report.add(path, str(problem))
                continue
            if key in owner:
                report.add(path, f"{alias!r} names the same as {owner[key]}")
            else:
                owner[key] = path


def _unique(values: list[str], path: str, key: str | None, report: Report) -> None:
    for index, value in enumerate(values):
        if value in values[:index]:
            where = f"{path}[{index}].{key}" if key else f"{path}[{index}]"
            report.add(where, f"{value!r} is there already, at {path}[{values.index(value)}]")


def _files(config: ProxyConfig) -> list[Problem]:
    """Check that the files named in the configuration are there and can be read."""
    wanted: dict[str, str | None] = {}
    if config.tls:
        wanted |= {
            "tls.cert": config.tls.cert,
            "tls.key": config.tls.key,
            "tls.client_ca": config.tls.client_ca,
        }
    return [
        Problem(
            key, f"{path} can't be read: {'no such file' if not Path(path).exists() else 'permission denied'}"
        )
        for key, path in wanted.items()
        if path and not os.access(path, os.R_OK)
    ]


def _instance(raw: dict[str, Any]) -> InstanceConfig:
    return InstanceConfig(
        name=raw["name"],
        url=raw["url"].rstrip("/"),
        gpus=tuple(raw["gpus"]),
        slots=raw["slots"],
        context=raw["context"],
        kv_type=raw["kv_type"],
        flash_attention=raw["flash_attention"],
    )


def _build(raw: dict[str, Any]) -> ProxyConfig:
    models = {}
    for name, profile in raw["models"].items():
        aliases = tuple(canonical(alias) for alias in profile["aliases"])
        models[canonical(name)] = ModelConfig(name=canonical(name), **{**profile, "aliases": aliases})
    return ProxyConfig(
        listen=tuple(raw["listen"]),
        admin_listen=tuple(raw["admin_listen"]),
        tls=TlsConfig(**raw["tls"]) if raw["tls"] else None,
        auth=AuthConfig(**raw["auth"]) if raw["auth"] else AuthConfig(None, SIGNATURE_SECONDS),
        instances=tuple(_instance(item) for item in raw["instances"]),
        gpus="nvml" if raw["gpus"] == "nvml" else tuple(GpuConfig(**gpu) for gpu in raw["gpus"]),
        models=models,
        queue=QueueConfig(**raw["queue"]),
        loads=LoadsConfig(**raw["loads"]),
        limits=LimitsConfig(**raw["limits"]),
        forwarding=ForwardingConfig(
            **{**raw["forwarding"], "trusted_proxies": tuple(raw["forwarding"]["trusted_proxies"])}
        ),
        log=LogConfig(**raw["log"]),
        drain_seconds=raw["drain_seconds"],
    )
