#!/usr/bin/env python3
"""clang-tidy over all that is built into Lamina's programs, with clang's check of who holds which mutex.

A file is looked at again only when its text, what it includes or the checks changed: what is known to be clean is
remembered in the user's cache. Wants build/ configured and its programs built (their generated headers)."""
import concurrent.futures
import hashlib
import json
import os
import pathlib
import shlex
import subprocess
import sys

ROOT = pathlib.Path(__file__).resolve().parent.parent
CACHE = pathlib.Path(os.environ.get("XDG_CACHE_HOME") or pathlib.Path.home() / ".cache") / "lamina" / "tidy"
# The annotations of base/mutex.h; .clang-tidy makes what they find an error.
EXTRA = ["--extra-arg=-Wthread-safety"]


def run(command, **options):
    return subprocess.run(command, capture_output=True, check=False, **options)


def preprocessed(entry):
    words = shlex.split(entry["command"])
    out = words.index("-o")
    compiler = next(i for i, w in enumerate(words) if pathlib.Path(w).name in ("c++", "g++", "clang++"))
    words = words[compiler:out] + words[out + 2 :]
    done = run(words + ["-E", "-P"], cwd=entry["directory"])
    if done.returncode != 0:
        sys.exit(f"{entry['file']} does not compile:\n{done.stderr.decode()}")
    return done.stdout


def main():
    if run(["clang-tidy", "--version"]).returncode != 0:
        sys.exit("clang-tidy is not installed: ./dev setup")
    CACHE.mkdir(parents=True, exist_ok=True)
    checks = run(["clang-tidy", "--version"]).stdout + " ".join(EXTRA).encode() + (ROOT / ".clang-tidy").read_bytes()
    tracked = run(["git", "ls-files", "*.cc"], cwd=ROOT, text=True).stdout.split()
    ours = {str(ROOT / f) for f in tracked if not f.startswith("tests/")}
    entries = [e for e in json.loads((ROOT / "build/compile_commands.json").read_text()) if e["file"] in ours]
    entries = list({e["file"]: e for e in entries}.values())

    def look(entry):
        source = pathlib.Path(entry["file"])
        key = hashlib.sha256(checks + source.read_bytes() + preprocessed(entry)).hexdigest()
        if (CACHE / key).exists():
            return ""
        done = run(["clang-tidy", "-p", str(ROOT / "build"), "--quiet", "--warnings-as-errors=*", *EXTRA, str(source)], text=True)
        if done.returncode == 0:
            (CACHE / key).touch()
            return ""
        return done.stdout or done.stderr

    with concurrent.futures.ThreadPoolExecutor(os.cpu_count()) as pool:
        failed = [text for text in pool.map(look, entries) if text]
    for text in failed:
        print(text)
    print(f"clang-tidy: {len(entries)} files, {len(failed)} with findings")
    return 1 if failed or not entries else 0


if __name__ == "__main__":
    sys.exit(main())
