"""What load pods are to Kubernetes: a namespace of their own, no rights, and a network that reaches what they load."""

from __future__ import annotations

import math
import socket
from urllib.parse import urlsplit

from sandbox.errors import EnvironmentMissing
from sandbox.kube import Kube, namespaces
from sandbox.kube.resources import Object, Objects
from sandbox.load.client import base_url
from sandbox.load.plan import LoadPlan

NAMESPACE = "sandbox-load"
PORT = 5557
MASTER = "load-master"
_APP = {"app": "load"}
_USER = 65532
_SLACK = 300.0  # to come up, to be told, to be looked at afterwards
_SERVICE_PARTS = 3  # name.namespace.svc


def worker_name(index: int) -> str:
    """The pod of the worker counted from 0."""
    return f"load-worker-{index + 1}"


def all_of(kube: Kube, plan: LoadPlan, image: str, pods: int) -> Objects:
    """The namespace, its network policy, a master and its workers.

    Raises:
        EnvironmentMissing: the host of the plan's URL does not resolve here, so nothing can be let through to it.
    """
    space = namespaces.make(NAMESPACE)
    lifetime = math.ceil(plan.duration + plan.timeout + plan.grace + _SLACK)
    names = [MASTER, *(worker_name(index) for index in range(pods))]
    return [space, _policy(_target(kube, plan.url)), *(_pod(name, image, lifetime) for name in names)]


def _pod(name: str, image: str, lifetime: int) -> Object:
    """One pod that waits to be told; it ends by itself after `lifetime` seconds, whatever became of us."""
    return {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": name, "namespace": NAMESPACE, "labels": {**namespaces.MANAGED_BY, **_APP}},
        "spec": {
            "restartPolicy": "Never",
            "activeDeadlineSeconds": lifetime,
            "automountServiceAccountToken": False,
            "enableServiceLinks": False,
            "terminationGracePeriodSeconds": 1,
            "securityContext": {
                "runAsNonRoot": True,
                "runAsUser": _USER,
                "runAsGroup": _USER,
                "fsGroup": _USER,
                "seccompProfile": {"type": "RuntimeDefault"},
            },
            "topologySpreadConstraints": [
                {
                    "maxSkew": 1,
                    "topologyKey": "kubernetes.io/hostname",
                    "whenUnsatisfiable": "ScheduleAnyway",
                    "labelSelector": {"matchLabels": _APP},
                }
            ],
            "containers": [
                {
                    "name": "load",
                    "image": image,
                    "imagePullPolicy": "IfNotPresent",
                    # no limit of CPU: a throttled client measures its own waiting
                    "resources": {"requests": {"cpu": "100m", "memory": "96Mi"}, "limits": {"memory": "1Gi"}},
                    "securityContext": {
                        "allowPrivilegeEscalation": False,
                        "readOnlyRootFilesystem": True,
                        "capabilities": {"drop": ["ALL"]},
                    },
                    "volumeMounts": [{"name": "work", "mountPath": "/tmp"}],  # noqa: S108 - of the pod's own
                }
            ],
            "volumes": [{"name": "work", "emptyDir": {"sizeLimit": "2Gi"}}],
        },
    }


def _policy(target: Object) -> Object:
    """Nothing but names, each other, and what is loaded."""
    each_other = {"ports": [{"protocol": "TCP", "port": PORT}]}
    dns = [{"protocol": protocol, "port": 53} for protocol in ("UDP", "TCP")]
    system = {"matchLabels": {"kubernetes.io/metadata.name": "kube-system"}}
    return {
        "apiVersion": "networking.k8s.io/v1",
        "kind": "NetworkPolicy",
        "metadata": {"name": "load", "namespace": NAMESPACE, "labels": dict(namespaces.MANAGED_BY)},
        "spec": {
            "podSelector": {},
            "policyTypes": ["Ingress", "Egress"],
            "ingress": [{"from": [{"podSelector": {}}], **each_other}],
            "egress": [
                {"to": [{"podSelector": {}}], **each_other},
                {"to": [{"namespaceSelector": system}], "ports": dns},
                target,
            ],
        },
    }


def _target(kube: Kube, url: str) -> Object:
    """The way to what is loaded: the pods of a Service of this cluster, or an address outside."""
    parts = urlsplit(base_url(url))
    host = parts.hostname or ""
    port = parts.port or (443 if parts.scheme == "https" else 80)
    words = host.split(".")
    if len(words) >= _SERVICE_PARTS and words[2] == "svc":
        space = {"matchLabels": {"kubernetes.io/metadata.name": words[1]}}
        service = kube.get("v1", "Service", words[0], words[1])
        pods = ((service or {}).get("spec") or {}).get("selector") or {}
        return {"to": [{"namespaceSelector": space, "podSelector": {"matchLabels": pods}}]}
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    except socket.gaierror as error:
        raise EnvironmentMissing(f"{host} does not resolve: {error}", where=url, fix="check the URL") from error
    addresses = dict.fromkeys(str(address[0]) for *_, address in found)
    blocks = [{"ipBlock": {"cidr": f"{each}/{128 if ':' in each else 32}"}} for each in addresses]
    return {"to": blocks, "ports": [{"protocol": "TCP", "port": port}]}
