"""What is known of a cluster: the value others use, and its record in the state folder.

`<state>/clusters/<name>/` holds `record.json` (the cluster as it came up), `kubeconfig` (0600), `creating.json`
(while a create is under way) and `create.log`. `<state>/clusters/<name>.lock` is held while a command works on it,
`<name>.run.lock` while a run uses it.
"""

from __future__ import annotations

import hashlib
import json
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

import psutil
from filelock import FileLock, Timeout

from sandbox import paths
from sandbox.cluster.owner import Owner
from sandbox.errors import ClusterError, UsageError
from sandbox.host.engine import Identity
from sandbox.progress import say
from sandbox.spec.cluster import ClusterSpec

# the engine's host names are cut at 63 characters, and nodes are called <name>-control-plane2
_NAME = re.compile(r"[a-z0-9]([a-z0-9-]{0,38}[a-z0-9])?")
_KUBECONFIG = "kubeconfig"
_LOOK_SECONDS = 0.5  # as long as somebody may only look whether a lease is held
_LOCK_SECONDS = 600.0  # a create with workers on a slow machine


@dataclass(frozen=True)
class Node:
    """One node.

    Attributes:
        name: as Kubernetes and the engine call it.
        role: `control-plane` or `worker`.
        address: an IPv4 (or IPv6) address that answers from this host.
        container: the engine's container id; empty for a cluster that is not ours.
    """

    name: str
    role: str
    address: str
    container: str = ""


@dataclass(frozen=True)
class Origin:
    """How a cluster came.

    Attributes:
        way: `cold`: made anew; `snapshot`: a copy of one; `pool`: prepared before, and leased.
        snapshot: the name of that snapshot, or of the one it was prepared from; else empty.
        key: hash of what was in it, where it was made automatically; else empty.
    """

    way: Literal["cold", "snapshot", "pool"] = "cold"
    snapshot: str = ""
    key: str = ""

    @property
    def words(self) -> str:
        """For people."""
        came = f"from snapshot {self.snapshot}" if self.snapshot else "cold"
        return f"from the pool, prepared {came}" if self.way == "pool" else came


@dataclass(frozen=True)
class Cluster:
    """A cluster that came up.

    Attributes:
        name: unique among this user's sandboxes.
        kubeconfig: a file of its own, 0600; pass it to every call.
        run: the id that its network in the engine is labelled with.
        uid: of its kube-system namespace: which cluster this is, whatever it is called.
        shape: hash of the spec it was made from.
        image: the node image; empty for an existing cluster.
        created: seconds since the epoch.
        allow_changes: false only for an existing cluster that was taken without that flag.
        owner: the process it ends with; None for one that is kept.
        engine: the one it was made on; None in the record of an older version, and for an existing cluster.
        containers: the engine's ids of all that kind made for it: nodes, and a load balancer where it made one.
        spec: its file, as JSON; empty in the record of an older version, and for an existing cluster.
        images: references of the images that were loaded into its nodes as it was made.
        origin: how it came.
        pooled: hash of what is in it, for one that stands still in the pool until it is leased; else empty.
        held_as: the name that its containers, volumes and network carry in the engine, where that is another one: of
            a cluster that was leased.
    """

    name: str
    provider: Literal["kind", "existing"]
    kubeconfig: Path
    context: str
    run: str
    uid: str
    shape: str
    image: str
    created: float
    nodes: tuple[Node, ...]
    allow_changes: bool = True
    owner: Owner | None = field(default=None)
    engine: Identity | None = None
    containers: tuple[str, ...] = ()
    spec: dict[str, Any] = field(default_factory=dict)
    images: tuple[str, ...] = ()
    origin: Origin = field(default_factory=Origin)
    pooled: str = ""
    held_as: str = ""

    @property
    def engine_name(self) -> str:
        """What its things in the engine are called."""
        return self.held_as or self.name

    @property
    def node_names(self) -> list[str]:
        return [node.name for node in self.nodes]

    @property
    def node_addresses(self) -> list[str]:
        """Reached from this host without published ports; NodePorts answer on each."""
        return [node.address for node in self.nodes]


@dataclass(frozen=True)
class Claim:
    """What the state folder says is ours under a name. Nothing else is ever removed.

    Attributes:
        known: whether it says anything at all.
        engine: where it was made; None where no record tells it: of an older version, or one that cannot be read.
        runs: the ids that its network may be labelled with.
        containers: the engine's ids of its containers.
        making: the run id of a create that began and never ended; empty without.
        label: the name that its things in the engine carry; empty where that is the cluster's own.
    """

    known: bool = False
    engine: Identity | None = None
    runs: frozenset[str] = frozenset()
    containers: frozenset[str] = frozenset()
    making: str = ""
    label: str = ""


