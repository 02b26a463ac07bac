"""`stack.yaml`: a reference inference stack, as data beside its manifests."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, model_validator

from sandbox.spec.base import API_VERSION, Duration, Metadata, Name, Strict
from sandbox.spec.values import Setting, Values, unknown_values


class Endpoint(Strict):
    """Where the stack answers."""

    service: Name = Field(description="A Service of type NodePort among the manifests.")
    port: int = Field(ge=1, le=65535, description="The Service's port, as other pods use it.")
    model: str | None = Field(default=None, description="The model's name in requests, where it is fixed.")
    model_value: str | None = Field(default=None, alias="modelValue", description="Else: the value that holds it.")

    @model_validator(mode="after")
    def _one_name(self) -> Endpoint:
        if (self.model is None) == (self.model_value is None):
            raise ValueError("write exactly one of model, modelValue")
        return self


class Ready(Strict):
    """Ready means that a completion was made through the endpoint, from this machine."""

    within: Duration = Field(gt=0, description="From applying to the first completion.")
    prompt: str = "Say hello."
    max_tokens: int = Field(default=2, alias="maxTokens", ge=1, le=64)


class Stack(Strict):
    """An inference stack: images, values, where they go, and how it is reached."""

    api_version: Literal["sandbox/v1"] = Field(default=API_VERSION, alias="apiVersion")
    kind: Literal["Stack"]
    metadata: Metadata
    emulated: bool = Field(default=False, description="No model: it answers as it is told to. Every report says so.")
    images: list[Name] = Field(min_length=1, description="Folders of clusters/images/ that the manifests name.")
    namespace: Name = Field(default="inference", description="Made for the stack, and removed with it.")
    values: Values = Field(default_factory=dict)
    set: list[Setting] = Field(default_factory=list)
    endpoint: Endpoint
    ready: Ready

    @model_validator(mode="after")
    def _sound(self) -> Stack:
        found = unknown_values(self.values, self.set)
        used = {setting.value for setting in self.set} | {self.endpoint.model_value}
        found += [f"values: {name!r} goes nowhere" for name in self.values if name not in used]
        if self.endpoint.model_value is not None and self.endpoint.model_value not in self.values:
            found.append(f"endpoint: {self.endpoint.model_value!r} is no declared value")
        if found:
            raise ValueError("; ".join(found))
        return self
