#!/usr/bin/env python3
"""Sizes and places: long sources and headers, sources without a header, tests that no build names, long lines of the pages."""
import pathlib
import re
import subprocess
import sys

HEADER_LINES, SOURCE_LINES, PAGE_COLUMNS = 180, 650, 120
# Folders in which a source without a header of its own is a sign that a class has outgrown its room.
HEADED = ("cri/", "layers/", "node/", "vmm/", "guest/agent/")
# The allocators are two of one interface, layers/pool_allocator.h.
WITHOUT_HEADER = {"layers/classic_allocator.cc", "layers/dense_allocator.cc"}


def tracked(*patterns):
    return subprocess.run(["git", "ls-files", *patterns], capture_output=True, text=True, check=True).stdout.split()


def lines(name):
    return pathlib.Path(name).read_text(encoding="utf-8").splitlines()


def named(build):
    """Matches the sources that the CMakeLists.txt names; a variable in a name stands for any word."""
    words = set(re.findall(r"[\w./${}-]+\.cc", pathlib.Path(build).read_text(encoding="utf-8")))
    return re.compile("|".join(re.sub(r"\\\$\\{\w+\\}", r"\\w+", re.escape(w)) for w in words) or "$^")


def main() -> int:
    errors = []
    for name in tracked("*.cc", "*.h"):
        limit = HEADER_LINES if name.endswith(".h") and not name.startswith("tests/") else SOURCE_LINES
        if len(lines(name)) > limit:
            errors.append(f"{name}: {len(lines(name))} lines, at most {limit}")
    for name in tracked("*.cc"):
        headed = name.startswith(HEADED) and not name.endswith("main.cc")
        if headed and name not in WITHOUT_HEADER and not pathlib.Path(name[:-2] + "h").exists():
            errors.append(f"{name}: no header of its own")
    builds = {pathlib.Path(f).parent: named(f) for f in tracked("*CMakeLists.txt")}
    for name in map(pathlib.Path, tracked("*.cc")):
        parent = next(p for p in name.parents if p in builds)
        if name.parts[0] != "cmake" and not builds[parent].fullmatch(name.relative_to(parent).as_posix()):
            errors.append(f"{name}: {parent}/CMakeLists.txt does not name it")
    for name in tracked("*.md"):
        if name.startswith("docs/") or "/" not in name:
            for number, line in enumerate(lines(name), 1):
                if len(line) > PAGE_COLUMNS and not line.startswith("|"):
                    errors.append(f"{name}:{number}: {len(line)} columns, at most {PAGE_COLUMNS}")
    print("\n".join(errors) or "form: sizes, headers and pages are as they should be")
    return 1 if errors else 0


if __name__ == "__main__":
    sys.exit(main())
