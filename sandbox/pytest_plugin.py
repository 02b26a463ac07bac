"""pytest: `pytest scenarios/` runs every scenario as a test, and clusters and stacks come as fixtures.

Everything heavy is imported where it is used: this module is loaded into every pytest of the environment.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterator
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import yaml

if TYPE_CHECKING:
    from sandbox.cluster import Cluster
    from sandbox.kube.stacks import Deployed
    from sandbox.run import Outcome
    from sandbox.spec.results import Results

_CLUSTERS = pytest.StashKey["Clusters"]()
_LEFT = pytest.StashKey[str]()
_RUNS = pytest.StashKey[list[Path]]()
_HOMES = pytest.StashKey[dict[Path, bool]]()
_SUFFIXES = (".yaml", ".yml")


def pytest_addoption(parser: pytest.Parser) -> None:
    """Our options, in a group of their own."""
    group = parser.getgroup("sandbox", "AI-on-Kubernetes sandbox")
    group.addoption("--sandbox-keep", action="store_true", help="Leave clusters up when the tests have ended.")
    group.addoption("--sandbox-runs", default="runs", help="Folder that holds a folder per run (default: runs).")
    group.addoption("--sandbox-cluster", default=None, help="Run on a cluster of this name instead of the scenario's.")
    group.addoption("--sandbox-html", action="store_true", help="Write report.html of passed tests' runs too.")


def pytest_configure(config: pytest.Config) -> None:
    """Announce our markers and stand in for pytest-kubernetes's provider."""
    config.addinivalue_line("markers", "sandbox_cluster(shape): the cluster that `sandbox_cluster` brings up")
    config.addinivalue_line("markers", "sandbox_stack(name, **values): the stack that `sandbox_stack` deploys")
    config.stash[_HOMES] = {}
    config.stash[_CLUSTERS] = Clusters(
        keep=bool(config.getoption("--sandbox-keep")),
        name=config.getoption("--sandbox-cluster"),
        worker=getattr(config, "workerinput", {}).get("workerid", ""),  # of pytest-xdist
    )
    if config.pluginmanager.hasplugin("pytest_kubernetes") or config.pluginmanager.hasplugin("pytest-kubernetes"):
        # Registered after all entry points, so that its `k8s_manager` comes before pytest-kubernetes's own.
        from sandbox import pytest_k8s

        config.pluginmanager.register(pytest_k8s, "ai_k8s_sandbox_k8s")


@pytest.hookimpl(trylast=True)  # after the tear-down of what tests have on the clusters
def pytest_sessionfinish(session: pytest.Session) -> None:
    """Take down what the session brought up; a cluster that stays makes the session fail."""
    from sandbox.errors import SandboxError

    try:
        session.config.stash[_CLUSTERS].close()
    except SandboxError as err:
        if not session.config.pluginmanager.hasplugin("terminalreporter"):
            raise
        session.config.stash[_LEFT] = str(err)
        if session.exitstatus in (pytest.ExitCode.OK, pytest.ExitCode.NO_TESTS_COLLECTED):
            session.exitstatus = pytest.ExitCode.TESTS_FAILED


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    """Say which cluster stays, and what to do."""
    if (left := config.stash.get(_LEFT, None)) is not None:
        terminalreporter.section("a cluster was not removed", red=True)
        terminalreporter.line(left)


def pytest_collect_file(file_path: Path, parent: pytest.Collector) -> pytest.Collector | None:
    """A YAML file that is meant as a scenario is a test, mistakes and all; so is each that lies among scenarios."""
    if file_path.suffix.lower() not in _SUFFIXES:
        return None
    if not (_is_meant(file_path) or _home(file_path, parent.config)):
        return None
    return ScenarioFile.from_parent(parent, path=file_path)


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(session: pytest.Session, config: pytest.Config, items: list[pytest.Item]) -> None:
    """Links that lead nowhere, which pytest passes over: of folders of scenarios they are tests that fail."""
    from sandbox.spec.folder import yaml_files

    asked = [Path(config.invocation_params.dir, each.partition("::")[0]).resolve() for each in config.args]
    for home in [home for home, holds in config.stash[_HOMES].items() if holds]:
        for file in yaml_files(home):
            if not file.exists() and any(file.absolute().is_relative_to(each) for each in asked):
                items += ScenarioFile.from_parent(session, path=file).collect()


