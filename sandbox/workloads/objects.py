"""The objects of a workload, as the API server is given them."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any

from sandbox.kube import Object
from sandbox.kube.namespaces import MANAGED_BY
from sandbox.spec.workload import Workload

NAMESPACE = "workloads"
WORKLOAD_LABEL = "ai-k8s-sandbox/workload"
_FLEET = "ai-k8s-sandbox/on-fleet"
ON_FLEET = f"{_FLEET}=true"  # label selector of the pods that go to simulated nodes
CONTAINER = "main"
_CLAIM = "claim"
_RESOURCE = "resource.k8s.io/v1"
# ends at once when it is told to; busybox's own sleep, as process 1, would not hear the signal
_SLEEP = ["sh", "-c", "trap 'exit 0' TERM; sleep 86400 & wait"]
_CONCATENATED = ("tolerations", "resourceClaims", "volumes")


def claim(workload: Workload) -> Object | None:
    """What the claims of its pods come from: a template for one each, or the one claim they share."""
    if workload.claim is None:
        return None
    kind = "ResourceClaim" if workload.shared_claim else "ResourceClaimTemplate"
    labels = {**MANAGED_BY, WORKLOAD_LABEL: workload.name}
    return {
        "apiVersion": _RESOURCE,
        "kind": kind,
        "metadata": {"name": workload.name, "namespace": NAMESPACE, "labels": labels},
        "spec": workload.claim if workload.shared_claim else {"spec": workload.claim},
    }


def pod(workload: Workload, number: int, images: Mapping[str, str]) -> Object:
    """The pod of that number; Pod Security `restricted` admits it, unless the scenario's own words forbid that."""
    labels = {**workload.labels, **MANAGED_BY, WORKLOAD_LABEL: workload.name}
    labels |= {_FLEET: "true"} if workload.fleet else {}
    metadata: Object = {"name": f"{workload.name}-{number}", "namespace": NAMESPACE, "labels": labels}
    if workload.annotations:
        metadata["annotations"] = workload.annotations
    spec = merged(_spec(workload, images), workload.placement, workload.pod)
    return {"apiVersion": "v1", "kind": "Pod", "metadata": metadata, "spec": spec}


def merged(*parts: Mapping[str, Any]) -> dict[str, Any]:
    """Partial pod specs put together: maps key by key; of lists the later, but those that only grow are joined."""
    whole: dict[str, Any] = {}
    for part in parts:
        for key, value in copy.deepcopy(dict(part)).items():
            there = whole.get(key)
            if isinstance(there, dict) and isinstance(value, Mapping):
                whole[key] = merged(there, value)
            elif key in _CONCATENATED and isinstance(there, list) and isinstance(value, list):
                whole[key] = [*there, *value]
            else:
                whole[key] = value
    return whole


def _spec(workload: Workload, images: Mapping[str, str]) -> dict[str, Any]:
    amounts = {name: str(amount) for name, amount in workload.resources.items()}
    resources: dict[str, Any] = {
        "requests": {"cpu": "5m", "memory": "16Mi", **amounts},
        "limits": {"memory": "64Mi", **amounts},
    }
    spec: dict[str, Any] = {
        "restartPolicy": "Never",
        "terminationGracePeriodSeconds": 1,
        "automountServiceAccountToken": False,
        "enableServiceLinks": False,
        "securityContext": {
            "runAsNonRoot": True,
            "runAsUser": 65532,
            "runAsGroup": 65532,
            "seccompProfile": {"type": "RuntimeDefault"},
        },
    }
    if workload.claim is not None:
        source = "resourceClaimName" if workload.shared_claim else "resourceClaimTemplateName"
        spec["resourceClaims"] = [{"name": _CLAIM, source: workload.name}]
        resources["claims"] = [{"name": _CLAIM}]
    own: dict[str, Any] = {
        "name": CONTAINER,
        "image": images[workload.image],
        "imagePullPolicy": "IfNotPresent",
        "command": workload.command or _SLEEP,
        "resources": resources,
        "securityContext": {
            "allowPrivilegeEscalation": False,
            "readOnlyRootFilesystem": True,
            "capabilities": {"drop": ["ALL"]},
        },
    }
    spec["containers"] = [merged(own, workload.container)]
    return spec
