#!/usr/bin/env python3
"""The chart's values beside what they stand for: config/lamina.toml (which a unit test compares with the
program), CMake's version, the README's table. Needs no helm."""
import copy
import json
import pathlib
import re
import sys
import tomllib

import jsonschema
import yaml

ROOT = pathlib.Path(__file__).resolve().parents[2]
CHART = ROOT / "charts/lamina"

# What a user may type, the value that the schema's message must name.
REFUSED = {
    "config.sizing.overhead_cpu": "half",
    "config.sizing.overhead_memory": "96MB",
    "config.sizing.max_cpu": 2.5,
    "config.sizing.allowed_annotations": ["lamina.io/everything"],
    "config.volumes.sockets": ["relative.sock"],
    "config.sizing.overhaed_cpu": "1",
    "config.hypervisor.accel": "xen",
    "config.hypervisor.vmm_overhead_memory": -1,
    "config.layers.policy": "first-fit",
    "config.paths.run_dir": "run",
    "config.laminad.rest_address": "127.0.0.1:9477",
    "rest.address": "127.0.0.1",
    "rest.port": 0,
    "rest.tokenSecret": "My Token",
    "config.laminad.rest_token_file": "/token",
    "runtimeClass.name": "La mina",
    "podMonitor.interval": "soon",
    "maxUnavailable": "0%",
}
ACCEPTED = {
    "config.sizing.allowed_annotations": ["lamina.io/numa-nodes", "lamina.io/default-cpu"],
    "config.volumes.sockets": ["/run/app.sock", "/run/app/"],
    "config.sizing.overhead_cpu": "250m",
    "config.sizing.overhead_memory": 100663296,
    "config.hypervisor.vmm_overhead_memory": "1GiB",
    "config.layers.sharing": "node",
    "rest.address": "10.1.2.3",
    "rest.tokenSecret": "laminad-token",
    "rest.tlsSecret": "laminad.tls",
    "maxUnavailable": "10%",
}

FREE = {"resources", "dashboard.labels", "podMonitor.tlsConfig"}  # mappings that a user fills: one value each

# The config's options that are made from other values.
MADE = {"laminad.rest_address", "laminad.rest_tls_certificate", "laminad.rest_tls_key", "laminad.rest_token_file"}

failures = []


def expect(holds, sentence):
    if not holds:
        failures.append(sentence)


def leaves(tree, prefix=""):
    """{"a.b": value}"""
    out = {}
    for key, value in tree.items():
        if isinstance(value, dict) and value and prefix + key not in FREE:
            out.update(leaves(value, f"{prefix}{key}."))
        else:
            out[prefix + key] = value
    return out


def with_value(values, path, value):
    changed = copy.deepcopy(values)
    *parents, last = path.split(".")
    at = changed
    for key in parents:
        at = at.setdefault(key, {})
    at[last] = value
    return changed


def main():
    values = yaml.safe_load((CHART / "values.yaml").read_text())
    schema = json.loads((CHART / "values.schema.json").read_text())
    config = tomllib.loads((ROOT / "config/lamina.toml").read_text())

    validator = jsonschema.Draft7Validator(schema)
    validator.check_schema(schema)
    for error in validator.iter_errors(values):
        failures.append(f"values.yaml: {error.json_path}: {error.message}")
    for path, value in ACCEPTED.items():
        errors = [e.message for e in validator.iter_errors(with_value(values, path, value))]
        expect(not errors, f"the schema refuses {path} = {value!r}: {errors}")
    for path, value in REFUSED.items():
        errors = [f"{e.json_path}: {e.message}" for e in validator.iter_errors(with_value(values, path, value))]
        expect(any(path.split(".")[-1] in e for e in errors), f"the schema takes {path} = {value!r}: {errors}")

    # What `rest` makes.
    known = {f"{s}.{k}" for s, options in config.items() for k in options} - MADE
    sections = schema["properties"]["config"]["properties"]
    described = {f"{s}.{k}" for s, body in sections.items() for k in body["properties"]}
    expect(described == known, f"schema and config/lamina.toml differ in {sorted(described ^ known)}")
    for option, value in leaves(values["config"]).items():
        section, key = option.split(".")
        default = config.get(section, {}).get(key)
        expect(value == default, f"values.yaml: config.{option} is {value!r}, config/lamina.toml has {default!r}")
    port = int(config["laminad"]["rest_address"].rsplit(":", 1)[1])
    expect(values["rest"]["port"] == port, f"rest.port is not the config's {port}")

    limit = re.fullmatch(r"([0-9]+)Gi", values["resources"]["limits"]["memory"])
    conversion = re.fullmatch(r"([0-9]+)GiB", config["layers"]["convert_memory"])
    expect(int(limit[1]) > int(conversion[1]), "resources.limits.memory leaves no room beside one conversion at its limit")
    expect(values["networkPolicy"]["enabled"] is True, "REST is open to every pod by default")

    version = re.search(r"project\(lamina VERSION ([0-9.]+)", (ROOT / "CMakeLists.txt").read_text())[1]
    chart = yaml.safe_load((CHART / "Chart.yaml").read_text())
    expect(chart["appVersion"] == version, f"Chart.yaml: appVersion {chart['appVersion']}, CMake {version}")

    table = (CHART / "README.md").read_text().split("\n## Values\n")[1]
    documented = set(re.findall(r"^\| `([A-Za-z0-9_.]+)`", table, re.M))
    there = set(leaves(values))
    expect(documented >= there, f"README.md lacks {sorted(there - documented)}")
    expect(documented <= there, f"README.md has {sorted(documented - there)}, which are no values")

    for sentence in failures:
        print(f"values: {sentence}", file=sys.stderr)
    if failures:
        return 1
    print(f"values: {len(there)} documented and valid, {len(REFUSED)} bad ones refused by name, "
          f"{len(known)} config options as in config/lamina.toml")
    return 0


if __name__ == "__main__":
    sys.exit(main())