def _is_meant(file: Path) -> bool:
    """Whether a file is meant as a scenario; one that cannot be read says nothing of itself."""
    from sandbox.spec.folder import meant_as

    try:
        return meant_as(file) == "scenario"
    except OSError:
        return False


def _home(file: Path, config: pytest.Config) -> Path | None:
    """The folder called `scenarios` that a file lies in, if any scenario of ours does; others' may be called so too."""
    from sandbox.spec.folder import yaml_files

    known = config.stash[_HOMES]
    for folder in (each for each in file.parents if each.name.lower() == "scenarios"):
        if folder not in known:
            known[folder] = folder.is_relative_to(config.rootpath) and any(map(_is_meant, yaml_files(folder)))
        if known[folder]:
            return folder
    return None


class Clusters:
    """The clusters this session made, each taken by several tests; the last two of them stay until the end.

    An idle cluster is not idle: a thousand simulated nodes take a fifth of a core, and what is measured beside them
    suffers. So of several processes of pytest-xdist each keeps one.
    """

    def __init__(self, *, keep: bool, name: str | None = None, worker: str = "") -> None:
        """Begin with none.

        Args:
            keep: leave them in the end.
            name: what each is called; without it, as its shape.
            worker: of pytest-xdist: processes do not share a cluster, so it follows the shape in the name.
        """
        self._keep = keep
        self._name = name
        self._suffix = f"-{worker}" if worker else ""
        self._most = 1 if worker else 2
        self._names: list[str] = []  # the one taken last at the end
        self._watch = ExitStack()

    def up(self, shape: str, name: str | None = None) -> Cluster:
        """The cluster of that shape, made if it does not run."""
        from sandbox import cluster
        from sandbox.cluster import Owner
        from sandbox.spec.catalogue import find
        from sandbox.spec.cluster import ClusterSpec

        spec = find("clusters", shape, ClusterSpec, kind="cluster").model
        chosen = name or self.name(spec.metadata.name)
        self.take(chosen)
        return cluster.up(spec, name=chosen, owner=Owner.me())

    def name(self, shape: str) -> str:
        """What the session's cluster of that shape is called."""
        return self._name or f"{shape}{self._suffix}"

    def take(self, name: str) -> None:
        """Note that a cluster of that name is going to be used; the one that was not for the longest may go for it."""
        from sandbox import reaper, suite

        if not self._names:
            self._watch.enter_context(reaper.watch())
        self._names = [*(each for each in self._names if each != name), name]
        while len(self._names) > self._most:
            suite.release(self._names.pop(0))

    def close(self) -> None:
        """Remove them, or leave them to whom they are kept for; tell of the first that could not be removed."""
        from sandbox import suite

        with self._watch, ExitStack() as undo:
            for name in self._names:
                undo.callback(suite.leave if self._keep else suite.release, name)


class ScenarioFile(pytest.File):
    """One scenario file."""

    def collect(self) -> list[pytest.Item]:
        """One item, under the scenario's own name."""
        name = self.path.stem
        with suppress(
            OSError, yaml.YAMLError, ValueError, TypeError, KeyError, RecursionError
        ):  # running it says what is wrong
            name = yaml.safe_load(self.path.read_text(encoding="utf-8"))["metadata"]["name"]
        return [ScenarioItem.from_parent(self, name=str(name))]


class ScenarioItem(pytest.Item):
    """One scenario: passes only with the verdict `pass`."""

    def runtest(self) -> None:
        """Run it on the session's cluster."""
        outcome = run_scenario(self, self.path)
        if outcome.results.verdict != "pass":
            _write_html(self)
            raise NotHeldError(outcome.results, outcome.folder)

    def repr_failure(self, excinfo: pytest.ExceptionInfo[BaseException], style: Any = None) -> Any:
        """A verdict is shown as checks, not as a traceback; so is a mistake in the scenario."""
        from sandbox.errors import SandboxError

        if isinstance(excinfo.value, NotHeldError | SandboxError):
            return str(excinfo.value)
        return super().repr_failure(excinfo, style)

    def reportinfo(self) -> tuple[Path, int, str]:
        """Where it stands."""
        return self.path, 0, f"scenario: {self.name}"


