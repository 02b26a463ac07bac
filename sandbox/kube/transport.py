"""HTTP and WebSocket to one API server, as one kubeconfig file or one token says. Knows no Kubernetes kinds."""

from __future__ import annotations

import base64
import json
import os
import ssl
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from ipaddress import ip_address
from pathlib import Path
from typing import Any
from urllib.parse import urlencode, urlsplit

import urllib3
import websocket
import yaml
from kubernetes.client import Configuration
from kubernetes.client.rest import RESTClientObject
from kubernetes.config import ConfigException
from kubernetes.config.kube_config import KubeConfigLoader

from sandbox.errors import ClusterError, UsageError
from sandbox.kube.failures import ApiError, Unreachable, parse

Query = Sequence[tuple[str, str]]
_CONNECT_SECONDS = 5.0
_READ_SECONDS = 60.0
_UNTIMELY = ("certificate is not yet valid", "certificate has expired")
# A kept-alive connection that the server closed meanwhile is opened anew; a refused one is tried once more.
_RETRIES = urllib3.Retry(total=2, connect=1, read=1, redirect=0, status=0, other=0, backoff_factor=0.2)


@dataclass(frozen=True)
class Response:
    """One answer. `body` is the parsed JSON, or None where the answer is not JSON; `text` is the answer as it came."""

    status: int
    body: Any
    text: str

    @property
    def ok(self) -> bool:
        """Whether the status is 2xx."""
        return 200 <= self.status < 300  # noqa: PLR2004 - HTTP's own limits


class Transport:
    """A connection pool to one API server. Safe from several threads."""

    def __init__(self, configuration: Configuration) -> None:
        self._configuration = configuration
        self.server: str = configuration.host.rstrip("/")
        if _is_local(self.server):
            configuration.proxy = None  # a proxy of the environment cannot know the way to this machine's own cluster
        self._pool: urllib3.PoolManager = RESTClientObject(configuration).pool_manager

    @classmethod
    def from_kubeconfig(cls, path: Path, context: str | None) -> Transport:
        """Read exactly this file; neither KUBECONFIG nor the user's default file is looked at."""
        if not path.is_file():
            raise UsageError(
                "there is no such kubeconfig",
                where=str(path),
                fix="make the cluster first: sandbox up (or name another)",
            )
        configuration = _fresh()
        try:
            loader = KubeConfigLoader(_document(path), active_context=context, config_base_path=str(path.parent))
            loader.load_and_set(configuration)
        except (ConfigException, OSError, ValueError, yaml.YAMLError) as error:
            raise UsageError(f"this kubeconfig cannot be used: {error}", where=str(path)) from error
        return cls(configuration)

    def with_token(self, token: str) -> Transport:
        """The same server and CA, with nothing but this bearer token."""
        configuration = _fresh()
        for name in ("host", "ssl_ca_cert", "verify_ssl", "tls_server_name", "proxy"):
            setattr(configuration, name, getattr(self._configuration, name))
        configuration.api_key["BearerToken"] = f"Bearer {token}"
        return Transport(configuration)

    def request(
        self,
        method: str,
        path: str,
        body: Any = None,
        headers: Mapping[str, str] | None = None,
        *,
        query: Query = (),
        within: float = _READ_SECONDS,
    ) -> Response:
        """One request; an HTTP error is an answer like any other.

        Args:
            method: GET, POST, PUT, PATCH, DELETE.
            path: as in `/api/v1/namespaces`, without the server.
            body: sent as JSON when not None; a str is sent as it is.
            headers: added to ours; `Content-Type` defaults to application/json.
            query: pairs, a name may come twice.
            within: seconds to wait for the answer.

        Raises:
            Unreachable: there was no answer.
            ClusterError: by this machine's clock its certificate does not count.
        """
        payload = body if body is None or isinstance(body, str | bytes) else json.dumps(body)
        try:
            answer = self._pool.request(
                method.upper(),
                self._url(path, query),
                body=payload,
                headers=self._headers(headers),
                timeout=urllib3.Timeout(connect=_CONNECT_SECONDS, read=within),
                retries=_RETRIES,
            )
        except urllib3.exceptions.HTTPError as error:
            raise _failure(self.server, error) from error
        text = answer.data.decode("utf-8", "replace")
        return Response(answer.status, parse(text), text)

    def lines(self, path: str, query: Query, idle: float) -> Iterator[str]:
        """The answer's lines as they come, for watches and followed logs. Ends when the server ends it.

        Raises:
            Unreachable: no answer, or none for `idle` seconds.
            ApiError: the answer is an error.
        """
        try:
            answer = self._pool.request(
                "GET",
                self._url(path, query),
                headers=self._headers(None),
                timeout=urllib3.Timeout(connect=_CONNECT_SECONDS, read=idle),
                retries=_RETRIES,
                preload_content=False,
            )
            try:
                if answer.status != 200:  # noqa: PLR2004 - HTTP OK
                    text = answer.read().decode("utf-8", "replace")
                    raise ApiError(f"GET {path}", answer.status, parse(text), text)
                rest = b""
                for chunk in answer.stream(None):
                    *whole, rest = (rest + chunk).split(b"\n")
                    yield from (line.decode("utf-8", "replace") for line in whole if line)
            finally:
                # A watch left in the middle must not go back to the pool with unread bytes.
                answer.close()
        except urllib3.exceptions.HTTPError as error:
            raise _failure(self.server, error) from error

    @contextmanager
    def socket(self, path: str, query: Query, protocols: Sequence[str], within: float) -> Iterator[websocket.WebSocket]:
        """A WebSocket, closed at the end.

        Raises:
            Unreachable: no answer within `within` seconds.
            ApiError: the server refused the upgrade.
        """
        link = websocket.WebSocket(sslopt=self._tls(), skip_utf8_validation=True)
        try:
            link.connect(
                self._url(path, query).replace("http", "ws", 1),
                timeout=within,
                subprotocols=list(protocols),
                header=[f"{name}: {value}" for name, value in self._authorization().items()],
                **({"http_no_proxy": ["*"]} if not self._configuration.proxy else {}),
            )
        except websocket.WebSocketBadStatusException as error:
            text = (error.resp_body or b"").decode("utf-8", "replace") if error.resp_body else str(error)
            raise ApiError(f"GET {path}", error.status_code, parse(text), text) from error
        except (websocket.WebSocketException, OSError) as error:
            raise Unreachable(self.server, error) from error
        try:
            yield link
        finally:
            link.shutdown()  # close() leaves the socket open once the server has said goodbye

    def _url(self, path: str, query: Query) -> str:
        return f"{self.server}{path}" + (f"?{urlencode(query)}" if query else "")

    def _authorization(self) -> dict[str, str]:
        value = self._configuration.get_api_key_with_prefix("BearerToken", alias="authorization")
        return {"Authorization": value} if value else {}

    def _headers(self, extra: Mapping[str, str] | None) -> dict[str, str]:
        ours = {"Accept": "application/json", "Content-Type": "application/json", "User-Agent": "ai-k8s-sandbox"}
        return {**ours, **self._authorization(), **(extra or {})}

    def _tls(self) -> dict[str, Any]:
        given = self._configuration
        options: dict[str, Any] = {"cert_reqs": ssl.CERT_REQUIRED if given.verify_ssl else ssl.CERT_NONE}
        named = {
            "ca_certs": given.ssl_ca_cert,
            "certfile": given.cert_file,
            "keyfile": given.key_file,
            "server_hostname": given.tls_server_name,
        }
        return options | {name: value for name, value in named.items() if value}


