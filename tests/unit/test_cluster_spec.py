from __future__ import annotations

import errno
import socket
from pathlib import Path
from typing import Any

import pytest
import yaml

from sandbox import paths
from sandbox.cluster import config
from sandbox.cluster.record import shape
from sandbox.errors import EnvironmentMissing, UsageError
from sandbox.spec import load, load_text
from sandbox.spec.cluster import ClusterSpec

HEAD = "apiVersion: sandbox/v1\nkind: Cluster\nmetadata: {name: mine, description: For a test.}\n"


def spec(text: str = "") -> ClusterSpec:
    return load_text(HEAD + text, Path("mine.yaml"), ClusterSpec).model


def refused(text: str) -> str:
    with pytest.raises(UsageError) as error:
        spec(text)
    return str(error.value)


@pytest.mark.parametrize(("name", "nodes"), [("solo", 1), ("trio", 3)])
def test_the_shipped_shapes_load(name: str, nodes: int) -> None:
    loaded = load(paths.catalogue("clusters")[0] / f"{name}.yaml", ClusterSpec).model
    assert loaded.metadata.name == name
    assert len(loaded.nodes) == nodes
    assert loaded.nodes[0]["role"] == "control-plane"


def test_without_nodes_there_is_one_control_plane() -> None:
    assert spec().nodes == [{"role": "control-plane"}]


def test_an_unknown_key_is_named_with_its_line() -> None:
    assert "mine.yaml:4:1: workers: unknown key" in refused("workers: 2\n")


def test_all_mistakes_are_told_at_once() -> None:
    message = refused("provider: docker\naddons: {gpu: true}\nimages: [NOT_A_NAME]\n")
    assert "3 problems" in message
    assert all(word in message for word in ("provider", "addons.gpu", "images[0]"))


@pytest.mark.parametrize(
    ("kind_config", "says"),
    [
        ("{name: other}", "`name` is taken from metadata.name"),
        ("{apiVersion: kind.x-k8s.io/v1alpha3}", "v1alpha4"),
        ("{networking: {apiServerAddress: 0.0.0.0}}", "no loopback address"),
        ("{networking: {apiServerAddress: example.org}}", "no loopback address"),
        ("{nodes: [{role: worker}]}", "no node has the role control-plane"),
        ("{nodes: [{role: etcd}]}", "nodes[0].role"),
        ("{nodes: three}", "`nodes` must be a list"),
    ],
)
def test_what_would_make_the_cluster_somebody_elses_is_refused(kind_config: str, says: str) -> None:
    assert says in refused(f"kindConfig: {kind_config}\n")


def test_a_loopback_api_server_is_accepted() -> None:
    assert spec("kindConfig: {networking: {apiServerAddress: 127.0.0.2}}\n").kind_config["networking"]


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("provider: existing\n", "needs `existing"),
        ("existing: {kubeconfig: a, context: b}\n", "needs provider: existing"),
        (
            "provider: existing\nexisting: {kubeconfig: a, context: b}\nkindConfig: {nodes: []}\n",
            "takes no `kindConfig`",
        ),
        ("provider: existing\nexisting: {kubeconfig: a}\n", "context: is missing"),
    ],
)
def test_the_providers_keys_do_not_mix(text: str, says: str) -> None:
    assert says in refused(text)


def rendered(text: str, *, cgroup: str = "2") -> dict[str, Any]:
    parsed: dict[str, Any] = yaml.safe_load(config.render(spec(text), image="node:1", cgroup=cgroup))
    return parsed


def patches(parsed: dict[str, Any]) -> list[dict[str, Any]]:
    return [yaml.safe_load(each) for each in parsed["kubeadmConfigPatches"]]


def test_kinds_own_fields_pass_through_untouched() -> None:
    given = (
        "kindConfig:\n  networking: {podSubnet: 10.9.0.0/16, kubeProxyMode: nftables}\n"
        "  featureGates: {SomeGate: true}\n  runtimeConfig: {api/alpha: 'true'}\n"
        "  nodes:\n  - role: control-plane\n    image: pinned:2\n    labels: {a: b}\n  - role: worker\n"
    )
    parsed = rendered(given)
    asked = spec(given).kind_config
    assert {key: parsed[key] for key in ("networking", "featureGates", "runtimeConfig")} == {
        key: asked[key] for key in ("networking", "featureGates", "runtimeConfig")
    }
    assert parsed["nodes"] == [
        {"image": "pinned:2", "role": "control-plane", "labels": {"a": "b"}},
        {"image": "node:1", "role": "worker"},
    ]


