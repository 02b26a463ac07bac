"""How long until a cluster answers: cold, from a snapshot, from the pool; beside kind, and beside an earlier build."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from statistics import median
from typing import Any

import httpx
import yaml
from docker.models.containers import Container

from sandbox import cluster, images
from sandbox.cluster import Cluster, Owner, containers, costs, node_images, ownership
from sandbox.cluster.pool import entries, filling, stillness
from sandbox.host.engine import client
from sandbox.host.preparing import prepare
from sandbox.kube import Kube, Seen, stacks, wait_for
from sandbox.kube.conditions import is_ready
from sandbox.kube.preparation import Preparation
from sandbox.spec.catalogue import find
from sandbox.spec.cluster import ClusterSpec
from tests.bench.answering import answering
from tests.bench.gpus import Row

ROOT = Path(__file__).parents[2]
EARLIER = "02c89a0"  # the build that these figures are held against
NAME = "bench-start"


def rows(runs: int) -> list[Row]:
    """The table: each start beside its twin of the same run, turn and turn about."""
    toolbox = images.ensure(["node", "toolbox", "vllm-sim"])["toolbox"].ref
    with earlier() as checkout:
        cold = turns(runs, {
            "ours": lambda: typed(ROOT, toolbox, "--cold"),
            "earlier": lambda: typed(checkout, toolbox),
            "kind": lambda: by_kind(toolbox),
        })  # fmt: skip
    beside = f"{ratio(cold['ours'], cold['kind']):.2f}x of kind's"
    faster = f"{ratio(cold['earlier'], cold['ours']):.2f}x faster than {EARLIER} ({shown(cold['earlier'])})"
    found = [
        ("cold `up` until an app and DNS answer, s", shown(cold["ours"]), shown(cold["kind"]),
         f"{beside}; {faster}", "at most 0.9x of kind's, at least 1.4x faster"),
    ]  # fmt: skip
    solo, trio = prepared("solo"), prepared("trio")
    for what, target in ((solo, "at most 16 s"), (trio, "at most 20 s, at least 2.5x faster than cold")):
        fresh = measured(what, lambda what=what: made(what, cold=True))  # type: ignore[misc]
        keep(what)
        restored = [measured(what, lambda what=what: made(what)) for _ in range(runs)]  # type: ignore[misc]
        words = f"restore of {what.spec.metadata.name} with vllm-sim until its URL answers, s"
        found.append((words, shown(restored), f"{fresh:.1f} (cold)", f"{fresh / median(restored):.1f}x faster", target))
        if what is solo:
            three = [at_once(what, 3) for _ in range(runs)]
            found.append(("restore of three at once, until all URLs answer, s", shown(three), "",
                          f"{median(three) / median(restored):.1f}x of one", "at most 2x of one"))  # fmt: skip
            found += pool(what, runs, fresh)
    return found


def pool(what: Preparation, runs: int, fresh: float) -> list[Row]:
    """Leases, what two that wait take, and a pause of ten minutes."""
    leased, whole = [], []
    for _ in range(runs):
        filling.fill(what, 1)
        lock, command = lease(what)
        leased.append(lock)
        whole.append(command)
    filling.fill(what, 2)
    waiting = [node for entry in entries.entries() for node in containers.nodes(client(), entry.name)]
    mib, share = costs.memory(waiting) / (1 << 20), busy(waiting)
    answered, lost = after_a_pause(what, 600.0)
    entries.drain()
    return [
        ("lease of solo with vllm-sim, from the lock to HTTP 200, s", shown(leased), f"{fresh:.1f} (cold)",
         f"{fresh / median(leased):.0f}x faster", "at most 2 s, at least 8x faster"),
        ("the same, from the command's start, s", shown(whole), "", "", "at most 3.5 s"),
        ("two solos with vllm-sim that wait, MiB", f"{mib:.0f}, {share:.2%} of a core", "", "",
         "at most 1.5 GiB, 1 % of a core"),
        ("after a pause of 10 minutes, until the app answers, s", f"{answered:.1f}, {lost}", "", "",
         "at most 2 s, none not ready"),
    ]  # fmt: skip


def turns(runs: int, ways: dict[str, Callable[[], float]]) -> dict[str, list[float]]:
    """Go each way in turn, so that what else the machine does strikes all alike; seconds of each."""
    found: dict[str, list[float]] = {name: [] for name in ways}
    for _ in range(runs):
        for name, go in ways.items():
            found[name].append(go())
    return found


@contextmanager
def earlier() -> Iterator[Path]:
    """A checkout of the earlier build."""
    with tempfile.TemporaryDirectory() as folder:
        checkout = Path(folder) / "checkout"
        git = ["git", "-C", str(ROOT)]
        subprocess.run([*git, "worktree", "add", "--detach", str(checkout), EARLIER], check=True, capture_output=True)
        try:
            yield checkout
        finally:
            subprocess.run([*git, "worktree", "remove", "--force", str(checkout)], check=True, capture_output=True)


def typed(checkout: Path, toolbox: str, *options: str) -> float:
    """`sandbox up solo` of that checkout, as it is typed, until an app and DNS answer; seconds."""
    with tempfile.TemporaryDirectory() as state:
        env = {**os.environ, "PYTHONPATH": str(checkout), "SANDBOX_STATE_DIR": state}
        sandbox = [sys.executable, "-m", "sandbox"]
        try:
            begun = time.monotonic()
            said = subprocess.run(
                [*sandbox, "up", "solo", "--name", NAME, *options, "-o", "json"],
                check=True, capture_output=True, text=True, env=env, cwd=checkout,
            ).stdout  # fmt: skip
            node_images.load(machines(NAME), [toolbox])
            answering(Kube.connect(Path(json.loads(said)["kubeconfig"])), toolbox)
            return time.monotonic() - begun
        finally:
            subprocess.run([*sandbox, "down", NAME], check=True, capture_output=True, env=env, cwd=checkout)
            for base in client().volumes.list(filters={"label": f"{ownership.STATE_LABEL}={state}"}):
                base.remove()


def by_kind(toolbox: str) -> float:
    """`kind create cluster` with kind's defaults and our node image, until an app and DNS answer; seconds."""
    config: dict[str, Any] = {"kind": "Cluster", "apiVersion": "kind.x-k8s.io/v1alpha4"}
    config["nodes"] = [{"role": "control-plane", "image": images.ensure(["node"])["node"].ref}]
    if prepare().cgroup == "1":  # the kubelet refuses it otherwise
        config["kubeadmConfigPatches"] = [yaml.safe_dump({"kind": "KubeletConfiguration", "failCgroupV1": False})]
    kind = str(images.tool("kind"))
    with tempfile.TemporaryDirectory() as folder:
        env = {**os.environ, "KUBECONFIG": str(Path(folder) / "kubeconfig")}
        try:
            begun = time.monotonic()
            subprocess.run(
                [kind, "create", "cluster", "--name", NAME, "--config", "-"],
                input=yaml.safe_dump(config).encode(), check=True, env=env, capture_output=True,
            )  # fmt: skip
            node_images.load(machines(NAME), [toolbox])
            answering(Kube.connect(Path(env["KUBECONFIG"])), toolbox)
            return time.monotonic() - begun
        finally:
            subprocess.run([kind, "delete", "cluster", "--name", NAME], check=False, env=env, capture_output=True)


