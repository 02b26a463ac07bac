from __future__ import annotations

import asyncio
import socket
import time

import pytest
from gpu_dra import eventually
from gpu_telemetry import LLAMA, SIMULATOR, VLLM, PodApi, Served, known, pod, reading, simulator

from sandbox.gpu.emulator import servers as module
from sandbox.gpu.emulator.devices import Holder
from sandbox.gpu.emulator.model import Load
from sandbox.gpu.emulator.pods import mebibytes
from sandbox.gpu.emulator.pods import servers as containers
from sandbox.gpu.emulator.servers import NAMES, Sample, Servers, fetch, parse

KEY = ("default", "server-0", "server")


def holder(name: str = "server-0", *uuids: str) -> Holder:
    return Holder("default", name, "server", uuids or ("GPU-1",))


def look(*looks: Served, count: int = 1, wait: float = 0.0, **more: object) -> Load:
    """What is read of one server, in the last of `count` looks."""
    (served,) = looks
    with reading(PodApi(pod(port=served.port, **more))) as pods:
        known(pods)
        all_of_them = Servers(pods)

        async def several() -> Load:
            for _ in range(count):
                found = await all_of_them.read([holder()])
                await asyncio.sleep(wait)
            return found[KEY]

        return asyncio.run(several())


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (VLLM, Sample(12, 3, 0.25, tokens=1545, kind="vllm")),
        (VLLM.replace("kv_cache_usage_perc", "gpu_cache_usage_perc"), Sample(12, 3, 0.25, tokens=1545, kind="vllm")),
        (SIMULATOR, Sample(2, 0, 0.125, tokens=150, kind="vllm")),
        (LLAMA, Sample(3, 1, tokens=32, kind="llamacpp")),
    ],
)
def test_each_dialect_is_understood(text: str, said: Sample) -> None:
    assert parse(text.encode()) == said


def test_a_server_with_several_engines_is_their_sum_and_its_cache_the_fullest() -> None:
    second = VLLM.replace('engine="0"', 'engine="1"').replace(" 0.25", " 0.75")
    said = parse((VLLM + second).encode())
    assert (said.running, said.waiting, said.kv) == (24, 6, 0.75)


def test_metrics_of_something_else_say_nothing() -> None:
    assert parse(b"# TYPE up gauge\nup 1\nvllm:num_requests_running_ever 9\n").running is None
    assert parse(b"").running is None


def test_what_is_no_number_is_left_out_and_what_is_no_metric_is_an_error() -> None:
    assert parse(b'vllm:kv_cache_usage_perc{a="b"} NaN\nvllm:num_requests_running 1\n').kv == 0
    with pytest.raises(ValueError, match="float"):
        parse(b"vllm:num_requests_running many\n")


def test_a_long_answer_costs_little() -> None:
    bucket = b'vllm:e2e_request_latency_seconds_bucket{engine="0",le="0.5",model_name="meta-llama/Llama-3.1-8B"} 7.0\n'
    body = bucket * 4000 + VLLM.encode()
    begun = time.process_time()
    for _ in range(10):
        parse(body)
    assert (time.process_time() - begun) / 10 < 0.02


@pytest.mark.parametrize(
    ("text", "mib"), [("30000Mi", 30000), ("16Gi", 16384), ("1048576", 1), ("1.5Gi", 1536), ("2G", 2e9 / 2**20)]
)
def test_quantities_are_kubernetes_own(text: str, mib: float) -> None:
    assert mebibytes(text) == mib


@pytest.mark.parametrize("text", ["", "Mi", "-1Gi", "many", "1Xi", "nan", "1kk", "infGi"])
def test_other_quantities_are_refused(text: str) -> None:
    with pytest.raises(ValueError, match=r"quantity|number|float"):
        mebibytes(text)


def ports(*named: tuple[str, int]) -> dict[str, object]:
    return {
        "ports": [{"name": name, "containerPort": port} if name else {"containerPort": port} for name, port in named]
    }


@pytest.mark.parametrize(
    ("declared", "note", "port"),
    [
        (ports(("grpc", 1), ("http", 2), ("metrics", 3)), None, 3),
        (ports(("grpc", 1), ("http", 2)), None, 2),
        (ports(("", 1), ("", 2)), None, 1),
        (ports(), None, 0),
        (ports(("http", 2)), "9000", 9000),
        (ports(("http", 2), ("other", 7)), "other", 7),
        (ports(("http", 2)), "nowhere", 2),
    ],
)
def test_the_port_is_the_annotated_the_named_or_the_first(declared: dict, note: str | None, port: int) -> None:
    notes = {"gpu-metrics-port": note} if note else {}
    assert containers(pod(container=declared, notes=notes))["server"].port == port


def test_what_a_pod_declares_is_read_and_nonsense_is_said_aloud(caplog: pytest.LogCaptureFixture) -> None:
    notes = {"gpu-utilization": "0.8", "gpu-memory": "30000Mi", "gpu-weights": "16Gi", "gpu-preallocate": "0.5"}
    load = containers(pod(notes=notes))["server"].load
    assert load == Load(utilization=0.8, memory=30000, weights=16384, preallocated=0.5)
    assert containers(pod(notes={"gpu-utilization": "lots", "gpu-memory": "-1"}))["server"].load == Load()
    assert "default/server-0: ai-k8s-sandbox/gpu-utilization: " in caplog.text


