"""Things of others beside a cluster, and another engine in its place: every command that can change something is tried.

The cluster has two control planes, so that the same minute shows that of their controllers only one acts.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
from docker.errors import ImageNotFound, NotFound
from docker.models.containers import Container
from second_engine import second_engine

from sandbox import cluster, images, paths, suite
from sandbox.cluster import Cluster, Owner, containers, nodes, ownership, record
from sandbox.cluster.kind import create
from sandbox.errors import EXIT_ENVIRONMENT, EXIT_FAIL, EXIT_PASS, ClusterError, EnvironmentMissing, NotOurs
from sandbox.host import preparing
from sandbox.host.engine import client
from sandbox.kube import Kube
from sandbox.kube.resources import Selection
from sandbox.plan import load_all
from sandbox.pytest_plugin import Clusters
from sandbox.run import Options, execute
from sandbox.spec import load
from sandbox.spec.cluster import ClusterSpec

pytestmark = [
    pytest.mark.live,
    # docker-py leaves a socket to the garbage collector where an engine dies while it is being asked
    pytest.mark.filterwarnings("ignore:unclosed <socket.socket fd=[0-9]+, family=1:ResourceWarning"),
]

NAME = f"live-duo-{os.getpid()}"
THEIRS = f"theirs-{os.getpid()}"
SOLO = load(paths.catalogue("clusters")[0] / "solo.yaml", ClusterSpec).model
DUO = SOLO.model_copy(
    update={
        "kind_config": {"nodes": [{"role": "control-plane"}, {"role": "control-plane"}]},
        "addons": SOLO.addons.model_copy(update={"metrics_server": False}),
    }
)
REPLICAS = 6
BALANCER = "docker.io/envoyproxy/envoy:v1.36.2"  # what kind v0.33.0 puts before several control planes
# Where no registry is reached, one of ours plays its part: it leads to the first control plane alone.
FORWARD = r"""#!/bin/bash
until first=$(sed -n 's/^ *address: \(..*\)$/\1/p' /home/envoy/cds.yaml | head -1); [ -n "$first" ]; do sleep 0.2; done
exec socat TCP-LISTEN:6443,fork,reuseaddr "TCP:$first:6443"
"""


@pytest.fixture(scope="module")
def toolbox() -> str:
    return images.ensure(["toolbox"])["toolbox"].ref


@pytest.fixture(scope="module")
def balancer(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    docker = client()
    try:
        docker.images.get(BALANCER)
    except ImageNotFound:
        program = tmp_path_factory.mktemp("balancer") / "envoy"
        program.write_text(FORWARD)
        program.chmod(0o755)
        base = docker.containers.create(images.ensure(["node"])["node"].ref, network_mode="none")
        try:
            subprocess.run(["docker", "cp", str(program), f"{base.id}:/usr/local/bin/envoy"], check=True)
            repository, _, tag = BALANCER.rpartition(":")
            # an entrypoint that is empty would become the base's
            base.commit(repository, tag, changes=['ENTRYPOINT ["/usr/bin/env"]'])
        finally:
            base.remove(v=True)
        yield
        docker.images.remove(BALANCER, noprune=True)
    else:
        yield


@pytest.fixture(scope="module")
def duo(balancer: None) -> Iterator[Cluster]:
    yield cluster.up(DUO, name=NAME, owner=Owner.me())
    cluster.down(NAME)


def typed(*words: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """Type a command, as a user would."""
    command = [sys.executable, "-m", "sandbox", *words]
    return subprocess.run(
        command, env={**os.environ, **environment}, capture_output=True, text=True, check=False, timeout=120
    )


def running(name: str) -> list[str]:
    """The ids of all containers that kind labelled with that name and that run."""
    return sorted(
        str(each.id) for each in client().containers.list(filters={"label": f"{ownership.KIND_LABEL}={name}"})
    )


def deployment(image: str) -> dict[str, Any]:
    labels = {"app": "counted"}
    pod = {
        "tolerations": [{"operator": "Exists"}],
        "terminationGracePeriodSeconds": 0,
        "containers": [{"name": "main", "image": image, "command": ["sh", "-c", "exec sleep 600"]}],
    }
    return {
        "apiVersion": "apps/v1",
        "kind": "Deployment",
        "metadata": {"name": "counted", "namespace": "default", "labels": labels},
        "spec": {
            "replicas": REPLICAS,
            "selector": {"matchLabels": labels},
            "template": {"metadata": {"labels": labels}, "spec": pod},
        },
    }


def test_of_two_control_planes_one_makes_exactly_the_pods_that_were_asked_for(duo: Cluster, toolbox: str) -> None:
    nodes.load_images(duo, [toolbox])
    kube = Kube.connect(duo.kubeconfig, duo.context)
    pods = Selection("v1", "Pod", "default", "app=counted")
    _, since = kube.list_at(pods)
    kube.create(deployment(toolbox))
    made, deleted, ready, deadline = set[str](), set[str](), set[str](), time.monotonic() + 60
    while time.monotonic() < deadline:
        for change in kube.watch(pods, since=since, within=2):
            meta = change["object"]["metadata"]
            since = meta["resourceVersion"]
            if change["type"] == "BOOKMARK":
                continue
            made.add(meta["uid"])
            deleted |= {meta["uid"]} if change["type"] == "DELETED" else set()
            conditions = change["object"].get("status", {}).get("conditions", [])
            ready |= {meta["uid"] for each in conditions if (each["type"], each["status"]) == ("Ready", "True")}
        if len(ready) >= REPLICAS:  # and two quiet seconds after the last of them
            break
    assert (len(made), len(ready), deleted) == (REPLICAS, REPLICAS, set())
    for component in ("kube-controller-manager", "kube-scheduler"):
        there = kube.list("v1", "Pod", "kube-system", label_selector=f"component={component}")
        lease = kube.get("coordination.k8s.io/v1", "Lease", component, "kube-system") or {}
        holder = lease.get("spec", {}).get("holderIdentity", "").split("_")[0]
        assert len(there) == len(duo.nodes) == 2
        assert holder in duo.node_names, f"no {component} of two was elected"


@dataclass(frozen=True)
class Others:
    """What others have on the cluster's network: a container with a named volume, and a kind cluster's node."""

    database: Container
    volume: str
    node: Container
    kubeconfig: Path

    def intact(self) -> None:
        """All of it runs, is where it was, and has its data."""
        for each in (self.database, self.node):
            each.reload()
            assert each.status == "running"
            assert containers.network_name(NAME) in each.attrs["NetworkSettings"]["Networks"]
        self.working()

    def working(self) -> None:
        assert self.database.exec_run(["cat", "/data/kept"]).output == b"precious\n"
        assert client().volumes.get(self.volume).name == self.volume
        assert Kube.connect(self.kubeconfig, f"kind-{THEIRS}").request("GET", "/readyz").ok


@contextmanager
def kind_cluster(name: str, folder: Path) -> Iterator[tuple[Container, Path]]:
    """A cluster that kind made for somebody else, on a network of theirs."""
    docker = client()
    network = docker.networks.create(name, driver="bridge")
    path = folder / "kubeconfig"
    try:
        create(
            images.tool("kind"),
            name,
            config=f"{{kind: Cluster, apiVersion: kind.x-k8s.io/v1alpha4, kubeadmConfigPatches: ['{CGROUPS}'], "
            f"nodes: [{{role: control-plane, image: '{images.ensure(['node'])['node'].ref}'}}]}}",
            network=name,
            kubeconfig=path,
            log=folder / "kind.log",
            started=lambda _: None,
        )
        yield docker.containers.get(f"{name}-control-plane"), path
    finally:
        for each in docker.containers.list(all=True, filters={"label": f"{ownership.KIND_LABEL}={name}"}):
            each.remove(force=True, v=True)
        network.remove()


CGROUPS = "{kind: KubeletConfiguration, failCgroupV1: false}"


@pytest.fixture(scope="module")
def others(duo: Cluster, toolbox: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Others]:
    docker, volume = client(), f"precious-{os.getpid()}"
    docker.volumes.create(volume)
    with kind_cluster(THEIRS, tmp_path_factory.mktemp("theirs")) as (node, kubeconfig):
        network = docker.networks.get(containers.network_name(NAME))
        network.connect(node)
        database = docker.containers.run(
            toolbox,
            ["sh", "-c", "echo precious > /data/kept; exec sleep 900"],
            volumes={volume: {"bind": "/data", "mode": "rw"}},
            network=network.name,
            user="0",
            detach=True,
        )
        try:
            yield Others(database, volume, node, kubeconfig)
        finally:
            database.remove(force=True)
            docker.volumes.get(volume).remove()


def test_a_cluster_works_beside_what_others_have_on_its_network(duo: Cluster, others: Others) -> None:
    assert cluster.status(NAME).state == "ready"
    assert cluster.up(DUO, name=NAME).nodes == duo.nodes
    cluster.prove_ours(duo)
    others.intact()


def test_down_touches_nothing_and_says_what_to_type_while_others_are_on_the_network(
    duo: Cluster, others: Others
) -> None:
    before = running(NAME)
    done = typed("down", NAME)
    assert done.returncode == EXIT_FAIL
    for name in (others.database.name, others.node.name):
        assert f"docker network disconnect sandbox-{NAME} {name}" in done.stderr
    assert f"of kind cluster {THEIRS}" in done.stderr
    assert "nothing of it is removed" in done.stderr
    assert (running(NAME), len(before)) == (before, 3)
    assert cluster.status(NAME).state == "ready"
    others.intact()


def test_neither_a_run_nor_pytest_nor_the_clearing_of_leftovers_touches_what_others_have(
    duo: Cluster, others: Others, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    before = running(NAME)
    with pytest.raises(NotOurs):  # the end of a run, and of a suite
        suite.release(NAME)
    session = Clusters(keep=False)
    session._names = [NAME]
    with pytest.raises(NotOurs):
        session.close()
    known = cluster.current(NAME)
    record.save(replace(known, owner=Owner(os.getpid(), 1.0)))
    try:
        assert NAME not in cluster.reap()
        assert f"docker network disconnect sandbox-{NAME}" in capsys.readouterr().err
        other = DUO.model_copy(update={"kind_config": {"nodes": [{"role": "control-plane"}]}})
        with pytest.raises(NotOurs):  # what it takes for remains
            cluster.up(other, name=NAME)
    finally:
        record.save(known)
    assert running(NAME) == before
    others.intact()


@pytest.mark.skipif(os.geteuid() != 0 or shutil.which("dockerd") is None, reason="starts an engine: root, dockerd")
def test_while_another_engine_answers_every_command_refuses_and_the_record_stays(
    duo: Cluster, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    before, written = running(NAME), (record.home(NAME) / "record.json").read_text()
    with second_engine() as home:
        preparing.start(home)
        with monkeypatch.context() as patch:
            patch.setenv("DOCKER_HOST", home.url)
            found = cluster.status(NAME)
            assert (found.state, "made on another engine" in found.problems[0]) == ("elsewhere", True)
            assert [each.state for each in cluster.list_clusters() if each.name == NAME] == ["elsewhere"]
            for command in (
                lambda: cluster.down(NAME),
                lambda: cluster.up(DUO, name=NAME),
                lambda: cluster.current(NAME),
                lambda: cluster.prove_ours(duo),
                lambda: nodes.stop(duo, duo.nodes[0].name),
                lambda: Clusters(keep=False).up("solo", NAME),
                lambda: suite.release(NAME),
            ):
                with pytest.raises(ClusterError, match="made on another engine") as refused:
                    command()
                assert "DOCKER_CONTEXT" in refused.value.fix
            (plan,) = load_all(["first-answer"])
            outcome = execute(plan, Options(runs=tmp_path / "runs", cluster_name=NAME))
            assert "made on another engine" in str(outcome.error)
            assert (outcome.results.verdict, outcome.exit_code) == ("invalid", EXIT_ENVIRONMENT)
            record.save(replace(duo, owner=Owner(os.getpid(), 1.0)))
            assert NAME not in cluster.reap()
            record.save(duo)
        done = typed("down", NAME, DOCKER_HOST=home.url)
        assert done.returncode == EXIT_ENVIRONMENT
        assert "export DOCKER_HOST=unix:///var/run/docker.sock" in done.stderr
    assert running(NAME) == before
    assert (record.home(NAME) / "record.json").read_text() == written
    assert cluster.status(NAME).state == "ready"


def test_a_context_that_is_not_there_is_an_error(duo: Cluster, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DOCKER_CONTEXT", "nowhere")
    monkeypatch.delenv("DOCKER_HOST", raising=False)
    for command in (lambda: cluster.down(NAME), lambda: cluster.up(DUO, name=NAME)):
        with pytest.raises(EnvironmentMissing):
            command()
    monkeypatch.delenv("DOCKER_CONTEXT")
    assert cluster.status(NAME).state == "ready"


def test_once_the_others_have_left_the_network_it_goes_and_they_stay(duo: Cluster, others: Others) -> None:
    network = client().networks.get(containers.network_name(NAME))
    for each in (others.database, others.node):
        network.disconnect(each)
    done = typed("down", NAME)
    assert done.returncode == EXIT_PASS, done.stderr
    assert running(NAME) == []
    with pytest.raises(NotFound):
        client().networks.get(containers.network_name(NAME))
    others.working()
