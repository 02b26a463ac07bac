"""What became of one request: bytes and clock readings in, times and exactly one outcome out. No I/O."""

from __future__ import annotations

import re
from array import array
from typing import Any

from sandbox.load.event import first_choice, is_blocked, is_error, json_object, size_of_text, tool_calls
from sandbox.load.sse import EventStream
from sandbox.load.wire import HttpReply, ProtocolError
from sandbox.timeline import EMPTY, EMPTY_ALLOWED

UNKNOWN = -1  # nanoseconds by which something may have come before it was read
BLOCKED_REASONS = frozenset({"content_filter", "guardrail_intervened"})
FAILED_REASONS = frozenset({"abort", "aborted", "cancelled", "canceled", "error"})  # of vLLM, SGLang and routers
BLOCKED_HEADER = "x-guardrail-blocked"
_SERVER_HEADERS = ("x-inference-pod", "x-served-by", "x-pod-name")
_ANSWER_KEYS = frozenset({"content", "text"})
_TEXT = re.compile(rb'"(content|reasoning_content|reasoning|text)"\s*:\s*"')
_PLAIN_TEXT = re.compile(rb'[^"\\\x00-\x1f]*')  # of a JSON string, standing for itself
_PLAIN, _PLAIN_WHOLE = _PLAIN_TEXT.match, _PLAIN_TEXT.fullmatch
_SIZE_LINE = 12
_MOST_KEPT = 4_000_000
_EXCERPT = 300


