#!/usr/bin/env bash
# Runs the benchmarks in build/bench, all or those named (with or without the suffix _bench).
set -euo pipefail
cd "$(dirname "$(readlink -f "$0")")/.."
[ $# -gt 0 ] || mapfile -t all < <(cd build/bench && find . -maxdepth 1 -type f -executable -printf '%f\n' | sort)
for name in "${@:-${all[@]}}"; do
  program=build/bench/$name
  [ -x "$program" ] || program=build/bench/${name}_bench
  echo "== $(basename "$program")"
  "$program"
done
