"""How emulated GPUs get onto the nodes of a cluster and off them again, on a stand-in for its API."""

from __future__ import annotations

import copy
import json
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

import pytest

from sandbox.cluster import addons, gpus
from sandbox.errors import ClusterError
from sandbox.gpu.emulator import config
from sandbox.kube import Kube
from sandbox.spec import load_text
from sandbox.spec.cluster import ClusterSpec

HEAD = "apiVersion: sandbox/v1\nkind: Cluster\nmetadata: {name: mine, description: For a test.}\n"
TRIO = "kindConfig: {nodes: [{role: worker}, {role: control-plane}, {role: worker}]}\n"
NAMES = ["mine-worker", "mine-control-plane", "mine-worker2"]
IMAGE = "ai-k8s-sandbox/gpu-emulator:0"


def spec(gpu: str = "[]") -> ClusterSpec:
    return load_text(f"{HEAD}{TRIO}gpu: {gpu}\n", Path("mine.yaml"), ClusterSpec).model


def node(name: str, **amounts: str) -> dict[str, Any]:
    labels = {"node-role.kubernetes.io/control-plane": ""} if "control" in name else {}
    shown = {key.replace("_", "/"): value for key, value in amounts.items()}
    meta = {"name": name, "labels": labels}
    status = {"allocatable": shown, "capacity": dict(shown)}
    return {"kind": "Node", "metadata": meta, "spec": {"podCIDRs": ["10.9.0.0/24", "fd00::/64"]}, "status": status}


@dataclass
class Stand:
    """Objects by kind and name. A DaemonSet is rolled out at once."""

    held: dict[tuple[str, str], dict[str, Any]] = field(default_factory=dict)
    done: list[str] = field(default_factory=list)

    def put(self, *things: dict[str, Any]) -> None:
        for thing in things:
            self.held[thing["kind"], thing["metadata"]["name"]] = thing

    def get(self, _: str, kind: str, name: str, *__: str) -> dict[str, Any] | None:
        return self.held.get((kind, name))

    def list(self, _: str, kind: str, *__: str, **___: str) -> list[dict[str, Any]]:
        return [thing for (each, _), thing in self.held.items() if each == kind]

    def list_at(self, what: Any) -> tuple[list[dict[str, Any]], str]:
        return self.list(what.api_version, what.kind), "1"

    def changed(self, *_: object, **__: object) -> bool:
        return True

    def apply(self, objects: list[dict[str, Any]]) -> None:
        self.done += [f"apply {thing['kind']} {thing['metadata']['name']}" for thing in objects]
        for thing in copy.deepcopy(objects):
            if thing["kind"] == "DaemonSet":
                thing["metadata"]["generation"] = 1
                thing["status"] = {"observedGeneration": 1}
            self.put(thing)

    def patch(self, _: str, kind: str, name: str, change: dict[str, Any]) -> None:
        self.done.append(f"patch {kind} {name}")
        labels = self.held[kind, name]["metadata"]["labels"]
        labels |= change["metadata"]["labels"]
        self.held[kind, name]["metadata"]["labels"] = {key: value for key, value in labels.items() if value is not None}

    def delete(self, objects: list[dict[str, Any]], **_: object) -> None:
        for thing in objects:
            if self.held.pop((thing["kind"], thing["metadata"]["name"]), None):
                self.done.append(f"delete {thing['kind']} {thing['metadata']['name']}")

    def logs(self, *_: object, **__: object) -> str:
        return "first\nthe socket is not there\n"


@pytest.fixture
def stand() -> Stand:
    made = Stand()
    made.put(*(node(name) for name in reversed(NAMES)))
    return made


def kube(stand: Stand) -> Kube:
    return cast("Kube", stand)


def put_on(stand: Stand, gpu: str) -> ClusterSpec:
    made = spec(gpu)
    assert gpus.apply(kube(stand), made, NAMES, IMAGE)
    return made


