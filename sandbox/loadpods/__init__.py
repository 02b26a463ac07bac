"""Load that comes from pods: a Locust master and its workers in a cluster, the evidence here, event by event."""

from __future__ import annotations

import os
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import Any

from sandbox.errors import DeadlineExceeded, Unproven
from sandbox.kube import Kube, namespaces, wait_for
from sandbox.kube.conditions import describe
from sandbox.kube.resources import Object
from sandbox.kube.wait import Seen
from sandbox.load.plan import LoadPlan
from sandbox.load.relay import TIMELINE
from sandbox.load.runner import START_WITHIN, said, tail
from sandbox.loadpods import objects, parcel
from sandbox.loadpods.line import Clock, Line
from sandbox.spec.loadtest import variables_in
from sandbox.timeline import Fact, Timeline

__all__ = ["NAMESPACE", "PodLoad", "inside", "start_pods"]
NAMESPACE = objects.NAMESPACE
_PODS_WITHIN = 120.0
_EACH_WITHIN = 20.0
_STOP_SLACK = 10.0
_LOOK = 0.1
_CA = "ca.crt"


def inside(service: str, namespace: str, port: int) -> str:
    """The URL of a Service as pods of its cluster reach it."""
    return f"http://{service}.{namespace}.svc:{port}"


class PodLoad:
    """A load under way in pods; the same to its owner as `sandbox.load.runner.LoadProcess`.

    Attributes:
        started_at: when the first scheduled arrival lies, in the run's seconds; fault times count from here.
        log: what its processes said on their standard error.
    """

    def __init__(self, kube: Kube, plan: LoadPlan, lines: list[Line], log: Path) -> None:
        self.started_at = 0.0
        self.log = log
        self._kube = kube
        self._grace = plan.grace
        self._lines = lines
        self._code: int | None = None

    def poll(self) -> int | None:
        """The exit code; None while it runs. 0: ended as planned or stopped as asked, anything else: it broke."""
        if self._code is None:
            codes = [line.code for line in self._lines]
            broke = [code for code in codes if code]
            if broke:  # one that is lost takes all with it: what it would have sent is missing
                self._finish(broke[0])
            elif None not in codes:
                self._finish(0)
        return self._code

    def wait(self, within: float) -> int:
        """Wait up to `within` seconds for the end and return the exit code. The pods are removed then.

        Raises:
            DeadlineExceeded: it was still running then; it has been killed.
        """
        deadline = time.monotonic() + within
        while self.poll() is None and time.monotonic() < deadline:
            self._lines[0].join(_LOOK)
        code = self.poll()
        if code is None:
            self.kill()
            raise DeadlineExceeded(
                f"the load in pods had not ended after {within:g} s and was killed",
                where=str(self.log),
                details=tail(self.log),
                fix="look into its log; give it at least its duration and its timeout",
            )
        return code

    def end(self) -> None:
        """Ask it to end early, as `stop` does, and do not wait for it."""
        if self.poll() is None:
            self._lines[0].stop()

    def stop(self) -> int:
        """End it early and return the exit code.

        No request starts any more, those in flight get the plan's grace, the rest is cut and not counted.
        """
        if self.poll() is None:
            self._lines[0].stop()
            with suppress(DeadlineExceeded):
                return self.wait(self._grace + _STOP_SLACK)
        return 1 if self._code is None else self._code

    def kill(self) -> None:
        """End it now; the timeline stays without its last lines, and the judge will say so."""
        self._finish(1)

    def _finish(self, code: int) -> None:
        """Cut what still runs, and remove the pods."""
        if self._code is not None:
            return
        self._code = code
        if code:
            gone = [f"{line.pod}: exit code {line.code}" for line in self._lines if line.code]
            with self.log.open("a", encoding="utf-8") as log:
                log.write("".join(f"{each}\n" for each in gone))
            self._lines[0].stop()
        for line in self._lines:
            line.close()
        namespaces.remove(self._kube, [NAMESPACE])


