"""Functions that a spec calls by name, whose YAML parameters come from their signatures."""

from __future__ import annotations

import inspect
import typing
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any, Generic, TypeVar

from pydantic import BaseModel, ValidationError, create_model

from sandbox.spec.base import KeyPath, Strict

F = TypeVar("F", bound=Callable[..., Any])
Problems = Iterable[tuple[KeyPath, str]]
Check = Callable[[dict[str, Any]], Problems]


@dataclass
class Registry(Generic[F]):
    """Named functions. The first parameter of each is the context; the others are what YAML may say.

    Attributes:
        kind: what the functions are, for messages: "fault" or "probe".
    """

    kind: str
    functions: dict[str, F] = field(default_factory=dict)
    checks: dict[str, Check] = field(default_factory=dict)

    def register(self, name: str, *, check: Check | None = None) -> Callable[[F], F]:
        """Decorator: make the function known as `name`.

        Args:
            name: in YAML.
            check: what is wrong with parameters that are each right by themselves; (keys, message).
        """

        def keep(function: F) -> F:
            self.functions[name] = function
            if check is not None:
                self.checks[name] = check
            return function

        return keep

    def parameters(self, name: str) -> type[BaseModel]:
        """A strict model of what YAML may say to `name`."""
        function = self.functions[name]
        hints = typing.get_type_hints(function, include_extras=True)
        own = list(inspect.signature(function).parameters.values())[1:]
        fields: dict[str, Any] = {
            parameter.name: (hints[parameter.name], ... if parameter.default is parameter.empty else parameter.default)
            for parameter in own
        }
        return create_model(f"{self.kind}:{name}", __base__=Strict, **fields)

    def problems(self, name: str, params: dict[str, Any]) -> Problems:
        """What is wrong with calling `name` so: (key path below the use, message), nothing if all is well."""
        if name not in self.functions:
            return [((name,), f"unknown {self.kind}; known: {', '.join(sorted(self.functions))}")]
        try:
            values = self._values(name, params)
        except ValidationError as error:
            known = ", ".join(self.parameters(name).model_fields)
            return [
                (
                    (name, *item["loc"]),
                    f"unknown parameter; known: {known}"
                    if item["type"] == "extra_forbidden"
                    else item["msg"].removeprefix("Value error, "),
                )
                for item in error.errors()
            ]
        found = self.checks[name](values) if name in self.checks else ()
        return [((name, *keys), message) for keys, message in found]

    def call(self, name: str, context: Any, params: dict[str, Any]) -> Any:
        """Call `name` with validated parameters."""
        return self.functions[name](context, **self._values(name, params))

    def _values(self, name: str, params: dict[str, Any]) -> dict[str, Any]:
        model = self.parameters(name).model_validate(params)
        return {key: getattr(model, key) for key in type(model).model_fields}
