"""`guardrail.yaml`: rules a platform puts around a tenant, as data beside their manifests."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, model_validator

from sandbox.spec.base import API_VERSION, Metadata, Name, Strict
from sandbox.spec.values import Setting, Values, unknown_values


class TenantOf(Strict):
    """Whom the guardrail locks in: attempts are made with this account's token and from this pod."""

    namespace: Name
    service_account: Name = Field(alias="serviceAccount")
    pod: Name = Field(description="A pod of the tenant's, with a shell, for attempts that are packets.")


class Neighbour(Strict):
    """A namespace beside the tenant's that proves the network: who can be reached, and who is stopped.

    The tenant's packet counts as denied only when, at the same moment, the `free` pod's same packet arrives (the
    target answers) and the `locked` pod's does not (policies are enforced here).
    """

    namespace: Name
    victim: Name = Field(description="A pod that answers HTTP on port 8000 to whoever reaches it.")
    free: Name = Field(description="A pod that no policy selects.")
    locked: Name = Field(description="A pod that a default-deny egress policy selects.")


class Guardrail(Strict):
    """Rules, the tenant they hold, and what proves them."""

    api_version: Literal["sandbox/v1"] = Field(default=API_VERSION, alias="apiVersion")
    kind: Literal["Guardrail"]
    metadata: Metadata
    images: list[Name] = Field(default_factory=list, description="Folders of clusters/images/ that the manifests name.")
    platform: Name = Field(default="inference", description="The namespace that serves the model.")
    tenant: TenantOf | None = None
    neighbour: Neighbour | None = None
    values: Values = Field(default_factory=dict)
    set: list[Setting] = Field(default_factory=list)

    @model_validator(mode="after")
    def _sound(self) -> Guardrail:
        found = unknown_values(self.values, self.set)
        used = {setting.value for setting in self.set}
        found += [f"values: {name!r} goes nowhere" for name in self.values if name not in used]
        if found:
            raise ValueError("; ".join(found))
        return self