def test_the_users_kubeadm_patches_come_after_ours_and_so_win() -> None:
    mine = "kind: ClusterConfiguration\nscheduler: {extraArgs: {leader-elect: 'true'}}\n"
    text = yaml.safe_dump({"kindConfig": {"kubeadmConfigPatches": [mine]}})
    parsed = rendered(text)
    assert parsed["kubeadmConfigPatches"][-1] == mine
    assert len(parsed["kubeadmConfigPatches"]) == 2


def test_a_throw_away_cluster_neither_elects_nor_syncs() -> None:
    (ours,) = patches(rendered(""))
    assert ours["controllerManager"]["extraArgs"]["leader-elect"] == "false"
    assert ours["etcd"]["local"]["extraArgs"]["unsafe-no-fsync"] == "true"
    assert "apiVersion" not in ours


@pytest.mark.parametrize("more", ["", "fleet: {nodes: 1}\n", "scheduler: {profiles: []}\n"])
def test_with_several_control_planes_controllers_and_schedulers_elect_one_that_acts(more: str) -> None:
    several = "kindConfig: {nodes: [{role: control-plane}, {}, {role: worker}]}\n" + more
    for patch in patches(rendered(several)):
        for part in ("controllerManager", "scheduler"):
            assert "leader-elect" not in patch.get(part, {}).get("extraArgs", {})
    given = spec(several).scheduler_config
    assert given is None or given["leaderElection"] == {"leaderElect": True}
    ours = patches(rendered(several))[0]
    assert ours["etcd"]["local"]["extraArgs"] == {"unsafe-no-fsync": "true"}


def test_only_cgroup_v1_makes_the_kubelet_tolerate_it() -> None:
    assert [each for each in patches(rendered("")) if "failCgroupV1" in each] == []
    assert {"kind": "KubeletConfiguration", "failCgroupV1": False} in patches(rendered("", cgroup="1"))


def test_kubelets_with_gpus_tell_of_a_failed_device_within_a_second() -> None:
    gpus = {"kind": "KubeletConfiguration", "nodeStatusUpdateFrequency": "1s", "nodeStatusReportFrequency": "10s"}
    assert gpus in patches(rendered("gpu: {profile: h100}\n"))
    assert {**gpus, "failCgroupV1": False} in patches(rendered("gpu: {profile: h100}\n", cgroup="1"))


def test_a_taken_port_is_named_before_anything_is_made() -> None:
    with socket.socket() as holder:
        holder.bind(("127.0.0.1", 0))
        holder.listen()
        port = holder.getsockname()[1]
        mapping = f"{{containerPort: 80, hostPort: {port}, listenAddress: 127.0.0.1}}"
        text = f"kindConfig: {{nodes: [{{role: control-plane, extraPortMappings: [{mapping}]}}]}}\n"
        with pytest.raises(EnvironmentMissing, match=f"127.0.0.1:{port} is taken") as taken:
            config.check_ports(spec(text))
    assert str(port) in taken.value.fix
    config.check_ports(spec(text))


def test_only_a_port_somebody_listens_on_is_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise PermissionError(errno.EACCES, "a port below 1024")

    monkeypatch.setattr(socket.socket, "bind", refuse, raising=False)
    text = "kindConfig: {nodes: [{role: control-plane, extraPortMappings: [{containerPort: 80, hostPort: 80}]}]}\n"
    config.check_ports(spec(text))


@pytest.mark.parametrize("port", [None, 0, -1])
def test_no_port_is_none_that_could_be_taken(port: int | None) -> None:
    mapping = {"containerPort": 80, "hostPort": port, "listenAddress": None, "protocol": None}
    nodes = [{"role": "control-plane", "extraPortMappings": [mapping]}]
    config.check_ports(
        spec().model_copy(update={"kind_config": {"nodes": nodes, "networking": {"apiServerPort": port}}})
    )


def test_the_shape_changes_with_what_decides_it_and_with_nothing_else() -> None:
    plain = shape(spec())
    assert shape(spec("images: [toolbox]\n")) == plain
    assert shape(spec("kindConfig: {nodes: [{role: control-plane}]}\n")) != plain


def test_ipv6_is_asked_for_only_by_the_networking_of_the_spec() -> None:
    assert not config.ipv6(spec())
    assert config.ipv6(spec("kindConfig: {networking: {ipFamily: dual}}\n"))
