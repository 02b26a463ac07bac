"""From a scenario's file to everything it names, checked before anything is touched; what `list` and `schema` show."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import BaseModel

from sandbox import attacks, faults, probes
from sandbox.errors import SandboxError, UsageError
from sandbox.kube import guardrails, stacks
from sandbox.spec import catalogue as files
from sandbox.spec import profile as profiles
from sandbox.spec.attack import Attempt
from sandbox.spec.base import KeyPath
from sandbox.spec.cluster import ClusterSpec
from sandbox.spec.guardrail import Guardrail
from sandbox.spec.loader import Document, load
from sandbox.spec.profile import Profile
from sandbox.spec.results import Results
from sandbox.spec.scenario import FaultUse, Named, Scenario
from sandbox.spec.slo import METRICS
from sandbox.spec.stack import Stack
from sandbox.spec.values import problems as value_problems


@dataclass(frozen=True)
class Plan:
    """A scenario and everything it names, valid as far as that can be known without touching anything."""

    scenario: Scenario
    source: Path
    cluster: ClusterSpec
    cluster_source: Path
    stack: Stack
    guardrails: list[Guardrail]
    attempts: list[Attempt]
    profile: Profile | None

    @property
    def values(self) -> dict[str, Any]:
        """The stack's values as the scenario sets them."""
        return self.scenario.stack.values

    @property
    def faults(self) -> list[FaultUse]:
        """The faults in the scenario's order."""
        return self.scenario.faults

    @property
    def images(self) -> list[str]:
        """Every app image the nodes need, each once."""
        named = [*self.stack.images, *(image for guardrail in self.guardrails for image in guardrail.images)]
        return list(dict.fromkeys(named))

    def load_in_words(self) -> str:
        """One line: what is sent, how often, for how long."""
        load = self.scenario.load
        if load is None:
            return "no load"
        many = (
            f"{load.arrivals.users} users"
            if load.arrivals.users
            else f"{load.arrivals.rate:g}/s {load.arrivals.process}"
        )
        return f"{load.profile}, {many}, for {load.duration:g} s"

    def in_words(self) -> str:
        """The whole plan, as `--dry-run` prints it."""
        scenario = self.scenario
        rows = [
            ("scenario", f"{scenario.metadata.name} ({self.source})"),
            ("cluster", f"{self.cluster.metadata.name}: {self.cluster.metadata.description}"),
            ("guardrails", ", ".join(each.metadata.name for each in self.guardrails) or "none"),
            ("stack", f"{self.stack.metadata.name} {self.values or ''}".strip()),
            ("images", ", ".join(self.images)),
            ("steady state", ", ".join(_called(use) for use in scenario.steady_state)),
            ("load", self.load_in_words()),
            *(("fault", f"at {use.at:g} s: {_called(use)}") for use in self.faults),
            ("attacks", ", ".join(attempt.id for attempt in self.attempts) or "none"),
            ("recover", f"within {scenario.recover.within:g} s"),
            *(("slo", f"{name} {each.threshold}") for name, all_ in scenario.slo.items() for each in all_),
            *(("validity", f"{name} {each.threshold}") for name, all_ in scenario.validity.items() for each in all_),
        ]
        return "\n".join(f"{key:<13} {text}" for key, text in rows)


def _called(use: Named) -> str:
    return f"{use.name}({', '.join(f'{key}={value}' for key, value in use.params.items())})"


def load_all(wanted: Sequence[str]) -> list[Plan]:
    """Load scenarios from files, folders or names of the catalogue; the mistakes of all of them at once.

    Raises:
        UsageError: lists every mistake of every scenario; nothing was touched.
    """
    plans, broken = [], []
    for path in [path for each in wanted for path in _paths(each)]:
        try:
            plans.append(_load_one(load(path, Scenario, more=_names_that_do_not_exist)))
        except UsageError as error:
            broken.append(error)
    if len(broken) == 1:
        raise broken[0]
    if broken:
        details = [line for error in broken for line in (f"{error.where}: {error.what}", *error.details)]
        raise UsageError(f"{len(broken)} scenarios cannot be used", details=details, fix="mend the lines named")
    return plans


def _paths(wanted: str) -> list[Path]:
    path = Path(wanted)
    if wanted.endswith("/") and not path.exists():
        raise UsageError("there is no such folder", where=wanted, fix="check the path, or: sandbox list scenarios")
    if path.is_dir():
        found = sorted(path.rglob("*.yaml"))
        if not found:
            raise UsageError("holds no scenario", where=wanted, fix="sandbox list scenarios")
        return found
    if path.is_file() or path.suffix in {".yaml", ".yml"}:
        return [path]
    return [files.find("scenarios", wanted, Scenario, kind="scenario").path]