def _fresh() -> Configuration:
    """A configuration of its own: `Configuration()` would start from the process-wide default."""
    configuration = type.__call__(Configuration)
    if not isinstance(configuration, Configuration):
        raise ClusterError("the kubernetes library gave no Configuration", fix="pip install 'kubernetes>=33'")
    configuration.retries = _RETRIES
    configuration.connection_pool_maxsize = 32
    return configuration


def _document(path: Path) -> dict[str, Any]:
    """A kubeconfig whose certificates and keys are files that are nowhere but in memory.

    The library would write them to temporary files, which a process that is killed leaves behind: an administrator's
    key.

    Raises:
        ConfigException: it holds no mapping.
    """
    document = yaml.safe_load(path.read_text(encoding="utf-8"))
    if not isinstance(document, dict):
        raise ConfigException("it is empty, or no mapping")
    entries = [each.get(kind) for kind in ("cluster", "user") for each in document.get(f"{kind}s") or []]
    for entry in (each for each in entries if isinstance(each, dict)):
        for name in ("certificate-authority", "client-certificate", "client-key"):
            if sys.platform == "linux" and entry.get(f"{name}-data"):
                entry[name] = _memory_file(base64.b64decode(entry.pop(f"{name}-data")))
    return document


@cache
def _memory_file(content: bytes) -> str:
    """A file that ends with this process; the same one for the same content."""
    descriptor = os.memfd_create("kubeconfig")
    os.write(descriptor, content)
    return f"/proc/self/fd/{descriptor}"


def _is_local(server: str) -> bool:
    host = urlsplit(server).hostname or ""
    try:
        return ip_address(host).is_private
    except ValueError:
        return host == "localhost"


def _failure(server: str, error: Exception) -> ClusterError:
    """What to tell of a request without an answer. Where a clock is wrong, there is nothing to wait for."""
    reason = _reason(error)
    if not any(word in reason for word in _UNTIMELY):
        return Unreachable(server, reason)
    what = "by the clock of this machine the certificate of the API server is not valid yet, or no longer"
    fix = "set the clock; if it is right: sandbox down with the name of the cluster, then sandbox up"
    return ClusterError(what, where=server, fix=fix, details=[reason])


def _reason(error: Exception) -> str:
    """The innermost cause in words: urllib3 wraps it several times."""
    inner: BaseException = error
    while isinstance(inner, urllib3.exceptions.MaxRetryError) and inner.reason is not None:
        inner = inner.reason
    return str(inner).split(": ", 1)[-1]
