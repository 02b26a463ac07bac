"""The one waiter: everything that waits, waits here, with a deadline, and says on timeout what it last saw."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Generic, Protocol, TypeVar, runtime_checkable

from tenacity import RetryCallState, Retrying, retry_if_result, stop_after_delay

from sandbox.errors import DeadlineExceeded
from sandbox.kube.failures import ApiError, Unreachable, passing

T = TypeVar("T")
_FIRST_PAUSE = 0.05
_LONGEST_PAUSE = 1.0
_LONGEST_WATCH = 10.0


@dataclass(frozen=True)
class Seen(Generic[T]):
    """One look at the world.

    Attributes:
        done: whether what was waited for is there.
        value: what `wait_for` returns once it is.
        saw: what a person is told if it never comes; a few words, or several lines.
    """

    done: bool
    value: T
    saw: str


@runtime_checkable
class Watched(Protocol):
    """A condition that can tell when looking again is worth it."""

    def pause(self, seconds: float) -> None:
        """Return when something changed, at the latest after `seconds`."""


def wait_for(condition: Callable[[], Seen[T]], *, within: float, what: str) -> T:
    """Look until the condition is done and return its value.

    Between two looks a `Watched` condition (sandbox/kube/conditions.py) sleeps until the API server reports a
    change; any other is looked at again after 50 ms, then ever less often, at least once a second. An API server that
    does not answer, or answers that it is overloaded or in trouble (429, 5xx), counts as "not yet".

    Args:
        condition: called without arguments; raises what should end the wait at once.
        within: seconds until the last look.
        what: what is waited for, as it is named in the message.

    Raises:
        DeadlineExceeded: it did not come; `details` holds what was last seen.
    """
    deadline = time.monotonic() + within
    watched = isinstance(condition, Watched)

    def pause_before(state: RetryCallState) -> float:
        left = max(0.0, deadline - time.monotonic())
        if watched:
            return min(left, _LONGEST_WATCH)
        return min(left, _LONGEST_PAUSE, _FIRST_PAUSE * 1.5 ** (state.attempt_number - 1))

    def pause(seconds: float) -> None:
        if not isinstance(condition, Watched):
            time.sleep(seconds)
            return
        try:
            condition.pause(seconds)
        except (Unreachable, ApiError) as error:
            if not passing(error):
                raise
            time.sleep(min(seconds, _LONGEST_PAUSE))

    def give_up(state: RetryCallState) -> Seen[T | None]:
        outcome = state.outcome.result() if state.outcome else None
        raise DeadlineExceeded(
            f"{what} did not come within {within:g} s",
            details=(outcome.saw if outcome else "nothing was seen").splitlines(),
        )

    retry = Retrying(
        stop=stop_after_delay(within),
        wait=pause_before,
        sleep=pause,
        retry=retry_if_result(_not_done),
        retry_error_callback=give_up,
    )
    seen: Seen[T | None] = retry(_look, condition)
    return _value(seen)


def hold(seconds: float) -> None:
    """Let time pass on purpose: for "it must stay so" checks, which have nothing to wait for."""
    time.sleep(max(0.0, seconds))


def _look(condition: Callable[[], Seen[T]]) -> Seen[T | None]:
    try:
        return _widen(condition())
    except (Unreachable, ApiError) as error:
        if not passing(error):
            raise
        return Seen(False, None, error.what)


def _not_done(seen: Seen[T | None]) -> bool:
    return not seen.done


def _widen(seen: Seen[T]) -> Seen[T | None]:
    return Seen(seen.done, seen.value, seen.saw)


def _value(seen: Seen[T | None]) -> T:
    return seen.value  # type: ignore[return-value]  # done, hence the condition's own value
