"""A locustfile of the user's own under a scenario, unchanged: every request event of Locust's becomes one of ours.

Imported only inside a load process, after gevent has patched it.
"""

from __future__ import annotations

import inspect
import time
import traceback
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import gevent
import locust
from gevent.event import Event
from locust import LoadTestShape, User
from locust.argument_parser import get_parser
from locust.env import Environment
from locust.runners import Runner
from locust.util.load_locustfile import load_locustfile

from sandbox.errors import UsageError
from sandbox.load.client import Exchange, base_url
from sandbox.load.outcome import outcome_of
from sandbox.load.plan import LoadPlan
from sandbox.load.record import Recorder
from sandbox.load.session import Playing, beat, keep_the_end
from sandbox.load.turns import Turns
from sandbox.load.user import EXCHANGE, PART_OF, StreamingUser, following
from sandbox.timeline import Request

ENDED = "the locustfile ended the load"
_ENDS_BY_ITSELF = 86400.0
_SLACK = 1.0
_MOST_KINDS = 20
_FIX = "see docs/how-to/own-locustfile.md"


@dataclass(frozen=True)
class Loaded:
    """What a locustfile defines."""

    users: list[type[User]]
    shape: LoadTestShape | None


def load(path: Path) -> Loaded:
    """Read a locustfile as Locust does.

    Raises:
        UsageError: it does not load, or defines nothing that can be run; says where.
    """
    if not path.is_file():
        raise UsageError("there is no such locustfile", where=str(path), fix=_FIX)
    try:
        users, shapes = load_locustfile(str(path))
    except KeyboardInterrupt:
        raise
    except SyntaxError as error:
        raise UsageError(f"does not load: {error.msg}", where=f"{error.filename}:{error.lineno}", fix=_FIX) from error
    except BaseException as error:  # it is anybody's code, and may well call sys.exit
        said = f"does not load: {type(error).__name__}: {error}"
        raise UsageError(said, where=f"{path}:{_line(error, path)}", fix=_FIX) from error
    found = [user for user in users.values() if user.weight > 0 or user.fixed_count > 0]
    if not found:
        fix = "define a class of Locust's, such as `class Visitor(HttpUser)`, with a method marked @task"
        raise UsageError("defines no User class that can be spawned", where=f"{path}:1", fix=fix)
    idle = [
        user for user in found if not user.tasks and user.on_start is User.on_start and "__init__" not in vars(user)
    ]
    if idle:
        details = [f"{path}:{inspect.getsourcelines(user)[1]}: class {user.__name__}" for user in idle]
        raise UsageError(
            "has users without a task", where=str(path), details=details, fix="mark a method of each with @task"
        )
    if len(shapes) > 1:
        details = [f"{path}:{inspect.getsourcelines(type(shape))[1]}: {type(shape).__name__}" for shape in shapes]
        raise UsageError("has more than one LoadTestShape", where=str(path), details=details, fix="leave one")
    return Loaded(found, shapes[0] if shapes else None)


def _line(error: BaseException, path: Path) -> int:
    """The last line of the locustfile itself that was running."""
    lines = [frame.lineno for frame in traceback.extract_tb(error.__traceback__) if frame.filename == str(path)]
    return (lines[-1] or 1) if lines else 1


def environment_for(plan: LoadPlan, loaded: Loaded) -> Environment:
    """Locust's environment as `locust -f FILE --host URL` would make it; the listeners of the locustfile count."""
    host = base_url(plan.url).removesuffix("/v1")
    arrivals = plan.arrivals
    asked = ["--locustfile", str(plan.locustfile), "--host", host, "--users", str(arrivals.users or 1)]
    asked += ["--spawn-rate", f"{arrivals.spawn_rate or arrivals.users or 1:g}"]
    for user in loaded.users:
        user.host = user.host or host
        if issubclass(user, StreamingUser):
            _set_unless_set(user, "model", plan.model)
            _set_unless_set(user, "timeout", plan.timeout)
            _set_unless_set(user, "idle_timeout", plan.idle_timeout)
            _set_unless_set(user, "keep_alive", plan.keep_alive)
            _set_unless_set(user, "ca_file", plan.ca_file)
    of_their_own = any(user.host != host for user in loaded.users)
    return Environment(
        user_classes=loaded.users,
        shape_class=loaded.shape,
        events=locust.events,
        host=None if of_their_own else host,  # where it is set, Locust gives it to every class
        parsed_options=get_parser().parse_args(asked),
        locustfile=plan.locustfile.name if plan.locustfile else None,
        stop_timeout=_ENDS_BY_ITSELF,  # users end their task; what takes too long is ended here, and counted
    )


