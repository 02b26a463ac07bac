"""Processes of a node's containers stopped for a while, below Kubernetes: nothing is told, and nothing looks dead.

A shell of ours in the node does it, and lets them go when its time is over, whatever has become of this program. It
leaves no file. A process is told by the cgroup of its container, looked up anew for each signal: a number that has
gone to another process meanwhile is never hit.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import partial

from sandbox.cluster import containers, nodes
from sandbox.cluster.record import Cluster
from sandbox.errors import ClusterError
from sandbox.kube.wait import Seen, wait_for

STOPPED = "T"
_NAME = "ai-k8s-sandbox-signals"
_PERIOD = 0.2  # seconds, of a process that is slowed
_AGAIN = 0.5  # seconds until a process that hangs is stopped again, and with it what it has started meanwhile
_END_SECONDS = 10.0
_START = '(exec -a "$1" bash -c "$2" "${@:3}") </dev/null >/dev/null 2>&1 &'
# $0: seconds in all; $1, $2: seconds of a period to run and to be stopped; then the ids of containers
_HOLD = """
patterns=(); for id in "${@:3}"; do patterns+=(-e "$id"); done
tell() {
  local file pid found=1
  for file in $(grep -lsF "${patterns[@]}" /proc/[0-9]*/cgroup); do
    pid=${file#/proc/}; kill -"$1" "${pid%/cgroup}" 2>/dev/null && found=0
  done
  return $found
}
trap 'exit 0' TERM INT HUP
trap 'tell CONT' EXIT
read -r now _ </proc/uptime; end=$((${now%.*} + $0))
while read -r now _ </proc/uptime && ((${now%.*} < end)); do
  tell STOP || exit 0
  sleep "$2"
  if [[ $1 != 0 ]]; then tell CONT; sleep "$1"; fi
done
"""
# $0: looks; $1: seconds between two; then the ids
_LOOK = """
for ((look = 0; look < $0; look++)); do
  ((look)) && sleep "$1"
  for id in "${@:2}"; do
    for file in $(grep -lsF "$id" /proc/[0-9]*/cgroup); do
      { read -r line <"${file%cgroup}stat"; } 2>/dev/null || continue
      line=${line##*) }; echo "$id ${line%% *}"
    done
  done
done
"""


def hold(cluster: Cluster, node: str, ids: Sequence[str], *, tag: str, seconds: float, running: float = 0.0) -> None:
    """Stop every process of these containers for `seconds`, or with `running` all but that share of the time.

    Args:
        cluster: whose nodes are in our hands.
        node: where the containers run.
        ids: of the containers.
        tag: small letters, digits and hyphens; `release` takes it.
        seconds: after which the node itself lets them go on.
        running: 0 for a process that hangs, 0.4 for one that is left 40 % of its time.

    Raises:
        UsageError: the node's machine is not in our hands.
        ClusterError: it did not take the order.
    """
    run, stop = (round(_PERIOD * running, 3), round(_PERIOD * (1 - running), 3)) if running else (0, _AGAIN)
    words = [f"{_NAME}-{tag}", _HOLD, str(math.ceil(seconds)), str(run), str(stop), *ids]
    code, output = containers.run(nodes.machine(cluster, node), ["bash", "-c", _START, "start", *words])
    if code:
        raise ClusterError("its processes could not be stopped", where=node, details=[output])


def release(cluster: Cluster, node: str, tag: str = "") -> bool:
    """Let go what `hold` with that tag stops, or without a tag all of it, and see that it is over.

    Returns:
        Whether anything was stopped.

    Raises:
        UsageError: the node's machine is not in our hands.
        DeadlineExceeded: a hold goes on.
    """
    there = holding(cluster, node, tag)
    if there:
        containers.run(nodes.machine(cluster, node), ["pkill", "-TERM", "-f", _pattern(tag)])
        over = partial(_over, cluster, node, tag)
        wait_for(over, within=_END_SECONDS, what=f"the end of what stops processes on {node}")
    return there


def holding(cluster: Cluster, node: str, tag: str = "") -> bool:
    """Tell whether a hold of that tag, or any, goes on in the node now.

    Raises:
        UsageError: the node's machine is not in our hands.
        ClusterError: the node cannot be asked.
    """
    code, output = containers.run(nodes.machine(cluster, node), ["pgrep", "-f", _pattern(tag)])
    if code not in {0, 1}:
        raise ClusterError("its processes cannot be looked at", where=node, details=[output])
    return code == 0


def states(cluster: Cluster, node: str, ids: Sequence[str], *, looks: int = 1, pause: float = 0.07) -> dict[str, str]:
    """What the node's kernel says of the processes of these containers.

    Returns:
        For each container the letters of /proc/<pid>/stat, one for each process and look: `T` is stopped. Empty for
        one that has no process.

    Raises:
        UsageError: the node's machine is not in our hands.
        ClusterError: the node cannot be asked.
    """
    words = ["bash", "-c", _LOOK, str(looks), str(pause), *ids]
    code, output = containers.run(nodes.machine(cluster, node), words)
    if code not in {0, 1}:
        raise ClusterError("its processes cannot be looked at", where=node, details=[output])
    found = dict.fromkeys(ids, "")
    for line in output.splitlines():
        container, _, letter = line.partition(" ")
        if container in found:
            found[container] += letter
    return found


def _over(cluster: Cluster, node: str, tag: str) -> Seen[None]:
    return Seen(not holding(cluster, node, tag), None, "its shell still runs")


def _pattern(tag: str) -> str:
    return f"^{_NAME}-{tag} " if tag else f"^{_NAME}-"
