"""A fleet of simulated nodes: what its nodes say of themselves, and what is made, kept and removed."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import yaml

from sandbox import paths
from sandbox.cluster import addons, config, fleet, node_files
from sandbox.cluster.record import shape
from sandbox.errors import UsageError
from sandbox.gpu.emulator import labels
from sandbox.gpu.emulator.config import parse
from sandbox.gpu.emulator.devices import board
from sandbox.kube import Kube, Object
from sandbox.kube.resources import Objects
from sandbox.spec import load, load_text
from sandbox.spec.cluster import ClusterSpec
from sandbox.spec.gpu import GpuGroup, node_document, profile_names

HEAD = "apiVersion: sandbox/v1\nkind: Cluster\nmetadata: {name: mine, description: For a test.}\n"
VERSION = "v1.37.2"


def spec(text: str = "fleet: {nodes: 3, zones: 2, gpu: {profile: h100, count: 8}}\n") -> ClusterSpec:
    return load_text(HEAD + text, Path("mine.yaml"), ClusterSpec).model


def test_the_nodes_of_a_fleet_are_labelled_tainted_and_spread_over_its_zones() -> None:
    made = fleet.nodes(spec(), VERSION)
    assert [each["metadata"]["name"] for each in made] == ["fleet-1", "fleet-2", "fleet-3"]
    zones = [each["metadata"]["labels"]["topology.kubernetes.io/zone"] for each in made]
    assert zones == ["zone-1", "zone-2", "zone-1"]
    assert made[0]["spec"]["taints"] == [{"key": "kwok.x-k8s.io/node", "value": "fake", "effect": "NoSchedule"}]
    assert made[0]["status"]["allocatable"]["nvidia.com/gpu"] == "8"
    assert made[0]["metadata"]["labels"]["ai-k8s-sandbox/emulated-gpu"] == "true"
    assert not fleet.nodes(spec(""), VERSION)


def test_names_sort_as_their_numbers_do() -> None:
    names = [each["metadata"]["name"] for each in fleet.nodes(spec("fleet: {nodes: 1000}\n"), VERSION)]
    assert names == sorted(names)
    assert (names[0], names[-1]) == ("fleet-0001", "fleet-1000")


@pytest.mark.parametrize("name", profile_names())
def test_simulated_and_emulated_nodes_carry_the_same_labels(name: str) -> None:
    group = GpuGroup.model_validate({"profile": name, "count": 4})
    assert fleet.gpu_labels(name, 4) == labels.labels(board(parse(node_document(group, "n"))))


@pytest.mark.parametrize(
    ("networking", "blocks"),
    [
        ("", ["10.244.255.0/24"]),
        ("kindConfig: {networking: {podSubnet: 10.0.0.0/20}}\n", ["10.0.15.0/24"]),
        ("kindConfig: {networking: {podSubnet: 10.0.0.0/25}}\n", ["10.0.0.0/25"]),
        ("kindConfig: {networking: {ipFamily: ipv6}}\n", ["fd00:10:244:ff::/64"]),
        ("kindConfig: {networking: {ipFamily: dual}}\n", ["10.244.255.0/24", "fd00:10:244:ff::/64"]),
    ],
)
def test_all_nodes_share_the_last_block_of_the_pod_range(networking: str, blocks: list[str]) -> None:
    for node in fleet.nodes(spec(f"fleet: {{nodes: 2}}\n{networking}"), VERSION):
        assert node["spec"]["podCIDRs"] == blocks
        assert node["spec"]["podCIDR"] == blocks[0]


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("fleet: {nodes: 5001}\n", "fleet.nodes"),
        ("fleet: {nodes: 1, gpu: {profile: h1000, count: 8}}\n", "there is no GPU profile 'h1000'"),
        ("fleet: {nodes: 1, memory: lots}\n", "fleet.memory"),
        ("provider: existing\nexisting: {kubeconfig: a, context: b}\nfleet: {nodes: 1}\n", "takes no `fleet`"),
        ("provider: existing\nexisting: {kubeconfig: a, context: b}\nscheduler: {}\n", "takes no `scheduler`"),
    ],
)
def test_a_fleet_that_cannot_be_is_refused(text: str, says: str) -> None:
    with pytest.raises(UsageError, match="problem") as error:
        spec(text)
    assert says in str(error.value)


def test_the_shipped_fleet_has_two_profiles_of_one_scheduler() -> None:
    shipped = load(paths.catalogue("clusters")[-1] / "fleet.yaml", ClusterSpec).model
    assert shipped.fleet is not None
    given = shipped.scheduler_config or {}
    assert [each["schedulerName"] for each in given["profiles"]] == ["default-scheduler", "bin-packing"]
    assert given["clientConnection"] == {"kubeconfig": "/etc/kubernetes/scheduler.conf", "qps": 1000, "burst": 2000}
    assert given["leaderElection"] == {"leaderElect": False}


def test_the_scheduler_s_file_lies_where_a_scheduler_may_run_and_is_named_to_it() -> None:
    mine = spec("scheduler: {profiles: []}\nkindConfig: {nodes: [{role: control-plane}, {role: worker}]}\n")
    first, second = (node_files.of_node(mine, position) for position in (0, 1))
    (path,) = [path for path in first if path.endswith("scheduler.yaml")]
    assert yaml.safe_load(first[path]) == mine.scheduler_config
    assert not any(each.endswith("scheduler.yaml") for each in second)
    rendered = yaml.safe_load(config.render(mine, image="node", cgroup="2", volumes=["/v/0", "/v/1"]))
    patches = [yaml.safe_load(each) for each in rendered["kubeadmConfigPatches"]]
    named = [each["scheduler"]["extraArgs"].get("config") for each in patches if "scheduler" in each]
    assert f"/var/{path}" in named


def test_a_shape_without_fleet_and_scheduler_gets_no_file_and_no_rates_of_one() -> None:
    patches = [
        yaml.safe_load(each)
        for each in yaml.safe_load(config.render(spec(""), image="node", cgroup="2"))["kubeadmConfigPatches"]
    ]
    assert [
        each["controllerManager"]["extraArgs"]["kube-api-qps"] for each in patches if "controllerManager" in each
    ] == ["200"]
    assert not any(path.endswith("scheduler.yaml") for path in node_files.of_node(spec(""), 0))
    assert shape(spec("")) != shape(spec())


class Api(Kube):
    """An API server as far as a fleet goes: it remembers nodes and DaemonSets."""

    version = VERSION

    def __init__(self, daemons: Objects) -> None:
        self.nodes: dict[str, Object] = {}
        self.daemons = daemons
        self.applied: Objects = []
        self.deleted: set[str] = set()

    def list(self, _: str, kind: str, *__: Any, **___: Any) -> Objects:
        return list(self.nodes.values()) if kind == "Node" else self.daemons if kind == "DaemonSet" else []

    def create(self, thing: Object) -> Object:
        self.nodes[thing["metadata"]["name"]] = thing
        return thing

    def apply(self, objects: Any) -> Objects:
        self.applied += copy.deepcopy(list(objects))
        return self.applied

    def path(self, thing: Object, *, collection: bool = False) -> str:
        return str(thing["metadata"]["name"]) if not collection else ""

    def request(self, method: str, path: str, *_: Any, **__: Any) -> Any:
        self.deleted.add(f"{method} {path}")
        self.nodes.pop(path, None)

    def patch(self, _: str, __: str, name: str, change: Object, namespace: str | None = None) -> Object:
        own = next(each for each in self.daemons if each["metadata"] == {"name": name, "namespace": namespace})
        own["spec"]["template"]["spec"].update(change["spec"]["template"]["spec"])
        return own


def daemons(**template: Any) -> Object:
    return {"metadata": {"name": "d", "namespace": "kube-system"}, "spec": {"template": {"spec": template}}}


def make(api: Api, wanted: ClusterSpec) -> None:
    fleet.apply(api, wanted, addons.manifests("kwok"), {"kwok": "ref"})


def test_making_a_fleet_twice_makes_nothing_anew() -> None:
    api = Api([])
    make(api, spec())
    before = copy.deepcopy(api.nodes)
    make(api, spec())
    assert api.nodes == before
    assert not api.deleted
    deployment = next(each for each in api.applied if each["kind"] == "Deployment")
    assert deployment["spec"]["template"]["spec"]["containers"][0]["image"] == "ref"


def test_a_smaller_or_another_fleet_removes_what_does_not_belong_to_it() -> None:
    api = Api([])
    make(api, spec())
    make(api, spec("fleet: {nodes: 2, zones: 2, gpu: {profile: h100, count: 8}}\n"))
    assert sorted(api.nodes) == ["fleet-1", "fleet-2"]
    make(api, spec("fleet: {nodes: 2, cpu: 8}\n"))
    assert {each["status"]["capacity"]["cpu"] for each in api.nodes.values()} == {"8"}
    make(api, spec(""))
    assert not api.nodes
    assert "DELETE /api/v1/namespaces/kwok-system" in api.deleted


def test_daemons_that_tolerate_everything_are_kept_on_machines_whatever_else_they_ask_for() -> None:
    term = {"matchExpressions": [{"key": "a", "operator": "Exists"}]}
    required = {"requiredDuringSchedulingIgnoredDuringExecution": {"nodeSelectorTerms": [term]}}
    everywhere = daemons(tolerations=[{"operator": "Exists"}], affinity={"nodeAffinity": required})
    modest = daemons(tolerations=[{"key": "x", "operator": "Exists"}])
    api = Api([everywhere, modest])
    make(api, spec())
    make(api, spec())
    affinity = everywhere["spec"]["template"]["spec"]["affinity"]["nodeAffinity"]
    expressions = affinity["requiredDuringSchedulingIgnoredDuringExecution"]["nodeSelectorTerms"][0]["matchExpressions"]
    assert expressions == [
        {"key": "a", "operator": "Exists"},
        {"key": "kwok.x-k8s.io/node", "operator": "DoesNotExist"},
    ]
    assert "affinity" not in modest["spec"]["template"]["spec"]


@pytest.mark.parametrize(
    ("ready", "taints", "fit"),
    [
        ("True", ["kwok.x-k8s.io/node"], True),
        ("False", [], False),
        ("True", ["node.kubernetes.io/not-ready"], False),
    ],
)
def test_a_node_takes_pods_when_it_is_ready_and_the_node_controller_has_seen_it(
    ready: str, taints: list[str], fit: bool
) -> None:
    node = {
        "spec": {"taints": [{"key": key} for key in taints]},
        "status": {"conditions": [{"type": "Ready", "status": ready}]},
    }
    assert fleet.takes_pods(node) is fit


def test_kwok_may_do_no_more_than_it_has_to() -> None:
    for thing in addons.manifests("kwok"):
        for rule in thing.get("rules", []):
            assert "*" not in [*rule["apiGroups"], *rule["resources"], *rule["verbs"]]
            assert "secrets" not in rule["resources"]


def lease(name: str, renewed: str) -> Object:
    return {"metadata": {"name": name}, "spec": {"renewTime": renewed}}


class Leases(Api):
    """Leases that kwok takes over, once those of an earlier one are gone."""

    def __init__(self, leases: Objects) -> None:
        super().__init__([])
        self.leases = leases

    def list(self, _: str, kind: str, *__: Any, **___: Any) -> Objects:
        started = {"state": {"running": {"startedAt": "2026-01-01T10:00:00Z"}}}
        known: dict[str, Objects] = {
            "Pod": [{"status": {"containerStatuses": [started]}}],
            "Lease": self.leases,
            "Node": [{"metadata": {"name": each["metadata"]["name"]}} for each in self.leases],
        }
        return known.get(kind, [])

    def request(self, method: str, path: str, *_: Any, **__: Any) -> Any:
        super().request(method, path)
        renewed = [lease(path.rpartition("/")[2], "2026-01-01T10:00:05.0Z")]
        self.leases = [each for each in self.leases if not path.endswith(each["metadata"]["name"])] + renewed


def test_leases_that_an_earlier_kwok_held_are_dropped_and_those_of_the_one_that_runs_are_not() -> None:
    api = Leases([lease("fleet-1", "2026-01-01T09:59:59.9Z"), lease("fleet-2", "2026-01-01T10:00:00.4Z")])
    fleet._take_over(api, 2)
    assert api.deleted == {"DELETE /apis/coordination.k8s.io/v1/namespaces/kube-node-lease/leases/fleet-1"}