class NotHeldError(AssertionError):
    """A scenario's verdict was `fail` or `invalid`."""

    def __init__(self, results: Results, folder: Path) -> None:
        lines = [f"{results.verdict}: {results.headline}"]
        lines += [
            f"  {check.status}: {check.title}: {check.observed} (expected {check.expected}) {check.reason}".rstrip()
            for check in results.checks
            if check.status != "pass"
        ]
        report = folder / "report.html"
        super().__init__("\n".join([*lines, *([f"  report: {report}"] if report.is_file() else [])]))
        self.results = results


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Of a test that failed, write the pages of its runs: somebody is going to look."""
    report = yield
    if report.failed:
        _write_html(item)
    return report


def _write_html(item: pytest.Item) -> None:
    """Write report.html of the item's runs, where there is none; what cannot be written is said."""
    from sandbox import suite
    from sandbox.report.files import HTML

    for folder in item.stash.get(_RUNS, []):
        if not (folder / HTML).is_file():
            with suppress(Exception):  # the test has failed already, and what for must be told
                suite.rewrite(folder)


def run_scenario(item: pytest.Item, scenario: Path | str) -> Outcome:
    """Run one scenario on the session's cluster of its shape; a pass that leaves no report is an error."""
    from sandbox import plan
    from sandbox.run import Options, execute

    (loaded,) = plan.load_all([str(scenario)])
    config, clusters = item.config, item.config.stash[_CLUSTERS]
    name = config.getoption("--sandbox-cluster") or loaded.shape
    if loaded.cluster and loaded.cluster.provider == "kind":
        name = clusters.name(loaded.shape)
        clusters.take(name)
    options = Options(
        runs=Path(config.getoption("--sandbox-runs")),
        cluster_name=name,
        keep_cluster=True,
        html=bool(config.getoption("--sandbox-html")),
    )
    outcome = execute(loaded, options)
    item.stash.setdefault(_RUNS, []).append(outcome.folder)
    if isinstance(outcome.error, KeyboardInterrupt):
        raise outcome.error
    if outcome.error is not None and outcome.results.verdict == "pass":  # such as a report that could not be written
        raise outcome.error
    return outcome


@pytest.fixture(scope="session")
def sandbox_clusters(request: pytest.FixtureRequest) -> Clusters:
    """Clusters by shape, shared by the session: `sandbox_clusters.up("trio")`."""
    return request.config.stash[_CLUSTERS]


@pytest.fixture
def sandbox_cluster(request: pytest.FixtureRequest, sandbox_clusters: Clusters) -> Cluster:
    """A real cluster, `solo` unless `@pytest.mark.sandbox_cluster("trio")` says otherwise; shared by the session."""
    marker = request.node.get_closest_marker("sandbox_cluster")
    shape = marker.args[0] if marker and marker.args else "solo"
    return sandbox_clusters.up(shape)


@pytest.fixture
def sandbox_stack(request: pytest.FixtureRequest, sandbox_cluster: Cluster) -> Iterator[Deployed]:
    """A stack that answers on `sandbox_cluster`, `vllm-sim` unless `@pytest.mark.sandbox_stack(name, **values)`."""
    from sandbox import images
    from sandbox.cluster import nodes, prove_ours
    from sandbox.kube import Kube, stacks

    prove_ours(sandbox_cluster)
    marker = request.node.get_closest_marker("sandbox_stack")
    *required, stack = stacks.ordered(marker.args[0] if marker and marker.args else "vllm-sim")
    wanted = [image for each in (*required, stack) for image in each.images]
    if sandbox_cluster.provider == "existing":
        refs = images.mirrored(wanted)
    else:
        refs = {name: image.ref for name, image in images.ensure(wanted).items()}
        nodes.load_images(sandbox_cluster, list(refs.values()))
    kube = Kube.connect(sandbox_cluster.kubeconfig, sandbox_cluster.context)
    with ExitStack() as undo:
        for each in required:
            undo.callback(stacks.undeploy, kube, each)
            stacks.deploy(kube, each, {}, images=refs, addresses=sandbox_cluster.node_addresses)
        undo.callback(stacks.undeploy, kube, stack)
        values = marker.kwargs if marker else {}
        yield stacks.deploy(kube, stack, values, images=refs, addresses=sandbox_cluster.node_addresses)


@pytest.fixture
def sandbox_run(request: pytest.FixtureRequest) -> Callable[[Path | str], Results]:
    """Call it with a scenario's path or name; it answers with the judged results, whatever the verdict."""
    return lambda scenario: run_scenario(request.node, scenario).results
