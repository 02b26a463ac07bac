"""From a scenario's file to everything it names, checked before anything is touched; what `list` and `schema` show."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, TypeVar

from pydantic import BaseModel

from sandbox import attacks, faults, probes
from sandbox.errors import SandboxError, UsageError
from sandbox.images.recipe import recipe
from sandbox.kube import guardrails, stacks
from sandbox.kube.preparation import Preparation
from sandbox.spec import catalogue as files
from sandbox.spec import locustfile, trace
from sandbox.spec import profile as profiles
from sandbox.spec.attack import Attempt
from sandbox.spec.base import KeyPath, Metadata, reach
from sandbox.spec.cluster import ClusterSpec
from sandbox.spec.contradictions import contradictions, idle
from sandbox.spec.folder import is_yaml, refuse_stranger, yaml_files
from sandbox.spec.guardrail import Guardrail
from sandbox.spec.loader import Document, load, load_text
from sandbox.spec.profile import Profile
from sandbox.spec.results import Results
from sandbox.spec.scenario import FaultUse, Named, Scenario, StackUse, called
from sandbox.spec.slo import METRICS
from sandbox.spec.stack import Stack
from sandbox.spec.values import problems as value_problems
from sandbox.spec.workload import Workload

T = TypeVar("T")
S = TypeVar("S", Stack, Guardrail)
_SHAPE: str = Scenario.model_fields["cluster"].default


@dataclass(frozen=True)
class Plan:
    """A scenario and everything it names, valid as far as that can be known without touching anything."""

    scenario: Scenario
    source: Path
    cluster: ClusterSpec | None
    cluster_source: Path | None
    stack: Stack | None
    guardrails: list[tuple[Guardrail, dict[str, Any]]]
    attempts: list[Attempt]
    profiles: list[Profile]
    required: list[tuple[Stack, dict[str, Any]]]

    @property
    def shape(self) -> str:
        """The cluster's name; empty where the load goes to an endpoint and there is no cluster."""
        return self.cluster.metadata.name if self.cluster else ""

    @property
    def preparation(self) -> Preparation | None:
        """What a prepared cluster holds of it; None where there is no cluster."""
        if self.cluster is None:
            return None
        return Preparation(self.cluster, self.guardrails, self.stacks, self.images)

    @property
    def stacks(self) -> list[tuple[Stack, dict[str, Any]]]:
        """Every stack with its values, in the order they are deployed: the one under test last."""
        return [*self.required, *([(self.stack, self.values)] if self.stack else [])]

    @property
    def values(self) -> dict[str, Any]:
        """The stack's values as the scenario sets them."""
        return self.scenario.stack.values if self.scenario.stack else {}

    @property
    def faults(self) -> list[FaultUse]:
        """The faults in the scenario's order."""
        return self.scenario.faults

    @property
    def images(self) -> list[str]:
        """Every app image the nodes need, each once."""
        named = [image for stack, _ in self.stacks for image in stack.images]
        named += [each.image for each in self.scenario.workloads]
        named += [image for guardrail, _ in self.guardrails for image in guardrail.images]
        load = self.scenario.load
        named += ["load-worker"] if load and load.workers.pods and load.workers.cluster is None else []
        return list(dict.fromkeys(named))

    def load_in_words(self) -> str:
        """One line: what is sent, how often, for how long."""
        load = self.scenario.load
        if load is None:
            return "no load"
        what = " + ".join(dict.fromkeys(share.profile for share in load.shares)) or f"{load.locustfile}"
        return f"{what}, {load.arrivals.in_words()}, for {load.duration:g} s"

    def in_words(self) -> str:
        """The whole plan, as `--dry-run` prints it."""
        scenario = self.scenario
        rows = [
            ("scenario", f"{scenario.metadata.name} ({self.source})"),
            ("cluster", f"{self.shape}: {self.cluster.metadata.description}" if self.cluster else "none"),
            (
                "guardrails",
                ", ".join(f"{rule.metadata.name} {values or ''}".strip() for rule, values in self.guardrails) or "none",
            ),
            *(("requires", f"stack {stack.metadata.name} {values or ''}".strip()) for stack, values in self.required),
            ("stack", f"{self.stack.metadata.name} {self.values or ''}".strip() if self.stack else "none"),
            ("images", ", ".join(self.images)),
            ("steady state", _steady_state_in_words(scenario)),
            ("load", self.load_in_words()),
            *(("workload", workload_in_words(each)) for each in scenario.workloads),
            *(("fault", f"at {use.at:g} s: {_called(use)}") for use in self.faults),
            ("attacks", ", ".join(attempt.id for attempt in self.attempts) or "none"),
            ("recover", f"within {scenario.recover.within:g} s"),
            *(("slo", f"{name} {each.threshold}") for name, all_ in scenario.slo.items() for each in all_),
            *(("validity", f"{name} {each.threshold}") for name, all_ in scenario.validity.items() for each in all_),
        ]
        return "\n".join(f"{key:<13} {text}" for key, text in rows)

    def as_json(self) -> dict[str, Any]:
        """The same for programs: the scenario's keys, `source`, `images`, `requires`, and every attempt by its id."""
        return {
            **self.scenario.model_dump(mode="json", by_alias=True),
            "source": str(self.source),
            "images": self.images,
            "requires": [stack.metadata.name for stack, _ in self.required],
            "attacks": [attempt.id for attempt in self.attempts],
        }


