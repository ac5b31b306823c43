#!/usr/bin/env python3
"""check_rendered.py HELM BIN_DIR: what the chart renders, read by the programs that it is for."""
import ctypes
import json
import os
import pathlib
import re
import subprocess
import sys
import tempfile
import tomllib

import yaml

from check_dashboard import fetch, laminad
from check_values import MADE, REFUSED

ROOT = pathlib.Path(__file__).resolve().parents[2]
CHART = ROOT / "charts/lamina"
HELM, BIN = sys.argv[1:3]
MIB = 1 << 20
CLONE_NEWNET = 0x40000000
FACTORS = {"": 1, "B": 1, "Ki": 1 << 10, "KiB": 1 << 10, "Mi": MIB, "MiB": MIB, "Gi": 1 << 30, "GiB": 1 << 30}

failures = []


def expect(holds, sentence):
    if not holds:
        failures.append(sentence)


def byte_count(text):
    number, unit = re.fullmatch(r"([0-9]+)([A-Za-z]*)", str(text)).groups()
    return int(number) * FACTORS[unit]


def helm(command, *arguments):
    # A helm built from its module has no release's notion of a current Kubernetes.
    version = ["--kube-version", "1.31.0"] if command in ("template", "lint") else []
    return subprocess.run([HELM, command, *version, *arguments], capture_output=True, text=True, check=False)


def render(values=None, *arguments):
    """{(kind, name): manifest} of release rel in namespace lamina-system."""
    with tempfile.NamedTemporaryFile("w", suffix=".yaml") as file:
        yaml.safe_dump(values or {}, file)
        file.flush()
        done = helm("template", "rel", str(CHART), "-n", "lamina-system", "-f", file.name, *arguments)
    if done.returncode != 0:
        raise SystemExit(f"helm template {values}: {done.stderr}")
    documents = [d for d in yaml.safe_load_all(done.stdout) if d]
    out = {(d["kind"], d["metadata"]["name"]): d for d in documents}
    expect(len(out) == len(documents), "two manifests share kind and name")
    return out


def only(manifests, kind):
    found = [m for (k, _), m in manifests.items() if k == kind]
    expect(len(found) == 1, f"{len(found)} manifests of kind {kind}")
    return found[0]


def config_text(manifests):
    return next(m["data"]["config.toml"] for m in manifests.values() if "config.toml" in m.get("data", {}))


def lamina_size(text):
    """The program's own reading of a config: the size of a pod with 250m and 128 MiB."""
    with tempfile.NamedTemporaryFile("w", suffix=".toml") as file:
        file.write(text)
        file.flush()
        done = subprocess.run([f"{BIN}/lamina", "size", "--config", file.name, "--quota", "25000", "--memory", "128MiB",
                               "-o", "json"], capture_output=True, text=True, check=False)
    return json.loads(done.stdout) if done.returncode == 0 else done.stdout + done.stderr


