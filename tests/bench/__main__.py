"""`nox -s bench`: figures, each beside its twin of the same run, written to docs/reference/benchmarks.md.

Machines are shared and noisy: medians of several runs, turn and turn about, and ratios. Nothing here is a test.
"""

from __future__ import annotations

import argparse
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path

import psutil
from docker.models.containers import Container

from sandbox import cluster, images
from sandbox.cluster import Cluster, config, costs, node_images, nodes, ownership
from sandbox.host.engine import client
from sandbox.host.preparing import prepare
from sandbox.kube import Kube, stacks
from sandbox.kube.wait import hold
from sandbox.load.calibrate import calibrate
from sandbox.spec.catalogue import find
from sandbox.spec.cluster import ClusterSpec
from tests.bench import busy, gpus, judging, load, starts
from tests.bench.answering import answering
from tests.bench.gpus import Row
from tests.bench.page import write

ROOT = Path(__file__).parents[2]
MAIN_SCENARIO = ROOT / "scenarios" / "chaos" / "survive-a-lost-replica.yaml"
BARE = "bench-bare"
OURS = "bench-ours"
_SETTLE_SECONDS = 30.0


def bare_up(image: str, toolbox: str) -> tuple[float, float]:
    """`kind create cluster` and the app image loaded, same node image and wait; seconds, and MiB once it settled."""
    spec = find("clusters", "solo", ClusterSpec, kind="cluster").model
    text = config.render(spec, image=image, cgroup=prepare().cgroup)
    kind = str(images.tool("kind"))
    with tempfile.TemporaryDirectory() as folder:
        kubeconfig = Path(folder) / "kubeconfig"
        env = {**os.environ, "KUBECONFIG": str(kubeconfig)}
        try:
            begun = time.monotonic()
            subprocess.run(
                [kind, "create", "cluster", "--name", BARE, "--config", "-"],
                input=text.encode(), check=True, env=env, capture_output=True,
            )  # fmt: skip
            node_images.load(machines(BARE), [toolbox])
            answering(Kube.connect(kubeconfig), toolbox)
            took = time.monotonic() - begun
            hold(_SETTLE_SECONDS)
            return took, memory(BARE)
        finally:
            subprocess.run([kind, "delete", "cluster", "--name", BARE], check=False, env=env, capture_output=True)


