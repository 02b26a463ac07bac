"""What a load says: the same for the same seed, with the lengths, prefixes, turns and tools that profiles ask for."""

from __future__ import annotations

import json
from collections import Counter
from itertools import pairwise
from pathlib import Path
from statistics import mean, median
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from sandbox.errors import UsageError
from sandbox.load.plan import LoadPlan, PlannedShare
from sandbox.load.text import Text, escaped, estimate
from sandbox.load.traffic import BLOCK, Answer, Conversation, Traffic
from sandbox.spec import profile as profiles
from sandbox.spec.profile import Profile
from sandbox.spec.trace import Row

NAMES = profiles.names()
HEAD = "apiVersion: sandbox/v1\nkind: Profile\nmetadata: {name: x, description: X.}\n"
TEXT = Text([f"word{letter}" for letter in "abcdefghijklmnop"], 1)


def traffic(*names: str | Profile, seed: int = 1, **share: Any) -> Traffic:
    found = [profiles.resolve(name) if isinstance(name, str) else name for name in names]
    return Traffic([PlannedShare(profile=profile, model="m", **share) for profile in found], seed)


def made(**keys: Any) -> Profile:
    """A profile of one prompt and one token, unless said otherwise."""
    start = {"kind": "Profile", "metadata": {"name": "x", "description": "X."}, "prompts": ["hello"], "words": ["a b"]}
    return Profile.model_validate({**start, **({} if keys.get("path") == "embeddings" else {"maxTokens": 1}), **keys})


def held(conversation: Conversation, answer: Answer | None = None) -> list[dict[str, Any]]:
    """Every body of a conversation in which each turn is answered with `answer`."""
    turn, bodies = next(conversation), []
    while True:
        bodies.append(json.loads(turn.body))
        try:
            turn = conversation.send(answer or Answer("ok", "an answer"))
        except StopIteration:
            return bodies


def first(source: Traffic, number: int, row: Row | None = None) -> dict[str, Any]:
    body: dict[str, Any] = json.loads(next(source.begin(number, row)[1]).body)
    return body


def said(body: dict[str, Any]) -> str:
    """All the text a request carries."""
    return "\n".join(str(message["content"]) for message in body["messages"])


# what every shipped profile holds


@pytest.mark.parametrize("name", NAMES)
def test_every_shipped_profile_makes_bodies_that_the_api_takes(name: str) -> None:
    profile = profiles.resolve(name)
    wanted = {"chat": "messages", "completions": "prompt", "embeddings": "input"}[profile.path]
    for number in range(1, 21):
        for body in held(traffic(profile).begin(number)[1]):
            assert body["model"] == "m"
            assert body[wanted]
            assert len({"messages", "prompt", "input"} & body.keys()) == 1
            if profile.path == "embeddings":
                assert body.keys() == {"model", "input"}
                assert all(isinstance(text, str) and text for text in body["input"])
            else:
                assert body["max_tokens"] >= 1
                assert body["stream_options"] == {"include_usage": True}
            for message in body.get("messages", []):
                assert message["role"] in ("system", "user", "assistant", "tool")
                assert isinstance(message["content"], str)


@pytest.mark.parametrize("name", NAMES)
def test_whoever_sends_a_conversation_it_says_the_same(name: str) -> None:
    one, other = traffic(name), traffic(name)
    alone = {number: held(one.begin(number)[1]) for number in range(1, 13)}
    shared = {number: held(other.begin(number)[1]) for slice_ in (2, 1, 0) for number in range(slice_ + 1, 13, 3)}
    assert alone == shared
    assert [held(traffic(name, seed=2).begin(number)[1]) for number in range(1, 13)] != list(alone.values())


def test_the_parts_of_two_conversations_at_once_do_not_mix() -> None:
    source = traffic("multi-turn")
    alone = held(source.begin(1)[1])
    left, right = source.begin(1)[1], source.begin(2)[1]
    turns = [next(left), next(right)]
    bodies = [json.loads(turns[0].body)]
    for _ in range(len(alone) - 1):
        bodies.append(json.loads(left.send(Answer("ok", "an answer")).body))
        try:
            right.send(Answer("ok", "something else"))
        except StopIteration:
            right = source.begin(3)[1]
            next(right)
    assert bodies == alone