def check_overhead():
    """One value feeds the config, which the program reads, and podFixed, which adds the host's share."""
    cases = [(None, None, None), ("64MiB", "32MiB", "0.5"), ("1GiB", "1536KiB", "250m"), (100000000, 4096, "0.000000001"),
             ("128Mi", 0, "2")]
    for guest, host, cpu in cases:
        values = {} if guest is None else {"config": {"sizing": {"overhead_memory": guest, "overhead_cpu": cpu},
                                                      "hypervisor": {"vmm_overhead_memory": host}}}
        manifests = render(values)
        text = config_text(manifests)
        config = tomllib.loads(text)
        fixed = only(manifests, "RuntimeClass")["overhead"]["podFixed"]
        in_guest = byte_count(config["sizing"]["overhead_memory"])
        expect(byte_count(fixed["memory"]) == in_guest + byte_count(config["hypervisor"]["vmm_overhead_memory"]),
               f"{guest} and {host}: podFixed.memory is {fixed['memory']}")
        expect(fixed["cpu"] == str(config["sizing"]["overhead_cpu"]), f"{cpu}: podFixed.cpu is {fixed['cpu']}")
        size = lamina_size(text)
        if isinstance(size, str):
            failures.append(f"lamina refuses the rendered config: {size}")
            continue
        rounded = -(-(in_guest + 128 * MIB) // (2 * MIB)) * 2
        expect(size["memory_mib"] == rounded, f"{guest}: lamina counts {size['memory_mib']} MiB, not {rounded}")


def check_config():
    """Every option arrives as it was meant, in the file that the program takes."""
    sample = tomllib.loads((ROOT / "config/lamina.toml").read_text())
    sample["hypervisor"]["kernel_args"] = 'quiet "a\\b" <&>'
    sample["memory"]["capacity"] = 68719476736
    values = {section: dict(options) for section, options in sample.items()}
    for made in MADE:
        del values["laminad"][made.split(".")[1]]
    text = config_text(render({"config": values, "rest": {"address": "10.1.2.3", "port": 1234, "tokenSecret": "word",
                                                          "tlsSecret": "pair"}}))
    sample["laminad"].update({"rest_address": "10.1.2.3:1234", "rest_token_file": "/rest/token/token",
                              "rest_tls_certificate": "/rest/tls/tls.crt", "rest_tls_key": "/rest/tls/tls.key"})
    expect(tomllib.loads(text) == sample, "a config with every option set is rendered with other values")
    size = lamina_size(text)
    expect(isinstance(size, dict), f"lamina refuses a config with every option set: {size}")
    expect(isinstance(lamina_size(text.replace("max_cpu", "max_cpus")), str), "lamina takes an unknown option")


def check_refusals():
    for path, value in REFUSED.items():
        *parents, last = path.split(".")
        values = {last: value}
        for key in reversed(parents):
            values = {key: values}
        with tempfile.NamedTemporaryFile("w", suffix=".yaml") as file:
            yaml.safe_dump(values, file)
            file.flush()
            done = helm("template", "rel", str(CHART), "-f", file.name)
        expect(done.returncode != 0 and last in done.stderr, f"helm on {path} = {value!r} says {done.stderr!r}")


def check_daemonset():
    manifests = render({"podMonitor": {"enabled": True, "labels": {"release": "prom"}},
                        "networkPolicy": {"enabled": True, "from": [{"namespaceSelector": {}}]},
                        "nodeSelector": {"lamina": "yes"}, "tolerations": [{"key": "lamina", "operator": "Exists"}]})
    daemon = only(manifests, "DaemonSet")
    template = daemon["spec"]["template"]
    spec, labels = template["spec"], template["metadata"]["labels"]
    selectors = {"DaemonSet": daemon["spec"]["selector"], "PodMonitor": only(manifests, "PodMonitor")["spec"]["selector"],
                 "NetworkPolicy": only(manifests, "NetworkPolicy")["spec"]["podSelector"]}
    for kind, selector in selectors.items():
        expect(selector["matchLabels"].items() <= labels.items(), f"{kind} does not select laminad's pods")
    scheduling = only(manifests, "RuntimeClass")["scheduling"]
    expect(scheduling == {"nodeSelector": spec["nodeSelector"], "tolerations": spec["tolerations"]},
           "RuntimeClass and DaemonSet go to different nodes")

    containers = spec["initContainers"] + spec["containers"]
    expect(spec.get("hostPID") is True, "laminad does not see the host's processes")
    expect(not spec.get("hostNetwork") and not spec.get("hostIPC"), "laminad shares more of the host than its pids")
    volumes = {v["name"]: v for v in spec["volumes"]}
    for container in containers:
        name, security = container["name"], container["securityContext"]
        expect(security["readOnlyRootFilesystem"] and not security["privileged"] and
               not security["allowPrivilegeEscalation"] and security["capabilities"]["drop"] == ["ALL"],
               f"container {name} may do more than it needs")
        for mount in container["volumeMounts"]:
            expect(mount["name"] in volumes, f"container {name} mounts {mount['name']}, which is no volume")
    server = spec["containers"][0]
    ports = {p["name"]: p["containerPort"] for p in server["ports"]}
    config = tomllib.loads(config_text(manifests))
    expect(config["laminad"]["rest_address"] == f"0.0.0.0:{ports['rest']}", "config and container name different ports")
    probes = {k: server[k]["httpGet"] for k in ("startupProbe", "livenessProbe", "readinessProbe")}
    expect([p["path"] for p in probes.values()] == ["/healthz", "/healthz", "/readyz"], "probes ask for other paths")
    endpoint = only(manifests, "PodMonitor")["spec"]["podMetricsEndpoints"][0]
    for port in [p["port"] for p in probes.values()] + [endpoint["port"]]:
        expect(port in ports, f"no port is called {port}")
    # What shims and laminad say to each other are paths: equal on both sides.
    mounts = {m["name"]: m["mountPath"] for m in server["volumeMounts"]}
    for name in ("run", "state", "containerd"):
        expect(volumes[name]["hostPath"]["path"] == mounts[name], f"volume {name} has another path inside")
    cgroup = next(m for m in server["volumeMounts"] if m["name"] == "cgroup")
    expect(mounts["cgroup"] == "/sys/fs/cgroup" and cgroup.get("readOnly"), "laminad sees the node's cgroups, read-only")
    expect({mounts["run"], mounts["state"]} == {config["paths"]["run_dir"], config["paths"]["state_dir"]},
           "the config's folders are not the mounted ones")

    expect(server["resources"]["limits"]["memory"], "laminad's memory is not limited")
    expect({p["scheme"] for p in probes.values()} == {"HTTP"} and endpoint["scheme"] == "http" and
           "authorization" not in endpoint, "plain REST is not probed and scraped as such")

    def checksum(values):
        return only(render(values), "DaemonSet")["spec"]["template"]["metadata"]["annotations"]["checksum/config"]

    plain = checksum({})
    expect(plain != checksum({"config": {"sizing": {"overhead_cpu": "0.5"}}}), "a changed config rolls no pod")
    expect(plain == checksum({"dashboard": {"enabled": False}}), "the config's checksum depends on other values")


def check_rest_secrets():
    """A token and a certificate reach laminad, its probes and Prometheus."""
    manifests = render({"rest": {"tokenSecret": "word", "tlsSecret": "pair"},
                        "podMonitor": {"enabled": True, "tlsConfig": {"serverName": "laminad"}}})
    spec = only(manifests, "DaemonSet")["spec"]["template"]["spec"]
    server = spec["containers"][0]
    volumes = {v["name"]: v for v in spec["volumes"]}
    secrets = {m["mountPath"]: volumes[m["name"]]["secret"]["secretName"] for m in server["volumeMounts"]
               if "secret" in volumes[m["name"]] and m.get("readOnly")}
    expect(secrets == {"/rest/token": "word", "/rest/tls": "pair"}, f"laminad is given the Secrets {secrets}")
    options = tomllib.loads(config_text(manifests))["laminad"]
    files = {options[k].rsplit("/", 1)[0] for k in ("rest_token_file", "rest_tls_certificate", "rest_tls_key")}
    expect(files == set(secrets), "the config's files are not in the mounted Secrets")
    for kind in ("startupProbe", "livenessProbe", "readinessProbe"):
        expect(server[kind]["httpGet"]["scheme"] == "HTTPS", f"{kind} speaks plain HTTP to HTTPS")
    endpoint = only(manifests, "PodMonitor")["spec"]["podMetricsEndpoints"][0]
    expect(endpoint["scheme"] == "https" and endpoint["tlsConfig"] == {"serverName": "laminad"} and
           endpoint["authorization"]["credentials"] == {"name": "word", "key": "token"}, "Prometheus is refused")


def check_init():
    """The init container's script, on folders of ours: the node gets the config whole, and never one that lamina
    cannot read."""
    manifests = render()
    init = only(manifests, "DaemonSet")["spec"]["template"]["spec"]["initContainers"][0]
    expect(init["command"][:2] == ["sh", "-ec"], "the init container runs no script")
    with tempfile.TemporaryDirectory(prefix="lamina-chart-") as directory:
        root = pathlib.Path(directory)
        for name in ("config", "node", "run", "state"):
            (root / name).mkdir(mode=0o755)
        script = re.sub(r"(?<=\s)/(config|node)/", rf"{directory}/\1/", init["command"][2])
        environment = {**os.environ, "PATH": f"{os.path.abspath(BIN)}:{os.environ['PATH']}",
                       **{e["name"]: f"{directory}/{e['name'].split('_')[0].lower()}" for e in init["env"]}}
        text = config_text(manifests)
        for content, succeeds in ((text, True), ("[sizing]\nmax_cpus = 1\n", False), (text + "# more\n", True)):
            (root / "config/config.toml").write_text(content)
            done = subprocess.run(["sh", "-ec", script], env=environment, capture_output=True, text=True, check=False)
            expect((done.returncode == 0) == succeeds, f"the init script answers {done.returncode}: {done.stderr}")
            installed = (root / "node/config.toml").read_text()
            expect(installed == (content if succeeds else text), "the node has another config than the init script's")
            expect(os.listdir(root / "node") == ["config.toml"], "the init script leaves files behind")
        for name in ("run", "state"):
            expect((root / name).stat().st_mode & 0o777 == 0o700, f"{name}_dir is open to others")


def check_dashboard_maps():
    manifests = render()
    expect("PodMonitor" not in [k for k, _ in manifests], "the PodMonitor, whose kind may be unknown, is there by default")
    policy = only(manifests, "NetworkPolicy")["spec"]
    expect(policy["policyTypes"] == ["Ingress", "Egress"] and not policy.get("ingress") and not policy.get("egress"),
           "by default others than the kubelet reach laminad, or it reaches others")
    expect("NetworkPolicy" not in [k for k, _ in render({"networkPolicy": {"enabled": False}})],
           "the NetworkPolicy cannot be turned off")
    source = (CHART / "dashboards/lamina.json").read_text()
    found = [m for m in manifests.values() if "lamina.json" in m.get("data", {})]
    expect(len(found) == 1 and found[0]["data"]["lamina.json"] == source, "the dashboard is not rendered as it is")
    expect(found and found[0]["metadata"]["labels"].get("grafana_dashboard") == "1", "Grafana's sidecar finds no label")


def check_laminad_serves():
    """laminad on the rendered config, in a network of its own: the pod's address answers, as probes and Prometheus
    need it."""
    if os.geteuid() != 0:
        print("rendered: skipped for want of root: a laminad on the rendered config in its own network namespace")
        return
    if ctypes.CDLL(None, use_errno=True).unshare(CLONE_NEWNET) != 0:
        print(f"rendered: skipped: no network namespace here ({os.strerror(ctypes.get_errno())}) for a laminad on the "
              "rendered config")
        return
    for command in ("ip link set lo up", "ip address add 10.1.2.3/32 dev lo"):
        subprocess.run(command.split(), check=True)
    with tempfile.TemporaryDirectory(prefix="lamina-chart-") as directory:
        paths = {"run_dir": f"{directory}/run", "state_dir": f"{directory}/state"}
        text = config_text(render({"config": {"paths": paths}}))
        path = pathlib.Path(directory) / "config.toml"
        path.write_text(text)
        with laminad(f"{BIN}/laminad", str(path), "10.1.2.3:9477"):
            expect(fetch("10.1.2.3:9477", "/healthz") == "ok\n", "/healthz does not answer at the pod's address")
            expect("lamina_build_info" in fetch("10.1.2.3:9477", "/metrics"), "/metrics lacks lamina_build_info")


def main():
    lint = helm("lint", "--strict", str(CHART))
    expect(lint.returncode == 0, f"helm lint --strict: {lint.stdout}{lint.stderr}")
    for check in (check_overhead, check_config, check_refusals, check_daemonset, check_rest_secrets, check_init, check_dashboard_maps,
                  check_laminad_serves):
        check()
    for sentence in failures:
        print(f"rendered: {sentence}", file=sys.stderr)
    if failures:
        return 1
    print("rendered: lint, podFixed, config, refusals, DaemonSet, dashboard, a laminad on the rendered config: as meant")
    return 0


if __name__ == "__main__":
    sys.exit(main())