def test_flags_of_the_server_count_unless_an_annotation_says_otherwise() -> None:
    words = {"command": ["vllm", "serve"], "args": ["--max-num-seqs=64", "--gpu-memory-utilization", "0.5"]}
    assert containers(pod(container=words))["server"].load == Load(capacity=64, preallocated=0.5)
    noted = containers(pod(container=words, notes={"gpu-capacity": "8"}))["server"].load
    assert noted.capacity == 8
    assert containers(pod(container={"args": ["--max-num-seqs"]}))["server"].load == Load()


def test_sidecars_hold_devices_too_and_a_container_that_waits_has_no_instance() -> None:
    thing = pod()
    thing["spec"]["initContainers"] = [
        {"name": "sidecar", "restartPolicy": "Always", "ports": [{"containerPort": 5}]},
        {"name": "setup"},
    ]
    thing["status"]["containerStatuses"][0]["state"] = {"waiting": {"reason": "CrashLoopBackOff"}}
    found = containers(thing)
    assert found.keys() == {"server", "sidecar"}
    assert not found["server"].reachable


def test_a_server_says_how_many_requests_fill_it() -> None:
    with simulator() as served:
        load = look(served, count=2)
        assert (load.running, load.capacity, load.kv, load.serving) == (2, 5, 0.125, True)
        assert served.asked == ["/metrics", "/admin/config", "/metrics"]
    with Served(LLAMA) as served:
        assert look(served).capacity == 4
    with Served(VLLM) as served:  # a real one does not say
        load = look(served, count=2)
        assert (load.capacity, load.preallocated) == (None, 0.92)
        assert served.asked.count("/admin/config") == 1


def test_annotations_teach_it_other_metrics() -> None:
    notes = {
        "gpu-metric-running": "batch:active",
        "gpu-metric-waiting": "batch:queued",
        "gpu-metric-capacity": "batch:slots",
        "gpu-metric-kv": "batch:cache",
    }
    text = "batch:active 3\nbatch:queued 2\nbatch:slots 10\nbatch:cache 0.5\n"
    with Served(text) as served:
        load = look(served, notes=notes)
        assert (load.running, load.waiting, load.capacity, load.kv, load.serving) == (3, 2, 10, 0.5, True)
        assert look(served) == Load(devices=1)


def test_work_that_was_over_between_two_looks_counts_half() -> None:
    idle = SIMULATOR.replace('running{model_name="test"} 2', 'running{model_name="test"} 0')
    with simulator() as served, reading(PodApi(pod(port=served.port))) as pods:
        known(pods)
        every = Servers(pods)

        async def twice() -> list[float]:
            served.text = idle
            before = await every.read([holder()])
            served.text = idle.replace("1.5e+02", "1.6e+02")
            between = await every.read([holder()])
            after = await every.read([holder()])
            return [found[KEY].running for found in (before, between, after)]

        assert asyncio.run(twice()) == [0, 0.5, 0]


def test_a_job_without_metrics_is_not_asked() -> None:
    with simulator() as served:
        assert look(served, notes={"gpu-utilization": "0.5"}) == Load(utilization=0.5)
        assert not served.asked


@pytest.mark.parametrize(
    ("text", "more", "why"),
    [
        (SIMULATOR, {}, None),
        (SIMULATOR, {"notes": {"gpu-utilization": "0"}, "port": 0}, None),
        ("up 1\n", {}, "it has no metrics that are known"),
        ("vllm:num_requests_running many\n", {}, "nobody listens, or what it says are no metrics"),
        (SIMULATOR, {"port": 0}, "it has no port, and no utilization is declared"),
        ("hang", {}, "it does not answer"),
    ],
)
def test_it_is_said_of_whom_nothing_is_known(
    text: str, more: dict, why: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "SECONDS", 0.3 if text == "hang" else 2.0)
    with Served(text) as served, reading(PodApi(pod(**{"port": served.port, **more}))) as pods:
        if text == "hang":
            served.hang.set()
        known(pods)
        every = Servers(pods)
        asyncio.run(every.read([holder()]))
        assert every.unread == ({("default", "server-0"): why} if why else {})
        asyncio.run(every.read([]))
        assert every.unread == {}


def test_a_container_that_does_not_run_does_nothing_whatever_it_declares() -> None:
    thing = pod(notes={"gpu-utilization": "0.5", "gpu-memory": "1Gi"})
    thing["status"]["containerStatuses"][0]["state"] = {"waiting": {}}
    with reading(PodApi(thing)) as pods:
        known(pods)
        assert asyncio.run(Servers(pods).read([holder()])) == {}


def test_a_server_that_is_gone_does_nothing_and_has_given_its_memory_back() -> None:
    with simulator() as served, reading(PodApi(pod(port=served.port))) as pods:
        known(pods)
        every = Servers(pods)

        async def lose() -> tuple[Load, Load]:
            before = (await every.read([holder()]))[KEY]
            await asyncio.to_thread(served.close)
            return before, (await every.read([holder()]))[KEY]

        before, after = asyncio.run(lose())
        assert (before.running, after) == (2, Load(devices=1))


