"""One solo cluster, through its whole life."""

from __future__ import annotations

import json
import os
import stat
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from sandbox import cluster, images, paths
from sandbox.cluster import Cluster, Owner, containers, node_images, nodes, ownership, record
from sandbox.errors import ClusterError, NotOurs, UsageError
from sandbox.host.engine import client
from sandbox.kube import Kube, Seen, wait_for
from sandbox.kube.conditions import nodes_ready, renewed
from sandbox.spec import load
from sandbox.spec.cluster import ClusterSpec, Existing

pytestmark = pytest.mark.live

NAME = f"live-solo-{os.getpid()}"
SOLO = load(paths.catalogue("clusters")[0] / "solo.yaml", ClusterSpec).model


def in_engine(name: str) -> list[str]:
    """Everything of that name the engine holds, recorded or not."""
    docker = client()
    labelled = {"label": f"{ownership.KIND_LABEL}={name}"}
    found = docker.containers.list(all=True, ignore_removed=True, filters=labelled)
    networks = docker.networks.list(filters={"label": f"{ownership.CLUSTER_LABEL}={name}"})
    return [str(each.name) for each in found] + [str(each.name) for each in networks]


@pytest.fixture(scope="module")
def toolbox() -> str:
    return images.ensure(["toolbox"])["toolbox"].ref


