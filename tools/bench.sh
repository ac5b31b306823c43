#!/usr/bin/env bash
# Runs the benchmarks in build/bench: all; or those whose names begin with $1 ("layers" is layers_bench and
# layers_vm_bench); or the one named whole ("layers_bench") or with further arguments, which it gets. All of them run
# even if one is over a budget; the exit code then says so.
set -euo pipefail
shopt -s nullglob
cd "$(dirname "$(readlink -f "$0")")/.."
name=${1:-}
programs=(build/bench/"$name"*_bench)
if [ $# -gt 1 ] || [ "$name" != "${name%_bench}" ]; then
  programs=()
  [ ! -x "build/bench/${name%_bench}_bench" ] || programs=("build/bench/${name%_bench}_bench")
fi
[ $# -eq 0 ] || shift
if [ ${#programs[@]} -eq 0 ]; then
  echo "no benchmark is called $name; there are: $(cd build/bench && echo ./*_bench | sed 's|\./||g; s/_bench//g')" >&2
  exit 2
fi
code=0
for program in "${programs[@]}"; do
  echo "== $(basename "$program")"
  "$program" "$@" || code=$?
done
exit $code
