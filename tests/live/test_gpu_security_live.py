"""What a node's emulator may do on a real cluster: its own labels and slices, nothing of anybody else's."""

from __future__ import annotations

import copy
import json
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any

import pytest

from sandbox import images
from sandbox.cluster import Cluster, addons, gpus, nodes
from sandbox.kube import Kube, Response, wait_for
from sandbox.kube.conditions import finished, gone
from sandbox.pytest_plugin import Clusters

pytestmark = pytest.mark.live

DRY = [("dryRun", "All")]
MERGE = {"Content-Type": "application/merge-patch+json"}
SLICES = "/apis/resource.k8s.io/v1/resourceslices"


@dataclass(frozen=True)
class Ground:
    cluster: Cluster
    admin: Kube
    own: str  # the node whose emulator we speak as
    other: str
    pod: str
    emulator: Kube


@pytest.fixture(scope="module")
def ground(sandbox_clusters: Clusters) -> Ground:
    cluster = sandbox_clusters.up("trio-gpu")
    admin = Kube.connect(cluster.kubeconfig, cluster.context)
    pods = sorted(admin.list("v1", "Pod", gpus.NAMESPACE), key=lambda pod: str(pod["spec"]["nodeName"]))
    first, second = (pod["spec"]["nodeName"] for pod in pods)
    return Ground(cluster, admin, first, second, pods[0]["metadata"]["name"], admin.as_token(token(admin, pods[0])))


def token(admin: Kube, pod: dict[str, Any] | None) -> str:
    """A token as the kubelet gives it to that pod: bound to it, and so to its node. Unbound without a pod."""
    spec: dict[str, Any] = {"expirationSeconds": 3600}
    if pod:
        meta = pod["metadata"]
        spec["boundObjectRef"] = {"apiVersion": "v1", "kind": "Pod", "name": meta["name"], "uid": meta["uid"]}
    path = f"/api/v1/namespaces/{gpus.NAMESPACE}/serviceaccounts/gpu-emulator/token"
    body = {"apiVersion": "authentication.k8s.io/v1", "kind": "TokenRequest", "spec": spec}
    answer = admin.request("POST", path, body)
    assert answer.ok, answer.text
    return str(answer.body["status"]["token"])


def patch(kube: Kube, node: str, change: dict[str, Any]) -> Response:
    return kube.request("PATCH", f"/api/v1/nodes/{node}", change, MERGE, query=DRY)


def labelled(**labels: str | None) -> dict[str, Any]:
    return {"metadata": {"labels": {key.replace("__", "/").replace("_", "."): value for key, value in labels.items()}}}


def test_it_may_label_its_own_node_in_its_own_rooms(ground: Ground) -> None:
    for labels in ({"nvidia_com__gpu_count": "9"}, {"ai-k8s-sandbox/emulated-gpu": None}):
        answer = patch(ground.emulator, ground.own, labelled(**labels))
        assert answer.ok, answer.text


OWN_NODE = "its own node only"
LABELS_ONLY = "labels under nvidia.com/ and ai-k8s-sandbox/ only"
NOTHING_ELSE = "nothing of a node but its labels"


@pytest.mark.parametrize(
    ("change", "why"),
    [
        (labelled(zone="here"), LABELS_ONLY),
        (labelled(kubernetes_io__os="plan9"), LABELS_ONLY),
        (labelled(kubernetes_io__hostname=None), LABELS_ONLY),
        ({"metadata": {"annotations": {"nvidia.com/x": "y"}}}, NOTHING_ELSE),
        ({"metadata": {"finalizers": ["nvidia.com/x"]}}, NOTHING_ELSE),
        ({"spec": {"taints": [{"key": "nvidia.com/gpu", "effect": "NoSchedule"}]}}, NOTHING_ELSE),
        ({"spec": {"unschedulable": True}}, NOTHING_ELSE),
    ],
    ids=str,
)
def test_it_may_change_nothing_else_of_its_node(ground: Ground, change: dict[str, Any], why: str) -> None:
    answer = patch(ground.emulator, ground.own, change)
    assert (answer.status, why in answer.text) == (422, True), answer.text


