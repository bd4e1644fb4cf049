#!/usr/bin/env bash
# Says in one line what a target can't do here, and what to run instead. Usage: need-root.sh TARGET
set -euo pipefail
if [ "$(uname -s)" != Linux ]; then
  echo "make $1: needs Linux (network namespaces, systemd-nspawn); this is $(uname -s). Here: make test-unit" >&2
  exit 3
fi
if [ "$(id -u)" != 0 ]; then
  echo "make $1: needs root to boot lab hosts; you are $(id -un). Run: sudo make $1, or without root: make test-unit" >&2
  exit 3
fi