@pytest.fixture(scope="module")
def users_config(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A user's kubeconfig with a current context, as KUBECONFIG points to."""
    path = tmp_path_factory.mktemp("home") / "config"
    path.write_text("current-context: production\n")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("KUBECONFIG", str(path))
        yield path


@pytest.fixture(scope="module")
def solo(users_config: Path) -> Iterator[Cluster]:
    yield cluster.up(SOLO, name=NAME, app_images=["toolbox"], owner=Owner.me())
    cluster.down(NAME)
    assert in_engine(NAME) == []
    assert record.find(NAME) is None
    assert users_config.read_text() == "current-context: production\n"


def test_the_kubeconfig_is_its_own_and_nobody_elses(solo: Cluster, users_config: Path) -> None:
    assert stat.S_IMODE(solo.kubeconfig.stat().st_mode) == 0o600
    assert solo.kubeconfig.is_relative_to(paths.state_dir())
    assert users_config.read_text() == "current-context: production\n"
    cluster.prove_ours(solo)


def test_up_again_returns_the_one_that_runs(solo: Cluster) -> None:
    again = cluster.up(SOLO, name=NAME, app_images=["toolbox"])
    assert (again.uid, again.nodes) == (solo.uid, solo.nodes)


def test_another_shape_under_the_same_name_is_refused(solo: Cluster) -> None:
    other = SOLO.model_copy(update={"kind_config": {"nodes": [{"role": "control-plane"}, {"role": "worker"}]}})
    with pytest.raises(UsageError, match="another shape"):
        cluster.up(other, name=NAME)
    assert cluster.status(NAME).state == "ready"


def test_policy_storage_and_metrics_are_proven(solo: Cluster, toolbox: str) -> None:
    proofs = cluster.prove_all(solo, toolbox)
    assert [proof.detail for proof in proofs if not proof.ok] == []
    assert len(proofs) == 3
    kube = Kube.connect(solo.kubeconfig, solo.context)
    names = [each["metadata"]["name"] for each in kube.list("v1", "Namespace")]
    assert [name for name in names if name.startswith("sandbox-proof")] == []


def test_an_image_is_loaded_where_it_is_missing_and_not_again(solo: Cluster, toolbox: str) -> None:
    docker = client()
    node = str(containers.nodes(docker, NAME)[0].name)
    assert node_images.load(containers.nodes(docker, NAME), [toolbox]) == {}
    container = containers.nodes(docker, NAME)[0]
    # a second name: the first one is what the pods of other tests use
    repository, _, tag = toolbox.rpartition(":")
    docker.images.get(toolbox).tag(repository, f"{tag}-again")
    try:
        assert node_images.load(containers.nodes(docker, NAME), [f"{toolbox}-again"]) == {node: [f"{toolbox}-again"]}
        assert node_images.missing(container, [toolbox, f"{toolbox}-again"]) == []
        assert node_images.load(containers.nodes(docker, NAME), [f"{toolbox}-again"]) == {}
    finally:
        docker.images.remove(f"{toolbox}-again", noprune=True)


def test_a_record_of_another_cluster_is_refused(solo: Cluster) -> None:
    with pytest.raises(ClusterError, match="not provably"):
        cluster.prove_ours(replace(solo, uid="00000000-0000-0000-0000-000000000000"))
    with pytest.raises(ClusterError, match="not provably"):
        cluster.prove_ours(replace(solo, nodes=(replace(solo.nodes[0], container="0" * 64),)))
    with pytest.raises(ClusterError, match="not provably"):
        cluster.prove_ours(replace(solo, run="another"))


def test_a_cluster_taken_as_existing_is_read_only_until_allowed_and_survives_down(solo: Cluster) -> None:
    there = Existing(kubeconfig=str(solo.kubeconfig), context=solo.context)
    spec = SOLO.model_copy(update={"provider": "existing", "kind_config": {}, "existing": there})
    name = f"{NAME}-x"
    taken = cluster.up(spec, name=name)
    assert (taken.uid, taken.node_names) == (solo.uid, solo.node_names)
    with pytest.raises(ClusterError, match="without leave"):
        cluster.prove_ours(taken)
    cluster.prove_ours(cluster.up(spec, name=name, allow_changes=True))
    with pytest.raises(UsageError, match="no node whose machine"):
        nodes.restart(taken, solo.nodes[0].name)
    assert cluster.down(name) == [f"record {name}"]
    assert cluster.status(NAME).state == "ready"


def test_a_node_can_be_paused_and_goes_on(solo: Cluster) -> None:
    node = solo.nodes[0].name
    change = nodes.pause(solo, node)
    assert (change.before, change.after) == ("running", "paused")
    paused = time.time()
    try:
        assert cluster.status(NAME).state == "stopped"
    finally:
        change = nodes.unpause(solo, node)
    assert (change.before, change.after) == ("paused", "running")
    kube = Kube.connect(solo.kubeconfig, solo.context)
    wait_for(renewed(kube, [node], since=paused), within=60, what="word from the kubelet")
    wait_for(nodes_ready(kube, 1), within=60, what="the node being Ready again")


def test_after_a_node_restart_pods_dns_and_policy_work_again(solo: Cluster, toolbox: str) -> None:
    change = nodes.restart(solo, solo.nodes[0].name)
    assert change.after == "running"
    again = cluster.up(SOLO, name=NAME)
    assert again.uid == solo.uid
    kube = Kube.connect(again.kubeconfig, again.context)
    assert resolves(kube, toolbox) == ""
    proof = cluster.prove_network_policy(again, toolbox)
    assert proof.ok, proof.detail


def resolves(kube: Kube, toolbox: str) -> str:
    """Ask cluster DNS from a pod; empty when it answers, else what was seen."""
    pod: dict[str, Any] = {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": "resolver", "namespace": "default"},
        "spec": {
            "terminationGracePeriodSeconds": 0,
            "containers": [{"name": "main", "image": toolbox, "command": ["sh", "-c", "exec sleep 600"]}],
        },
    }
    kube.apply([pod])

    def ask() -> Seen[str]:
        result = kube.exec("default", "resolver", ["nslookup", "kubernetes.default.svc.cluster.local"])
        answered = result.code == 0 and "Address" in result.stdout
        return Seen(answered, "" if answered else result.stdout, result.stdout + result.stderr)

    def running() -> Seen[None]:
        found = kube.get("v1", "Pod", "resolver", "default") or {}
        phase = found.get("status", {}).get("phase", "absent")
        return Seen(phase == "Running", None, phase)

    try:
        wait_for(running, within=60, what="the resolver pod")
        return wait_for(ask, within=60, what="cluster DNS")
    finally:
        kube.delete([pod])


def test_a_stopped_cluster_is_started_by_up_and_its_kubelet_is_back(solo: Cluster) -> None:
    nodes.stop(solo, solo.nodes[0].name)
    stopped = time.time()
    assert cluster.status(NAME).state == "stopped"
    assert cluster.up(SOLO, name=NAME).uid == solo.uid
    assert cluster.status(NAME).state == "ready"
    kube = Kube.connect(solo.kubeconfig, solo.context)
    assert renewed(kube, solo.node_names, since=stopped)().done


def test_a_cluster_of_that_name_that_is_not_ours_is_left_alone(toolbox: str) -> None:
    name = f"live-strange-{os.getpid()}"
    stranger = client().containers.create(toolbox, ["true"], labels={ownership.KIND_LABEL: name})
    try:
        for command in (lambda: cluster.up(SOLO, name=name), lambda: cluster.down(name)):
            with pytest.raises(ClusterError, match="not this sandbox's"):
                command()
        assert client().containers.get(str(stranger.id)).status == "created"
    finally:
        stranger.remove()


def test_a_cluster_that_does_not_come_up_leaves_its_logs_and_nothing_else(tmp_path: Path) -> None:
    name = f"live-broken-{os.getpid()}"
    patch = {
        "kind": "ClusterConfiguration",
        "apiServer": {"extraArgs": {"no-such-flag": "1"}},
    }
    hurry = {"kind": "InitConfiguration", "timeouts": {"controlPlaneComponentHealthCheck": "15s"}}
    config = {"kubeadmConfigPatches": [json.dumps(patch), json.dumps(hurry)]}
    with pytest.raises(ClusterError, match="its logs are kept and it is removed") as failed:
        cluster.up(SOLO.model_copy(update={"kind_config": config}), name=name)
    assert any("kube-apiserver is exited" in line for line in failed.value.details)
    assert any("no-such-flag" in line for line in failed.value.details)
    digest = Path(failed.value.fix.split()[1])
    assert "kube-apiserver" in digest.read_text()
    assert (digest.parent / f"{name}-control-plane" / "kubelet.log").is_file()
    assert in_engine(name) == []
    assert name not in record.names()


SCRIPT = """
from sandbox import cluster, paths
from sandbox.spec import load
from sandbox.spec.cluster import ClusterSpec
spec = load(paths.catalogue("clusters")[0] / "solo.yaml", ClusterSpec).model
print(cluster.up(spec, name={name!r}, owner={owner}).uid)
"""


def started(name: str, owner: str = "None") -> subprocess.Popen[str]:
    script = SCRIPT.format(name=name, owner=owner)
    return subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, text=True)


