"""The labels of the node, as NVIDIA's GPU Feature Discovery writes them, and the one that says they are emulated."""

from __future__ import annotations

import logging
import re
import threading
import time

from sandbox.gpu.emulator.apiserver import ApiError, ApiServer
from sandbox.gpu.emulator.config import Config
from sandbox.gpu.emulator.devices import Board, MigInstance
from sandbox.gpu.emulator.plugin import GPU, mig_resource, replicas

_LOG = logging.getLogger(__name__)
_TIMESTAMP = "nvidia.com/gfd.timestamp"
EMULATED = "ai-k8s-sandbox/emulated-gpu"
_LONGEST = 63
_AGAIN_SECONDS = 60.0  # as often as GPU Feature Discovery
_SHORTEST, _MOST = 0.5, 15.0
# What an earlier configuration of this node may have left. Labels that people set (mig.config, gpu.deploy.…) stay.
_OURS = re.compile(
    r"nvidia\.com/(?:(?:gpu|mig-[\w.]+?)\.(?:present|count|product|memory|family|machine|mode|replicas|sharing-strategy"
    r"|multiprocessors|compute\.\w+|slices\.\w+)|cuda\.[\w.-]+|mig\.(?:strategy|capable)|mps\.capable|gfd\.timestamp)"
)


def labels(board: Board) -> dict[str, str]:
    """Every label of the node but the time stamp."""
    config, profile = board.config, board.config.profile
    found = {
        EMULATED: "true",
        "nvidia.com/gpu.present": "true",
        "nvidia.com/gpu.machine": "emulated",
        "nvidia.com/gpu.mode": "compute",
        "nvidia.com/gpu.family": _value(profile.architecture).lower(),
        "nvidia.com/mig.capable": str(bool(profile.mig)).lower(),
        "nvidia.com/mps.capable": "false",
        **_versions(config),
    }
    major, _, minor = profile.compute_capability.partition(".")
    found |= {"nvidia.com/gpu.compute.major": major, "nvidia.com/gpu.compute.minor": minor}
    whole = any(not gpu.mig for gpu in board.gpus)
    # where every GPU is cut up, nothing is offered under this name: it is shown as nobody's
    found |= _resource(config, GPU, [profile.product], config.count, shares=replicas(config, GPU) if whole else 0)
    found["nvidia.com/gpu.memory"] = str(profile.memory_mib)
    if config.mig_strategy != "none":
        found["nvidia.com/mig.strategy"] = config.mig_strategy
        found |= _instances(board)
    return found


def apply(api: ApiServer, board: Board) -> dict[str, str]:
    """Give the node its labels, take away those that an earlier configuration left, and return what was changed."""
    path = f"/api/v1/nodes/{board.config.node}"
    there = api.get(path)["metadata"].get("labels", {})
    wanted = labels(board)
    change: dict[str, str | None] = {key: value for key, value in wanted.items() if there.get(key) != value}
    change |= dict.fromkeys(key for key in there if _OURS.fullmatch(key) and key not in {*wanted, _TIMESTAMP})
    if change:
        api.patch(path, {"metadata": {"labels": change | {_TIMESTAMP: str(int(time.time()))}}})
    return {key: value or "" for key, value in change.items()}


def remove(api: ApiServer, config: Config) -> None:
    """Take every label away again that `apply` gave."""
    path = f"/api/v1/nodes/{config.node}"
    there = api.get(path)["metadata"].get("labels", {})
    api.patch(path, {"metadata": {"labels": {key: None for key in there if key == EMULATED or _OURS.fullmatch(key)}}})


def keep(api: ApiServer, board: Board, stop: threading.Event) -> None:
    """Give the node its labels, look after them until `stop`, and take them away then."""
    pause = _SHORTEST
    while not stop.is_set():
        try:
            if changed := apply(api, board):
                _LOG.info("labels: %d written", len(changed))
            pause = _SHORTEST
            stop.wait(_AGAIN_SECONDS)
        except ApiError as error:
            _LOG.warning("labels: %s; again in %g s", error, pause)
            stop.wait(pause)
            pause = min(2 * pause, _MOST)
    try:
        remove(api, board.config)
        _LOG.info("labels: removed")
    except ApiError as error:
        _LOG.warning("labels: they stay: %s", error)


def _versions(config: Config) -> dict[str, str]:
    driver = [*config.profile.driver_version.split("."), "", ""][:3]
    cuda = [*config.profile.cuda_version.split("."), "0"][:2]
    found = {}
    for name, number in zip(("major", "minor", "rev"), driver, strict=True):
        found[f"nvidia.com/cuda.driver.{name}"] = number
        found[f"nvidia.com/cuda.driver-version.{name.replace('rev', 'revision')}"] = number
    for name, number in zip(("major", "minor"), cuda, strict=True):
        found[f"nvidia.com/cuda.runtime.{name}"] = number
        found[f"nvidia.com/cuda.runtime-version.{name}"] = number
    found["nvidia.com/cuda.driver-version.full"] = config.profile.driver_version
    found["nvidia.com/cuda.runtime-version.full"] = ".".join(cuda)
    return found


def _instances(board: Board) -> dict[str, str]:
    """Of each kind of MIG instance; in the strategy `single` there is one kind, and it takes the place of the GPU."""
    kinds: dict[str, list[MigInstance]] = {}
    for gpu in board.gpus:
        for instance in gpu.mig:
            kinds.setdefault(instance.profile, []).append(instance)
    found: dict[str, str] = {}
    for profile, instances in kinds.items():
        name = GPU if board.config.mig_strategy == "single" else mig_resource(profile)
        shape, parts = instances[0].shape, [board.config.profile.product, "MIG", profile]
        found |= _resource(board.config, name, parts, len(instances), shares=replicas(board.config, name))
        found |= {
            f"{name}.memory": str(shape.memory_mib),
            f"{name}.multiprocessors": str(shape.multiprocessors),
            f"{name}.slices.gi": str(shape.slices),
            f"{name}.slices.ci": str(shape.slices),
        }
    return found


def _resource(config: Config, name: str, product: list[str], count: int, *, shares: int) -> dict[str, str]:
    renamed = config.sharing is not None and config.sharing.rename_by_default
    suffix = ["SHARED"] if shares > 1 and not renamed else []
    return {
        f"{name}.product": _value(*product, *suffix),
        f"{name}.count": str(count),
        f"{name}.replicas": str(shares),
        f"{name}.sharing-strategy": "time-slicing" if shares > 1 else "none",
    }


def _value(*parts: str) -> str:
    """What a label may hold of it: spaces become dashes, what else is not allowed is left out."""
    clean = ("-".join(re.sub(r"[^A-Za-z0-9-_. ]", "", part).split()) for part in parts)
    return re.sub(r"^[^A-Za-z0-9]+|[^A-Za-z0-9]+$", "", "-".join(filter(None, clean))[:_LONGEST])
