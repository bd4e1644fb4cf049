#!/usr/bin/env bash
# Resolves both lock files anew from the two pyproject.toml. Hashes are written, addresses of an index never.
set -euo pipefail
cd "$(dirname "$0")/.."
tools=$(mktemp -d)
trap 'rm -rf "$tools"' EXIT
python3 -m venv "$tools/venv"
"$tools/venv/bin/pip" --quiet install uv
compile() {
  "$tools/venv/bin/uv" pip compile --quiet --universal --generate-hashes --no-emit-index-url \
    --no-annotate --custom-compile-command "make lock" "$@"
}
compile --python-version 3.10 proxy/pyproject.toml -o proxy/requirements.lock
"$tools/venv/bin/python" - >"$tools/all.in" <<'PY'
import tomllib
from pathlib import Path

root, proxy = (tomllib.loads(Path(p).read_text()) for p in ("pyproject.toml", "proxy/pyproject.toml"))
wanted = root["project"]["dependencies"] + root["dependency-groups"]["dev"] + proxy["project"]["dependencies"]
print("\n".join(line for line in wanted if line != "drover-proxy"))
PY
compile --python-version 3.11 "$tools/all.in" -o requirements.lock
