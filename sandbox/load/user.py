"""A Locust user for locustfiles of people's own, on the client that measures.

`from sandbox.load.user import StreamingUser` works wherever Locust does: web UI, `--processes`, distributed workers,
`LoadTestShape`, and under a scenario (`load: {locustfile: …}`), where the timeline gets all the times that this client
knows. Importing it imports Locust, which patches the interpreter: never import it into a program that is no load
process.
"""

from __future__ import annotations

import json
import secrets
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from itertools import count
from pathlib import Path
from typing import Any, ClassVar

from locust import User
from locust.env import Environment
from locust.exception import StopTest

from sandbox.errors import SandboxError, UsageError
from sandbox.load.client import Client, Exchange, Target, resolve
from sandbox.load.green import GreenTransport
from sandbox.load.keys import api_keys
from sandbox.load.outcome import RequestFailed
from sandbox.load.plan import PlannedShare
from sandbox.load.traffic import Answer, Traffic
from sandbox.load.transport import Limits
from sandbox.spec import profile as profiles

EXCHANGE = "exchange"
PART_OF = "part_of"
_WORKERS = 10_000  # more than Locust ever has: each takes every so-manieth conversation of a profile
_RUN = secrets.token_hex(4)
_numbers = count(1)


@dataclass(frozen=True)
class Completion:
    """What became of one request. Times in seconds, None where there is none.

    Attributes:
        outcome: ok, empty, http_error, connect_error, timeout, truncated, inband_error or guardrail_blocked.
        status: HTTP status; None where no reply's head came.
        detail: why, for every outcome but ok.
        text: the answer.
        tool_calls: those the model asked for.
        tokens: usage.completion_tokens, where the server sent it.
        prompt_tokens: usage.prompt_tokens, where the server sent it.
        ttft: from sending to the first content.
        tpot: between tokens, the first one left out.
        e2e: from sending to the end.
    """

    outcome: str
    status: int | None
    detail: str
    text: str
    tool_calls: list[dict[str, Any]] = field(default_factory=list)
    tokens: int | None = None
    prompt_tokens: int | None = None
    ttft: float | None = None
    tpot: float | None = None
    e2e: float = 0.0

    @property
    def ok(self) -> bool:
        """A whole answer came."""
        return self.outcome == "ok"


class StreamingClient:
    """What a `StreamingUser` sends with. One call is one request and one attempt; a failure is told, never raised."""

    def __init__(self, user: StreamingUser, target: Target, api_key: str) -> None:
        """Make ready for `user`, whose attributes say how."""
        self._user = user
        self._target = target
        self._api_key = api_key
        self._clients: dict[tuple[str, bool, bool], Client] = {}

    def chat(
        self, messages: str | Sequence[dict[str, Any]], *, name: str = "chat", stream: bool = True, **params: Any
    ) -> Completion:
        """Send a chat completion; a text stands for one message of the user's.

        `params` go into the body as they are (`max_tokens`, `temperature`, `tools`, another `model`); `name` is what
        Locust's tables call it.
        """
        said = [{"role": "user", "content": messages}] if isinstance(messages, str) else list(messages)
        return self._ask("chat", name, {"messages": said, **params}, stream=stream)

    def completions(self, prompt: str, *, name: str = "completions", stream: bool = True, **params: Any) -> Completion:
        """Send a completion; the rest as for `chat`."""
        return self._ask("completions", name, {"prompt": prompt, **params}, stream=stream)

    def embeddings(self, given: str | Sequence[str], *, name: str = "embeddings", **params: Any) -> Completion:
        """Ask for the vectors of one text or several; the rest as for `chat`."""
        texts = given if isinstance(given, str) else list(given)
        return self._ask("embeddings", name, {"input": texts, **params}, stream=False)

    def send(self, path: str, body: bytes, *, name: str, stream: bool, allow_empty: bool = False) -> Completion:
        """Send a body that is JSON already; `path` is chat, completions or embeddings.

        `allow_empty`: an answer that says nothing is `ok`, as it is where the user's own attribute says so.
        """
        number = f"{_RUN}-{_worker(self._user.environment)}-{next(_numbers)}"
        client = self._client(path, stream, allow_empty or self._user.allow_empty)
        exchange = client.exchange(body, number, keep=True)
        made = completion(exchange)
        self._tell_locust(name, exchange, made)
        return made

    def _ask(self, path: str, name: str, given: dict[str, Any], *, stream: bool) -> Completion:
        body = {"model": self._user.model, **given}
        if stream:
            body = {**body, "stream": True, "stream_options": {"include_usage": True}}
        return self.send(path, json.dumps(body).encode(), name=name, stream=stream)

    def _client(self, path: str, stream: bool, allow_empty: bool) -> Client:
        key = path, stream, allow_empty
        if key not in self._clients:
            user = self._user
            self._clients[key] = Client(
                self._target,
                Limits(user.timeout, user.idle_timeout),
                path=path,
                stream=stream,
                api_key=self._api_key,
                headers=user.headers,
                keep_alive=user.keep_alive,
                allow_empty=allow_empty,
                transport=GreenTransport(),
            )
        return self._clients[key]

    def _tell_locust(self, name: str, exchange: Exchange, made: Completion) -> None:
        """One event for the request; for tables and charts, its TTFT and TPOT as entries of their own."""
        context = self._user.context()
        fire: Callable[..., None] = self._user.environment.events.request.fire
        fire(
            request_type="POST",
            name=name,
            response_time=made.e2e * 1e3,
            response_length=exchange.reply.received,
            exception=None if made.ok else RequestFailed(made.outcome),
            start_time=time.time() - (time.monotonic_ns() - exchange.began) / 1e9,
            url=self._user.host,
            context={**context, "outcome": made.outcome, "detail": made.detail, EXCHANGE: exchange},
        )
        for kind, value in (("TTFT", made.ttft), ("TPOT", made.tpot)):
            if value is not None:
                fire(
                    request_type=kind,
                    name=name,
                    response_time=value * 1e3,
                    response_length=0,
                    exception=None,
                    context={**context, PART_OF: name},
                )