@pytest.mark.parametrize("name", [name for name in NAMES if name != "chat-tiny"])
def test_every_shipped_profile_names_its_source_and_says_what_is_ours(name: str) -> None:
    assert "ours" in profiles.resolve(name).source


# lengths


@pytest.mark.parametrize(
    ("name", "tokens_in", "tokens_out"),
    [("chat-short", 19.31, 58.45), ("chat-long", 161.31, 337.99), ("code-completion", 2048, 28), ("rag", 2000, 50)],
)
def test_the_mean_lengths_are_those_of_the_source(name: str, tokens_in: float, tokens_out: float) -> None:
    source = traffic(name)
    bodies = [first(source, number) for number in range(1500)]
    texts = [body["prompt"] if "prompt" in body else said(body) for body in bodies]
    assert mean(estimate(text) for text in texts) == pytest.approx(tokens_in, rel=0.1)
    assert mean(body["max_tokens"] for body in bodies) == pytest.approx(tokens_out, rel=0.1)


def test_code_completions_have_the_medians_of_the_source_too() -> None:
    bodies = [first(traffic_, number) for traffic_ in [traffic("code-completion")] for number in range(1500)]
    assert median(estimate(body["prompt"]) for body in bodies) == pytest.approx(1500, rel=0.1)
    assert median(body["max_tokens"] for body in bodies) == pytest.approx(13, abs=1)


def test_an_agents_requests_have_the_mean_length_of_the_source() -> None:
    source = traffic("agent")
    call = [{"id": "a", "type": "function", "function": {"name": "search", "arguments": "{}"}}]
    answer = Answer("ok", "word " * 182, call)
    bodies = [body for number in range(300) for body in held(source.begin(number)[1], answer)]
    tools = estimate(json.dumps(bodies[0]["tools"]))
    assert mean(estimate(said(body)) + tools for body in bodies) == pytest.approx(8596, rel=0.1)
    assert mean(body["max_tokens"] for body in bodies) == pytest.approx(182, rel=0.1)


def test_embeddings_send_batches_of_the_sources_lengths() -> None:
    source = traffic("embeddings")
    batches = [first(source, number)["input"] for number in range(200)]
    assert {len(batch) for batch in batches} == {16}
    lengths = [estimate(text) for batch in batches for text in batch]
    assert mean(lengths) == pytest.approx(128, rel=0.05)
    assert max(lengths) <= 400


@given(tokens=st.integers(1, 120_000), number=st.integers(0, 2**63))
@settings(max_examples=60, deadline=None)
def test_made_up_text_has_the_tokens_asked_for(tokens: int, number: int) -> None:
    text = json.loads(b'"%b"' % TEXT.block(number, tokens))
    assert abs(estimate(text) - max(tokens, estimate(f"#{number}"))) <= 3


@given(st.lists(st.text(min_size=1).filter(str.strip), min_size=1, max_size=5), st.integers(1, 200))
@settings(max_examples=50, deadline=None)
def test_any_text_can_be_cut_anywhere_and_stays_json(pieces: list[str], tokens: int) -> None:
    made_up = Text(pieces, 1).block(7, tokens)
    assert isinstance(json.loads(b'"%b"' % made_up), str)
    assert json.loads(b'"%b"' % escaped(pieces[0])) == pieces[0]


# prefixes


def test_documents_are_shared_byte_for_byte_and_differ_from_one_another() -> None:
    source = traffic("rag")
    openings = Counter(said(first(source, number)).rpartition("\n")[0] for number in range(400))
    assert len(openings) == 16
    assert min(openings.values()) > 5
    after = {text.partition("#")[2][:60] for text in openings}
    assert len(after) == 16  # different within the first block of any cache
    questions = {said(first(source, number)).rpartition("\n")[2] for number in range(400)}
    assert len(questions) == 20
    assert openings.keys().isdisjoint(
        said(first(traffic("rag", seed=2), number)).rpartition("\n")[0] for number in range(50)
    )


def test_a_completion_begins_with_its_shared_prefix() -> None:
    source = traffic(made(path="completions", sharedPrefix={"count": 2, "tokens": 40}))
    prompts = Counter(first(source, number)["prompt"] for number in range(40))
    assert len(prompts) == 2
    assert all(prompt.endswith("\n\nhello") for prompt in prompts)


