"""`sandbox load` as a user types it, against a server whose truth is known."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from sandbox.load.golden import MODEL, Golden, GoldenSettings, golden
from sandbox.plan import load_all

pytestmark = pytest.mark.realtime  # it measures


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Golden]:
    settings = GoldenSettings(first=0.05, gap=0.01, tokens=5, key="s3cret", log=tmp_path / "golden.jsonl")
    with golden(settings) as running:
        yield running


def typed(tmp_path: Path, *words: str, key: str = "s3cret") -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-P", "-m", "sandbox", "load", *words]
    env = {**os.environ, "LOAD_KEY": key, "COLUMNS": "200"}
    return subprocess.run(command, capture_output=True, text=True, check=False, cwd=tmp_path, env=env, timeout=120)


QUICK = ("--rate", "30", "--for", "5s", "--api-key-env", "LOAD_KEY")


def test_a_load_on_a_url_needs_no_cluster_and_ends_with_its_verdict(server: Golden, tmp_path: Path) -> None:
    done = typed(tmp_path, server.url, *QUICK, "--slo", "ttft: p(50)<=2s", "-o", "json")
    assert done.returncode == 0, done.stdout + done.stderr
    results = json.loads(done.stdout)
    assert results["verdict"] == "pass"
    promised = [check["expected"] for check in results["checks"] if check["group"] == "slo"]
    assert promised == ["p(50)<=2s", "value>=0.99"]
    # looks before the load carry no number; what was sent is what is reported
    assert results["summaries"][0]["requests"] == sum(bool(line.number) for line in server.served())
    (folder,) = (tmp_path / "runs").iterdir()
    assert (folder / "report.html").is_file()
    assert "s3cret" not in "".join(file.read_text(errors="replace") for file in folder.iterdir())


def test_a_promise_that_does_not_hold_ends_with_1(server: Golden, tmp_path: Path) -> None:
    done = typed(tmp_path, server.url, *QUICK, "--slo", "ttft p(50)<=10ms")
    assert done.returncode == 1, done.stdout + done.stderr
    assert "p(50) is 5" in done.stdout


def test_without_a_promise_most_requests_must_be_good(server: Golden, tmp_path: Path) -> None:
    done = typed(tmp_path, server.url, *QUICK, "--good", "ttft=1ms", "-o", "json")
    assert done.returncode == 1, done.stderr
    assert "good_request_fraction" in json.loads(done.stdout)["headline"]


@pytest.mark.parametrize(
    ("words", "key", "said"),
    [
        (("--model", "gpt-9"), "s3cret", f"use one of: {MODEL}"),
        ((), "wrong", "refuses the API key"),
        (("--api-key-env", "NO_SUCH_KEY"), "s3cret", "not set: NO_SUCH_KEY"),
    ],
)
def test_what_the_endpoint_refuses_is_said_before_the_first_request(
    server: Golden, tmp_path: Path, words: tuple[str, ...], key: str, said: str
) -> None:
    done = typed(tmp_path, server.url, *QUICK, *words, key=key)
    assert done.returncode == 2, done.stdout + done.stderr
    assert said in done.stderr + done.stdout
    assert not server.served(), "something was sent"


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("--rate", "-1"), ["--rate: Input should be greater than 0"]),
        (("--for", "10"), ["--for: '10' is not a duration"]),
        (("--slo", "ok: count>=0"), ["--slo: ok[0] count>=0 could not fail"]),
        (("--slo", "ttfft: p(90)<=1s", "--slo", "tpot: p(90)<=1"), ["unknown metric 'ttfft'", "needs a unit of time"]),
        (("--slo", "ttft{phase:lunch}: p(90)<=1s"), ["unknown phase 'lunch'"]),
        (("--slo", "ttft{phase:fault}: p(90)<=1s"), ["there are no `faults`"]),
        (("--slo", "p90"), ["is not `metric: threshold`"]),
        (("--profile", "chat-shrot"), ["--profile", "chat-short"]),
        (("--users", "3"), ["--rate, --users or --trace", "closed arrivals take `users` and no `rate`"]),
        (("--header", "nonsense"), ["'nonsense' is not NAME:VALUE"]),
        (("--header", "X-A: b\x07"), ["--header: 'X-A' is not a header that can be sent"]),
        (("--search", "5..20"), ["--search looks for a rate"]),
        (("--users", "3", "--process", "constant"), ["--rate, --users or --trace"]),
        (("--header", "Authorization: Bearer abc"), ["--header", "Authorization is a secret", "${NAME}"]),
        (("--header", "api-key: ${NO_SUCH_KEY}"), ["not set: NO_SUCH_KEY"]),
        (("--header", "Content-Length: 3"), ["Content-Length is written by the client"]),
        (("--locustfile", "nope.py"), ["--locustfile", "there is no locustfile"]),
        (("--process", "sometimes"), ["--process"]),
    ],
)
def test_bad_options_are_refused_by_their_names_and_nothing_is_left(
    tmp_path: Path, words: tuple[str, ...], said: list[str]
) -> None:
    done = typed(tmp_path, "http://127.0.0.1:9", *QUICK, *words)
    assert done.returncode == 2, done.stdout + done.stderr
    assert all(each in done.stderr for each in said), done.stderr
    assert not (tmp_path / "runs").exists()


def test_a_url_that_is_none_and_one_where_nobody_answers(tmp_path: Path) -> None:
    refused = typed(tmp_path, "ftp://example", *QUICK)
    assert (refused.returncode, "URL: String should match" in refused.stderr) == (2, True), refused.stderr
    nobody = typed(tmp_path, "http://127.0.0.1:9", *QUICK)
    assert (nobody.returncode, "nothing answers" in nobody.stderr) == (4, True), nobody.stderr


@pytest.mark.parametrize("between", ["5", "20..5", "0..5", "5..20000"])
def test_a_search_without_a_range_is_refused(tmp_path: Path, between: str) -> None:
    done = typed(tmp_path, "http://127.0.0.1:9", "--search", between)
    assert (done.returncode, "FROM..TO" in done.stderr) == (2, True), done.stderr


def test_a_url_with_a_password_is_refused_and_never_shown(tmp_path: Path) -> None:
    done = typed(tmp_path, "http://me:hunter2@127.0.0.1:9", *QUICK)
    assert done.returncode == 2, done.stderr
    assert "holds a user or a password" in done.stderr
    assert "hunter2" not in done.stdout + done.stderr
    assert not (tmp_path / "runs").exists()


@pytest.mark.parametrize("key", ["s3cret\n", "s3crét"])
def test_a_key_that_no_header_can_carry_is_refused_and_never_shown(server: Golden, tmp_path: Path, key: str) -> None:
    done = typed(tmp_path, server.url, *QUICK, key=key)
    assert done.returncode == 2, done.stderr
    assert "LOAD_KEY: holds a line break" in done.stderr
    assert "s3cr" not in done.stdout + done.stderr


def test_a_file_that_holds_no_certificate_is_refused(tmp_path: Path) -> None:
    (tmp_path / "ca.pem").write_text("nothing of the kind")
    done = typed(tmp_path, "https://127.0.0.1:9", *QUICK, "--ca-file", "ca.pem")
    assert (done.returncode, "PEM certificates" in done.stderr) == (2, True), done.stderr


def test_a_locustfile_that_does_not_load_leaves_no_run(server: Golden, tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text("import nosuchmodule\n")
    done = typed(tmp_path, server.url, "--users", "2", "--for", "5s", "--locustfile", "mine.py")
    assert (done.returncode, "nosuchmodule" in done.stderr) == (2, True), done.stderr
    assert not (tmp_path / "runs").exists()


def test_a_header_takes_its_secret_from_the_environment_and_leaves_it_there(server: Golden, tmp_path: Path) -> None:
    words = ("--rate", "30", "--for", "5s", "--header", "authorization: Bearer ${LOAD_KEY}", "--slo", "ok: count>=1")
    done = typed(tmp_path, server.url, *words)
    assert done.returncode == 0, done.stdout + done.stderr
    (folder,) = (tmp_path / "runs").iterdir()
    kept = "".join(file.read_text(errors="replace") for file in folder.iterdir())
    assert "s3cret" not in kept
    assert "${LOAD_KEY}" in kept


def test_times_alone_promise_answers_too(server: Golden, tmp_path: Path) -> None:
    done = typed(tmp_path, "http://127.0.0.1:9", "--rate", "5", "--slo", "ttft: p(50)<=1s", "--dry-run")
    assert yaml.safe_load(done.stdout)["slo"] == {"ttft": ["p(50)<=1s"], "good_request_fraction": ["value>=0.99"]}
    done = typed(tmp_path, "http://127.0.0.1:9", "--rate", "5", "--slo", "http_error: count<=3", "--dry-run")
    assert yaml.safe_load(done.stdout)["slo"] == {"http_error": ["count<=3"]}
    done = typed(tmp_path, "http://127.0.0.1:9", "--search", "5..9", "--dry-run")
    assert done.stdout.startswith("# --search 5..9 runs this"), done.stderr


def test_a_dry_run_prints_a_scenario_that_can_be_kept(tmp_path: Path) -> None:
    words = ("--rate", "5", "--profile", "chat-short=3", "--profile", "chat-tiny", "--slo", "ttft: p(50)<=1s")
    done = typed(tmp_path, "http://127.0.0.1:9", *words, "--header", "X-Team: a", "--dry-run")
    assert done.returncode == 0, done.stderr
    told: dict[str, Any] = yaml.safe_load(done.stdout)
    assert [share["weight"] for share in told["load"]["mix"]] == [3, 1]
    assert told["load"]["endpoint"]["headers"] == {"X-Team": "a"}
    (tmp_path / "kept.yaml").write_text(done.stdout)
    (plan,) = load_all([str(tmp_path / "kept.yaml")])
    assert plan.cluster is None