def prepared(shape: str) -> Preparation:
    """A shape with vllm-sim on it."""
    stack = stacks.load("vllm-sim")
    spec = find("clusters", shape, ClusterSpec, kind="cluster").model
    return Preparation(spec, stacks=[(stack, {})], images=stack.images)


def made(what: Preparation, name: str = NAME, *, cold: bool = False) -> Cluster:
    """A cluster with all of it, whichever way it comes."""
    refs = {each: image.ref for each, image in images.ensure([*what.images]).items()}
    one = cluster.up(
        what.spec, name=name, app_images=what.images, owner=Owner.me(), deployed=what.objects(refs), cold=cold
    )
    if cold or one.origin.way == "cold":
        what.deploy(Kube.connect(one.kubeconfig, one.context), refs, one.node_addresses)
    return one


def keep(what: Preparation) -> None:
    """See that there is a snapshot of it."""
    refs = {each: image.ref for each, image in images.ensure([*what.images]).items()}
    try:
        one = made(what)
        what.deploy(Kube.connect(one.kubeconfig, one.context), refs, one.node_addresses)
        cluster.keep(one, what.spec, what.objects(refs))
    finally:
        cluster.down(NAME)


def measured(what: Preparation, come: Callable[[], Cluster]) -> float:
    """Seconds until its URL answers."""
    begun = time.monotonic()
    try:
        url_answers(come())
        return time.monotonic() - begun
    finally:
        cluster.down(NAME)


