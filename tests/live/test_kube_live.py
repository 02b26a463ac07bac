"""The API client against a real API server: what only a real one does."""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import Any

import pytest

from sandbox import images
from sandbox.cluster import nodes
from sandbox.errors import DeadlineExceeded
from sandbox.kube import ApiError, Kube, collect, namespaces, wait_for
from sandbox.kube.conditions import finished, gone, nodes_ready, ready
from sandbox.pytest_plugin import Clusters

pytestmark = pytest.mark.live
SPACE = "test-kube"


@pytest.fixture(scope="module")
def kube(sandbox_clusters: Clusters) -> Iterator[Kube]:
    cluster = sandbox_clusters.up("solo")
    nodes.load_images(cluster, [toolbox()])
    kube = Kube.connect(cluster.kubeconfig, cluster.context)
    kube.apply([namespaces.make(SPACE)])
    yield kube
    namespaces.remove(kube, [SPACE])
    assert kube.get("v1", "Namespace", SPACE) is None


def toolbox() -> str:
    return images.ensure(["toolbox"])["toolbox"].ref


def pod(name: str, *command: str) -> dict[str, Any]:
    locked = {"allowPrivilegeEscalation": False, "capabilities": {"drop": ["ALL"]}}
    spec = {
        "restartPolicy": "Never",
        "terminationGracePeriodSeconds": 0,
        "securityContext": {"runAsNonRoot": True, "runAsUser": 65532, "seccompProfile": {"type": "RuntimeDefault"}},
        "containers": [{"name": "c", "image": toolbox(), "command": [*command], "securityContext": locked}],
    }
    meta = {"name": name, "namespace": SPACE, "labels": {"app": name}}
    return {"apiVersion": "v1", "kind": "Pod", "metadata": meta, "spec": spec}


@pytest.fixture(scope="module")
def shell(kube: Kube) -> str:
    kube.apply([pod("shell", "sleep", "3600")])
    wait_for(ready(kube, SPACE, "app=shell"), within=60, what="the shell")
    return "shell"


def test_the_cluster_says_who_it_is(kube: Kube) -> None:
    assert kube.version.startswith("v1.")
    assert kube.uid() == kube.uid() != ""
    assert wait_for(nodes_ready(kube, 1), within=10, what="the node")


def test_exec_gives_both_streams_and_the_exit_status(kube: Kube, shell: str) -> None:
    result = kube.exec(SPACE, shell, ["sh", "-c", "echo out; echo err >&2; exit 3"])
    assert (result.code, result.stdout, result.stderr) == (3, "out\n", "err\n")
    assert kube.exec(SPACE, shell, ["true"]).code == 0


def test_exec_brings_all_of_a_long_output(kube: Kube, shell: str) -> None:
    assert len(kube.exec(SPACE, shell, ["seq", "200000"]).stdout.splitlines()) == 200_000


def test_a_command_that_does_not_exist_never_started(kube: Kube, shell: str) -> None:
    result = kube.exec(SPACE, shell, ["no-such-command"])
    assert result.code != 0
    assert "no-such-command" in result.stderr


def test_exec_keeps_its_deadline(kube: Kube, shell: str) -> None:
    begun = time.monotonic()
    with pytest.raises(DeadlineExceeded, match="did not end"):
        kube.exec(SPACE, shell, ["sleep", "60"], within=1)
    assert time.monotonic() - begun < 20


def test_exec_in_a_pod_that_is_not_there_is_the_servers_no(kube: Kube) -> None:
    with pytest.raises(ApiError) as caught:
        kube.exec(SPACE, "nobody", ["true"])
    assert caught.value.status == 404


def test_a_token_may_do_what_its_account_may_and_no_more(kube: Kube) -> None:
    own = kube.as_token(kube.token(SPACE, "default", seconds=600))
    answer = own.request("GET", f"/api/v1/namespaces/{SPACE}/pods")
    assert answer.status == 403
    assert f"system:serviceaccount:{SPACE}:default" in answer.body["message"]
    assert kube.as_token("nonsense").request("GET", "/api/v1/pods").status == 401


def test_a_pod_that_ran_to_its_end_is_finished_and_its_log_is_there(kube: Kube) -> None:
    kube.apply([pod("once", "sh", "-c", "echo done; exit 5")])
    ended = wait_for(finished(kube, SPACE, "once"), within=60, what="the pod's end")
    assert ended["status"]["phase"] == "Failed"
    assert kube.logs(SPACE, "once") == "done\n"
    assert any("done" in line for line in collect.digest(kube, SPACE))
    kube.delete([pod("once")])
    wait_for(gone(kube, "v1", "Pod", SPACE, selector="app=once"), within=10, what="its end")


def test_waiting_for_a_pod_that_cannot_start_says_why(kube: Kube) -> None:
    broken = pod("broken", "true")
    # told at once: whether and how soon a registry's name is answered is not ours to know
    broken["spec"]["containers"][0] |= {"image": "registry.invalid/none:1", "imagePullPolicy": "Never"}
    kube.apply([broken])
    with pytest.raises(DeadlineExceeded) as caught:
        wait_for(ready(kube, SPACE, "app=broken"), within=15, what="the broken pod")
    kube.delete([broken], grace=0)
    assert "ErrImageNeverPull" in "\n".join(caught.value.details)


def test_what_happened_is_written_to_files(kube: Kube, shell: str, tmp_path: Any) -> None:
    names = {path.name for path in collect.write(kube, SPACE, tmp_path)}
    assert {"pods.yaml", "events.txt", f"{shell}.c.log"} <= names
