"""One connection to one cluster. Objects are plain dicts, as the API server gives them."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from functools import cached_property, partial
from pathlib import Path
from typing import Any

from sandbox.errors import ClusterError
from sandbox.kube import exec as exec_
from sandbox.kube.failures import ApiError, Unreachable, parse
from sandbox.kube.resources import Discovery, Object, Objects, Selection, label
from sandbox.kube.transport import Query, Response, Transport
from sandbox.kube.wait import Seen, wait_for

FIELD_MANAGER = "ai-k8s-sandbox"
_OK, _NOT_FOUND, _CONFLICT, _GONE = 200, 404, 409, 410
_WATCH_SECONDS = 60
_SETTLE_SECONDS = 30.0
_OUTWAIT_SECONDS = 90.0
_PAGE = "500"


class Kube:
    """A cluster's API. Safe from several threads."""

    def __init__(self, transport: Transport) -> None:
        self._transport = transport
        self._resources = Discovery(transport)

    @classmethod
    def connect(cls, kubeconfig: Path, context: str | None = None) -> Kube:
        """A connection as `kubeconfig` (and `context`, else its current one) says; never the user's default config.

        Raises:
            UsageError: the file is missing or cannot be used. Nothing is sent yet.
        """
        return cls(Transport.from_kubeconfig(kubeconfig, context))

    def as_token(self, token: str) -> Kube:
        """The same server with that bearer token only: no client certificate, nothing of the admin's."""
        return Kube(self._transport.with_token(token))

    @property
    def server(self) -> str:
        """The API server's URL."""
        return self._transport.server

    def request(
        self,
        method: str,
        path: str,
        body: Any = None,
        headers: Mapping[str, str] | None = None,
        query: Query = (),
    ) -> Response:
        """One raw call. A 4xx or 5xx is an answer, not an exception.

        Raises:
            Unreachable: the API server gave no answer.
        """
        return self._transport.request(method, path, body, headers, query=query)

    def apply(self, objects: Sequence[Object]) -> Objects:
        """Server-side apply, field manager `ai-k8s-sandbox`, taking over fields that others hold.

        Namespaces go first, then CRDs, then the rest in the order given. A new namespace is waited for until pods can
        be made in it, a CRD until its kind is served.

        Returns:
            The objects as the server now has them, in the order they were applied.

        Raises:
            ApiError: the server refused one; those before it are applied.
        """
        rank = {"Namespace": 0, "CustomResourceDefinition": 1}
        done = []
        for thing in sorted(objects, key=lambda each: rank.get(each["kind"], 2)):
            if thing["kind"] == "Namespace":
                self._outwait(thing)
            done.append(self._apply_one(thing))
            self._settle(thing)
        return done

    def create(self, thing: Object) -> Object:
        """Make one object that is not there yet, in one call; `apply` is for what may be there.

        Raises:
            ApiError: the server refused it; 409 where there is one of that name.
        """
        path = self.path(thing, collection=True)
        return _object(self.request("POST", path, thing), f"create {label(thing)}")

    def get(self, api_version: str, kind: str, name: str, namespace: str | None = None) -> Object | None:
        """One object, or None when there is none."""
        path = self._resources.find(api_version, kind).path(namespace, name)
        answer = self.request("GET", path)
        return None if answer.status == _NOT_FOUND else _object(answer, f"GET {path}")

    def list(
        self,
        api_version: str,
        kind: str,
        namespace: str | None = None,
        *,
        label_selector: str = "",
        field_selector: str = "",
    ) -> Objects:
        """All objects of a kind; of all namespaces without `namespace`."""
        return self.list_at(Selection(api_version, kind, namespace, label_selector, field_selector))[0]

    def list_at(self, what: Selection) -> tuple[Objects, str]:
        """As `list`, with the resource version a watch can go on from."""
        path = self._resources.find(what.api_version, what.kind).path(what.namespace)
        items: Objects = []
        page = ""
        while True:
            query = [*what.query(), ("limit", _PAGE)]
            answer = self.request("GET", path, query=[*query, ("continue", page)] if page else query)
            body = _object(answer, f"GET {path}")
            items += [{"apiVersion": what.api_version, "kind": what.kind, **item} for item in body["items"]]
            page = body["metadata"].get("continue", "")
            if not page:
                return items, str(body["metadata"]["resourceVersion"])

    def delete(self, objects: Sequence[Object], *, within: float = 60.0, grace: int | None = None) -> None:
        """Delete in reverse order, and wait until each is gone with all it owns. What is not there is no error.

        Args:
            objects: need apiVersion, kind, metadata.name and metadata.namespace, no more.
            within: seconds for all of them together.
            grace: seconds the pods get, instead of their own grace period.

        Raises:
            DeadlineExceeded: something is still there; names what, and what holds it.
        """
        body: Object = {"kind": "DeleteOptions", "apiVersion": "v1", "propagationPolicy": "Foreground"}
        if grace is not None:
            body["gracePeriodSeconds"] = grace
        deadline = time.monotonic() + within
        waiting: list[tuple[Object, str]] = []
        for thing in reversed(objects):
            path = self.path(thing)
            answer = self.request("DELETE", path, body)
            if answer.status == _CONFLICT:  # a namespace that is going already
                waiting.append((thing, ""))
            elif answer.status != _NOT_FOUND:
                deleted = _object(answer, f"DELETE {path}")
                waiting.append((thing, _uid(deleted)))
        for thing, uid in waiting:
            left = max(0.1, deadline - time.monotonic())
            wait_for(partial(self._gone, thing, uid), within=left, what=f"the end of {label(thing)}")

    def patch(self, api_version: str, kind: str, name: str, change: Object, namespace: str | None = None) -> Object:
        """Merge `change` into one object (RFC 7386) and leave every other field as it is, whoever owns it.

        Raises:
            ApiError: the server refused it, or there is no such object.
        """
        path = self._resources.find(api_version, kind).path(namespace, name)
        headers = {"Content-Type": "application/merge-patch+json"}
        return _object(self.request("PATCH", path, change, headers), f"PATCH {path}")

    def delete_all(self, api_version: str, kind: str, namespace: str, *, label_selector: str = "", grace: int) -> None:
        """Ask for the end of all objects of a kind in a namespace, with `grace` seconds each. Does not wait."""
        path = self._resources.find(api_version, kind).path(namespace)
        body = {"kind": "DeleteOptions", "apiVersion": "v1", "gracePeriodSeconds": grace}
        query = Selection(api_version, kind, namespace, label_selector).query()
        _object(self.request("DELETE", path, body, query=query), f"DELETE {path}")

    def changed(self, what: Selection, *, since: str, within: float) -> bool:
        """Sleep until one of these changes after resource version `since`; False when none did in time."""
        try:
            return any(change["type"] != "BOOKMARK" for change in self._changes(what, since, within))
        except ApiError as error:
            if error.status != _GONE:
                raise
            return True

    def watch(self, what: Selection, *, since: str, within: float) -> Iterator[dict[str, Any]]:
        """Every change after resource version `since`, bookmarks too, as it comes; ends after about `within` seconds.

        Raises:
            ApiError: 410 where `since` is too long ago: list anew.
        """
        return self._changes(what, since, within)

    def exec(
        self,
        namespace: str,
        pod: str,
        command: Sequence[str],
        *,
        container: str | None = None,
        within: float = 30.0,
    ) -> exec_.ExecResult:
        """Run a command in a container and wait for its end; see sandbox/kube/exec.py for what it raises."""
        path = f"/api/v1/namespaces/{namespace}/pods/{pod}/exec"
        return exec_.run(self._transport, path, command, container=container, within=within)

    def logs(
        self, namespace: str, pod: str, *, container: str | None = None, tail: int = 50, previous: bool = False
    ) -> str:
        """The last `tail` lines of a container (of its `previous` run); empty when there are none to be had."""
        query = [("tailLines", str(tail)), ("previous", "true" if previous else "false")]
        query += [("container", container)] if container else []
        answer = self.request("GET", f"/api/v1/namespaces/{namespace}/pods/{pod}/log", query=query)
        return answer.text if answer.status == _OK else ""

    def token(self, namespace: str, service_account: str, *, seconds: int = 3600) -> str:
        """A fresh token of that service account (TokenRequest), valid for `seconds` (600 at least)."""
        path = f"/api/v1/namespaces/{namespace}/serviceaccounts/{service_account}/token"
        spec = {"expirationSeconds": seconds}
        body = {"apiVersion": "authentication.k8s.io/v1", "kind": "TokenRequest", "spec": spec}
        return str(_object(self.request("POST", path, body), f"POST {path}")["status"]["token"])

    def uid(self) -> str:
        """The UID of the kube-system namespace: which cluster this is, whatever it is called."""
        found = self.get("v1", "Namespace", "kube-system")
        if found is None:
            raise ClusterError("the cluster has no kube-system namespace", where=self.server, fix="sandbox up")
        return _uid(found)

    def path(self, thing: Object, *, collection: bool = False) -> str:
        """Where an object lives on the server, or the collection to create it in."""
        meta = thing["metadata"]
        resource = self._resources.find(thing["apiVersion"], thing["kind"])
        return resource.path(meta.get("namespace"), None if collection else meta["name"])

    @cached_property
    def version(self) -> str:
        """The server's version, such as v1.37.2."""
        return str(_object(self.request("GET", "/version"), "GET /version")["gitVersion"])

    def _apply_one(self, thing: Object) -> Object:
        path = self.path(thing)
        query = [("fieldManager", FIELD_MANAGER), ("force", "true")]
        # JSON is YAML: the apply content type takes it.
        headers = {"Content-Type": "application/apply-patch+yaml"}
        return _object(self.request("PATCH", path, thing, headers, query), f"apply {label(thing)}")

    def _outwait(self, space: Object) -> None:
        """A namespace of that name that is on its way out takes nothing new in: let it go first."""
        name = space["metadata"]["name"]
        found = self.get("v1", "Namespace", name)
        if found and found["metadata"].get("deletionTimestamp"):
            what = f"the end of the earlier namespace {name}"
            wait_for(partial(self._gone, space, _uid(found)), within=_OUTWAIT_SECONDS, what=what)

    def _settle(self, thing: Object) -> None:
        name = thing["metadata"]["name"]
        if thing["kind"] == "Namespace":
            # Until the controller has made it, pods there are refused with "serviceaccount default not found".
            wait_for(
                lambda: _there(self.get("v1", "ServiceAccount", "default", name)),
                within=_SETTLE_SECONDS,
                what=f"the default service account of namespace {name}",
            )
        elif thing["kind"] == "CustomResourceDefinition":
            wait_for(
                lambda: _established(self.get(thing["apiVersion"], thing["kind"], name)),
                within=_SETTLE_SECONDS,
                what=f"CRD {name} being served",
            )

    def _gone(self, thing: Object, uid: str) -> Seen[None]:
        meta = thing["metadata"]
        found = self.get(thing["apiVersion"], thing["kind"], meta["name"], meta.get("namespace"))
        if found is None or (uid and _uid(found) != uid):
            return Seen(True, None, "gone")
        holders = found["metadata"].get("finalizers", []) + found.get("spec", {}).get("finalizers", [])
        messages = [each.get("message", "") for each in found.get("status", {}).get("conditions", [])]
        held = [f"held by {', '.join(holders)}"] if holders else []
        return Seen(False, None, "\n".join([f"{label(thing)} is still there", *held, *filter(None, messages)]))

    def _changes(self, what: Selection, since: str, within: float) -> Iterator[dict[str, Any]]:
        path = self._resources.find(what.api_version, what.kind).path(what.namespace)
        seconds = max(1, min(_WATCH_SECONDS, round(within)))
        query = [
            *what.query(),
            ("watch", "true"),
            ("resourceVersion", since),
            ("allowWatchBookmarks", "true"),
            ("timeoutSeconds", str(seconds)),
        ]
        deadline = time.monotonic() + within
        for line in self._transport.lines(path, query, idle=seconds + 5.0):
            change = parse(line)
            if not isinstance(change, dict):
                raise Unreachable(self.server, "a watch was cut in the middle of a line")
            if change["type"] == "ERROR":
                raise ApiError(f"watch {path}", int(change["object"].get("code", 0)), change["object"], line)
            yield change
            if time.monotonic() >= deadline:
                return


def _object(answer: Response, what: str) -> Object:
    if not answer.ok or not isinstance(answer.body, dict):
        raise ApiError(what, answer.status, answer.body, answer.text)
    return answer.body


def _uid(thing: Object) -> str:
    """Its UID. A DELETE may answer with a Status instead of the object; then the UID stands in its details."""
    if thing.get("kind") == "Status":
        return str(thing.get("details", {}).get("uid", ""))
    return str(thing["metadata"].get("uid", ""))


def _there(found: Object | None) -> Seen[None]:
    return Seen(found is not None, None, "not there yet")


def _established(found: Object | None) -> Seen[None]:
    conditions = (found or {}).get("status", {}).get("conditions") or []  # null at first
    met = any(each["type"] == "Established" and each["status"] == "True" for each in conditions)
    return Seen(met, None, f"conditions: {conditions}")