def test_a_hung_server_keeps_what_it_did_for_a_while_and_its_memory_after_that(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_STALE_SECONDS", 0.4)
    with simulator() as served, reading(PodApi(pod(port=served.port))) as pods:
        known(pods)
        every = Servers(pods)

        async def hang() -> list[Load]:
            found = [await every.read([holder()])]
            served.hang.set()
            monkeypatch.setattr(module, "SECONDS", 0.05)
            found.append(await every.read([holder()]))
            await asyncio.sleep(0.4)
            found.append(await every.read([holder()]))
            return [each[KEY] for each in found]

        at_work, late, hung = asyncio.run(hang())
        assert at_work == late
        assert (hung.running, hung.serving) == (0, True)


def test_a_hung_server_does_not_hold_up_the_others_and_is_asked_less_often(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "SECONDS", 0.4)
    with simulator() as well, simulator() as ill:
        ill.hang.set()
        names = [f"ill-{number}" for number in range(12)]
        source = PodApi(pod(port=well.port), *(pod(name, port=ill.port) for name in names))
        with reading(source) as pods:
            for name in ("server-0", *names):
                known(pods, name)
            every = Servers(pods)

            async def looks() -> list[float]:
                took = []
                for _ in range(4):
                    begun = time.monotonic()
                    found = await every.read([holder(), *map(holder, names)])
                    took.append(time.monotonic() - begun)
                    assert found[KEY].running == 2
                return took

            took = asyncio.run(looks())
            assert max(took) < 1.0
            assert took[-1] < 0.39  # nobody waits any more for those that hang


def test_an_unreachable_address_is_no_failure(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "SECONDS", 0.05)
    thing = pod(port=9)
    thing["status"]["podIP"] = ""
    with reading(PodApi(thing)) as pods:
        known(pods)
        assert asyncio.run(Servers(pods).read([holder()]))[KEY] == Load(devices=1)


def test_a_pod_nobody_knows_is_left_out_and_asked_for() -> None:
    source = PodApi()
    with reading(source) as pods:
        assert asyncio.run(Servers(pods).read([holder()])) == {}
        known(pods)
        assert pods.get("default", "server-0") == {}


def test_an_api_server_that_is_down_leaves_what_was_known() -> None:
    source = PodApi(pod(port=1))
    with reading(source) as pods:
        known(pods)
        source.down = True
        asked = source.asked
        pods.again("default", "server-0")
        while source.asked == asked:
            time.sleep(0.005)
        assert pods.get("default", "server-0")
        pods.keep(())
        assert pods.get("default", "server-0") is None


def test_a_restarted_container_begins_anew() -> None:
    source = PodApi()
    with simulator() as served, reading(source) as pods:
        every = Servers(pods)

        async def restart() -> float:
            source.put(pod(port=served.port))
            known(pods)
            await every.read([holder()])
            source.put(pod(port=served.port, instance="two"))
            known(pods)
            served.text = SIMULATOR.replace("1.5e+02", "9e+02").replace('running{model_name="test"} 2', "running 0")
            return (await every.read([holder()]))[KEY].running

        assert asyncio.run(restart()) == 0


def test_counters_that_begin_anew_mean_that_the_pod_is_looked_at() -> None:
    source = PodApi()
    with simulator() as served, reading(source) as pods:
        source.put(pod(port=served.port))
        known(pods)
        every = Servers(pods)

        async def restart() -> None:
            await every.read([holder()])
            served.text = SIMULATOR.replace("1.5e+02", "1")
            await every.read([holder()])

        asked = source.asked
        asyncio.run(restart())
        eventually(lambda: source.asked > asked)


def test_a_model_on_several_gpus_is_one() -> None:
    with simulator() as served, reading(PodApi(pod(port=served.port))) as pods:
        known(pods)
        found = asyncio.run(Servers(pods).read([holder("server-0", "GPU-1", "GPU-2", "MIG-3")]))
        assert found[KEY].devices == 2


def test_answers_in_chunks_are_put_together() -> None:
    chunked = (
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"
        b"1b\r\nvllm:num_requests_running 7\r\n1\r\n\n\r\n0\r\n\r\n"
    )
    with socket.create_server(("127.0.0.1", 0)) as listening:

        async def ask() -> bytes:
            def answer() -> None:
                connection, _ = listening.accept()
                with connection:
                    assert connection.recv(4096).startswith(b"GET /metrics HTTP/1.1\r\n")
                    connection.sendall(chunked)

            answering = asyncio.create_task(asyncio.to_thread(answer))
            _, body = await fetch("127.0.0.1", listening.getsockname()[1], "/metrics")
            await answering
            return body

        assert parse(asyncio.run(ask()), NAMES).running == 7


def test_an_answer_without_an_end_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_MOST_BYTES", 1000)
    with Served("x" * 5000) as served:
        assert look(served) == Load(devices=1)
