#!/usr/bin/env bash
# check_static.sh PROGRAM MAX_KIB: the program needs no shared library and is at most MAX_KIB on disk (stripped).
set -euo pipefail
program=$1 limit=$2
if readelf -d "$program" 2>/dev/null | grep -q NEEDED; then
  echo "$program needs shared libraries:" && readelf -d "$program" | grep NEEDED
  exit 1
fi
stripped=$(mktemp)
trap 'rm -f "$stripped"' EXIT
strip -o "$stripped" "$program"
size=$(($(stat -c %s "$stripped") / 1024))
echo "$(basename "$program"): static, $size KiB (at most $limit)"
[ "$size" -le "$limit" ]