def workload_in_words(workload: Workload) -> str:
    """One line: how many pods, what each asks for, when, for how long they are watched."""
    asked = ", ".join(f"{amount} {name}" for name, amount in workload.resources.items())
    asked += (
        f"{', ' if asked else ''}{'a shared claim' if workload.shared_claim else 'a claim'}" if workload.claim else ""
    )
    what = f" of {asked}" if asked else ""
    return (
        f"{workload.name}: {workload.pods} pods{what}, at {workload.at:g} s, watched for {workload.within:g} s at most"
    )


def _steady_state_in_words(scenario: Scenario) -> str:
    uses = ", ".join(_called(use) for use in scenario.steady_state)
    return f"{uses}, in {scenario.steady.looks} looks in a row" if uses else "none"


def _called(use: Named) -> str:
    return f"{use.name}({', '.join(f'{key}={value}' for key, value in use.params.items())})"


def load_all(wanted: Sequence[str]) -> list[Plan]:
    """Load scenarios from files, folders or names of the catalogue; the mistakes of all of them at once.

    Raises:
        UsageError: lists every mistake of every scenario; nothing was touched.
    """
    plans: list[Plan] = []
    broken: list[UsageError] = []
    for each in wanted:
        try:
            found = _paths(each)
        except UsageError as error:
            broken.append(error)
            continue
        for path in found:
            try:
                if Path(each).is_dir():
                    refuse_stranger(path, each)
                plans.append(_load_one(path))
            except UsageError as error:
                broken.append(error)
    if len(broken) == 1:
        raise broken[0]
    if broken:
        details = [line for error in broken for line in _told_beside_others(error)]
        raise UsageError(f"{len(broken)} scenarios cannot be used", details=details, fix="mend the lines named")
    return plans


def _told_beside_others(error: UsageError) -> list[str]:
    """The lines of one error among several; its fix where no detail says what would be valid."""
    head = f"{error.where}: {error.what}" if error.where else error.what
    return [head, *error.details] if error.details else ["; ".join(filter(None, [head, error.fix]))]


def _paths(wanted: str) -> list[Path]:
    path = Path(wanted)
    if wanted.endswith("/") and not path.exists():
        raise UsageError("there is no such folder", where=wanted, fix="check the path, or: sandbox list scenarios")
    if path.is_dir():
        found = yaml_files(path)
        if not found:
            raise UsageError("holds no scenario", where=wanted, fix="sandbox list scenarios")
        return found
    if path.is_file() or is_yaml(path):
        return [path]
    return [files.locate("scenarios", wanted, kind="scenario")]


def of_text(text: str, source: Path) -> Plan:
    """A scenario that lies in no file, with everything it names; `source` is what messages and reports call it."""
    return _of_document(load_text(text, source, Scenario, more=_mistakes))


def _load_one(path: Path) -> Plan:
    return _of_document(load(path, Scenario, more=_mistakes))


