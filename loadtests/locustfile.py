"""Chats with an OpenAI-compatible endpoint: one attempt each, every outcome apart.

Run it: `locust -f loadtests/locustfile.py --host http://127.0.0.1:8000`, or in a scenario:
`load: {locustfile: loadtests/locustfile.py, arrivals: {process: closed, users: 10}, duration: 60s}`.
"""

from __future__ import annotations

from locust import between, task

from sandbox.load.user import StreamingUser


class Visitor(StreamingUser):
    """Asks, and now and then asks back."""

    weight = 3
    wait_time = between(0.5, 2)

    @task(3)
    def ask(self) -> None:
        """One question."""
        self.client.chat("Why is the sky blue?", max_tokens=64, name="question")

    @task
    def ask_back(self) -> None:
        """A second question about the answer to the first."""
        asked = [{"role": "user", "content": "Name a fruit."}]
        answer = self.client.chat(asked, max_tokens=16, name="first turn")
        if answer.ok:
            asked += [{"role": "assistant", "content": answer.text}, {"role": "user", "content": "Where does it grow?"}]
            self.client.chat(asked, max_tokens=64, name="second turn")


class Regular(StreamingUser):
    """Follows a traffic profile: its lengths, its prompts, its turns."""

    weight = 1
    wait_time = between(1, 3)
    profile = "chat-short"
