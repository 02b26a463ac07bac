"""More users step by step, then none: a shape of Locust's decides how many there are.

Run it: `locust -f loadtests/locustfile_steps.py --host http://127.0.0.1:8000 --headless`.
"""

from __future__ import annotations

from locust import LoadTestShape, constant_pacing

from sandbox.load.user import StreamingUser


class Regular(StreamingUser):
    """Holds one conversation of the profile a second, as long as the answers are quick enough for that."""

    wait_time = constant_pacing(1)
    profile = "chat-short"


class Steps(LoadTestShape):
    """Each step: until when, in seconds, and how many users."""

    steps = ((10, 2), (20, 4), (30, 8))
    spawn_rate = 10

    def tick(self) -> tuple[int, float] | None:
        """Return users and how many start each second; None ends the test."""
        now = self.get_run_time()
        return next(((users, self.spawn_rate) for until, users in self.steps if now < until), None)
