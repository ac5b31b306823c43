#!/usr/bin/env bash
# Builds every fuzzer with clang and runs each for $1 seconds; corpora grow in .cache/fuzz.
set -euo pipefail
cd "$(dirname "$(readlink -f "$0")")/.."
[ -f build/fuzz/build.ninja ] || cmake --preset fuzz >/dev/null
ninja -C build/fuzz fuzzers
for program in build/fuzz/fuzz/*_fuzz; do
  name=$(basename "$program")
  mkdir -p ".cache/fuzz/$name"
  seeds=()
  [ -d "tests/data/fuzz/$name" ] && seeds=("tests/data/fuzz/$name")
  echo "== $name"
  "$program" -max_total_time="$1" -timeout=10 -rss_limit_mb=2048 -print_final_stats=0 -verbosity=0 ".cache/fuzz/$name" "${seeds[@]}"
done