def shape(spec: ClusterSpec) -> str:
    """Hash what decides how a cluster is made: kind's configuration, or which existing cluster."""
    parts = spec.model_dump(mode="json", include={"provider", "kind_config", "existing"})
    if spec.scheduler_config is not None:
        parts["scheduler"] = spec.scheduler_config
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()[:16]


def root() -> Path:
    """Return the folder of all records."""
    folder = paths.state_dir() / "clusters"
    folder.mkdir(mode=0o700, exist_ok=True)
    return folder


def check_name(name: str) -> None:
    """Raise UsageError unless it may name a cluster: it becomes a folder, which `down` deletes, and a host name."""
    if not _NAME.fullmatch(name):
        raise UsageError(
            "is no name for a cluster", where=name, fix="up to 40 small letters, digits and hyphens, such as trio-2"
        )


def home(name: str) -> Path:
    """Return one cluster's folder; it may not exist. Raises UsageError when that is no name of a cluster."""
    check_name(name)
    return root() / name


def names() -> list[str]:
    """Name every cluster that has a folder, half-made ones too."""
    return sorted(folder.name for folder in root().iterdir() if folder.is_dir() and _NAME.fullmatch(folder.name))


@contextmanager
def locked(name: str, *, wait: bool = True) -> Iterator[None]:
    """Hold the cluster for one command at a time. The lock goes with the process, however it ends.

    Raises:
        UsageError: that is no name of a cluster.
        ClusterError: another command holds it and `wait` is false, or held it for ten minutes.
    """
    if wait and busy(name):
        say(f"{name}: wait for another command that works on it, at most {_LOCK_SECONDS:.0f} s")
    fix = f"wait for it, or look: fuser {_lock_file(name)}"
    with _held(_lock_file(name), _LOCK_SECONDS if wait else 0, "another command works on this cluster", name, fix):
        yield


@contextmanager
def lease(name: str) -> Iterator[None]:
    """Hold the cluster for one run, which deploys to it and clears it; does not wait, and is not reentrant.

    Commands that make it or look at it are not kept out; `sandbox down` and `sandbox prove` take the lease too. It goes
    with the process.

    Raises:
        UsageError: that is no name of a cluster.
        ClusterError: another run holds it.
    """
    fix = "wait for it, or use a cluster of another name"
    with _held(_lock_file(name, ".run.lock"), _LOOK_SECONDS, "another run uses this cluster", name, fix):
        yield


def leased(name: str) -> bool:
    """Tell whether a run uses the cluster right now."""
    return taken(_lock_file(name, ".run.lock"))


def busy(name: str) -> bool:
    """Tell whether a command works on the cluster right now."""
    return taken(_lock_file(name))


def taken(path: Path) -> bool:
    """Tell whether somebody holds the lock that is this file."""
    try:
        with FileLock(path, timeout=0):
            return False
    except Timeout:
        return True


def _lock_file(name: str, suffix: str = ".lock") -> Path:
    check_name(name)
    return root() / f"{name}{suffix}"


@contextmanager
def _held(file: Path, seconds: float, refusal: str, name: str, fix: str) -> Iterator[None]:
    lock = FileLock(file)
    try:
        lock.acquire(timeout=seconds)
    except Timeout as error:
        raise ClusterError(refusal, where=name, fix=fix) from error
    try:
        yield
    finally:
        lock.release()


def save(cluster: Cluster) -> None:
    """Write the record; whole or not at all. Ends the mark of a create under way."""
    folder = home(cluster.name)
    folder.mkdir(mode=0o700, exist_ok=True)
    text = json.dumps({**asdict(cluster), "kubeconfig": str(cluster.kubeconfig)}, indent=2)
    _write(folder / "record.json", text)
    (folder / "creating.json").unlink(missing_ok=True)


def _write(path: Path, text: str) -> None:
    fresh = path.with_name(f"{path.name}.new")
    fresh.write_text(text)
    fresh.chmod(0o600)
    fresh.replace(path)


def _mark(name: str) -> dict[str, Any]:
    """Read the mark of a create under way; empty without one, or where it cannot be read."""
    try:
        mark = json.loads((home(name) / "creating.json").read_text())
    except (OSError, ValueError):
        return {}
    return mark if isinstance(mark, dict) else {}


