from __future__ import annotations

import tempfile
from base64 import b64encode
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path

import pytest
import yaml
from urllib3 import HTTPSConnectionPool, PoolManager
from urllib3.exceptions import MaxRetryError, SSLError

from sandbox.errors import ClusterError, DeadlineExceeded, UsageError
from sandbox.kube import ApiError, Kube, Unreachable, guardrails, namespaces, stacks
from sandbox.kube.conditions import gone, ready, renewed
from sandbox.kube.transport import Transport
from sandbox.kube.wait import Seen, wait_for
from tests.unit.api_server import Answer, ApiServer, Json, core, kubeconfig, serving, status

PODS = "/api/v1/namespaces/a/pods"


def pod(name: str, version: int = 1, *, is_ready: bool = True, uid: str = "") -> Json:
    conditions = [{"type": "Ready", "status": "True" if is_ready else "False"}]
    meta = {"name": name, "namespace": "a", "uid": uid or f"uid-{name}", "resourceVersion": str(version)}
    return {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": meta,
        "status": {"phase": "Running", "conditions": conditions},
    }


def listed(version: int, *items: Json) -> Answer:
    return Answer(200, {"kind": "PodList", "metadata": {"resourceVersion": str(version)}, "items": list(items)})


@pytest.fixture
def both(tmp_path: Path) -> Iterator[tuple[ApiServer, Kube]]:
    with serving(tmp_path) as pair:
        yield pair


