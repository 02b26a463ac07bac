"""What one writes in Locust without more: a FastHttpUser that reads the stream's lines."""

import json
import os
import time

from locust import FastHttpUser, task

BODY = json.loads(os.environ["BENCH_BODY"])


class Streams(FastHttpUser):
    @task
    def chat(self) -> None:
        begun = time.perf_counter()
        first = None
        for line in self.client.iter_lines("/v1/chat/completions", method="POST", json=BODY):
            if not line.startswith("data: {"):
                continue
            choices = json.loads(line[6:])["choices"]
            if first is None and choices and choices[0]["delta"].get("content"):
                first = (time.perf_counter() - begun) * 1000
        if first is not None:
            self.environment.events.request.fire(
                request_type="SSE", name="ttft", response_time=first, response_length=0, exception=None, context={}
            )