def _of_document(document: Document[Scenario]) -> Plan:
    """A scenario with everything it names. All that can be wrong with either was found while it was loaded."""
    scenario = document.model
    cluster = _cluster(scenario.cluster) if scenario.stack or scenario.workloads else None
    return Plan(
        scenario=scenario,
        source=document.path,
        cluster=cluster.model if cluster else None,
        cluster_source=cluster.path if cluster else None,
        stack=stacks.load(scenario.stack.name) if scenario.stack else None,
        guardrails=[(guardrails.load(use.name), use.params) for use in scenario.guardrails],
        attempts=_attempts(scenario.attacks),
        profiles=[profiles.resolve(share.profile) for share in scenario.load.shares] if scenario.load else [],
        required=_required(scenario.stack) if scenario.stack else [],
    )


def _required(use: StackUse) -> list[tuple[Stack, dict[str, Any]]]:
    """The stacks that come before the one under test, with the values that the scenario sets."""
    given = {each.name: each.params for each in use.requires}
    before = stacks.ordered(use.name, list(given))[:-1]
    return [(stack, given.get(stack.metadata.name, {})) for stack in before]


def _mistakes(raw: Any) -> list[tuple[KeyPath, str]]:
    """What a scenario contradicts, names or calls wrongly, as far as it can be read: whatever else breaks its model."""
    found = [*contradictions(raw), *idle(raw)]

    def each(*keys: str) -> list[KeyPath]:
        items = reach(raw, *keys)
        return [(*keys, position) for position in range(len(items))] if isinstance(items, list) else []

    def named(keys: KeyPath, find: Callable[[str], T], name: Any = None) -> T | None:
        """What the name at `keys` stands for; None where nothing has it, or no name is there."""
        name = name or reach(raw, *keys)
        try:
            return find(name) if isinstance(name, str) else None
        except UsageError as error:
            found.append((keys, _in_words(error)))
            return None

    def used(find: Callable[[str], S], *keys: str) -> list[S | None]:
        """What the names of a list stand for, each with its values checked."""
        specs: list[S | None] = []
        place: KeyPath
        for place in each(*keys):
            use = called(reach(raw, *place))
            specs.append(named(place, find, use and use.name))
            found.extend(_value_mistakes(specs[-1], (*place, use.name), use.params) if use else [])
        return specs

    shape = named(("cluster",), _cluster, reach(raw, "cluster") or _SHAPE)
    found += _shape_mistakes(shape.model if shape else None, raw, each("workloads"), each("faults"))
    named(("load", "profile"), profiles.resolve)
    _ = [named((*keys, "profile"), profiles.resolve) for keys in each("load", "mix")]
    named(("load", "arrivals", "trace"), trace.resolve)
    named(("load", "locustfile"), locustfile.locate)
    _ = [named((*keys, "image"), recipe) for keys in each("workloads")]
    stack = named(("stack", "name"), stacks.load)
    found += _value_mistakes(stack, ("stack", "values"), reach(raw, "stack", "values"))
    found += _stack_mistakes(raw, stack, used(stacks.load, "stack", "requires"))
    rules = used(guardrails.load, "guardrails")
    attempts = [named(keys, lambda name: _attempts([name])) for keys in each("attacks")]
    if attempts and None not in [*attempts, *rules] and not any(rule and rule.tenant for rule in rules):
        found.append((("attacks",), "attacks need a guardrail that makes a tenant: [tenant]"))
    for room, registry in (("steadyState", probes.PROBES), ("faults", faults.FAULTS)):
        for keys in each(room):
            if use := called(reach(raw, *keys)):
                found += [((*keys, *below), words) for below, words in registry.problems(use.name, use.params)]
    return found


def _value_mistakes(spec: Stack | Guardrail | None, keys: KeyPath, values: Any) -> list[tuple[KeyPath, str]]:
    if spec is None or not isinstance(values, dict):
        return []
    return [((*keys, *below), words) for below, words in value_problems(spec.values, values)]


