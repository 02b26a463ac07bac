"""Which path an object lives at: asked of the server once per group version, never guessed from the kind's name."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any
from urllib.parse import quote

from sandbox.errors import UsageError
from sandbox.kube.failures import ApiError
from sandbox.kube.transport import Transport

Object = dict[str, Any]
Objects = list[Object]
_NOT_FOUND = 404


@dataclass(frozen=True)
class Resource:
    """One kind as the server serves it."""

    api_version: str
    kind: str
    plural: str
    namespaced: bool

    def path(self, namespace: str | None = None, name: str | None = None) -> str:
        """The collection's path, or with `name` the object's; without `namespace` all namespaces' collection."""
        root = "/api/" if "/" not in self.api_version else "/apis/"
        within = f"/namespaces/{quote(namespace, safe='')}" if namespace and self.namespaced else ""
        last = f"/{quote(name, safe=':')}" if name else ""
        return f"{root}{self.api_version}{within}/{self.plural}{last}"


@dataclass(frozen=True)
class Selection:
    """Which objects: a kind, of one namespace or of all, narrowed by label and field selectors."""

    api_version: str
    kind: str
    namespace: str | None = None
    label_selector: str = ""
    field_selector: str = ""

    def query(self) -> list[tuple[str, str]]:
        """As query parameters of a list or watch."""
        pairs = [("labelSelector", self.label_selector), ("fieldSelector", self.field_selector)]
        return [pair for pair in pairs if pair[1]]


class Discovery:
    """Resources by (apiVersion, kind). An unknown kind is asked for again: a CRD may have brought it meanwhile."""

    def __init__(self, transport: Transport) -> None:
        self._transport = transport
        self._known: dict[tuple[str, str], Resource] = {}

    def find(self, api_version: str, kind: str) -> Resource:
        """The resource of that kind.

        Raises:
            UsageError: the server does not serve it; names what it does serve there.
        """
        if (api_version, kind) not in self._known:
            self._learn(api_version)
        try:
            return self._known[api_version, kind]
        except KeyError:
            there = sorted(name for version, name in self._known if version == api_version)
            raise UsageError(
                f"this cluster serves no {kind} in {api_version}",
                where=self._transport.server,
                details=[f"in {api_version} it serves: {', '.join(there)}"] if there else [],
                fix="install what defines it (a CRD) first, or correct apiVersion and kind",
            ) from None

    def _learn(self, api_version: str) -> None:
        root = "/api/" if "/" not in api_version else "/apis/"
        answer = self._transport.request("GET", f"{root}{api_version}")
        if answer.status == _NOT_FOUND:
            return
        if not answer.ok:
            raise ApiError(f"GET {root}{api_version}", answer.status, answer.body, answer.text)
        for item in answer.body["resources"]:
            if "/" not in item["name"]:
                self._known[api_version, item["kind"]] = Resource(
                    api_version, item["kind"], item["name"], item["namespaced"]
                )


def label(thing: Object) -> str:
    """How a message names an object: `Deployment inference/vllm-sim`."""
    meta = thing.get("metadata", {})
    namespace = meta.get("namespace")
    return f"{thing.get('kind', '?')} " + (f"{namespace}/" if namespace else "") + str(meta.get("name", "?"))