def test_made_up_prompts_share_no_beginning() -> None:
    source = traffic("chat-long")
    texts = [said(first(source, number)) for number in range(2000)]
    long = [text for text in texts if estimate(text) >= 16]
    assert len({text[:24] for text in long}) == len(long) > 1500


# mixes


def test_a_mix_keeps_its_weights_and_its_models() -> None:
    shares = [
        PlannedShare(profile=profiles.resolve(name), model=name, weight=weight)
        for name, weight in (("chat-short", 1), ("rag", 2), ("embeddings", 5))
    ]
    source = Traffic(shares, 3)
    seen: Counter[int] = Counter()
    for number in range(4000):
        which, conversation = source.begin(number)
        assert json.loads(next(conversation).body)["model"] == shares[which].model
        seen[which] += 1
    assert [seen[place] / 4000 for place in range(3)] == pytest.approx([0.125, 0.25, 0.625], abs=0.03)


# turns


def test_a_later_turn_sends_the_real_answers_and_all_before_them_again() -> None:
    conversation = traffic("multi-turn").begin(5)[1]
    turn, bodies, waits, kept, count = next(conversation), [], [], [], 0
    while True:
        bodies.append(json.loads(turn.body)["messages"])
        waits.append(turn.wait)
        kept.append(turn.keep)
        count += 1
        try:
            turn = conversation.send(Answer("ok", f'answer {count}: "ä"\n'))
        except StopIteration:
            break
    assert 6 <= count <= 9
    for before, after in pairwise(bodies):
        assert after[: len(before)] == before
        assert [message["role"] for message in after[len(before) :]] == ["assistant", "user"]
    answers = [message["content"] for message in bodies[-1] if message["role"] == "assistant"]
    assert answers == [f'answer {number}: "ä"\n' for number in range(1, count)]
    assert kept == [True] * (count - 1) + [False]
    assert waits[0] == 0
    assert all(0 < wait <= 15 for wait in waits[1:])
    assert len(set(waits)) == count


@pytest.mark.parametrize("name", ["multi-turn", "agent"])
@pytest.mark.parametrize("outcome", ["timeout", "http_error", "truncated", "guardrail_blocked"])
def test_a_failed_answer_ends_the_conversation(name: str, outcome: str) -> None:
    for number in range(10):
        assert len(held(traffic(name).begin(number)[1], Answer(outcome, "half an"))) == 1


# tools

CALLS = [
    {"id": "call-a", "type": "function", "function": {"name": "search", "arguments": '{"query": "x"}'}},
    {"id": "", "type": "function", "function": {"name": "read_file", "arguments": '{"path": "/et'}},
]


def test_calls_are_answered_and_the_loop_ends() -> None:
    source = traffic("agent")
    lengths: Counter[int] = Counter()
    for number in range(60):
        bodies = held(source.begin(number)[1], Answer("ok", "", CALLS))
        lengths[len(bodies)] += 1
        for before, after in pairwise(bodies):
            new = after["messages"][len(before["messages"]) :]
            assert after["messages"][: len(before["messages"])] == before["messages"]
            assert [message["role"] for message in new] == ["assistant", "tool", "tool"]
            ids = [call["id"] for call in new[0]["tool_calls"]]
            assert ids == [message["tool_call_id"] for message in new[1:]]
            assert ids[0] == "call-a"
            assert ids[1]
            assert [call["function"]["arguments"] for call in new[0]["tool_calls"]] == ['{"query": "x"}', "{}"]
            assert new[0]["content"] is None
            assert all(estimate(message["content"]) >= 10 for message in new[1:])
    assert set(lengths) == set(range(1, 8))


def test_an_agent_goes_on_when_the_server_answers_with_text() -> None:
    bodies = next(found for number in range(50) if len(found := held(traffic("agent").begin(number)[1])) == 7)
    roles = [message["role"] for message in bodies[-1]["messages"]]
    assert roles == ["system", "user"] + ["assistant", "user"] * 6
    assert bodies[-1]["messages"][-1]["content"] == "Go on with the next step."
    assert bodies[-1]["messages"][-2]["content"] == "an answer"


