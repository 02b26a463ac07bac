"""Inner addresses: which shapes have them, and what is written into a node for them."""

from __future__ import annotations

import textwrap
from typing import Any

import pytest
import yaml

from sandbox.cluster import config, inner, node_files
from sandbox.spec.cluster import ClusterSpec

TRIO = "nodes: [{role: control-plane}, {role: worker}, {role: worker}]"


def spec(kind_config: str = "", name: str = "solo", **more: Any) -> ClusterSpec:
    metadata = {"name": name, "description": "For a test."}
    return ClusterSpec.model_validate(
        {"kind": "Cluster", "metadata": metadata, "kindConfig": yaml.safe_load(kind_config) or {}, **more}
    )


@pytest.mark.parametrize(
    ("given", "why"),
    [
        ("", ""),
        (TRIO, ""),
        ("networking: {podSubnet: 10.9.0.0/16, serviceSubnet: 10.8.0.0/16, kubeProxyMode: nftables}", ""),
        ("nodes: [{role: control-plane}, {role: control-plane}]", "several control planes"),
        ("networking: {ipFamily: ipv6}", "IPv6"),
        ("networking: {ipFamily: dual}", "IPv6"),
        ("networking: {podSubnet: 198.18.0.0/16}", "podSubnet 198.18.0.0/16 overlaps"),
        ("networking: {serviceSubnet: 198.18.77.0/25}", "serviceSubnet 198.18.77.0/25 overlaps"),
        ("networking: {podSubnet: nonsense}", "podSubnet nonsense cannot be read"),
    ],
)
def test_shapes_that_keep_the_engines_addresses_say_why(given: str, why: str) -> None:
    assert why in inner.why_not(spec(given))
    assert bool(inner.why_not(spec(given))) == bool(why)


def test_a_node_is_called_after_its_shape_whatever_its_cluster_is_called() -> None:
    assert inner.names(spec(TRIO, "trio")) == ["trio-control-plane", "trio-worker", "trio-worker2"]
    assert inner.node_name(spec(TRIO, "trio"), "mine", "mine-worker2") == "trio-worker2"
    long = "l" * 60
    assert inner.node_name(spec("", long), "mine", "mine-control-plane") == f"{long[:40]}-control-plane"
    several = spec("nodes: [{role: control-plane}, {role: control-plane}]")
    assert inner.node_name(several, "mine", "mine-control-plane2") == "mine-control-plane2"


def test_the_control_plane_is_found_wherever_it_stands_in_the_list() -> None:
    mine = spec("nodes: [{role: worker}, {role: control-plane}]")
    assert inner.control_plane(mine) == inner.address(1) == "198.18.77.2"


def test_before_containerd_a_node_gets_its_address_and_the_way_to_the_api_server() -> None:
    mine = spec(TRIO + "\nnetworking: {serviceSubnet: 10.8.0.0/16}", "trio")
    script = node_files.of_node(mine, 2)["lib/ai-k8s-sandbox/before-containerd"]
    assert "ip address replace 198.18.77.3/24 dev eth0" in script
    assert "-d 10.8.0.1/32 -p tcp --dport 443 -j DNAT --to-destination 198.18.77.1:6443" in script
    assert "-d 10.8.0.0/16 -j REJECT" in script
    unit = node_files.of_node(mine, 2)["lib/ai-k8s-sandbox/containerd.service.d/sandbox.conf"]
    assert "ExecStartPre=/bin/sh /var/lib/ai-k8s-sandbox/before-containerd" in unit


def test_a_shape_without_inner_addresses_gets_nothing_that_needs_them() -> None:
    mine = spec("networking: {ipFamily: dual}")
    assert [*node_files.of_node(mine, 0)] == ["lib/ai-k8s-sandbox/patches/corednsdeployment+strategic.yaml"]
    rendered = config.render(mine, image="node:1", cgroup="2", volumes=["/v/0"])
    assert "198.18" not in rendered
    assert yaml.safe_load(rendered)["nodes"][0]["extraMounts"] == [{"hostPath": "/v/0", "containerPath": "/var"}]


def test_dns_is_looked_at_each_second_and_is_one_pod_only_where_there_is_one_node() -> None:
    def patch(mine: ClusterSpec) -> dict[str, Any]:
        (text,) = [text for path, text in node_files.of_node(mine, 0).items() if "corednsdeployment" in path]
        patched: dict[str, Any] = yaml.safe_load(text)["spec"]
        return patched

    (container,) = patch(spec())["template"]["spec"]["containers"]
    assert container == {"name": "coredns", "readinessProbe": {"periodSeconds": 1}}
    assert patch(spec())["replicas"] == 1
    assert "replicas" not in patch(spec(TRIO))
    assert not any("corednsdeployment" in path for path in node_files.of_node(spec(TRIO), 1))


def test_kind_is_told_each_nodes_volume_name_and_address_and_the_users_own_come_after() -> None:
    mine = spec(
        textwrap.dedent("""
        nodes:
        - role: control-plane
          extraMounts: [{hostPath: /data, containerPath: /data}]
          kubeadmConfigPatches: ["kind: InitConfiguration\\nskipPhases: [preflight]\\n"]
        - role: worker
        """)
    )
    rendered = yaml.safe_load(config.render(mine, image="node:1", cgroup="2", volumes=["/v/0", "/v/1"]))
    first, second = rendered["nodes"]
    assert [each["hostPath"] for each in first["extraMounts"]] == [
        "/v/0", "/v/0/lib/ai-k8s-sandbox/containerd.service.d", "/data",
    ]  # fmt: skip
    plane, users = (yaml.safe_load(each) for each in first["kubeadmConfigPatches"])
    assert plane["localAPIEndpoint"] == {"advertiseAddress": "198.18.77.1"}
    assert plane["nodeRegistration"]["name"] == "solo-control-plane"
    assert users["skipPhases"] == ["preflight"]
    (worker,) = (yaml.safe_load(each) for each in second["kubeadmConfigPatches"])
    assert worker["kind"] == "JoinConfiguration"
    assert worker["nodeRegistration"]["kubeletExtraArgs"] == {"node-ip": "198.18.77.2"}


@pytest.mark.parametrize(
    ("mode", "skipped", "reachable"),
    [("iptables", [], False), ("nftables", [], True), ("none", ["addon/kube-proxy"], False)],
)
def test_kinds_own_skips_stay_and_node_ports_stay_reachable(mode: str, skipped: list[str], reachable: bool) -> None:
    mine = spec(f"networking: {{kubeProxyMode: {mode}}}")
    rendered = yaml.safe_load(config.render(mine, image="node:1", cgroup="2", volumes=["/v/0"]))
    patches = [yaml.safe_load(each) for each in rendered["kubeadmConfigPatches"]]
    (init,) = [each for each in patches if each["kind"] == "InitConfiguration"]
    assert init["skipPhases"] == ["preflight", *skipped, "kubelet-finalize"]
    assert any(each["kind"] == "KubeProxyConfiguration" for each in patches) == reachable
