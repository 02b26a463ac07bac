"""Clusters: made with kind or taken as they are, proven to be ours before they are changed, removed without a trace."""

from sandbox.cluster.bringup import restore, up
from sandbox.cluster.costs import weighed
from sandbox.cluster.fetching import keep
from sandbox.cluster.guard import prove_ours
from sandbox.cluster.leftovers import reap
from sandbox.cluster.looking import Status, current, kubeconfig, list_clusters, status
from sandbox.cluster.owner import Owner
from sandbox.cluster.pool.returning import release
from sandbox.cluster.proof import Proof, prove_all, prove_metrics, prove_network_policy, prove_storage
from sandbox.cluster.record import Cluster, Node, lease
from sandbox.cluster.renewing import renew
from sandbox.cluster.teardown import down

__all__ = [
    "Cluster",
    "Node",
    "Owner",
    "Proof",
    "Status",
    "current",
    "down",
    "keep",
    "kubeconfig",
    "lease",
    "list_clusters",
    "prove_all",
    "prove_metrics",
    "prove_network_policy",
    "prove_ours",
    "prove_storage",
    "reap",
    "release",
    "renew",
    "restore",
    "status",
    "up",
    "weighed",
]
