"""Snapshots: their files, which of them fit, which way a cluster comes, and which of them stay."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest

from sandbox.cluster import fetching, making, record, snapshots
from sandbox.cluster.making import Order
from sandbox.cluster.record import Cluster, Origin
from sandbox.cluster.snapshots import Snapshot, ground, keeping, restoring, saving, store
from sandbox.errors import ClusterError, UsageError
from sandbox.spec.base import Metadata
from sandbox.spec.cluster import ClusterSpec
from tests.unit.container_engine import SPEC, FakeEngine, installed, put

DAY = 86400.0
NODE: dict[str, Any] = {
    "suffix": "-control-plane", "role": "control-plane", "name": "solo-control-plane", "image": "sha256:1",
    "volume": "v1", "serial": "s1", "fingerprint": "f1", "container": {"Config": {}, "HostConfig": {}},
}  # fmt: skip
GROUND = {"engine": "one", "kernel": "6.1"}


@pytest.fixture(autouse=True)
def engine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> FakeEngine:
    monkeypatch.delenv(fetching.SWITCH, raising=False)
    monkeypatch.setattr(ground, "ground", lambda _: dict(GROUND))
    made = installed(tmp_path, monkeypatch)
    monkeypatch.setattr(keeping, "client", lambda: made)
    monkeypatch.setattr(keeping, "clear", lambda *_: [])
    return made


def snapshot(name: str = "mine", **changes: Any) -> Snapshot:
    known: dict[str, Any] = {
        "format": store.FORMAT, "name": name, "key": "", "contents": "solo", "created": time.time(), "cluster": "solo",
        "spec": SPEC.model_dump(mode="json", by_alias=True), "image": "node:1", "images": [], "uid": "u-1",
        "ground": GROUND, "ready": [], "kubeconfig": "apiVersion: v1\n", "nodes": [NODE],
    }  # fmt: skip
    return Snapshot(**(known | changes))


def written(name: str = "mine", **changes: Any) -> Snapshot:
    made = snapshot(name, **changes)
    store.write(made)
    return made


def test_a_snapshot_is_read_as_it_was_written_and_only_its_owner_reads_it() -> None:
    made = written()
    assert snapshots.load("mine") == made
    assert store.path("mine").stat().st_mode & 0o777 == 0o600
    assert snapshots.names() == ["mine"]
    assert "kubeconfig" not in repr(made)


SPOILED: dict[str, tuple[Callable[[str], str], str]] = {
    "cut": (lambda text: text[: len(text) // 2], "truncated"),
    "empty": (lambda _: "", "truncated"),
    "of another kind": (lambda _: "seal\n[1, 2]", "truncated"),
    "altered": (lambda text: text.replace("u-1", "u-2"), "altered"),
    "of another version": (lambda text: text.replace('"format": 1', '"format": 2'), "format 2; this version reads 1"),
}


@pytest.mark.parametrize("how", SPOILED)
def test_a_file_that_is_not_what_was_written_is_refused_in_words(how: str) -> None:
    written()
    spoil, words = SPOILED[how]
    store.path("mine").write_text(spoil(store.path("mine").read_text()))
    with pytest.raises(ClusterError, match=words) as told:
        snapshots.load("mine")
    assert told.value.fix == "sandbox snapshot remove mine"
    assert snapshots.get("mine") is None


def test_a_file_whose_seal_is_right_and_whose_content_is_not_is_refused() -> None:
    written()
    body = json.dumps({"format": store.FORMAT, "name": "mine"})
    store.path("mine").write_text(f"{store._seal(body)}\n{body}")
    with pytest.raises(ClusterError, match="cannot be read"):
        snapshots.load("mine")


def test_a_name_that_is_none_or_is_not_there_is_told_with_those_there_are() -> None:
    written()
    with pytest.raises(UsageError, match="no such snapshot") as told:
        snapshots.load("other")
    assert told.value.fix == "use one of: mine"
    with pytest.raises(UsageError, match="no name"):
        snapshots.load("../mine")


@pytest.mark.parametrize(
    ("changes", "why"),
    [
        ({}, ""),
        ({"ground": {**GROUND, "kernel": "5.0"}}, "made with kernel 5.0, here is 6.1"),
        ({"ground": {**GROUND, "engine": "two"}}, "made with other engine"),
        ({"created": 1.0}, "days old"),
        ({"created": time.time() + 3600}, "made later than now"),
        ({"nodes": [NODE | {"volume": "gone"}]}, "volume gone is gone"),
        ({"nodes": [NODE | {"serial": "of an earlier one"}]}, "volume v1 is gone"),
        ({"nodes": [NODE | {"image": "sha256:0"}]}, "image sha256:0 is gone"),
    ],
)
def test_a_snapshot_that_does_not_fit_says_why(changes: dict[str, Any], why: str) -> None:
    def image(identity: str) -> None:
        if identity != "sha256:1":
            raise ground.ImageNotFound("no such image")

    held = SimpleNamespace(attrs={"Labels": {"ai-k8s-sandbox.serial": "s1"}})

    def volume(name: str) -> Any:
        if name != "v1":
            raise ground.volumes.NotFound("no such volume")
        return held

    docker = SimpleNamespace(images=SimpleNamespace(get=image), volumes=SimpleNamespace(get=volume))
    found = ground.misfit(cast("Any", docker), snapshot(**changes))
    assert why in found
    assert bool(found) == bool(why)


def order(**changes: Any) -> Order:
    made = Order(cast("Any", None), SPEC, "solo", None, Path("kind"), "node:1", {}, "2")
    return replace(made, **changes)


@pytest.fixture
def ways(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Which ways were gone, in order; a snapshot called `broken` in words does not come up."""
    gone: list[str] = []

    def cold(ordered: Order) -> Cluster:
        gone.append("cold")
        return put(FakeEngine(), spec=SPEC.model_dump(mode="json", by_alias=True))

    def restore(ordered: Order, found: Snapshot) -> Cluster:
        gone.append(found.contents)
        if "broken" in found.contents:
            raise ClusterError("did not come up", where=found.name)
        return put(FakeEngine(), origin=Origin("snapshot", found.name, found.key))

    def save(cluster: Cluster, name: str, *, key: str, contents: str, held: bool) -> Snapshot:
        gone.append(f"save {contents}{' under the lock' * held}")
        return written(name, key=key, contents=contents)

    monkeypatch.setattr(making, "cold", cold)
    monkeypatch.setattr(snapshots, "restore", restore)
    monkeypatch.setattr(snapshots, "save", save)
    monkeypatch.setattr(fetching, "look", lambda: SimpleNamespace(state="running"))
    monkeypatch.setattr(snapshots, "elsewhere", lambda docker, found: "other engine" * ("theirs" in found.contents))
    return gone


