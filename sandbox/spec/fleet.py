"""A fleet of simulated nodes: objects in the API that kwok plays the kubelet of. Nothing runs on them."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field, StringConstraints, field_validator

from sandbox.spec.base import Name, Strict
from sandbox.spec.gpu_profile import profile_names

# A node of a fleet carries this as a label, and as a taint (NoSchedule): only pods that say so go there.
FLEET_LABEL, FLEET_VALUE = "kwok.x-k8s.io/node", "fake"
MOST_NODES = 5000
Quantity = Annotated[str, StringConstraints(pattern=r"^\d+(\.\d+)?(m|k|M|G|T|Ki|Mi|Gi|Ti)?$")]


class FleetGpu(Strict):
    """The GPUs of each simulated node: counted and labelled as real ones, and nothing behind them."""

    profile: Name = Field(description="A file of sandbox/gpu/profiles/, such as h100.")
    count: int = Field(ge=1, le=16, description="Per node, as the resource nvidia.com/gpu.")

    @field_validator("profile")
    @classmethod
    def _known(cls, name: str) -> str:
        if name not in profile_names():
            raise ValueError(f"there is no GPU profile {name!r}; there are {', '.join(profile_names())}")
        return name


class Fleet(Strict):
    """Simulated nodes beside the real ones; for the scheduler and every other controller they are nodes."""

    nodes: int = Field(ge=1, le=MOST_NODES)
    cpu: int = Field(default=64, ge=1, description="Cores of each.")
    memory: Quantity = "512Gi"
    pods: int = Field(default=110, ge=1, le=1000, description="Most pods of each.")
    zones: int = Field(default=1, ge=1, le=100, description="The nodes lie in so many zones: zone-1, zone-2 and so on.")
    gpu: FleetGpu | None = None