def _load_one(document: Document[Scenario]) -> Plan:
    """Resolve what a scenario names. Every mistake is collected before any is raised."""
    scenario = document.model
    problems: list[str] = []

    def resolve(keys: tuple[str | int, ...], find: Any, *arguments: Any, **more: Any) -> Any:
        try:
            return find(*arguments, **more)
        except UsageError as error:
            problems.append(document.problem(keys, _in_words(error)))
            return None

    cluster = resolve(("cluster",), files.find, "clusters", scenario.cluster, ClusterSpec, kind="cluster")
    stack = resolve(("stack", "name"), stacks.load, scenario.stack.name)
    chosen = [resolve(("guardrails", n), guardrails.load, name) for n, name in enumerate(scenario.guardrails)]
    attempts = resolve(("attacks",), _attempts, scenario.attacks)
    profile = resolve(("load", "profile"), profiles.resolve, scenario.load.profile) if scenario.load else None
    if stack is not None:
        problems += [
            document.problem(("stack", "values", *keys), message)
            for keys, message in value_problems(stack.values, scenario.stack.values)
        ]
    if attempts and not any(each is not None and each.tenant for each in chosen):
        problems.append(document.problem(("attacks",), "attacks need a guardrail that makes a tenant: [tenant]"))
    problems += _call_problems(document)
    if problems:
        raise UsageError(
            f"{len(problems)} problem{'s' if len(problems) != 1 else ''} in this Scenario",
            where=str(document.path),
            details=problems,
            fix=f"mend the lines named, then: sandbox lint {document.path}",
        )
    return Plan(
        scenario=scenario,
        source=document.path,
        cluster=cluster.model,
        cluster_source=cluster.path,
        stack=stack,
        guardrails=chosen,
        attempts=attempts,
        profile=profile,
    )


def _names_that_do_not_exist(raw: Any) -> list[tuple[KeyPath, str]]:
    """What a scenario that breaks its model names wrongly besides, as far as it can be read."""
    found: list[tuple[KeyPath, str]] = []

    def each(*keys: str) -> list[tuple[KeyPath, Any]]:
        value = raw
        for key in keys:
            value = value.get(key) if isinstance(value, dict) else None
        if isinstance(value, list):
            return [((*keys, position), item) for position, item in enumerate(value)]
        return [(keys, value)]

    finders: list[tuple[list[tuple[KeyPath, Any]], Callable[[str], Any]]] = [
        (each("cluster"), lambda name: files.find("clusters", name, ClusterSpec, kind="cluster")),
        (each("stack", "name"), stacks.load),
        (each("guardrails"), guardrails.load),
        (each("attacks"), lambda name: _attempts([name])),
        (each("load", "profile"), profiles.resolve),
    ]
    for places, find in finders:
        for keys, name in places:
            try:
                find(name) if isinstance(name, str) else None
            except UsageError as error:
                found.append((keys, _in_words(error)))
    for room, registry in (("steadyState", probes.PROBES), ("faults", faults.FAULTS)):
        for keys, use in each(room):
            called = {use: {}} if isinstance(use, str) else use if isinstance(use, dict) else {}
            found += [
                ((*keys, *below), words)
                for name, params in called.items()
                if name not in {"at", "for"} and (params is None or isinstance(params, dict))
                for below, words in registry.problems(str(name), params or {})
            ]
    return found


def _in_words(error: UsageError) -> str:
    return "; ".join(filter(None, [error.what, *error.details, error.fix]))


def _attempts(wanted: Sequence[str]) -> list[Attempt]:
    return attacks.attempts(wanted) if wanted else []


def _call_problems(document: Document[Scenario]) -> list[str]:
    """Probes and faults that do not exist, or are called with what they do not take."""
    uses: list[tuple[str, int, Named]] = [
        *(("steadyState", n, use) for n, use in enumerate(document.model.steady_state)),
        *(("faults", n, use) for n, use in enumerate(document.model.faults)),
    ]
    found = []
    for key, position, use in uses:
        registry = probes.PROBES if key == "steadyState" else faults.FAULTS
        found += [
            document.problem((key, position, *keys), message)
            for keys, message in registry.problems(use.name, use.params)
        ]
    return found


def catalogue() -> dict[str, dict[str, str]]:
    """Everything that can be named in a scenario: kind -> name -> one sentence."""
    return {
        "scenarios": dict(_described(files.files("scenarios"), Scenario)),
        "clusters": dict(_described(files.files("clusters"), ClusterSpec)),
        "stacks": {name: stacks.load(name).metadata.description for name in stacks.names()},
        "guardrails": {name: guardrails.load(name).metadata.description for name in guardrails.names()},
        "attacks": {attempt.id: attempt.title for attempt in attacks.attempts()},
        "profiles": {name: profiles.resolve(name).metadata.description for name in profiles.names()},
        "faults": {name: _first_line(function) for name, function in sorted(faults.FAULTS.functions.items())},
        "probes": {name: _first_line(function) for name, function in sorted(probes.PROBES.functions.items())},
        "metrics": {name: metric.description for name, metric in sorted(METRICS.items())},
    }


def _described(found: Iterable[Path], model: type[BaseModel]) -> Iterable[tuple[str, str]]:
    """Name and description of each file; a broken one is listed with what is wrong, not left out."""
    for path in reversed(list(found)):
        try:
            metadata = load(path, model).model.metadata  # type: ignore[attr-defined]  # every spec has it
        except SandboxError as error:
            yield path.stem, f"cannot be used: {error.what}"
        else:
            yield metadata.name, metadata.description


def _first_line(function: Any) -> str:
    return (function.__doc__ or "").strip().splitlines()[0]


def models() -> dict[str, type[BaseModel]]:
    """Every kind of spec with a JSON Schema."""
    return {
        "scenario": Scenario,
        "cluster": ClusterSpec,
        "stack": Stack,
        "guardrail": Guardrail,
        "attempt": Attempt,
        "profile": Profile,
        "results": Results,
    }