def test_it_may_not_touch_another_node(ground: Ground) -> None:
    answer = patch(ground.emulator, ground.other, labelled(nvidia_com__gpu_count="0"))
    assert (answer.status, OWN_NODE in answer.text) == (422, True), answer.text


@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("GET", "/api/v1/nodes"),
        ("DELETE", "/api/v1/nodes/{own}"),
        ("PATCH", "/api/v1/nodes/{own}/status"),
        ("GET", "/api/v1/pods"),
        ("GET", "/api/v1/secrets"),
        ("GET", "/api/v1/namespaces/kube-system/configmaps"),
        ("PATCH", f"/api/v1/namespaces/{gpus.NAMESPACE}/configmaps/faults"),
        ("POST", f"/api/v1/namespaces/{gpus.NAMESPACE}/pods"),
        ("DELETE", SLICES),
    ],
)
def test_what_it_does_not_need_it_has_no_right_to(ground: Ground, method: str, path: str) -> None:
    answer = ground.emulator.request(method, path.format(own=ground.own), {}, MERGE, query=DRY)
    assert answer.status == 403, answer.text


def slice_of(node: str, driver: str = gpus.DRIVER) -> dict[str, Any]:
    pool = {"name": node, "generation": 1, "resourceSliceCount": 1}
    spec = {"driver": driver, "nodeName": node, "pool": pool, "devices": [{"name": "gpu-0"}]}
    meta = {"name": f"test-{node}"}
    return {"apiVersion": "resource.k8s.io/v1", "kind": "ResourceSlice", "metadata": meta, "spec": spec}


def test_it_may_publish_its_own_slices_and_nobody_elses(ground: Ground) -> None:
    publish = partial(ground.emulator.request, "POST", SLICES, query=DRY)
    assert publish(body=slice_of(ground.own)).status == 201
    for stranger in (slice_of(ground.other), slice_of(ground.own, "net.example.org")):
        answer = publish(body=stranger)
        assert (answer.status, "may write" in answer.text) == (422, True), answer.text


def test_it_may_not_remove_the_slices_of_another_node(ground: Ground) -> None:
    ground.admin.apply([slice_of(ground.other)])
    try:
        path = f"{SLICES}/test-{ground.other}"
        for method, body in (("DELETE", None), ("PATCH", {"metadata": {"labels": {"mine": "now"}}})):
            answer = ground.emulator.request(method, path, body, MERGE, query=DRY)
            assert (answer.status, "may write" in answer.text) == (422, True), answer.text
    finally:
        ground.admin.delete([slice_of(ground.other)])


def test_a_token_that_is_bound_to_no_pod_gives_nothing_to_write(ground: Ground) -> None:
    loose = ground.admin.as_token(token(ground.admin, None))
    assert patch(loose, ground.own, labelled(nvidia_com__gpu_count="0")).status == 422
    assert loose.request("POST", SLICES, slice_of(ground.own), query=DRY).status == 422


@pytest.fixture
def baseline(ground: Ground) -> Iterator[str]:
    space = {
        "apiVersion": "v1",
        "kind": "Namespace",
        "metadata": {"name": "gpu-baseline", "labels": {"pod-security.kubernetes.io/enforce": "baseline"}},
    }
    ground.admin.apply([space])
    yield "gpu-baseline"
    ground.admin.delete([space])


