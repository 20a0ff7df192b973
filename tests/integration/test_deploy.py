# SPDX-License-Identifier: Apache-2.0
"""deploy/: as YAML, as Kubernetes' own types have it, and as postcopyd itself reads its configuration."""
import configparser
import os
import pathlib
import re
import shutil
import subprocess

import pytest

import harness

yaml = pytest.importorskip("yaml", reason="python3-yaml is not installed")
DIRECTORY = pathlib.Path(__file__).parents[2] / "deploy/kubernetes"
MANIFEST = DIRECTORY / "postcopyd.yaml"
DOCUMENTS = list(yaml.safe_load_all(MANIFEST.read_text()))


def only(kind):
    document, = (d for d in DOCUMENTS if d["kind"] == kind)
    return document


POD = only("DaemonSet")["spec"]["template"]["spec"]
DAEMON, = POD["containers"]


def configuration():
    """Of the ConfigMap: as it is, and parsed."""
    text = only("ConfigMap")["data"]["postcopyd.conf"]
    parser = configparser.RawConfigParser(strict=False)
    parser.read_string(text)
    return text, parser


def test_yamllint():
    if not shutil.which("yamllint"):
        pytest.skip("yamllint is not installed")
    done = subprocess.run(["yamllint", "--strict", "-c", DIRECTORY / "yamllint.yaml", MANIFEST],
                          stdin=subprocess.DEVNULL, capture_output=True, text=True,
                          timeout=harness.DEADLINE_S)
    assert done.returncode == 0, done.stdout + done.stderr


def complaints(value, type_name, models, where):
    """What of it Kubernetes' API does not have, or has otherwise. @type_name: as its client calls it."""
    if type_name.startswith("list["):
        if not isinstance(value, list):
            return ["%s: no list" % where]
        return [c for i, item in enumerate(value)
                for c in complaints(item, type_name[5:-1], models, "%s[%d]" % (where, i))]
    if type_name.startswith("dict("):
        of = type_name[5:-1].partition(", ")[2]
        if not isinstance(value, dict):
            return ["%s: no mapping" % where]
        return [c for key, item in value.items()
                for c in complaints(item, of, models, "%s.%s" % (where, key))]
    model = getattr(models, type_name, None)
    if model is None:
        simple = {"str": str, "int": int, "bool": bool, "float": (int, float),
                  "object": (int, str)}[type_name]
        right = isinstance(value, simple) and (type_name == "bool" or not isinstance(value, bool))
        return [] if right else ["%s: %r is no %s" % (where, value, type_name)]
    if not isinstance(value, dict):
        return ["%s: no mapping" % where]
    names = {json: name for name, json in model.attribute_map.items()}
    found = ["%s: %s has no \"%s\"" % (where, type_name, key) for key in value if key not in names]
    for key in value.keys() & names.keys():
        found += complaints(value[key], model.openapi_types[names[key]], models,
                            "%s.%s" % (where, key))
    try:
        # What must be there the models see themselves.
        model(**{names[key]: value[key] for key in value.keys() & names.keys()})
    except ValueError as error:
        found.append("%s: %s" % (where, error))
    return found


TYPES = {"Namespace": "V1Namespace", "ConfigMap": "V1ConfigMap", "DaemonSet": "V1DaemonSet",
         "NetworkPolicy": "V1NetworkPolicy"}


def test_kubernetes_has_these_types():
    models = pytest.importorskip("kubernetes.client.models",
                                 reason="python3-kubernetes is not installed")
    found = [c for d in DOCUMENTS for c in complaints(d, TYPES[d["kind"]], models, d["kind"])]
    assert not found, "\n".join(found)
    # It does see what is wrong.
    wrong = {**only("DaemonSet"), "spec": {**only("DaemonSet")["spec"], "updateStrategi": {}}}
    assert complaints(wrong, "V1DaemonSet", models, "DaemonSet")
    assert complaints({"spec": {"selector": 7}}, "V1DaemonSet", models, "DaemonSet")


def test_the_daemon_takes_the_configuration(pki, tmp_path):
    text, _ = configuration()
    for name, path in (("host.crt", pki.source.cert), ("host.key", pki.source.key),
                       ("ca.crt", pki.source.ca)):
        shutil.copy(path, tmp_path / name)
    (tmp_path / "postcopyd.conf").write_text(text)
    done = subprocess.run([harness.BUILD / "src/postcopyd/postcopyd", "--config",
                           tmp_path / "postcopyd.conf", "--control", tmp_path / "control",
                           "--vmm", tmp_path / "vmm", "--check-config"],
                          env={**os.environ, "CREDENTIALS_DIRECTORY": str(tmp_path)},
                          stdin=subprocess.DEVNULL, capture_output=True, text=True,
                          timeout=harness.DEADLINE_S)
    assert done.returncode == 0, done.stdout + done.stderr


def test_nothing_ends_a_pod_that_works():
    """Nobody keeps its descriptors: guests would be lost."""
    _, config = configuration()
    assert only("DaemonSet")["spec"]["updateStrategy"]["type"] == "OnDelete"
    assert "livenessProbe" not in DAEMON and "limits" not in DAEMON["resources"]
    assert config.getint("daemon", "drain-timeout") < POD["terminationGracePeriodSeconds"]


def test_it_has_no_privilege():
    context = DAEMON["securityContext"]
    assert context["runAsNonRoot"] and context["readOnlyRootFilesystem"]
    assert not context["allowPrivilegeEscalation"]
    assert context["capabilities"] == {"drop": ["ALL"]}
    assert "privileged" not in MANIFEST.read_text().replace("enforce: privileged", "")


def test_ports_are_those_of_the_configuration():
    """And no other may be reached."""
    _, config = configuration()
    ports = {name: int(config.get(*key).rpartition(":")[2]) for name, key in {
        "pages": ("stream", "listen"), "control": ("control", "control-listen"),
        "metrics": ("metrics", "metrics-listen")}.items()}
    assert {p["name"]: p["containerPort"] for p in DAEMON["ports"]} == ports
    policy = only("NetworkPolicy")["spec"]
    assert [p["port"] for rule in policy["ingress"] for p in rule["ports"]] == list(ports.values())
    assert all(rule["from"] for rule in policy["ingress"])
    assert [p["port"] for rule in policy["egress"] for p in rule["ports"]] == [ports["pages"], 53, 53]
    assert policy["policyTypes"] == ["Ingress", "Egress"]


def test_what_it_selects_is_there():
    labels = only("DaemonSet")["spec"]["template"]["metadata"]["labels"].items()
    for selector in (only("DaemonSet")["spec"]["selector"], only("NetworkPolicy")["spec"]["podSelector"]):
        assert selector["matchLabels"].items() <= labels
    volumes = {volume["name"]: volume for volume in POD["volumes"]}
    for container in (DAEMON, *POD["initContainers"]):
        assert {mount["name"] for mount in container["volumeMounts"]} <= volumes.keys()
    assert volumes["config"]["configMap"]["name"] == only("ConfigMap")["metadata"]["name"]
    user = DAEMON["securityContext"]["runAsUser"]
    assert re.findall(r"\d{4}", " ".join(POD["initContainers"][0]["command"]))[:2] == [str(user)] * 2