def at_once(what: Preparation, count: int) -> float:
    """Seconds until so many copies answer that are asked for together."""
    names = [f"{NAME}-{number}" for number in range(count)]
    begun = time.monotonic()
    try:
        with ThreadPoolExecutor(max_workers=count) as pool:
            list(pool.map(lambda name: url_answers(made(what, name)), names))
        return time.monotonic() - begun
    finally:
        for name in names:
            cluster.down(name)


def url_answers(one: Cluster) -> float:
    """Wait until vllm-sim answers on a node; seconds since the epoch when it did."""
    url = url_of(one)
    wait_for(lambda: asked(url), within=60, what=url)
    return time.time()


def url_of(one: Cluster) -> str:
    """Where vllm-sim of this cluster is asked for its models."""
    (service,) = Kube.connect(one.kubeconfig, one.context).list("v1", "Service", "inference")
    return f"http://{one.node_addresses[0]}:{service['spec']['ports'][0]['nodePort']}/v1/models"


def asked(url: str) -> Seen[None]:
    """One request; whether it was answered."""
    try:
        answer = httpx.get(url, trust_env=False, timeout=1)
    except httpx.TransportError as error:
        return Seen(False, None, str(error))
    return Seen(answer.is_success, None, f"HTTP {answer.status_code}")


def lease(what: Preparation) -> tuple[float, float]:
    """Seconds from the pool's lock, and from the start of a command, until the URL of a leased cluster answers."""
    script = (
        "import sys; from sandbox import images; from tests.bench import starts\n"
        "one = starts.made(starts.prepared(sys.argv[1])); assert one.origin.way == 'pool', one.origin\n"
        "print(one.created, starts.url_answers(one))\n"
    )
    begun = time.time()
    said = subprocess.run(
        [sys.executable, "-c", script, what.spec.metadata.name], check=True, capture_output=True, text=True, cwd=ROOT
    ).stdout
    cluster.reap()  # it belonged to that process
    taken, answered = map(float, said.split())
    return answered - taken, answered - begun


def after_a_pause(what: Preparation, seconds: float) -> tuple[float, str]:
    """Let one stand still for so long; seconds until its app answers, and what its pods and clients noticed."""
    one = made(what)
    try:
        nodes = containers.nodes(client(), one.name)
        kube = Kube.connect(one.kubeconfig, one.context)
        url_answers(one)
        stillness.still(nodes)
        time.sleep(seconds)
        begun = time.time()
        stillness.awake(nodes)
        first = url_answers(one) - begun
        stillness.complete(kube, nodes, one.node_names, since=begun)
        lost, unready, url = 0, 0, url_of(one)
        end = time.monotonic() + 60
        while time.monotonic() < end:
            lost += not asked(url).done
            unready += sum(not is_ready(pod) for pod in kube.list("v1", "Pod", "inference"))
            time.sleep(0.5)
        return first, f"{unready} times a pod not ready, {lost} requests lost in a minute"
    finally:
        cluster.down(one.name)


def busy(nodes: list[Container]) -> float:
    """The share of a core that nodes take, over ten seconds."""

    def used() -> float:
        return sum(float(node.stats(stream=False)["cpu_stats"]["cpu_usage"]["total_usage"]) for node in nodes) / 1e9

    before, begun = used(), time.monotonic()
    time.sleep(10)
    return (used() - before) / (time.monotonic() - begun)


def machines(name: str) -> list[Container]:
    """The node containers of a cluster, whoever made it."""
    return client().containers.list(filters={"label": f"{ownership.KIND_LABEL}={name}"})


def ratio(mine: list[float], theirs: list[float]) -> float:
    """The median of the ratios of each turn."""
    return median(one / other for one, other in zip(mine, theirs, strict=True))


def shown(values: list[float]) -> str:
    """Median and range."""
    return f"{median(values):.1f} ({min(values):.1f} to {max(values):.1f})"
