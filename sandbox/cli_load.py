"""`sandbox load`: a load on any OpenAI-compatible URL, without a cluster and without a file."""

from __future__ import annotations

import re
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
import yaml

from sandbox.cli_output import Output, OutputOption, out, table, write_json
from sandbox.errors import UsageError
from sandbox.progress import say

if TYPE_CHECKING:
    from sandbox.plan import Plan

_SOURCE = "sandbox load"
_DEFAULT_SLO = {"good_request_fraction": ["value>=0.99"]}
_PLACE = re.compile(rf"^{_SOURCE}:\d+:\d+: ")
# where a mistake in the scenario that the options amount to comes from
_OPTIONS = {
    "load.endpoint.url": "URL",
    "load.endpoint.model": "--model",
    "load.endpoint.apiKeyEnv": "--api-key-env",
    "load.endpoint.caFile": "--ca-file",
    "load.endpoint.headers": "--header",
    "load.endpoint": "URL",
    "load.profile": "--profile",
    "load.mix": "--profile",
    "load.arrivals.rate": "--rate",
    "load.arrivals.users": "--users",
    "load.arrivals.process": "--process",
    "load.arrivals.burstiness": "--burstiness",
    "load.arrivals.trace": "--trace",
    "load.arrivals.speed": "--speed",
    "load.arrivals.think": "--think",
    "load.arrivals.maxInFlight": "--max-in-flight",
    "load.arrivals": "--rate, --users or --trace",
    "load.duration": "--for",
    "load.timeout": "--timeout",
    "load.good": "--good",
    "load.workers.processes": "--processes",
    "load.locustfile": "--locustfile",
    "slo": "--slo",
    "validity": "--validity",
}


UrlArgument = Annotated[str, typer.Argument(help="http(s)://host:port of an OpenAI-compatible server.")]
ProfileOption = Annotated[
    list[str] | None,
    typer.Option("--profile", help="Of loadtests/profiles/; several as NAME=WEIGHT are mixed. Default chat-short."),
]
LocustfileOption = Annotated[str | None, typer.Option(help="A locustfile of your own, instead of a profile.")]
ModelOption = Annotated[str | None, typer.Option(help="Model asked for; may be left out where one is served.")]
RateOption = Annotated[float | None, typer.Option(help="Requests per second, whatever becomes of them.")]
UsersOption = Annotated[int | None, typer.Option(help="Instead: users that wait for their answers.")]
TraceOption = Annotated[str | None, typer.Option(help="Instead: replay a trace, Azure CSV or Mooncake JSONL.")]
SearchOption = Annotated[str | None, typer.Option(help="Instead: find the highest rate that holds, FROM..TO.")]
ProcessOption = Annotated[str | None, typer.Option(help="Of --rate: constant, poisson (default) or gamma.")]
BurstinessOption = Annotated[float | None, typer.Option(help="Of gamma: 1 is Poisson, below it come bursts.")]
SpeedOption = Annotated[float | None, typer.Option(help="Of --trace: 2 replays it in half its time.")]
ThinkOption = Annotated[str | None, typer.Option(help="Of --users: pause after an answer, such as 2s.")]
SeedOption = Annotated[int, typer.Option(help="The same seed sends the same requests at the same times.")]
MostOption = Annotated[int, typer.Option(help="Requests at once; those beyond are dropped, and said so.")]
ForOption = Annotated[str, typer.Option("--for", help="How long, such as 60s; of --search each step.")]
TimeoutOption = Annotated[str, typer.Option(help="A request not done by then ends as `timeout`.")]
SloOption = Annotated[
    list[str] | None,
    typer.Option("--slo", help="What must hold: 'ttft: p(95)<=300ms'. Unless outcomes are named, 99 % must be good."),
]
GoodOption = Annotated[list[str] | None, typer.Option("--good", help="Limit of a good request, such as ttft=1s.")]
ValidityOption = Annotated[list[str] | None, typer.Option("--validity", help="As --slo, for the load client.")]
KeyOption = Annotated[str | None, typer.Option(help="Environment variable that holds the API key.")]
HeaderOption = Annotated[list[str] | None, typer.Option("--header", help="'Name: text', with every request.")]
CaOption = Annotated[Path | None, typer.Option(help="Certificates to trust, for an own CA.")]
ProcessesOption = Annotated[int, typer.Option(help="Locust workers of this machine that share the load.")]
BaselineOption = Annotated[Path | None, typer.Option(help="An earlier run's folder, for `<=baseline+10%`.")]
DryOption = Annotated[bool, typer.Option("--dry-run", help="Print the scenario this amounts to, send nothing.")]
RunsOption = Annotated[Path, typer.Option("--runs", help="Folder that holds a folder per run.")]


