"""The Locust user: Locust spawns, counts and stops it; what it sends is the session's.

Imported only inside the load process: importing Locust patches the interpreter.
"""

from __future__ import annotations

from typing import ClassVar

from locust import User, task
from locust.exception import StopUser

from sandbox.load.session import Session


class PlannedUser(User):
    """Open loop: the only one, which starts every request at its time. Closed loop: one of several that wait."""

    session: ClassVar[Session]

    @task
    def follow_the_plan(self) -> None:
        """Do all of it, once."""
        self.session.follow_the_plan()
        raise StopUser
