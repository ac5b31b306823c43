#!/usr/bin/env bash
# Runs the benchmarks in build/bench: all, or the one named (with or without the suffix _bench) with what
# follows as its arguments. All of them run even if one is over a budget; the exit code then says so.
set -euo pipefail
cd "$(dirname "$(readlink -f "$0")")/.."
if [ $# -gt 0 ]; then
  program=build/bench/$1
  [ -x "$program" ] || program=build/bench/${1}_bench
  if [ ! -x "$program" ]; then
    echo "no benchmark is called $1; there are: $(cd build/bench && echo ./*_bench | sed 's|\./||g; s/_bench//g')" >&2
    exit 2
  fi
  shift
  exec "$program" "$@"
fi
code=0
for program in build/bench/*_bench; do
  echo "== $(basename "$program")"
  "$program" || code=$?
done
exit $code