def test_functions_are_sent_as_the_api_writes_them() -> None:
    body = first(traffic("agent"), 1)
    assert body["tool_choice"] == "auto"
    assert {tool["type"] for tool in body["tools"]} == {"function"}
    assert [tool["function"]["name"] for tool in body["tools"]] == ["search", "read_file", "run_query", "take_note"]
    assert body["tools"][2]["function"]["parameters"]["properties"]["database"]["enum"][0] == "orders"


# traces


@pytest.mark.parametrize("name", NAMES)
def test_a_line_of_a_trace_decides_the_lengths_of_one_request(name: str) -> None:
    source = traffic(name)
    for number, tokens in enumerate((600, 1000, 3000)):
        (body,) = held(source.begin(number, Row(at=0, prompt=tokens, output=17))[1])
        if "input" in body:
            (text,) = body["input"]
        else:
            assert body["max_tokens"] == 17
            text = body["prompt"] if "prompt" in body else said(body) + json.dumps(body.get("tools", ""))
        assert estimate(text) == pytest.approx(tokens, abs=20 + 0.02 * tokens)


def test_equal_blocks_of_a_trace_are_equal_text() -> None:
    source = traffic("chat-short")
    rows = [
        Row(at=0, prompt=3 * BLOCK - 100, output=1, blocks=blocks) for blocks in ([46, 47, 9], [46, 47, 8], [5, 4, 3])
    ]
    texts = [said(first(source, number, row)) for number, row in enumerate(rows)]
    blocks = [json.loads(b'"%b"' % source._scripts[0]._words.block(number, BLOCK)) for number in (46, 47)]
    for text in texts[:2]:
        assert text.startswith("".join(blocks))
        assert estimate(text) == pytest.approx(3 * BLOCK - 100, abs=10)
    assert texts[0] != texts[1]
    assert texts[2][:30] != texts[0][:30]


@given(
    prompt=st.integers(0, 5000),
    blocks=st.lists(st.integers(0, 2**40), max_size=10),
    output=st.integers(1, 100),
)
@settings(max_examples=60, deadline=None)
def test_any_line_of_a_trace_becomes_a_request(prompt: int, blocks: list[int], output: int) -> None:
    body = first(SHORT, 1, Row(at=0, prompt=prompt, output=output, blocks=blocks))
    assert body["max_tokens"] == output
    assert estimate(said(body)) == pytest.approx(max(1, prompt), abs=8 + 2 * len(blocks))


SHORT = traffic("chat-short")


# how profiles are written


def test_a_plain_number_is_a_length() -> None:
    assert made(maxTokens=50) == made(maxTokens={"kind": "fixed", "tokens": 50})
    with pytest.raises(ValidationError):
        made(maxTokens=True)


@pytest.mark.parametrize("name", NAMES)
def test_a_resolved_profile_survives_the_plan(name: str, tmp_path: Path) -> None:
    share = PlannedShare(profile=profiles.resolve(name), model="m")
    plan = LoadPlan(
        url="http://h", model="m", shares=[share], arrivals={"rate": 1}, duration=1, epoch_ns=0, timeline=tmp_path / "t"
    )
    read = LoadPlan.model_validate_json(plan.model_dump_json(by_alias=True))
    assert held(Traffic(read.shares, 1).begin(3)[1]) == held(Traffic([share], 1).begin(3)[1])


def test_embeddings_have_no_stream_unless_somebody_asks_for_it_which_is_refused() -> None:
    assert made(path="embeddings").stream is False
    with pytest.raises(ValidationError, match="one piece"):
        made(path="embeddings", stream=True)


def test_a_suffix_is_sent_with_a_completion() -> None:
    body = first(traffic(made(path="completions", suffixTokens=20)), 1)
    assert estimate(body["suffix"]) == pytest.approx(20, abs=2)
    assert body["prompt"] == "hello"


