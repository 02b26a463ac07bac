"""CDI specs: what the container runtime puts into a container that was given one of the devices.

The device nodes are /dev/null under other names: they show what a container may use, and are harmless even on a machine
with NVIDIA's driver.
"""

from __future__ import annotations

import json
import logging
import os
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from sandbox.gpu.emulator import faults
from sandbox.gpu.emulator.devices import Board

_LOG = logging.getLogger(__name__)
FOLDER = Path("/var/run/cdi")
DEVICE_KIND = "nvidia.com/gpu"
CLAIM_KIND = "k8s.gpu.nvidia.com/claim"
_VERSION = "0.6.0"  # containerd 1.7 reads it, and so do all that came after
_EMULATED = {"ai-k8s-sandbox.emulated": "true"}
_EVERYBODY = 0o666
_READABLE = 0o644
_IDLE_SECONDS = 1.0


class Cdi:
    """The specs this node's emulator writes into `folder`. `home` holds what the containers mount."""

    def __init__(self, folder: Path, home: Path) -> None:
        self._folder = folder
        self._home = home
        self._devices = folder / f"{DEVICE_KIND.replace('/', '-')}.json"

    @staticmethod
    def device_name(uuid: str) -> str:
        """What kubelet and runtime call a device."""
        return f"{DEVICE_KIND}={uuid}"

    @staticmethod
    def claim_name(uid: str) -> str:
        """What they call the environment of a claim."""
        return f"{CLAIM_KIND}={uid}"

    def write_devices(self, board: Board) -> list[str]:
        """Write the spec of every device that can be claimed, and return their UUIDs.

        A GPU that has fallen off the bus is not among them: no container that holds it can start, as in reality.
        """
        there = [(uuid, gpu.minor) for gpu in board.gpus if not board.lost(gpu.index) for uuid in gpu.uuids]
        if there:
            devices = [
                {"name": uuid, "containerEdits": {"deviceNodes": [_node(f"nvidia{minor}")]}} for uuid, minor in there
            ]
            shared = {"deviceNodes": [_node("nvidiactl"), _node("nvidia-uvm")], "mounts": self._mounts()}
            self._write(self._devices, DEVICE_KIND, devices, containerEdits=shared)
        else:  # a spec without a device is an error to its readers
            self.remove_devices()
        return [uuid for uuid, _ in there]

    def remove_devices(self) -> None:
        """Take the spec of the devices away. Those of the claims stay: a claim outlives a restart of its driver."""
        self._devices.unlink(missing_ok=True)

    def write_claim(self, uid: str, uuids: Sequence[str]) -> str:
        """Write the spec of a claim, or of a part of it that `uid` names, and return its name for the kubelet.

        It tells the container its devices; the devices themselves come with their own names.
        """
        seen = ",".join(uuids)
        # of several claims of one container the last one's variable wins: nvidia-smi adds up those with a claim's name
        own = f"NVIDIA_VISIBLE_DEVICES_{uid.replace('-', '_')}"
        edits = {"env": [f"NVIDIA_VISIBLE_DEVICES={seen}", f"{own}={seen}"]}
        self._write(self._claim(uid), CLAIM_KIND, [{"name": uid, "containerEdits": edits}])
        return self.claim_name(uid)

    def remove_claim(self, uid: str) -> None:
        """Take the spec of a claim away; none is no error."""
        self._claim(uid).unlink(missing_ok=True)

    def follow(self, board: Board, stop: threading.Event) -> None:
        """Keep the devices' spec as the faults want it until `stop`, and remove it then."""
        written: list[str] | None = None
        try:
            while not stop.is_set():
                with board.changed:
                    there = [uuid for gpu in board.gpus if not board.lost(gpu.index) for uuid in gpu.uuids]
                    if there == written:
                        board.changed.wait(faults.next_end(board, most=_IDLE_SECONDS))
                        continue
                written = self.write_devices(board)
                _LOG.info("CDI: %d devices can be claimed", len(written))
        finally:
            self.remove_devices()

    def _claim(self, uid: str) -> Path:
        return self._folder / f"{CLAIM_KIND.replace('/', '-')}_{uid}.json"

    def _mounts(self) -> list[dict[str, Any]]:
        options = ["ro", "nosuid", "nodev", "bind"]
        pairs = {"bin/nvidia-smi": "/usr/bin/nvidia-smi", "state": "/run/nvidia-emulated"}
        return [
            {"hostPath": str(self._home / source), "containerPath": target, "options": options}
            for source, target in pairs.items()
        ]

    def _write(self, path: Path, kind: str, devices: list[dict[str, Any]], **more: Any) -> None:
        document = {"cdiVersion": _VERSION, "kind": kind, "annotations": _EMULATED, "devices": devices, **more}
        fresh = path.with_suffix(".tmp")  # readers look at *.json and *.yaml
        fresh.write_text(json.dumps(document, indent=1), encoding="utf-8")
        fresh.chmod(_READABLE)
        os.replace(fresh, path)  # noqa: PTH105 - the atomic one, in so many words


def _node(name: str) -> dict[str, Any]:
    """A device node that everybody may use, whatever user the container runs as."""
    null = {"hostPath": "/dev/null", "type": "c", "major": 1, "minor": 3}
    return {"path": f"/dev/{name}", **null, "fileMode": _EVERYBODY, "permissions": "rw"}
