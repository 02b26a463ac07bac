"""Inner addresses of nodes: the same whatever network the engine puts them on, so that nothing in a cluster names it.

A node has one beside the address that the engine gives it, and Kubernetes knows the inner one only. So certificates,
manifests, endpoints and routes are right wherever the nodes run: after a restart, and in a copy beside the original.
This machine still reaches nodes at the engine's addresses.
"""

from __future__ import annotations

from ipaddress import IPv4Network, ip_network
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from sandbox.spec.cluster import ClusterSpec

# of 198.18.0.0/15, which no network routes (RFC 2544)
NETWORK = IPv4Network("198.18.77.0/24")
API_PORT = 6443
_MOST_NODES = 200
_MOST_LETTERS = 40  # of a cluster's name, so that a node's fits a host name
_SERVICES, _PODS = "10.96.0.0/16", "10.244.0.0/16"  # kind's own


def why_not(spec: ClusterSpec) -> str:
    """Why nodes of this shape keep the engine's addresses; empty where they have inner ones."""
    networking = spec.kind_config.get("networking") or {}
    if spec.control_planes > 1:
        return "it has several control planes, behind a load balancer that has an address of the engine"
    if str(networking.get("ipFamily", "ipv4")).lower() != "ipv4":
        return "it uses IPv6"
    if len(spec.nodes) > _MOST_NODES:
        return f"it has more than {_MOST_NODES} nodes"
    for key, usual in (("serviceSubnet", _SERVICES), ("podSubnet", _PODS)):
        subnet = networking.get(key) or usual
        try:
            overlaps = ip_network(subnet, strict=False).overlaps(NETWORK)
        except ValueError:  # kind will say what is wrong with it
            return f"its {key} {subnet} cannot be read"
        if overlaps:
            return f"its {key} {subnet} overlaps with the nodes' own range {NETWORK}"
    return ""


def address(position: int) -> str:
    """The inner address of the node at that position of kindConfig.nodes."""
    return str(NETWORK[position + 1])


def control_plane(spec: ClusterSpec) -> str:
    """The inner address of the one control plane."""
    roles = [node.get("role", "control-plane") for node in spec.nodes]
    return address(roles.index("control-plane"))


def services(spec: ClusterSpec) -> IPv4Network:
    """The range of service addresses; its first is the API server's."""
    networking = spec.kind_config.get("networking") or {}
    return IPv4Network(networking.get("serviceSubnet") or _SERVICES, strict=False)


def node_name(spec: ClusterSpec, cluster: str, container: str) -> str:
    """What Kubernetes calls a node: after its shape, and so the same in every copy, whatever its cluster is called.

    Args:
        spec: the shape.
        cluster: the cluster's name.
        container: the name of the node's container: `<cluster>-worker2`.
    """
    if why_not(spec):
        return container
    return spec.metadata.name[:_MOST_LETTERS].rstrip("-") + container.removeprefix(cluster)


def names(spec: ClusterSpec) -> list[str]:
    """The names of its nodes in Kubernetes, in the order of kindConfig.nodes; kind numbers those of each role."""
    counted: dict[str, int] = {}
    found = []
    for node in spec.nodes:
        role = str(node.get("role", "control-plane"))
        counted[role] = counted.get(role, 0) + 1
        number = "" if counted[role] == 1 else str(counted[role])
        found.append(node_name(spec, "", f"-{role}{number}"))
    return found
