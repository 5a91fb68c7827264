"""The manifests, against the schemas that Kubernetes publishes, the server's settings and one
another.
"""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path
from typing import Any

import kubernetes_validate
import pytest
import yaml

from server.settings import Settings
from server.system.stop_plan import StopPlan
from tests.server.conftest import ROOT

FOLDER = ROOT / "deploy/kubernetes"
FILES = yaml.safe_load((FOLDER / "kustomization.yml").read_text())["resources"]
# preStop's `sleep` is on by default from 1.30; the newest is what the validator has.
VERSIONS = ("1.30", kubernetes_validate.latest_version())


def load(name: str) -> dict[str, Any]:
    (document,) = yaml.safe_load_all((FOLDER / name).read_text())
    return document


DEPLOYMENT = load("deployment.yml")
POD = DEPLOYMENT["spec"]["template"]["spec"]
(SERVER,) = POD["containers"]
LABELS = {"app.kubernetes.io/name": "tome-serve"}


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize("name", FILES)
def test_schema(name, version):
    kubernetes_validate.validate(load(name), version, strict=True)


def test_the_validator_finds_what_is_wrong():
    wrong = load("deployment.yml")
    wrong["spec"]["template"]["spec"]["containers"][0]["readynessProbe"] = {}
    with pytest.raises(kubernetes_validate.ValidationError, match="readynessProbe"):
        kubernetes_validate.validate(wrong, VERSIONS[-1], strict=True)


def test_every_manifest_is_applied():
    assert sorted(FILES) == sorted(
        path.name for path in FOLDER.glob("*.yml") if path.name != "kustomization.yml"
    )


def test_all_mean_the_same_pods():
    assert DEPLOYMENT["spec"]["template"]["metadata"]["labels"] == LABELS
    assert DEPLOYMENT["spec"]["selector"]["matchLabels"] == LABELS
    assert load("service.yml")["spec"]["selector"] == LABELS
    assert load("disruption.yml")["spec"]["selector"]["matchLabels"] == LABELS
    target = load("autoscaling.yml")["spec"]["scaleTargetRef"]
    assert (target["kind"], target["name"]) == (DEPLOYMENT["kind"], DEPLOYMENT["metadata"]["name"])
    monitor = load("monitoring/servicemonitor.yml")["spec"]
    assert monitor["selector"]["matchLabels"] == load("service.yml")["metadata"]["labels"]
    assert [end["port"] for end in monitor["endpoints"]] == [
        port["name"] for port in load("service.yml")["spec"]["ports"]
    ]


def test_keda_scales_as_the_autoscaler_does():
    scaled = load("keda/scaledobject.yml")["spec"]
    autoscaler = load("autoscaling.yml")["spec"]
    (trigger,) = scaled["triggers"]
    (metric,) = autoscaler["metrics"]
    assert scaled["scaleTargetRef"] == autoscaler["scaleTargetRef"]
    assert scaled["minReplicaCount"] == autoscaler["minReplicas"]
    assert scaled["maxReplicaCount"] == autoscaler["maxReplicas"]
    assert trigger["metadata"]["threshold"] == metric["pods"]["target"]["averageValue"]
    assert scaled["advanced"]["horizontalPodAutoscalerConfig"]["behavior"] == autoscaler["behavior"]
    # KEDA takes strings alone.
    assert {type(value) for value in trigger["metadata"].values()} == {str}


def applied_kinds(folder: Path) -> set[str]:
    """What ``kubectl apply -k folder`` would apply."""
    text = subprocess.check_output(["kubectl", "kustomize", folder], text=True)
    return {document["kind"] for document in yaml.safe_load_all(text)}


@pytest.mark.skipif(shutil.which("kubectl") is None, reason="kubectl is not installed")
def test_keda_replaces_the_autoscaler(tmp_path):
    folder = shutil.copytree(FOLDER, tmp_path / "kubernetes")
    kustomization = folder / "kustomization.yml"
    text = kustomization.read_text()
    kustomization.write_text(text.replace("# components: [keda]", "components: [keda]"))
    without = applied_kinds(FOLDER)
    with_keda = applied_kinds(folder)
    assert without - with_keda == {"HorizontalPodAutoscaler"}
    assert with_keda - without == {"ScaledObject"}


def test_probes():
    port = {port["name"]: port["containerPort"] for port in SERVER["ports"]}
    assert port == {"http": Settings.model_fields["port"].default}
    paths = {
        name: SERVER[f"{name}Probe"]["httpGet"]["path"]
        for name in ("startup", "liveness", "readiness")
    }
    assert paths == {"startup": "/healthz", "liveness": "/healthz", "readiness": "/readyz"}


def test_there_is_time_to_drain_and_to_start():
    pause = SERVER["lifecycle"]["preStop"]["sleep"]["seconds"]
    assert POD["terminationGracePeriodSeconds"] > pause + StopPlan().total
    assert (
        DEPLOYMENT["spec"]["progressDeadlineSeconds"]
        > Settings.model_fields["start_timeout"].default
    )


def test_pods_have_no_rights_that_they_do_not_need():
    assert POD["automountServiceAccountToken"] is False
    assert POD["enableServiceLinks"] is False
    assert POD["securityContext"]["runAsNonRoot"] is True
    assert POD["securityContext"]["runAsUser"] == POD["securityContext"]["runAsGroup"] == 10001
    assert POD["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
    assert SERVER["securityContext"] == {
        "allowPrivilegeEscalation": False,
        "readOnlyRootFilesystem": True,
        "capabilities": {"drop": ["ALL"]},
    }
    assert {mount["mountPath"] for mount in SERVER["volumeMounts"]} == {"/cache", "/tmp"}


def test_a_gpu_is_reserved():
    assert SERVER["resources"]["limits"]["nvidia.com/gpu"] == "1"


def test_only_settings_that_exist_are_set():
    assert {variable["name"] for variable in SERVER["env"]} <= {
        f"TOME_{name.upper()}" for name in Settings.model_fields
    }