def load(
    url: UrlArgument,
    profile: ProfileOption = None,
    locustfile: LocustfileOption = None,
    model: ModelOption = None,
    rate: RateOption = None,
    users: UsersOption = None,
    trace: TraceOption = None,
    search: SearchOption = None,
    process: ProcessOption = None,
    burstiness: BurstinessOption = None,
    speed: SpeedOption = None,
    think: ThinkOption = None,
    seed: SeedOption = 1,
    max_in_flight: MostOption = 2000,
    for_: ForOption = "30s",
    timeout: TimeoutOption = "60s",
    slo: SloOption = None,
    good: GoodOption = None,
    validity: ValidityOption = None,
    api_key_env: KeyOption = None,
    header: HeaderOption = None,
    ca_file: CaOption = None,
    processes: ProcessesOption = 1,
    baseline: BaselineOption = None,
    dry_run: DryOption = False,
    runs: RunsOption = Path("runs"),
    output: OutputOption = Output.text,
) -> None:
    """Load any OpenAI-compatible URL and judge it: `sandbox load URL --rate 20 --for 60s --slo 'ttft: p(95)<=1s'`."""
    between = _range(search, (rate, users, trace, baseline)) if search else None
    arrivals = {"rate": between[0] if between else rate, "users": users, "trace": trace, "burstiness": burstiness}
    arrivals |= {"speed": speed, "think": think, "seed": seed, "maxInFlight": max_in_flight}
    told = "closed" if users else "trace" if trace else "gamma" if burstiness else "poisson"
    arrivals["process"] = process or told
    endpoint: dict[str, Any] = {
        "url": url,
        "model": model,
        "apiKeyEnv": api_key_env,
        "caFile": str(ca_file) if ca_file else None,
    }
    endpoint["headers"] = dict(_pairs("--header", header, ":")) or None
    loaded = {**_profiles(profile, locustfile), "duration": for_, "timeout": timeout}
    loaded |= {"arrivals": _given(arrivals), "endpoint": _given(endpoint), "workers": {"processes": processes}}
    loaded["good"] = dict(_pairs("--good", good, "="))
    thresholds = {"slo": _promised(slo), "validity": _thresholds("--validity", validity)}
    text = _document(url, loaded, thresholds)
    plan = _plan(text)
    if dry_run:
        sys.stdout.write(f"# --search {search} runs this at rates between the two.\n{text}" if between else text)
    elif between:
        _find_limit(plan, between, runs, output)
    else:
        _once(plan, runs, baseline, output)


def _document(url: str, loaded: dict[str, Any], thresholds: dict[str, Any]) -> str:
    """The scenario that the options amount to, as YAML that can be kept and run again."""
    described = {"name": "load", "description": f"A load on {url}, from the command line."}
    head = {"apiVersion": "sandbox/v1", "kind": "Scenario", "metadata": described, "load": loaded}
    return yaml.safe_dump({**head, **thresholds}, sort_keys=False, allow_unicode=True)


def _once(wanted: Plan, runs: Path, baseline: Path | None, output: Output) -> None:
    from sandbox import suite
    from sandbox.run import Options

    _look(wanted)
    outcomes = suite.execute_all([wanted], Options(runs=runs, baseline=baseline))
    published = suite.publish(outcomes, runs)
    if output is Output.json:
        write_json(outcomes[0].results.model_dump(mode="json", by_alias=True))
    else:
        suite.show(outcomes, out, runs, published)
    raise typer.Exit(suite.exit_code(outcomes, published))


def _look(wanted: Plan) -> None:
    """What the endpoint refuses is a mistake of the command line: it leaves no run behind."""
    from sandbox.loading import check_load, look_at

    load = wanted.scenario.load
    if load is not None and load.endpoint is not None:
        check_load(load)
        say(f"look at {load.endpoint.url}")
        look_at(load, load.endpoint)


