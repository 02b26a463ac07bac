"""The container engine of this machine: found, asked, and started where nothing else starts it."""

from __future__ import annotations

import json
import os
import shutil
import socket
import subprocess
from contextlib import closing
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import docker
import psutil
from docker.errors import DockerException
from docker.utils import kwargs_from_env
from requests import Response
from requests.exceptions import RequestException

from sandbox.errors import EnvironmentMissing
from sandbox.host import mark

if TYPE_CHECKING:
    from collections.abc import Collection

    from docker import DockerClient
    from docker.context import Context
    from docker.tls import TLSConfig

BOUNDED_RUNTIME = "bounded-runc"
DAEMON_JSON = Path("/etc/docker/daemon.json")
# what a person types where the engine is there and is not for us to start
FIX_FORBIDDEN = "sudo usermod -aG docker $USER, then log in again"
FIX_FOREIGN = "start that engine, or unset DOCKER_HOST and DOCKER_CONTEXT and `docker context use default`"
_ANY_API = "1.24"  # never sent
_ASK = 5.0  # seconds; a healthy engine answers in milliseconds


@dataclass(frozen=True)
class Home:
    """Where one dockerd lives. The default is the machine's own engine."""

    socket: Path = Path("/var/run/docker.sock")
    data_root: Path = Path("/var/lib/docker")
    exec_root: Path = Path("/var/run/docker")
    pid_file: Path = Path("/var/run/docker.pid")
    log: Path = Path("/var/log/ai-k8s-sandbox-dockerd.log")
    # further dockerd flags, so that a second engine can live beside the first
    extra: tuple[str, ...] = ()

    @property
    def url(self) -> str:
        return f"unix://{self.socket}"


@dataclass(frozen=True)
class Engine:
    """What was seen of the engine.

    `state` is `running` (it answers), `dead` (installed, does not answer), `absent` (nothing to start),
    `foreign` (DOCKER_HOST or the docker context names another engine, and that does not answer), or `forbidden`
    (this user may not talk to it).
    """

    state: Literal["running", "dead", "absent", "foreign", "forbidden"]
    url: str
    seen: str
    version: str = ""
    api: str = ""
    cgroup: str = ""  # "1" or "2"
    storage: str = ""
    root: str = ""
    default_runtime: str = ""
    memory: int = 0  # bytes, of the machine it runs on


@dataclass(frozen=True)
class Identity:
    """Which engine it is, whatever the way to it.

    Attributes:
        id: its own; older engines take it from a file of the machine, so that two on one machine share it.
        data: of the network `none`, which an engine makes once for each folder of data.
        url: where it answered; for people, two of them may lead to one engine.
    """

    id: str
    data: str
    url: str

    def same(self, other: Identity) -> bool:
        """Tell whether that is this engine, with these data."""
        return (self.id, self.data) == (other.id, other.data)


def identity(engine: DockerClient) -> Identity:
    """Ask the engine of `client` which one it is; about 20 ms."""
    fixed = engine.networks.list(names=["none"], filters={"driver": "null"})
    data = str(fixed[0].id) if fixed else ""
    return Identity(str(engine.info().get("ID", "")), data, engine_url())


def engine_url() -> str:
    """Where the docker CLI would connect to: DOCKER_HOST, else the current docker context, else the usual socket.

    Raises:
        EnvironmentMissing: there is no such context. The CLI refuses too: its default is another engine.
    """
    if host := os.environ.get("DOCKER_HOST"):
        return host
    context = _context()
    return str(context.Host) if context is not None else Home().url


def _context() -> Context | None:
    """The docker context that the CLI would use; None for its default."""
    config = Path(os.environ.get("DOCKER_CONFIG") or Path.home() / ".docker") / "config.json"
    name, where = os.environ.get("DOCKER_CONTEXT") or "", "DOCKER_CONTEXT"
    if not name and config.is_file():
        where = str(config)
        try:
            name = str(json.loads(config.read_text()).get("currentContext", ""))
        except (OSError, ValueError):
            name = ""
    if name in {"", "default"}:
        return None
    try:
        found = docker.ContextAPI.get_context(name)
    except Exception as error:  # docker-py has no class of its own for a context that it cannot read
        raise EnvironmentMissing(f"the docker context {name} cannot be read: {error}", where=where) from error
    if found is None:
        fix = "docker context ls, then `docker context use NAME`, or unset DOCKER_CONTEXT"
        if not config.is_file():  # docker-py looks for contexts beside that file only
            fix += f"; without {config} none is found: echo {{}} > {config}"
        raise EnvironmentMissing(f"there is no docker context {name}", where=where, fix=fix)
    return found


def _tls(url: str) -> TLSConfig | Literal[False]:
    """The certificates that go with an address, from where the docker CLI has both.

    Raises:
        DockerException: a file that is named is not there.
    """
    if url.startswith("unix://"):
        return False
    if url == os.environ.get("DOCKER_HOST"):
        return kwargs_from_env().get("tls") or False
    context = _context()
    return (context.TLSConfig or False) if context is not None and url == context.Host else False


def client(url: str = "", *, timeout: float = 600) -> DockerClient:
    """Return a client of the engine the docker CLI would use.

    One is shared for each address and timeout, in all threads and until the process ends: it is not the caller's to
    close.

    Args:
        url: another engine's address.
        timeout: seconds for one answer; saving and importing images take minutes.

    Raises:
        EnvironmentMissing: nothing answers there.
    """
    return _shared(url or engine_url(), int(timeout))


@lru_cache(maxsize=8)
def _shared(address: str, timeout: int) -> DockerClient:
    return docker.DockerClient(base_url=address, timeout=timeout, version=_api(address), tls=_tls(address))