def kept(deployed: dict[str, Any], contents: str) -> str:
    key = fetching.content(SPEC, "node:1", {}, deployed).key
    return written(store.automatic_name(key), key=key, contents=contents).name


SIM = {"vllm-sim": [{"kind": "Deployment"}]}


def test_without_a_snapshot_a_cluster_comes_cold_and_is_kept(ways: list[str]) -> None:
    assert fetching.fetch(order(), SIM).origin == Origin()
    assert ways == ["cold", "save solo under the lock"]
    fetching.fetch(order(), {})
    assert ways[2:] == ["solo"]


def test_a_leased_cluster_gets_the_images_it_was_not_prepared_with(
    ways: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    leased = put(FakeEngine())
    loaded: list[list[str]] = []
    monkeypatch.setattr(fetching.leasing, "lease", lambda *_: leased)
    monkeypatch.setattr(fetching.containers, "nodes", lambda *_: ["node"])
    monkeypatch.setattr(fetching.node_images, "load", lambda nodes, refs: loaded.append(refs))
    assert fetching.fetch(order(load={"toolbox": "toolbox:1"}), {}) is leased
    assert (loaded, ways) == ([["toolbox:1"]], [])


def test_one_with_what_is_asked_for_comes_first_then_the_bare_one(ways: list[str]) -> None:
    kept({}, "bare")
    assert fetching.fetch(order(), SIM).origin.way == "snapshot"
    name = kept(SIM, "with sim")
    assert fetching.fetch(order(), SIM).origin.snapshot == name
    assert fetching.fetch(order(), {"other": []}).origin.snapshot != name
    assert ways == ["bare", "with sim", "bare"]


def test_one_that_does_not_come_up_is_removed_and_the_next_way_is_gone(
    ways: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    kept(SIM, "broken sim")
    kept({}, "broken bare")
    assert fetching.fetch(order(), SIM).origin == Origin()
    assert ways == ["broken sim", "broken bare", "cold", "save solo under the lock"]
    assert "did not come up" in capsys.readouterr().err
    fetching.fetch(order(), SIM)
    assert ways[4:] == ["solo"]


def test_one_whose_copy_the_engine_took_with_it_stays(ways: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    name = kept({}, "broken bare")
    monkeypatch.setattr(fetching, "look", lambda: SimpleNamespace(state="stopped"))
    with pytest.raises(ClusterError, match="did not come up"):
        fetching.fetch(order(), {})
    assert ways == ["broken bare"]
    assert snapshots.get(name) is not None


def test_one_of_another_engine_is_passed_over_with_a_word_and_kept(
    ways: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    theirs = kept(SIM, "theirs")
    kept({}, "bare")
    fetching.fetch(order(), SIM)
    assert ways == ["bare"]
    assert f"not from snapshot {theirs}: other engine" in capsys.readouterr().err
    assert snapshots.get(theirs) is not None


def test_cold_means_no_snapshot_is_used_and_none_kept(ways: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    kept({}, "bare")
    fetching.fetch(order(), {}, cold=True)
    monkeypatch.setenv(fetching.SWITCH, "off")
    fetching.fetch(order(), {})
    several = ClusterSpec(kind="Cluster", metadata=Metadata(name="ha", description="."), kindConfig={"nodes": [{}, {}]})
    monkeypatch.setenv(fetching.SWITCH, "on")
    fetching.fetch(order(spec=several), {})
    assert ways == ["cold"] * 3
    monkeypatch.setenv(fetching.SWITCH, "no")
    with pytest.raises(UsageError, match="is 'no'"):
        fetching.fetch(order(), {})


def test_that_one_could_not_be_kept_is_said_and_stops_nothing(
    ways: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def save(*_: object, **__: object) -> None:
        raise ClusterError("no space left")

    monkeypatch.setattr(snapshots, "save", save)
    assert fetching.fetch(order(), {}).origin == Origin()
    assert "no snapshot is kept of it: no space left" in capsys.readouterr().err


CHANGED: dict[str, Callable[[], str]] = {
    "the node image": lambda: fetching.content(SPEC, "node:2", {}, {}).key,
    "a value of the cluster's file": lambda: (
        fetching.content(
            SPEC.model_copy(update={"kind_config": {"networking": {"podSubnet": "10.1.0.0/16"}}}), "node:1", {}, {}
        ).key
    ),
    "an addon": lambda: (
        fetching.content(
            SPEC.model_copy(update={"addons": SPEC.addons.model_copy(update={"metrics_server": False})}),
            "node:1",
            {},
            {},
        ).key
    ),
    "an image in the nodes": lambda: (
        fetching.content(SPEC.model_copy(update={"images": ["toolbox"]}), "node:1", {"toolbox": "toolbox:1"}, {}).key
    ),
    "its name": lambda: (
        fetching.content(
            SPEC.model_copy(update={"metadata": Metadata(name="other", description=".")}), "node:1", {}, {}
        ).key
    ),
    "what is deployed": lambda: fetching.content(SPEC, "node:1", {}, SIM).key,
    "a value of what is deployed": lambda: fetching.content(SPEC, "node:1", {}, {"vllm-sim": [{"replicas": 2}]}).key,
}


def test_every_change_of_what_is_in_it_makes_another_key_and_a_description_does_not() -> None:
    plain = fetching.content(SPEC, "node:1", {"toolbox": "toolbox:1"}, {}).key
    keys = [make() for make in CHANGED.values()]
    assert len({plain, *keys}) == len(CHANGED) + 1
    told = SPEC.model_copy(update={"metadata": Metadata(name="solo", description="Other words.")})
    assert fetching.content(told, "node:1", {}, {}).key == plain


def test_the_longest_unused_automatic_ones_go_and_those_that_were_asked_for_stay(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(keeping, "MOST_AUTOMATIC", 2)
    written("mine")
    os.utime(store.path("mine"), (1, 1))
    for age, name in enumerate(["auto-a", "auto-b", "auto-c", "auto-d"]):
        written(name, key=name)
        then = time.time() - (20 * DAY if name == "auto-b" else age)
        os.utime(store.path(name), (then, then))
    assert sorted(snapshots.trim()) == ["auto-b", "auto-d"]
    assert snapshots.names() == ["auto-a", "auto-c", "mine"]
    store.touch("auto-c")
    assert store.used("auto-c") > time.time() - 60


@pytest.mark.parametrize(
    ("changes", "why"),
    [
        ({"provider": "existing"}, "existing cluster cannot be saved"),
        ({"spec": {}}, "older version"),
        ({"spec": {"kind": "Cluster", "metadata": {"name": "ha", "description": "."},
                   "kindConfig": {"nodes": [{}, {}]}}}, "several control planes"),
    ],
)  # fmt: skip
def test_what_cannot_be_saved_says_why(engine: FakeEngine, changes: dict[str, Any], why: str) -> None:
    known = put(engine, **({"spec": SPEC.model_dump(mode="json", by_alias=True)} | changes))
    with pytest.raises(UsageError, match=why):
        saving.refuse(known, "mine")


def test_the_record_keeps_how_a_cluster_came(engine: FakeEngine) -> None:
    known = put(engine, origin=Origin("snapshot", "mine", "abc"), spec={"kind": "Cluster"}, images=("a:1",))
    assert record.get("solo") == known
    assert known.origin.words == "from snapshot mine"
    assert put(engine).origin.words == "cold"


@pytest.mark.parametrize(
    ("bind", "moved"),
    [
        ("/old/v1/_data:/var", "/new/v2/_data:/var"),
        (
            "/old/v1/_data/lib/ai-k8s-sandbox/containerd.service.d:/etc/systemd/system/containerd.service.d:ro",
            "/new/v2/_data/lib/ai-k8s-sandbox/containerd.service.d:/etc/systemd/system/containerd.service.d:ro",
        ),
        ("/lib/modules:/lib/modules:ro", "/lib/modules:/lib/modules:ro"),
        ("/data:/var/data", "/data:/var/data"),
    ],
)
def test_only_the_binds_of_its_volume_move(bind: str, moved: str) -> None:
    assert restoring._moved(bind, "/new/v2/_data") == moved


def test_ports_that_the_clusters_file_names_stay_and_the_rest_are_free_ones() -> None:
    nodes = [{"role": "control-plane", "extraPortMappings": [{"containerPort": 80, "hostPort": 8080}]}]
    mine = SPEC.model_copy(update={"kind_config": {"nodes": nodes}})
    bindings = {"80/tcp": [{"HostIp": "", "HostPort": "8080"}], "6443/tcp": [{"HostIp": "127.0.0.1", "HostPort": "41"}]}
    found = restoring._ports(order(spec=mine), bindings)
    assert found["80/tcp"] == [{"HostIp": "", "HostPort": "8080"}]
    (api,) = found["6443/tcp"]
    assert (api["HostIp"], int(api["HostPort"]) > 1023) == ("127.0.0.1", True)  # named, so that it outlives a restart


def pod(**changes: Any) -> dict[str, Any]:
    running = {"running": {"startedAt": "2026-01-01T00:01:00Z"}}
    made: dict[str, Any] = {
        "metadata": {"name": "app", "uid": "u", "labels": {}}, "spec": {"nodeName": "solo-control-plane"},
        "status": {"conditions": [{"type": "Ready", "status": "True"}], "containerStatuses": [{"state": running}]},
    }  # fmt: skip
    return {key: made[key] | changes.get(key, {}) for key in made}


BEFORE, AFTER = "2026-01-01T00:00:30Z", "2026-01-01T00:01:30Z"
OLD = {"containerStatuses": [{"state": {"running": {"startedAt": "2026-01-01T00:00:00Z"}}}]}


RULES = """
-A KUBE-SERVICES -d 10.96.0.10/32 -p udp -m comment --comment "kube-system/kube-dns:dns has no endpoints" -j REJECT
-A KUBE-EXTERNAL-SERVICES -p tcp -m comment --comment "inference/vllm-sim has no endpoints" -m addrtype -j REJECT
-A KUBE-SERVICES -d 10.96.7.7/32 -p tcp -m comment --comment "mine/idle:http has no endpoints" -j REJECT
-A KUBE-FORWARD -m comment --comment "kubernetes forwarding rules" -j ACCEPT
"""


def test_a_service_that_is_refused_on_a_node_though_pods_stand_behind_it_is_waited_for(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def pod(space: str, uid: str, **labels: str) -> dict[str, Any]:
        metadata = {"name": uid, "namespace": space, "uid": uid, "labels": labels}
        return {"metadata": metadata, "spec": {"nodeName": "solo-control-plane"}, "status": {}}

    def service(space: str, name: str, **selector: str) -> dict[str, Any]:
        return {"metadata": {"name": name, "namespace": space}, "spec": {"selector": selector or None}}

    held = {
        "Pod": [
            pod("inference", "1", app="sim", tier="a"),
            pod("kube-system", "2", app="dns"),
            pod("mine", "3", app="x"),
        ],
        "Service": [
            service("inference", "vllm-sim", app="sim"),
            service("kube-system", "kube-dns", app="dns"),
            service("mine", "idle", app="idle"),
            service("inference", "elsewhere", app="dns"),
            service("default", "kubernetes"),
        ],
    }
    kube = SimpleNamespace(list=lambda version, kind: held[kind])
    served = restoring._served(cast("Any", kube), ["solo-control-plane"], ["1", "2", "3"])
    assert served == {"inference/vllm-sim", "kube-system/kube-dns"}
    rules = [RULES]
    node = SimpleNamespace(name="solo-control-plane")
    monkeypatch.setattr(restoring.containers, "nodes", lambda *_: (node,))
    monkeypatch.setattr(restoring.containers, "run", lambda _, command: (0, rules[0] if "filter" in command else ""))
    seen = restoring._led(order(), served)
    assert not seen.done
    assert "inference/vllm-sim" in seen.saw
    assert "kube-system/kube-dns" in seen.saw
    assert "idle" not in seen.saw
    rules[0] = "-A KUBE-FORWARD -j ACCEPT"
    assert restoring._led(order(), served).done


@pytest.mark.parametrize(
    ("changes", "done"),
    [
        ({}, True),
        ({"status": OLD}, False),
        ({"status": {"containerStatuses": [{"state": {"waiting": {}}}]}}, False),
        ({"status": {"containerStatuses": []}}, False),
        ({"status": {"conditions": [{"type": "Ready", "status": "False"}]}}, False),
        ({"status": OLD, "metadata": {"uid": "made since"}}, True),
        ({"status": OLD, "metadata": {"deletionTimestamp": AFTER}}, True),
        ({"status": OLD, "metadata": {"annotations": {saving.MIRROR: "x"}}}, True),
        ({"status": OLD, "metadata": {"labels": {"k8s-app": "metrics-server"}}}, True),
        ({"status": OLD, "spec": {"nodeName": "a-simulated-one"}}, True),
    ],
)
def test_a_pod_runs_again_only_once_the_api_server_tells_of_now(changes: dict[str, Any], done: bool) -> None:
    since = restoring.seconds(BEFORE)
    condition = restoring._run_again(cast("Any", None), ["solo-control-plane"], ["u"], since=since)
    assert condition.judge([pod(**changes)]).done is done


@pytest.mark.parametrize(
    ("told", "ready", "done"), [(AFTER, "True", True), (AFTER, "False", False), ("2025-01-01T00:00:00Z", "True", False)]
)
def test_a_node_is_believed_only_once_it_told_its_state_again(told: str, ready: str, done: bool) -> None:
    state = {"type": "Ready", "status": ready, "lastHeartbeatTime": told}
    condition = restoring._heard_of(cast("Any", None), ["n"], since=restoring.seconds(BEFORE))
    assert condition.judge([{"metadata": {"name": "n"}, "status": {"conditions": [state]}}]).done is done
    assert not condition.judge([]).done
