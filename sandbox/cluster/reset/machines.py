"""Steps of a reset on the nodes: what came there is removed. What a command refuses is found by the next look."""

from __future__ import annotations

import shlex
from collections import Counter, defaultdict
from collections.abc import Sequence
from pathlib import PurePosixPath
from typing import TYPE_CHECKING

from sandbox.cluster import containers, making, nodes, traces
from sandbox.cluster.reset.turn import SECOND, Turn
from sandbox.host.engine import client
from sandbox.kube import wait_for

if TYPE_CHECKING:
    from docker.models.containers import Container

_API_SECONDS = 60.0
_AT_ONCE = 100
_CONTINUE = """
for file in /proc/[0-9]*/stat; do
  { read -r line <"$file"; } 2>/dev/null || continue
  rest=${line##*) }; folder=${file%/stat}
  [[ $rest != T* ]] || kill -CONT "${folder#/proc/}"
done
"""


def running(turn: Turn) -> None:
    """Start nodes that were stopped or paused."""
    if nodes.start_all(client(), turn.cluster.name):
        wait_for(lambda: making.answers(turn.kube), within=_API_SECONDS, what=f"the API server of {turn.cluster.name}")


def packet_filter(turn: Turn) -> None:
    """Remove rules and chains that came; of the chains that are always there, put the policy back."""
    for node, line in turn.lines("iptables ", "ip6tables "):  # sorted: rules (-A), then chains (-N), then policies (-P)
        tool, table, what, chain, *rest = shlex.split(line)
        command = [tool, "--wait", "--table", table]
        if what == "-A":
            containers.run(node, [*command, "-D", chain, *rest])
        elif what == "-N":
            containers.run(node, [*command, "-X", chain])
        else:
            before = (old for old in turn.clean.traces[str(node.name)] if old.startswith(f"{tool} {table} -P {chain} "))
            for old in before:
                containers.run(node, [*command, "-P", chain, old.rpartition(" ")[2]])
    for node, line in turn.lines("table "):
        containers.run(node, ["nft", "delete", *line.split()])


def traffic_control(turn: Turn) -> None:
    """Remove queueing disciplines that came, such as a delay: the kernel puts the default in their place."""
    for node, line in turn.lines("qdisc of "):
        kind, words = line.split()[2], line.split()
        device = words[words.index("dev") + 1]
        containers.run(node, ["tc", "qdisc", "del", "dev", device, kind if kind in {"ingress", "clsact"} else "root"])


def addresses(turn: Turn) -> None:
    """Remove interfaces, addresses and routes that came."""
    for node, line in turn.lines("link "):
        containers.run(node, ["ip", "link", "del", line.removeprefix("link ")])
    for node, line in turn.lines("address of "):
        _, _, device, _, address = line.split()
        containers.run(node, ["ip", "address", "del", address, "dev", device])
    for node, line in turn.lines("route "):
        containers.run(node, ["ip", "route", "del", *(word for word in line.split()[1:] if word != "linkdown")])


def processes(turn: Turn) -> None:
    """End processes that came: of several with one name those that started last."""
    found: defaultdict[Container, Counter[str]] = defaultdict(Counter)
    for node, line in turn.lines("process "):
        found[node][line.removeprefix("process ")] += 1
    signal = "-TERM" if turn.number < SECOND else "-KILL"  # one of ours lets go what it holds when it gets SIGTERM
    for node, names in found.items():
        there = traces.processes(node)
        numbers = [str(number) for name in names for _, _, number in _newest(there, name, names[name])]
        containers.run(node, ["kill", signal, *numbers])


def stopped(turn: Turn) -> None:
    """Let processes go on that were stopped or frozen, in pods too."""
    for node in {node for node, _ in turn.lines("stopped process ")}:
        containers.run(node, ["bash", "-c", _CONTINUE])
    for node, line in turn.lines("frozen "):
        file = f"{line.removeprefix('frozen ')}/freezer.state"
        containers.run(node, ["sh", "-c", 'echo THAWED >"$0"', file])


def files(turn: Turn) -> None:
    """Remove files and folders that came. One that was changed cannot be put back, nor can one that came into /usr."""
    found: defaultdict[Container, list[str]] = defaultdict(list)
    for node, line in turn.lines("file ", "folder "):
        found[node].append(_path(line))
    for node, paths in found.items():
        known = {_path(line) for line in turn.clean.traces[str(node.name)] if line.startswith(("file ", "folder "))}
        came = {*paths} - known
        top = sorted(path for path in came if not {*map(str, PurePosixPath(path).parents)} & came)
        for start in range(0, len(top), _AT_ONCE):
            containers.run(node, ["rm", "-rf", "--one-file-system", "--", *top[start : start + _AT_ONCE]])


def _newest(there: Sequence[tuple[str, int, int]], name: str, count: int) -> Sequence[tuple[str, int, int]]:
    return [each for each in there if each[0] == name][-count:]


def _path(line: str) -> str:
    return line.split(" ", 4)[4]
