"""One attempt of the catalogue: what a tenant tries, who has to stop it, and the twin that must stay allowed.

Strings may hold `$(name)` references, filled in from the run when the attempt is made. The tenant's own: `$(tenant)`,
its namespace, `$(serviceAccount)`, `$(pod)`. Addresses: `$(nodeIP)`, `$(victimIP)`, and of the model's Service
`$(modelHost)`, `$(modelIP)`, `$(modelPort)`. Also `$(image)`, the toolbox, and `$(name)`, unique for this attempt.
"""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field, model_validator

from sandbox.spec.base import API_VERSION, Metadata, Strict

Denier = Literal["R", "P", "V", "M", "Q", "N", "K", "S", "A", "D"]
LAYERS: dict[str, str] = {
    "R": "RBAC",
    "P": "Pod Security",
    "V": "admission policy",
    "M": "static admission policy",
    "Q": "quota",
    "N": "NetworkPolicy",
    "K": "Kueue",
    "S": "sandboxed runtime",
    "A": "API server or kubelet",
    "D": "disruption budget",
}


class Create(Strict):
    """Create an object: a base manifest of the catalogue (one the guardrails allow) with changes."""

    base: str = Field(description="A file of catalogue/bases/, without .yaml.")
    set: dict[str, Any] = Field(default_factory=dict, description="RFC 6901 pointer -> what is put there.")


class ApiCall(Strict):
    """Any request to the API server."""

    method: Literal["GET", "POST", "PUT", "PATCH", "DELETE"]
    path: str = Field(pattern=r"^/", description="With query string, such as ?dryRun=All, where there is one.")
    body: Any = None
    headers: dict[str, str] = Field(default_factory=dict)


class Packet(Strict):
    """A command in the tenant's pod that succeeds exactly when its packet arrives."""

    command: list[str] = Field(min_length=1)


class Try(Strict):
    """Exactly one of create, request, packet."""

    create: Create | None = None
    request: ApiCall | None = None
    packet: Packet | None = None

    @model_validator(mode="after")
    def _one(self) -> Try:
        if sum(way is not None for way in (self.create, self.request, self.packet)) != 1:
            raise ValueError("write exactly one of create, request, packet")
        return self


class Attempt(Strict):
    """One way out of the guardrails, and its allowed twin."""

    api_version: Literal["sandbox/v1"] = Field(default=API_VERSION, alias="apiVersion")
    kind: Literal["Attempt"]
    metadata: Metadata
    number: int = Field(ge=1, description="Its place in the list of attempts; with the name it is the id.")
    title: str = Field(min_length=1)
    expected_by: Denier = Field(alias="expectedBy", description="Who has to deny it.")
    before: Create | None = Field(
        default=None, description="Made by the administrator first, such as a thing to delete."
    )
    attempt: Try
    allowed: Try

    @property
    def id(self) -> str:
        """Stable: `1-privileged-pod`."""
        return f"{self.number}-{self.metadata.name}"

    @model_validator(mode="after")
    def _fits(self) -> Attempt:
        if (self.expected_by == "N") != (self.attempt.packet is not None):
            raise ValueError("an attempt that NetworkPolicy stops is a packet, and only that")
        return self
