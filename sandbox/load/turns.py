"""What the users of a locustfile are at. A turn is one task of one user, from its first moment to its last.

Imported only inside a load process, after gevent has patched it.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any
from weakref import WeakSet

from gevent import Greenlet, getcurrent
from locust import TaskSet, User
from locust.exception import InterruptTaskSet, RescheduleTask, RescheduleTaskImmediately, StopTest, StopUser

from sandbox.load.record import Recorder
from sandbox.timeline import Request

_IN_ORDER = (InterruptTaskSet, RescheduleTask, RescheduleTaskImmediately, StopTest, StopUser)


@dataclass
class Turn:
    """One turn under way. Seconds since the run began.

    Attributes:
        name: the task's.
        began: when it did.
        held: its latest request, not written yet: if the task raises, that is the answer it broke on.
    """

    user: User
    name: str
    began: float
    held: Request | None = None

    @property
    def since(self) -> float:
        """When what it is at now began: its last answer is that old."""
        return self.began if self.held is None else self.held.t


class Turns:
    """The turns of all users of this process.

    A request is written when the next one of its turn comes, or at the turn's end: a turn whose task raised is a
    failed one, and so is the answer that it raised on, whatever Locust was told of it before.
    """

    def __init__(self, recorder: Recorder, tags: Callable[[str], dict[str, str]]) -> None:
        """Follow every task from now on; `tags`: of a request that Locust's tables would call so."""
        self._recorder = recorder
        self._tags = tags
        self._seen: WeakSet[User] = WeakSet()
        self._under_way: dict[Any, Turn] = {}
        self._told: dict[Any, BaseException] = {}
        TaskSet.execute_next_task = self._watched(TaskSet.execute_next_task)  # type: ignore[method-assign]  # of all

    def write(self, request: Request, url: Any) -> Request:
        """Take a request of the user whose greenlet this is; of any other greenlet it is written at once.

        `url`: whom it asked, where Locust was told; otherwise its user's host.
        """
        turn = self._under_way.get(getcurrent())
        self._recorder.targets.ask(url or (turn.user.host if turn else None))
        if turn is None:
            return self._recorder.write(request)
        self._release(turn)
        turn.held = request
        return request

    def raised(self, user: User, error: BaseException) -> None:
        """Count what a user raised: of a task that is done already, but not what its `on_start` raised."""
        if self._told.pop(getcurrent(), None) is not error:
            now = self._recorder.now()
            self._recorder.write(self._lost(Turn(user, "on_start", now), "inband_error", _words(user, error)))

    def at_work(self, users: Iterable[Greenlet], otherwise: float) -> Iterator[Turn]:
        """Yield what these users are at: one that is at no task began or ends, nobody knows since when: `otherwise`."""
        for greenlet in users:
            turn = self._under_way.get(greenlet)
            if turn is not None:
                yield turn
            elif greenlet.args:  # Locust's: the user; it is empty once it has ended
                yield Turn(greenlet.args[0], "on_start or on_stop", otherwise)

    def unanswered(self, turn: Turn) -> None:
        """Count a turn that did not come to its end as a request without an answer."""
        waited = self._recorder.now() - turn.since
        said = f"{type(turn.user).__name__} was at {turn.name} for {waited:.1f} s without an end, and was ended"
        began = Turn(turn.user, turn.name, turn.since)
        self._recorder.write(self._lost(began, "timeout", said))

    def _watched(self, original: Callable[[TaskSet], None]) -> Callable[[TaskSet], None]:
        def execute_next_task(tasks: TaskSet) -> None:
            task = tasks._task_queue[0]  # noqa: SLF001 - Locust pops it next
            if inspect.isclass(task):  # a set of tasks: each of its own is a turn
                original(tasks)
                return
            with self._turn(tasks.user, getattr(task, "__name__", str(task))):
                original(tasks)

        return execute_next_task

    @contextmanager
    def _turn(self, user: User, name: str) -> Iterator[None]:
        greenlet = getcurrent()
        around = self._under_way.get(greenlet)
        turn = self._under_way[greenlet] = Turn(user, name, self._recorder.now())
        if user not in self._seen:
            self._seen.add(user)
            self._recorder.user_came()
        try:
            yield
        except _IN_ORDER:
            raise
        except Exception as error:
            self._told[greenlet] = error
            self._break(turn, _words(user, error))
            raise
        finally:
            self._release(turn)
            del self._under_way[greenlet]
            if around is not None:
                self._under_way[greenlet] = around

    def _break(self, turn: Turn, said: str) -> None:
        """What a turn that raised comes to: its last answer was none. One that had failed before stays as it is."""
        if turn.held is None:
            turn.held = self._lost(turn, "inband_error", said)
        elif turn.held.outcome == "ok":
            turn.held = turn.held.model_copy(update={"outcome": "inband_error", "detail": said})

    def _release(self, turn: Turn) -> None:
        if turn.held is not None:
            self._recorder.write(turn.held)
            turn.held = None

    def _lost(self, turn: Turn, outcome: str, said: str) -> Request:
        """A request that Locust told nothing of; it asked the user's host, as far as anybody knows."""
        self._recorder.targets.ask(turn.user.host)
        return Request(
            t=self._recorder.now(),
            scheduled=turn.began,
            sent=turn.began,
            outcome=outcome,
            detail=said,
            tags=self._tags(turn.name),
        )


def _words(user: User, error: BaseException) -> str:
    return f"{type(user).__name__} raised {type(error).__name__}: {error}"
