#!/usr/bin/env bash
# check_static.sh PROGRAM MAX_KIB: the program needs no shared library and no interpreter, has none of the libraries that
# only laminad may have, and is at most MAX_KIB on disk (stripped).
set -euo pipefail
program=$1 limit=$2
[ -x "$program" ] || { echo "$program is not built" >&2 && exit 1; }
if readelf -ld "$program" | grep -E 'NEEDED|INTERP'; then
  echo "$program is not static" >&2
  exit 1
fi
heavy='(grpc|spdlog|prometheus|web::http|boost::asio)::|google::protobuf::(Descriptor|Reflection)::'
found=$(nm -C "$program" | grep -E " [TtWw] $heavy" | head -n 3 || true)
if [ -n "$found" ]; then
  echo "$found"
  echo "$program holds a library that only laminad may link" >&2
  exit 1
fi
stripped=$(mktemp)
trap 'rm -f "$stripped"' EXIT
strip -o "$stripped" "$program"
size=$(($(stat -c %s "$stripped") / 1024))
echo "$(basename "$program"): static, $size KiB (at most $limit)"
[ "$size" -le "$limit" ]