def _find_limit(wanted: Plan, between: tuple[float, float], runs: Path, output: Output) -> None:
    from sandbox import limit

    _look(wanted)
    folder, found = limit.find(wanted, between, runs)
    if output is Output.json:
        write_json({"folder": folder, **limit.as_json(found)})
    else:
        out.print(table(limit.COLUMNS, limit.rows(found)))
        out.print(f"\n{limit.in_words(found)}\n  steps  {folder}", markup=False, soft_wrap=True)
    raise typer.Exit(limit.exit_code(found))


def _plan(text: str) -> Plan:
    """The plan that the options amount to; mistakes are told of the options, not of lines nobody wrote."""
    from sandbox import plan

    try:
        return plan.of_text(text, Path(_SOURCE))
    except UsageError as error:
        details = [_option(_PLACE.sub("", line)) for line in error.details]
        fix = "mend the options named; nothing was sent"
        raise UsageError(
            error.what.replace("in this Scenario", "with the options"), details=details, fix=fix
        ) from error


def _option(line: str) -> str:
    keys, _, message = line.partition(": ")
    found = next((name for name in _OPTIONS if keys == name or keys.startswith((f"{name}.", f"{name}["))), None)
    if found is None:
        return line
    return f"{_OPTIONS[found]}: {keys.removeprefix(found).lstrip('.') or ''} {message}".replace(":  ", ": ")


def _given(values: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in values.items() if value is not None}


def _profiles(wanted: list[str] | None, locustfile: str | None) -> dict[str, Any]:
    if locustfile is not None:
        return {"locustfile": locustfile, **({"profile": wanted[0]} if wanted else {})}
    if not wanted or (len(wanted) == 1 and "=" not in wanted[0]):
        return {"profile": wanted[0] if wanted else "chat-short"}
    shares = [(name, weight or "1") for name, _, weight in (each.partition("=") for each in wanted)]
    try:
        return {"mix": [{"profile": name, "weight": float(weight)} for name, weight in shares]}
    except ValueError as error:
        raise UsageError(f"--profile: {error}", fix="write NAME=WEIGHT, such as chat-short=3") from error


def _pairs(option: str, given: list[str] | None, sign: str) -> list[tuple[str, str]]:
    pairs = [(name.strip(), text.strip()) for name, _, text in (each.partition(sign) for each in given or [])]
    if wrong := [each for each, (name, text) in zip(given or [], pairs, strict=True) if not name or not text]:
        raise UsageError(f"{option}: {wrong[0]!r} is not NAME{sign}VALUE", fix=f"write it as NAME{sign}VALUE")
    return pairs


def _thresholds(option: str, given: list[str] | None) -> dict[str, list[str]]:
    """`ttft{phase:baseline}: p(95)<=300ms` taken apart at the first colon or space outside braces."""
    found: dict[str, list[str]] = {}
    for each in given or []:
        match = re.match(r"\s*([^\s:{]+(?:\{[^}]*\})?)(?:\s*:|\s)\s*(\S.*)$", each)
        if match is None:
            raise UsageError(f"{option}: {each!r} is not `metric: threshold`", fix="write it as 'ttft: p(95)<=300ms'")
        found.setdefault(match[1], []).append(match[2].strip())
    return found


def _promised(given: list[str] | None) -> dict[str, list[str]]:
    """What must hold; times alone would be those of survivors, so most have to be good unless outcomes are named."""
    from sandbox.spec.slo import OUTCOMES

    found = _thresholds("--slo", given)
    named = {text.partition("{")[0] for text in found}
    return found if named & {*_DEFAULT_SLO, *OUTCOMES} else {**found, **_DEFAULT_SLO}


def _range(text: str, others: tuple[object, ...]) -> tuple[float, float]:
    if any(each is not None for each in others):
        words = "--search looks for a rate: write it without --rate, --users, --trace and --baseline"
        raise UsageError(words, fix="leave them out")
    from sandbox.spec.loadtest import MOST_RATE

    match = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*\.\.\s*(\d+(?:\.\d+)?)\s*", text)
    low, high = (float(match[1]), float(match[2])) if match else (0.0, 0.0)
    if not 0 < low < high <= MOST_RATE:
        words = f"--search: {text!r} is not a range of rates above 0 and up to {MOST_RATE:g}"
        raise UsageError(words, fix="write it as FROM..TO, such as 2..200")
    return low, high
