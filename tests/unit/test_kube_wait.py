from __future__ import annotations

import time

import pytest

from sandbox.errors import ClusterError, DeadlineExceeded
from sandbox.kube import ApiError, Seen, Unreachable, wait, wait_for


def test_the_value_is_returned_as_soon_as_it_is_done() -> None:
    looks = iter([Seen(False, 0, "no"), Seen(False, 0, "no"), Seen(True, 42, "yes")])
    assert wait_for(lambda: next(looks), within=5, what="it") == 42


def test_a_timeout_says_what_was_waited_for_and_what_was_last_seen() -> None:
    with pytest.raises(DeadlineExceeded) as caught:
        wait_for(lambda: Seen(False, None, "pod a is Pending\nno node has room"), within=0.2, what="the rollout")
    assert "the rollout did not come within 0.2 s" in str(caught.value)
    assert caught.value.details == ["pod a is Pending", "no node has room"]
    assert caught.value.exit_code == 3


def test_the_deadline_is_kept_and_a_last_look_is_taken_at_it() -> None:
    begun = time.monotonic()
    looks: list[float] = []

    def look() -> Seen[None]:
        looks.append(time.monotonic() - begun)
        return Seen(False, None, "no")

    with pytest.raises(DeadlineExceeded):
        wait_for(look, within=0.5, what="it")
    assert looks[-1] >= 0.5
    assert looks[-1] < 5


def test_an_api_server_that_does_not_answer_is_not_yet_and_is_named_on_timeout() -> None:
    def look() -> Seen[None]:
        raise Unreachable("https://127.0.0.1:1", "Connection refused")

    with pytest.raises(DeadlineExceeded, match="did not come") as caught:
        wait_for(look, within=0.1, what="it")
    assert "Connection refused" in caught.value.details[0]


@pytest.mark.parametrize("status", [429, 500, 503])
def test_a_server_in_trouble_is_not_yet_in_looks_and_in_pauses(status: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(wait, "_LONGEST_PAUSE", 0.01)
    trouble = ApiError("GET /x", status, None, "etcd leader changed")

    class Condition:
        looks = pauses = 0

        def __call__(self) -> Seen[int]:
            self.looks += 1
            if self.looks == 1:
                raise trouble
            return Seen(self.looks == 3, self.looks, "")

        def pause(self, _: float) -> None:
            self.pauses += 1
            raise trouble

    condition = Condition()
    assert wait_for(condition, within=60, what="it") == 3
    assert condition.pauses == 2


@pytest.mark.parametrize("status", [400, 403, 404, 409, 410])
def test_a_servers_no_ends_the_wait_at_once(status: int) -> None:
    looks: list[int] = []

    def look() -> Seen[None]:
        looks.append(1)
        raise ApiError("GET /x", status, None, "no")

    with pytest.raises(ApiError):
        wait_for(look, within=60, what="it")
    assert len(looks) == 1


def test_any_other_error_ends_the_wait_at_once() -> None:
    def look() -> Seen[None]:
        raise ClusterError("hopeless")

    begun = time.monotonic()
    with pytest.raises(ClusterError, match="hopeless"):
        wait_for(look, within=60, what="it")
    assert time.monotonic() - begun < 30


def test_a_watched_condition_sleeps_on_its_own_pause_instead_of_the_clock() -> None:
    class Watched:
        def __init__(self) -> None:
            self.looks = 0
            self.pauses: list[float] = []

        def __call__(self) -> Seen[int]:
            self.looks += 1
            return Seen(self.looks == 4, self.looks, "")

        def pause(self, seconds: float) -> None:
            self.pauses.append(seconds)

    condition = Watched()
    assert wait_for(condition, within=600, what="it") == 4
    assert len(condition.pauses) == 3
