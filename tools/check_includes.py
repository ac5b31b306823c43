#!/usr/bin/env python3
"""Fails when a folder includes another that it may not (docs/ARCHITECTURE.md has the table)."""
import pathlib
import re
import subprocess
import sys

# folder -> folders of ours that it may include, besides itself and the contracts in proto/.
ALLOWED = {
    "base": set(),
    "sizing": {"base"},
    "layers": {"base"},
    "persist": {"base"},
    "metrics": {"base"},
    "vmm": {"base", "sizing", "guest/protocol"},
    "guest": {"base"},
    "cri": {"base", "sizing", "layers", "persist", "vmm", "guest/protocol"},
    "node": {"base", "sizing", "layers", "persist", "metrics", "vmm"},
    "cli": {"base", "sizing", "layers", "persist", "metrics", "vmm", "cri", "node", "guest/protocol"},
}
# Libraries that only some folders may use, by the beginning of the include.
HEAVY = {
    "grpcpp/": {"node", "cli", "tests", "proto"},
    "cpprest/": {"node"},
    "spdlog/": {"node"},
    "prometheus/": {"node", "metrics", "tests"},
    "CLI/": {"cli"},
}
INCLUDE = re.compile(r'^\s*#\s*include\s+["<]([^">]+)[">]')


def main() -> int:
    files = subprocess.run(["git", "ls-files", "*.cc", "*.h"], capture_output=True, text=True, check=True).stdout.split()
    errors = []
    for name in files:
        top = name.split("/", 1)[0]
        for number, line in enumerate(pathlib.Path(name).read_text(encoding="utf-8").splitlines(), 1):
            match = INCLUDE.match(line)
            if not match:
                continue
            target = match.group(1)
            for prefix, users in HEAVY.items():
                if target.startswith(prefix) and top not in users:
                    errors.append(f"{name}:{number}: only {', '.join(sorted(users))} may include {prefix}")
            folder = target.split("/", 1)[0]
            if top not in ALLOWED or folder not in ALLOWED or folder == top:
                continue
            if not any(target.startswith(allowed + "/") for allowed in ALLOWED[top]):
                errors.append(f"{name}:{number}: {top}/ may not include {target}")
    rest = [f for f in files if f.endswith(".cc") and not f.startswith("tests/") and "cpprest/" in pathlib.Path(f).read_text(encoding="utf-8")]
    if len(rest) > 1:
        errors.append(f"cpprestsdk lives in one file only, found it in {', '.join(rest)}")
    print("\n".join(errors) or f"includes: {len(files)} files keep the layering")
    return 1 if errors else 0


if __name__ == "__main__":
    sys.exit(main())
