"""The reset of a cluster: what each step asks for, and that only a look which finds nothing ends it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from types import SimpleNamespace
from typing import Any, cast

import pytest

from sandbox.cluster import clean, containers, guard, renewing, traces
from sandbox.cluster.clean import Clean
from sandbox.cluster.reset import Proven, Unclean, api, machines, reset, resetting
from sandbox.cluster.reset.turn import Memory, Turn
from sandbox.errors import ClusterError, UsageError
from sandbox.kube import inventory, namespaces
from sandbox.kube.inventory import Inventory

Json = dict[str, Any]


class Node:
    name = "n1"


NODE = cast("Any", Node())


class Api:
    """Notes what is asked of it; holds what can be listed."""

    def __init__(self) -> None:
        self.asked: list[tuple[str, str, Any]] = []
        self.held: dict[str, list[Json]] = {}

    def request(self, method: str, path: str, body: Any = None, headers: Any = None) -> None:
        assert (method == "PATCH") == bool(headers)
        self.asked.append((method, path, body))

    def path(self, thing: Json, *, collection: bool = False) -> str:
        return thing["kind"] if collection else inventory.name_of(thing).partition("/")[2]

    def list(self, _: str, kind: str) -> list[Json]:
        return self.held.get(kind, [])


def a(kind: str, name: str, space: str = "", *, api: str = "v1", **rest: Any) -> Json:
    metadata = {"name": name, "uid": f"u-{name}", **({"namespace": space} if space else {}), **rest.pop("metadata", {})}
    return {"apiVersion": api, "kind": kind, "metadata": metadata, **rest}


def turn(
    before: list[str] | None = None, now: list[str] | None = None, held: list[Json] | None = None,
    there: list[Json] | None = None, number: int = 1,
) -> Turn:  # fmt: skip
    """A turn whose looks are taken: lines of a node, and objects, before and now."""
    bodies = {inventory.name_of(each): each for each in held or []}
    was = Clean("solo", 0.0, inventory.of(bodies.values()), {"n1": before or []}, bodies)
    made = Turn(
        cast("Any", SimpleNamespace(name="solo")), was, cast("Any", Api()), [cast("Any", NODE)], number, Memory()
    )
    looks = {
        "traces": {"n1": now or []},
        "objects": {inventory.name_of(each): each for each in there or []},
        "events": [],
    }
    vars(made).update(looks)
    return made


@pytest.fixture
def ran(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The commands that were run in a node."""
    done: list[str] = []
    monkeypatch.setattr(containers, "run", lambda _, command: (done.append(" ".join(command)), (0, ""))[1])
    return done


MACHINES: dict[str, tuple[Callable[[Turn], None], list[str], list[str], list[str]]] = {
    "a rule that came, not one that was there": (
        machines.packet_filter,
        ["iptables filter -A INPUT -j DROP"],
        ["iptables filter -A INPUT -j DROP", 'iptables nat -A OUTPUT -m comment --comment "a b" -j LOG'],
        ["iptables --wait --table nat -D OUTPUT -m comment --comment a b -j LOG"],
    ),
    "a chain after the rules that lead to it": (
        machines.packet_filter,
        [],
        ["ip6tables filter -N LEFT", "ip6tables filter -A INPUT -j LEFT"],
        ["ip6tables --wait --table filter -D INPUT -j LEFT", "ip6tables --wait --table filter -X LEFT"],
    ),
    "a policy": (
        machines.packet_filter,
        ["iptables filter -P FORWARD ACCEPT", "iptables filter -P INPUT DROP"],
        ["iptables filter -P FORWARD DROP", "iptables filter -P INPUT DROP"],
        ["iptables --wait --table filter -P FORWARD ACCEPT"],
    ),
    "a table": (machines.packet_filter, ["table ip a"], ["table ip a", "table ip b"], ["nft delete table ip b"]),
    "a delay": (
        machines.traffic_control,
        ["qdisc of noqueue 0: dev eth0 root"],
        ["qdisc of netem 8001: dev eth0 root limit 1000 delay 100ms"],
        ["tc qdisc del dev eth0 root"],
    ),
    "a filter at the way in": (
        machines.traffic_control,
        [],
        ["qdisc of ingress ffff: dev eth0 parent ffff:fff1 ----------------"],
        ["tc qdisc del dev eth0 ingress"],
    ),
    "an interface, an address, a route": (
        machines.addresses,
        [],
        ["link left0", "address of lo inet 192.0.2.1/24", "route blackhole 192.0.2.9 linkdown"],
        ["ip link del left0", "ip address del 192.0.2.1/24 dev lo", "ip route del blackhole 192.0.2.9"],
    ),
    "a frozen group": (
        machines.stopped,
        [],
        ["frozen /sys/fs/cgroup/freezer/x"],
        ['sh -c echo THAWED >"$0" /sys/fs/cgroup/freezer/x/freezer.state'],
    ),
    "folders with what is in them; what was there and changed is left": (
        machines.files,
        ["file 644 1 1.0 /etc/hosts"],
        ["file 644 9 2.0 /etc/hosts", "folder 755 0 0 /left", "file 644 1 1.0 /left/a b", "file 644 1 1.0 /etc/c d"],
        ["rm -rf --one-file-system -- /etc/c d /left"],
    ),
}  # fmt: skip


