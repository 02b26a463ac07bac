"""A load's spec: what is refused, with what would be valid, and what it comes to."""

from __future__ import annotations

from pathlib import Path

import pytest

from sandbox.errors import UsageError
from sandbox.load.plan import plan_for
from sandbox.plan import of_text
from sandbox.spec.loadtest import Arrivals, Load
from sandbox.timeline import Timeline

GOOD = """\
apiVersion: sandbox/v1
kind: Scenario
metadata: {name: demo, description: A demo.}
load:
  endpoint: {url: "http://127.0.0.1:8000", apiKeyEnv: KEY}
  mix:
    - {profile: chat-short, tenant: shop, weight: 3}
    - {profile: chat-tiny, tenant: lab, model: small}
  arrivals: {process: gamma, burstiness: 0.5, stages: [{rate: 2, for: 10s}, {rampTo: 10, for: 10s}]}
slo:
  ttft{tenant:shop}: ["p(90)<=1s"]
"""


def refusal(text: str) -> str:
    with pytest.raises(UsageError) as caught:
        of_text(text, Path("demo.yaml"))
    return str(caught.value)


def test_a_load_on_an_endpoint_alone_has_no_cluster() -> None:
    plan = of_text(GOOD, Path("demo.yaml"))
    assert (plan.cluster, plan.shape, plan.stacks) == (None, "", [])
    load = plan.scenario.load
    assert load is not None
    assert load.duration == 20
    assert [(share.profile, share.weight) for share in load.shares] == [("chat-short", 3), ("chat-tiny", 1)]
    assert plan.load_in_words() == "chat-short + chat-tiny, 2/s, ramp to 10/s gamma, for 20 s"
    assert of_text(GOOD, Path("demo.yaml")).scenario == type(plan.scenario).model_validate(
        plan.scenario.model_dump(mode="json", by_alias=True)
    ), "a run is judged by what it wrote down of its scenario"


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        ("{rate: 2, for: 10s}", "{for: 10s}", "write either `rate` (a step) or `rampTo` (a ramp)"),
        ("{rate: 2, for: 10s}", "{rate: 2, rampTo: 3, for: 10s}", "write either `rate` (a step) or `rampTo` (a ramp)"),
        ("{rate: 2, for: 10s}, {rampTo: 10, for: 10s}", "{rate: 0, for: 9s}", "at least one needs a rate above 0"),
        ("stages: [", "rate: 3, stages: [", "either `rate` or `stages`"),
        ("burstiness: 0.5, ", "", "gamma arrivals take `burstiness`"),
        ("process: gamma, ", "process: poisson, ", "`burstiness` is for `process: gamma`"),
        ("burstiness: 0.5", "burstiness: 0.5, think: 2s", "`think` is for `process: closed`"),
        ("burstiness: 0.5", "burstiness: 0.5, speed: 2", "`speed` is for `process: trace`"),
        ("burstiness: 0.5", "burstiness: 0.5, spawnRate: 2", "`spawnRate` is for `process: closed`"),
        ("process: gamma, burstiness: 0.5", "process: trace", "trace arrivals take `trace`, and no `rate`"),
        ("weight: 3", "weight: 0", "greater than 0"),
        ("  mix:", "  profile: rag\n  mix:", "exactly one of `profile`, `mix` or `locustfile`"),
        ("slo:", "  duration: 30s\nslo:", "the stages take 20s together"),
        ("slo:", "  workers: {processes: 2, pods: 2}\nslo:", "either `processes` or `pods`"),
        ("slo:", "  workers: {cluster: other}\nslo:", "write `pods` too"),
        ("model: small", 'headers: {"X: y": z}', "is not a header that can be sent"),
        ("profile: chat-tiny", "profile: chat-tyni", "chat-tiny"),
        ("tenant:shop}", "tenant:shops}", "the load sends no tenant 'shops'; use {tenant:shop}"),
        ("http://", "htp://", "String should match pattern"),
        ("p(90)<=1s", "p(99)<=1s", "needs 459 samples, and this load sends about 80 requests"),
        ("slo:", "faults: [{pod.kill: {}, at: 5s}]\nslo:", "a load that goes to an `endpoint` alone has no cluster"),
        ("slo:", "guardrails: [tenant]\nslo:", "a load that goes to an `endpoint` alone has no cluster"),
    ],
)
def test_each_mistake_says_what_would_be_valid(old: str, new: str, said: str) -> None:
    assert old in GOOD
    assert said in refusal(GOOD.replace(old, new, 1))


def test_a_trace_or_users_say_themselves_how_many() -> None:
    many = GOOD.replace("p(90)", "p(99)").replace("process: gamma, burstiness: 0.5, ", "process: closed, ")
    closed = many.replace(
        "stages: [{rate: 2, for: 10s}, {rampTo: 10, for: 10s}]}", "users: 3, think: 1s}\n  duration: 9s"
    )
    assert of_text(closed, Path("demo.yaml")).scenario.load is not None


def test_arrivals_in_words() -> None:
    assert Arrivals(process="closed", users=3).in_words() == "3 users"
    assert Arrivals(process="trace", trace="a.csv", speed=2).in_words() == "as in a.csv, 2 times as fast"
    assert Arrivals(rate=4).in_words() == "4/s poisson"


def test_keys_and_headers_of_a_share_come_before_the_endpoints(tmp_path: Path) -> None:
    load = Load.model_validate(
        {
            "mix": [{"profile": "chat-tiny", "apiKeyEnv": "MINE", "headers": {"A": "share"}}, {"profile": "chat-tiny"}],
            "endpoint": {"url": "http://x", "apiKeyEnv": "THEIRS", "headers": {"A": "all", "B": "all"}},
            "arrivals": {"rate": 1},
            "duration": "5s",
        }
    )
    with Timeline(tmp_path / "t") as timeline:
        first, second = plan_for(load, timeline, url="http://x", model="m").shares
    assert (first.api_key_env, first.headers) == ("MINE", {"A": "share", "B": "all"})
    assert (second.api_key_env, second.headers) == ("THEIRS", {"A": "all", "B": "all"})


def test_pods_that_send_need_a_cluster_and_their_image() -> None:
    alone = GOOD.replace("slo:", "  workers: {pods: 2}\nslo:")
    assert "there is no cluster for them" in refusal(alone)
    named = of_text(alone.replace("pods: 2", "pods: 2, cluster: other"), Path("demo.yaml"))
    assert "load-worker" not in named.images, "the other cluster gets it when the load begins"
    stack = alone.replace("load:\n", "stack: {name: vllm-sim}\nsteadyState: [openai.chat]\nload:\n", 1)
    assert "load-worker" in of_text(stack, Path("demo.yaml")).images


def test_a_locustfile_is_its_own_profile(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "loadtests").mkdir()
    (tmp_path / "loadtests" / "mine.py").touch()
    monkeypatch.chdir(tmp_path)
    text = (
        GOOD.split("  mix:", maxsplit=1)[0].replace(", apiKeyEnv: KEY", "")
        + "  locustfile: loadtests/mine.py\n  arrivals: {process: closed, users: 2}\n  duration: 9s\n"
        + 'slo:\n  e2e{profile:mine}: ["med<=1s"]\n'
    )
    assert of_text(text, Path("demo.yaml")).load_in_words() == "loadtests/mine.py, 2 users, for 9 s"
    assert "brings keys and headers of its own" in refusal(text.replace('8000"', '8000", apiKeyEnv: KEY'))
    assert "use {profile:mine}" in refusal(text.replace("profile:mine", "profile:yours"))