def puller(silence: int) -> docker.APIClient:
    """Return a client for pulling, which the caller closes: no wait for a line of a pull is longer than `silence`."""
    url = engine_url()
    return _Impatient(base_url=url, timeout=silence, version=_api(url), tls=_tls(url))


class _Impatient(docker.APIClient):
    """docker-py asks for a pull with no time limit at all: a silent registry would be waited for without end."""

    def post(self, url: str | bytes, data: Any = None, json: Any = None, **options: Any) -> Response:
        return super().post(url, data, json, **{**options, "timeout": options.get("timeout") or self.timeout})


def _api(address: str) -> str:
    """The engine's API version."""
    try:
        return str(_ask(address)["ApiVersion"])
    except PermissionError as error:
        raise EnvironmentMissing(
            "this user may not talk to the container engine", where=address, fix=FIX_FORBIDDEN
        ) from error
    except (DockerException, RequestException, OSError) as error:
        raise EnvironmentMissing(
            "the container engine does not answer", where=address, fix="sandbox doctor", details=[str(error)]
        ) from error


def _ask(url: str) -> dict[str, Any]:
    """Return the engine's answer to /version, which needs no agreed API version; closes what it opened."""
    if url.startswith("unix://"):  # docker's own client leaks its socket when nothing listens there
        with closing(socket.socket(socket.AF_UNIX)) as probe:
            probe.settimeout(_ASK)
            probe.connect(url.removeprefix("unix://"))
    with closing(docker.APIClient(base_url=url, timeout=int(_ASK), version=_ANY_API, tls=_tls(url))) as asked:
        answer: dict[str, Any] = asked.version(api_version=False)
        return answer


def look(home: Home | None = None) -> Engine:
    """Say in which state the engine is; changes nothing."""
    try:
        url = home.url if home else engine_url()
    except EnvironmentMissing as error:
        return Engine("foreign", "", error.what)
    try:
        version = _ask(url)
        api = str(version["ApiVersion"])
        with closing(docker.APIClient(base_url=url, timeout=int(_ASK), version=api, tls=_tls(url))) as asked:
            about: dict[str, Any] = asked.info()
    except PermissionError:
        return Engine("forbidden", url, f"this user may not talk to the engine at {url}")
    except (DockerException, RequestException, OSError) as error:
        return _silent(url, home or Home(), str(error))
    return Engine(
        state="running",
        url=url,
        seen=f"engine {version.get('Version')} at {url}, API {version.get('ApiVersion')}",
        version=str(version.get("Version", "")),
        api=str(version.get("ApiVersion", "")),
        cgroup=str(about.get("CgroupVersion", "1")),
        storage=str(about.get("Driver", "")),
        root=str(about.get("DockerRootDir", "")),
        default_runtime=str(about.get("DefaultRuntime", "")),
        memory=int(about.get("MemTotal", 0)),
    )


def _silent(url: str, home: Home, error: str) -> Engine:
    """Say why nothing answers at `url`."""
    if url != home.url:
        return Engine("foreign", url, f"{url} does not answer: {error}")
    if shutil.which("dockerd") is None:
        return Engine("absent", url, "no engine is installed")
    pid = recorded_pid(home)
    if pid is None:
        return Engine("dead", url, "installed but not running")
    if runs(pid, "dockerd"):
        return Engine("dead", url, f"dockerd runs (pid {pid}) but does not answer: {error}")
    return Engine("dead", url, f"installed but dead: {home.pid_file} names pid {pid}, which is no dockerd")


def recorded_pid(home: Home) -> int | None:
    """Read dockerd's pid file; None where there is none."""
    try:
        return int(home.pid_file.read_text().strip())
    except (OSError, ValueError):
        return None


def runs(pid: int, name: str) -> bool:
    """Tell whether `pid` is a live process of that name: not another program on a reused pid, and not a zombie.

    dockerd itself takes a zombie for alive, and on machines whose first process reaps late refuses to start.
    """
    try:
        process = psutil.Process(pid)
        return process.name() == name and process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def configured() -> set[str]:
    """The settings that the machine's own daemon.json makes, by name."""
    try:
        return set(json.loads(DAEMON_JSON.read_text()))
    except (OSError, ValueError, TypeError):  # dockerd itself says what is wrong with it
        return set()


def start_command(home: Home, runtime: Path | None, settings: Collection[str] = ()) -> list[str]:
    """Return dockerd's command line; flags only, so that a person's daemon.json stays as it is.

    dockerd refuses to start with a flag for what the file sets too. So the machine's own engine is told none of its
    places, which are dockerd's own or the file's, and no runtime where `settings` of the file name some.
    """
    command = ["dockerd"]
    if home != Home():
        command += [
            f"--host={home.url}",
            f"--data-root={home.data_root}",
            f"--exec-root={home.exec_root}",
            f"--pidfile={home.pid_file}",
            *home.extra,
        ]
    if runtime is not None and not names_runtimes(settings):
        command += [f"--add-runtime={BOUNDED_RUNTIME}={runtime}", f"--default-runtime={BOUNDED_RUNTIME}"]
    return command


def names_runtimes(settings: Collection[str]) -> bool:
    """Whether a daemon.json with those settings has its own idea of runtimes."""
    return "runtimes" in settings or "default-runtime" in settings


def launch(home: Home, runtime: Path | None) -> subprocess.Popen[bytes]:
    """Start dockerd in a session of its own, so that it outlives this process. Its log is `home.log`."""
    home.log.parent.mkdir(parents=True, exist_ok=True)
    with home.log.open("ab") as log:
        return subprocess.Popen(
            start_command(home, runtime, configured()),
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            cwd="/",
            env=mark.without(),
            start_new_session=True,
        )