def test_the_nodes_come_in_the_order_of_the_file_whatever_the_server_says_first(stand: Stand) -> None:
    assert gpus.in_order(kube(stand), spec()) == NAMES


def test_workers_are_counted_as_kind_counts_them(stand: Stand) -> None:
    stand.held.clear()
    count = 11
    names = ["c-control-plane", "c-worker", *(f"c-worker{number}" for number in range(2, count))]
    stand.put(*(node(name) for name in sorted(names, reverse=True)))
    roles = ", ".join(["{role: control-plane}", *["{role: worker}"] * (count - 1)])
    made = load_text(f"{HEAD}kindConfig: {{nodes: [{roles}]}}\n", Path("mine.yaml"), ClusterSpec).model
    assert gpus.in_order(kube(stand), made) == names


def test_each_gpu_node_is_labelled_and_told_what_it_is(stand: Stand) -> None:
    put_on(stand, "[{profile: h100, count: 4, nodes: [0]}, {profile: t4, nodes: [1], mode: dra}]")
    marked = [name for name in NAMES if stand.held["Node", name]["metadata"]["labels"].get(gpus.NODE_LABEL) == "true"]
    assert marked == NAMES[:2]
    told = stand.held["ConfigMap", "config"]["data"]
    assert {key: config.parse(json.loads(text)).profile.name for key, text in told.items()} == {
        "mine-worker.json": "h100",
        "mine-control-plane.json": "t4",
    }
    (container,) = stand.held["DaemonSet", "gpu-emulator"]["spec"]["template"]["spec"]["containers"]
    assert (container["image"], container["imagePullPolicy"]) == (IMAGE, "Never")


def test_another_configuration_makes_the_pods_anew_and_the_same_one_does_not(stand: Stand) -> None:
    def template() -> Any:
        return copy.deepcopy(stand.held["DaemonSet", "gpu-emulator"]["spec"]["template"])

    put_on(stand, "{profile: h100, count: 4}")
    before = template()
    put_on(stand, "{profile: h100, count: 4}")
    assert template() == before
    put_on(stand, "{profile: h100, count: 5}")
    assert template() != before


def test_a_node_that_has_no_gpus_any_more_loses_its_label(stand: Stand) -> None:
    put_on(stand, "{profile: h100}")
    put_on(stand, "{profile: h100, nodes: [2]}")
    marked = [name for name in NAMES if gpus.NODE_LABEL in stand.held["Node", name]["metadata"]["labels"]]
    assert marked == ["mine-worker2"]


def test_faults_that_act_are_left_alone(stand: Stand) -> None:
    put_on(stand, "{profile: h100}")
    assert "apply ConfigMap faults" in stand.done
    stand.held["ConfigMap", "faults"]["data"] = {"mine-worker.json": "[]"}
    stand.done.clear()
    put_on(stand, "{profile: h100, count: 2}")
    assert "apply ConfigMap faults" not in stand.done


def test_pods_are_excepted_from_those_who_may_read_what_runs_where(stand: Stand) -> None:
    put_on(stand, "{profile: h100}")
    sources = stand.held["NetworkPolicy", "metrics"]["spec"]["ingress"][0]["from"]
    assert [each["ipBlock"]["except"] for each in sources if "ipBlock" in each] == [["10.9.0.0/24"], ["fd00::/64"]]


@pytest.mark.parametrize(
    ("gpu", "classes", "name"),
    [
        ("{profile: h100}", [], None),
        ("{profile: h100, mode: dra}", ["gpu.nvidia.com", "mig.nvidia.com"], None),
        ("{profile: h100, count: 2, mode: both}", ["gpu.nvidia.com", "mig.nvidia.com"], None),
        (
            "{profile: h100, mode: dra, dra: {extendedResource: true}}",
            ["gpu.nvidia.com", "mig.nvidia.com"],
            "nvidia.com/gpu",
        ),
    ],
)
def test_device_classes_are_there_where_dra_has_devices(
    stand: Stand, gpu: str, classes: list[str], name: str | None
) -> None:
    put_on(stand, "{profile: h100, mode: dra, dra: {extendedResource: true}}")
    put_on(stand, gpu)
    assert sorted(each for kind, each in stand.held if kind == "DeviceClass") == classes
    if classes:
        assert stand.held["DeviceClass", "gpu.nvidia.com"]["spec"].get("extendedResourceName") == name


