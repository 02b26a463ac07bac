"""What the telemetry of an emulated node reads, in small: a kubelet, an API with pods, servers with metrics."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, Self

from sandbox.gpu.emulator import rpc
from sandbox.gpu.emulator.api import podresources_pb2 as api
from sandbox.gpu.emulator.apiserver import ApiError
from sandbox.gpu.emulator.pods import Pods
from sandbox.gpu.emulator.throttle import nanoseconds

Object = dict[str, Any]

VLLM = """\
# HELP vllm:num_requests_running Number of requests in model execution batches.
# TYPE vllm:num_requests_running gauge
vllm:num_requests_running{engine="0",model_name="meta-llama/Llama-3.1-8B-Instruct"} 12.0
# HELP vllm:num_requests_waiting Number of requests waiting to be processed.
# TYPE vllm:num_requests_waiting gauge
vllm:num_requests_waiting{engine="0",model_name="meta-llama/Llama-3.1-8B-Instruct"} 3.0
# HELP vllm:kv_cache_usage_perc KV-cache usage. 1 means 100 percent usage.
# TYPE vllm:kv_cache_usage_perc gauge
vllm:kv_cache_usage_perc{engine="0",model_name="meta-llama/Llama-3.1-8B-Instruct"} 0.25
# HELP vllm:prompt_tokens_total Number of prefill tokens processed.
# TYPE vllm:prompt_tokens_total counter
vllm:prompt_tokens_total{engine="0",model_name="meta-llama/Llama-3.1-8B-Instruct"} 1200.0
# HELP vllm:prompt_tokens_created Number of prefill tokens processed.
# TYPE vllm:prompt_tokens_created gauge
vllm:prompt_tokens_created{engine="0",model_name="meta-llama/Llama-3.1-8B-Instruct"} 1.7e+09
# HELP vllm:generation_tokens_total Number of generation tokens processed.
# TYPE vllm:generation_tokens_total counter
vllm:generation_tokens_total{engine="0",model_name="meta-llama/Llama-3.1-8B-Instruct"} 345.0
# HELP vllm:time_to_first_token_seconds Histogram of time to first token in seconds.
# TYPE vllm:time_to_first_token_seconds histogram
vllm:time_to_first_token_seconds_bucket{engine="0",le="0.001",model_name="meta-llama/Llama-3.1-8B-Instruct"} 0.0
vllm:time_to_first_token_seconds_bucket{engine="0",le="+Inf",model_name="meta-llama/Llama-3.1-8B-Instruct"} 40.0
"""
SIMULATOR = """\
# HELP vllm:cache_config_info Information of the LLMEngine CacheConfig.
# TYPE vllm:cache_config_info gauge
vllm:cache_config_info{block_size="16",num_gpu_blocks="1024"} 1
# HELP vllm:generation_tokens_total Total number of generated tokens.
# TYPE vllm:generation_tokens_total counter
vllm:generation_tokens_total{model_name="test"} 1.5e+02
# HELP vllm:kv_cache_usage_perc Prometheus metric for the fraction of KV-cache blocks currently in use (from 0 to 1).
# TYPE vllm:kv_cache_usage_perc gauge
vllm:kv_cache_usage_perc{model_name="test"} 0.125
# HELP vllm:lora_requests_info Running stats on lora requests.
# TYPE vllm:lora_requests_info gauge
vllm:lora_requests_info{max_lora="1",running_lora_adapters="",waiting_lora_adapters=""} 1.795578924e+09
# HELP vllm:num_requests_running Number of requests currently running on GPU.
# TYPE vllm:num_requests_running gauge
vllm:num_requests_running{model_name="test"} 2
# HELP vllm:num_requests_waiting Prometheus metric for the number of queued requests.
# TYPE vllm:num_requests_waiting gauge
vllm:num_requests_waiting{model_name="test"} 0
"""
LLAMA = """\
# HELP llamacpp:prompt_tokens_total Number of prompt tokens processed, excluding cached tokens
# TYPE llamacpp:prompt_tokens_total counter
llamacpp:prompt_tokens_total 12
# HELP llamacpp:tokens_predicted_total Number of generation tokens processed
# TYPE llamacpp:tokens_predicted_total counter
llamacpp:tokens_predicted_total 20
# HELP llamacpp:tokens_predicted_seconds_total Total time spent generating tokens
# TYPE llamacpp:tokens_predicted_seconds_total counter
llamacpp:tokens_predicted_seconds_total 0.35443
# HELP llamacpp:predicted_tokens_seconds Average generation throughput in tokens/s
# TYPE llamacpp:predicted_tokens_seconds gauge
llamacpp:predicted_tokens_seconds 53.6072
# HELP llamacpp:requests_processing Number of requests processing
# TYPE llamacpp:requests_processing gauge
llamacpp:requests_processing 3
# HELP llamacpp:requests_deferred Number of requests deferred
# TYPE llamacpp:requests_deferred gauge
llamacpp:requests_deferred 1
# HELP llamacpp:n_busy_slots_per_decode Average number of busy slots per llama_decode() call
# TYPE llamacpp:n_busy_slots_per_decode gauge
llamacpp:n_busy_slots_per_decode 1
"""
LATENCIES = {
    "time-to-first-token": "100ms",
    "time-to-first-token-std-dev": "30ms",
    "inter-token-latency": "20ms",
    "inter-token-latency-std-dev": "0s",
    "prefill-overhead": "0s",
    "prefill-time-per-token": "0s",
    "prefill-time-std-dev": "0s",
    "kv-cache-transfer-latency": "5ms",
}


class Served:
    """A model server on loopback. `hang` makes it accept and say nothing; `config` is None where it has none."""

    def __init__(self, text: str = SIMULATOR, config: Object | None = None) -> None:
        self.text = text
        self.config = config
        self.posted: list[Object] = []
        self.asked: list[str] = []
        self.hang = threading.Event()
        self.refuse = False
        served = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                served.asked.append(self.path)
                if served.hang.is_set():
                    served.end.wait(5)
                elif self.path == "/metrics":
                    self.answer(200, served.text)
                elif self.path == "/admin/config" and served.config is not None:
                    self.answer(200, json.dumps(served.config))
                elif self.path == "/props":
                    self.answer(200, json.dumps({"total_slots": 4}))
                else:
                    self.answer(404, "no")

            def do_POST(self) -> None:
                body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                served.posted.append(body)
                if served.refuse or served.config is None:
                    self.answer(400, "no")
                    return
                served.config |= {name: go(nanoseconds(value)) for name, value in body.items()}
                self.answer(200, json.dumps(served.config))

            def answer(self, status: int, text: str) -> None:
                self.send_response(status)
                self.end_headers()
                self.wfile.write(text.encode())

            def log_message(self, *_: object) -> None:
                pass

        class Server(ThreadingHTTPServer):
            daemon_threads = True
            request_queue_size = 64

        self.end = threading.Event()
        self._server = Server(("127.0.0.1", 0), Handler)
        self.port: int = self._server.server_address[1]

    def __enter__(self) -> Self:
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.01,))
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        self.end.set()
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()


def simulator(**latencies: str) -> Served:
    return Served(SIMULATOR, {"max-num-seqs": 5, "port": 8000, **LATENCIES, **latencies})


def go(nano: int) -> str:
    """A duration as Go prints it."""
    if nano >= 60_000_000_000:
        return f"{nano // 60_000_000_000}m{nano % 60_000_000_000 / 1e9:.9g}s"
    return f"{nano / 1e9:.9g}s" if nano >= 1e9 or nano == 0 else f"{nano / 1e6:.9g}ms"


def pod(name: str = "server-0", port: int = 0, **more: Any) -> Object:
    """As the API has it: running, one container called `server`."""
    container = {"name": "server", "ports": [{"containerPort": port}] if port else [], **more.get("container", {})}
    state = {"name": "server", "state": {"running": {}}, "containerID": f"containerd://{more.get('instance', 'one')}"}
    return {
        "metadata": {
            "namespace": "default",
            "name": name,
            "uid": more.get("uid", f"uid-{name}"),
            "annotations": {f"ai-k8s-sandbox/{key}": text for key, text in more.get("notes", {}).items()},
        },
        "spec": {"containers": [container]},
        "status": {"phase": more.get("phase", "Running"), "podIP": "127.0.0.1", "containerStatuses": [state]},
    }


class PodApi:
    """Pods by path."""

    def __init__(self, *pods: Object) -> None:
        self.objects: dict[str, Object] = {}
        self.asked = 0
        self.down = False
        for each in pods:
            self.put(each)

    def put(self, thing: Object) -> None:
        meta = thing["metadata"]
        self.objects[f"/api/v1/namespaces/{meta['namespace']}/pods/{meta['name']}"] = thing

    def get(self, path: str) -> Object:
        self.asked += 1
        if self.down:
            raise ApiError(0, f"GET {path}", "TimeoutError")
        if path not in self.objects:
            raise ApiError(404, f"GET {path}", "NotFound")
        return self.objects[path]


@contextmanager
def reading(source: PodApi) -> Iterator[Pods]:
    """Pods, with their thread."""
    pods = Pods(source)  # type: ignore[arg-type]
    thread = threading.Thread(target=pods.run)
    thread.start()
    try:
        yield pods
    finally:
        pods.end()
        thread.join()


def known(pods: Pods, name: str = "server-0") -> None:
    """Wait until this pod was read."""
    pods.again("default", name)
    deadline = time.monotonic() + 5
    while pods.get("default", name) is None or ("default", name) in pods._asked:
        assert time.monotonic() < deadline
        time.sleep(0.005)


class Kubelet:
    """PodResourcesLister.List on a socket."""

    def __init__(self, socket: Path) -> None:
        self.socket = socket
        self.answer = api.ListPodResourcesResponse()
        self._server: Any = None

    def holds(self, name: str, *devices: str, resource: str = "nvidia.com/gpu", container: str = "server") -> None:
        held = api.ContainerDevices(resource_name=resource, device_ids=devices)
        containers = [api.ContainerResources(name=container, devices=[held])]
        self.answer.pod_resources.append(api.PodResources(name=name, namespace="default", containers=containers))

    def claims(self, name: str, claim: str, *devices: str, driver: str = "gpu.nvidia.com") -> None:
        parts = [api.ClaimResource(driver_name=driver, pool_name="worker-1", device_name=each) for each in devices]
        dynamic = [api.DynamicResource(claim_name=claim, claim_namespace="default", claim_resources=parts)]
        containers = [api.ContainerResources(name="server", dynamic_resources=dynamic)]
        self.answer.pod_resources.append(api.PodResources(name=name, namespace="default", containers=containers))

    def __enter__(self) -> Self:
        listing = rpc.unary(lambda _request, _context: self.answer, api.ListPodResourcesRequest)
        self._server = rpc.serve(self.socket, [rpc.service("v1.PodResourcesLister", {"List": listing})])
        return self

    def __exit__(self, *_: object) -> None:
        rpc.end(self._server, self.socket, grace=0)