def our_up(toolbox: str) -> tuple[float, float]:
    """`sandbox up solo` with the app image, same wait; then vllm-sim on it: seconds, and MiB once it settled."""
    spec = find("clusters", "solo", ClusterSpec, kind="cluster").model
    try:
        begun = time.monotonic()
        made = cluster.up(spec, name=OURS, app_images=["toolbox"], cold=True)
        kube = Kube.connect(made.kubeconfig, made.context)
        answering(kube, toolbox)
        took = time.monotonic() - begun
        kube.delete([{"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "app", "namespace": "default"}}])
        with_simulator(made, kube)
        hold(_SETTLE_SECONDS)
        return took, memory(OURS)
    finally:
        cluster.down(OURS)


def with_simulator(made: Cluster, kube: Kube) -> None:
    """Deploy vllm-sim as a user would."""
    stack = stacks.load("vllm-sim")
    refs = {name: image.ref for name, image in images.ensure(stack.images).items()}
    nodes.load_images(made, list(refs.values()))
    stacks.deploy(kube, stack, {}, images=refs, addresses=made.node_addresses)


def memory(name: str) -> float:
    """MiB the node's cgroup holds without the page cache that the kernel gives back at need."""
    return costs.memory(machines(name)) / (1 << 20)


def machines(name: str) -> list[Container]:
    """The node containers of a cluster, whoever made it."""
    return client().containers.list(filters={"label": f"{ownership.KIND_LABEL}={name}"})


def trio_down() -> float:
    """Seconds that `sandbox down` takes, with three nodes that run."""
    cluster.up(find("clusters", "trio", ClusterSpec, kind="cluster").model, name=OURS)
    return timed(command("down", OURS))


def timed(act: Callable[[], object]) -> float:
    """Seconds one call takes."""
    begun = time.monotonic()
    act()
    return time.monotonic() - begun


def command(*arguments: str) -> Callable[[], object]:
    """A `sandbox` command as a user types it. One that fails ends the measuring: its time means nothing."""

    def act() -> None:
        whole = [sys.executable, "-m", "sandbox", *arguments]
        try:
            subprocess.run(whole, check=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, cwd=ROOT)
        except subprocess.CalledProcessError as failed:
            sys.stderr.write(failed.stdout)
            raise

    return act


def client_added(streams: int) -> Row:
    """A row: what the load client itself adds to a first token, against a server that logs when it wrote it."""
    found = calibrate(rate=20, streams=streams, seconds=10)
    lost = f"; lost: {found.lost}" if found.lost else ""
    figures = f"p50 {found.added_ttft_p50 * 1000:.1f}, p99 {found.added_ttft_p99 * 1000:.1f}{lost}"
    return (
        f"added to a first token by the load client, 20 requests/s, {found.streams} streams, ms",
        figures,
        "",
        "",
        "",
    )


def spread(values: list[float]) -> str:
    """Median and range."""
    return f"{statistics.median(values):.1f} ({min(values):.1f} to {max(values):.1f})"


def of_clusters(runs: int) -> list[Row]:
    """Coming up, memory, the main job and the load client."""
    built = images.ensure(["node", "toolbox", "vllm-sim"])
    node, toolbox = built["node"].ref, built["toolbox"].ref
    bare, ours = [], []
    for _ in range(runs):
        bare.append(bare_up(node, toolbox))
        ours.append(our_up(toolbox))
    ratios = [mine[0] / theirs[0] for mine, theirs in zip(ours, bare, strict=True)]
    no_op = [timed(command("images", "build")) for _ in range(5)]
    downs = [trio_down() for _ in range(runs)]
    main_job = timed(command("run", str(MAIN_SCENARIO)))
    return [
        ("up until an app and DNS answer, s", spread([v[0] for v in ours]), spread([v[0] for v in bare]),
         f"{statistics.median(ratios):.2f}x", "at most 1.1x; about 20 s"),
        ("memory of the idle node, MiB (ours with vllm-sim)", spread([v[1] for v in ours]),
         spread([v[1] for v in bare]), "", "at most 700 MiB"),
        ("`sandbox down` of a trio, s", spread(downs), "", "", "at most 5 s"),
        ("`sandbox images build`, all there, s", spread(no_op), "", "", "at most 2 s"),
        ("the main job, images there, s", f"{main_job:.1f}", "", "", "at most 150 s"),
        client_added(20),
        client_added(50),
        judging.row(runs),
    ]  # fmt: skip


def beside_kind(rows: Callable[[int], list[Row]]) -> Callable[[int], str]:
    """A part whose figures stand in one table, those of a bare cluster beside ours."""

    def block(runs: int) -> str:
        size = psutil.virtual_memory().total / (1 << 30)
        cpu = f"{os.cpu_count()} cores, {size:.0f} GiB, {platform.system()} {platform.machine()}"
        table = "\n".join(f"| {' | '.join(row)} |" for row in rows(runs))
        return (
            f"{datetime.now(UTC):%Y-%m-%d}, {cpu}, {runs} runs of what varies. Median (least to most).\n\n"
            f"| what | sandbox | bare kind | ratio | target |\n|---|---|---|---|---|\n{table}\n"
        )

    return block


PARTS: dict[str, Callable[[int], str]] = {
    "clusters": beside_kind(of_clusters),
    "starts": beside_kind(starts.rows),
    "gpus": beside_kind(gpus.rows),
    "fleet": beside_kind(gpus.fleet),
    "load": load.block,
    "busy": busy.block,
}


def main() -> None:
    """Measure, and write each part into its place on the page."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--runs", type=int, default=3, help="how often what varies is measured (default 3)")
    parser.add_argument(
        "--only", choices=PARTS, action="append", help="a part, instead of all of them; may be repeated"
    )
    options = parser.parse_args()
    prepare()
    for part in options.only or PARTS:
        write(part, PARTS[part](options.runs))


if __name__ == "__main__":
    main()
