#!/usr/bin/env python3
"""Fails when the folders include other than the table of docs/ARCHITECTURE.md says, in either direction."""
import collections
import pathlib
import re
import subprocess
import sys

# Libraries that only some folders may use, by the beginning of the include.
HEAVY = {
    "grpcpp/": {"node", "cli", "tests", "proto"},
    "cpprest/": {"node"},
    "spdlog/": {"node"},
    "prometheus/": {"node", "metrics", "tests"},
    "CLI/": {"cli"},
}
INCLUDE = re.compile(r'^\s*#\s*include\s+["<]([^">]+)[">]')
ROW = re.compile(r"^\| `([\w/]+)/` \|[^|\n]*\| ([^|\n]+) \|$", re.M)


def table():
    """folder -> folders that it includes, besides itself and the contracts in proto/."""
    text = pathlib.Path("docs/ARCHITECTURE.md").read_text(encoding="utf-8")
    rows = {folder: cell.strip() for folder, cell in ROW.findall(text)}
    return {f: set() if cell == "nothing" else set(cell.split(", ")) for f, cell in rows.items() if cell != "everything"}


def folder_of(path, folders):
    """The longest of the folders that holds the path, or None."""
    return max((f for f in folders if path.startswith(f + "/")), key=len, default=None)


def main() -> int:
    files = subprocess.run(["git", "ls-files", "*.cc", "*.h"], capture_output=True, text=True, check=True).stdout.split()
    said = table()
    if not said:
        print("docs/ARCHITECTURE.md has no table of folders")
        return 1
    used = collections.defaultdict(set)
    errors = []
    for name in files:
        top = name.split("/", 1)[0]
        folder = folder_of(name, said)
        if folder is None and top not in ("tests", "cmake"):
            errors.append(f"{name}: its folder is not in the table of docs/ARCHITECTURE.md")
        for number, line in enumerate(pathlib.Path(name).read_text(encoding="utf-8").splitlines(), 1):
            match = INCLUDE.match(line)
            if not match:
                continue
            target = match.group(1)
            for prefix, users in HEAVY.items():
                if target.startswith(prefix) and top not in users:
                    errors.append(f"{name}:{number}: only {', '.join(sorted(users))} may include {prefix}")
            other = folder_of(target, said)
            if folder is None or other is None or other == folder:
                continue
            used[folder].add(other)
            if other not in said[folder]:
                errors.append(f"{name}:{number}: {folder}/ may not include {target}")
    for folder, others in said.items():
        for other in sorted(others - used[folder]):
            errors.append(f"docs/ARCHITECTURE.md: {folder}/ is said to include {other}, and does not")
    rest = [f for f in files if f.endswith(".cc") and not f.startswith("tests/") and "cpprest/" in pathlib.Path(f).read_text(encoding="utf-8")]
    if len(rest) > 1:
        errors.append(f"cpprestsdk lives in one file only, found it in {', '.join(rest)}")
    print("\n".join(errors) or f"includes: {len(files)} files keep the layering")
    return 1 if errors else 0


if __name__ == "__main__":
    sys.exit(main())
