"""The end of "up" as users know it: a pod runs, and the cluster's DNS answers it."""

from __future__ import annotations

from sandbox.kube import Kube, Seen, wait_for
from sandbox.kube.conditions import nodes_ready, rollout

_APP = [
    {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "app", "namespace": "default"}, "spec": {
        "containers": [{"name": "app", "image": "", "command": ["sh", "-c", "httpd -f -p 8080 -h /tmp"]}],
        "terminationGracePeriodSeconds": 0,
    }},
]  # fmt: skip


def answering(kube: Kube, image: str) -> None:
    """Wait until a pod runs and the cluster's DNS answers it: the end of "up" as users know it."""
    wait_for(nodes_ready(kube, 1), within=180, what="the node Ready")
    app = {**_APP[0], "spec": {**_APP[0]["spec"], "containers": [{**_APP[0]["spec"]["containers"][0], "image": image}]}}  # type: ignore[dict-item,index]
    kube.apply([app])
    wait_for(rollout(kube, "Deployment", "kube-system", "coredns"), within=180, what="DNS rolled out")

    def look() -> Seen[None]:
        found = kube.get("v1", "Pod", "app", "default") or {}
        if found.get("status", {}).get("phase") != "Running":
            return Seen(False, None, str(found.get("status")))
        answer = kube.exec("default", "app", ["nslookup", "kubernetes.default.svc.cluster.local"])
        return Seen(answer.code == 0, None, answer.stdout + answer.stderr)

    wait_for(look, within=180, what="DNS answering a pod")