def completion(exchange: Exchange) -> Completion:
    """An exchange as locustfiles see it."""
    reply = exchange.reply
    seen = reply.arrivals
    tokens = len(seen) if reply.tokens is None else reply.tokens
    return Completion(
        outcome=reply.outcome,
        status=reply.status,
        detail=reply.detail,
        text=reply.text,
        tool_calls=reply.tool_calls,
        tokens=reply.tokens,
        prompt_tokens=reply.prompt_tokens,
        ttft=(seen[0] - exchange.began) / 1e9 if seen else None,
        tpot=(seen[-1] - seen[0]) / 1e9 / (tokens - 1) if seen and tokens > 1 else None,
        e2e=((time.monotonic_ns() if reply.end is None else reply.end) - exchange.began) / 1e9,
    )


class StreamingUser(User):
    """A user of an OpenAI-compatible endpoint, `host` (with or without /v1).

    Attributes:
        model: what is asked for; empty: the only one that is served.
        profile: a traffic profile that becomes a ready-made task: one conversation of it each time.
        seed: of the profile's traffic.
        api_key_env: environment variable that holds the API key; empty: none is sent.
        headers: sent with every request.
        ca_file: certificates to trust, for https with an own CA.
        timeout, idle_timeout: seconds that a request may take in all, and that a begun stream may be silent.
        keep_alive: reuse this user's connections; the default opens one for each request.
        allow_empty: an answer that says nothing is `ok`, not `empty`; a profile says so for its own.
        client: sends.
    """

    abstract = True
    model: str = ""
    profile: str = ""
    seed: int = 1
    api_key_env: str = ""
    headers: ClassVar[dict[str, str]] = {}
    ca_file: str | Path | None = None
    timeout: float = 60.0
    idle_timeout: float = 10.0
    keep_alive: bool = False
    allow_empty: bool = False
    client: StreamingClient

    def __init_subclass__(cls, **kwargs: Any) -> None:
        """A profile is a task."""
        super().__init_subclass__(**kwargs)
        if cls.profile and follow_profile not in cls.tasks:
            cls.tasks = [*cls.tasks, follow_profile]

    def __init__(self, environment: Environment) -> None:
        """Look the host up, and the model where none is named: once in a process.

        Raises:
            StopTest: that failed, so there is nothing to measure; Locust ends the test and says why.
        """
        super().__init__(environment)
        try:
            self.client = self._connected()
            if self.profile:
                following(type(self), _worker(environment))
        except SandboxError as error:
            raise ended(environment, error) from error

    def _connected(self) -> StreamingClient:
        if not self.host:
            raise UsageError(f"{type(self).__name__} has no host", fix="write --host http://host:port, or set `host`")
        key = api_keys(self.api_key_env)[self.api_key_env]
        trusted = Path(self.ca_file) if self.ca_file else None
        if not self.model:
            headers = tuple(sorted(self.headers.items()))
            type(self).model = _only_model(self.host, key, headers, trusted)
        return StreamingClient(self, _resolved(self.host, trusted), key)


def ended(environment: Environment, error: SandboxError) -> StopTest:
    """What ends Locust's test for `error`, with our exit code for it."""
    environment.process_exit_code = error.exit_code
    return StopTest(str(error))


_resolved = lru_cache(resolve)


@lru_cache
def _only_model(host: str, key: str, headers: tuple[tuple[str, str], ...], trusted: Path | None) -> str:
    # Brings an HTTP library of a dozen MiB, which a load that names its model does without.
    from sandbox.load.check import Access, only_model  # noqa: PLC0415

    return only_model(host, Access(api_key=key, headers=dict(headers), ca_file=trusted))


def _worker(environment: Environment) -> int:
    """Which of Locust's workers this is, from 0. `--processes` are forks: only this tells them apart."""
    return max(0, getattr(environment.runner, "worker_index", 0))


class _Following:
    """The traffic of one profile in one process, and how far it has got."""

    def __init__(self, profile: str, model: str, seed: int, index: int) -> None:
        self.profile = profiles.resolve(profile)
        self.traffic = Traffic([PlannedShare(profile=self.profile, model=model)], seed)
        self.numbers = count(index + 1, _WORKERS)


_following = lru_cache(_Following)


def following(user: type[StreamingUser], index: int) -> _Following:
    """The traffic of a user class in the `index`-th worker, made once in a process.

    Raises:
        SandboxError: there is no such profile, or it is wrong.
    """
    return _following(user.profile, user.model, user.seed, index)


def follow_profile(user: StreamingUser) -> None:
    """Hold one conversation of the user's profile, from its first turn to its last."""
    follow = following(type(user), _worker(user.environment))
    profile = follow.profile
    _, conversation = follow.traffic.begin(next(follow.numbers))
    turn = next(conversation)
    while True:
        made = user.client.send(
            profile.path, turn.body, name=user.profile, stream=profile.stream, allow_empty=profile.allow_empty
        )
        try:
            turn = conversation.send(Answer(made.outcome, made.text, made.tool_calls))
        except StopIteration:
            return
        time.sleep(turn.wait)  # gevent's, since Locust patched it