def test_what_a_killed_up_left_is_cleared_and_two_at_once_share_one_cluster(toolbox: str) -> None:
    name = f"live-killed-{os.getpid()}"
    with started(name, "cluster.Owner.me()") as killed:
        wait_for(lambda: half_made(name), within=120, what="a node of the half-made cluster")
        assert cluster.status(name).state == "busy"
        killed.kill()
    assert cluster.status(name).state == "half-made"
    here = containers.network_name(name)
    guest = client().containers.run(toolbox, ["sh", "-c", "exec sleep 600"], network=here, detach=True)
    try:
        before = in_engine(name)
        assert name not in cluster.reap()
        for command in (lambda: cluster.up(SOLO, name=name), lambda: cluster.down(name)):
            with pytest.raises(NotOurs, match="nothing of it is removed"):
                command()
        assert in_engine(name) == before
        client().networks.get(here).disconnect(guest)
        assert name in cluster.reap()
        guest.reload()
        assert guest.status == "running"
    finally:
        guest.remove(force=True)
    assert in_engine(name) == []
    assert name not in record.names()

    with started(name, "cluster.Owner.me()") as first, started(name, "cluster.Owner.me()") as second:
        uids = [process.communicate()[0].strip() for process in (first, second)]
    assert uids[0] == uids[1] != ""
    assert len([each for each in in_engine(name) if each.endswith("control-plane")]) == 1
    # its owners are gone by now: any next command takes it away
    assert cluster.down("nothing-of-this-name") == []
    assert in_engine(name) == []


def half_made(name: str) -> Seen[None]:
    there = in_engine(name)
    return Seen(any(each.endswith("control-plane") for each in there), None, f"there: {there}")


def test_a_cluster_whose_nodes_were_removed_is_made_anew(solo: Cluster, toolbox: str) -> None:
    containers.nodes(client(), NAME)[0].remove(force=True, v=True)
    assert cluster.status(NAME).state == "gone"
    fresh = cluster.up(SOLO, name=NAME, app_images=["toolbox"], owner=Owner.me())
    assert fresh.run != solo.run
    assert not {*fresh.containers} & {*solo.containers}
    cluster.prove_ours(fresh)
    # sabotaged: without the daemon that enforces them policies are words, and the proof must say so
    kube = Kube.connect(fresh.kubeconfig, fresh.context)
    daemons = [each for each in kube.list("apps/v1", "DaemonSet", "kube-system") if enforces(each)]
    assert daemons
    kube.delete(daemons)
    proof = cluster.prove_network_policy(fresh, toolbox)
    assert not proof.ok
    assert "still got an answer" in proof.detail


def enforces(daemon: dict[str, Any]) -> bool:
    return daemon["metadata"]["name"] in {"node-agent", "kindnet"}