def test_up_waits_for_every_node_to_offer_what_it_has(stand: Stand, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gpus, "_READY_SECONDS", 0.1)
    made = put_on(stand, "{profile: h100, count: 2, mode: both}")
    stand.put({"kind": "Pod", "metadata": {"name": "p", "namespace": "gpu-emulator"}, "spec": {}, "status": {}})
    with pytest.raises(ClusterError, match="the nodes' GPUs did not come within") as late:
        gpus.wait(kube(stand), made, NAMES)
    assert "mine-worker: allocatable nvidia.com/gpu=0; wanted nvidia.com/gpu=1" in late.value.details
    assert "p| the socket is not there" in late.value.details
    stand.put(*(node(name, **{"nvidia.com_gpu": "1"}) for name in ("mine-worker", "mine-worker2")))
    with pytest.raises(ClusterError, match="ResourceSlices did not come within") as late:
        gpus.wait(kube(stand), made, NAMES)
    assert "mine-worker: 0 devices in its ResourceSlices, wanted 1" in late.value.details
    for name in ("mine-worker", "mine-worker2"):
        stand.put({"kind": "ResourceSlice", "metadata": {"name": name}, "spec": {"nodeName": name, "devices": [{}]}})
    gpus.wait(kube(stand), made, NAMES)


def test_up_waits_for_what_is_no_longer_offered_to_go(stand: Stand, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gpus, "_READY_SECONDS", 0.1)
    made = put_on(stand, "{profile: h100, nodes: [0]}")
    stand.put(node("mine-worker", **{"nvidia.com_gpu": "1"}), node("mine-worker2", **{"nvidia.com_mig-1g.10gb": "7"}))
    with pytest.raises(ClusterError) as late:
        gpus.wait(kube(stand), made, NAMES)
    assert "mine-worker2: allocatable nvidia.com/mig-1g.10gb=7; wanted none" in late.value.details
    stand.put(node("mine-worker2", **{"nvidia.com_mig-1g.10gb": "0"}))
    gpus.wait(kube(stand), made, NAMES)


@pytest.mark.parametrize(("left", "waits"), [(60.0, False), (-60.0, True)])
def test_a_device_that_a_fault_hides_is_not_waited_for(
    stand: Stand, monkeypatch: pytest.MonkeyPatch, left: float, waits: bool
) -> None:
    monkeypatch.setattr(gpus, "_READY_SECONDS", 0.1)
    made = put_on(stand, "{profile: h100, count: 2, nodes: [0]}")
    stand.held["ConfigMap", "faults"]["data"] = {
        "mine-worker.json": json.dumps([{"until": time.time() + left}]),
        "mine-worker2.json": "not JSON",
    }
    worker = node("mine-worker", **{"nvidia.com_gpu": "2"})
    worker["status"]["allocatable"]["nvidia.com/gpu"] = "1"
    stand.put(worker)
    if waits:
        with pytest.raises(ClusterError):
            gpus.wait(kube(stand), made, NAMES)
    else:
        gpus.wait(kube(stand), made, NAMES)


