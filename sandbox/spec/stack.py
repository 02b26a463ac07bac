"""`stack.yaml`: a stack of software, such as an inference server, as data beside its manifests."""

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


class Ready(Strict):
    """Ready means that a completion, or an answer at `path`, came through the endpoint to this machine."""

    within: Duration = Field(gt=0, description="From applying to the first completion or answer.")
    prompt: str = "Say hello."
    max_tokens: int = Field(default=2, alias="maxTokens", ge=1, le=64)
    path: str | None = Field(
        default=None,
        pattern=r"^/[A-Za-z0-9._/-]*$",
        description="Of a stack that serves no model: a GET there answers 200 once it is ready.",
    )


class Stack(Strict):
    """A stack: images, values, where they go, how it is reached, and what it needs beside it."""

    api_version: Literal["sandbox/v1"] = Field(default=API_VERSION, alias="apiVersion")
    kind: Literal["Stack"]
    metadata: Metadata
    emulated: bool = Field(default=False, description="No model: it answers as it is told to. Every report says so.")
    images: list[Name] = Field(min_length=1, description="Folders of clusters/images/ that the manifests name.")
    namespace: Name = Field(default="inference", description="Made for the stack, and removed with it.")
    values: Values = Field(default_factory=dict)
    set: list[Setting] = Field(default_factory=list)
    requires: list[Name] = Field(default_factory=list, description="Stacks that are deployed before it.")
    endpoint: Endpoint
    ready: Ready

    @property
    def serves_model(self) -> bool:
        """Whether completions can be asked of it."""
        return self.ready.path is None

    @model_validator(mode="after")
    def _sound(self) -> Stack:
        found = [*unknown_values(self.values, self.set), *self._undecided()]
        used = {setting.value for setting in self.set} | {self.endpoint.model_value}
        found += [f"values: {name!r} goes nowhere" for name in self.values if name not in used]
        if self.endpoint.model_value is not None and self.endpoint.model_value not in self.values:
            found.append(f"endpoint: {self.endpoint.model_value!r} is no declared value")
        if found:
            raise ValueError("; ".join(found))
        return self

    def _undecided(self) -> list[str]:
        """What leaves open whether it serves a model."""
        names = [name for name in (self.endpoint.model, self.endpoint.model_value) if name is not None]
        if self.ready.path is None:
            return [] if len(names) == 1 else ["endpoint: write exactly one of model, modelValue; or ready.path"]
        found = ["endpoint: a stack with ready.path serves no model; leave model and modelValue out"] if names else []
        if {"prompt", "max_tokens"} & self.ready.model_fields_set:
            found.append("ready: nobody is prompted where `path` is asked; leave prompt and maxTokens out")
        return found