def _set_unless_set(user: type[StreamingUser], name: str, value: Any) -> None:
    if getattr(user, name) == getattr(StreamingUser, name):
        setattr(user, name, value)


def hosts_of_their_own(plan: LoadPlan, loaded: Loaded) -> list[str]:
    """A sentence for each class that does not load the plan's URL."""
    host = base_url(plan.url).removesuffix("/v1")
    return [
        f"{plan.locustfile}: {user.__name__} has a host of its own and loads {user.host}"
        for user in loaded.users
        if user.host and user.host != host
    ]


def ready(runner: Runner, index: int) -> None:
    """Do what takes long before the load begins: read the profiles that users of the `index`-th worker follow.

    Raises:
        SandboxError: there is no such profile, or it is wrong.
    """
    for user in runner.environment.user_classes:
        if issubclass(user, StreamingUser) and user.profile:
            following(user, index)


class Foreign(Playing):
    """One process's part of such a load: Locust's runner spawns and ends the users, this writes what they did."""

    def __init__(self, plan: LoadPlan, recorder: Recorder, runner: Runner) -> None:
        """Listen to every request from now on; `runner` has the users of this process."""
        super().__init__(plan, recorder)
        self._runner = runner
        self._began = time.monotonic_ns()
        self._give_back = keep_the_end(runner, lambda: self.stop(ENDED))
        self._raised: Counter[str] = Counter()
        self._turns = Turns(recorder, self._tags)
        for hook, listener in (
            (runner.environment.events.request, self._request),
            (runner.environment.events.user_error, self._user_error),
        ):
            hook.add_listener(listener)  # type: ignore[no-untyped-call]  # Locust's

    def start(self, t0: int, first_user: int = 0) -> None:  # noqa: ARG002 - Locust numbers nobody
        """The load begins at clock reading `t0`; Locust's runner, here or in the master, starts the users."""
        self._began = t0

    def settle(self) -> None:
        """When the load's time is up, let the users end their tasks; end those that take longer than a request may.

        What those were at is a request without an answer, unless an early stop left it no time.
        """
        self.over.wait()
        self._give_back()
        ending = gevent.spawn(self._runner.stop)
        gevent.wait([ending, self.stopping], timeout=self.plan.timeout + _SLACK, count=1)
        if not ending.ready() and self.stopping.is_set():
            gevent.wait([ending], timeout=self.plan.grace)
        if not ending.ready():
            self._end_users()
        ending.join()
        for said, times in self._raised.most_common(_MOST_KINDS):
            self._note(f"{said} ({times} times) in a task: each is counted as a request that failed")

    def _end_users(self) -> None:
        now, left = self.recorder.now(), len(self._runner.user_greenlets)
        began = (self._began - self.plan.epoch_ns) / 1e9
        for turn in list(self._turns.at_work(self._runner.user_greenlets, began)):
            if self.aborted and now - turn.since <= self.plan.timeout:
                self.left_out += 1
            else:
                self._turns.unanswered(turn)
        lost = left - self.left_out
        if lost:
            self._note(
                f"{lost} users were still at a task and were ended: each is counted as a request without an answer"
            )
        self._runner.user_greenlets.kill(block=False)

    def _note(self, message: str) -> None:
        self.recorder.remark(f"{self.plan.locustfile}: {message}")

    def pulse(self) -> None:
        """Beat until everything has ended; how many requests are in flight only the users know: they are counted."""
        beat(self.plan, self.recorder, lambda: len(self._runner.user_greenlets), self.done)

    def _user_error(self, user_instance: Any, exception: BaseException, **_: Any) -> None:
        user_instance = getattr(user_instance, "user", user_instance)  # Locust names a set of tasks here, or a user
        self._raised[f"{type(user_instance).__name__} raised {type(exception).__name__}: {exception}"] += 1
        try:
            self._turns.raised(user_instance, exception)
        except Exception as error:  # noqa: BLE001 - as for a request
            self.broke(error, f" at {exception!r}")

    def _request(
        self,
        *,
        request_type: str,
        name: str,
        response_time: float | None,
        exception: BaseException | None = None,
        context: dict[str, Any] | None = None,
        response: Any = None,
        start_time: float | None = None,
        url: Any = None,
        **_: Any,
    ) -> None:
        context = context or {}
        if PART_OF in context:  # a time within a request that has an event of its own
            return
        try:
            tags = self._tags(str(name))
            exchange = context.get(EXCHANGE)
            if isinstance(exchange, Exchange):
                # a user sends when it likes: it is on schedule
                self.recorder.exchanged(exchange.began, exchange, tags, lambda event: self._turns.write(event, url))
            else:
                self._turns.write(self._event(response_time, exception, response, start_time, tags), url)
        except Exception as error:  # noqa: BLE001 - Locust would log it and go on, and a request be missing
            self.broke(error, f" at {request_type} {name}")

    def _tags(self, name: str) -> dict[str, str]:
        """Of a request that Locust's tables call so."""
        file = self.plan.locustfile.stem if self.plan.locustfile else ""
        return {"model": self.plan.model, "profile": file, "name": name, **self.plan.tags}

    def _event(
        self,
        response_time: float | None,
        exception: BaseException | None,
        response: Any,
        start_time: float | None,
        tags: dict[str, str],
    ) -> Request:
        """What Locust tells: how long it took, and, of its own HTTP users, when it began on the wall clock."""
        took = (response_time or 0.0) / 1e3
        now = self.recorder.now()
        began = now - took if start_time is None else now - max(took, time.time() - start_time)
        outcome, status, detail = outcome_of(exception, response)
        return Request(
            t=began + took,
            scheduled=began,
            sent=None if outcome == "connect_error" else began,
            outcome=outcome,
            status=status,
            detail=detail,
            tags=tags,
        )


