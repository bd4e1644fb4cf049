#!/usr/bin/env bash
# Makes .venv from the lock, with both distributions in it. Does nothing when it is already that.
set -euo pipefail
cd "$(dirname "$0")/.."
# What the environment is made from: the lock, and of pyproject.toml all that stands before the tools' settings.
want=$({ cat requirements.lock proxy/pyproject.toml scripts/venv.sh; sed '/^\[tool\.ruff/,$d' pyproject.toml; } \
  | sha256sum | cut -d' ' -f1)
if [ -x .venv/bin/drover-proxy ] && [ "$(cat .venv/.made-from 2>/dev/null)" = "$want" ] \
    && [ "$(cat .venv/.made-at 2>/dev/null)" = "$PWD" ]; then
  exit 0
fi

python=""
for candidate in "${PYTHON:-python3}" python3.13 python3.12 python3.11; do
  if command -v "$candidate" >/dev/null \
      && "$candidate" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then
    python=$candidate
    break
  fi
done
if [ -z "$python" ]; then
  echo "error: drover's controller needs Python 3.11 or later; found $(python3 --version 2>&1)" >&2
  echo "  next: apt-get install python3 (Debian 12 or later, Ubuntu 24.04 or later), or set PYTHON=/path/to/python3" >&2
  exit 1
fi
if ! "$python" -c 'import ensurepip, venv' 2>/dev/null; then
  if [ "$(id -u)" = 0 ] && command -v apt-get >/dev/null; then
    apt-get update -qq
    DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends python3-venv
  else
    echo "error: $python has no venv module" >&2
    echo "  next: apt-get install python3-venv" >&2
    exit 1
  fi
fi
rm -rf .venv
"$python" -m venv .venv
pip() { PIP_DISABLE_PIP_VERSION_CHECK=1 .venv/bin/python -m pip --quiet "$@"; }
pip install --require-hashes -r requirements.lock
pip install --no-deps --no-build-isolation -e . -e proxy
echo "$PWD" >.venv/.made-at
echo "$want" >.venv/.made-from