def start_pods(kube: Kube, plan: LoadPlan, image_ref: str, pods: int, timeline: Timeline) -> PodLoad:
    """Start a load with `pods` workers in the cluster of `kube` and return once its first arrival is scheduled.

    `load.log` beside the timeline gets what the pods say. API keys go over the line, into no object of Kubernetes.
    The pods end when this process does, and in any case soon after the load's planned end.

    Args:
        kube: the cluster, as its administrator; its nodes can run `image_ref`.
        plan: its URL as the pods reach it (see `inside`); `golden` not empty: each worker is calibrated in its pod.
        image_ref: of the image `load-worker`.
        pods: workers; one more pod is their master.
        timeline: gets every event, on its own clock.

    Raises:
        UsageError: the plan's locustfile cannot be run.
        ClusterError: the namespace is somebody else's.
        Unproven: the load did not come up; the message holds the end of its log.
    """
    log = timeline.path.resolve().parent / "load.log"
    log.touch()
    namespaces.refuse_strangers(kube, [NAMESPACE])
    namespaces.remove(kube, [NAMESPACE])  # of a harness that was killed
    load = PodLoad(kube, plan, [], log)
    try:
        kube.apply(objects.all_of(kube, plan, image_ref, pods))
        names = [objects.MASTER, *(objects.worker_name(index) for index in range(pods))]
        found = _running(kube, names)
        box = parcel.packed()
        load._lines += [Line(kube, name, box, timeline.path, log) for name in names]  # noqa: SLF001 - being made
        with ThreadPoolExecutor(len(names)) as pool:
            clocks = list(pool.map(Line.clock, load._lines))  # noqa: SLF001 - the same
        timeline.append(Fact(t=timeline.now(), about="load pods", values=_facts(found, clocks)))
        address = str(found[0]["status"]["podIP"])
        for index, (line, clock) in enumerate(zip(load._lines, clocks, strict=True)):  # noqa: SLF001 - the same
            line.order(_order(plan, pods, clock, f"{address}:{objects.PORT}", master=index == 0))
        load.started_at = _begun(load._lines, START_WITHIN + _EACH_WITHIN * pods)  # noqa: SLF001 - the same
    except BaseException:
        load.kill()
        raise
    return load


def _running(kube: Kube, names: list[str]) -> list[Object]:
    """The pods, once all run and have an address."""

    def look() -> Seen[list[Object]]:
        pods = {pod["metadata"]["name"]: pod for pod in kube.list("v1", "Pod", NAMESPACE)}
        found = [pods[name] for name in names if name in pods]
        up = [pod for pod in found if pod["status"].get("phase") == "Running" and pod["status"].get("podIP")]
        return Seen(len(up) == len(names), found, "\n".join(describe(pod) for pod in found))

    return wait_for(look, within=_PODS_WITHIN, what=f"{len(names)} load pods running")


def _facts(pods: list[Object], clocks: list[Clock]) -> dict[str, Any]:
    """Where the pods run and how sure their times are, in milliseconds."""
    return {
        pod["metadata"]["name"]: {
            "node": pod["spec"].get("nodeName", ""),
            "clock": "this kernel's" if clock.same else "estimated by round trips",
            "offset_seen_ms": round(clock.seen / 1e6, 3),
            "uncertain_ms": round(clock.uncertain / 1e6, 3),
        }
        for pod, clock in zip(pods, clocks, strict=True)
    }


def _order(plan: LoadPlan, pods: int, clock: Clock, address: str, *, master: bool) -> dict[str, Any]:
    """What one pod is told. Each gets the run's start on its own clock: what it writes needs no correction here."""
    files = {}
    changes: dict[str, Any] = {
        "processes": pods,
        "epoch_ns": plan.epoch_ns + clock.offset,
        "timeline": Path(TIMELINE),
        "golden": plan.golden if master else "",  # the master writes down that there is one; each worker has its own
    }
    if plan.locustfile is not None:
        changes["locustfile"] = Path(plan.locustfile.name)
        files[plan.locustfile.name] = plan.locustfile.read_text(encoding="utf-8")
    if plan.ca_file is not None:
        changes["ca_file"] = Path(_CA)
        files[_CA] = plan.ca_file.read_text(encoding="utf-8")
    keys = {share.api_key_env for share in plan.shares if share.api_key_env}
    keys.update(*(variables_in(share.headers) for share in plan.shares))
    port = address.rpartition(":")[2]
    return {
        "plan": plan.model_copy(update=changes).model_dump(mode="json", by_alias=True),
        "files": files,
        "env": {name: os.environ.get(name, "") for name in keys},
        "arguments": ["--listen", f"0.0.0.0:{port}"] if master else ["--join", address],
        "calibrate": bool(plan.golden) and not master,
    }


def _begun(lines: list[Line], within: float) -> float:
    """When the load starts, as its master says.

    Raises:
        UsageError: it was refused.
        Unproven: it did not come up.
    """
    master = lines[0]
    deadline = time.monotonic() + within
    while not master.said and time.monotonic() < deadline:
        lost = [line for line in lines if line.code is not None]
        if lost:
            raise Unproven(f"load pod {lost[0].pod} ended before the load began (exit code {lost[0].code})")
        with suppress(Unproven):
            master.until(lambda: bool(master.said), _LOOK, "")
    for line in master.said:
        if (at := said(line)) is not None:
            return at
    raise Unproven(f"the load in pods did not come up within {within:g} s", details=master.said)
