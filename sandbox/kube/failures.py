"""What can go wrong between us and an API server, as the tree of sandbox/errors.py continued.

ClusterError
├── Unreachable     no answer: refused, timed out, TLS, cut off. Waiters take it for "not yet".
└── ApiError        an answer that says no: `status` and `reason` are the server's own. Waiters take 429 and 5xx for
                    "not yet": the server is busy, or in trouble with itself.
"""

from __future__ import annotations

import json
from http import HTTPStatus
from typing import Any

from sandbox.errors import ClusterError


class Unreachable(ClusterError):
    """The API server gave no answer."""

    def __init__(self, server: str, why: object) -> None:
        super().__init__(
            f"the API server does not answer: {why}",
            where=server,
            fix="look at the cluster with: sandbox status",
        )


class ApiError(ClusterError):
    """The API server answered with an error.

    Attributes:
        status: the HTTP status code.
        reason: the `reason` of the returned Status object, such as NotFound or Forbidden; empty without one.
    """

    def __init__(self, what: str, status: int, body: Any, text: str) -> None:
        answer = body if isinstance(body, dict) else {}
        self.status = status
        self.reason = str(answer.get("reason", ""))
        self.message = str(answer.get("message", "") or text.strip()[:500])
        fix = {
            HTTPStatus.UNAUTHORIZED: "the credentials are not (or no longer) accepted; make them anew: sandbox up",
            HTTPStatus.FORBIDDEN: "the credentials lack this right; use the cluster's admin kubeconfig",
            HTTPStatus.CONFLICT: "somebody else changed the object at the same time; run the command again",
        }.get(HTTPStatus(status) if status in HTTPStatus._value2member_map_ else HTTPStatus.OK, "")
        super().__init__(f"{status} {self.reason or 'error'}: {self.message}", where=what, fix=fix)


def passing(error: Unreachable | ApiError) -> bool:
    """Whether the same question may soon have another answer: none came, or the server was not up to it."""
    if isinstance(error, Unreachable):
        return True
    return error.status == HTTPStatus.TOO_MANY_REQUESTS or error.status >= HTTPStatus.INTERNAL_SERVER_ERROR


def parse(text: str) -> Any:
    """JSON when it is JSON, else None."""
    try:
        return json.loads(text)
    except ValueError:
        return None