def introduce(runner: Runner) -> None:
    """Tell a locustfile's listeners that Locust is ready, as Locust's own command does."""
    environment = runner.environment
    fire: Callable[..., None] = environment.events.init.fire
    fire(environment=environment, runner=runner, web_ui=environment.web_ui)


class Conductor:
    """Starts and ends the users of such a load through Locust's runner: the only one of a load, or the master's.

    Attributes:
        users: how many there were to be at once, at the most: of a shape, what it has asked for.
    """

    def __init__(self, plan: LoadPlan, runner: Runner) -> None:
        """Make ready."""
        self._plan = plan
        self._shape = runner.environment.shape_class
        self._runner = runner
        self._shape_ended = Event()
        self.users = 0 if self._shape else plan.arrivals.users or 1

    def conduct(self, t0: int, over: Event) -> str:
        """From clock reading `t0` on, have Locust run the users; returns at the end, with a note, if a shape set it.

        `over`: set it to end sooner. The users are then still at work.
        """
        over.wait(max(0.0, (t0 - time.monotonic_ns()) / 1e9))
        shape, arrivals = self._shape, self._plan.arrivals
        if over.is_set():
            return ""
        if shape is not None:
            self._hold(shape)
            self._runner.start_shape()
        else:
            gevent.spawn(self._runner.start, self.users, spawn_rate=arrivals.spawn_rate or self.users)
        left = t0 / 1e9 + self._plan.duration - time.monotonic_ns() / 1e9
        gevent.wait([over, self._shape_ended], timeout=max(0.0, left), count=1)
        early = self._shape_ended.is_set() and not over.is_set()
        after = time.monotonic_ns() / 1e9 - t0 / 1e9
        named = f"{type(shape).__name__} ended the load after {after:.1f} of at most {self._plan.duration:g} s"
        return f"{self._plan.locustfile}: {named}" if early else ""

    def _hold(self, shape: LoadTestShape) -> None:
        """Notice the shape's end, in place of Locust, which would end the workers before they told all they saw."""
        tick = shape.tick
        last: Any = (0, 1.0)

        def watched() -> Any:
            nonlocal last
            wanted = tick()
            if wanted is None:
                self._shape_ended.set()
            else:
                last = wanted
                self.users = max(self.users, wanted[0])
            return last

        shape.tick = watched  # type: ignore[method-assign]  # of this instance
