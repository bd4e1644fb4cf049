#!/usr/bin/env bash
# Runs the coverage-guided fuzzers: fuzz.sh SECONDS [TARGET...]. They have an environment of their own, since
# nothing else needs atheris: build/fuzz-venv, over the packages of .venv. New inputs that reach new code are kept in
# build/fuzz/corpus; MERGE=1 adds to tests/fuzz/corpus what of them reaches code that it doesn't reach yet.
set -euo pipefail
cd "$(dirname "$0")/.."
seconds=$1
shift
targets=("$@")
[ ${#targets[@]} -gt 0 ] || targets=(requests answers life bodies watches door encoded)

venv=build/fuzz-venv
want="$(sha256sum <tests/fuzz/requirements.txt) $PWD"
if [ "$(cat $venv/.made-from 2>/dev/null)" != "$want" ]; then
  rm -rf $venv
  .venv/bin/python -m venv $venv
  PIP_DISABLE_PIP_VERSION_CHECK=1 $venv/bin/python -m pip --quiet install --require-hashes --only-binary :all: \
    -r tests/fuzz/requirements.txt
  for folder in .venv/lib/python*/site-packages; do
    echo "$PWD/$folder" >"$(echo $venv/lib/python*/site-packages)/over-venv.pth"
  done
  echo "$want" >$venv/.made-from
fi

export PYTHONPATH=$PWD:$PWD/proxy/src
for target in "${targets[@]}"; do
  kept=tests/fuzz/corpus/$target
  grown=build/fuzz/corpus/$target
  mkdir -p "$kept" "$grown"
  echo "== $target: $seconds s"
  options=(-artifact_prefix=build/fuzz/ -max_len=2048 -timeout=10 -rss_limit_mb=2048)
  [ -f "tests/fuzz/$target.dict" ] && options+=("-dict=tests/fuzz/$target.dict")
  log=build/fuzz/$target.log
  if ! $venv/bin/python -m tests.fuzz "$target" "${options[@]}" -max_total_time="$seconds" -print_final_stats=1 \
      "$grown" "$kept" >"$log" 2>&1; then
    tail -n 60 "$log" >&2
    echo "error: $target failed; see $log" >&2
    echo "  next: PYTHONPATH=.:proxy/src $venv/bin/python -m tests.fuzz $target build/fuzz/crash-..." >&2
    exit 1
  fi
  grep -E '^#[0-9]+\s+(INITED|DONE)|^stat::(number|average|new)' "$log"
  if [ -n "${MERGE:-}" ]; then
    .venv/bin/python -m tests.fuzz.minimise "$target"
  fi
done