def find(name: str) -> Cluster | None:
    """Read a record; None where there is none, or only a half-made cluster's."""
    try:
        data: dict[str, Any] = json.loads((home(name) / "record.json").read_text())
        owner, engine = data.pop("owner", None), data.pop("engine", None)
        data |= {"owner": Owner(**owner) if owner else None, "engine": Identity(**engine) if engine else None}
        data |= {"nodes": tuple(Node(**node) for node in data["nodes"]), "kubeconfig": Path(data["kubeconfig"])}
        data |= {key: tuple(data.get(key, ())) for key in ("containers", "images")}
        if data["name"] != name:  # the folder was renamed: that is how a cluster is leased
            data |= {
                "held_as": data.get("held_as") or data["name"],
                "name": name,
                "kubeconfig": home(name) / _KUBECONFIG,
            }
        return Cluster(**data | {"origin": Origin(**data.get("origin", {}))})
    except FileNotFoundError:
        return None
    except (ValueError, TypeError, KeyError) as error:
        raise ClusterError(
            f"the record cannot be read: {error}", where=str(home(name)), fix=f"sandbox down {name}"
        ) from error


def hand_over(name: str, to: str) -> None:
    """Give the record another name, all at once. Its things in the engine keep the old one.

    Raises:
        OSError: there is a record of that name.
    """
    home(name).rename(home(to))


def held() -> set[str]:
    """The names that things of recorded clusters carry in the engine, where those are not the clusters' own."""
    found = set[str]()
    for name in names():
        with suppress(ClusterError):
            known = find(name)
            found |= {known.held_as} if known else set()
    return found - {""}


def get(name: str) -> Cluster:
    """Read a record. Raises UsageError naming the clusters there are."""
    found = find(name)
    if found is None:
        there = ", ".join(each for each in names() if find(each)) or "none"
        raise UsageError(
            "there is no such cluster", where=name, fix=f"sandbox up SHAPE --name {name}", details=[f"there: {there}"]
        )
    return found


def claim(name: str) -> Claim:
    """Say what is ours under that name. A record that cannot be read claims nothing but the name."""
    mark = _mark(name)  # first: a create that ends writes the record before it takes the mark away
    known = None
    with suppress(ClusterError):
        known = find(name)
    if known is not None and known.provider != "kind":
        return Claim()
    making = mark.get("run", "")
    engine = Identity(**mark["engine"]) if mark.get("engine") else None
    written = creating(name) or (home(name) / "record.json").is_file()
    if known is None:
        return Claim(known=written, engine=engine, runs=frozenset({making} - {""}), making=making)
    return Claim(
        known=True,
        engine=engine or known.engine,
        runs=frozenset({making, known.run} - {""}),
        containers=frozenset({*known.containers, *(node.container for node in known.nodes)}),
        making=making,
        label=known.held_as,
    )


def mark_creating(name: str, run: str, *, engine: Identity, kind: int = 0) -> None:
    """Write down that a create begins, before anything exists, so that a crash can be told from a stranger.

    Args:
        name: of the cluster.
        run: its run id.
        engine: which one it is made on.
        kind: pid of the kind process, once there is one: it outlives us if we are killed.
    """
    folder = home(name)
    folder.mkdir(mode=0o700, exist_ok=True)
    child = asdict(Owner.of(kind)) if kind else None
    _write(folder / "creating.json", json.dumps({"run": run, "engine": asdict(engine), "kind": child}))


def stamp(name: str, engine: Identity) -> None:
    """Write into record and mark which engine holds the cluster: known from what it holds, before that is removed."""
    for path in (home(name) / "record.json", home(name) / "creating.json"):
        with suppress(OSError, ValueError, TypeError):  # not there, or not to be read
            _write(path, json.dumps({**json.loads(path.read_text()), "engine": asdict(engine)}, indent=2))


def end_creation(name: str) -> None:
    """End the kind process of a create whose own process was killed; it would go on making what is being removed."""
    child = _mark(name).get("kind")
    if child and Owner(**child).alive():
        process = psutil.Process(child["pid"])
        for each in [*process.children(recursive=True), process]:
            with suppress(psutil.NoSuchProcess):
                each.kill()
        with suppress(psutil.TimeoutExpired):
            process.wait(timeout=10)


def creating(name: str) -> bool:
    """Tell whether a create began and never ended."""
    return (home(name) / "creating.json").is_file()


def forget(name: str) -> None:
    """Remove the record; the lock file stays, others may wait on it."""
    shutil.rmtree(home(name), ignore_errors=True)