def test_the_pod_keeps_to_baseline_but_for_its_folders_on_the_node(ground: Ground, baseline: str) -> None:
    (daemons,) = (each for each in addons.manifests(gpus.IMAGE) if each["kind"] == "DaemonSet")
    spec = copy.deepcopy(daemons["spec"]["template"]["spec"])
    spec["serviceAccountName"] = "default"  # there is no other in that namespace
    pod = {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "probe"}, "spec": spec}
    path = f"/api/v1/namespaces/{baseline}/pods"
    answer = ground.admin.request("POST", path, pod, query=DRY)
    assert answer.status == 403, answer.text
    _, found, reason = answer.body["message"].partition('violates PodSecurity "baseline:latest": ')
    assert found
    assert reason.startswith("hostPath volumes (")
    assert reason.count("(") == 1, f"more than hostPath volumes: {reason}"
    for volume in spec["volumes"]:
        if volume.pop("hostPath", None):
            volume["emptyDir"] = {}
    answer = ground.admin.request("POST", path, pod, query=DRY)
    assert answer.status == 201, answer.text


def test_it_runs_without_capabilities_and_cannot_gain_any(ground: Ground) -> None:
    read = ["/usr/bin/python3.11", "-I", "-c", "print(open('/proc/1/status').read())"]
    status = ground.admin.exec(gpus.NAMESPACE, ground.pod, read).stdout
    rows = dict(line.split(":", 1) for line in status.splitlines() if ":" in line)
    assert {int(rows[key], 16) for key in ("CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb")} == {0}
    assert (rows["NoNewPrivs"].strip(), rows["Seccomp"].strip()) == ("1", "2")


def test_the_api_server_reaches_the_exporter_of_every_node(ground: Ground) -> None:
    for pod in ground.admin.list("v1", "Pod", gpus.NAMESPACE):
        name = pod["metadata"]["name"]
        answer = ground.admin.request("GET", f"/api/v1/namespaces/{gpus.NAMESPACE}/pods/{name}:9400/proxy/state")
        assert json.loads(answer.text)["node"] == pod["spec"]["nodeName"]


@pytest.mark.parametrize(("space", "reads"), [("monitoring", True), ("gpu-elsewhere", False)])
def test_of_all_pods_only_those_that_monitor_may_read_it(ground: Ground, space: str, reads: bool) -> None:
    toolbox = images.ensure(["toolbox"])["toolbox"].ref
    nodes.load_images(ground.cluster, [toolbox])
    addresses = [pod["status"]["podIP"] for pod in ground.admin.list("v1", "Pod", gpus.NAMESPACE)]
    tries = " && ".join(f"wget -q -T 3 -t 1 -O /dev/null http://{each}:9400/metrics" for each in addresses)
    refused = " && ".join(f"! {each}" for each in tries.split(" && "))
    namespace = {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": space}}
    pod = {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": "reader", "namespace": space},
        "spec": {
            "restartPolicy": "Never",
            "nodeName": ground.own,  # one of the two is on its own node
            "containers": [
                {"name": "reader", "image": toolbox, "command": ["sh", "-c", tries if reads else refused]},
            ],
        },
    }
    assert ground.admin.get("v1", "Namespace", space) is None
    ground.admin.apply([namespace, pod])
    try:
        done = wait_for(finished(ground.admin, space, "reader"), within=60, what="the reader's end")
        assert done["status"]["phase"] == "Succeeded", ground.admin.logs(space, "reader")
    finally:
        ground.admin.delete([namespace, pod])


def test_without_gpus_nothing_of_them_stays(ground: Ground) -> None:
    admin = ground.admin
    assert gpus.remove(admin)
    assert not gpus.remove(admin)
    for node in admin.list("v1", "Node"):
        assert not [key for key in node["metadata"]["labels"] if key.startswith(("nvidia.com/", "ai-k8s-sandbox/"))]
        assert {amount for key, amount in node["status"]["allocatable"].items() if "nvidia" in key} <= {"0"}
    for thing in [*addons.manifests(gpus.IMAGE), *addons.manifests(gpus.CLASSES)]:
        meta = thing["metadata"]
        assert admin.get(thing["apiVersion"], thing["kind"], meta["name"], meta.get("namespace")) is None
    wait_for(gone(admin, "resource.k8s.io/v1", "ResourceSlice", None), within=10, what="no slices")
