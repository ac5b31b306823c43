#!/usr/bin/env python3
"""check_dashboard.py BIN_DIR: the dashboards beside a laminad that is started for it, and promtool."""
import contextlib
import copy
import json
import pathlib
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request

import yaml

from dashboard_rules import BREAKS, concrete, expressions, families_of, violations

CHART = pathlib.Path(__file__).resolve().parents[2] / "charts/lamina"
PATIENCE_SECONDS = 60


def free_port():
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return s.getsockname()[1]


def fetch(address, path):
    with urllib.request.urlopen(f"http://{address}{path}", timeout=10) as answer:
        return answer.read().decode()


@contextlib.contextmanager
def laminad(program, config, address):
    """A laminad on this config file, once it answers claims; ended and waited for at the end."""
    process = subprocess.Popen([program, "--config", config], stderr=subprocess.PIPE, text=True)
    try:
        deadline = time.monotonic() + PATIENCE_SECONDS
        while True:
            try:
                fetch(address, "/readyz")
                break
            except OSError:
                if process.poll() is not None or time.monotonic() > deadline:
                    process.kill()
                    raise SystemExit(f"laminad is not ready: {process.communicate()[1]}")
                time.sleep(0.05)
        yield process
    finally:
        process.terminate()
        process.communicate()


def scrape(bin_dir):
    with tempfile.TemporaryDirectory(prefix="lamina-chart-") as directory:
        address = f"127.0.0.1:{free_port()}"
        config = f"{directory}/config.toml"
        pathlib.Path(config).write_text(
            f'[paths]\nrun_dir = "{directory}/run"\nstate_dir = "{directory}/state"\n'
            f'[memory]\ncapacity = "64GiB"\n[laminad]\nrest_address = "{address}"\n')
        with laminad(f"{bin_dir}/laminad", config, address):
            return fetch(address, "/metrics")


def promql_errors(queries):
    """promtool parses the expressions of recording rules."""
    rules = [{"record": f"panel:q{i}", "expr": concrete(expr)} for i, (_, expr) in enumerate(queries)]
    with tempfile.NamedTemporaryFile("w", suffix=".yaml") as file:
        yaml.safe_dump({"groups": [{"name": "panels", "rules": rules}]}, file)
        file.flush()
        done = subprocess.run(["promtool", "check", "rules", file.name], capture_output=True, text=True, check=False)
    return "" if done.returncode == 0 else done.stdout + done.stderr


def main():
    families = families_of(scrape(sys.argv[1]))
    failures = []
    dashboards = sorted((CHART / "dashboards").glob("*.json"))
    queries = []
    for path in dashboards:
        dashboard = json.loads(path.read_text())
        failures += [f"{path.name}: {v}" for v in violations(dashboard, families)]
        for change, word in BREAKS:
            broken = copy.deepcopy(dashboard)
            change(broken)
            if not any(word in v for v in violations(broken, families)):
                failures.append(f"the rules overlook what should be called {word!r}")
        queries += expressions(dashboard)
    if not queries:
        failures.append("no dashboard asks anything")
    if errors := promql_errors(queries):
        failures.append(f"promtool: {errors}")
    if not promql_errors([("broken", "sum(rate(lamina_sandboxes[5m])")]):
        failures.append("promtool takes an expression that does not parse")
    for sentence in failures:
        print(f"dashboards: {sentence}", file=sys.stderr)
    if failures:
        return 1
    print(f"dashboards: {len(dashboards)} with {len(queries)} expressions parse and ask for families that laminad has "
          f"({len(families)} exposed); {len(BREAKS)} broken ones are noticed")
    return 0


if __name__ == "__main__":
    sys.exit(main())