@pytest.mark.parametrize("what", MACHINES)
def test_what_came_to_a_node_is_removed_and_nothing_else(ran: list[str], what: str) -> None:
    step, before, now, commands = MACHINES[what]
    step(turn(before, now))
    assert ran == commands
    ran.clear()
    step(turn(now, now))
    assert ran == []


def test_of_processes_of_one_name_the_latest_are_ended_first_in_order_then_by_force(
    ran: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(traces, "processes", lambda _: [("bash", 1, 11), ("sleep", 2, 12), ("bash", 3, 13)])
    now = ["process bash", "process bash", "process sleep", "stopped process bash"]
    for number in (1, 2):
        machines.processes(turn(["process bash"], now, number=number))
    assert [sorted(command.split()) for command in ran] == [
        ["-TERM", "12", "13", "kill"],
        ["-KILL", "12", "13", "kill"],
    ]


def test_processes_are_told_with_their_start_and_the_oldest_first(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(containers, "run", lambda *_: (0, "tmux: server 900 7\nbash 8 100\n"))
    assert traces.processes(NODE) == [("bash", 8, 100), ("tmux: server", 900, 7)]
    monkeypatch.setattr(containers, "run", lambda *_: (1, "paused"))
    with pytest.raises(ClusterError, match="does not tell its processes"):
        traces.processes(NODE)


SETTINGS = a("ConfigMap", "settings", "x", data={"a": "1"}, metadata={"annotations": {"note": "1"}})
MACHINE = a("Node", "n1", status={"allocatable": {"cpu": "2", "nvidia.com/gpu": "8"}}, spec={})


def test_what_was_changed_is_put_back_and_keeps_what_controllers_note() -> None:
    noted = {"annotations": {"deployment.kubernetes.io/revision": "3", "other": "2"}, "resourceVersion": "7"}
    made = turn(held=[SETTINGS], there=[a("ConfigMap", "settings", "x", data={}, metadata=noted)])
    api.put_back(made)
    ((method, path, body),) = cast("Any", made.kube).asked
    assert (method, path, body["data"]) == ("PUT", "ConfigMap x/settings", {"a": "1"})
    assert body["metadata"] == {
        "name": "settings",
        "namespace": "x",
        "resourceVersion": "7",
        "annotations": {"note": "1", "deployment.kubernetes.io/revision": "3"},
    }


def test_what_a_node_offers_is_put_back_in_its_status() -> None:
    offers = {"allocatable": {"cpu": "2", "nvidia.com/gpu": "7", "left/x": "1"}}
    made = turn(held=[MACHINE], there=[a("Node", "n1", status=offers, spec={}, metadata={"resourceVersion": "1"})])
    api.put_back(made)
    method, path, body = cast("Any", made.kube).asked[-1]
    assert (method, path) == ("PATCH", "Node n1/status")
    assert body["status"]["allocatable"] == {"nvidia.com/gpu": "8", "left/x": None}


def test_another_object_of_that_name_is_not_taken_for_the_one_of_before() -> None:
    made = turn(held=[SETTINGS], there=[{**SETTINGS, "metadata": {**SETTINGS["metadata"], "uid": "other"}}])
    api.put_back(made)
    assert cast("Any", made.kube).asked == []
    words = clean.difference(made.clean, [*made.objects.values()], {"n1": []})
    assert words == ["changed: v1/ConfigMap x/settings: it is another one of that name"]


def test_what_went_is_made_anew_and_counts_as_the_same_only_if_it_is() -> None:
    made = turn(held=[SETTINGS, a("Pod", "p", "x", metadata={"ownerReferences": [{"uid": "1"}]})])
    api.put_back(made)
    asked = cast("Any", made.kube).asked
    assert [(method, path) for method, path, _ in asked] == [("POST", "ConfigMap")]
    assert "uid" not in asked[-1][2]["metadata"]
    again = {**SETTINGS, "metadata": {**SETTINGS["metadata"], "uid": "new"}}
    rest = [a("Pod", "p", "x", metadata={"ownerReferences": [{"uid": "1"}]})]
    assert clean.difference(made.clean, [again, *rest], {"n1": []}, made=made.memory.made) == []
    other = {**again, "data": {"a": "2"}}
    assert clean.difference(made.clean, [other, *rest], {"n1": []}, made=made.memory.made) == [
        "changed: v1/ConfigMap x/settings: data.a"
    ]


CRD = a("CustomResourceDefinition", "ws", api="apiextensions.k8s.io/v1", metadata={"finalizers": ["cleanup"]})
CAME = [
    CRD, a("W", "w", "x", api="left/v1", metadata={"finalizers": ["left"]}), a("Namespace", "left"),
    a("ConfigMap", "inside", "left"), a("PersistentVolume", "pv"), a("ClusterRole", "r", api="rbac/v1"),
]  # fmt: skip


@pytest.mark.parametrize(
    ("step", "asked"),
    [
        (api.finalizers, [("PATCH", "v1/W x/w")]),
        (api.volumes, [("DELETE", "PersistentVolume pv")]),
        (api.objects, [("DELETE", "v1/ClusterRole r"), ("DELETE", "v1/W x/w")]),
        (api.kinds, [("DELETE", "v1/CustomResourceDefinition ws")]),
    ],
    ids=lambda value: getattr(value, "__name__", ""),
)
def test_each_kind_that_came_goes_in_its_step(step: Callable[[Turn], None], asked: list[tuple[str, str]]) -> None:
    made = turn(held=[SETTINGS], there=[SETTINGS, *CAME])
    step(made)
    assert sorted((method, path) for method, path, _ in cast("Any", made.kube).asked) == asked


def test_gates_go_first_but_for_those_that_go_with_their_kind(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(guard, "prove_ours", lambda _: None)
    made = turn(held=[a("ValidatingWebhookConfiguration", "ours", api="admissionregistration.k8s.io/v1")])
    kube = cast("Any", made.kube)
    kube.held = {
        "ValidatingWebhookConfiguration": [
            a("ValidatingWebhookConfiguration", "ours", api="admissionregistration.k8s.io/v1"),
            a("ValidatingWebhookConfiguration", "left", api="admissionregistration.k8s.io/v1"),
        ],
        "APIService": [
            a("APIService", "v1.a", api="apiregistration.k8s.io/v1"),
            a("APIService", "v1.b", api="apiregistration.k8s.io/v1",
              metadata={"labels": {"kube-aggregator.kubernetes.io/automanaged": "true"}}),
        ],
    }  # fmt: skip
    api.gates(made)
    assert [path for _, path, _ in kube.asked] == ["v1/ValidatingWebhookConfiguration left", "v1/APIService v1.a"]


def test_a_cluster_that_is_not_provably_ours_is_asked_for_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    def strange(_: object) -> None:
        raise ClusterError("another UID")

    monkeypatch.setattr(guard, "prove_ours", strange)
    made = turn()
    with pytest.raises(ClusterError):
        api.gates(made)
    assert cast("Any", made.kube).asked == []


def pod(name: str, space: str, *, ready: bool = True) -> Json:
    owner = {"apiVersion": "apps/v1", "kind": "ReplicaSet", "name": "rs", "controller": True}
    conditions = [{"type": "Ready", "status": str(ready)}]
    return a("Pod", name, space, metadata={"ownerReferences": [owner]}, status={"conditions": conditions})


def test_pods_and_events_of_before_are_named_until_they_are_gone_others_pods_never() -> None:
    ours = a("Namespace", "ours", metadata={"labels": namespaces.MANAGED_BY})
    made = turn(held=[ours, a("Namespace", "kube-system")], there=[pod("p", "ours"), pod("q", "kube-system")])
    vars(made)["events"] = [a("Event", "e", "kube-system"), a("Event", "f", "kube-system")]
    assert api.left(made) == ["of before: v1/Pod ours/p", "of before: 2 events in kube-system"]
    api.pods(made)
    api.events(made)
    assert [(method, path) for method, path, _ in cast("Any", made.kube).asked] == [
        ("DELETE", "Pod ours/p"),
        ("DELETE", "/api/v1/namespaces/kube-system/events"),
    ]
    later = replace(made, number=2)
    new = [pod("new", "ours", ready=False), pod("q", "kube-system")]
    vars(later).update(objects={inventory.name_of(each): each for each in new}, events=[a("Event", "g", "x")])
    assert api.left(later) == ["not Ready: v1/Pod ours/new"]


@pytest.fixture
def looks(monkeypatch: pytest.MonkeyPatch) -> list[list[Json] | ClusterError]:
    """What the next looks at a cluster find that was clean when it was empty; the last one for ever."""
    found: list[list[Json] | ClusterError] = [[]]

    def everything(_: object) -> list[Json]:
        now = found.pop(0) if len(found) > 1 else found[0]
        if isinstance(now, ClusterError):
            raise now
        return now

    monkeypatch.setattr(resetting, "STEPS", ())
    monkeypatch.setattr(resetting, "client", lambda: None)
    monkeypatch.setattr(containers, "nodes", lambda *_: ())
    monkeypatch.setattr(inventory, "everything", everything)
    monkeypatch.setattr(traces, "take", lambda _: {})
    monkeypatch.setattr(resetting.Kube, "connect", lambda *_: Api())
    return found


EMPTY = Clean("solo", 5.0, Inventory({}), {}, {}, ["80/v1"], "solo")
ONE = cast("Any", SimpleNamespace(name="solo", kubeconfig=None, context=""))


def test_a_clean_cluster_is_proven_by_one_look(looks: list[list[Json] | ClusterError]) -> None:
    assert reset(ONE, EMPTY) == Proven([], EMPTY)


def test_what_was_found_first_is_told_once_a_later_look_finds_nothing(looks: list[list[Json] | ClusterError]) -> None:
    looks[:] = [ClusterError("a kind went"), [a("ConfigMap", "m", "x")], []]
    assert reset(ONE, EMPTY).found == ["there since: v1/ConfigMap x/m"]


@pytest.mark.parametrize("stays", [[a("ConfigMap", "m", "x")], ClusterError("v1/ConfigMap x/m cannot be listed")])
def test_what_stays_or_cannot_be_seen_is_unclean_and_named(
    looks: list[list[Json] | ClusterError], stays: list[Json] | ClusterError
) -> None:
    looks[:] = [stays]
    with pytest.raises(Unclean, match="could not be reset") as told:
        reset(ONE, EMPTY, within=0.1)
    assert "v1/ConfigMap x/m" in told.value.details[0]


def test_what_no_step_can_help_is_given_up_soon_but_not_while_pods_are_on_their_way(
    looks: list[list[Json] | ClusterError], monkeypatch: pytest.MonkeyPatch
) -> None:
    looks[:] = [[a("ConfigMap", "m", "x")]]
    monkeypatch.setattr(resetting, "_SAME_SECONDS", 0.0)
    with pytest.raises(Unclean, match="v1/ConfigMap x/m"):
        reset(ONE, EMPTY)
    seen: list[int] = []

    def on_their_way(turn: Turn) -> list[str]:
        seen.append(turn.number)
        return ["not Ready: a pod"]

    monkeypatch.setattr(api, "left", on_their_way)
    with pytest.raises(Unclean, match="not Ready: a pod"):
        reset(ONE, EMPTY, within=2)
    assert len(seen) > resetting._SAME_LOOKS + 1


@pytest.mark.parametrize("now", [[], [a("Namespace", "x", metadata={"uid": "other"})]])
def test_a_cluster_that_lost_a_namespace_is_given_up_at_once(
    looks: list[list[Json] | ClusterError], now: list[Json]
) -> None:
    space = a("Namespace", "x")
    looks[:] = [now]
    with pytest.raises(Unclean, match="v1/Namespace x"):
        reset(ONE, replace(EMPTY, inventory=inventory.of([space]), bodies={"v1/Namespace x": space}))


@pytest.mark.parametrize("fails", [False, True])
def test_a_cluster_that_cannot_be_proven_clean_is_replaced(
    tmp_path: Any, monkeypatch: pytest.MonkeyPatch, fails: bool
) -> None:
    monkeypatch.setenv("SANDBOX_STATE_DIR", str(tmp_path))
    (tmp_path / "clusters/solo").mkdir(parents=True)
    done: list[str] = []

    def resetting_it(*_: object) -> Proven:
        if fails:
            raise Unclean("not as it was", where="solo", details=["a rule"])
        return Proven(["a rule"], EMPTY)

    known = SimpleNamespace(name="solo", provider="kind")
    monkeypatch.setattr(renewing.record, "get", lambda _: known)
    monkeypatch.setattr(renewing, "reset", resetting_it)
    monkeypatch.setattr(renewing, "_replace", lambda each: done.append(each.name))
    with pytest.raises(ClusterError, match="not known what it held"):
        renewing.renew("solo")
    clean.write("solo", EMPTY)
    assert renewing.renew("solo") == renewing.Renewed("solo", "replaced" if fails else "reset", ["a rule"])
    assert done == ["solo"] * fails
    assert clean.read("solo") == EMPTY
    known.provider = "existing"
    with pytest.raises(UsageError):
        renewing.renew("solo")