class Reply:
    """One reply under way. All times in nanoseconds of the clock whose readings are passed in.

    Attributes:
        outcome: empty while under way; then one of `sandbox.spec.slo.OUTCOMES`, and it never changes again.
        detail: why, for every outcome but ok; of an answer that may say nothing and does, that.
        arrivals: when each content chunk was received.
        uncertainty: by how much each of them may have come sooner, or UNKNOWN.
        end: the last byte that counted, or when waiting for it was given up.
        end_uncertainty: the same of the end.
        content_bytes: UTF-8 bytes of all text that came as content, reasoning or tool calls, of every choice.
        first_bytes: those until the first content chunk was whole; None before.
        tokens: usage.completion_tokens, where the server sent it.
        prompt_tokens: usage.prompt_tokens, where the server sent it.
        received: bytes in all.
        tool_calls: those asked for, whole, where they were to be kept.
    """

    def __init__(
        self, *, stream: bool, keep: bool = False, embeddings: bool = False, allow_empty: bool = False
    ) -> None:
        """Make ready. `keep`: text and tool calls are wanted, not only when they came; `allow_empty`: or nothing."""
        self.outcome = ""
        self.detail = ""
        self.arrivals: array[int] = array("q")
        self.uncertainty: array[int] = array("q")
        self.end: int | None = None
        self.end_uncertainty = UNKNOWN
        self.content_bytes = 0
        self.first_bytes: int | None = None
        self.tokens: int | None = None
        self.prompt_tokens: int | None = None
        self.received = 0
        self.tool_calls: list[dict[str, Any]] = []
        self._stream = stream
        self._keep = keep
        self._embeddings = embeddings
        self._allow_empty = allow_empty
        self._pieces: list[str] = []
        self._http = HttpReply()
        self._events = EventStream()
        self._is_events = False
        self._body = bytearray()
        self._reason = ""
        self._said = False
        self._done_at: int | None = None
        self._done_unsure = UNKNOWN
        self._unsure = UNKNOWN
        self._besides = 0
        self._before = b"\x00"  # no payload starts with it: nothing is learnt yet
        self._behind = b""
        self._key = ""
        self._shortest = 0
        self._wire = b"", b""
        self._between = False

    @property
    def status(self) -> int | None:
        """HTTP status code; None while the head is not complete."""
        return self._http.status

    @property
    def begun(self) -> bool:
        """The answer has begun: from now on silence is measured. Before, a queue may rightly be long."""
        return bool(self.arrivals)

    @property
    def text(self) -> str:
        """The answer, where it was to be kept; content only, for nobody sends its reasoning back to a model."""
        return "".join(self._pieces)

    @property
    def reusable(self) -> bool:
        """The connection may carry another request."""
        return self._http.reusable and self.outcome in ("ok", "empty", "http_error", "guardrail_blocked")

    @property
    def server(self) -> str:
        """Who answered, where the server says so."""
        return next((self._http.headers[name] for name in _SERVER_HEADERS if name in self._http.headers), "")

    def feed(self, data: bytes, now: int, unsure: int = UNKNOWN) -> bool:
        """Take what was received at `now`, up to `unsure` sooner. True: the outcome stands, stop reading."""
        self.received += len(data)
        self._unsure = unsure
        if self._between and not (data := self._known(data, now)):
            return False
        try:
            body = self._http.feed(data)
            if body or self._http.complete:
                self._take(body, now)
        except ProtocolError as error:
            self._settle("http_error" if self._http.status is None else "inband_error", now, str(error))
        self._between = self._shortest > 0 and self._http.between and self._events.between
        return self.outcome != ""

    def _known(self, data: bytes, now: int) -> bytes:
        """Count whole events, each in a chunk of its own, that differ from a known one by their text; return the rest.

        One pass over the wire's bytes, without a step for each layer: a thousand streams are a thousand of these
        for each twentieth of a second. Whatever looks different in any way is left to the layers.
        """
        before, behind = self._wire
        place, length = 0, len(data)
        while place < length:
            size_end = data.find(b"\r\n", place, place + _SIZE_LINE)
            start = size_end + 2
            if size_end < 0 or not data.startswith(before, start):
                break
            text = _PLAIN(data, start + len(before))
            if text is None or not data.startswith(behind, text.end()):
                break
            end = text.end() + len(behind)
            if data[place:size_end] != b"%x" % (end - 2 - start):
                break
            said = text[0]
            if said:
                if not self._heard(said):
                    break
                self.arrivals.append(now)
                self.uncertainty.append(self._unsure)
                self.content_bytes += len(said) + self._besides
            place = end
        return data[place:]

    def _heard(self, text: bytes) -> bool:
        """Whether the text of a known event is text, which is kept where asked for."""
        if not self._keep:
            return text.isascii() or _is_utf8(text)
        try:
            self._keep_text(self._key, text.decode())
        except UnicodeDecodeError:
            return False
        return True

    def closed(self, now: int, how: str, unsure: int = UNKNOWN) -> None:
        """The peer closed (`how`: in words) at `now`, up to `unsure` sooner.

        Only a body without an announced end may end so.
        """
        self._unsure = unsure
        if how == "closed":
            self._http.eof()
            if self._http.complete and not self.outcome:
                self._complete(now)
        self._gone(now, "truncated", f"connection {how} {self._so_far()}")

    def gave_up(self, now: int, why: str, unsure: int = UNKNOWN) -> None:
        """Waiting ended at `now`, for `why`; it should have ended up to `unsure` sooner."""
        self._unsure = unsure
        self._gone(now, "timeout", f"{why} {self._so_far()}")

    def failed(self, outcome: str, now: int, why: str, unsure: int = UNKNOWN) -> None:
        """The request could not be made, as was known at `now`, and was true up to `unsure` sooner."""
        self._unsure = unsure
        self._settle(outcome, now, why)

    def _gone(self, now: int, outcome: str, detail: str) -> None:
        if self._done_at is not None:  # all of the answer was there; only the connection's end went missing
            self._finished(now)
        elif self.status not in (None, 200):  # the head has said it; its missing explanation changes nothing
            self._complete(now)
        else:
            self._settle(outcome, now, detail)

    def _so_far(self) -> str:
        if self._http.status is None:
            return "before any reply"
        return f"after status {self._http.status} and {len(self.arrivals)} content chunks"

    def _settle(self, outcome: str, now: int, detail: str = "") -> None:
        if not self.outcome:
            self.outcome, self.end, self.detail = outcome, now, detail[:_EXCERPT]
            self.end_uncertainty = self._unsure

    def _take(self, body: bytes, now: int) -> None:
        if not self._is_events:
            kind = self._http.headers.get("content-type", "")
            self._is_events = self._http.status == 200 and kind.startswith("text/event-stream")  # noqa: PLR2004 - OK
        if self._is_events and self._stream:
            for payload in self._events.feed(body):
                self._event(payload, now)
        elif len(self._body) < _MOST_KEPT:
            self._body += body
        if self._http.complete:
            self._complete(now)

    def _event(self, payload: bytes, now: int) -> None:
        if payload.startswith(self._before) and payload.endswith(self._behind) and len(payload) >= self._shortest:
            text = payload[len(self._before) : len(payload) - len(self._behind)]
            if _PLAIN_WHOLE(text) and self._heard(text):  # as the event before, but for the text of its content
                if text:
                    self._came(now, len(text) + self._besides)
                return
        if payload == b"[DONE]":
            if self._done_at is None:
                self._done_at, self._done_unsure = now, self._unsure
        elif self._done_at is None:
            self._unknown(payload, now)

    def _unknown(self, payload: bytes, now: int) -> None:
        event = json_object(payload)
        if event is None:
            self._settle("inband_error", now, f"malformed event: {_excerpt(payload)}")
            return
        if is_error(event):
            self._error(event, payload, now)
            return
        key, text, reason = first_choice(event)
        calls = tool_calls(event)
        size = size_of_text(event)
        if text or calls:
            self._came(now, size)
        else:
            self.content_bytes += size
        if self._keep:
            self._keep_text(key, text)
            self._keep_calls(calls)
        if reason:
            self._reason = reason
        elif text and not event.get("usage"):
            self._learn(payload, key, text, size)
        self._usage(event)

    def _came(self, now: int, size: int) -> None:
        self.arrivals.append(now)
        self.uncertainty.append(self._unsure)
        self.content_bytes += size
        if self.first_bytes is None:
            self.first_bytes = self.content_bytes

    def _keep_text(self, key: str, text: str) -> None:
        if key in _ANSWER_KEYS:
            self._pieces.append(text)

    def _keep_calls(self, deltas: list[dict[str, Any]]) -> None:
        """Tool calls come in pieces: the first of each has its id and name, the others more of its arguments."""
        for delta in deltas:
            place = delta.get("index", len(self.tool_calls))
            named = delta.get("function")
            said: dict[str, Any] = named if isinstance(named, dict) else {}
            if not isinstance(place, int) or place >= len(self.tool_calls):
                function = {"name": str(said.get("name") or ""), "arguments": ""}
                self.tool_calls.append({"id": str(delta.get("id") or ""), "type": "function", "function": function})
                place = len(self.tool_calls) - 1
            self.tool_calls[place]["function"]["arguments"] += str(said.get("arguments") or "")

    def _learn(self, payload: bytes, key: str, text: str, size: int) -> None:
        """Remember what surrounds the text, so that the next event need not be parsed to be understood.

        `size`: bytes of all text in it; what is not that of the key surrounds it in every such event.
        """
        found = [match for match in _TEXT.finditer(payload) if match[1].decode() == key]
        if len(found) != 1:
            return
        start = found[0].end()
        end = payload.find(b'"', start)
        if payload[start:end] == text.encode():
            self._key = key
            self._besides = size - (end - start)
            self._before, self._behind = payload[:start], payload[end:]
            self._shortest = len(self._before) + len(self._behind)
            self._wire = b"data: " + self._before, self._behind + b"\n\n\r\n"

    def _usage(self, event: dict[str, Any]) -> None:
        usage = event.get("usage")
        if not isinstance(usage, dict):
            return
        self.tokens = _count(usage.get("completion_tokens"), self.tokens)
        self.prompt_tokens = _count(usage.get("prompt_tokens"), self.prompt_tokens)

    def _error(self, event: dict[str, Any], payload: bytes, now: int) -> None:
        blocked = is_blocked(event)
        self._settle("guardrail_blocked" if blocked else "inband_error", now, _excerpt(payload))

    def _complete(self, now: int) -> None:
        """The body's announced end was reached."""
        status = self._http.status
        if status != 200:  # noqa: PLR2004 - OpenAI's endpoints answer 200 or an error; redirects are not followed
            blocked = BLOCKED_HEADER in self._http.headers or is_blocked(json_object(bytes(self._body)) or {})
            self._settle("guardrail_blocked" if blocked else "http_error", now, _excerpt(bytes(self._body)))
        elif not self._stream:
            self._whole(now)
        elif self._is_events:
            for payload in self._events.finish():
                self._event(payload, now)
            self._finished(now)
        else:
            kind = self._http.headers.get("content-type", "no content type")
            self._settle("inband_error", now, f"asked for a stream, got {kind}: {_excerpt(bytes(self._body))}")

    def _whole(self, now: int) -> None:
        event = json_object(bytes(self._body))
        if event is None or is_error(event):
            self._error(event or {}, bytes(self._body), now)
            return
        self._usage(event)
        if self._embeddings:
            self._vectors(event, now)
            return
        key, text, self._reason = first_choice(event)
        calls = tool_calls(event)
        self.content_bytes = size_of_text(event)
        self._said = bool(text or calls)
        if self._keep:
            self._keep_text(key, text)
            self._keep_calls(calls)
        self._finished(now)

    def _vectors(self, event: dict[str, Any], now: int) -> None:
        """Embeddings have no finish_reason: an answer is one that holds vectors."""
        data = event.get("data")
        first = data[0] if isinstance(data, list) and data else None
        if isinstance(first, dict) and first.get("embedding"):
            self._settle("ok", now)
        else:
            self._settle("inband_error", now, f"no embedding in it: {_excerpt(bytes(self._body))}")

    def _finished(self, now: int) -> None:
        """Everything came; was it an answer?"""
        at = now
        if self._done_at is not None:
            at, self._unsure = self._done_at, self._done_unsure
        if not self._reason:
            self._settle("truncated", at, f"ended without a finish_reason {self._so_far()}")
        elif self._reason in BLOCKED_REASONS or BLOCKED_HEADER in self._http.headers:
            self._settle("guardrail_blocked", at, f"finish_reason {self._reason}")
        elif self._reason in FAILED_REASONS:
            self._settle("inband_error", at, f"finish_reason {self._reason}")
        elif self.arrivals or self._said:
            self._settle("ok", at)
        else:
            self._settle(*(("ok", at, EMPTY_ALLOWED) if self._allow_empty else ("empty", at, EMPTY)))


def _count(value: Any, otherwise: int | None) -> int | None:
    return value if isinstance(value, int) and value >= 0 else otherwise


def _is_utf8(text: bytes) -> bool:
    try:
        text.decode()
    except UnicodeDecodeError:
        return False
    return True


def _excerpt(data: bytes) -> str:
    return data[:_EXCERPT].decode(errors="replace")