def test_no_key_of_a_kubeconfig_is_written_to_a_temporary_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A process that is killed would leave it there."""
    elsewhere = tmp_path / "tmp"
    elsewhere.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(elsewhere))
    path = kubeconfig(tmp_path, "https://127.0.0.1:1")
    document = yaml.safe_load(path.read_text())
    document["clusters"][0]["cluster"]["certificate-authority-data"] = b64encode(b"an authority").decode()
    document["users"][0]["user"] |= {
        f"client-{name}-data": b64encode(f"a {name}".encode()).decode() for name in ("certificate", "key")
    }
    path.write_text(yaml.safe_dump(document))
    found = Transport.from_kubeconfig(path, None)._configuration
    texts = [Path(each).read_text() for each in (found.ssl_ca_cert, found.cert_file, found.key_file)]
    assert texts == ["an authority", "a certificate", "a key"]
    assert list(elsewhere.iterdir()) == []


@pytest.mark.parametrize("text", ["", "- a list", "clusters: ["])
def test_a_kubeconfig_that_is_none_is_a_usage_error(tmp_path: Path, text: str) -> None:
    path = tmp_path / "kubeconfig"
    path.write_text(text)
    with pytest.raises(UsageError, match="cannot be used"):
        Kube.connect(path)


@pytest.mark.parametrize("words", ["certificate is not yet valid", "certificate has expired"])
def test_a_certificate_that_does_not_count_by_the_clock_is_not_waited_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, words: str
) -> None:
    kube = Kube.connect(kubeconfig(tmp_path, "https://127.0.0.1:1"))
    refused = SSLError(f"[SSL: CERTIFICATE_VERIFY_FAILED] certificate verify failed: {words} (_ssl.c:1006)")

    def request(*_: object, **__: object) -> None:
        raise MaxRetryError(HTTPSConnectionPool("127.0.0.1"), "/readyz", refused)

    monkeypatch.setattr(PoolManager, "request", request)
    with pytest.raises(ClusterError, match="by the clock of this machine") as told:
        wait_for(lambda: Seen(kube.request("GET", "/readyz").ok, None, ""), within=60, what="the API server")
    assert not isinstance(told.value, Unreachable)
    assert words in str(told.value)
    assert "set the clock" in told.value.fix


def test_a_missing_kubeconfig_is_a_usage_error_that_names_it(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="no such kubeconfig") as caught:
        Kube.connect(tmp_path / "nowhere")
    assert str(tmp_path / "nowhere") in str(caught.value)


def test_an_unknown_context_is_a_usage_error(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="cannot be used"):
        Kube.connect(kubeconfig(tmp_path, "http://127.0.0.1:1"), context="another")


def test_the_users_default_config_is_never_looked_at(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KUBECONFIG", str(tmp_path / "theirs"))
    (tmp_path / "theirs").write_text("not: [valid")
    kube = Kube.connect(kubeconfig(tmp_path, "http://127.0.0.1:1"))
    assert kube.server == "http://127.0.0.1:1"


def test_a_refused_connection_says_so_and_what_to_do_next(tmp_path: Path) -> None:
    kube = Kube.connect(kubeconfig(tmp_path, "http://127.0.0.1:1"))
    with pytest.raises(Unreachable, match="refused") as caught:
        kube.request("GET", "/version")
    assert "sandbox status" in caught.value.fix


def test_a_raw_request_never_raises_on_an_http_error(both: tuple[ApiServer, Kube]) -> None:
    server, kube = both
    server.on("POST", PODS, status(403, "Forbidden", "no"))
    answer = kube.request("POST", PODS, {"kind": "Pod"})
    assert (answer.status, answer.ok, answer.body["reason"]) == (403, False, "Forbidden")
    assert server.seen("POST", PODS)[0].body == {"kind": "Pod"}


def test_a_token_replaces_all_of_the_admins_credentials(both: tuple[ApiServer, Kube]) -> None:
    server, kube = both
    kube.request("GET", "/version")
    kube.as_token("the-tenants").request("GET", "/version")
    sent = [each.headers.get("authorization") for each in server.seen("GET", "/version")]
    assert sent == ["Bearer the-admins-token", "Bearer the-tenants"]


def test_get_gives_none_for_what_is_not_there_and_raises_for_what_is_forbidden(both: tuple[ApiServer, Kube]) -> None:
    server, kube = both
    server.on("GET", f"{PODS}/secret", status(403, "Forbidden", "cannot get"))
    assert kube.get("v1", "Pod", "none", "a") is None
    with pytest.raises(ApiError) as caught:
        kube.get("v1", "Pod", "secret", "a")
    assert (caught.value.status, caught.value.reason) == (403, "Forbidden")


def test_a_kind_the_server_does_not_serve_is_named_with_those_it_serves(both: tuple[ApiServer, Kube]) -> None:
    _, kube = both
    with pytest.raises(UsageError, match="serves no Cat in v1") as caught:
        kube.list("v1", "Cat")
    assert "ConfigMap" in caught.value.details[0]


def test_a_list_follows_its_pages(both: tuple[ApiServer, Kube]) -> None:
    server, kube = both
    first = listed(5, pod("one"))
    first.body["metadata"]["continue"] = "more"
    server.on("GET", PODS, first, listed(5, pod("two")))
    assert [each["metadata"]["name"] for each in kube.list("v1", "Pod", "a")] == ["one", "two"]
    assert server.seen("GET", PODS)[1].query["continue"] == ["more"]


def test_apply_puts_namespaces_first_and_waits_until_pods_can_be_made_there(both: tuple[ApiServer, Kube]) -> None:
    server, kube = both
    account = "/api/v1/namespaces/a/serviceaccounts/default"
    server.on("PATCH", f"{PODS}/x", Answer(200, pod("x")))
    server.on("PATCH", "/api/v1/namespaces/a", Answer(200, namespaces.make("a")))
    server.on("GET", account, status(404, "NotFound", "not yet"), Answer(200, {"kind": "ServiceAccount"}))
    kube.apply([pod("x"), namespaces.make("a")])
    order = [(each.method, each.path) for each in server.asked if each.path != "/api/v1"]
    space = "/api/v1/namespaces/a"
    assert order == [("GET", space), ("PATCH", space), ("GET", account), ("GET", account), ("PATCH", f"{PODS}/x")]
    sent = server.seen("PATCH", f"{PODS}/x")[0]
    assert sent.headers["content-type"] == "application/apply-patch+yaml"
    assert sent.query == {"fieldManager": ["ai-k8s-sandbox"], "force": ["true"]}


def test_delete_waits_until_it_is_gone_and_takes_what_is_not_there_for_done(both: tuple[ApiServer, Kube]) -> None:
    server, kube = both
    server.on("DELETE", f"{PODS}/x", Answer(200, pod("x")))
    server.on("GET", f"{PODS}/x", Answer(200, pod("x")), status(404, "NotFound", "gone"))
    kube.delete([pod("never"), pod("x")], within=10, grace=0)
    assert len(server.seen("GET", f"{PODS}/x")) == 2
    assert server.seen("DELETE", f"{PODS}/x")[0].body["gracePeriodSeconds"] == 0


def test_another_object_of_the_same_name_counts_as_gone(both: tuple[ApiServer, Kube]) -> None:
    server, kube = both
    server.on("DELETE", f"{PODS}/x", Answer(200, pod("x", uid="old")))
    server.on("GET", f"{PODS}/x", Answer(200, pod("x", uid="new")))
    kube.delete([pod("x")], within=5)


def test_what_will_not_go_is_named_with_what_holds_it(both: tuple[ApiServer, Kube]) -> None:
    server, kube = both
    held = pod("x")
    held["metadata"]["finalizers"] = ["example.org/hold"]
    server.on("DELETE", f"{PODS}/x", Answer(200, held))
    server.on("GET", f"{PODS}/x", Answer(200, held))
    with pytest.raises(DeadlineExceeded) as caught:
        kube.delete([pod("x")], within=0.3)
    assert "held by example.org/hold" in str(caught.value)


def test_waiting_for_ready_pods_looks_again_when_the_watch_reports_a_change(both: tuple[ApiServer, Kube]) -> None:
    server, kube = both
    lists = [listed(10, pod("a", is_ready=False)), listed(11, pod("a", 11))]

    def rule(asked: object) -> Answer | None:
        if getattr(asked, "path", "") != PODS:
            return None
        if "watch" in getattr(asked, "query", {}):
            return Answer(lines=[{"type": "MODIFIED", "object": pod("a", 11)}])
        return lists.pop(0)

    server.rules.append(rule)
    found = wait_for(ready(kube, "a", "app=x"), within=10, what="pods")
    assert [each["metadata"]["name"] for each in found] == ["a"]
    assert not lists


def test_pods_that_are_not_ready_or_not_there_do_not_count(both: tuple[ApiServer, Kube]) -> None:
    server, kube = both
    leaving = pod("leaving")
    leaving["metadata"]["deletionTimestamp"] = "2026-01-01T00:00:00Z"
    server.on("GET", PODS, listed(1), listed(1, leaving), listed(1, pod("a"), pod("b", is_ready=False)))
    assert not ready(kube, "a", "")().done
    assert not ready(kube, "a", "")().done
    look = ready(kube, "a", "")()
    assert not look.done
    assert "1 of 2 pods" in look.saw
    assert not gone(kube, "v1", "Pod", "a")().done


def test_a_namespace_that_is_not_ours_is_never_removed(both: tuple[ApiServer, Kube]) -> None:
    server, kube = both
    theirs = {"kind": "Namespace", "apiVersion": "v1", "metadata": {"name": "prod", "uid": "1", "labels": {"a": "b"}}}
    server.on("GET", "/api/v1/namespaces/prod", Answer(200, theirs))
    with pytest.raises(ClusterError, match="not ours"):
        namespaces.remove(kube, ["prod"])
    with pytest.raises(ClusterError, match="not ours"):
        namespaces.refuse_strangers(kube, ["prod"])
    assert not [each for each in server.asked if each.method == "DELETE"]


def test_a_namespace_on_its_way_out_is_outwaited_before_it_is_made_again(both: tuple[ApiServer, Kube]) -> None:
    server, kube = both
    space = "/api/v1/namespaces/a"
    going = namespaces.make("a")
    going["metadata"] |= {"uid": "old", "deletionTimestamp": "2026-01-01T00:00:00Z"}
    server.on("GET", space, Answer(200, going), Answer(200, going), status(404, "NotFound", "gone"))
    server.on("PATCH", space, Answer(200, namespaces.make("a")))
    server.on("GET", f"{space}/serviceaccounts/default", Answer(200, {"kind": "ServiceAccount"}))
    kube.apply([namespaces.make("a")])
    methods = [each.method for each in server.asked if each.path == space]
    assert methods == ["GET", "GET", "GET", "PATCH"]


def test_deleting_a_namespace_that_is_going_already_waits_for_its_end(both: tuple[ApiServer, Kube]) -> None:
    server, kube = both
    server.on("DELETE", "/api/v1/namespaces/a", status(409, "Conflict", "being terminated"))
    server.on("GET", "/api/v1/namespaces/a", Answer(200, namespaces.make("a")), status(404, "NotFound", "gone"))
    kube.delete([namespaces.make("a")], within=10)
    assert len(server.seen("GET", "/api/v1/namespaces/a")) == 2


def labelled(kind: str, name: str, version: str = "v1") -> Json:
    meta = {"name": name, "uid": f"uid-{name}", "labels": dict(namespaces.MANAGED_BY)}
    return {"apiVersion": version, "kind": kind, "metadata": meta}


def serve_clearing(server: ApiServer) -> None:
    roles, bindings = ("clusterroles", "ClusterRole", False), ("clusterrolebindings", "ClusterRoleBinding", False)
    server.on("GET", f"/apis/{RBAC}", Answer(200, core(roles, bindings)))
    kinds = [("pods", "Pod"), ("configmaps", "ConfigMap"), ("podmetrics", "PodMetrics")]
    told = [
        {"resource": plural, "responseKind": {"kind": kind}, "scope": "Namespaced", "verbs": ["list"]}
        for plural, kind in kinds
    ]
    for root, group, found in (("/api", "", told[:2]), ("/apis", "metrics.k8s.io", told[2:])):
        versions = [{"version": "v1", "resources": found, "freshness": "Current"}]
        server.on("GET", root, Answer(200, {"items": [{"metadata": {"name": group}, "versions": versions}]}))


SPACE = "/api/v1/namespaces/inference"


def serve_namespace(server: ApiServer, *configmaps: Answer) -> None:
    """A namespace of ours with a pod that ends, and what its other kind answers, look by look."""
    left, done = labelled("Namespace", "inference"), Answer(200, {"kind": "Status"})
    server.on("GET", SPACE, Answer(200, left), Answer(200, left), status(404, "NotFound", "gone"))
    server.on("DELETE", SPACE, Answer(200, left))
    server.on("DELETE", f"{SPACE}/pods", done)
    server.on("DELETE", f"{SPACE}/configmaps", done)
    server.on("DELETE", "/apis/metrics.k8s.io/v1/namespaces/inference/podmetrics", status(405, "MethodNotAllowed", ""))
    server.on("GET", f"{SPACE}/pods", listed(1, pod("a")), listed(1))
    server.on("GET", f"{SPACE}/configmaps", *configmaps)
    server.on("PUT", f"{SPACE}/finalize", Answer(200, left))


def test_a_namespace_is_let_go_only_once_nothing_of_any_kind_is_in_it(both: tuple[ApiServer, Kube]) -> None:
    server, kube = both
    serve_clearing(server)
    serve_namespace(server, listed(1, labelled("ConfigMap", "left")), listed(1))
    namespaces.remove(kube, ["inference"])
    assert len(server.seen("GET", f"{SPACE}/configmaps")) == 2
    changes = [(each.method, each.path.removeprefix(SPACE)) for each in server.asked if each.method != "GET"]
    assert changes[0] == ("DELETE", "")  # nothing new is let in from here on
    assert changes[-1] == ("DELETE", "")
    assert changes[-2] == ("PUT", "/finalize")
    (pods,) = server.seen("DELETE", f"{SPACE}/pods")
    assert pods.body["gracePeriodSeconds"] == 1


def test_what_is_not_empty_when_the_controller_begins_is_left_to_it(
    both: tuple[ApiServer, Kube], monkeypatch: pytest.MonkeyPatch
) -> None:
    server, kube = both
    serve_clearing(server)
    serve_namespace(server, listed(1))
    monkeypatch.setattr(namespaces, "_ALONE_SECONDS", 0.0)
    namespaces.remove(kube, ["inference"])
    assert server.seen("PUT", f"{SPACE}/finalize") == []


def test_what_holds_a_namespace_is_named_and_it_is_not_let_go(both: tuple[ApiServer, Kube]) -> None:
    server, kube = both
    serve_clearing(server)
    held = labelled("ConfigMap", "left")
    held["metadata"]["finalizers"] = ["mine/hold"]
    serve_namespace(server, listed(1, held))
    with pytest.raises(DeadlineExceeded) as told:
        namespaces.remove(kube, ["inference"], within=0.1)
    assert "ConfigMap left, held by mine/hold" in str(told.value)
    assert server.seen("PUT", f"{SPACE}/finalize") == []


def test_a_namespace_with_a_kind_that_cannot_be_listed_is_not_let_go(both: tuple[ApiServer, Kube]) -> None:
    server, kube = both
    serve_clearing(server)
    serve_namespace(server, status(503, "ServiceUnavailable", "down"))
    with pytest.raises(DeadlineExceeded) as told:
        namespaces.remove(kube, ["inference"], within=0.1)
    assert "ConfigMap: cannot be listed, status 503" in str(told.value)
    assert server.seen("PUT", f"{SPACE}/finalize") == []


RBAC = "rbac.authorization.k8s.io/v1"


def test_clearing_removes_what_is_ours_and_waits_until_it_is_gone(both: tuple[ApiServer, Kube]) -> None:
    server, kube = both
    serve_clearing(server)
    binding = f"/apis/{RBAC}/clusterrolebindings"
    left, right = labelled("Namespace", "inference"), labelled("ClusterRoleBinding", "tenant", RBAC)
    gone_ = status(404, "NotFound", "gone")
    server.on("GET", "/api/v1/namespaces", listed(1, left))
    server.on("GET", f"/apis/{RBAC}/clusterroles", listed(1))
    server.on("GET", binding, listed(1, right))
    server.on("DELETE", f"{binding}/tenant", Answer(200, right))
    server.on("GET", f"{binding}/tenant", Answer(200, right), gone_)
    serve_namespace(server, listed(1))
    assert namespaces.clear(kube) == ["ClusterRoleBinding tenant", "Namespace inference"]
    assert len(server.seen("GET", f"{binding}/tenant")) == 2
    assert len(server.seen("GET", SPACE)) == 3
    for path in ("/api/v1/namespaces", binding, f"/apis/{RBAC}/clusterroles"):
        (asked,) = server.seen("GET", path)
        assert asked.query["labelSelector"] == ["app.kubernetes.io/managed-by=ai-k8s-sandbox"]


def test_where_nothing_is_left_nothing_is_cleared(both: tuple[ApiServer, Kube]) -> None:
    server, kube = both
    serve_clearing(server)
    for path in ("/api/v1/namespaces", f"/apis/{RBAC}/clusterroles", f"/apis/{RBAC}/clusterrolebindings"):
        server.on("GET", path, listed(1))
    assert namespaces.clear(kube) == []
    assert {each.method for each in server.asked} == {"GET"}


def test_a_node_is_back_when_its_lease_is_newer_than_its_start(both: tuple[ApiServer, Kube]) -> None:
    server, kube = both
    server.on("GET", "/apis/coordination.k8s.io/v1", Answer(200, core(("leases", "Lease", True))))
    moments = {"a": "2026-01-01T00:00:10.500000Z", "b": "2026-01-01T00:00:09.000000Z", "c": None}
    leases = [{"metadata": {"name": name}, "spec": {"renewTime": moment}} for name, moment in moments.items()]
    server.on("GET", "/apis/coordination.k8s.io/v1/namespaces/kube-node-lease/leases", listed(1, *leases))
    since = datetime(2026, 1, 1, 0, 0, 10, tzinfo=UTC).timestamp()
    assert renewed(kube, ["a"], since=since)().done
    look = renewed(kube, ["a", "b", "c", "d"], since=since)()
    assert not look.done
    assert look.saw == "no word yet from b, c, d"


def test_neither_stack_nor_guardrail_moves_into_somebody_elses_namespace(both: tuple[ApiServer, Kube]) -> None:
    server, kube = both
    theirs = {"kind": "Namespace", "apiVersion": "v1", "metadata": {"name": "inference", "uid": "1"}}
    server.on("GET", "/api/v1/namespaces/inference", Answer(200, theirs))
    server.on("GET", "/api/v1/nodes", listed(1))
    images = {"vllm-sim": "v:1", "toolbox": "t:1"}
    with pytest.raises(ClusterError, match="not ours"):
        stacks.deploy(kube, stacks.load("vllm-sim"), {}, images=images, addresses=["127.0.0.1"])
    with pytest.raises(ClusterError, match="not ours"):
        guardrails.apply(kube, guardrails.load("tenant"), {}, images=images)
    assert {each.method for each in server.asked} == {"GET"}
