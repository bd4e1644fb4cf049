#!/usr/bin/env bash
# Installs, by name and only what is missing, the system packages that the tests build with. Without root it says
# nothing: a test that lacks a tool says so itself.
set -euo pipefail
cd "$(dirname "$0")/.."
if [ "$(uname -s)" = Linux ] && [ "$(id -u)" = 0 ] && command -v apt-get >/dev/null; then
  .venv/bin/python -c 'from lab.hosts import tools; tools.ensure_packages(print)'
fi