def _stack_mistakes(raw: Any, stack: Stack | None, required: Sequence[Stack | None]) -> list[tuple[KeyPath, str]]:
    """What stacks cannot be together, and what is asked of one that is not there or serves no model."""
    names = [each.metadata.name for each in required if each]
    if len(names) < len(required) or (stack is None and reach(raw, "stack") is not None):
        return []  # said already, and nobody knows what is there
    found: list[tuple[KeyPath, str]] = []
    if twice := sorted({name for name in names if names.count(name) > 1}):
        found.append((("stack", "requires"), f"stands twice: {', '.join(twice)}"))
    there = names
    try:
        there = [each.metadata.name for each in stacks.ordered(stack.metadata.name, names)] if stack else []
    except UsageError as error:
        found.append((("stack", "requires"), _in_words(error)))
    mute = stack and not stack.serves_model and f"stack {stack.metadata.name} serves none"
    if mute and reach(raw, "load"):
        found.append((("load",), f"needs a model, and {mute}; name one that does, with this one under its `requires`"))
    uses = reach(raw, "steadyState")
    for position, use in enumerate(map(called, uses if isinstance(uses, list) else [])):
        if mute and use and use.name == "openai.chat":
            found.append((("steadyState", position), f"openai.chat asks a model, and {mute}"))
        needed = probes.NEEDS.get(use.name) if use else None
        if needed and needed not in there:
            words = f"{needed} is not deployed; write `stack: {{name: …, requires: [{needed}]}}`"
            found.append((("steadyState", position), f"{use.name if use else ''} asks stack {needed}, and {words}"))
    return found


def _shape_mistakes(
    shape: ClusterSpec | None, raw: Any, workloads: Iterable[KeyPath], faults: Iterable[KeyPath]
) -> list[tuple[KeyPath, str]]:
    """What is asked of a cluster that it does not have."""
    found: list[tuple[KeyPath, str]] = []
    if shape and shape.fleet is None:
        words = f"cluster {shape.metadata.name} has no simulated nodes; the shape `fleet` has"
        found += [((*keys, "fleet"), words) for keys in workloads if reach(raw, *keys, "fleet") is True]
    if shape and not shape.gpu_nodes:
        words = f"cluster {shape.metadata.name} has no emulated GPUs; one with `gpu:` has, such as solo-gpu"
        uses = [(keys, called(reach(raw, *keys))) for keys in faults]
        found += [((*keys, use.name), words) for keys, use in uses if use and use.name.startswith("gpu.")]
    return found


def _cluster(name: str) -> Document[ClusterSpec]:
    return files.find("clusters", name, ClusterSpec, kind="cluster")


def _in_words(error: SandboxError) -> str:
    """On one line. Where it happened is said if that is a file that no detail names: else the key says so already."""
    file = Path(error.where.partition(":")[0]).is_file() and not error.details
    head = f"{error.where}: {error.what}" if file else error.what
    return "; ".join(filter(None, [head, *error.details, error.fix]))


def _attempts(wanted: Sequence[str]) -> list[Attempt]:
    return attacks.attempts(wanted) if wanted else []


def catalogue() -> dict[str, dict[str, str]]:
    """Everything that can be named in a scenario: kind -> name -> one sentence."""
    return {
        "scenarios": _described(files.names("scenarios"), _scenario),
        "clusters": _described(files.names("clusters"), lambda name: _cluster(name).model),
        "stacks": _described(stacks.names(), stacks.load),
        "guardrails": _described(guardrails.names(), guardrails.load),
        "attacks": {attempt.id: attempt.title for attempt in attacks.attempts()},
        "profiles": _described(profiles.names(), profiles.resolve),
        "faults": {name: _first_line(function) for name, function in sorted(faults.FAULTS.functions.items())},
        "probes": {name: _first_line(function) for name, function in sorted(probes.PROBES.functions.items())},
        "metrics": {name: metric.description for name, metric in sorted(METRICS.items())},
    }


def _scenario(name: str) -> Scenario:
    return files.find("scenarios", name, Scenario, kind="scenario").model


class _Described(Protocol):
    @property
    def metadata(self) -> Metadata: ...


def _described(names: Iterable[str], find: Callable[[str], _Described]) -> dict[str, str]:
    """Name and description of each; a broken one is listed with what is wrong, not left out."""
    found = {}
    for name in names:
        try:
            spec = find(name)
            needs = ", ".join(getattr(spec, "requires", ()))
            found[name] = f"{spec.metadata.description}{f' Requires {needs}.' if needs else ''}"
        except SandboxError as error:
            found[name] = f"cannot be used: {_in_words(error)}"
    return found


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