def test_material_with_paragraphs_is_cut_at_paragraphs(own: Path) -> None:
    (own / "prompts" / "mine.txt").write_text("def a():\n    return 1\n\n# not a comment here\nb = 2\n")
    (own / "profiles" / "x.yaml").write_text(HEAD + "prompts: mine.txt\npromptTokens: 30\nmaxTokens: 1\n")
    profile = profiles.resolve("x")
    assert profile.prompts == ["def a():\n    return 1", "# not a comment here\nb = 2"]
    assert "\n\ndef a():\n    return 1\n\n" in said(first(traffic(profile), 1))


@pytest.fixture
def own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    for room in ("profiles", "prompts"):
        (tmp_path / "loadtests" / room).mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    return tmp_path / "loadtests"


TOOLS = (
    "tools: {steps: 2, resultTokens: 9, functions: "
    "[{name: f, description: F., parameters: {type: object, properties: {}}}]}\n"
)


@pytest.mark.parametrize(
    ("text", "line", "words"),
    [
        ("maxTokens: 1\n", 1, "prompts: is missing; write the prompts, or `promptTokens`"),
        ("prompts: [a]\n", 1, "maxTokens: is missing"),
        ("prompts: [a]\npath: embeddings\nstream: true\n", 6, "stream: embeddings come in one piece"),
        ("prompts: [a]\npath: embeddings\nmaxTokens: 4\n", 6, "maxTokens: embeddings produce no tokens"),
        ("prompts: [a]\npath: embeddings\ntemperature: 1\n", 6, "temperature: embeddings are not sampled"),
        ("prompts: [a]\npath: embeddings\nsharedPrefix: {tokens: 9}\n", 6, "sharedPrefix: is for chat and completions"),
        ("prompts: [a]\nmaxTokens: 1\npath: completions\nsystem: s\n", 7, "system: `system` is for `path: chat`"),
        ("prompts: [a]\nmaxTokens: 1\npath: completions\n" + TOOLS, 7, "tools: `tools` is for `path: chat`"),
        ("prompts: [a]\nmaxTokens: 1\npath: completions\nconversation: {turns: 2}\n", 7, "only chat has turns"),
        ("prompts: [a]\nmaxTokens: 1\nconversation: {turns: 2}\n" + TOOLS, 6, "either `tools` or `conversation`"),
        ("prompts: [a]\nmaxTokens: 1\nconversation: {turns: 101}\n", 6, "conversation.turns: at most 100"),
        ("prompts: [a]\nmaxTokens: 1\nsuffixTokens: 4\n", 6, "is for `path: completions`"),
        ("prompts: [a]\nmaxTokens: 1\nbatch: 4\n", 6, "is for `path: embeddings`"),
        ("prompts: [a]\nmaxTokens: 1\n" + TOOLS.replace("object", "string"), 6, "parameters: must be the JSON Schema"),
        ("prompts: [a]\nmaxTokens: 1\n" + TOOLS.replace("{}", "{q: {a, b: c}}"), 6, "q: 'a' says nothing"),
        ("prompts: [a]\nmaxTokens: 1\n" + TOOLS.replace("name: f", "name: f g"), 6, "tools.functions[0].name"),
        ("prompts: [a]\nmaxTokens: 1\nextraBody: {tools: []}\n", 6, "tools: set by the profile's own keys"),
        ("prompts: [a]\nmaxTokens: 1\nwords: none.txt\n", 6, "words: no such file in loadtests/prompts/"),
        ("prompts: ../x\nmaxTokens: 1\n", 4, "prompts: no such file in loadtests/prompts/"),
    ],
)
def test_mistakes_in_a_profile_are_named_with_their_line(own: Path, text: str, line: int, words: str) -> None:
    (own / "profiles" / "x.yaml").write_text(HEAD + text)
    with pytest.raises(UsageError) as caught:
        profiles.resolve("x")
    assert words in str(caught.value)
    assert f"x.yaml:{line}:" in str(caught.value)


def test_all_mistakes_of_a_profile_are_said_at_once(own: Path) -> None:
    text = "prompts: [a]\npath: embeddings\nstream: true\nmaxTokens: x\ntools: {steps: 0}\n"
    (own / "profiles" / "x.yaml").write_text(HEAD + text)
    with pytest.raises(UsageError) as caught:
        profiles.resolve("x")
    for words in ("stream: embeddings come", "maxTokens", "tools: `tools` is for", "tools.functions: is missing"):
        assert words in str(caught.value)