def test_without_the_key_all_is_taken_off_again(stand: Stand) -> None:
    put_on(stand, "{profile: h100, count: 2, mode: both}")
    for name in ("mine-worker", "mine-worker2"):  # their emulators were killed
        stand.held["Node", name]["metadata"]["labels"] |= {gpus.EMULATED: "true", "nvidia.com/gpu.count": "2"}
    stand.held["Node", "mine-control-plane"]["metadata"]["labels"]["nvidia.com/mine"] = "a user's own"
    stand.put({"kind": "ResourceSlice", "metadata": {"name": "s"}, "spec": {"nodeName": "mine-worker"}})
    assert not gpus.apply(kube(stand), spec(), NAMES, "")
    assert {kind for kind, _ in stand.held} == {"Node"}
    labels = [stand.held["Node", name]["metadata"]["labels"] for name in NAMES]
    assert labels == [{}, {"node-role.kubernetes.io/control-plane": "", "nvidia.com/mine": "a user's own"}, {}]


def test_a_cluster_without_gpus_is_only_looked_at(stand: Stand) -> None:
    assert not gpus.apply(kube(stand), spec(), NAMES, "")
    assert stand.done == []


# the addon's own text


def named(kind: str) -> dict[str, Any]:
    (found,) = (each for each in addons.manifests(gpus.IMAGE) if each["kind"] == kind)
    return found


def test_the_emulator_runs_without_privileges() -> None:
    pod = named("DaemonSet")["spec"]["template"]["spec"]
    (container,) = pod["containers"]
    rights = container["securityContext"]
    assert (rights["privileged"], rights["allowPrivilegeEscalation"], rights["readOnlyRootFilesystem"]) == (
        False,
        False,
        True,
    )
    assert rights["capabilities"] == {"drop": ["ALL"]}
    assert pod["securityContext"]["seccompProfile"]["type"] == "RuntimeDefault"
    assert not [key for key in pod if key.startswith("host")]
    assert [each["hostPath"]["path"] for each in pod["volumes"] if "hostPath" in each] == [
        "/var/lib/kubelet/device-plugins",
        "/var/lib/kubelet/pod-resources",
        "/var/lib/kubelet/plugins_registry",
        "/var/lib/kubelet/plugins/gpu.nvidia.com",
        "/var/run/cdi",
    ]
    mounted = {each["name"]: each["mountPath"] for each in container["volumeMounts"]}
    assert all(mounted[each["name"]] == each["hostPath"]["path"] for each in pod["volumes"] if "hostPath" in each)


def test_its_rights_are_few() -> None:
    rules = {resource: set(rule["verbs"]) for rule in named("ClusterRole")["rules"] for resource in rule["resources"]}
    assert rules == {
        "nodes": {"get", "patch"},
        "pods": {"get"},
        "resourceclaims": {"get"},
        "resourceslices": {"get", "list", "watch", "create", "update", "patch", "delete"},
    }
    (rule,) = named("Role")["rules"]
    assert (rule["resources"], rule["verbs"]) == (["configmaps"], ["get", "list", "watch"])


def test_runs_do_not_clear_it_away() -> None:
    manager = "app.kubernetes.io/managed-by"
    for thing in addons.manifests(gpus.IMAGE):
        assert thing["metadata"].get("labels", {}).get(manager) != "ai-k8s-sandbox"
    assert named("Namespace")["metadata"]["labels"][manager] == "ai-k8s-sandbox-addon"


def test_each_policy_is_bound_and_denies() -> None:
    things = addons.manifests(gpus.IMAGE)
    policies = [each["metadata"]["name"] for each in things if each["kind"] == "ValidatingAdmissionPolicy"]
    bound = {
        each["spec"]["policyName"]: each["spec"]["validationActions"]
        for each in things
        if each["kind"] == "ValidatingAdmissionPolicyBinding"
    }
    assert bound == {name: ["Deny"] for name in policies}
    assert len(policies) == 2


def test_nothing_is_asked_of_a_cluster_that_never_had_gpus(stand: Stand, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[str] = []
    look: Callable[..., Any] = stand.get
    monkeypatch.setattr(stand, "get", lambda *args: asked.append(args[2]) or look(*args))
    assert not gpus.remove(kube(stand))
    assert asked == ["gpu-emulator"]
