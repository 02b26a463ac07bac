"""What a node is given beside its image: files of ours below /var, and a step before its container runtime starts."""

from __future__ import annotations

from typing import TYPE_CHECKING

import yaml

from sandbox.cluster import inner

if TYPE_CHECKING:
    from sandbox.spec.cluster import ClusterSpec

FOLDER = "lib/ai-k8s-sandbox"  # below /var
PATCHES = f"/var/{FOLDER}/patches"
SCHEDULER = f"/var/{FOLDER}/scheduler.yaml"
DROP_IN = "/etc/systemd/system/containerd.service.d"  # where FOLDER's folder of that name is mounted
_DROP_IN = "containerd.service.d"
_UNIT = f"""\
[Unit]
Before=kubelet.service
[Service]
ExecStartPre=/bin/sh /var/{FOLDER}/before-containerd
"""
# Until kube-proxy is up a service's address leads out of the node, where nobody answers: a client waits for half a
# minute, or gives up and is started again only after a while. So the API server's is led to it from the start, and
# every other one refused.
_BEFORE = """\
set -e
rm -f /kind/old-ipv4 /kind/old-ipv6  # kind's entrypoint would look for the engine's addresses, which nothing names
ip address replace {address}/{bits} dev eth0
for chain in PREROUTING OUTPUT; do
  set -- "$chain" -d {api}/32 -p tcp --dport 443 -j DNAT --to-destination {control_plane}:{port}
  iptables -w -t nat -C "$@" 2>/dev/null || iptables -w -t nat -A "$@"
done
for chain in FORWARD OUTPUT; do
  set -- "$chain" -d {services} -j REJECT
  iptables -w -C "$@" 2>/dev/null || iptables -w -I "$@"
done
"""


def of_node(spec: ClusterSpec, position: int) -> dict[str, str]:
    """The files of the node at that position of kindConfig.nodes: path below /var -> text."""
    files = {}
    if not inner.why_not(spec):
        services = inner.services(spec)
        files[f"{_DROP_IN}/sandbox.conf"] = _UNIT
        files["before-containerd"] = _BEFORE.format(
            address=inner.address(position),
            bits=inner.NETWORK.prefixlen,
            api=services[1],
            control_plane=inner.control_plane(spec),
            port=inner.API_PORT,
            services=services,
        )
    if spec.nodes[position].get("role", "control-plane") == "control-plane":
        files["patches/corednsdeployment+strategic.yaml"] = yaml.safe_dump(_coredns(spec))
        if spec.scheduler_config is not None:
            files["scheduler.yaml"] = yaml.safe_dump(spec.scheduler_config, sort_keys=False)
    return {f"{FOLDER}/{path}": text for path, text in files.items()}


def _coredns(spec: ClusterSpec) -> dict[str, object]:
    """DNS is looked at each second: a kubelet that is new waits for up to one period, usually ten, before it looks."""
    container = {"name": "coredns", "readinessProbe": {"periodSeconds": 1}}
    patch: dict[str, object] = {"template": {"spec": {"containers": [container]}}}
    if len(spec.nodes) == 1:  # a second one on the same node takes over from nothing
        patch["replicas"] = 1
    return {"spec": patch}
